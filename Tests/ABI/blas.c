/* The host's linear algebra and the library's do not meet: another BLAS in the global scope, and the host's own OpenBLAS. */
#include "check.h"

#include <dlfcn.h>

#include "runs.h"

static const char *const sentences[] = {"muon(lr=0.02)", "sgd(lr=0.1) | prox(nuclear_norm(0.01))", "sgd(lr=0.1) | project(stiefel)",
                                        "sgd(lr=0.1) | manifold(stiefel)"};
enum { SENTENCES = sizeof sentences / sizeof *sentences };

/* Large enough for products that OpenBLAS would cut up for its threads. */
static void run_matrices(const char *sentence, float *out) {
  run r = new_run(1, 300, 200);
  note("%s", sentence);
  OK(run_whole(&r, sentence, 2));
  memcpy(out, r.w, run_bytes(&r));
  free_run(&r);
}
static float results[2][SENTENCES][300 * 200];
static void run_all(int which) {
  for (int i = 0; i < SENTENCES; i++) run_matrices(sentences[i], results[which][i]);
}

static int matrices_work(void) {
  tw_optimizer *o = NULL;
  float x[4] = {1, 2, 3, 4};
  int64_t shape[2] = {2, 2};
  tw_tensor w = view(x, TW_F32, 2, shape, NULL);
  if (tw_optimizer_create("muon", NULL, &o) != TW_OK) return 0;
  tw_status status = tw_optimizer_add_parameters(o, &w, 1, NULL, NULL);
  tw_optimizer_destroy(o);
  return status == TW_OK;
}

static const char *another;

static void another_in_the_global_scope(void) {
  void *h = dlopen(another, RTLD_NOW | RTLD_GLOBAL);
  CHECK(h != NULL);
  if (!matrices_work()) {
    check_skipped = 1;
    return;
  }
  run_all(0);
}

/* The host loads OpenBLAS, before or after this library does: its threads are as they were, and nobody's bits depend on them. */
static void hosts_own(int first) {
  if (!first && !matrices_work()) {
    check_skipped = 1;
    return;
  }
  if (!first) run_all(0);
  void *h = dlopen("libopenblas.so.0", RTLD_NOW | RTLD_GLOBAL);
  void (*set)(int) = NULL;
  int (*get)(void) = NULL;
  if (h != NULL) {
    *(void **)&set = dlsym(h, "openblas_set_num_threads");
    *(void **)&get = dlsym(h, "openblas_get_num_threads");
  }
  if (set == NULL || get == NULL || (first && !matrices_work())) {
    check_skipped = 1;
    return;
  }
  for (int threads = 1; threads <= 3; threads++) {
    set(threads);
    int before = get();
    run_all(threads == 1 && first ? 0 : 1);
    CHECK(get() == before);
    if (threads == 1 && first) continue;
    for (int i = 0; i < SENTENCES; i++) {
      if (memcmp(results[0][i], results[1][i], sizeof results[0][i]) != 0)
        check_fail(__FILE__, __LINE__, "%s: other bits with %d threads of the host", sentences[i], threads);
    }
  }
}
static void hosts_own_first(void) { hosts_own(1); }
static void hosts_own_later(void) { hosts_own(0); }

int main(int argc, char **argv) {
  another = argc > 1 ? argv[1] : "";
  RUN(another_in_the_global_scope);
  RUN(hosts_own_first);
  RUN(hosts_own_later);
  FINISH();
}
