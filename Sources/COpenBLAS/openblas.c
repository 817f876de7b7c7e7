#define _GNU_SOURCE
#include "COpenBLAS.h"

#include <cblas.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <link.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <unistd.h>

/* Integers are passed with 64 bits, which suits both kinds of library: one with 32 reads the lower half, of a register, of a place on
 * the stack and, these machines being little-endian, of memory. */
typedef int64_t wide;

#define EACH(X)                                                                                                            \
  X(cblas_sgemm) X(cblas_dgemm) X(cblas_ssyrk) X(cblas_dsyrk) X(cblas_strmm) X(cblas_dtrmm) X(cblas_strsm) X(cblas_dtrsm)          \
  X(openblas_set_num_threads)

typedef void (*fortran)(void);
#define DECLARE(name) static fortran p_##name;
EACH(DECLARE)
static fortran p_sgesdd, p_dgesdd, p_dgeqrf, p_dorgqr, p_dgesv, p_dpotrf, p_dpotri, p_dpotrs, p_dsyevd;
static bool has_wide; /* arrays of integers, too, have 64 bits each */

static pthread_once_t once = PTHREAD_ONCE_INIT;
static bool loaded;
static char said[4352]; /* with a path */
static const char *description = "OpenBLAS on first use";

#ifndef NAME
#define NAME "libopenblas.so.0"
#endif

/* Looks for `name` itself before the rest of the process: a host may have another OpenBLAS in the global scope, with 64-bit integers or
 * of another build, and LAPACK's calls of BLAS must not end there.  The address sanitizer ends a process that loads anything so. */
static int binding(void) { return RTLD_NOW | RTLD_LOCAL | (dlsym(RTLD_DEFAULT, "__asan_init") ? 0 : RTLD_DEEPBIND); }

/* The file that dlopen(NAME) would load; false where its place is not among the folders that the loader tells. */
static bool find(char *path, size_t size) {
  void *h = dlopen(NAME, RTLD_NOLOAD | RTLD_NOW | RTLD_LOCAL);
  struct link_map *map = NULL;
  if (h) {
    bool found = dlinfo(h, RTLD_DI_LINKMAP, &map) == 0 && map && map->l_name[0] == '/' && strlen(map->l_name) < size;
    if (found) strcpy(path, map->l_name);
    dlclose(h);
    return found;
  }
  /* Asking for the folders takes a handle: that of the object that this code is part of. */
  Dl_info self;
  if (!dladdr((void *)find, &self) || !(h = dlopen(self.dli_fname, RTLD_NOLOAD | RTLD_NOW))) h = dlopen(NULL, RTLD_NOW);
  if (!h) return false;
  bool found = false;
  Dl_serinfo bytes, *folders = NULL;
  if (dlinfo(h, RTLD_DI_SERINFOSIZE, &bytes) == 0 && (folders = malloc(bytes.dls_size)) != NULL &&
      dlinfo(h, RTLD_DI_SERINFOSIZE, folders) == 0 && dlinfo(h, RTLD_DI_SERINFO, folders) == 0) {
    for (unsigned i = 0; i < folders->dls_cnt && !found; i++) {
      int n = snprintf(path, size, "%s/%s", folders->dls_serpath[i].dls_name, NAME);
      found = n > 0 && (size_t)n < size && access(path, R_OK) == 0;
    }
  }
  free(folders);
  dlclose(h);
  return found;
}

/* Takes the name out of a library's file: dlopen(NAME) of the host would find the copy by it. */
static bool unname(int file) {
  ElfW(Ehdr) head;
  ElfW(Phdr) part;
  ElfW(Dyn) entry;
  if (pread(file, &head, sizeof head, 0) != (ssize_t)sizeof head || memcmp(head.e_ident, ELFMAG, SELFMAG) != 0) return false;
  for (int i = 0; i < head.e_phnum; i++) {
    off_t at = (off_t)head.e_phoff + (off_t)i * head.e_phentsize;
    if (pread(file, &part, sizeof part, at) != (ssize_t)sizeof part) return false;
    if (part.p_type != PT_DYNAMIC) continue;
    at = (off_t)part.p_offset;
    for (; pread(file, &entry, sizeof entry, at) == (ssize_t)sizeof entry && entry.d_tag != DT_NULL; at += (off_t)sizeof entry) {
      if (entry.d_tag != DT_SONAME) continue;
      entry.d_tag = DT_DEBUG; /* which means nothing in a library */
      return pwrite(file, &entry, sizeof entry, at) == (ssize_t)sizeof entry;
    }
  }
  return true;
}

