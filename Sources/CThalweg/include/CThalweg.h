/* What Swift sees of C: the public header, and the few things that Swift cannot say itself. */
#ifndef CTHALWEG_H
#define CTHALWEG_H

#include "../../../include/thalweg/thalweg.h"

#include "Codecs.h"
#include "Vectors.h"

#include <stdbool.h>
#include <stdint.h>

/* The calling thread's error message (thread-local storage). */
void twi_set_error(const char *message, size_t length);
const char *twi_get_error(void);

/* What the handle whose call this thread is in brings of its own; outside calls, what handles get that it creates. */
tw_services twi_services(void);
/* What a handle's steps allocated and freed again, for the next one (depot.c). */
typedef struct twi_depot twi_depot;
/* Begins a call with a handle's services, and returns what to end it with.  With a depot the call allocates from there. */
typedef struct twi_call {
  tw_services services;
  twi_depot *depot;
  int32_t within;
} twi_call;
twi_call twi_enter(tw_services services, twi_depot *depot);
void twi_leave(twi_call before);
/* That of the call that this thread is in, or NULL; another thread that works for the call takes it over, until it is given NULL. */
twi_depot *twi_depot_at_work(void);
void twi_depot_work(twi_depot *depot);
/* NULL where there is no memory, or where a sanitizer wants to see every block. */
twi_depot *twi_depot_make(void);
void twi_depot_leave(twi_depot *depot);
size_t twi_depot_bytes(twi_depot *depot);
/* Gives the system back what is large and not in use. */
void twi_depot_trim(twi_depot *depot);
/* Of the depot at work; NULL where there is none. */
void *twi_depot_take(size_t size, size_t alignment);
/* Whether p was a depot's, which has it back now. */
bool twi_depot_give(void *p);
/* The bytes that there are at p; 0 for memory that is no depot's. */
size_t twi_depot_room(const void *p);

/* What handles get that this thread creates. */
void twi_set_services(tw_services services);

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

/* Asks for the cache line at p; any address will do. */
static inline void twi_prefetch(const void *p) { __builtin_prefetch(p, 0, 3); }
/* Asks for what a walk along one stream of memory will read a page from p: by itself the processor looks only a few lines ahead, and such a
 * walk waits for half of its time. (Where three streams or more advance, it does not.) */
static inline void twi_fetch_ahead(const void *p) { twi_prefetch((const char *)p + 4096); }
/* Asks for `lines` of them, one a turn: processors drop what comes faster than they can begin to fetch it. */
static inline void twi_prefetch_lines(const void *p, int64_t lines) {
#pragma clang loop unroll(disable)
  for (int64_t i = 0; i < lines; i++) __builtin_prefetch((const char *)p + 64 * i, 0, 3);
}

/* Whether this instruction set multiplies and adds at once; without it the C library does, a number at a time. */
#if defined(__FMA__) || defined(__aarch64__)
#define TWI_FMA 1
#else
#define TWI_FMA 0
#endif

/* Matrix products in bfloat16, where the processor has them. An operand is packed in panels of lines (rows of a, columns of b): `along` when
 * the inner index runs along the rows of x, else across them; what is missing of the last panel is 0. Products are rows first to end (first a
 * multiple of a panel of a) of c = alpha a b + beta base (which may be c); only what touches the upper triangle when `upper`.
 *
 * By pairs of inner numbers in a vector; `width` is TWI_PAIRS_ROWS or TWI_PAIRS_COLUMNS, `first` the first line of the panel: lines rounded up
 * to `width`, times k rounded up to 2, times 2 bytes. */
#define TWI_PAIRS_ROWS 8
#define TWI_PAIRS_COLUMNS 48
bool twi_pairs_available(void);
void twi_pairs_pack(const float *x, int64_t ld, bool along, int64_t lines, int64_t k, int width, void *out, int64_t first);
void twi_pairs_multiply(const void *a, const void *b, int64_t first, int64_t end, int64_t n, int64_t k, float alpha, float beta,
                        const float *base, float *c, int64_t ldc, bool upper);
/* By tiles, of which the operand on the left and that on the right have layouts of their own: lines rounded up to TWI_TILES_LINES, times k
 * rounded up to TWI_TILES_DEPTH, times 2 bytes, aligned to 64. The first question asks the system for tiles. */
#define TWI_TILES_LINES 32
#define TWI_TILES_DEPTH 32
bool twi_tiles_available(void);
void twi_tiles_pack(const float *x, int64_t ld, bool along, int64_t lines, int64_t k, bool left, void *out, int64_t panel);
void twi_tiles_multiply(const void *a, const void *b, int64_t begin, int64_t end, int64_t n, int64_t k, float alpha, float beta,
                        const float *base, float *c, int64_t ldc, bool upper);
/* After a product with `upper`: rows begin to end (begin a multiple of TWI_TILES_LINES) of what is below the diagonal. */
void twi_tiles_mirror(float *c, int64_t n, int64_t begin, int64_t end);

/* The size of the CPU affinity mask, at least 1. */
int32_t twi_cpu_count(void);

/* The instruction set that this file was compiled for. */
const char *twi_instruction_set(void);

/* Whether malloc gives so many bytes now; they are given back. */
bool twi_can_allocate(size_t size);

/* errno of the last failed call, and its text. */
int twi_errno(void);
const char *twi_strerror(int code);

/* open() without the variadic mode: of a file that does not exist yet, for writing; and for reading, never waiting for the other end of a
 * pipe.  -1 with errno on failure. */
int twi_open_new(const char *path, int mode);
int twi_open_read(const char *path);

/* A number for every group of n bytes (Engine/Marks.swift), of 64, 128 or 256. */
void twi_mark(const void *x, int64_t n, int64_t group, uint32_t *out);
/* Whether 16-bit numbers are surely what the floats round to. */
bool twi_rounds_to_bf16(const float *x, const uint16_t *codes, int64_t n);
bool twi_rounds_to_f16(const float *x, const uint16_t *codes, int64_t n);

#endif
