/* A step allocates nothing: between the second tw_optimizer_step and the last no call of malloc is made, by any thread, so that memory
 * cannot run out inside a step.
 *
 * malloc and its relatives stand here before the C library's, so that the library's calls come here. */
#include "check.h"

#include <errno.h>

extern void *__libc_malloc(size_t), *__libc_calloc(size_t, size_t), *__libc_realloc(void *, size_t), *__libc_memalign(size_t, size_t);

static long calls;

static void count(void) { __atomic_fetch_add(&calls, 1, __ATOMIC_RELAXED); }
void *malloc(size_t n) { return count(), __libc_malloc(n); }
void *calloc(size_t a, size_t b) { return count(), __libc_calloc(a, b); }
void *realloc(void *p, size_t n) { return count(), __libc_realloc(p, n); }
void *memalign(size_t a, size_t n) { return count(), __libc_memalign(a, n); }
void *aligned_alloc(size_t a, size_t n) { return count(), __libc_memalign(a, n); }
int posix_memalign(void **p, size_t a, size_t n) {
  count();
  *p = __libc_memalign(a, n);
  return *p != NULL ? 0 : ENOMEM;
}

enum { TENSORS = 40, LARGE = 300000 };

static float *memory;

/* Large and small tensors, of several shapes, in two groups. */
static void steps(const char *sentence, int32_t state, int32_t threads) {
  static int64_t shapes[TENSORS][2];
  tw_tensor p[TENSORS], g[TENSORS];
  float *at = memory;
  for (int i = 0; i < TENSORS; i++) {
    shapes[i][0] = i == 0 ? LARGE / 100 : 1 + i % 7;
    shapes[i][1] = i == 0 ? 100 : 5 + i;
    int64_t n = shapes[i][0] * shapes[i][1];
    for (int64_t k = 0; k < n; k++) at[k] = 0.01f * (float)(k % 13), at[n + k] = 0.1f * (float)(k % 7 - 3);
    p[i] = view(at, TW_F32, 2, shapes[i], NULL);
    g[i] = view(at + n, TW_F32, 2, shapes[i], NULL);
    at += 2 * n;
  }
  OK(tw_set_num_threads(threads));
  tw_optimizer *o = NULL;
  tw_options options;
  tw_options_init(&options, sizeof options);
  options.state_dtype = state;
  OK(tw_optimizer_create(sentence, &options, &o));
  OK(tw_optimizer_add_parameters(o, p, TENSORS / 2, NULL, ""));
  OK(tw_optimizer_add_parameters(o, p + TENSORS / 2, TENSORS - TENSORS / 2, NULL, "other"));
  OK(tw_optimizer_bind_gradients(o, g, TENSORS));
  OK(tw_optimizer_step(o));
  OK(tw_optimizer_step(o));
  calls = 0;
  for (int k = 0; k < 5; k++) {
    if (tw_optimizer_step(o) != TW_OK) check_fail(__FILE__, __LINE__, "%s", tw_last_error());
  }
  if (calls != 0) check_fail(__FILE__, __LINE__, "%s, %d threads: %ld allocations in 5 steps", sentence, (int)threads, calls);
  tw_optimizer_destroy(o);
}

static const char *const sentences[] = {
  "sgd(lr=0.1, momentum=0.9)",
  "adamw(lr=cosine(lr=0.1, total=100))",
  "clip_global_norm(1.0) | adamw(lr=0.1) | ema(0.999)",
  "clip_global_norm(1.0, per_tensor=true) | penalty(l1(0.001)) | adamw(lr=0.1) | cautious | prox(l1(0.001)) | project(box(-1, 1))",
  "lamb(lr=0.1)",
  "dog",
  "prodigy",
  "schedule_free_adamw(lr=0.1)",
  "cautious_adamw(lr=0.1)",
  "adamw(lr=0.1) | lookahead(k=2)",
  "route(\"1?\"=(sgd(lr=0.1)), other=(adamw(lr=0.1)))",
};

static void nothing_is_allocated(void) {
  for (size_t s = 0; s < sizeof sentences / sizeof *sentences; s++) {
    for (int32_t threads = 1; threads <= 2; threads++) steps(sentences[s], TW_STATE_F32, threads);
  }
}
static void nothing_with_narrow_state(void) {
  for (int32_t threads = 1; threads <= 2; threads++) {
    steps("clip_global_norm(1.0) | adamw(lr=0.1) | ema(0.999)", TW_STATE_BF16, threads);
    steps("clip_global_norm(1.0) | adamw(lr=0.1)", TW_STATE_Q8, threads);
  }
}

