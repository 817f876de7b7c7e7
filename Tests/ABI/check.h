/* check.h: the little that the C tests share.
 *
 * A test is a function without arguments.  RUN runs it in a process of its own, with a deadline, so that a
 * crash or a hang is a failed test and not the end of the program.  One line a test: "ok", "FAIL" or "skip",
 * and its name.
 *
 *   THALWEG_TEST_DEADLINE  seconds a test may take (60)
 *   THALWEG_TEST_NO_FORK   run the tests in this process, for debuggers
 */
#ifndef CHECK_H
#define CHECK_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif

#include <math.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <thalweg/thalweg.h>
#include <unistd.h>

#if defined(__GNUC__)
#define CHECK_PRINTF(text, first) __attribute__((format(printf, text, first), unused))
#define CHECK_UNUSED __attribute__((unused))
#else
#define CHECK_PRINTF(text, first)
#define CHECK_UNUSED
#endif

/* ---- failures ----------------------------------------------------------------------------------------- */

static int check_failures;  /* of the running test */
static int check_skipped;   /* the running test cannot be run here */
static int check_bad_tests; /* of the program */
static char *check_note;    /* shared with the test's process: what it is doing, shown when it crashes */

enum { CHECK_NOTE_SIZE = 1 << 16, CHECK_EXIT_SKIPPED = 101, CHECK_SHOWN_FAILURES = 20 };

/* Counts a failure and shows the first ones. */
CHECK_PRINTF(3, 4)
static void check_fail(const char *file, int line, const char *format, ...) {
  check_failures++;
  if (check_failures > CHECK_SHOWN_FAILURES) return;
  printf("       %s:%d: ", file, line);
  va_list arguments;
  va_start(arguments, format);
  vprintf(format, arguments);
  va_end(arguments);
  printf("\n");
  fflush(stdout);
}

/* Remembers what the test is doing. */
CHECK_PRINTF(1, 2)
static void note(const char *format, ...) {
  if (check_note == NULL) return;
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(check_note, CHECK_NOTE_SIZE, format, arguments);
  va_end(arguments);
}

