/* Fingerprints of groups of parameters: Engine/Marks.swift. */
#include "CThalweg.h"

enum { PIECE = 64 };
typedef uint32_t words __attribute__((vector_size(PIECE)));
typedef uint64_t longs __attribute__((vector_size(PIECE)));

/* A key for each word of a group of at most four pieces: 256 bits of pi, and on by steps of the golden ratio. */
static inline words keys(int piece) {
  const longs first = {0x243f6a8885a308d3, 0x13198a2e03707344, 0xa4093822299f31d0, 0x082efa98ec4e6c89,
                       0x452821e638d01377, 0xbe5466cf34e90c6c, 0xc0ac29b7c97c50dd, 0x3f84d5b5b5470917};
  return (words)(first + (uint64_t)piece * 0x9e3779b97f4a7c15);
}

/* The sum of products of the two words of every eight bytes, a key added to each: no two places count alike, so that
 * neither elements that change places nor signs that turn cancel but by chance, one in four thousand million. */
TWI_INLINE void add(longs *sum, const void *at, int piece) {
  words w;
  memcpy(&w, at, PIECE);
  w += keys(piece);
  const longs pair = (longs)w;
  *sum += (pair & 0xffffffff) * (pair >> 32);
}
TWI_INLINE uint32_t finish(const longs *sum) {
  uint64_t all = 0;
  for (int k = 0; k < 8; k++) all += (*sum)[k];
  return (uint32_t)(all * 0x9e3779b97f4a7c15 >> 32);
}
TWI_INLINE uint32_t group(const uint8_t *at, int pieces) {
  longs sum = {0};
  for (int k = 0; k < pieces; k++) {
    twi_fetch_ahead(at + k * PIECE);
    add(&sum, at + k * PIECE, k);
  }
  return finish(&sum);
}
static uint32_t rest(const uint8_t *at, int64_t n) {
  uint8_t padded[4 * PIECE] = {0};
  memcpy(padded, at, (size_t)n);
  return group(padded, 4);
}

void twi_mark(const void *x, int64_t n, int64_t bytes, uint32_t *out) {
  const uint8_t *at = x;
  switch (bytes) {
  case PIECE: for (; n >= bytes; n -= bytes, at += bytes) *out++ = group(at, 1); break;
  case 2 * PIECE: for (; n >= bytes; n -= bytes, at += bytes) *out++ = group(at, 2); break;
  default: for (; n >= bytes; n -= bytes, at += bytes) *out++ = group(at, 4);
  }
  if (n > 0) *out = rest(at, n);
}

/* Whether 16-bit numbers are what the floats round to. For bfloat16 "no" may also mean that a number lies half way, or is none. */
bool twi_rounds_to_bf16(const float *x, const uint16_t *codes, int64_t n) {
  uint32_t most = 0;
  for (int64_t i = 0; i < n; i++) {
    const uint32_t off = twi_bits(x[i]) + 0x7fff - ((uint32_t)codes[i] << 16);
    most = off > most ? off : most;
  }
  return most < 0xffff;
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
