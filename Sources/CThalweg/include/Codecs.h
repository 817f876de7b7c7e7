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

/* Sixteen numbers side by side: as loops over single ones the compilers leave the stochastic encoders half as fast. */
typedef uint32_t twi_lanes __attribute__((vector_size(64)));
typedef float twi_floats __attribute__((vector_size(64)));
typedef uint16_t twi_halves __attribute__((vector_size(32)));
typedef uint8_t twi_bytes __attribute__((vector_size(16)));

TWI_INLINE void twi_read_lanes(const float *p, twi_lanes *x) { memcpy(x, p, sizeof *x); }
TWI_INLINE void twi_most(twi_lanes *x, const twi_lanes *y) {
#if defined(__clang__)
  *x = __builtin_elementwise_max(*x, *y);
#else
  const twi_lanes above = (twi_lanes)(*x > *y);
  *x = (above & *x) | (~above & *y);
#endif
}

/* Noise for the rounding of a group, from the 64 random bits of `draw`, whose halves are base and stride: number k gets
 * base + k * stride modulo 2^32. For any two numbers of the group the upper 27 bits of their noise are uniform and
 * independent, so that a sum over many numbers has the mean and the variance that independent noise gives it, for the
 * price of one draw. Here for the first sixteen, and the step to the next. */
TWI_INLINE void twi_noise(uint64_t draw, twi_lanes *noise, twi_lanes *next) {
  const twi_lanes stride = (twi_lanes){0} + (uint32_t)(draw >> 32);
  *noise = (twi_lanes){0} + (uint32_t)draw + stride * (twi_lanes){0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  *next = stride * 16;
}
/* The draw whose noise is one half for every number: to nearest. */
#define TWI_NEAREST 0x80000000u

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
/* Both maps round as the noise says: what lies below the cut is the probability of the next code, since the bits of a
 * float are linear in its value within an octave. The largest number of a block times the inverse is at most 1, which
 * has the last code with nothing below the cut. */
TWI_INLINE void twi_encode_signed(const float *restrict values, float inverse, uint64_t draw, uint8_t *restrict codes) {
  const float c = TWI_SIGNED_OFFSET;
  twi_lanes b, noise, next;
  twi_noise(draw, &noise, &next);
  for (int k = 0; k < TWI_GROUP; k += 16, noise += next) {
    twi_read_lanes(values + k, &b);
    const twi_floats y = (twi_floats)(b & 0x7fffffff) * inverse + c;
    const twi_lanes q = ((twi_lanes)y - twi_bits(c) + (noise >> 13)) >> 19;
    const twi_bytes code = __builtin_convertvector(q | (b >> 24 & 128), twi_bytes);
    memcpy(codes + k, &code, sizeof code);
  }
}
/* At least 1 where x is positive, whose bits are then at least 1. */
TWI_INLINE void twi_encode_positive(
    const float *restrict values, float inverse, uint64_t draw, uint8_t *restrict codes) {
  const float c = TWI_POSITIVE_OFFSET;
  twi_lanes b, noise, next;
  twi_noise(draw, &noise, &next);
  for (int k = 0; k < TWI_GROUP; k += 16, noise += next) {
    twi_read_lanes(values + k, &b);
    const twi_floats y = (twi_floats)b * inverse + c;
    const twi_lanes least = (twi_lanes)(b != 0) & 1;
    twi_lanes q = ((twi_lanes)y - twi_bits(c) + (noise >> 13)) >> 19;
    twi_most(&q, &least);
    const twi_bytes code = __builtin_convertvector(q, twi_bytes);
    memcpy(codes + k, &code, sizeof code);
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
/* Up with the probability of what is cut off. From the largest bfloat16 on it is only cut off: finite numbers stay
 * finite, an infinity stays one, and so does NaN (arithmetic makes quiet ones, whose mark lies in the upper half). */
TWI_INLINE void twi_narrow_bf16(const float *restrict values, uint64_t draw, uint16_t *restrict codes) {
  twi_lanes b, noise, next;
  twi_noise(draw, &noise, &next);
  for (int k = 0; k < TWI_GROUP; k += 16, noise += next) {
    twi_read_lanes(values + k, &b);
    const twi_lanes inside = (twi_lanes)((twi_floats)(b & 0x7fffffff) < 0x1.fep127f);
    const twi_halves code = __builtin_convertvector((b + (inside & noise >> 16)) >> 16, twi_halves);
    memcpy(codes + k, &code, sizeof code);
  }
}
#pragma STDC FP_CONTRACT DEFAULT
#endif
