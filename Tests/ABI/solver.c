/* Solvers through the C interface: a run, one that is saved and copied at every request, many kinds of request, and
 * hostile calls. */
#include "check.h"

enum { N = 6 };

/* y <- A x, A symmetric, positive definite. */
static void multiply(const double *x, double *y) {
  for (int i = 0; i < N; i++) {
    y[i] = (3.0 + i) * x[i];
    if (i > 0) y[i] += x[i - 1];
    if (i + 1 < N) y[i] += x[i + 1];
  }
}

static const int64_t shape[1] = {N};

static tw_solver_request fresh(void) {
  tw_solver_request request;
  memset(&request, 0, sizeof request);
  request.struct_size = sizeof request;
  return request;
}

/* Answers a product, and goes on to the end. */
static void finish(tw_solver *solver, tw_solver_request *request) {
  tw_status status = TW_MORE;
  for (int k = 0; status == TW_MORE && k < 1000; k++) {
    multiply(request->given[0].data, request->wanted[0].data);
    status = tw_solver_next(solver, request);
  }
  STATUS(TW_OK, status);
}

static void right_side(double *b) {
  for (int i = 0; i < N; i++) b[i] = 1.0 + i % 3;
}

static void a_run(void) {
  double b[N], product[N], residual = 1;
  tw_solver *solver = NULL;
  tw_solver_request request = fresh();
  right_side(b);
  tw_tensor in = vector(b, TW_F64, shape), x;
  MUST(tw_solver_create("cg(rtol=1e-12)", &solver));
  MUST(tw_solver_begin(solver, &in, 1));
  memset(b, 0, sizeof b); /* inputs are copied */
  STATUS(TW_MORE, tw_solver_next(solver, &request));
  CHECK(strcmp(request.name, "product") == 0 && request.kind == 0 && request.tag == 1);
  CHECK(request.outcome == TW_SOLVER_RUNNING && request.outcome_name[0] == 0);
  CHECK(request.given_count == 1 && request.wanted_count == 1);
  CHECK(request.given[0].flags == TW_TENSOR_READ_ONLY && request.wanted[0].flags == 0);
  CHECK(request.given[0].ndim == 1 && request.given[0].shape[0] == N && request.given[0].dtype == TW_F64);
  finish(solver, &request);
  CHECK(request.kind == -1 && request.outcome == TW_SOLVER_CONVERGED && strcmp(request.outcome_name, "converged") == 0);
  CHECK(request.given == NULL && request.given_count == 0);
  STATUS(TW_OK, tw_solver_next(solver, &request)); /* again and again */
  MUST(tw_solver_tensor(solver, "x", &x));
  CHECK(x.flags == TW_TENSOR_READ_ONLY && x.ndim == 1);
  multiply(x.data, product);
  right_side(b);
  for (int i = 0; i < N; i++) NEAR(product[i], b[i], 1e-10);
  OK(tw_solver_number(solver, "residual", &residual));
  CHECK(residual < 1e-10);
  MUST(tw_solver_tensor(solver, "residual", &x));
  CHECK(x.ndim == 0 && x.dtype == TW_F64 && *(double *)x.data == residual);
  OK(tw_solver_destroy(solver));
}

