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

int main(void) {
  memory = __libc_malloc(sizeof *memory * 2 * (LARGE + TENSORS * 7 * 50));
  RUN(nothing_is_allocated);
  RUN(nothing_with_narrow_state);
  FINISH();
}
