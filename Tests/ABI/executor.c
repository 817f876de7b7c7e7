/* The same bits from the library's pool with 1, 2 and 3 threads, from a host's threads, and from a host that
 * runs the tasks backwards on one. */
#include "check.h"

#include <pthread.h>

#include "runs.h"

/* ---- executors ---------------------------------------------------------------------------------------- */

typedef struct {
  int threads;
  long calls;    /* of the executor */
  size_t widest; /* tasks of one call */
} host;

typedef struct {
  tw_task task;
  void *context;
  size_t count, next;
} work;

static void *worker(void *argument) {
  work *w = argument;
  for (;;) {
    size_t index = __atomic_fetch_add(&w->next, 1, __ATOMIC_RELAXED);
    if (index >= w->count) return NULL;
    w->task(w->context, index);
  }
}

/* Threads of our own, made for the call. */
static void on_threads(void *context, tw_task task, void *task_context, size_t count) {
  host *h = context;
  work w = {task, task_context, count, 0};
  pthread_t threads[16];
  int started = 0;
  h->calls++;
  if (count > h->widest) h->widest = count;
  while (started < h->threads && pthread_create(&threads[started], NULL, worker, &w) == 0) started++;
  if (started == 0) worker(&w);
  while (started > 0) pthread_join(threads[--started], NULL);
}

/* One after the other, the last first. */
static void backwards(void *context, tw_task task, void *task_context, size_t count) {
  host *h = context;
  h->calls++;
  if (count > h->widest) h->widest = count;
  while (count > 0) task(task_context, --count);
}

/* ---- tests -------------------------------------------------------------------------------------------- */

typedef struct {
  const char *name;
  size_t count;
  int64_t rows, columns;
} problem;

/* SLOW: the library is not optimised, so that some sentences stand for all. */
#ifdef SLOW
enum { STRIDE = 6 };
static const problem problems[] = {{"one large matrix", 1, 331, 317},
                                   {"many small matrices", 40, 9, 11},
                                   {"one tall matrix", 1, 20903, 5},
                                   {"a single number", 1, 1, 1}};
#else
enum { STRIDE = 1 };
static const problem problems[] = {{"one large matrix", 1, 521, 509},
                                   {"many small matrices", 400, 9, 11},
                                   {"one tall matrix", 1, 40009, 5},
                                   {"a single number", 1, 1, 1}};
#endif

static void same_bits(const problem *p) {
  for (int s = 0; s < RUN_SENTENCES; s += STRIDE) {
    const char *sentence = run_sentences[s];
    if (!run_possible(sentence)) continue;
    if (strstr(sentence, "shampoo") != NULL && p->rows > 1000)
      continue; /* a matrix of rows x rows: too slow here */
    note("%s: %s", p->name, sentence);
    run expected = new_run(p->count, p->rows, p->columns), r = new_run(p->count, p->rows, p->columns);
    OK(tw_set_num_threads(1));
    tw_status status = run_whole(&expected, sentence, 3);
    if (status != TW_OK) { /* a method that does not take these shapes */
      CHECK(status == TW_ERROR_SHAPE || status == TW_ERROR_UNSUPPORTED);
      free_run(&expected);
      free_run(&r);
      continue;
    }
    for (int mode = 0; mode < 7; mode++) {
      static const int32_t pool[] = {2, 3, 5, 1, 2, 3, 3};
      host h = {pool[mode], 0, 0};
      OK(tw_set_num_threads(pool[mode]));
      CHECK(tw_get_num_threads() == pool[mode]);
      if (mode >= 3) OK(tw_set_executor(mode == 6 ? backwards : on_threads, &h));
      OK(run_whole(&r, sentence, 3));
      OK(tw_set_executor(NULL, NULL));
      if (memcmp(expected.w, r.w, run_bytes(&r)) != 0) {
        check_fail(__FILE__, __LINE__, "%s: %s: mode %d gives other bits", p->name, sentence, mode);
      }
      if (mode == 5 && p->rows * p->columns > 100000 && h.calls == 0) {
        check_fail(__FILE__, __LINE__, "%s: %s: the executor was not used", p->name, sentence);
      }
    }
    free_run(&expected);
    free_run(&r);
  }
}

