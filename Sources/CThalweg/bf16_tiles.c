/* Products of matrices rounded to bfloat16 by the tiles of AMX: TDPBF16PS, 16 x 16 sums of 32 products an instruction. */
#include "include/CThalweg.h"

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>
#define VECTORS __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")))
#define TILES __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,amx-tile,amx-bf16")))

enum { SIDE = 16, DEPTH = TWI_TILES_DEPTH, BYTES = 1024, PANEL = TWI_TILES_LINES, CHUNK = 1024 };

/* The system keeps the tiles of a thread only where the process has asked for it. */
static bool permitted(void) {
  enum { REQUEST = 0x1023, TILE_DATA = 18 };
  unsigned a, b, c, d;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(d & 1u << 22) || !(d & 1u << 24)) return false;
  return syscall(SYS_arch_prctl, REQUEST, TILE_DATA) == 0;
}

bool twi_tiles_available(void) {
  static _Atomic int known = 0;
  int k = atomic_load_explicit(&known, memory_order_relaxed);
  if (k == 0) {
    k = twi_pairs_available() && permitted() ? 1 : 2;
    atomic_store_explicit(&known, k, memory_order_relaxed);
  }
  return k == 1;
}

/* v[i] of 32 bits each, 16 rows, turned. */
VECTORS static inline void turn(__m512i v[16]) {
  __m512i t[16];
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(v[i], v[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(v[i], v[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    v[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    v[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    v[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    v[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
  for (int i = 0; i < 16; i += 8)
    for (int j = 0; j < 4; j++) {
      t[i + j] = _mm512_shuffle_i32x4(v[i + j], v[i + j + 4], 0x88);
      t[i + j + 4] = _mm512_shuffle_i32x4(v[i + j], v[i + j + 4], 0xdd);
    }
  for (int j = 0; j < 8; j++) {
    v[j] = _mm512_shuffle_i32x4(t[j], t[j + 8], 0x88);
    v[j + 8] = _mm512_shuffle_i32x4(t[j], t[j + 8], 0xdd);
  }
}

VECTORS static inline __mmask16 first(int64_t n) { return n >= 16 ? 0xffff : n <= 0 ? 0 : (__mmask16)((1u << n) - 1); }

/* Sixteen lines of 32 numbers, a line a vector where the numbers of a line lie side by side in x, else a pair of numbers of all lines a
   vector. What is not there is 0. */
VECTORS static inline void lines_of(const float *x, int64_t ld, int64_t lines, int64_t numbers, __m512i v[16]) {
  const __mmask16 low = first(numbers), high = first(numbers - 16);
  for (int l = 0; l < 16; l++) {
    const float *row = x + l * ld;
    v[l] = l < lines ? (__m512i)_mm512_cvtne2ps_pbh(_mm512_maskz_loadu_ps(high, row + (numbers > 16 ? 16 : 0)), _mm512_maskz_loadu_ps(low, row))
                     : _mm512_setzero_si512();
  }
}
VECTORS static inline void pairs_of(const float *x, int64_t ld, int64_t lines, int64_t numbers, __m512i v[16]) {
  const __mmask16 there = first(lines);
  for (int p = 0; p < 16; p++) {
    const __m512 a = 2 * p < numbers ? _mm512_maskz_loadu_ps(there, x + 2 * p * ld) : _mm512_setzero_ps();
    const __m512 b = 2 * p + 1 < numbers ? _mm512_maskz_loadu_ps(there, x + (2 * p + 1) * ld) : _mm512_setzero_ps();
    const __m512i even = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(a)), odd = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(b));
    v[p] = _mm512_or_si512(even, _mm512_slli_epi32(odd, 16));
  }
}

/* A panel is 32 lines: for every 32 of the inner numbers two tiles, in rows of a line (left) or of a pair of numbers (right). */
VECTORS void twi_tiles_pack(const float *x, int64_t ld, bool along, int64_t lines, int64_t k, bool left, void *out, int64_t panel) {
  const int64_t deep = (k + DEPTH - 1) / DEPTH;
  char *to = (char *)out + panel * deep * 2 * BYTES;
  for (int half = 0; half < 2; half++) {
    const int64_t line = panel * PANEL + half * SIDE, there = lines - line;
    for (int64_t d = 0; d < deep; d++) {
      __m512i v[16];
      const int64_t numbers = k - d * DEPTH;
      if (there <= 0) {
        for (int i = 0; i < 16; i++) v[i] = _mm512_setzero_si512();
      } else {
        if (along) lines_of(x + line * ld + d * DEPTH, ld, there, numbers, v);
        else pairs_of(x + d * DEPTH * ld + line, ld, there, numbers, v);
        if (along != left) turn(v);
      }
      char *tile = to + (2 * d + half) * BYTES;
      for (int i = 0; i < 16; i++) _mm512_store_si512(tile + 64 * i, v[i]);
    }
  }
}

/* Rows begin to end (begin a multiple of TWI_TILES_LINES) of a square of n: what is left of the blocks on the diagonal, from above them. */
VECTORS void twi_tiles_mirror(float *c, int64_t n, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; i += SIDE) {
    const __mmask16 across = first(n - i);
    for (int64_t j = 0; j < i / PANEL * PANEL; j += SIDE) {
      __m512i v[16];
      for (int l = 0; l < 16; l++) v[l] = _mm512_castps_si512(_mm512_maskz_loadu_ps(across, c + (j + l) * n + i));
      turn(v);
      for (int l = 0; l < 16 && i + l < end; l++) _mm512_storeu_ps(c + (i + l) * n + j, _mm512_castsi512_ps(v[l]));
    }
  }
}

struct shape {
  uint8_t palette, start, rest[14];
  uint16_t bytes[16];
  uint8_t rows[16];
};

/* c = alpha a b + beta base of one pair of panels; m rows and n columns of it exist. */
TILES static void pair(const char *a, const char *b, int64_t deep, float alpha, float beta,
                       const float *base, float *c, int64_t ldc, int64_t m, int64_t n,
                       float *sums) {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int64_t d = 0; d < deep; d++, a += 2 * BYTES, b += 2 * BYTES) {
    _tile_loadd(4, a, 64);
    _tile_loadd(6, b, 64);
    _tile_loadd(7, b + BYTES, 64);
    _tile_loadd(5, a + BYTES, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  _tile_stored(0, sums, 128);
  _tile_stored(1, sums + 16, 128);
  _tile_stored(2, sums + 512, 128);
  _tile_stored(3, sums + 528, 128);
  const __m512 al = _mm512_set1_ps(alpha), be = _mm512_set1_ps(beta);
  for (int64_t i = 0; i < (m < PANEL ? m : PANEL); i++) {
    for (int j = 0; j < 2; j++) {
      const __mmask16 there = first(n - 16 * j);
      const float *from = base + i * ldc + 16 * j;
      float *at = c + i * ldc + 16 * j;
      __m512 r = _mm512_mul_ps(al, _mm512_load_ps(sums + i * PANEL + 16 * j));
      if (beta != 0) r = _mm512_add_ps(r, _mm512_mul_ps(be, _mm512_maskz_loadu_ps(there, from)));
      if (there) _mm512_mask_storeu_ps(at, there, r);
    }
  }
}

/* The inner numbers are taken 1024 at a time, so that the panels of a stripe of a stay in cache. */
TILES void twi_tiles_multiply(const void *a, const void *b, int64_t begin, int64_t end, int64_t n, int64_t k, float alpha, float beta,
                              const float *base, float *c, int64_t ldc, bool upper) {
  const int64_t deep = (k + DEPTH - 1) / DEPTH, panel = deep * 2 * BYTES;
  _Alignas(64) float sums[PANEL * PANEL];
  struct shape shape;
  memset(&shape, 0, sizeof shape);
  shape.palette = 1;
  for (int t = 0; t < 8; t++) shape.bytes[t] = 64, shape.rows[t] = SIDE;
  _tile_loadconfig(&shape);
  for (int64_t d = 0; d < deep; d += CHUNK / DEPTH) {
    const int64_t some = deep - d < CHUNK / DEPTH ? deep - d : CHUNK / DEPTH;
    for (int64_t j = 0; j < n; j += PANEL) {
      const char *right = (const char *)b + j / PANEL * panel + d * 2 * BYTES;
      for (int64_t i = begin; i < end; i += PANEL) {
        if (upper && j + PANEL <= i) break;
        pair((const char *)a + i / PANEL * panel + d * 2 * BYTES, right, some, alpha, d == 0 ? beta : 1,
             (d == 0 ? base : c) + i * ldc + j, c + i * ldc + j, ldc, end - i, n - j, sums);
      }
    }
  }
  _tile_release();
}
#else
bool twi_tiles_available(void) { return false; }
void twi_tiles_mirror(float *c, int64_t n, int64_t begin, int64_t end) { (void)c, (void)n, (void)begin, (void)end; }
void twi_tiles_pack(const float *x, int64_t ld, bool along, int64_t lines, int64_t k, bool left, void *out, int64_t panel) {
  (void)x, (void)ld, (void)along, (void)lines, (void)k, (void)left, (void)out, (void)panel;
}
void twi_tiles_multiply(const void *a, const void *b, int64_t begin, int64_t end, int64_t n, int64_t k, float alpha, float beta,
                        const float *base, float *c, int64_t ldc, bool upper) {
  (void)a, (void)b, (void)begin, (void)end, (void)n, (void)k, (void)alpha, (void)beta, (void)base, (void)c, (void)ldc, (void)upper;
}
#endif
