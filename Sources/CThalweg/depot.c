/* What a handle's steps allocate, they keep: a depot takes back what is freed, for the next step, which then asks the
 * system for nothing, so that memory cannot run out inside it.
 *
 * malloc and free of the library lead here (CReserve) on threads that are inside such a step. Small blocks are cut out of
 * chunks of 1 MB; what is larger has a chunk of its own. A block goes back to the list of its size, whoever frees it and
 * when; a depot that is left lives on until the last of its blocks is back. Where there are no more chunks malloc serves. */
#include "CThalweg.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum {
  UNIT = 1 << 20,         /* chunks are multiples of it, and begin at one */
  HUGE_PAGE = 1 << 21,    /* those of two of these or more begin at one */
  HEAD = 64,              /* before a small block; its last word is the block's list */
  SMALLEST = 128,
  STEPS = 4,              /* sizes of blocks from one power of two to the next */
  LISTS = 12 * STEPS + 1, /* up to 512 KB */
  CHUNKS = 1 << 14,
  BUCKETS = 1 << 12
};

typedef struct chunk {
  unsigned char *base;
  size_t bytes;
  twi_depot *depot;
  bool whole;               /* one block */
  struct chunk *in_bucket;  /* the next with the same hash; of those without memory, the next */
  struct chunk *next;       /* of those of a depot that are free and whole */
  struct chunk *in_depot;   /* the next of all of a depot */
} chunk;

struct twi_depot {
  void *freed[LISTS];      /* chained through their memory */
  chunk *free_wholes, *chunks;
  unsigned char *at, *end; /* what is left of the last chunk that is cut */
  size_t out;              /* blocks in use */
  size_t bytes;            /* of all its blocks */
  bool left;
};

static chunk table[CHUNKS];
static chunk *buckets[BUCKETS], *without_memory;
static size_t used_of_table;
/* What is outside of all chunks that ever were is found so by two comparisons. */
static uintptr_t low = UINTPTR_MAX, high;
static char lock;

static void enter(void) {
  while (__atomic_test_and_set(&lock, __ATOMIC_ACQUIRE)) {}
}
static void leave(void) { __atomic_clear(&lock, __ATOMIC_RELEASE); }
/* A fork() while another thread is inside must not leave it locked in the child. */
__attribute__((constructor)) static void prepare(void) { pthread_atfork(enter, leave, leave); }

/* A sanitizer that watches every block must see every block. */
extern void __asan_init(void) __attribute__((weak));

static chunk **bucket(const void *p) { return &buckets[((uintptr_t)p / UNIT) % BUCKETS]; }

static chunk *chunk_of(const void *p) {
  const unsigned char *base = (const unsigned char *)((uintptr_t)p & ~(uintptr_t)(UNIT - 1));
  for (chunk *c = *bucket(base); c; c = c->in_bucket) {
    if (c->base == base) return c;
  }
  return NULL;
}