/* A copy of the file in memory, loaded as a library of its own: the number of threads is one variable of an OpenBLAS, and the host's,
 * which it may have from the same file now or later, is the host's business.  NULL where the system gives no such file. */
static void *open_copy(const char *source) {
  char path[64];
  int from = open(source, O_RDONLY | O_CLOEXEC);
  if (from < 0) return NULL;
  void *h = NULL;
  struct stat info;
  int to = memfd_create(NAME, MFD_CLOEXEC);
  if (to >= 0 && fstat(from, &info) == 0 && S_ISREG(info.st_mode)) {
    off_t left = info.st_size;
    while (left > 0) {
      ssize_t n = sendfile(to, from, NULL, (size_t)left);
      if (n < 0 && errno == EINTR) continue;
      if (n <= 0) break;
      left -= n;
    }
    if (left == 0 && unname(to)) {
      /* The loader knows libraries by the name that they were opened with, and the number of the file will be another's: a spelling that
       * nobody else uses. */
      snprintf(path, sizeof path, "/proc/self/fd/./%d", to);
      h = dlopen(path, binding());
    }
  }
  if (to >= 0) close(to);
  close(from);
  return h;
}

/* The wheels of NumPy and SciPy bring an OpenBLAS each, under names of their own.  One that the process has loaded will do: what it
 * needs is loaded, too.  SciPy's has 32-bit integers, as a system's has, and is preferred for that. */
static int look(struct dl_phdr_info *object, size_t size, void *path) {
  (void)size;
  const char *file = strrchr(object->dlpi_name, '/');
  if (!file || (strncmp(file, "/libscipy_openblas", 18) != 0 && strncmp(file, "/libopenblas", 12) != 0)) return 0;
  if (strlen(object->dlpi_name) >= 4096 || access(object->dlpi_name, R_OK) != 0) return 0;
  strcpy(path, object->dlpi_name);
  return !strstr(file, "64_");
}

/* The package scipy-openblas32 (`pip install thalweg[openblas]`) brings one alone, for Pythons whose NumPy has none: it lies in the folder
 * of packages that this library lies in, too. */
static bool beside(char *path, size_t size) {
  Dl_info self;
  char folder[4096];
  if (!dladdr((void *)beside, &self) || !self.dli_fname || strlen(self.dli_fname) >= sizeof folder) return false;
  strcpy(folder, self.dli_fname);
  for (int up = 0; up < 5; up++) { /* thalweg/lib/glibc-hwcaps/x86-64-v3/ at most */
    char *slash = strrchr(folder, '/');
    if (!slash || slash == folder) break;
    *slash = 0;
    int n = snprintf(path, size, "%s/scipy_openblas32/lib/libscipy_openblas.so", folder);
    if (n > 0 && (size_t)n < size && access(path, R_OK) == 0) return true;
  }
  path[0] = 0;
  return false;
}

/* A function by the spelling of this library: with "scipy_" before it, with "64_" behind. */
static fortran symbol(void *h, const char *name, const char *before, const char *behind) {
  char text[64];
  snprintf(text, sizeof text, "%s%s%s", before, name, behind);
  return (fortran)dlsym(h, text);
}

static bool take(void *h, const char *before, const char *behind, const char *from) {
  bool ok = true;
#define FIND(name) ok = (p_##name = symbol(h, #name, before, behind)) && ok;
  EACH(FIND)
#define LAPACK(name) ok = (p_##name = symbol(h, #name "_", before, behind)) && ok;
  LAPACK(sgesdd) LAPACK(dgesdd) LAPACK(dgeqrf) LAPACK(dorgqr) LAPACK(dgesv) LAPACK(dpotrf) LAPACK(dpotri) LAPACK(dpotrs)
  LAPACK(dsyevd)
  if (!ok) return false;
  has_wide = *behind != 0;
  char *(*config)(void) = (char *(*)(void))symbol(h, "openblas_get_config", before, behind);
  snprintf(said, sizeof said, "%s, from %s", config ? config() : "OpenBLAS", from);
  return true;
}

