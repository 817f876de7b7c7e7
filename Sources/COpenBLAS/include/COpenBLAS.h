/* OpenBLAS, loaded on first use.
 *
 * It is not linked: a program that never runs a matrix method then never starts OpenBLAS's threads, an installation without it
 * keeps everything else, and the kernel set can be chosen before the library looks at the processor (releases that do not know
 * a processor fall back to AVX2 kernels at half the speed).
 *
 * It is a copy for this library alone: neither another OpenBLAS of the process nor what the host sets in its own reaches it, and the
 * host's keeps its number of threads.
 *
 * Where it comes from: libopenblas.so.0, as the loader finds it.  Where there is none, the file of the OpenBLAS that this process has
 * loaded already from SciPy's or NumPy's wheel, under the names and with the integers that it has there.
 */
#ifndef COPENBLAS_H
#define COPENBLAS_H

#include <stdbool.h>

/* True once OpenBLAS is loaded.  Thread-safe. */
bool twb_available(void);
/* The library that was found with its kernels, or why none was; before the first use that it is not loaded. */
const char *twb_description(void);

/* Row-major, as CBLAS. */
void twb_sgemm(bool ta, bool tb, int m, int n, int k, float alpha, const float *a, int lda, const float *b, int ldb, float beta,
               float *c, int ldc);
void twb_dgemm(bool ta, bool tb, int m, int n, int k, double alpha, const double *a, int lda, const double *b, int ldb,
               double beta, double *c, int ldc);
/* c := alpha a a^T + beta c (a^T a when trans), upper triangle; c is n x n, a is n x k (k x n). */
void twb_ssyrk(bool trans, int n, int k, float alpha, const float *a, int lda, float beta, float *c, int ldc);
void twb_dsyrk(bool trans, int n, int k, double alpha, const double *a, int lda, double beta, double *c, int ldc);
/* b := op(a) b (left) or b op(a), or with the inverse of op(a); a is the upper triangle of a square, b is m x n. */
void twb_striangle(bool solves, bool left, bool trans, int m, int n, const float *a, int lda, float *b, int ldb);
void twb_dtriangle(bool solves, bool left, bool trans, int m, int n, const double *a, int lda, double *b, int ldb);

/* LAPACK, column-major as Fortran has it; the return value is INFO. */
int twb_sgesdd(int m, int n, float *a, int lda, float *s, float *u, int ldu, float *vt, int ldvt, float *work, int lwork,
               int *iwork);
int twb_dgesdd(int m, int n, double *a, int lda, double *s, double *u, int ldu, double *vt, int ldvt, double *work, int lwork,
               int *iwork);
int twb_dgeqrf(int m, int n, double *a, int lda, double *tau, double *work, int lwork);
int twb_dorgqr(int m, int n, int k, double *a, int lda, const double *tau, double *work, int lwork);
int twb_dgesv(int n, int nrhs, double *a, int lda, int *pivot, double *b, int ldb);
int twb_dpotrf(int n, double *a, int lda);
int twb_dpotri(int n, double *a, int lda);
int twb_dpotrs(int n, int nrhs, const double *a, int lda, double *b, int ldb);
int twb_dsyevd(int n, double *a, int lda, double *w, double *work, int lwork, int *iwork, int liwork);

#endif
