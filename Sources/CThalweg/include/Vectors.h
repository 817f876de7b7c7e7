/* Vectors of which Swift's own operation is a loop over single numbers, or becomes one when the optimizer takes what is
 * written out element by element apart: one or two instructions each. By value, as Swift's own vectors. */
#ifndef THALWEG_VECTORS_H
#define THALWEG_VECTORS_H

#include "Codecs.h"

#if defined(__clang__)
typedef float twi_float4 __attribute__((ext_vector_type(4)));
typedef double twi_double4 __attribute__((ext_vector_type(4)));
typedef float twi_float8 __attribute__((ext_vector_type(8)));
typedef double twi_double8 __attribute__((ext_vector_type(8)));
typedef float twi_float16 __attribute__((ext_vector_type(16)));

TWI_INLINE twi_double4 twi_widen4(twi_float4 x) {
  return __builtin_convertvector(x, twi_double4);
}
TWI_INLINE twi_double8 twi_widen(twi_float8 x) {
  return __builtin_convertvector(x, twi_double8);
}
TWI_INLINE twi_float8 twi_narrow(twi_double8 x) {
  return __builtin_convertvector(x, twi_float8);
}
TWI_INLINE twi_float16 twi_root16(twi_float16 x) {
  return __builtin_elementwise_sqrt(x);
}
TWI_INLINE twi_double8 twi_root8(twi_double8 x) {
  return __builtin_elementwise_sqrt(x);
}
#endif

#endif
