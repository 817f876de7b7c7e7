/* A process whose malloc gives nothing any more: calls end with TW_ERROR_MEMORY or succeed, and those that fail change nothing.
 *
 * malloc and its relatives stand here before the C library's, so that the library's calls come here. */
#include "check.h"

#include <errno.h>

extern void *__libc_malloc(size_t), *__libc_calloc(size_t, size_t), *__libc_realloc(void *, size_t), *__libc_memalign(size_t, size_t);

static long fail_from = -1, fail_count, calls; /* which calls fail: -1 none */

static int fails(void) {
  if (fail_from < 0) return 0;
  long k = calls++;
  if (k < fail_from || k >= fail_from + fail_count) return 0;
  errno = ENOMEM;
  return 1;
}
void *malloc(size_t n) { return fails() ? NULL : __libc_malloc(n); }
void *calloc(size_t a, size_t b) { return fails() ? NULL : __libc_calloc(a, b); }
void *realloc(void *p, size_t n) { return fails() ? NULL : __libc_realloc(p, n); }
int posix_memalign(void **p, size_t a, size_t n) {
  *p = fails() ? NULL : __libc_memalign(a, n);
  return *p != NULL ? 0 : ENOMEM;
}

static const char *const sentences[] = {"adamw(lr=0.01)", "clip_global_norm(1.0) | adamw(lr=cosine(lr=0.1, total=10)) | ema(0.9)",
                                        "sam(0.05) | sgd(lr=0.1, momentum=0.9)", "adafactor", "sgd(lr=0.1) | prox(group_lasso(0.01))"};
enum { SENTENCES = sizeof sentences / sizeof *sentences, COUNT = 24 };

static float w[COUNT], g[COUNT], before[COUNT];

static tw_status step(tw_optimizer *o) {
  tw_request request;
  memset(&request, 0, sizeof request);
  request.struct_size = sizeof request;
  tw_status status;
  while ((status = tw_optimizer_next(o, &request)) == TW_MORE) request.loss = 1;
  return status;
}

/* What a host does; every call may fail. */
static void use(const char *sentence) {
  tw_optimizer *o = NULL;
  int64_t shape[2] = {6, 4};
  tw_tensor p = view(w, TW_F32, 2, shape, NULL), d = view(g, TW_F32, 2, shape, NULL);
  if (tw_optimizer_create(sentence, NULL, &o) != TW_OK) return;
  if (tw_optimizer_add_parameters(o, &p, 1, NULL, "group") == TW_OK && tw_optimizer_bind_gradients(o, &d, 1) == TW_OK) {
    for (int k = 0; k < 3; k++) {
      memcpy(before, w, sizeof w);
      if (step(o) < 0) CHECK(memcmp(before, w, sizeof w) == 0);
    }
    static char buffer[1 << 16];
    size_t size = sizeof buffer;
    memcpy(before, w, sizeof w);
    if (tw_optimizer_save(o, buffer, sizeof buffer, &size) == TW_OK) tw_optimizer_load(o, buffer, size);
    if (tw_optimizer_set_mode(o, TW_MODE_EVAL) == TW_OK) OK(tw_optimizer_set_mode(o, TW_MODE_TRAIN));
    CHECK(memcmp(before, w, sizeof w) == 0);
    tw_optimizer_set_text(o, NULL, "lr", "warmup_cosine(peak=0.1, warmup=3, total=10)");
  }
  OK(tw_optimizer_destroy(o));
}

static void exhaust(long count) {
  for (int i = 0; i < SENTENCES; i++) {
    fail_from = -1;
    use(sentences[i]); /* what is made once */
    for (long from = 0;; from += 1 + from / 40) {
      for (int k = 0; k < COUNT; k++) w[k] = (float)k, g[k] = 1;
      note("%s: malloc fails from call %ld on, %ld times", sentences[i], from, count);
      fail_from = from, fail_count = count, calls = 0;
      use(sentences[i]);
      fail_from = -1;
      if (calls <= from) break; /* nothing failed any more */
    }
  }
}
static void one_allocation_fails(void) { exhaust(1); }
static void all_fail_from_there_on(void) { exhaust(INT32_MAX); }

int main(void) {
  RUN(one_allocation_fails);
  RUN(all_fail_from_there_on);
  FINISH();
}
