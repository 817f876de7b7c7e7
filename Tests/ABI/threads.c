/* Threads: one handle is used by one thread at a time and says so to the others; different handles do not
 * disturb each other. */
#include "check.h"

#include <pthread.h>
#include <sched.h>

#include "runs.h"

static void start(pthread_t *threads, int count, void *(*body)(void *), void *arguments, size_t stride) {
  for (int i = 0; i < count; i++) {
    CHECK(pthread_create(&threads[i], NULL, body, (char *)arguments + (size_t)i * stride) == 0);
  }
}

static void join(pthread_t *threads, int count) {
  for (int i = 0; i < count; i++) pthread_join(threads[i], NULL);
}

/* ---- one handle, many threads ------------------------------------------------------------------------- */

enum { SHARED_COUNT = 1 << 16, ATTEMPTS = 300 };

typedef struct {
  tw_optimizer *optimizer;
  long done, busy, other;
} contender;

static void *contend(void *argument) {
  contender *c = argument;
  for (int i = 0; i < ATTEMPTS; i++) {
    tw_status status = tw_optimizer_step(c->optimizer);
    if (status == TW_OK) {
      c->done++;
    } else if (status == TW_ERROR_BUSY) {
      c->busy++;
      if (tw_last_error()[0] == 0) c->other++;
      sched_yield();
    } else {
      c->other++;
    }
  }
  return NULL;
}

/* w <- w - lr g, as often as a step said TW_OK: no step is lost, none is half done. */
static void one_handle(void) {
  NEED("sgd");
  static float w[SHARED_COUNT], g[SHARED_COUNT];
  const int64_t count = SHARED_COUNT;
  for (int i = 0; i < SHARED_COUNT; i++) g[i] = 1;
  tw_tensor parameter = vector(w, TW_F32, &count), gradient = vector(g, TW_F32, &count);
  tw_optimizer *optimizer = NULL;
  MUST(tw_optimizer_create("sgd(lr=0.125)", NULL, &optimizer));
  OK(tw_optimizer_add_parameters(optimizer, &parameter, 1, NULL, NULL));
  OK(tw_optimizer_bind_gradients(optimizer, &gradient, 1));
  contender contenders[4] = {
      {optimizer, 0, 0, 0}, {optimizer, 0, 0, 0}, {optimizer, 0, 0, 0}, {optimizer, 0, 0, 0}};
  pthread_t threads[4];
  start(threads, 4, contend, contenders, sizeof *contenders);
  join(threads, 4);
  long done = 0, busy = 0;
  for (int i = 0; i < 4; i++) {
    CHECK(contenders[i].other == 0);
    CHECK(contenders[i].done + contenders[i].busy == ATTEMPTS);
    done += contenders[i].done;
    busy += contenders[i].busy;
  }
  CHECK(done > 0);
  note("%ld steps, %ld refusals", done, busy);
  double steps = 0;
  OK(tw_optimizer_get_number(optimizer, NULL, "steps", &steps));
  EQUAL(steps, (double)done);
  for (int i = 0; i < SHARED_COUNT; i++) {
    if (w[i] != -0.125f * (float)done) {
      check_fail(__FILE__, __LINE__, "element %d is %g after %ld steps", i, (double)w[i], done);
      break;
    }
  }
  OK(tw_optimizer_destroy(optimizer));
}

/* Every function of a handle, from two threads, until one of them destroys it. */
typedef struct {
  tw_optimizer *optimizer;
  int destroys;
  long other;
} wrecker;

static int expected_in_a_fight(tw_status status) {
  return status == TW_OK || status == TW_MORE || status == TW_ERROR_BUSY || status == TW_ERROR_HANDLE ||
         status == TW_ERROR_SEQUENCE || status == TW_ERROR_SPACE;
}

