/* Steps that are broken off through the C interface, and groups as C names them.
 */
#include "check.h"

enum { N = 6 };

/* Two vectors of three, their gradients, and an optimizer over them; both in memory that outlives it. */
typedef struct {
  double w[N], g[N];
  tw_tensor parameters[2], gradients[2];
  tw_optimizer *optimizer;
} host;

static const int64_t three = 3;
static const char *const names[2] = {"first", "second"};

static void start(host *h, const char *sentence, int step_on_nonfinite) {
  memset(h, 0, sizeof *h);
  tw_options options;
  OK(tw_options_init(&options, sizeof options));
  options.nonfinite = step_on_nonfinite;
  options.seed = 7;
  for (int i = 0; i < N; i++) h->w[i] = 0.5 * i - 1.25;
  for (int i = 0; i < 2; i++) {
    h->parameters[i] = vector(h->w + 3 * i, TW_F64, &three);
    h->gradients[i] = vector(h->g + 3 * i, TW_F64, &three);
  }
  OK(tw_optimizer_create(sentence, &options, &h->optimizer));
  if (h->optimizer == NULL) return;
  OK(tw_optimizer_add_parameters(h->optimizer, h->parameters, 2, names, NULL));
  OK(tw_optimizer_bind_gradients(h->optimizer, h->gradients, 2));
}

static tw_request empty(void) {
  tw_request request;
  memset(&request, 0, sizeof request);
  request.struct_size = sizeof request;
  return request;
}

/* Answers for sum of a*x^2/2 with a = 1, 1.25, 1.5, ... */
static void answer(host *h, tw_request *request) {
  request->loss = 0;
  for (int i = 0; i < N; i++) {
    double a = 1 + 0.25 * i, x = h->w[i];
    if (request->kind == TW_REQUEST_HESSIAN_VECTOR) {
      x = ((const double *)request->probe[i / 3].data)[i % 3];
    } else {
      request->loss += 0.5 * a * x * x;
    }
    h->g[i] = a * x;
  }
}

/* Asks and answers until `count` requests were made; the last one waits.  Returns how many there were. */
static int run_to(host *h, int count, tw_request *request) {
  for (int n = 0; n < count; n++) {
    tw_status status = tw_optimizer_next(h->optimizer, request);
    if (status != TW_MORE) {
      if (status != TW_OK) check_fail(__FILE__, __LINE__, "next gave %s: %s", tw_status_name(status), tw_last_error());
      return n;
    }
    if (n < count - 1) answer(h, request);
  }
  return count;
}

static void whole_step(host *h) {
  tw_request request = empty();
  for (int n = 0; n < 100; n++) {
    tw_status status = tw_optimizer_next(h->optimizer, &request);
    if (status == TW_OK) return;
    if (status != TW_MORE) {
      check_fail(__FILE__, __LINE__, "next gave %s: %s", tw_status_name(status), tw_last_error());
      return;
    }
    answer(h, &request);
  }
}

static const char *const asking[] = {"sam(0.5) | sgd(lr=0.1)",
                                     "sam(0.5) | adamw(lr=0.1)",
                                     "sam(0.5) | sgd(lr=0.1) | schedule_free",
                                     "fd_grad_reg(0.1) | sgd(lr=0.1)",
                                     "fd_grad_reg(0.1, scheme=central) | sgd(lr=0.1)",
                                     "mars(lr=0.1, exact=true)",
                                     "svrg(lr=0.1, inner=2)",
                                     "spider(lr=0.1)",
                                     "harpg(lr=0.1)",
                                     "oasis",
                                     "u_dog(r_eps_rel=0.1)",
                                     "rolling_ball(n_projection=2)",
                                     "sga_uap(inner_steps=3)"};
enum { ASKING = sizeof asking / sizeof *asking };

/* What the host has done to its gradients by the time that the step ends. */
enum { BOUND, ABSENT, ONE_ABSENT, HABITS };

