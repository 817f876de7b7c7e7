/* Fingerprints of chunks of parameters: Engine/Marks.swift. */
#include "CThalweg.h"

/* Rows of sixteen lanes of eight bytes. */
enum { ROW = TWI_MARK_LANES * 8 };
typedef uint32_t words __attribute__((vector_size(ROW)));
typedef uint64_t longs __attribute__((vector_size(ROW)));

/* The sum of products of the two words of each lane, a key of the row added to either: no two rows count alike, so that neither
 * elements that change places nor signs that turn cancel but by chance, one in four thousand million. */
TWI_INLINE void add(longs *sum, const void *row, uint64_t key) {
  words w;
  memcpy(&w, row, ROW);
  w += (words)((longs){0} + key);
  const longs pair = (longs)w;
  *sum += (pair & 0xffffffff) * (pair >> 32);
}
void twi_mark(const void *x, int64_t n, uint32_t *out) {
  const uint8_t *at = x;
  longs sum = {0};
  uint64_t key = 0x243f6a8885a308d3;
  for (int64_t rows = n / ROW; rows > 0; rows--, at += ROW, key += 0x9e3779b97f4a7c15) add(&sum, at, key);
  if (n % ROW > 0) {
    uint8_t rest[ROW] = {0};
    memcpy(rest, at, (size_t)(n % ROW));
    add(&sum, rest, key);
  }
  sum *= 0x9e3779b97f4a7c15;
  for (int k = 0; k < TWI_MARK_LANES; k++) out[k] = (uint32_t)(sum[k] >> 32);
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
