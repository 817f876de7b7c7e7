/* Mutated checkpoints.  Whatever the bytes, loading them succeeds or fails with an error and a message, and a
 * failure leaves the optimizer as it was; one that succeeds leaves an optimizer that works.
 *
 * usage: fuzz_checkpoint [SECONDS [SEED]] */
#include "check.h"
#include "describe.h"
#include "fuzz.h"

static double seconds = 5;
static uint64_t first_seed = 1;

/* An optimizer that has run, and what it saves. */
typedef struct {
  char *sentence;
  checkpoint saved;
} source;

static const char *const tokens[] = {"{",
                                     "}",
                                     "[",
                                     "]",
                                     ",",
                                     ":",
                                     "\"",
                                     "\\",
                                     "null",
                                     "true",
                                     "-1",
                                     "0",
                                     "1",
                                     "1e99",
                                     "18446744073709551616",
                                     "0.5",
                                     "[]",
                                     "{}",
                                     "\"F32\"",
                                     "\"F64\"",
                                     "\"BF16\"",
                                     "\"U8\"",
                                     "\"I64\"",
                                     "\"X99\"",
                                     "\"data_offsets\"",
                                     "\"shape\"",
                                     "\"dtype\"",
                                     "\"__metadata__\"",
                                     "[0,0]",
                                     "[0,8]",
                                     "[8,0]",
                                     "[-8,8]",
                                     "[0,9223372036854775807]",
                                     "\\u0000",
                                     "\\ud800",
                                     "\xff",
                                     " "};

static source *sources;
static size_t source_count;

/* One or two sources for each sentence in which a method can stand and run. */
static void collect(void) {
  sources = calloc(2 * (tw_method_count() + 8), sizeof *sources);
  for (size_t i = 0; i < tw_method_count() + 3; i++) {
    static const char *const more[] = {"clip_global_norm(1.0) | adamw(lr=0.01) | ema(0.9)",
                                       "adamw(lr=cosine(lr=0.1, total=10))",
                                       "gradient_accumulate(3) | adamw(lr=0.01)"};
    char stage[SENTENCE_SIZE], sentence[SENTENCE_SIZE];
    static small_model model;
    if (i < tw_method_count()) {
      tw_method_info method = {.struct_size = sizeof method};
      if (tw_method_at(i, &method) != TW_OK) continue;
      describe_stage(&method, stage, sizeof stage);
      if (!describe_sentence(stage, sentence, sizeof sentence)) continue;
    } else {
      snprintf(sentence, sizeof sentence, "%s", more[i - tw_method_count()]);
    }
    tw_optimizer *optimizer = NULL;
    if (tw_optimizer_create(sentence, NULL, &optimizer) != TW_OK) continue;
    small_model_fill(&model);
    tw_status status = small_model_bind(&model, optimizer);
    if (status < 0) { /* a set or a rule of other shapes */
      OK(tw_optimizer_destroy(optimizer));
      continue;
    }
    for (int k = 0; status >= 0 && k < 3; k++) {
      small_model_observe(optimizer);
      status = small_model_step(&model, optimizer);
    }
    source s = {NULL, save(optimizer)};
    if (s.saved.data != NULL) {
      s.sentence = strdup(sentence);
      sources[source_count++] = s;
    }
    /* and one from the middle of a step, where the method asks twice */
    tw_request request = {.struct_size = sizeof request};
    if (s.saved.data != NULL && tw_optimizer_next(optimizer, &request) == TW_MORE &&
        small_model_answer(&model, optimizer, &request) == TW_OK && tw_optimizer_next(optimizer, &request) == TW_MORE) {
      source within = {strdup(sentence), save(optimizer)};
      if (within.saved.data != NULL) sources[source_count++] = within;
    }
    OK(tw_optimizer_destroy(optimizer));
  }
}

static void forget(void) {
  for (size_t i = 0; i < source_count; i++) {
    free(sources[i].sentence);
    free(sources[i].saved.data);
  }
  free(sources);
  sources = NULL;
  source_count = 0;
}

/* One change that knows the layout: 8 bytes of length, a JSON header, data. */
static void mutate_checkpoint(mutant *m, uint64_t *seed) {
  uint64_t header = 0;
  if (m->length >= 8) memcpy(&header, m->bytes, 8);
  if (header > m->length - (m->length < 8 ? m->length : 8)) header = 0;
  size_t at = 8 + random_index(seed, (size_t)header + 1);
  switch (random_index(seed, 5)) {
    case 0: { /* a token in the header */
      const char *token = tokens[random_index(seed, sizeof tokens / sizeof *tokens)];
      splice(m, at, random_index(seed, 5), token, strlen(token));
      break;
    }
    case 1: { /* a number in the header */
      while (at < m->length && at < 8 + header && (m->bytes[at] < '0' || m->bytes[at] > '9')) at++;
      size_t end = at;
      while (end < m->length && m->bytes[end] >= '0' && m->bytes[end] <= '9') end++;
      char number[32];
      static const uint64_t values[] = {0, 1, 2, 3, 4, 8, 24, 96, 1000, UINT32_MAX, INT64_MAX, UINT64_MAX};
      snprintf(number, sizeof number, "%llu",
               (unsigned long long)values[random_index(seed, sizeof values / sizeof *values)]);
      splice(m, at, end - at, number, strlen(number));
      break;
    }
    case 2: { /* two pieces of the header change places */
      unsigned char piece[64];
      size_t length = 1 + random_index(seed, sizeof piece - 1);
      if (at + length > m->length) break;
      memcpy(piece, m->bytes + at, length);
      splice(m, at, length, NULL, 0);
      splice(m, 8 + random_index(seed, (size_t)header + 1), 0, piece, length);
      break;
    }
    case 3: mutate_bytes(m, seed); return; /* anywhere; the length stays wrong */
    default: mutate_bytes(m, seed); break;
  }
  /* Mostly the length is made right again, so that the header is read. */
  if (m->length >= 8 && random_index(seed, 8) != 0) {
    size_t data = 0;
    const unsigned char *brace = memchr(m->bytes + 8, '}', m->length - 8);
    for (const unsigned char *b = brace; b != NULL;
         b = memchr(b + 1, '}', m->length - (size_t)(b + 1 - m->bytes))) {
      if (b + 1 == m->bytes + m->length || b[1] < ' ' || b[1] > '~') {
        data = (size_t)(b + 1 - m->bytes);
        break;
      }
    }
    uint64_t length = data >= 8 ? data - 8 : header;
    memcpy(m->bytes, &length, 8);
  }
}