static void leave(host *h, int habit) {
  if (habit == BOUND) return;
  for (int i = habit == ONE_ABSENT; i < 2; i++) {
    h->gradients[i].flags = TW_TENSOR_ABSENT;
    h->gradients[i].data = NULL;
  }
  OK(tw_optimizer_bind_gradients(h->optimizer, h->gradients, 2));
}

/* ---- the end of the optimizer ------------------------------------------------------------------------- */

/* Destroyed at each request of the first and of the third step: the memory is the host's, as it was before the step. */
static void destroyed_inside_a_step(void) {
  for (int s = 0; s < ASKING; s++) {
    for (int before = 0; before <= 2; before += 2) {
      for (int at = 1; at <= 3; at++) {
        for (int habit = 0; habit < HABITS; habit++) {
          note("%s, %d steps, request %d, habit %d", asking[s], before, at, habit);
          host h;
          double home[N];
          tw_request request = empty();
          start(&h, asking[s], TW_NONFINITE_PROPAGATE);
          if (h.optimizer == NULL) return;
          for (int k = 0; k < before; k++) whole_step(&h);
          memcpy(home, h.w, sizeof home);
          if (run_to(&h, at, &request) < at) memcpy(home, h.w, sizeof home); /* the step was done before */
          leave(&h, habit);
          OK(tw_optimizer_destroy(h.optimizer));
          if (memcmp(home, h.w, sizeof home) != 0) {
            check_fail(__FILE__, __LINE__, "%s: request %d behind %d steps, habit %d: w[0] is %.17g, not %.17g",
                       asking[s], at, before, habit, h.w[0], home[0]);
          }
        }
      }
    }
  }
}

/* ---- loading and cancelling --------------------------------------------------------------------------- */

/* TW_ERROR_SEQUENCE, from memory and from a file, and the step goes on as if it had not been tried. */
static void loaded_inside_a_step(void) {
  char path[] = "/tmp/thalweg_interrupt_XXXXXX";
  int file = mkstemp(path);
  CHECK(file >= 0);
  if (file >= 0) close(file);
  for (int s = 0; s < ASKING; s++) {
    host h, twin;
    tw_request request = empty();
    start(&h, asking[s], TW_NONFINITE_PROPAGATE);
    start(&twin, asking[s], TW_NONFINITE_PROPAGATE);
    if (h.optimizer == NULL || twin.optimizer == NULL) return;
    for (int k = 0; k < 2; k++) {
      whole_step(&h);
      whole_step(&twin);
    }
    checkpoint saved = save(h.optimizer);
    CHECK(saved.data != NULL);
    OK(tw_optimizer_save_file(h.optimizer, path));
    for (int n = 0; n < 100 && tw_optimizer_next(h.optimizer, &request) == TW_MORE; n++) {
      double there[N];
      memcpy(there, h.w, sizeof there);
      note("%s, request %d", asking[s], n);
      STATUS(TW_ERROR_SEQUENCE, tw_optimizer_load(h.optimizer, saved.data, saved.size));
      STATUS(TW_ERROR_SEQUENCE, tw_optimizer_load_file(h.optimizer, path));
      CHECK(memcmp(there, h.w, sizeof there) == 0);
      answer(&h, &request);
    }
    whole_step(&twin);
    CHECK(memcmp(h.w, twin.w, sizeof h.w) == 0);
    free(saved.data);
    OK(tw_optimizer_destroy(h.optimizer));
    OK(tw_optimizer_destroy(twin.optimizer));
  }
  unlink(path);
}