/* Saved, copied and taken up at every request, in handles that never saw the inputs: the same bits. */
static void resumed(void) {
  double b[N], want[N];
  tw_solver *solver = NULL;
  tw_solver_request request = fresh();
  right_side(b);
  tw_tensor in = vector(b, TW_F64, shape), x;
  MUST(tw_solver_create("cg(rtol=1e-12)", &solver));
  MUST(tw_solver_begin(solver, &in, 1));
  STATUS(TW_MORE, tw_solver_next(solver, &request));
  finish(solver, &request);
  MUST(tw_solver_tensor(solver, "x", &x));
  memcpy(want, x.data, sizeof want);

  for (int copies = 0; copies < 2; copies++) {
    MUST(tw_solver_begin(solver, &in, 1));
    tw_status status = tw_solver_next(solver, &request);
    for (int k = 0; status == TW_MORE && k < 1000; k++) {
      tw_solver *other = NULL;
      if (copies) {
        MUST(tw_solver_copy(solver, &other));
      } else {
        size_t needed = 0;
        MUST(tw_solver_save(solver, NULL, 0, &needed));
        void *bytes = malloc(needed);
        STATUS(TW_ERROR_SPACE, tw_solver_save(solver, bytes, needed - 1, &needed));
        MUST(tw_solver_save(solver, bytes, needed, &needed));
        MUST(tw_solver_create("cg(rtol=1e-12)", &other));
        MUST(tw_solver_load(other, bytes, needed));
        free(bytes);
      }
      OK(tw_solver_destroy(solver));
      solver = other;
      request = fresh();
      STATUS(TW_MORE, tw_solver_waiting(solver, &request));
      CHECK(request.tag == 1);
      multiply(request.given[0].data, request.wanted[0].data);
      status = tw_solver_next(solver, &request);
    }
    STATUS(TW_OK, status);
    CHECK(request.outcome == TW_SOLVER_CONVERGED);
    MUST(tw_solver_tensor(solver, "x", &x));
    CHECK(memcmp(want, x.data, sizeof want) == 0);
  }
  OK(tw_solver_destroy(solver));
}

/* Numbers in and out, without a tensor. */
static void line_search(void) {
  double phi0 = 1, dphi0 = -2, alpha = 0;
  tw_solver *solver = NULL;
  tw_solver_request request = fresh();
  tw_tensor in[2];
  memset(in, 0, sizeof in);
  in[0].data = &phi0, in[0].dtype = TW_F64;
  in[1].data = &dphi0, in[1].dtype = TW_F64;
  MUST(tw_solver_create("strong_wolfe(c2=0.1)", &solver));
  MUST(tw_solver_begin(solver, in, 2));
  for (;;) {
    tw_status status = tw_solver_next(solver, &request);
    if (status != TW_MORE) {
      STATUS(TW_OK, status);
      break;
    }
    double a = *(double *)request.given[0].data, *out = request.wanted[0].data;
    CHECK(isnan(*out)); /* not filled yet */
    *out = strcmp(request.name, "value") == 0 ? (a - 1) * (a - 1) : 2 * (a - 1);
  }
  CHECK(request.outcome == TW_SOLVER_CONVERGED);
  OK(tw_solver_number(solver, "alpha", &alpha));
  NEAR(alpha, 1, 0.2);
  OK(tw_solver_destroy(solver));
}

static void introspection(void) {
  tw_method_info m;
  tw_request_info r;
  tw_input_info t;
  memset(&m, 0, sizeof m), memset(&r, 0, sizeof r), memset(&t, 0, sizeof t);
  m.struct_size = sizeof m, r.struct_size = sizeof r, t.struct_size = sizeof t;
  MUST(tw_method_find("pcg", &m));
  CHECK(strcmp(m.kind, "solver") == 0 && m.request_count == 2);
  OK(tw_method_request("pcg", 1, &r));
  CHECK(strcmp(r.name, "precondition") == 0 && r.given_count == 1 && r.wanted_count == 1 && !r.takes_nonfinite);
  OK(tw_method_request_tensor("pcg", 0, 1, &t));
  CHECK(strcmp(t.name, "product") == 0 && strcmp(t.shape, "(...,)") == 0);
  STATUS(TW_ERROR_ARGUMENT, tw_method_request("pcg", 2, &r));
  STATUS(TW_ERROR_ARGUMENT, tw_method_request("pcg", SIZE_MAX, &r));
  STATUS(TW_ERROR_ARGUMENT, tw_method_request("pcg", 0, NULL));
  STATUS(TW_ERROR_ARGUMENT, tw_method_request_tensor("pcg", 0, 2, &t));
  STATUS(TW_ERROR_ARGUMENT, tw_method_request_tensor("pcg", 0, SIZE_MAX, &t));
  STATUS(TW_ERROR_METHOD, tw_method_request("nothing", 0, &r));
  STATUS(TW_ERROR_ARGUMENT, tw_method_request(NULL, 0, &r));
  MUST(tw_method_find("adamw", &m));
  CHECK(m.request_count == 0);
}

