/* Mutated sentences.  Whatever the text, creating an optimizer, a regularizer, a constraint, an objective or a
 * schedule gives a handle or an error with a message; what is made steps without a crash.
 *
 * usage: fuzz_grammar [SECONDS [SEED]] */
#include "check.h"
#include "describe.h"
#include "fuzz.h"

static double seconds = 5;
static uint64_t first_seed = 1;

static const char *const tokens[] = {"(",
                                     ")",
                                     "[",
                                     "]",
                                     ",",
                                     "=",
                                     "|",
                                     " ",
                                     "\t",
                                     "\n",
                                     "\"",
                                     "\\",
                                     ".",
                                     "#",
                                     "-",
                                     "+",
                                     "_",
                                     "'",
                                     "true",
                                     "false",
                                     "none",
                                     "lr=",
                                     "momentum=",
                                     "weight_decay=",
                                     "inner=",
                                     "every=",
                                     "rank=",
                                     "(sgd)",
                                     "(sgd | sgd)",
                                     "[1, 2, 3]",
                                     "[]",
                                     "()",
                                     "\"text\"",
                                     "\xc3\xa9",
                                     "\xff",
                                     "\xe2\x82",
                                     "\xf0\x9f\x92\xa9",
                                     "sgd(",
                                     "cosine(lr=0.1, total=10)",
                                     "l1(0.1)"};
static const char *const numbers[] = {
    "0",
    "1",
    "-1",
    "2",
    "3",
    "0.5",
    "0.999",
    "1e-8",
    "1e308",
    "1e309",
    "-1e308",
    "1e-320",
    "1e-400",
    "nan",
    "inf",
    "9223372036854775807",
    "9223372036854775808",
    "18446744073709551616",
    "-9223372036854775809",
    "1_000",
    "00012",
    "0x10",
    "1.",
    ".5",
    "1e",
    "1e+",
    "4294967296",
    "2147483648",
    "0.1e1",
    "100",
    "-0",
    "1e1000000000000000000000",
    "0.00000000000000000000000000000000000000000000000000000000000000000000001"};

/* All texts to start from: each method in its place, with and without each of its hyper-parameters. */
static void collect(corpus *sentences, corpus *words) {
  for (size_t i = 0; i < tw_method_count(); i++) {
    tw_method_info method = {.struct_size = sizeof method};
    char stage[SENTENCE_SIZE], sentence[SENTENCE_SIZE], written[4 * SENTENCE_SIZE];
    size_t needed = 0;
    if (tw_method_at(i, &method) != TW_OK) continue;
    corpus_add(words, method.name);
    describe_stage(&method, stage, sizeof stage);
    corpus_add(words, stage);
    corpus_add(sentences, stage);
    for (size_t k = 0; k < method.parameter_count; k++) {
      tw_parameter_info p = {.struct_size = sizeof p};
      if (tw_method_parameter(method.name, k, &p) == TW_OK) corpus_add(words, p.name);
    }
    if (!describe_sentence(stage, sentence, sizeof sentence)) continue;
    corpus_add(sentences, sentence);
    tw_optimizer *optimizer = NULL;
    if (tw_optimizer_create(sentence, NULL, &optimizer) != TW_OK) continue;
    if (tw_optimizer_sentence(optimizer, written, sizeof written, &needed) == TW_OK)
      corpus_add(sentences, written);
    OK(tw_optimizer_destroy(optimizer));
  }
  corpus_add(sentences,
             "clip_global_norm(1.0) | adamw(lr=warmup_cosine(peak=3e-4, warmup=10, total=100)) | ema(0.999)");
  corpus_add(sentences, "route(matrix=(muon(lr=0.02)), other=(adamw(lr=3e-4)))");
  corpus_add(sentences, "route(matrix=(tract(0.1) | adamw(lr=3e-4)), other=(sgd(lr=0.1)))");
  corpus_add(sentences, "adamw(lr=3e-4) | ghost_step(mode=set, safety=0.5)");
  corpus_add(sentences, "sam(0.05) | sgd(lr=0.1, momentum=0.9) | prox(l1(1e-4)) | project(simplex)");
}

/* The end of the number that starts at `at`. */
static size_t number_end(const mutant *m, size_t at) {
  while (at < m->length && strchr("0123456789.eE_+-", m->bytes[at]) != NULL && m->bytes[at] != 0) at++;
  return at;
}

