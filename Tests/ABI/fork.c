/* fork(): the child of a process whose pool has run steps with its own threads, and so does its parent. */
#include "check.h"

#include <pthread.h>
#include <signal.h>

#include "runs.h"

enum { CHILD_SECONDS = 20 };

static int child_seconds(void) {
  int deadline = check_deadline();
  return deadline > 60 ? deadline / 3 : CHILD_SECONDS;
}

/* Runs `act` in a child, with a deadline; the child's failed checks are a failure here. */
static void in_child(void (*act)(void *), void *argument) {
  fflush(stdout);
  pid_t child = fork();
  if (child == 0) {
    alarm((unsigned)child_seconds());
    check_failures = 0;
    act(argument);
    fflush(stdout);
    _exit(check_failures > 0);
  }
  int status = 0;
  CHECK(child > 0 && waitpid(child, &status, 0) == child);
  if (WIFSIGNALED(status))
    check_fail(__FILE__, __LINE__, "the child ended with signal %d", WTERMSIG(status));
  else if (WEXITSTATUS(status) != 0)
    check_fail(__FILE__, __LINE__, "the child failed");
}

typedef struct {
  run *r;
  const float *expected; /* the parameters after the next two steps */
} continuation;

/* The next two steps. */
static void continue_run(void *argument) {
  continuation *c = argument;
  OK(run_step(c->r, 3));
  OK(run_step(c->r, 4));
  CHECK(memcmp(c->expected, c->r->w, run_bytes(c->r)) == 0);
  OK(tw_optimizer_destroy(c->r->optimizer));
  /* New work in the child. */
  run fresh = new_run(1, 521, 509);
  OK(tw_set_num_threads(3));
  OK(run_whole(&fresh, "adamw(lr=0.01)", 5));
  CHECK(memcmp(c->expected, fresh.w, run_bytes(&fresh)) == 0);
  free_run(&fresh);
}

/* ... in a grandchild too. */
static void continue_in_a_grandchild(void *argument) {
  in_child(continue_run, argument);
  continue_run(argument);
}

static void parent_and_child_step(void) {
  NEED("adamw");
  run whole = new_run(1, 521, 509), r = new_run(1, 521, 509);
  OK(tw_set_num_threads(2));
  OK(run_whole(&whole, "adamw(lr=0.01)", 5));
  OK(run_start(&r, "adamw(lr=0.01)"));
  for (uint64_t step = 0; step < 3; step++) OK(run_step(&r, step));
  continuation c = {&r, whole.w};
  in_child(continue_run, &c);
  in_child(continue_in_a_grandchild, &c);
  /* The parent's pool is as it was. */
  OK(run_step(&r, 3));
  OK(run_step(&r, 4));
  CHECK(memcmp(whole.w, r.w, run_bytes(&r)) == 0);
  OK(tw_optimizer_destroy(r.optimizer));
  free_run(&whole);
  free_run(&r);
}

/* A fork before the first step, and before anything at all. */
static void fresh_run(void *argument) {
  run fresh = new_run(1, 521, 509);
  OK(tw_set_num_threads(2));
  OK(run_whole(&fresh, "adamw(lr=0.01)", 5));
  if (argument != NULL) CHECK(memcmp(argument, fresh.w, run_bytes(&fresh)) == 0);
  free_run(&fresh);
}

static void fork_before_anything(void) {
  in_child(fresh_run, NULL);
  NEED("adamw");
  run whole = new_run(1, 521, 509);
  OK(run_whole(&whole, "adamw(lr=0.01)", 5));
  in_child(fresh_run, whole.w);
  free_run(&whole);
}

/* ---- forks while other threads are at work ------------------------------------------------------------- */

static int stop;

