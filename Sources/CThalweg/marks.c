/* Fingerprints of blocks of parameters: Engine/Marks.swift. */
#include "CThalweg.h"

enum { LANES = TWI_MARK_LANES };

/* A lane has at most 32 rows, and 7 and 32 have no common divisor: every row adds at another place of the number, so that equal
 * changes of many elements (a sign, a constant) do not cancel. */
static inline uint32_t stir(uint32_t h, uint32_t w) { return ((h << 7) | (h >> 25)) + w; }

void twi_mark_16(const uint16_t *x, int64_t rows, uint32_t *restrict h) {
  for (; rows > 0; rows--, x += LANES) {
    for (int l = 0; l < LANES; l++) h[l] = stir(h[l], x[l]);
  }
}

void twi_mark_32(const uint32_t *x, int64_t rows, uint32_t *restrict h) {
  for (; rows > 0; rows--, x += LANES) {
    for (int l = 0; l < LANES; l++) h[l] = stir(h[l], x[l]);
  }
}

/* Both halves count; a number of 32 bits counts as itself. */
void twi_mark_64(const uint64_t *x, int64_t rows, uint32_t *restrict h) {
  for (; rows > 0; rows--, x += LANES) {
    for (int l = 0; l < LANES; l++) h[l] = stir(h[l], (uint32_t)x[l] ^ ((uint32_t)(x[l] >> 32) * 0x85ebca6bu));
  }
}
