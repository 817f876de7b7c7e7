/* Gradients of several tasks that are there already, combined without an optimizer around them, in C.
 *
 * An aggregator in front of plain SGD with a rate of 1, from 0: the step is the combined gradient with its sign turned.
 * The rows are bound where they lie.  Three tasks disagree: their mean goes against one of them, what UPGrad and MGDA make
 * of them goes against none.
 *
 *   cc aggregate.c $(pkg-config --cflags --libs thalweg) -o aggregate && ./aggregate
 */
#include <stdio.h>
#include <stdlib.h>
#include <thalweg/thalweg.h>

enum { TASKS = 3, N = 4 };

/* An aggregator for matrices of `n` columns; what it remembers of earlier calls (gradvac, nash_mtl) stays in it. */
typedef struct {
  tw_optimizer *optimizer;
  int64_t n;
  double *at; /* what plain SGD moves */
} aggregator;

/* The sentence says the tasks: "upgrad(tasks=3)". */
static tw_status aggregator_create(aggregator *a, const char *sentence, int64_t n) {
  char whole[256];
  int length = snprintf(whole, sizeof whole, "%s | sgd(lr=1)", sentence);
  a->optimizer = NULL;
  a->n = n;
  a->at = calloc((size_t)n, sizeof(double));
  if (a->at == NULL) return TW_ERROR_MEMORY;
  if (length < 0 || (size_t)length >= sizeof whole) return TW_ERROR_SYNTAX;
  tw_status status = tw_optimizer_create(whole, NULL, &a->optimizer);
  tw_tensor at = tw_tensor_dense_f64(a->at, 1, &a->n);
  if (status >= 0) status = tw_optimizer_add_parameters(a->optimizer, &at, 1, NULL, NULL);
  return status;
}

static void aggregator_destroy(aggregator *a) {
  if (a->optimizer != NULL) tw_optimizer_destroy(a->optimizer);
  free(a->at);
}

/* combined <- what the rows of `jacobian` (tasks, n) come to.  Nothing is changed after an error. */
static tw_status aggregate(aggregator *a, double *jacobian, int64_t tasks, double *combined) {
  tw_request request = {.struct_size = sizeof request};
  tw_status status;
  for (int64_t i = 0; i < a->n; i++) a->at[i] = 0;
  while ((status = tw_optimizer_next(a->optimizer, &request)) == TW_MORE) {
    tw_tensor row = tw_tensor_dense_f64(jacobian + request.index * a->n, 1, &a->n);
    tw_status bound = request.count == tasks ? tw_optimizer_bind_gradients(a->optimizer, &row, 1) : TW_ERROR_COUNT;
    if (bound < 0) {
      tw_optimizer_cancel(a->optimizer);
      return bound;
    }
    request.gradients_stay = 1; /* nobody writes to the jacobian meanwhile: it is not copied */
  }
  if (status == TW_OK) {
    for (int64_t i = 0; i < a->n; i++) combined[i] = 0 - a->at[i];
  }
  return status;
}

int main(void) {
  double jacobian[TASKS * N] = {1, -2, 0.5, 3, -2, 1, 1, -1, 0.5, 0.5, -3, 1};
  static const char *const sentences[] = {"trimmed_mean(tasks=3, trim=0)", "upgrad(tasks=3)", "mgda(tasks=3)"};
  int bad = 0;
  for (int s = 0; s < 3; s++) {
    aggregator a;
    double combined[N], least = 0;
    tw_status status = aggregator_create(&a, sentences[s], N);
    if (status >= 0) status = aggregate(&a, jacobian, TASKS, combined);
    if (status < 0) {
      fprintf(stderr, "%s: %s\n", tw_status_name(status), tw_last_error());
      return EXIT_FAILURE;
    }
    printf("%-30s", sentences[s]);
    for (int k = 0; k < TASKS; k++) {
      double along = 0;
      for (int i = 0; i < N; i++) along += jacobian[k * N + i] * combined[i];
      printf("   task %d: %7.3f", k, along);
      if (along < least) least = along;
    }
    printf("%s\n", least < -1e-9 ? "   against a task" : "");
    bad += (least < -1e-9) != (s == 0);
    bad += aggregate(&a, jacobian, TASKS - 1, combined) != TW_ERROR_COUNT;
    aggregator_destroy(&a);
  }
  return bad == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