static void *wreck(void *argument) {
  wrecker *w = argument;
  uint64_t seed = 77 + (uint64_t)w->destroys;
  for (int i = 0; i < 200; i++) {
    double value;
    char buffer[512];
    size_t needed = 0;
    tw_request request = {.struct_size = sizeof request};
    tw_status status = TW_OK;
    switch (random_index(&seed, 9)) {
      case 0: status = tw_optimizer_step(w->optimizer); break;
      case 1: status = tw_optimizer_get_number(w->optimizer, NULL, "lr", &value); break;
      case 2: status = tw_optimizer_sentence(w->optimizer, buffer, sizeof buffer, &needed); break;
      case 3: status = tw_optimizer_save(w->optimizer, NULL, 0, &needed); break;
      case 4: status = tw_optimizer_set_number(w->optimizer, NULL, "lr", 0.125); break;
      case 5: status = tw_optimizer_next(w->optimizer, &request); break;
      case 6: status = tw_optimizer_cancel(w->optimizer); break;
      case 7: tw_optimizer_state_count(w->optimizer); break;
      default: tw_optimizer_parameter_count(w->optimizer); break;
    }
    if (!expected_in_a_fight(status)) w->other++;
  }
  if (w->destroys) {
    tw_status status;
    do status = tw_optimizer_destroy(w->optimizer);
    while (status == TW_ERROR_BUSY);
    if (status != TW_OK) w->other++;
  }
  return NULL;
}

static void destroyed_in_use(void) {
  NEED("sgd");
  static float w[4096], g[4096];
  const int64_t count = 4096;
  for (int round = 0; round < 30; round++) {
    tw_tensor parameter = vector(w, TW_F32, &count), gradient = vector(g, TW_F32, &count);
    tw_optimizer *optimizer = NULL;
    MUST(tw_optimizer_create("sgd(lr=0.125, momentum=0.5)", NULL, &optimizer));
    OK(tw_optimizer_add_parameters(optimizer, &parameter, 1, NULL, NULL));
    OK(tw_optimizer_bind_gradients(optimizer, &gradient, 1));
    wrecker wreckers[3] = {{optimizer, 0, 0}, {optimizer, 1, 0}, {optimizer, 0, 0}};
    pthread_t threads[3];
    start(threads, 3, wreck, wreckers, sizeof *wreckers);
    join(threads, 3);
    for (int i = 0; i < 3; i++) CHECK(wreckers[i].other == 0);
    STATUS(TW_ERROR_HANDLE, tw_optimizer_destroy(optimizer));
  }
}

/* ---- many handles, many threads ----------------------------------------------------------------------- */

typedef struct {
  int index;
  const float *expected[RUN_SENTENCES];
  long wrong, failed;
} runner;

enum { RUN_ROWS = 61, RUN_COLUMNS = 53 };

static void *run_all(void *argument) {
  runner *me = argument;
  for (int i = 0; i < RUN_SENTENCES; i++) {
    int s = (i + me->index) % RUN_SENTENCES;
    if (me->expected[s] == NULL) continue;
    run r = new_run(3, RUN_ROWS, RUN_COLUMNS);
    if (run_whole(&r, run_sentences[s], 3) != TW_OK) me->failed++;
    if (memcmp(r.w, me->expected[s], run_bytes(&r)) != 0) me->wrong++;
    free_run(&r);
    if (me->index == 0) tw_set_num_threads(1 + i % 3);
  }
  return NULL;
}

static void many_handles(void) {
  static run expected[RUN_SENTENCES];
  static runner runners[8];
  for (int s = 0; s < RUN_SENTENCES; s++) {
    if (!run_possible(run_sentences[s])) continue;
    expected[s] = new_run(3, RUN_ROWS, RUN_COLUMNS);
    OK(run_whole(&expected[s], run_sentences[s], 3));
  }
  for (int i = 0; i < 8; i++) {
    runners[i].index = i;
    for (int s = 0; s < RUN_SENTENCES; s++) runners[i].expected[s] = expected[s].w;
  }
  pthread_t threads[8];
  start(threads, 8, run_all, runners, sizeof *runners);
  join(threads, 8);
  for (int i = 0; i < 8; i++) CHECK(runners[i].wrong == 0 && runners[i].failed == 0);
  for (int s = 0; s < RUN_SENTENCES; s++) {
    if (expected[s].w != NULL) free_run(&expected[s]);
  }
}