/* ---- every method ------------------------------------------------------------------------------------- */

enum { MATRICES = 6, CLASSES = 3, MOST = 100 };

static const int64_t matrices[MATRICES][2] = {{64, 64}, {64, 64}, {100, 32}, {16, 64}, {64, 16}, {32, 32}};

/* What a request wants besides the bound gradients and the loss, always of three samples. */
static tw_status answer(tw_optimizer *o, const tw_request *r) {
  static float numbers[3 * 100 * 64];
  static int64_t shapes[MATRICES][3];
  if (numbers[1] == 0) {
    for (size_t k = 0; k < sizeof numbers / sizeof *numbers; k++) numbers[k] = 0.1f * (float)(k % 7) - 0.2f;
  }
  if (r->kind == TW_REQUEST_ACTIVATIONS || r->kind == TW_REQUEST_LOGIT_DERIVATIVES) {
    int layer = r->kind == TW_REQUEST_ACTIVATIONS;
    int64_t first[2] = {3, layer ? matrices[r->index][1] : CLASSES}, second[2] = {3, layer ? matrices[r->index][0] : CLASSES};
    tw_tensor a = view(numbers, TW_F32, 2, first, NULL), b = view(numbers, TW_F32, 2, second, NULL);
    return tw_optimizer_answer_matrix(o, &a, &b);
  }
  if (r->kind == TW_REQUEST_SAMPLE_GRADIENTS) {
    tw_tensor samples[MATRICES];
    for (int i = 0; i < MATRICES; i++) {
      shapes[i][0] = 3, shapes[i][1] = matrices[i][0], shapes[i][2] = matrices[i][1];
      samples[i] = view(numbers, TW_F32, 3, shapes[i], NULL);
    }
    return tw_optimizer_answer_samples(o, samples, MATRICES);
  }
  return TW_OK;
}

static tw_status whole_step(tw_optimizer *o) {
  tw_request r;
  memset(&r, 0, sizeof r);
  r.struct_size = sizeof r;
  tw_status status;
  tw_optimizer_observe(o, "loss", 1.0);
  for (int asked = 0; (status = tw_optimizer_next(o, &r)) == TW_MORE; asked++) {
    if (asked == 300 || (status = answer(o, &r)) < 0) return status < 0 ? status : TW_ERROR_SEQUENCE;
    r.loss = 1.0 / (asked + 2);
  }
  return status;
}

/* Steps 3 to 12 of a sentence allocate nothing; 0 where the sentence wants more than this test gives. */
static int taken(const char *sentence) {
  tw_optimizer *o = NULL;
  if (tw_optimizer_create(sentence, NULL, &o) != TW_OK) return 0;
  tw_tensor p[MATRICES], g[MATRICES];
  float *at = memory;
  for (int i = 0; i < MATRICES; i++) {
    int64_t n = matrices[i][0] * matrices[i][1];
    for (int64_t k = 0; k < n; k++) at[k] = 0.01f * (float)(k % 13), at[n + k] = 0.1f * (float)(k % 7 - 3) + 0.01f * (float)(k % 11);
    p[i] = view(at, TW_F32, 2, matrices[i], NULL);
    g[i] = view(at + n, TW_F32, 2, matrices[i], NULL);
    at += 2 * n;
  }
  int ok = tw_optimizer_add_parameters(o, p, MATRICES, NULL, NULL) == TW_OK && tw_optimizer_bind_gradients(o, g, MATRICES) == TW_OK;
  for (int k = 0; ok && k < 12; k++) {
    calls = 0;
    ok = whole_step(o) >= 0;
    if (ok && k >= 2 && calls != 0) check_fail(__FILE__, __LINE__, "%s: %ld allocations in step %d", sentence, calls, k + 1);
    if (k >= 2 && calls != 0) break;
  }
  tw_optimizer_destroy(o);
  return ok;
}

