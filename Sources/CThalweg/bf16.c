/* Products of matrices rounded to bfloat16, summed in float32: VDPBF16PS, two products an element an instruction. */
#include "include/CThalweg.h"

#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
#define TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")))

bool twi_pairs_available(void) {
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512dq");
}

enum { ROWS = TWI_PAIRS_ROWS, COLUMNS = TWI_PAIRS_COLUMNS };

/* Pairs (x[2i], x[2i + 1]) of 16 lines: out[i][line], `lines` of them there. */
TARGET static void pack_along(const float *x, int64_t ld, int lines, int64_t k, uint32_t *out, int width) {
  for (int l = 0; l < width; l++) {
    const float *row = x + l * ld;
    int64_t i = 0;
    if (l >= lines) {
      for (int64_t p = 0; p < (k + 1) / 2; p++) out[p * width + l] = 0;
      continue;
    }
    uint32_t pairs[16];
    for (; i + 32 <= k; i += 32) {
      const __m512bh h = _mm512_cvtne2ps_pbh(_mm512_loadu_ps(row + i + 16), _mm512_loadu_ps(row + i));
      memcpy(pairs, &h, 64);
      for (int j = 0; j < 16; j++) out[(i / 2 + j) * width + l] = pairs[j];
    }
    for (; i < k; i += 2) {
      float two[16] = {row[i], i + 1 < k ? row[i + 1] : 0};
      const __m256bh h = _mm512_cvtneps_pbh(_mm512_loadu_ps(two));
      memcpy(pairs, &h, 4);
      out[i / 2 * width + l] = pairs[0];
    }
  }
}

/* The same of 16 columns each of rows 2i and 2i + 1. */
TARGET static void pack_across(const float *x, int64_t ld, int lines, int64_t k, uint32_t *out, int width) {
  for (int64_t i = 0; i < k; i += 2) {
    for (int l = 0; l < width; l += 16) {
      const int there = lines - l < 0 ? 0 : lines - l > 16 ? 16 : lines - l;
      const __mmask16 m = (__mmask16)((1u << there) - 1);
      const __m512 a = _mm512_maskz_loadu_ps(m, x + i * ld + l);
      const __m512 b = i + 1 < k ? _mm512_maskz_loadu_ps(m, x + (i + 1) * ld + l) : _mm512_setzero_ps();
      const __m512i low = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(a)), high = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(b));
      const __m512i pairs = _mm512_or_si512(low, _mm512_slli_epi32(high, 16));
      const __mmask16 room = (__mmask16)((1u << (width - l < 16 ? width - l : 16)) - 1);
      _mm512_mask_storeu_epi32(out + i / 2 * width + l, room, pairs);
    }
  }
}

void twi_pairs_pack(const float *x, int64_t ld, bool along, int64_t lines, int64_t k, int width, void *out, int64_t first) {
  const int64_t left = lines - first;
  uint32_t *panel = (uint32_t *)out + first * ((k + 1) / 2);
  const int there = left < width ? (int)left : width;
  if (along) pack_along(x + first * ld, ld, there, k, panel, width);
  else pack_across(x + first, ld, there, k, panel, width);
}

/* c[ROWS][COLUMNS] = alpha a b + beta base over `pairs` pairs; m rows and n columns of it exist. */
TARGET static void tile(const uint32_t *a, const uint32_t *b, int64_t pairs, float alpha, float beta,
                        const float *base, float *c, int64_t ldc, int m, int n) {
  __m512 s[ROWS][COLUMNS / 16];
  for (int i = 0; i < ROWS; i++)
    for (int j = 0; j < COLUMNS / 16; j++) s[i][j] = _mm512_setzero_ps();
  for (int64_t p = 0; p < pairs; p++) {
    __m512bh v[COLUMNS / 16];
    for (int j = 0; j < COLUMNS / 16; j++) v[j] = (__m512bh)_mm512_loadu_si512(b + p * COLUMNS + 16 * j);
#pragma unroll
    for (int i = 0; i < ROWS; i++) {
      const __m512bh x = (__m512bh)_mm512_set1_epi32((int)a[p * ROWS + i]);
      for (int j = 0; j < COLUMNS / 16; j++) s[i][j] = _mm512_dpbf16_ps(s[i][j], x, v[j]);
    }
  }
  const __m512 al = _mm512_set1_ps(alpha), be = _mm512_set1_ps(beta);
#pragma unroll
  for (int i = 0; i < ROWS; i++) {
    if (i >= m) break;
    for (int j = 0; j < COLUMNS / 16; j++) {
      const int there = n - 16 * j < 0 ? 0 : n - 16 * j > 16 ? 16 : n - 16 * j;
      const __mmask16 mask = (__mmask16)((1u << there) - 1);
      const float *from = base + i * ldc + 16 * j;
      float *at = c + i * ldc + 16 * j;
      __m512 r = _mm512_mul_ps(al, s[i][j]);
      if (beta != 0) r = _mm512_add_ps(r, _mm512_mul_ps(be, _mm512_maskz_loadu_ps(mask, from)));
      _mm512_mask_storeu_ps(at, mask, r);
    }
  }
}

TARGET void twi_pairs_multiply(const void *a, const void *b, int64_t first, int64_t end, int64_t n, int64_t k, float alpha, float beta,
                               const float *base, float *c, int64_t ldc, bool upper) {
  const int64_t pairs = (k + 1) / 2;
  for (int64_t j = 0; j < n; j += COLUMNS) {
    for (int64_t i = first; i < end; i += ROWS) {
      if (upper && j + COLUMNS <= i) break;
      tile((const uint32_t *)a + i * pairs, (const uint32_t *)b + j * pairs, pairs, alpha, beta, base + i * ldc + j, c + i * ldc + j, ldc,
           (int)(end - i < ROWS ? end - i : ROWS), (int)(n - j < COLUMNS ? n - j : COLUMNS));
    }
  }
}
#else
bool twi_pairs_available(void) { return false; }
void twi_pairs_pack(const float *x, int64_t ld, bool along, int64_t lines, int64_t k, int width, void *out, int64_t first) {
  (void)x, (void)ld, (void)along, (void)lines, (void)k, (void)width, (void)out, (void)first;
}
void twi_pairs_multiply(const void *a, const void *b, int64_t first, int64_t end, int64_t n, int64_t k, float alpha, float beta,
                        const float *base, float *c, int64_t ldc, bool upper) {
  (void)a, (void)b, (void)first, (void)end, (void)n, (void)k, (void)alpha, (void)beta, (void)base, (void)c, (void)ldc, (void)upper;
}
#endif