/* Large steps from several threads at once share the pool. */
typedef struct {
  const float *expected;
  long wrong;
} large;

static void *run_large(void *argument) {
  large *me = argument;
  run r = new_run(1, 521, 509);
  if (run_whole(&r, "adamw(lr=0.01)", 4) != TW_OK || memcmp(r.w, me->expected, run_bytes(&r)) != 0)
    me->wrong++;
  free_run(&r);
  return NULL;
}

static void shared_pool(void) {
  NEED("adamw");
  run expected = new_run(1, 521, 509);
  OK(tw_set_num_threads(1));
  OK(run_whole(&expected, "adamw(lr=0.01)", 4));
  OK(tw_set_num_threads(3));
  large all[4] = {{expected.w, 0}, {expected.w, 0}, {expected.w, 0}, {expected.w, 0}};
  pthread_t threads[4];
  start(threads, 4, run_large, all, sizeof *all);
  join(threads, 4);
  for (int i = 0; i < 4; i++) CHECK(all[i].wrong == 0);
  free_run(&expected);
}

/* ---- messages ----------------------------------------------------------------------------------------- */

static void *own_message(void *argument) {
  long *wrong = argument;
  char name[64];
  tw_method_info info = {.struct_size = sizeof info};
  snprintf(name, sizeof name, "unheard_of_%lu", (unsigned long)pthread_self());
  for (int i = 0; i < 300; i++) {
    if (tw_method_find(name, &info) != TW_ERROR_METHOD || strstr(tw_last_error(), name) == NULL) ++*wrong;
    sched_yield();
    if (strstr(tw_last_error(), name) == NULL) ++*wrong;
    if (tw_method_at((size_t)i % tw_method_count(), &info) != TW_OK || info.name[0] == 0) ++*wrong;
  }
  return NULL;
}

/* Each thread has its own last message, and introspection needs no lock of the host. */
static void messages_of_threads(void) {
  long wrong[6] = {0};
  pthread_t threads[6];
  start(threads, 6, own_message, wrong, sizeof *wrong);
  join(threads, 6);
  for (int i = 0; i < 6; i++) CHECK(wrong[i] == 0);
}

/* Threads that come and go leave nothing behind that grows (their messages, for one). */
static void *one_failure(void *argument) {
  (void)argument;
  tw_method_find("unheard_of", NULL);
  return NULL;
}

static void short_threads(void) {
  for (int i = 0; i < 2000; i++) {
    pthread_t thread;
    long none = 0;
    start(&thread, 1, one_failure, &none, 0);
    join(&thread, 1);
  }
}

/* A handle may be created by one thread, used by a second, destroyed by a third. */
typedef struct {
  run r;
  int stage;
  tw_status status;
} traveller;

static void *travel(void *argument) {
  traveller *t = argument;
  if (t->stage == 0)
    t->status = run_start(&t->r, "adamw(lr=0.01)");
  else if (t->stage == 4)
    t->status = tw_optimizer_destroy(t->r.optimizer);
  else
    t->status = run_step(&t->r, (uint64_t)t->stage - 1);
  return NULL;
}

static void travelling_handle(void) {
  NEED("adamw");
  run expected = new_run(1, 50, 50);
  OK(run_whole(&expected, "adamw(lr=0.01)", 3));
  traveller t = {new_run(1, 50, 50), 0, TW_OK};
  for (t.stage = 0; t.stage < 5; t.stage++) {
    pthread_t thread;
    start(&thread, 1, travel, &t, 0);
    join(&thread, 1);
    OK(t.status);
  }
  CHECK(memcmp(expected.w, t.r.w, run_bytes(&expected)) == 0);
  free_run(&expected);
  free_run(&t.r);
}

int main(void) {
  RUN(one_handle);
  RUN(destroyed_in_use);
  RUN(many_handles);
  RUN(shared_pool);
  RUN(messages_of_threads);
  RUN(short_threads);
  RUN(travelling_handle);
  FINISH();
}