/* A state from inside a step, loaded elsewhere and cancelled before a gradient is bound: where the step began. */
static void cancelled_before_binding(void) {
  for (int s = 0; s < ASKING; s++) {
    for (int at = 2; at <= 3; at++) {
      note("%s, request %d", asking[s], at);
      host h;
      double home[N], away[N];
      tw_request request = empty();
      start(&h, asking[s], TW_NONFINITE_PROPAGATE);
      if (h.optimizer == NULL) return;
      for (int k = 0; k < 3; k++) whole_step(&h);
      memcpy(home, h.w, sizeof home);
      int reached = run_to(&h, at, &request);
      if (reached == at) {
        checkpoint saved = save(h.optimizer);
        CHECK(saved.data != NULL);
        memcpy(away, h.w, sizeof away);
        tw_tensor parameters[2] = {vector(away, TW_F64, &three), vector(away + 3, TW_F64, &three)};
        tw_options options;
        tw_optimizer *other = NULL;
        OK(tw_options_init(&options, sizeof options));
        options.seed = 7;
        OK(tw_optimizer_create(asking[s], &options, &other));
        OK(tw_optimizer_add_parameters(other, parameters, 2, names, NULL));
        OK(tw_optimizer_load(other, saved.data, saved.size));
        OK(tw_optimizer_cancel(other));
        if (memcmp(home, away, sizeof home) != 0) {
          check_fail(__FILE__, __LINE__, "%s: cancelled at request %d: w[0] is %.17g, not %.17g", asking[s], at,
                     away[0], home[0]);
        }
        STATUS(TW_ERROR_SEQUENCE, tw_optimizer_cancel(other));
        OK(tw_optimizer_destroy(other));
        free(saved.data);
      }
      OK(tw_optimizer_destroy(h.optimizer));
    }
  }
}

/* A gradient that is absent at a later request: TW_ERROR_SEQUENCE, and all is as before; so is a NaN there. */
static void answers_that_end_a_step(void) {
  for (int s = 0; s < ASKING; s++) {
    for (int kind = 0; kind < 2; kind++) {
      note("%s, %s", asking[s], kind ? "NaN" : "absent");
      host h;
      double home[N];
      tw_request request = empty();
      start(&h, asking[s], TW_NONFINITE_ERROR);
      if (h.optimizer == NULL) return;
      for (int k = 0; k < 3; k++) whole_step(&h);
      memcpy(home, h.w, sizeof home);
      checkpoint before = save(h.optimizer);
      if (run_to(&h, 2, &request) == 2) {
        answer(&h, &request);
        if (kind == 0) {
          leave(&h, ONE_ABSENT);
          STATUS(TW_ERROR_SEQUENCE, tw_optimizer_next(h.optimizer, &request));
        } else {
          h.g[1] = NAN;
          STATUS(TW_ERROR_NONFINITE, tw_optimizer_next(h.optimizer, &request));
        }
        CHECK(memcmp(home, h.w, sizeof home) == 0);
        checkpoint after = save(h.optimizer);
        CHECK(same_checkpoint(before, after));
        free(after.data);
      }
      free(before.data);
      OK(tw_optimizer_destroy(h.optimizer));
    }
  }
}

/* ---- groups ------------------------------------------------------------------------------------------- */

static double number(tw_optimizer *optimizer, const char *group, const char *path) {
  double value = NAN;
  OK(tw_optimizer_get_number(optimizer, group, path, &value));
  return value;
}