static void one_large_matrix(void) { same_bits(&problems[0]); }
static void many_small_matrices(void) { same_bits(&problems[1]); }
static void one_tall_matrix(void) { same_bits(&problems[2]); }
static void a_single_number(void) { same_bits(&problems[3]); }

/* Changing the executor and the number of threads in the middle of a run changes no bit. */
static void changing_horses(void) {
  NEED("adamw");
  run expected = new_run(1, 521, 509), r = new_run(1, 521, 509);
  host h = {3, 0, 0};
  OK(tw_set_num_threads(1));
  OK(run_whole(&expected, "adamw(lr=0.01)", 9));
  OK(run_start(&r, "adamw(lr=0.01)"));
  for (uint64_t step = 0; step < 9; step++) {
    OK(tw_set_num_threads((int32_t)(step % 4) + 1));
    OK(tw_set_executor(step % 3 == 0 ? NULL : step % 3 == 1 ? on_threads : backwards, &h));
    MUST(run_step(&r, step));
  }
  OK(tw_set_executor(NULL, NULL));
  OK(tw_optimizer_destroy(r.optimizer));
  CHECK(memcmp(expected.w, r.w, run_bytes(&r)) == 0);
  free_run(&expected);
  free_run(&r);
}

/* A host may step one optimizer from a task of another. */
static struct {
  run inner;
  int stepped;
} nested;

static void steps_another(void *context, tw_task task, void *task_context, size_t count) {
  (void)context;
  for (size_t i = 0; i < count; i++) {
    if (!nested.stepped) {
      nested.stepped = 1;
      OK(run_step(&nested.inner, 0));
    }
    task(task_context, i);
  }
}

static void a_step_within_a_step(void) {
  NEED("adamw");
  run expected = new_run(1, 521, 509), r = new_run(1, 521, 509);
  OK(tw_set_num_threads(2));
  OK(run_whole(&expected, "adamw(lr=0.01)", 2));
  nested.inner = new_run(1, 521, 509);
  OK(run_start(&nested.inner, "sgd(lr=0.1)"));
  OK(tw_set_executor(steps_another, NULL));
  OK(run_whole(&r, "adamw(lr=0.01)", 2));
  OK(tw_set_executor(NULL, NULL));
  CHECK(memcmp(expected.w, r.w, run_bytes(&r)) == 0);
  OK(tw_optimizer_destroy(nested.inner.optimizer));
  free_run(&nested.inner);
  free_run(&expected);
  free_run(&r);
}

/* THALWEG_NUM_THREADS is the default; what is no number of threads is not taken. */
static void environment(void) {
  static const struct {
    const char *text;
    int expected; /* 0: any honest number */
  } values[] = {{"3", 3}, {"1", 1}, {"0", 0}, {"-4", 0}, {"many", 0}, {"", 0}, {"99999999999999999999", 0}};
  for (size_t i = 0; i < sizeof values / sizeof *values; i++) {
    note("THALWEG_NUM_THREADS=%s", values[i].text);
    CHECK(setenv("THALWEG_NUM_THREADS", values[i].text, 1) == 0);
    FILE *child = popen("/proc/$PPID/exe --threads", "r");
    int threads = 0;
    CHECK(child != NULL && fscanf(child, "%d", &threads) == 1);
    CHECK(child != NULL && pclose(child) == 0);
    if (threads < 1 || threads > 100000 || (values[i].expected != 0 && threads != values[i].expected)) {
      check_fail(__FILE__, __LINE__, "\"%s\" gives %d threads", values[i].text, threads);
    }
  }
}

int main(int argc, char **argv) {
  if (argc > 1 && strcmp(argv[1], "--threads") == 0) {
    printf("%d\n", (int)tw_get_num_threads());
    return EXIT_SUCCESS;
  }
  RUN(one_large_matrix);
  RUN(many_small_matrices);
  RUN(one_tall_matrix);
  RUN(a_single_number);
  RUN(changing_horses);
  RUN(a_step_within_a_step);
  RUN(environment);
  FINISH();
}