#define CHECK(condition) \
  do { \
    if (!(condition)) check_fail(__FILE__, __LINE__, "%s", #condition); \
  } while (0)

/* The call must return exactly `expected`. */
#define STATUS(expected, call) \
  do { \
    tw_status check_status = (call); \
    if (check_status != (expected)) { \
      check_fail(__FILE__, __LINE__, "%s\n         gave %s, not %s%s%s", #call, \
                 tw_status_name(check_status), tw_status_name(expected), check_status < 0 ? ": " : "", \
                 check_status < 0 ? tw_last_error() : ""); \
    } \
  } while (0)

#define OK(call) STATUS(TW_OK, call)

/* The same, and the test ends when it fails. */
#define MUST(call) \
  do { \
    int check_before = check_failures; \
    OK(call); \
    if (check_failures > check_before) return; \
  } while (0)

/* Two numbers must be equal, or within `tolerance`. */
#define EQUAL(a, b) NEAR(a, b, 0)
#define NEAR(a, b, tolerance) \
  do { \
    double check_a = (a), check_b = (b); \
    if (!(fabs(check_a - check_b) <= (tolerance))) { \
      check_fail(__FILE__, __LINE__, "%s is %.17g, not %.17g", #a, check_a, check_b); \
    } \
  } while (0)

/* ---- running ------------------------------------------------------------------------------------------ */

typedef void (*check_test)(void);

static int check_deadline(void) {
  const char *text = getenv("THALWEG_TEST_DEADLINE");
  int seconds = text != NULL ? atoi(text) : 0;
  return seconds > 0 ? seconds : 60;
}

static void check_run(const char *file, const char *name, int deadline, check_test test) {
  const char *slash = strrchr(file, '/');
  const char *base = slash != NULL ? slash + 1 : file;
  int length = (int)strcspn(base, ".");
  const char *verdict = "ok  ";
  char reason[96] = "";
  fflush(stdout);
  if (getenv("THALWEG_TEST_NO_FORK") != NULL) {
    check_failures = check_skipped = 0;
    test();
    if (check_failures > 0) verdict = "FAIL";
    if (check_skipped) verdict = "skip";
  } else {
    if (check_note == NULL) {
      void *shared = mmap(NULL, CHECK_NOTE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
      if (shared != MAP_FAILED) check_note = shared;
    }
    if (check_note != NULL) check_note[0] = 0;
    pid_t child = fork();
    if (child == 0) {
      alarm((unsigned)deadline);
      test();
      fflush(stdout);
      exit(check_failures > 0 ? (check_failures < 100 ? check_failures : 100)
           : check_skipped    ? CHECK_EXIT_SKIPPED
                              : 0);
    }
    int status = 0;
    if (child < 0 || waitpid(child, &status, 0) != child) {
      verdict = "FAIL";
      snprintf(reason, sizeof reason, " (no process)");
    } else if (WIFSIGNALED(status)) {
      verdict = "FAIL";
      snprintf(reason, sizeof reason, " (signal %d%s)", WTERMSIG(status),
               WTERMSIG(status) == SIGALRM ? ": the deadline has passed" : "");
      if (check_note != NULL && check_note[0]) printf("       during: %.2000s\n", check_note);
    } else if (WEXITSTATUS(status) == CHECK_EXIT_SKIPPED) {
      verdict = "skip";
    } else if (WEXITSTATUS(status) != 0) {
      verdict = "FAIL";
      snprintf(reason, sizeof reason, " (%d checks)", WEXITSTATUS(status));
    }
  }
  if (strcmp(verdict, "FAIL") == 0) check_bad_tests++;
  printf("%s %.*s.%s%s\n", verdict, length, base, name, reason);
  fflush(stdout);
}

#define RUN(test) check_run(__FILE__, #test, check_deadline(), test)
#define FINISH() return check_bad_tests > 0 ? EXIT_FAILURE : EXIT_SUCCESS

/* Leaves the test, without a verdict, when this build of the library lacks a method. */
#define NEED(method) \
  do { \
    if (!have(method)) { \
      check_skipped = 1; \
      return; \
    } \
  } while (0)

CHECK_UNUSED static int have(const char *method) {
  tw_method_info info;
  memset(&info, 0, sizeof info);
  info.struct_size = sizeof info;
  return tw_method_find(method, &info) == TW_OK;
}

/* ---- tensors ------------------------------------------------------------------------------------------ */

/* What tw_tensor_strided makes, which the older headers (old_host.c) do not have. */
CHECK_UNUSED static tw_tensor view(void *data, int32_t dtype, int32_t ndim, const int64_t *shape,
                                   const int64_t *strides) {
  tw_tensor t;
  memset(&t, 0, sizeof t);
  t.data = data;
  t.shape = shape;
  t.strides = strides;
  t.ndim = ndim;
  t.dtype = dtype;
  return t;
}

/* One dimension; `length` must outlive the view. */
CHECK_UNUSED static tw_tensor vector(void *data, int32_t dtype, const int64_t *length) {
  return view(data, dtype, 1, length, NULL);
}

/* ---- numbers ------------------------------------------------------------------------------------------ */

/* SplitMix64: a fixed stream of numbers. */
CHECK_UNUSED static uint64_t random_bits(uint64_t *seed) {
  uint64_t z = (*seed += UINT64_C(0x9E3779B97F4A7C15));
  z = (z ^ (z >> 30)) * UINT64_C(0xBF58476D1CE4E5B9);
  z = (z ^ (z >> 27)) * UINT64_C(0x94D049BB133111EB);
  return z ^ (z >> 31);
}

/* Uniform in [-1, 1). */
CHECK_UNUSED static double random_number(uint64_t *seed) {
  return (double)(int64_t)(random_bits(seed) >> 11) / 4503599627370496.0 - 1.0;
}

/* Uniform below `count`. */
CHECK_UNUSED static size_t random_index(uint64_t *seed, size_t count) {
  return count == 0 ? 0 : (size_t)(random_bits(seed) % count);
}

CHECK_UNUSED static void fill_f32(float *data, size_t count, uint64_t seed) {
  for (size_t i = 0; i < count; i++) data[i] = (float)random_number(&seed);
}

CHECK_UNUSED static void fill_f64(double *data, size_t count, uint64_t seed) {
  for (size_t i = 0; i < count; i++) data[i] = random_number(&seed);
}

/* ---- checkpoints -------------------------------------------------------------------------------------- */

typedef struct {
  void *data;
  size_t size;
} checkpoint;

/* The optimizer's state; {NULL, 0} when it cannot be saved. */
CHECK_UNUSED static checkpoint save(tw_optimizer *optimizer) {
  checkpoint saved = {NULL, 0};
  size_t size = 0;
  if (tw_optimizer_save(optimizer, NULL, 0, &size) != TW_OK) return saved;
  void *data = malloc(size > 0 ? size : 1);
  if (tw_optimizer_save(optimizer, data, size, &size) != TW_OK) {
    free(data);
    return saved;
  }
  saved.data = data;
  saved.size = size;
  return saved;
}

CHECK_UNUSED static int same_checkpoint(checkpoint a, checkpoint b) {
  return a.data != NULL && b.data != NULL && a.size == b.size && memcmp(a.data, b.data, a.size) == 0;
}

#endif /* CHECK_H */