/* One change that knows the grammar.  Returns 1 when a number was put in that may ask for a lot of work. */
static int mutate_sentence(mutant *m, const corpus *sentences, const corpus *words, uint64_t *seed) {
  size_t at = random_index(seed, m->length + 1);
  switch (random_index(seed, 8)) {
    case 0: {
      const char *token = tokens[random_index(seed, sizeof tokens / sizeof *tokens)];
      splice(m, at, random_index(seed, 3), token, strlen(token));
      return 0;
    }
    case 1: {
      const char *word = words->texts[random_index(seed, words->count)];
      splice(m, at, random_index(seed, 6), word, strlen(word));
      return 0;
    }
    case 2: /* a word for a word */
    case 3: {
      while (at < m->length && (m->bytes[at] < 'a' || m->bytes[at] > 'z')) at++;
      size_t end = at;
      while (end < m->length && ((m->bytes[end] >= 'a' && m->bytes[end] <= 'z') || m->bytes[end] == '_'))
        end++;
      const char *word = words->texts[random_index(seed, words->count)];
      splice(m, at, end - at, word, strlen(word));
      return 0;
    }
    case 4: /* a number for a number */
    case 5: {
      while (at < m->length && (m->bytes[at] < '0' || m->bytes[at] > '9')) at++;
      const char *number = numbers[random_index(seed, sizeof numbers / sizeof *numbers)];
      splice(m, at, number_end(m, at) - at, number, strlen(number));
      return 1;
    }
    case 6: { /* the head of one, the tail of another */
      const char *other = sentences->texts[random_index(seed, sentences->count)];
      size_t length = strlen(other), from = random_index(seed, length + 1);
      splice(m, at, m->length - at, other + from, length - from);
      return 0;
    }
    default: mutate_bytes(m, seed); return 1;
  }
}

static void check_message(const char *text, tw_status status) {
  if (status >= 0) return;
  if (status == TW_ERROR_INTERNAL)
    check_fail(__FILE__, __LINE__, "an internal error: %s: %.500s", tw_last_error(), text);
  if (tw_last_error()[0] == 0)
    check_fail(__FILE__, __LINE__, "%s without a message: %.500s", tw_status_name(status), text);
}

/* Creates everything that the text may describe; steps when it does not ask for too much. */
static int try_sentence(const char *text, int step) {
  tw_optimizer *optimizer = NULL;
  tw_regularizer *regularizer = NULL;
  tw_constraint *constraint = NULL;
  tw_objective *objective = NULL;
  tw_schedule *schedule = NULL;
  static small_model model;
  tw_status status = tw_optimizer_create(text, NULL, &optimizer);
  int accepted = status == TW_OK;
  check_message(text, status);
  if (accepted) {
    char written[4 * SENTENCE_SIZE];
    size_t needed = 0;
    status = tw_optimizer_sentence(optimizer, written, sizeof written, &needed);
    check_message(text, status);
    if (status == TW_OK && step) {
      tw_optimizer *again = NULL;
      if (tw_optimizer_create(written, NULL, &again) != TW_OK) {
        check_fail(__FILE__, __LINE__, "written, and refused: %.500s\n         of %.500s", written, text);
      } else {
        OK(tw_optimizer_destroy(again));
      }
    }
    small_model_fill(&model);
    status = small_model_bind(&model, optimizer);
    check_message(text, status);
    for (int k = 0; step && status == TW_OK && k < 2; k++) {
      status = small_model_step(&model, optimizer);
      check_message(text, status);
    }
    OK(tw_optimizer_destroy(optimizer));
  }
  small_model_fill(&model);
  status = tw_regularizer_create(text, &regularizer);
  check_message(text, status);
  if (status == TW_OK) {
    double value = 0;
    accepted = 1;
    if (step) {
      check_message(text, tw_regularizer_value(regularizer, &model.parameters[0], &value));
      check_message(text,
                    tw_regularizer_gradient(regularizer, &model.parameters[0], 0.5, &model.gradients[0]));
      check_message(text, tw_regularizer_prox(regularizer, &model.parameters[0], 0.5));
    }
    OK(tw_regularizer_destroy(regularizer));
  }
  status = tw_constraint_create(text, &constraint);
  check_message(text, status);
  if (status == TW_OK) {
    accepted = 1;
    if (step) {
      check_message(text, tw_constraint_project(constraint, &model.parameters[0]));
      check_message(text, tw_constraint_tangent(constraint, &model.parameters[0], &model.gradients[0]));
      check_message(text, tw_constraint_retract(constraint, &model.parameters[0], &model.gradients[0]));
      check_message(text, tw_constraint_lmo(constraint, &model.gradients[0], &model.parameters[0]));
      double number = 0;
      check_message(text, tw_constraint_project(constraint, &model.parameters[0]));
      check_message(text, tw_constraint_exp(constraint, &model.parameters[0], &model.gradients[0]));
      check_message(text, tw_constraint_log(constraint, &model.parameters[0], &model.parameters[0], &model.gradients[0]));
      check_message(text, tw_constraint_distance(constraint, &model.parameters[0], &model.parameters[0], &number, 1));
      check_message(text, tw_constraint_check_point(constraint, &model.parameters[0], &number, 1));
      check_message(text, tw_constraint_project(constraint, &model.parameters[1]));
    }
    OK(tw_constraint_destroy(constraint));
  }
  status = tw_objective_create(text, &objective);
  check_message(text, status);
  if (status == TW_OK) {
    double value = 0;
    accepted = 1;
    if (step) {
      check_message(text, tw_objective_forward(objective, model.parameters, 2, NULL, &value));
      check_message(text, tw_objective_forward(objective, model.parameters, 1, NULL, &value));
    }
    OK(tw_objective_destroy(objective));
  }
  tw_solver *solver = NULL;
  status = tw_solver_create(text, &solver);
  check_message(text, status);
  if (status == TW_OK) {
    /* begun with whatever fits; a solver that asks nothing would run to its end, however far that is */
    tw_solver_request request;
    memset(&request, 0, sizeof request);
    request.struct_size = sizeof request;
    accepted = 1;
    for (size_t count = 0; step && count < 3; count++) {
      status = tw_solver_begin(solver, model.parameters, count < 2 ? count : 2);
      check_message(text, status);
      size_t needed = 0;
      check_message(text, tw_solver_save(solver, NULL, 0, &needed));
      for (int k = 0; status >= 0 && k < 3 && strncmp(text, "sinkhorn", 8) != 0 && strncmp(text, "lasso", 5) != 0; k++) {
        status = tw_solver_next(solver, &request);
        check_message(text, status);
        if (status != TW_MORE) break;
      }
    }
    OK(tw_solver_destroy(solver));
  }
  status = tw_schedule_create(text, &schedule);
  check_message(text, status);
  if (status == TW_OK) {
    static const int64_t moments[] = {0, 1, 2, 10, 1000000, INT64_MAX, -1, INT64_MIN};
    double value = 0;
    accepted = 1;
    for (size_t i = 0; i < sizeof moments / sizeof *moments; i++) {
      check_message(text, tw_schedule_value(schedule, moments[i], &value));
    }
    check_message(text, tw_schedule_observe(schedule, "metric", 1));
    check_message(text, tw_schedule_command(schedule, "begin_decay"));
    OK(tw_schedule_destroy(schedule));
  }
  return accepted;
}