/* NULL means all groups and those that come; "" the default one alone, which holds what was bound without a name. */
static void what_a_group_means(void) {
  double w[4] = {0, 0, 0, 0}, g[4] = {1, 1, 1, 1};
  const int64_t one = 1;
  tw_tensor parameters[4], gradients[4];
  for (int i = 0; i < 4; i++) {
    parameters[i] = vector(w + i, TW_F64, &one);
    gradients[i] = vector(g + i, TW_F64, &one);
  }
  tw_optimizer *optimizer = NULL;
  MUST(tw_optimizer_create("sgd(lr=0.5)", NULL, &optimizer));
  OK(tw_optimizer_add_parameters(optimizer, parameters, 1, NULL, NULL));
  OK(tw_optimizer_add_parameters(optimizer, parameters + 1, 1, NULL, "fast"));
  OK(tw_optimizer_set_number(optimizer, "", "lr", 0.25));
  EQUAL(number(optimizer, "", "lr"), 0.25);
  EQUAL(number(optimizer, "fast", "lr"), 0.5);
  OK(tw_optimizer_add_parameters(optimizer, parameters + 2, 1, NULL, "late"));
  EQUAL(number(optimizer, "late", "lr"), 0.5); /* the sentence's own, and not that of the default group */
  OK(tw_optimizer_bind_gradients(optimizer, gradients, 3));
  OK(tw_optimizer_step(optimizer));
  EQUAL(w[0], -0.25);
  EQUAL(w[1], -0.5);
  EQUAL(w[2], -0.5);
  OK(tw_optimizer_set_number(optimizer, NULL, "lr", 0.125));
  OK(tw_optimizer_set_number(optimizer, "late", "lr", 1));
  OK(tw_optimizer_add_parameters(optimizer, parameters + 3, 1, NULL, "later"));
  OK(tw_optimizer_bind_gradients(optimizer, gradients, 4));
  OK(tw_optimizer_step(optimizer));
  EQUAL(w[0], -0.375);
  EQUAL(w[1], -0.625);
  EQUAL(w[2], -1.5);
  EQUAL(w[3], -0.125);
  STATUS(TW_ERROR_NAME, tw_optimizer_set_number(optimizer, "slow", "lr", 1));
  STATUS(TW_ERROR_RANGE, tw_optimizer_set_number(optimizer, NULL, "lr", -1));
  EQUAL(number(optimizer, "late", "lr"), 1);
  EQUAL(number(optimizer, "later", "lr"), 0.125);
  OK(tw_optimizer_destroy(optimizer));
}

/* The mode, as a number. */
static void what_mode_it_is_in(void) {
  host h;
  start(&h, "sgd(lr=0.5) | ema(0.9)", TW_NONFINITE_PROPAGATE);
  if (h.optimizer == NULL) return;
  for (int k = 0; k < 3; k++) whole_step(&h);
  EQUAL(number(h.optimizer, NULL, "training"), 1);
  OK(tw_optimizer_set_mode(h.optimizer, TW_MODE_EVAL));
  EQUAL(number(h.optimizer, NULL, "training"), 0);
  OK(tw_optimizer_set_mode(h.optimizer, TW_MODE_TRAIN));
  EQUAL(number(h.optimizer, NULL, "training"), 1);
  OK(tw_optimizer_destroy(h.optimizer));
}

/* ---- answers by name ---------------------------------------------------------------------------------- */

/* The same step by tw_optimizer_answer, with the names that the kind declares. */
static tw_status step_by_name(host *h) {
  tw_request request = empty();
  tw_status status;
  while ((status = tw_optimizer_next(h->optimizer, &request)) == TW_MORE) {
    answer(h, &request);
    tw_request_info kind;
    memset(&kind, 0, sizeof kind);
    kind.struct_size = sizeof kind;
    OK(tw_request_kind(request.kind, &kind));
    const char *names_of[3];
    tw_tensor tensors[3];
    size_t count = 0;
    double loss = request.loss;
    for (size_t k = 0; k < kind.wanted_count; k++) {
      tw_input_info wanted;
      memset(&wanted, 0, sizeof wanted);
      wanted.struct_size = sizeof wanted;
      OK(tw_request_kind_tensor(request.kind, kind.given_count + k, &wanted));
      if (strcmp(wanted.name, "loss") == 0) {
        names_of[count] = wanted.name;
        tensors[count++] = view(&loss, TW_F64, 0, NULL, NULL);
      } else {
        for (int i = 0; i < 2; i++) {
          names_of[count] = wanted.name;
          tensors[count++] = h->gradients[i];
        }
      }
    }
    request.loss = NAN; /* it came by name */
    OK(tw_optimizer_answer(h->optimizer, names_of, tensors, count));
  }
  return status;
}

