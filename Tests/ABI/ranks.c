/* A reducer through the C interface: ranks that hold the same, one that fails, and hostile calls. */
#include "check.h"

enum { N = 5 };

typedef struct {
  double ranks; /* that hold what this one holds */
  tw_status answer;
  int calls;
  size_t sums, maxima;
} group;

static tw_status reduce(void *context, double *sums, size_t sum_count, double *maxima, size_t maximum_count) {
  group *g = context;
  g->calls++;
  g->sums = sum_count;
  g->maxima = maximum_count;
  for (size_t i = 0; i < sum_count; i++) sums[i] *= g->ranks;
  CHECK(maximum_count == 0 || maxima != NULL);
  return g->answer;
}

static const int64_t shape[1] = {N};

static tw_optimizer *make(const char *sentence, double *w, double *g) {
  tw_optimizer *o = NULL;
  tw_tensor weights = vector(w, TW_F64, shape), gradients = vector(g, TW_F64, shape);
  for (int i = 0; i < N; i++) w[i] = 1 + i, g[i] = 0.5 * i - 1;
  OK(tw_optimizer_create(sentence, NULL, &o));
  OK(tw_optimizer_add_parameters(o, &weights, 1, NULL, NULL));
  OK(tw_optimizer_bind_gradients(o, &gradients, 1));
  return o;
}

/* Four equal ranks: the norm is twice that of one, so the step is half as long. */
static void the_norm_of_all(void) {
  double w[N], g[N], square = 0;
  group four = {4, TW_OK, 0, 0, 0};
  tw_optimizer *o = make("clip_global_norm(0.1, eps=0) | sgd(lr=1)", w, g);
  for (int i = 0; i < N; i++) square += g[i] * g[i];
  OK(tw_optimizer_set_reducer(o, reduce, &four, TW_SHARDS_TENSORS));
  OK(tw_optimizer_step(o));
  for (int i = 0; i < N; i++) CHECK(fabs(w[i] - (1 + i - 0.1 * g[i] / (2 * sqrt(square)))) < 1e-14);
  CHECK(four.calls == 1 && four.sums == 9 && four.maxima == 1);
  OK(tw_optimizer_set_reducer(o, NULL, NULL, 0));
  OK(tw_optimizer_step(o));
  CHECK(four.calls == 1);
  OK(tw_optimizer_destroy(o));
}

static void a_reducer_that_fails(void) {
  double w[N], g[N], before[N];
  group bad = {1, TW_ERROR_FILE, 0, 0, 0};
  tw_optimizer *o = make("adamw(lr=0.1) | clip_update_rms(0.1) | ema(0.9)", w, g);
  OK(tw_optimizer_step(o));
  memcpy(before, w, sizeof w);
  OK(tw_optimizer_set_reducer(o, reduce, &bad, TW_SHARDS_ELEMENTS));
  for (int k = 0; k < 3; k++) {
    STATUS(TW_ERROR_FILE, tw_optimizer_step(o));
    CHECK(memcmp(before, w, sizeof w) == 0 && bad.calls == k + 1);
  }
  CHECK(strstr(tw_last_error(), "reducer") != NULL);
  bad.answer = TW_OK;
  OK(tw_optimizer_step(o));
  CHECK(memcmp(before, w, sizeof w) != 0);
  OK(tw_optimizer_destroy(o));
}

static void hostile_calls(void) {
  double w[N], g[N];
  group one = {1, TW_OK, 0, 0, 0};
  STATUS(TW_ERROR_HANDLE, tw_optimizer_set_reducer(NULL, reduce, &one, TW_SHARDS_TENSORS));
  tw_optimizer *o = make("sgd(lr=0.1) | project(simplex)", w, g);
  static const int32_t wrong[] = {0, 3, -1, INT32_MAX, INT32_MIN};
  for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
    STATUS(TW_ERROR_ARGUMENT, tw_optimizer_set_reducer(o, reduce, &one, wrong[i]));
  }
  STATUS(TW_ERROR_UNSUPPORTED, tw_optimizer_set_reducer(o, reduce, &one, TW_SHARDS_ELEMENTS));
  OK(tw_optimizer_set_reducer(o, reduce, NULL, TW_SHARDS_TENSORS));
  OK(tw_optimizer_set_reducer(o, NULL, NULL, -7));
  OK(tw_optimizer_step(o));
  CHECK(one.calls == 0);
  OK(tw_optimizer_destroy(o));

  tw_request request = {.struct_size = sizeof request};
  o = make("sam(0.1) | sgd(lr=0.1)", w, g);
  STATUS(TW_MORE, tw_optimizer_next(o, &request));
  STATUS(TW_ERROR_SEQUENCE, tw_optimizer_set_reducer(o, reduce, &one, TW_SHARDS_TENSORS));
  OK(tw_optimizer_destroy(o));
}

int main(void) {
  RUN(the_norm_of_all);
  RUN(a_reducer_that_fails);
  RUN(hostile_calls);
  FINISH();
}