static void open_library(void) {
#if defined(__x86_64__)
  /* OpenBLAS reads this once, while it is loaded. What the user has set stays. */
  __builtin_cpu_init();
  bool chosen = false;
  if (!getenv("OPENBLAS_CORETYPE") && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq")) {
    chosen = setenv("OPENBLAS_CORETYPE", "SKYLAKEX", 0) == 0;
  }
#endif
  /* Threads that would never work, and whose creation, where it fails, ends the process. */
  const char *threads = getenv("OPENBLAS_NUM_THREADS");
  char *before = threads ? strdup(threads) : NULL;
  setenv("OPENBLAS_NUM_THREADS", "1", 1);
  char path[4096] = "";
  void *h = find(path, sizeof path) ? open_copy(path) : NULL;
  if (!h) h = dlopen(NAME, binding());
  if (!h) {
    path[0] = 0;
    if (!beside(path, sizeof path)) dl_iterate_phdr(look, path);
    if (path[0]) h = open_copy(path);
  }
  if (before) setenv("OPENBLAS_NUM_THREADS", before, 1);
  else unsetenv("OPENBLAS_NUM_THREADS");
  free(before);
#if defined(__x86_64__)
  if (chosen) unsetenv("OPENBLAS_CORETYPE");
#endif
  if (!h) {
    snprintf(said, sizeof said, "OpenBLAS was not found (" NAME "; Debian's package libopenblas0, or pip install scipy-openblas32)");
    return;
  }
  const char *from = path[0] ? path : NAME;
  if (!take(h, "", "", from) && !take(h, "scipy_", "", from) && !take(h, "scipy_", "64_", from) && !take(h, "", "64_", from)) {
    snprintf(said, sizeof said, "%s lacks CBLAS or LAPACK functions", from);
    return;
  }
  /* Products are cut up by the caller; one thread each. */
  ((void (*)(int))p_openblas_set_num_threads)(1);
  loaded = true;
}

static void load(void) {
  open_library();
  __atomic_store_n(&description, said, __ATOMIC_RELEASE);
}

bool twb_available(void) {
  pthread_once(&once, load);
  return loaded;
}
const char *twb_description(void) { return __atomic_load_n(&description, __ATOMIC_ACQUIRE); }

static enum CBLAS_TRANSPOSE t(bool x) { return x ? CblasTrans : CblasNoTrans; }
#define GEMM(real) \
  void (*)(enum CBLAS_ORDER, enum CBLAS_TRANSPOSE, enum CBLAS_TRANSPOSE, wide, wide, wide, real, const real *, wide, const real *, wide, real, \
           real *, wide)
#define SYRK(real) \
  void (*)(enum CBLAS_ORDER, enum CBLAS_UPLO, enum CBLAS_TRANSPOSE, wide, wide, real, const real *, wide, real, real *, wide)