static void sentences_that_are_whole(void) {
  corpus sentences = {NULL, 0, 0}, words = {NULL, 0, 0};
  collect(&sentences, &words);
  CHECK(sentences.count > tw_method_count());
  for (size_t i = 0; i < sentences.count; i++) {
    note("%s", sentences.texts[i]);
    try_sentence(sentences.texts[i], 1);
  }
  corpus_free(&sentences);
  corpus_free(&words);
}

static void sentences_that_are_not(void) {
  corpus sentences = {NULL, 0, 0}, words = {NULL, 0, 0};
  collect(&sentences, &words);
  double end = now() + seconds;
  unsigned char bytes[3 * SENTENCE_SIZE + 1];
  long rounds = 0, accepted = 0;
  for (uint64_t seed = first_seed; now() < end && check_failures < CHECK_SHOWN_FAILURES; seed++) {
    uint64_t stream = seed * UINT64_C(0x9E3779B97F4A7C15);
    const char *start = sentences.texts[random_index(&stream, sentences.count)];
    mutant m = {bytes, 0, sizeof bytes - 1};
    splice(&m, 0, 0, start, strlen(start));
    int heavy = 0;
    for (size_t changes = 1 + random_index(&stream, 5); changes > 0; changes--) {
      heavy |= mutate_sentence(&m, &sentences, &words, &stream);
    }
    bytes[m.length] = 0;
    note("seed %llu: %s", (unsigned long long)seed, (char *)bytes);
    /* In a block of its own size, so that tools see a read behind it. */
    char *text = strdup((char *)bytes);
    accepted += try_sentence(text, !heavy);
    free(text);
    rounds++;
  }
  CHECK(rounds > 0);
  printf("       %ld sentences, %ld accepted\n", rounds, accepted);
  corpus_free(&sentences);
  corpus_free(&words);
}

int main(int argc, char **argv) {
  if (argc > 1) seconds = atof(argv[1]);
  if (argc > 2) first_seed = strtoull(argv[2], NULL, 10);
  RUN(sentences_that_are_whole);
  check_run(__FILE__, "sentences_that_are_not", check_deadline() + (int)seconds, sentences_that_are_not);
  FINISH();
}
