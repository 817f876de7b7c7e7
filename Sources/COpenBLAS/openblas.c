#define _GNU_SOURCE
#include "COpenBLAS.h"

#include <cblas.h>
#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

#define EACH(X)                                                                                                            \
  X(cblas_sgemm) X(cblas_dgemm) X(cblas_ssyrk) X(cblas_dsyrk) X(openblas_set_num_threads)

#define DECLARE(name) static __typeof__(&name) p_##name;
EACH(DECLARE)

typedef void (*fortran)(void);
static fortran p_sgesdd, p_dgesdd, p_dgeqrf, p_dorgqr, p_dgesv, p_dpotrf, p_dpotrs, p_dsyevd;

static pthread_once_t once = PTHREAD_ONCE_INIT;
static bool loaded;
static char description[256] = "not loaded";

static void load(void) {
#if defined(__x86_64__)
  /* OpenBLAS reads this once, while it is loaded. What the user has set stays. */
  __builtin_cpu_init();
  bool chosen = false;
  if (!getenv("OPENBLAS_CORETYPE") && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq")) {
    chosen = setenv("OPENBLAS_CORETYPE", "SKYLAKEX", 0) == 0;
  }
#endif
  void *h = dlopen("libopenblas.so.0", RTLD_NOW | RTLD_LOCAL);
#if defined(__x86_64__)
  if (chosen) unsetenv("OPENBLAS_CORETYPE");
#endif
  if (!h) {
    snprintf(description, sizeof description, "OpenBLAS was not found (libopenblas.so.0; Debian's package libopenblas0)");
    return;
  }
  bool ok = true;
#define FIND(name) ok = (p_##name = (__typeof__(&name))dlsym(h, #name)) && ok;
  EACH(FIND)
#define LAPACK(name) ok = (p_##name = (fortran)dlsym(h, #name "_")) && ok;
  LAPACK(sgesdd) LAPACK(dgesdd) LAPACK(dgeqrf) LAPACK(dorgqr) LAPACK(dgesv) LAPACK(dpotrf) LAPACK(dpotrs) LAPACK(dsyevd)
  if (!ok) {
    snprintf(description, sizeof description, "libopenblas.so.0 lacks CBLAS or LAPACK functions");
    return;
  }
  char *(*config)(void) = (char *(*)(void))dlsym(h, "openblas_get_config");
  snprintf(description, sizeof description, "%s", config ? config() : "OpenBLAS");
  /* Products are cut up by the caller; one thread each. */
  p_openblas_set_num_threads(1);
  loaded = true;
}

bool twb_available(void) {
  pthread_once(&once, load);
  return loaded;
}
const char *twb_description(void) {
  pthread_once(&once, load);
  return description;
}

static enum CBLAS_TRANSPOSE t(bool x) { return x ? CblasTrans : CblasNoTrans; }
void twb_sgemm(bool ta, bool tb, int m, int n, int k, float alpha, const float *a, int lda, const float *b, int ldb, float beta,
               float *c, int ldc) {
  p_cblas_sgemm(CblasRowMajor, t(ta), t(tb), m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
}
void twb_dgemm(bool ta, bool tb, int m, int n, int k, double alpha, const double *a, int lda, const double *b, int ldb,
               double beta, double *c, int ldc) {
  p_cblas_dgemm(CblasRowMajor, t(ta), t(tb), m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
}
void twb_ssyrk(bool trans, int n, int k, float alpha, const float *a, int lda, float beta, float *c, int ldc) {
  p_cblas_ssyrk(CblasRowMajor, CblasUpper, t(trans), n, k, alpha, a, lda, beta, c, ldc);
}
void twb_dsyrk(bool trans, int n, int k, double alpha, const double *a, int lda, double beta, double *c, int ldc) {
  p_cblas_dsyrk(CblasRowMajor, CblasUpper, t(trans), n, k, alpha, a, lda, beta, c, ldc);
}

int twb_sgesdd(int m, int n, float *a, int lda, float *s, float *u, int ldu, float *vt, int ldvt, float *work, int lwork,
               int *iwork) {
  int info = 0;
  ((void (*)(const char *, int *, int *, float *, int *, float *, float *, int *, float *, int *, float *, int *, int *, int *,
             size_t))p_sgesdd)("S", &m, &n, a, &lda, s, u, &ldu, vt, &ldvt, work, &lwork, iwork, &info, 1);
  return info;
}
int twb_dgesdd(int m, int n, double *a, int lda, double *s, double *u, int ldu, double *vt, int ldvt, double *work, int lwork,
               int *iwork) {
  int info = 0;
  ((void (*)(const char *, int *, int *, double *, int *, double *, double *, int *, double *, int *, double *, int *, int *,
             int *, size_t))p_dgesdd)("S", &m, &n, a, &lda, s, u, &ldu, vt, &ldvt, work, &lwork, iwork, &info, 1);
  return info;
}
int twb_dgeqrf(int m, int n, double *a, int lda, double *tau, double *work, int lwork) {
  int info = 0;
  ((void (*)(int *, int *, double *, int *, double *, double *, int *, int *))p_dgeqrf)(&m, &n, a, &lda, tau, work, &lwork,
                                                                                          &info);
  return info;
}
int twb_dorgqr(int m, int n, int k, double *a, int lda, const double *tau, double *work, int lwork) {
  int info = 0;
  ((void (*)(int *, int *, int *, double *, int *, const double *, double *, int *, int *))p_dorgqr)(&m, &n, &k, a, &lda, tau,
                                                                                                       work, &lwork, &info);
  return info;
}
int twb_dgesv(int n, int nrhs, double *a, int lda, int *pivot, double *b, int ldb) {
  int info = 0;
  ((void (*)(int *, int *, double *, int *, int *, double *, int *, int *))p_dgesv)(&n, &nrhs, a, &lda, pivot, b, &ldb, &info);
  return info;
}
int twb_dpotrf(int n, double *a, int lda) {
  int info = 0;
  ((void (*)(const char *, int *, double *, int *, int *, size_t))p_dpotrf)("L", &n, a, &lda, &info, 1);
  return info;
}
int twb_dpotrs(int n, int nrhs, const double *a, int lda, double *b, int ldb) {
  int info = 0;
  ((void (*)(const char *, int *, int *, const double *, int *, double *, int *, int *, size_t))p_dpotrs)(
      "L", &n, &nrhs, a, &lda, b, &ldb, &info, 1);
  return info;
}
int twb_dsyevd(int n, double *a, int lda, double *w, double *work, int lwork, int *iwork, int liwork) {
  int info = 0;
  ((void (*)(const char *, const char *, int *, double *, int *, double *, double *, int *, int *, int *, int *, size_t,
             size_t))p_dsyevd)("V", "U", &n, a, &lda, w, work, &lwork, iwork, &liwork, &info, 1, 1);
  return info;
}