/* Steps, creates, destroys and asks without end. */
static void *busy(void *argument) {
  (void)argument;
  while (!__atomic_load_n(&stop, __ATOMIC_RELAXED)) {
    run r = new_run(2, 101, 97);
    run_whole(&r, "adamw(lr=0.01)", 2);
    tw_optimizer *none = NULL;
    tw_optimizer_create("no_such_method", NULL, &none);
    free_run(&r);
  }
  return NULL;
}

static void fork_while_others_work(void) {
  NEED("adamw");
  run whole = new_run(1, 521, 509);
  OK(tw_set_num_threads(2));
  OK(run_whole(&whole, "adamw(lr=0.01)", 5));
  pthread_t threads[2];
  __atomic_store_n(&stop, 0, __ATOMIC_RELAXED);
  for (int i = 0; i < 2; i++) CHECK(pthread_create(&threads[i], NULL, busy, NULL) == 0);
  for (int round = 0; round < 20 && check_failures == 0; round++) in_child(fresh_run, whole.w);
  __atomic_store_n(&stop, 1, __ATOMIC_RELAXED);
  for (int i = 0; i < 2; i++) pthread_join(threads[i], NULL);
  free_run(&whole);
}

/* ---- children of several threads ------------------------------------------------------------------------ */

enum { AT_ONCE = 8 };
static pthread_barrier_t together;

/* A run of its own, begun at the same moment as the others. */
static void *step_together(void *expected) {
  run fresh = new_run(1, 521, 509);
  pthread_barrier_wait(&together);
  long bad = run_whole(&fresh, "adamw(lr=0.01)", 5) != TW_OK || memcmp(expected, fresh.w, run_bytes(&fresh)) != 0;
  free_run(&fresh);
  return (void *)bad;
}

typedef struct {
  int count;
  void *expected;
} crowd;

static void step_in_several_threads(void *argument) {
  crowd *c = argument;
  pthread_t threads[AT_ONCE];
  CHECK(pthread_barrier_init(&together, NULL, (unsigned)c->count) == 0);
  for (int i = 0; i < c->count; i++) CHECK(pthread_create(&threads[i], NULL, step_together, c->expected) == 0);
  for (int i = 0; i < c->count; i++) {
    void *bad = NULL;
    pthread_join(threads[i], &bad);
    CHECK(bad == NULL);
  }
}

/* The first steps of a child, by many threads at once: one of them gets the new pool, and no two the same. */
static void children_step_in_several_threads(void) {
  NEED("adamw");
  run whole = new_run(1, 521, 509);
  OK(tw_set_num_threads(3));
  OK(run_whole(&whole, "adamw(lr=0.01)", 5));
  for (int round = 0; round < 40 && check_failures == 0; round++) {
    crowd c = {2 + round % (AT_ONCE - 1), whole.w};
    note("child %d of %d threads", round, c.count);
    in_child(step_in_several_threads, &c);
  }
  free_run(&whole);
}

/* The same while the pool of the parent is at work. */
static void children_of_a_busy_parent(void) {
  NEED("adamw");
  run whole = new_run(1, 521, 509);
  OK(tw_set_num_threads(3));
  OK(run_whole(&whole, "adamw(lr=0.01)", 5));
  pthread_t thread;
  __atomic_store_n(&stop, 0, __ATOMIC_RELAXED);
  CHECK(pthread_create(&thread, NULL, busy, NULL) == 0);
  for (int round = 0; round < 40 && check_failures == 0; round++) {
    crowd c = {1 + round % AT_ONCE, whole.w};
    note("child %d of %d threads", round, c.count);
    usleep((useconds_t)(137 * round));
    in_child(step_in_several_threads, &c);
  }
  __atomic_store_n(&stop, 1, __ATOMIC_RELAXED);
  pthread_join(thread, NULL);
  free_run(&whole);
}

int main(void) {
  RUN(fork_before_anything);
  RUN(parent_and_child_step);
  RUN(fork_while_others_work);
  RUN(children_step_in_several_threads);
  RUN(children_of_a_busy_parent);
  FINISH();
}