/* Loads into an optimizer that has stepped once itself. */
static int try_checkpoint(const source *s, const void *data, size_t size) {
  static small_model model;
  static float w[24], b[4];
  tw_optimizer *optimizer = NULL;
  small_model_fill(&model);
  if (tw_optimizer_create(s->sentence, NULL, &optimizer) != TW_OK) {
    check_fail(__FILE__, __LINE__, "%s: %s", s->sentence, tw_last_error());
    return 0;
  }
  OK(small_model_bind(&model, optimizer));
  small_model_observe(optimizer);
  small_model_step(&model, optimizer);
  memcpy(w, model.w, sizeof w);
  memcpy(b, model.b, sizeof b);
  checkpoint before = save(optimizer);
  tw_status status = tw_optimizer_load(optimizer, data, size);
  if (memcmp(w, model.w, sizeof w) != 0 || memcmp(b, model.b, sizeof b) != 0) {
    check_fail(__FILE__, __LINE__, "%s: load changed the parameters", s->sentence);
  }
  if (status != TW_OK) {
    if (status > 0 || status == TW_ERROR_INTERNAL || tw_last_error()[0] == 0) {
      check_fail(__FILE__, __LINE__, "%s: %s: %s", s->sentence, tw_status_name(status), tw_last_error());
    }
    checkpoint after = save(optimizer);
    if (!same_checkpoint(before, after)) {
      check_fail(__FILE__, __LINE__, "%s: a refused checkpoint changed the state (%s)", s->sentence,
                 tw_status_name(status));
    }
    free(after.data);
  }
  free(before.data);
  small_model_observe(optimizer);
  if (small_model_step(&model, optimizer) == TW_ERROR_INTERNAL) {
    check_fail(__FILE__, __LINE__, "%s: an internal error after load: %s", s->sentence, tw_last_error());
  }
  OK(tw_optimizer_destroy(optimizer));
  return status == TW_OK;
}

static void checkpoints_that_are_whole(void) {
  collect();
  CHECK(source_count > 0);
  for (size_t i = 0; i < source_count; i++) {
    note("%s", sources[i].sentence);
    if (!try_checkpoint(&sources[i], sources[i].saved.data, sources[i].saved.size)) {
      check_fail(__FILE__, __LINE__, "%s refuses its own checkpoint: %s", sources[i].sentence,
                 tw_last_error());
    }
  }
  forget();
}

static void checkpoints_that_are_not(void) {
  collect();
  double end = now() + seconds;
  long rounds = 0, accepted = 0;
  for (uint64_t seed = first_seed; now() < end && check_failures < CHECK_SHOWN_FAILURES; seed++) {
    uint64_t stream = seed * UINT64_C(0x9E3779B97F4A7C15);
    const source *s = &sources[random_index(&stream, source_count)];
    const source *from = random_index(&stream, 10) == 0 ? &sources[random_index(&stream, source_count)] : s;
    mutant m = {malloc(from->saved.size + 4096), 0, from->saved.size + 4096};
    splice(&m, 0, 0, from->saved.data, from->saved.size);
    for (size_t changes = random_index(&stream, 6); changes > 0; changes--) mutate_checkpoint(&m, &stream);
    note("seed %llu: %s", (unsigned long long)seed, s->sentence);
    /* In a block of its own size, so that tools see a read behind it. */
    void *data = malloc(m.length > 0 ? m.length : 1);
    memcpy(data, m.bytes, m.length);
    accepted += try_checkpoint(s, data, m.length);
    free(data);
    free(m.bytes);
    rounds++;
  }
  CHECK(rounds > 0);
  printf("       %ld checkpoints, %ld accepted\n", rounds, accepted);
  forget();
}

int main(int argc, char **argv) {
  if (argc > 1) seconds = atof(argv[1]);
  if (argc > 2) first_seed = strtoull(argv[2], NULL, 10);
  RUN(checkpoints_that_are_whole);
  check_run(__FILE__, "checkpoints_that_are_not", check_deadline() + (int)seconds, checkpoints_that_are_not);
  FINISH();
}
