/* Where the allocations of this library come from: inside a step from the depot of its handle (CThalweg/depot.c), else
 * from malloc, and small ones from a reserve where malloc gives nothing.
 *
 * Most small ones are made by the Swift runtime, which ends the process where there is nothing.  With the reserve the call
 * under way goes on to the next thing that may fail, a tensor's worth of state or scratch, and ends with TW_ERROR_MEMORY.
 * The library is linked with --wrap for the functions below (Package.swift): its own calls of malloc come here, nobody
 * else's. */
#include "CThalweg.h"

#include <errno.h>
#include <malloc.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

void *__real_malloc(size_t size);
void *__real_calloc(size_t count, size_t size);
void *__real_realloc(void *p, size_t size);
void __real_free(void *p);
int __real_posix_memalign(void **p, size_t alignment, size_t size);
size_t __real_malloc_usable_size(void *p);
/* operator new(size_t) and delete(void *, size_t) of C++, which the runtime is partly written in; and the new that returns NULL. */
void __real__ZdlPvm(void *p, size_t size);
void *_ZnwmRKSt9nothrow_t(size_t size, const void *nothrow);
extern const char _ZSt7nothrow;

enum { HEAD = 64, SMALLEST = 128, CLASSES = 11, SIZE = 1 << 20, LARGEST_ALIGNED = 4096 };

/* A block is SMALLEST << k bytes; k stands right before its memory, which begins HEAD bytes in. */
static _Alignas(64) unsigned char reserve[SIZE];
static size_t used;
static void *freed[CLASSES]; /* chained through their memory */
static char lock;

static void enter(void) {
  while (__atomic_test_and_set(&lock, __ATOMIC_ACQUIRE)) {}
}
static void leave(void) { __atomic_clear(&lock, __ATOMIC_RELEASE); }
/* A fork() while another thread is inside must not leave it locked in the child. */
__attribute__((constructor)) static void prepare(void) { pthread_atfork(enter, leave, leave); }

static inline bool is_reserved(const void *p) { return (uintptr_t)p - (uintptr_t)reserve < SIZE; }
static size_t class_of(const void *p) { return ((const size_t *)p)[-1]; }
static size_t room_of(const void *p) { return ((size_t)SMALLEST << class_of(p)) - HEAD; }

static __attribute__((noinline)) void *take(size_t size) {
  size_t k = 0;
  while (k < CLASSES && ((size_t)SMALLEST << k) - HEAD < size) k++;
  if (k == CLASSES) return NULL;
  unsigned char *p = NULL;
  enter();
  if (freed[k]) {
    p = freed[k];
    memcpy(&freed[k], p, sizeof freed[k]);
  } else if (used + ((size_t)SMALLEST << k) <= SIZE) {
    p = reserve + used + HEAD;
    ((size_t *)p)[-1] = k;
    used += (size_t)SMALLEST << k;
  }
  leave();
  return p;
}

static __attribute__((noinline)) void give(void *p) {
  size_t k = class_of(p);
  enter();
  memcpy(p, &freed[k], sizeof freed[k]);
  freed[k] = p;
  leave();
}

void *__wrap_malloc(size_t size) {
  void *p = twi_depot_take(size, 16);
  if (!p) p = __real_malloc(size);
  return __builtin_expect(p != NULL, 1) ? p : take(size);
}

void *__wrap_calloc(size_t count, size_t size) {
  size_t bytes;
  if (__builtin_mul_overflow(count, size, &bytes)) return NULL;
  void *p = twi_depot_take(bytes, 16);
  if (p) return memset(p, 0, bytes);
  p = __real_calloc(count, size);
  if (__builtin_expect(p != NULL, 1)) return p;
  p = take(bytes);
  return p ? memset(p, 0, bytes) : NULL;
}

/* The runtime's; what is larger is tensors, which may fail. */
int __wrap_posix_memalign(void **p, size_t alignment, size_t size) {
  void *own = twi_depot_take(size, alignment);
  if (own) return *p = own, 0;
  int error = __real_posix_memalign(p, alignment, size);
  if (__builtin_expect(error != ENOMEM, 1) || alignment > HEAD || size > LARGEST_ALIGNED) return error;
  void *small = take(size);
  if (!small) return error;
  *p = small;
  return 0;
}

void __wrap_free(void *p) {
  if (__builtin_expect(is_reserved(p), 0)) give(p);
  else if (!twi_depot_give(p)) __real_free(p);
}

size_t __wrap_malloc_usable_size(void *p) {
  size_t room = is_reserved(p) ? room_of(p) : twi_depot_room(p);
  return room ? room : __real_malloc_usable_size(p);
}

void *__wrap__Znwm(size_t size) {
  void *p = _ZnwmRKSt9nothrow_t(size, &_ZSt7nothrow);
  if (__builtin_expect(!p, 0) && !(p = take(size))) abort();
  return p;
}

void __wrap__ZdlPvm(void *p, size_t size) {
  if (__builtin_expect(is_reserved(p), 0)) give(p);
  else __real__ZdlPvm(p, size);
}

void *__wrap_realloc(void *p, size_t size) {
  bool others = !is_reserved(p) && twi_depot_room(p) == 0; /* malloc's */
  if (others && !twi_depot_at_work()) {
    void *q = __real_realloc(p, size);
    if (q || size == 0) return q;
  }
  void *q = __wrap_malloc(size);
  if (q && p) {
    size_t old = __wrap_malloc_usable_size(p);
    memcpy(q, p, old < size ? old : size);
    __wrap_free(p);
  }
  return q;
}