static chunk *make_chunk(twi_depot *d, size_t bytes, bool whole) {
  chunk *c = without_memory ? without_memory : used_of_table < CHUNKS ? &table[used_of_table] : NULL;
  size_t alignment = bytes >= 2 * HUGE_PAGE ? HUGE_PAGE : UNIT;
  if (!c || bytes > SIZE_MAX - alignment) return NULL;
  unsigned char *p = mmap(NULL, bytes + alignment, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (p == MAP_FAILED) return NULL;
  unsigned char *base = (unsigned char *)(((uintptr_t)p + alignment - 1) & ~(uintptr_t)(alignment - 1));
  if (base > p) munmap(p, (size_t)(base - p));
  munmap(base + bytes, (size_t)(p + alignment - base));
  if (c == without_memory) without_memory = c->in_bucket;
  else used_of_table++;
  *c = (chunk){base, bytes, d, whole, *bucket(base), NULL, d->chunks};
  *bucket(base) = d->chunks = c;
  if ((uintptr_t)base < low) __atomic_store_n(&low, (uintptr_t)base, __ATOMIC_RELAXED);
  if ((uintptr_t)base + bytes > high) __atomic_store_n(&high, (uintptr_t)base + bytes, __ATOMIC_RELAXED);
  return c;
}

static void unmap(chunk *c) {
  chunk **at = bucket(c->base);
  while (*at != c) at = &(*at)->in_bucket;
  *at = c->in_bucket;
  munmap(c->base, c->bytes);
  c->in_bucket = without_memory;
  without_memory = c;
}

static void unmake(twi_depot *d) {
  for (chunk *c = d->chunks, *next; c; c = next) {
    next = c->in_depot;
    unmap(c);
  }
}

/* Bytes of a block of list k, with its head. */
static size_t bytes_of(size_t k) { return ((size_t)SMALLEST << k / STEPS) / STEPS * (STEPS + k % STEPS); }

static size_t list_for(size_t bytes) {
  if (bytes <= SMALLEST) return 0;
  size_t power = (size_t)(63 - __builtin_clzll((unsigned long long)(bytes - 1) / SMALLEST)); /* doublings below it */
  size_t k = power * STEPS;
  while (bytes_of(k) < bytes) k++;
  return k;
}

static void *take_small(twi_depot *d, size_t size) {
  size_t k = list_for(size + HEAD);
  unsigned char *p = d->freed[k];
  if (p) {
    memcpy(&d->freed[k], p, sizeof d->freed[k]);
    return p;
  }
  size_t bytes = (bytes_of(k) + HEAD - 1) / HEAD * HEAD;
  if ((size_t)(d->end - d->at) < bytes) {
    chunk *c = make_chunk(d, UNIT, false);
    if (!c) return NULL;
    d->at = c->base;
    d->end = c->base + c->bytes;
  }
  p = d->at + HEAD;
  d->at += bytes;
  d->bytes += bytes;
  ((size_t *)p)[-1] = k;
  return p;
}

static void *take_whole(twi_depot *d, size_t size, size_t alignment) {
  if (size > SIZE_MAX / 2) return NULL;
  size_t grain = UNIT;
  while (grain < size / 16) grain *= 2;
  size_t bytes = (size + grain - 1) / grain * grain;
  if (alignment > (bytes >= 2 * HUGE_PAGE ? HUGE_PAGE : UNIT)) return NULL;
  for (chunk **at = &d->free_wholes; *at; at = &(*at)->next) {
    chunk *c = *at;
    if (c->bytes != bytes) continue;
    *at = c->next;
    return c->base;
  }
  chunk *c = make_chunk(d, bytes, true);
  if (!c) return NULL;
  d->bytes += bytes;
  return c->base;
}

twi_depot *twi_depot_make(void) { return &__asan_init ? NULL : calloc(1, sizeof(twi_depot)); }

void twi_depot_leave(twi_depot *d) {
  if (!d) return;
  enter();
  d->left = true;
  bool empty = d->out == 0;
  if (empty) unmake(d);
  leave();
  if (empty) free(d);
}

size_t twi_depot_bytes(twi_depot *d) {
  if (!d) return 0;
  enter();
  size_t bytes = d->bytes;
  leave();
  return bytes;
}

void twi_depot_trim(twi_depot *d) {
  if (!d) return;
  enter();
  for (chunk *c = d->free_wholes, *next; c; c = next) {
    next = c->next;
    chunk **at = &d->chunks;
    while (*at != c) at = &(*at)->in_depot;
    *at = c->in_depot;
    d->bytes -= c->bytes;
    unmap(c);
  }
  d->free_wholes = NULL;
  leave();
}

void *twi_depot_take(size_t size, size_t alignment) {
  twi_depot *d = twi_depot_at_work();
  if (!d) return NULL;
  enter();
  void *p = alignment <= HEAD && size <= bytes_of(LISTS - 1) - HEAD ? take_small(d, size) : take_whole(d, size, alignment);
  if (p) d->out++;
  leave();
  return p;
}

static bool outside(const void *p) {
  return (uintptr_t)p < __atomic_load_n(&low, __ATOMIC_RELAXED) || (uintptr_t)p >= __atomic_load_n(&high, __ATOMIC_RELAXED);
}

bool twi_depot_give(void *p) {
  if (__builtin_expect(outside(p), 1)) return false;
  enter();
  chunk *c = chunk_of(p);
  twi_depot *done = NULL;
  if (c) {
    twi_depot *d = c->depot;
    if (c->whole) {
      c->next = d->free_wholes;
      d->free_wholes = c;
    } else {
      size_t k = ((const size_t *)p)[-1];
      memcpy(p, &d->freed[k], sizeof d->freed[k]);
      d->freed[k] = p;
    }
    if (--d->out == 0 && d->left) {
      unmake(d);
      done = d;
    }
  }
  leave();
  free(done);
  return c != NULL;
}

size_t twi_depot_room(const void *p) {
  if (__builtin_expect(outside(p), 1)) return 0;
  enter();
  const chunk *c = chunk_of(p);
  size_t room = !c ? 0 : c->whole ? c->bytes : bytes_of(((const size_t *)p)[-1]) - HEAD;
  leave();
  return room;
}
