/* What Swift sees of C: the public header, and the few things that Swift cannot say itself. */
#ifndef CTHALWEG_H
#define CTHALWEG_H

#include "../../../include/thalweg/thalweg.h"

#include "Codecs.h"

#include <stdbool.h>
#include <stdint.h>

/* The calling thread's error message (thread-local storage). */
void twi_set_error(const char *message, size_t length);
const char *twi_get_error(void);

/* Sequentially consistent atomics. */
static inline int64_t twi_fetch_add(int64_t *p, int64_t v) { return __atomic_fetch_add(p, v, __ATOMIC_SEQ_CST); }
static inline int64_t twi_load(const int64_t *p) { return __atomic_load_n(p, __ATOMIC_SEQ_CST); }
static inline void twi_store(int64_t *p, int64_t v) { __atomic_store_n(p, v, __ATOMIC_SEQ_CST); }
static inline bool twi_swap_if(int64_t *p, int64_t expected, int64_t v) {
  return __atomic_compare_exchange_n(p, &expected, v, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
}
static inline void twi_pause(void) {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

/* Asks for `lines` cache lines from p on; any address will do. */
static inline void twi_prefetch(const void *p, int64_t lines) {
  for (int64_t i = 0; i < lines; i++) __builtin_prefetch((const char *)p + 64 * i, 0, 3);
}

/* The size of the CPU affinity mask, at least 1. */
int32_t twi_cpu_count(void);

/* The instruction set that this file was compiled for. */
const char *twi_instruction_set(void);

/* errno of the last failed call, and its text. */
int twi_errno(void);
const char *twi_strerror(int code);

/* open() without the variadic mode: for writing (created, truncated) and for reading; -1 with errno on failure. */
int twi_open_write(const char *path);
int twi_open_read(const char *path);

#endif