void twb_sgemm(bool ta, bool tb, int m, int n, int k, float alpha, const float *a, int lda, const float *b, int ldb, float beta,
               float *c, int ldc) {
  ((GEMM(float))p_cblas_sgemm)(CblasRowMajor, t(ta), t(tb), m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
}
void twb_dgemm(bool ta, bool tb, int m, int n, int k, double alpha, const double *a, int lda, const double *b, int ldb,
               double beta, double *c, int ldc) {
  ((GEMM(double))p_cblas_dgemm)(CblasRowMajor, t(ta), t(tb), m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
}
void twb_ssyrk(bool trans, int n, int k, float alpha, const float *a, int lda, float beta, float *c, int ldc) {
  ((SYRK(float))p_cblas_ssyrk)(CblasRowMajor, CblasUpper, t(trans), n, k, alpha, a, lda, beta, c, ldc);
}
void twb_dsyrk(bool trans, int n, int k, double alpha, const double *a, int lda, double beta, double *c, int ldc) {
  ((SYRK(double))p_cblas_dsyrk)(CblasRowMajor, CblasUpper, t(trans), n, k, alpha, a, lda, beta, c, ldc);
}
#define TRIANGLE(real) \
  void (*)(enum CBLAS_ORDER, enum CBLAS_SIDE, enum CBLAS_UPLO, enum CBLAS_TRANSPOSE, enum CBLAS_DIAG, wide, wide, real, const real *, wide, \
           real *, wide)
void twb_striangle(bool solves, bool left, bool trans, int m, int n, const float *a, int lda, float *b, int ldb) {
  ((TRIANGLE(float))(solves ? p_cblas_strsm : p_cblas_strmm))(
      CblasRowMajor, left ? CblasLeft : CblasRight, CblasUpper, t(trans), CblasNonUnit, m, n, 1, a, lda, b, ldb);
}
void twb_dtriangle(bool solves, bool left, bool trans, int m, int n, const double *a, int lda, double *b, int ldb) {
  ((TRIANGLE(double))(solves ? p_cblas_dtrsm : p_cblas_dtrmm))(
      CblasRowMajor, left ? CblasLeft : CblasRight, CblasUpper, t(trans), CblasNonUnit, m, n, 1, a, lda, b, ldb);
}

/* Fortran takes addresses. */
#define AT(x) (wide[]){x}
enum { NO_MEMORY = -1010 }; /* as LAPACKE says it */
/* Integers that a function works with or returns: the caller's, or in a library of 64-bit integers `count` of ours. */
static void *integers(int *given, int count) { return has_wide ? calloc((size_t)(count > 0 ? count : 1), sizeof(wide)) : (void *)given; }
static void give_back(int *given, void *used, int count) {
  if (!has_wide) return;
  for (int i = 0; i < count; i++) given[i] = (int)((wide *)used)[i];
  free(used);
}

int twb_sgesdd(int m, int n, float *a, int lda, float *s, float *u, int ldu, float *vt, int ldvt, float *work, int lwork,
               int *iwork) {
  wide info = 0;
  void *own = integers(iwork, 8 * (m < n ? m : n));
  if (!own) return NO_MEMORY;
  ((void (*)(const char *, wide *, wide *, float *, wide *, float *, float *, wide *, float *, wide *, float *, wide *, void *, wide *,
             size_t))p_sgesdd)("S", AT(m), AT(n), a, AT(lda), s, u, AT(ldu), vt, AT(ldvt), work, AT(lwork), own, &info, 1);
  give_back(iwork, own, 0);
  return (int)info;
}
int twb_dgesdd(int m, int n, double *a, int lda, double *s, double *u, int ldu, double *vt, int ldvt, double *work, int lwork,
               int *iwork) {
  wide info = 0;
  void *own = integers(iwork, 8 * (m < n ? m : n));
  if (!own) return NO_MEMORY;
  ((void (*)(const char *, wide *, wide *, double *, wide *, double *, double *, wide *, double *, wide *, double *, wide *, void *,
             wide *, size_t))p_dgesdd)("S", AT(m), AT(n), a, AT(lda), s, u, AT(ldu), vt, AT(ldvt), work, AT(lwork), own, &info, 1);
  give_back(iwork, own, 0);
  return (int)info;
}
int twb_dgeqrf(int m, int n, double *a, int lda, double *tau, double *work, int lwork) {
  wide info = 0;
  ((void (*)(wide *, wide *, double *, wide *, double *, double *, wide *, wide *))p_dgeqrf)(AT(m), AT(n), a, AT(lda), tau, work,
                                                                                               AT(lwork), &info);
  return (int)info;
}
int twb_dorgqr(int m, int n, int k, double *a, int lda, const double *tau, double *work, int lwork) {
  wide info = 0;
  ((void (*)(wide *, wide *, wide *, double *, wide *, const double *, double *, wide *, wide *))p_dorgqr)(
      AT(m), AT(n), AT(k), a, AT(lda), tau, work, AT(lwork), &info);
  return (int)info;
}
int twb_dgesv(int n, int nrhs, double *a, int lda, int *pivot, double *b, int ldb) {
  wide info = 0;
  void *own = integers(pivot, n);
  if (!own) return NO_MEMORY;
  ((void (*)(wide *, wide *, double *, wide *, void *, double *, wide *, wide *))p_dgesv)(AT(n), AT(nrhs), a, AT(lda), own, b, AT(ldb),
                                                                                            &info);
  give_back(pivot, own, n);
  return (int)info;
}
int twb_dpotrf(int n, double *a, int lda) {
  wide info = 0;
  ((void (*)(const char *, wide *, double *, wide *, wide *, size_t))p_dpotrf)("L", AT(n), a, AT(lda), &info, 1);
  return (int)info;
}
int twb_dpotri(int n, double *a, int lda) {
  wide info = 0;
  ((void (*)(const char *, wide *, double *, wide *, wide *, size_t))p_dpotri)("L", AT(n), a, AT(lda), &info, 1);
  return (int)info;
}
int twb_dpotrs(int n, int nrhs, const double *a, int lda, double *b, int ldb) {
  wide info = 0;
  ((void (*)(const char *, wide *, wide *, const double *, wide *, double *, wide *, wide *, size_t))p_dpotrs)(
      "L", AT(n), AT(nrhs), a, AT(lda), b, AT(ldb), &info, 1);
  return (int)info;
}
/* liwork = -1 asks for sizes, which come as work[0] and iwork[0]. */
int twb_dsyevd(int n, double *a, int lda, double *w, double *work, int lwork, int *iwork, int liwork) {
  wide info = 0;
  void *own = integers(iwork, liwork);
  if (!own) return NO_MEMORY;
  ((void (*)(const char *, const char *, wide *, double *, wide *, double *, double *, wide *, void *, wide *, wide *, size_t,
             size_t))p_dsyevd)("V", "U", AT(n), a, AT(lda), w, work, AT(lwork), own, AT(liwork), &info, 1, 1);
  give_back(iwork, own, 1);
  return (int)info;
}