/* "name(a=0.1, b=2)" with a value for what has no default. */
static void named(const tw_method_info *m, char *text, size_t size) {
  size_t at = (size_t)snprintf(text, size, "%s", m->name);
  int some = 0;
  for (size_t k = 0; k < m->parameter_count; k++) {
    tw_parameter_info info;
    info.struct_size = sizeof info;
    OK(tw_method_parameter(m->name, k, &info));
    if (!info.required) continue;
    const char *value = info.type == TW_PARAMETER_INTEGER ? "2" : info.type == TW_PARAMETER_NUMBER ? "0.1" : "l2_ball(1)";
    at += (size_t)snprintf(text + at, size - at, "%s%s=%s", some++ ? ", " : "(", info.name, value);
  }
  if (some) snprintf(text + at, size - at, ")");
}

static void in_any_method(int32_t threads) {
  OK(tw_set_num_threads(threads));
  int tried = 0, left = 0;
  for (size_t k = 0; k < tw_method_count(); k++) {
    tw_method_info m;
    m.struct_size = sizeof m;
    OK(tw_method_at(k, &m));
    char name[200], sentence[MOST + 200];
    named(&m, name, sizeof name);
    const char *kind = m.kind, *form = NULL, *second = NULL;
    if (!strcmp(kind, "optimizer")) form = "%s";
    if (!strcmp(kind, "transform") || !strcmp(kind, "perturbation") || !strcmp(kind, "aggregator")) form = "%s | sgd(lr=0.01)";
    if (!strcmp(kind, "update") || !strcmp(kind, "average") || !strcmp(kind, "mask")) form = "sgd(lr=0.01) | %s";
    if (!strcmp(kind, "regularizer")) form = "penalty(%s) | sgd(lr=0.01)", second = "sgd(lr=0.01) | prox(%s)";
    if (!strcmp(kind, "constraint")) form = "sgd(lr=0.01) | project(%s)";
    for (; form != NULL; form = second, second = NULL) {
      snprintf(sentence, sizeof sentence, form, name);
      tried++;
      if (!taken(sentence)) left++;
    }
  }
  printf("     %d of %d sentences stepped\n", tried - left, tried);
  CHECK(tried - left >= 300);
}
static void nothing_in_any_method(void) { in_any_method(1); }
static void nothing_with_threads(void) { in_any_method(2); }

/* What steps keep is told, stays the same, and large parts of it go back where the training pauses. */
static void scratch_is_told(void) {
  int64_t shape[2] = {700, 400};
  float *w = memory, *g = memory + 700 * 400;
  for (int k = 0; k < 700 * 400; k++) w[k] = 0.01f * (float)(k % 13), g[k] = 0.1f * (float)(k % 7 - 3);
  tw_tensor p = view(w, TW_F32, 2, shape, NULL), d = view(g, TW_F32, 2, shape, NULL);
  tw_optimizer *o = NULL;
  OK(tw_optimizer_create("sgd(lr=0.01) | prox(nuclear_norm(0.001))", NULL, &o));
  OK(tw_optimizer_add_parameters(o, &p, 1, NULL, NULL));
  OK(tw_optimizer_bind_gradients(o, &d, 1));
  CHECK(tw_optimizer_scratch(o) < 1 << 14);
  for (int k = 0; k < 3; k++) OK(tw_optimizer_step(o));
  size_t kept = tw_optimizer_scratch(o);
  CHECK(kept >= 400 * 400 * 4); /* a Gram matrix at least */
  CHECK(kept < 32 * 700 * 400 * 4);
  OK(tw_optimizer_step(o));
  CHECK(tw_optimizer_scratch(o) == kept);
  OK(tw_optimizer_set_mode(o, TW_MODE_EVAL));
  CHECK(tw_optimizer_scratch(o) < kept / 2);
  OK(tw_optimizer_set_mode(o, TW_MODE_TRAIN));
  OK(tw_optimizer_step(o));
  CHECK(tw_optimizer_scratch(o) == kept);
  OK(tw_optimizer_destroy(o));
  CHECK(tw_optimizer_scratch(o) == 0); /* and an error: it is no more */
}

int main(void) {
  memory = __libc_malloc(sizeof *memory * 2 * (LARGE + TENSORS * 7 * 50));
  RUN(nothing_is_allocated);
  RUN(nothing_with_narrow_state);
  RUN(nothing_in_any_method);
  RUN(nothing_with_threads);
  RUN(scratch_is_told);
  FINISH();
}