static void hostile(void) {
  double b[N], number = 0;
  char bytes[64] = {0};
  size_t needed = 0;
  tw_solver *solver = NULL, *other = NULL;
  tw_solver_request request = fresh(), small = fresh();
  right_side(b);
  tw_tensor in[3] = {vector(b, TW_F64, shape), vector(b, TW_F64, shape), vector(b, TW_F64, shape)}, x;
  STATUS(TW_ERROR_ARGUMENT, tw_solver_create(NULL, &solver));
  STATUS(TW_ERROR_ARGUMENT, tw_solver_create("cg", NULL));
  STATUS(TW_ERROR_METHOD, tw_solver_create("adamw", &solver));
  STATUS(TW_ERROR_SYNTAX, tw_solver_create("cg | cg", &solver));
  STATUS(TW_ERROR_RANGE, tw_solver_create("cg(rtol=-1)", &solver));
  CHECK(solver == NULL);
  STATUS(TW_ERROR_HANDLE, tw_solver_next(NULL, &request));
  STATUS(TW_ERROR_HANDLE, tw_solver_destroy((tw_solver *)(void *)bytes));
  MUST(tw_solver_create("cg", &solver));
  STATUS(TW_ERROR_SEQUENCE, tw_solver_next(solver, &request));
  STATUS(TW_OK, tw_solver_waiting(solver, &request));
  STATUS(TW_ERROR_SEQUENCE, tw_solver_tensor(solver, "x", &x));
  STATUS(TW_ERROR_SEQUENCE, tw_solver_number(solver, "residual", &number));
  OK(tw_solver_copy(solver, &other));
  STATUS(TW_ERROR_SEQUENCE, tw_solver_next(other, &request));
  OK(tw_solver_save(solver, NULL, 0, &needed)); /* without a run: the sentence */
  OK(tw_solver_destroy(other));
  STATUS(TW_ERROR_ARGUMENT, tw_solver_copy(solver, NULL));
  STATUS(TW_ERROR_NEEDS, tw_solver_begin(solver, in, 0));
  STATUS(TW_ERROR_ARGUMENT, tw_solver_begin(solver, NULL, 1));
  STATUS(TW_ERROR_ARGUMENT, tw_solver_begin(solver, in, 3)); /* x is a result */
  STATUS(TW_ERROR_COUNT, tw_solver_begin(solver, in, SIZE_MAX));
  in[1].flags = TW_TENSOR_ABSENT;
  OK(tw_solver_begin(solver, in, 2));
  STATUS(TW_ERROR_ARGUMENT, tw_solver_next(solver, NULL));
  small.struct_size = 8;
  STATUS(TW_ERROR_ARGUMENT, tw_solver_next(solver, &small));
  small.struct_size = SIZE_MAX;
  STATUS(TW_ERROR_ARGUMENT, tw_solver_waiting(solver, &small));
  STATUS(TW_MORE, tw_solver_next(solver, &request));
  in[0].dtype = 77;
  STATUS(TW_ERROR_DTYPE, tw_solver_begin(solver, in, 1)); /* the run before is as it was */
  in[0].dtype = TW_F64;
  STATUS(TW_MORE, tw_solver_waiting(solver, &request));
  STATUS(TW_ERROR_NAME, tw_solver_tensor(solver, "nothing", &x));
  STATUS(TW_ERROR_NAME, tw_solver_number(solver, "x", &number));
  STATUS(TW_ERROR_ARGUMENT, tw_solver_tensor(solver, NULL, &x));
  STATUS(TW_ERROR_ARGUMENT, tw_solver_tensor(solver, "x", NULL));
  STATUS(TW_ERROR_ARGUMENT, tw_solver_number(solver, "residual", NULL));
  STATUS(TW_ERROR_ARGUMENT, tw_solver_tensor(solver, "\xff", &x));
  OK(tw_solver_tensor(solver, "product", &x)); /* what the request wants */
  CHECK(x.flags == 0 && x.data == request.wanted[0].data);
  OK(tw_solver_tensor(solver, "b", &x)); /* the copy of an input */
  CHECK(x.flags == TW_TENSOR_READ_ONLY && x.data != (void *)b && ((double *)x.data)[1] == b[1]);
  STATUS(TW_ERROR_ARGUMENT, tw_solver_save(solver, NULL, 0, NULL));
  STATUS(TW_ERROR_ARGUMENT, tw_solver_save(solver, NULL, 8, &needed));
  STATUS(TW_ERROR_FORMAT, tw_solver_load(solver, bytes, sizeof bytes));
  STATUS(TW_ERROR_ARGUMENT, tw_solver_load(solver, NULL, 8));
  STATUS(TW_ERROR_FORMAT, tw_solver_load(solver, bytes, SIZE_MAX));
  /* a checkpoint of an optimizer is no run */
  tw_optimizer *optimizer = NULL;
  MUST(tw_optimizer_create("sgd(lr=0.1)", NULL, &optimizer));
  MUST(tw_optimizer_save(optimizer, NULL, 0, &needed));
  char *file = malloc(needed);
  MUST(tw_optimizer_save(optimizer, file, needed, &needed));
  STATUS(TW_ERROR_MISMATCH, tw_solver_load(solver, file, needed));
  free(file);
  STATUS(TW_ERROR_HANDLE, tw_solver_next((tw_solver *)(void *)optimizer, &request));
  OK(tw_optimizer_destroy(optimizer));
  /* an answer of NaN ends the run, and the result is finite */
  STATUS(TW_MORE, tw_solver_waiting(solver, &request));
  ((double *)request.wanted[0].data)[2] = NAN;
  STATUS(TW_OK, tw_solver_next(solver, &request));
  CHECK(request.outcome == TW_SOLVER_NONFINITE);
  OK(tw_solver_tensor(solver, "x", &x));
  CHECK(isfinite(((double *)x.data)[2]));
  OK(tw_solver_destroy(solver));
  STATUS(TW_ERROR_HANDLE, tw_solver_next(solver, &request));
  /* an error in a run: weights that cannot be coupled */
  int64_t matrix[2] = {N, N};
  double cost[N * N] = {0}, heavier[N];
  for (int i = 0; i < N; i++) heavier[i] = 2 * b[i];
  in[0].data = cost, in[0].ndim = 2, in[0].shape = matrix;
  in[1] = vector(b, TW_F64, shape);
  in[2] = vector(heavier, TW_F64, shape);
  MUST(tw_solver_create("sinkhorn", &solver));
  MUST(tw_solver_begin(solver, in, 3));
  STATUS(TW_ERROR_RANGE, tw_solver_next(solver, &request));
  STATUS(TW_ERROR_SEQUENCE, tw_solver_next(solver, &request));
  STATUS(TW_ERROR_SEQUENCE, tw_solver_save(solver, NULL, 0, &needed));
  in[2] = vector(b, TW_F64, shape);
  MUST(tw_solver_begin(solver, in, 3));
  STATUS(TW_OK, tw_solver_next(solver, &request));
  CHECK(request.outcome == TW_SOLVER_CONVERGED);
  OK(tw_solver_destroy(solver));
}

int main(void) {
  RUN(a_run);
  RUN(resumed);
  RUN(line_search);
  RUN(introspection);
  RUN(hostile);
  FINISH();
}
