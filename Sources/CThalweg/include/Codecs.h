/* State in fewer bits: sixty-four numbers at a time. Here, and not in Swift, because these loops must vanish into every rule's kernel. */
#ifndef THALWEG_CODECS_H
#define THALWEG_CODECS_H

#include <stdint.h>
#include <string.h>

/* One rounding for each operation: the same bits with and without fused multiply-add. */
#pragma STDC FP_CONTRACT OFF

#define TWI_GROUP 64
#define TWI_INLINE static inline __attribute__((always_inline))

/* c of the maps: 7.9 octaves of 16 steps (signed), 15 octaves (positive). */
#define TWI_SIGNED_OFFSET (1.0f / 240)
#define TWI_POSITIVE_OFFSET 0x1p-15f

TWI_INLINE uint32_t twi_bits(float x) {
  uint32_t b;
  memcpy(&b, &x, 4);
  return b;
}
TWI_INLINE float twi_float(uint32_t b) {
  float x;
  memcpy(&x, &b, 4);
  return x;
}

TWI_INLINE void twi_decode_signed(const uint8_t *restrict codes, float scale, float *restrict out) {
  const float c = TWI_SIGNED_OFFSET;
  for (int k = 0; k < TWI_GROUP; k++) {
    const uint32_t q = codes[k];
    const float x = (twi_float(((q & 127) << 19) + twi_bits(c)) - c) * scale;
    out[k] = twi_float(twi_bits(x) | (q & 128) << 24);
  }
}
TWI_INLINE void twi_decode_positive(const uint8_t *restrict codes, float scale, float *restrict out) {
  const float c = TWI_POSITIVE_OFFSET;
  for (int k = 0; k < TWI_GROUP; k++) out[k] = (twi_float(((uint32_t)codes[k] << 19) + twi_bits(c)) - c) * scale;
}
TWI_INLINE void twi_encode_signed(const float *restrict values, float inverse, uint8_t *restrict codes) {
  const float c = TWI_SIGNED_OFFSET;
  for (int k = 0; k < TWI_GROUP; k++) {
    const uint32_t b = twi_bits(values[k]);
    const float y = twi_float(b & 0x7fffffff) * inverse + c;
    codes[k] = (uint8_t)((((twi_bits(y) + (0x40000 - twi_bits(c))) >> 19) & 127) | ((b >> 24) & 128));
  }
}
/* At least 1 where x is positive, whose bits are then at least 1. */
TWI_INLINE void twi_encode_positive(const float *restrict values, float inverse, uint8_t *restrict codes) {
  const float c = TWI_POSITIVE_OFFSET;
  for (int k = 0; k < TWI_GROUP; k++) {
    const uint32_t b = twi_bits(values[k]), least = b < 1 ? b : 1;
    const uint32_t q = (twi_bits(values[k] * inverse + c) + (0x40000 - twi_bits(c))) >> 19;
    codes[k] = (uint8_t)(q > least ? q : least);
  }
}
/* Magnitudes order like their bits; sixteen maxima side by side. */
TWI_INLINE void twi_raise(const float *restrict values, uint32_t *restrict top) {
  for (int k = 0; k < 16; k++) {
    const uint32_t a = twi_bits(values[k]) & 0x7fffffff, b = twi_bits(values[k + 16]) & 0x7fffffff;
    const uint32_t c = twi_bits(values[k + 32]) & 0x7fffffff, d = twi_bits(values[k + 48]) & 0x7fffffff;
    const uint32_t ab = a > b ? a : b, cd = c > d ? c : d, most = ab > cd ? ab : cd;
    top[k] = most > top[k] ? most : top[k];
  }
}
TWI_INLINE void twi_widen_bf16(const uint16_t *restrict codes, float *restrict out) {
  for (int k = 0; k < TWI_GROUP; k++) out[k] = twi_float((uint32_t)codes[k] << 16);
}
/* To nearest, ties to even; NaN stays NaN. */
TWI_INLINE void twi_narrow_bf16(const float *restrict values, uint16_t *restrict codes) {
  for (int k = 0; k < TWI_GROUP; k++) {
    const uint32_t b = twi_bits(values[k]);
    codes[k] = (uint16_t)(values[k] == values[k] ? (b + 0x7fff + ((b >> 16) & 1)) >> 16 : (b >> 16) | 0x40);
  }
}
#pragma STDC FP_CONTRACT DEFAULT
#endif