static void answered_by_name(void) {
  static const char *const sentences[] = {"sgd(lr=0.1)", "sam(0.05) | adamw(lr=0.1)", "adahessian(lr=0.1)", "newton_cg", "spsa",
                                          "sam(0.05) | newton_cg"};
  for (size_t s = 0; s < sizeof sentences / sizeof *sentences; s++) {
    host one, other;
    start(&one, sentences[s], 0);
    start(&other, sentences[s], 0);
    for (int k = 0; k < 3; k++) {
      tw_request request = empty();
      tw_status status;
      while ((status = tw_optimizer_next(one.optimizer, &request)) == TW_MORE) answer(&one, &request);
      CHECK(status == step_by_name(&other));
    }
    CHECK(memcmp(one.w, other.w, sizeof one.w) == 0);
    OK(tw_optimizer_destroy(one.optimizer));
    OK(tw_optimizer_destroy(other.optimizer));
  }
}

static void names_that_do_not_fit(void) {
  host h;
  start(&h, "newton_cg", 0);
  tw_request request = empty();
  static const char *const gradient[3] = {"gradients", "gradients", "loss"}, *const wrong[1] = {"products"},
                          *const torn[3] = {"gradients", "loss", "gradients"}, *const none[1] = {NULL};
  double loss = 1;
  tw_tensor three_of[3] = {h.gradients[0], h.gradients[1], view(&loss, TW_F64, 0, NULL, NULL)};
  tw_tensor mixed[3] = {three_of[0], three_of[2], three_of[1]};
  STATUS(TW_ERROR_SEQUENCE, tw_optimizer_answer(h.optimizer, gradient, three_of, 3)); /* nothing waits */
  CHECK(tw_optimizer_next(h.optimizer, &request) == TW_MORE);
  CHECK(request.kind == TW_REQUEST_LOSS_AND_GRADIENT);
  STATUS(TW_ERROR_ARGUMENT, tw_optimizer_answer(h.optimizer, wrong, three_of, 1));
  STATUS(TW_ERROR_ARGUMENT, tw_optimizer_answer(h.optimizer, torn, mixed, 3));
  STATUS(TW_ERROR_NEEDS, tw_optimizer_answer(h.optimizer, gradient, three_of, 2));
  STATUS(TW_ERROR_COUNT, tw_optimizer_answer(h.optimizer, gradient + 1, three_of + 1, 2));
  STATUS(TW_ERROR_ARGUMENT, tw_optimizer_answer(h.optimizer, NULL, three_of, 3));
  STATUS(TW_ERROR_ARGUMENT, tw_optimizer_answer(h.optimizer, gradient, NULL, 3));
  CHECK(tw_optimizer_answer(h.optimizer, none, three_of, 1) < 0);
  STATUS(TW_ERROR_COUNT, tw_optimizer_answer(h.optimizer, gradient, three_of, SIZE_MAX));
  three_of[2] = h.gradients[0];
  STATUS(TW_ERROR_SHAPE, tw_optimizer_answer(h.optimizer, gradient, three_of, 3)); /* three losses */
  tw_request_info kind;
  kind.struct_size = sizeof kind;
  STATUS(TW_ERROR_RANGE, tw_request_kind(0, &kind));
  STATUS(TW_ERROR_RANGE, tw_request_kind(INT32_MAX, &kind));
  tw_input_info tensor;
  tensor.struct_size = sizeof tensor;
  STATUS(TW_ERROR_ARGUMENT, tw_request_kind_tensor(TW_REQUEST_LOSS, 1, &tensor));
  OK(tw_optimizer_cancel(h.optimizer));
  OK(tw_optimizer_destroy(h.optimizer));
}

int main(void) {
  RUN(destroyed_inside_a_step);
  RUN(loaded_inside_a_step);
  RUN(cancelled_before_binding);
  RUN(answers_that_end_a_step);
  RUN(what_a_group_means);
  RUN(what_mode_it_is_in);
  RUN(answered_by_name);
  RUN(names_that_do_not_fit);
  FINISH();
}
