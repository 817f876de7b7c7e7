/* Stands for another BLAS and LAPACK of the process, as one with 64-bit integers: nobody who is not linked to it may call it. */
#include <stdio.h>
#include <stdlib.h>

#define TRAP(name) \
  void name(void); \
  void name(void) { \
    fputs("another BLAS was called: " #name "\n", stderr); \
    abort(); \
  }

TRAP(cblas_sgemm) TRAP(cblas_dgemm) TRAP(cblas_ssyrk) TRAP(cblas_dsyrk)
TRAP(sgemm_) TRAP(dgemm_) TRAP(sgemv_) TRAP(dgemv_) TRAP(dtrmm_) TRAP(dtrmv_) TRAP(dtrsm_) TRAP(dsyrk_) TRAP(dger_) TRAP(dscal_)
TRAP(dcopy_) TRAP(dnrm2_) TRAP(dswap_) TRAP(drot_) TRAP(daxpy_) TRAP(ddot_) TRAP(idamax_) TRAP(lsame_) TRAP(xerbla_) TRAP(ilaenv_)
TRAP(sgesdd_) TRAP(dgesdd_) TRAP(dgeqrf_) TRAP(dorgqr_) TRAP(dgesv_) TRAP(dgetrf_) TRAP(dgetrs_) TRAP(dpotrf_) TRAP(dpotrs_)
TRAP(dsyevd_) TRAP(dbdsdc_) TRAP(dgebrd_) TRAP(dormbr_) TRAP(dlaset_) TRAP(dlacpy_) TRAP(dlarfg_) TRAP(dlarf_) TRAP(dlarft_)
TRAP(openblas_set_num_threads) TRAP(openblas_get_num_threads) TRAP(openblas_get_config) TRAP(exec_blas) TRAP(blas_memory_alloc)
