/* Fingerprints of chunks of parameters: Engine/Marks.swift. */
#include "CThalweg.h"

/* Four rows of lanes side by side, whose instructions overlap. */
enum { LANES = TWI_MARK_LANES, WIDE = 4 * LANES };

/* 7 and 32 have no common divisor: each of the 32 elements of a lane adds at another place of the number, so that equal
 * changes of many elements (a sign, a constant) do not cancel. */
static inline uint32_t turned(uint32_t h, int by) { return (h << by) | (h >> (32 - by)); }
static inline uint32_t stir(uint32_t h, uint32_t w) { return turned(h, 7) + w; }

/* A wide row has 8 elements of 512, and 8 turns by 7 are one by 24. */
static inline void join(const uint32_t *h, uint32_t *restrict out) {
  for (int l = 0; l < LANES; l++) {
    uint32_t sum = h[l];
    for (int k = 1; k < 4; k++) sum = turned(sum, 24) + h[l + k * LANES];
    out[l] = sum;
  }
}

void twi_mark_16(const uint16_t *x, int64_t n, uint32_t *restrict out) {
  uint32_t h[WIDE] = {0};
  for (; n >= WIDE; n -= WIDE, x += WIDE) {
    for (int l = 0; l < WIDE; l++) h[l] = stir(h[l], x[l]);
  }
  for (int l = 0; l < n; l++) h[l] = stir(h[l], x[l]);
  join(h, out);
}

void twi_mark_32(const uint32_t *x, int64_t n, uint32_t *restrict out) {
  uint32_t h[WIDE] = {0};
  for (; n >= WIDE; n -= WIDE, x += WIDE) {
    for (int l = 0; l < WIDE; l++) h[l] = stir(h[l], x[l]);
  }
  for (int l = 0; l < n; l++) h[l] = stir(h[l], x[l]);
  join(h, out);
}

/* Both halves count; a number of 32 bits counts as itself. */
static inline uint32_t halves(uint64_t x) { return (uint32_t)x ^ ((uint32_t)(x >> 32) * 0x85ebca6bu); }

void twi_mark_64(const uint64_t *x, int64_t n, uint32_t *restrict out) {
  uint32_t h[WIDE] = {0};
  for (; n >= WIDE; n -= WIDE, x += WIDE) {
    for (int l = 0; l < WIDE; l++) h[l] = stir(h[l], halves(x[l]));
  }
  for (int l = 0; l < n; l++) h[l] = stir(h[l], halves(x[l]));
  join(h, out);
}

/* Whether bfloat16 is what the floats round to, to nearest and even. */
bool twi_rounds_to_bf16(const float *x, const uint16_t *codes, int64_t n) {
  uint32_t differ = 0;
  for (int64_t i = 0; i < n; i++) {
    uint32_t b;
    memcpy(&b, x + i, 4);
    const uint32_t near = (b + 0x7fff + (b >> 16 & 1)) >> 16, quiet = b >> 16 | 0x40;
    differ |= ((b & 0x7fffffff) > 0x7f800000 ? quiet : near) ^ codes[i];
  }
  return differ == 0;
}
bool twi_rounds_to_f16(const float *x, const uint16_t *codes, int64_t n) {
  uint32_t differ = 0;
  for (int64_t i = 0; i < n; i++) {
    const _Float16 near = (_Float16)x[i];
    uint16_t b;
    memcpy(&b, &near, 2);
    differ |= (uint32_t)(b ^ codes[i]);
  }
  return differ == 0;
}
