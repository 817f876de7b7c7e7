/* fuzz.h: mutations of a text or of bytes, from a fixed stream of numbers. */
#ifndef FUZZ_H
#define FUZZ_H

#include <time.h>

#include "check.h"

/* Seconds since some fixed moment. */
CHECK_UNUSED static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* A growing list of texts. */
typedef struct {
  char **texts;
  size_t count, room;
} corpus;

CHECK_UNUSED static void corpus_add(corpus *c, const char *text) {
  if (c->count == c->room) {
    c->room = c->room == 0 ? 64 : 2 * c->room;
    c->texts = realloc(c->texts, c->room * sizeof *c->texts);
  }
  c->texts[c->count++] = strdup(text);
}

CHECK_UNUSED static void corpus_free(corpus *c) {
  for (size_t i = 0; i < c->count; i++) free(c->texts[i]);
  free(c->texts);
  memset(c, 0, sizeof *c);
}

typedef struct {
  unsigned char *bytes;
  size_t length, room;
} mutant;

/* Replaces `removed` bytes at `at` by others; refuses what does not fit. */
CHECK_UNUSED static void splice(mutant *m, size_t at, size_t removed, const void *bytes, size_t length) {
  if (at > m->length) at = m->length;
  if (removed > m->length - at) removed = m->length - at;
  if (m->length - removed + length > m->room) return;
  memmove(m->bytes + at + length, m->bytes + at + removed, m->length - at - removed);
  memcpy(m->bytes + at, bytes, length);
  m->length += length - removed;
}

/* One random change of some bytes. */
CHECK_UNUSED static void mutate_bytes(mutant *m, uint64_t *seed) {
  unsigned char block[16];
  size_t at = random_index(seed, m->length + 1);
  switch (random_index(seed, 7)) {
    case 0: /* a bit */
      if (at < m->length) m->bytes[at] ^= (unsigned char)(1u << random_index(seed, 8));
      break;
    case 1: /* a byte */
      if (at < m->length) m->bytes[at] = (unsigned char)random_bits(seed);
      break;
    case 2: /* bytes appear */
      for (size_t i = 0; i < sizeof block; i++) block[i] = (unsigned char)random_bits(seed);
      splice(m, at, 0, block, 1 + random_index(seed, sizeof block));
      break;
    case 3: /* bytes go */ splice(m, at, 1 + random_index(seed, 16), NULL, 0); break;
    case 4: { /* bytes are repeated */
      unsigned char copy[256];
      size_t length = random_index(seed, sizeof copy);
      if (length > m->length - at) length = m->length - at;
      memcpy(copy, m->bytes + at, length);
      splice(m, random_index(seed, m->length + 1), 0, copy, length);
      break;
    }
    case 5: /* the end is cut off */
      if (random_index(seed, 4) == 0) m->length = at;
      break;
    default: { /* a word of extreme value */
      static const uint64_t words[] = {0,
                                       1,
                                       7,
                                       8,
                                       255,
                                       256,
                                       UINT32_MAX,
                                       INT64_MAX,
                                       UINT64_MAX,
                                       UINT64_C(1) << 32,
                                       UINT64_C(1) << 62,
                                       UINT64_C(0x7FF0000000000000),
                                       UINT64_C(0x7FC000007FC00000)};
      uint64_t word = words[random_index(seed, sizeof words / sizeof *words)];
      size_t length = (size_t)1 << random_index(seed, 4);
      if (at + length <= m->length) memcpy(m->bytes + at, &word, length);
      break;
    }
  }
}

#endif /* FUZZ_H */
