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

#define EACH(X)                                                                                                            \
  X(cblas_sgemm) X(cblas_dgemm) X(cblas_ssyrk) X(cblas_dsyrk) X(openblas_set_num_threads)

#define DECLARE(name) static __typeof__(&name) p_##name;
EACH(DECLARE)

typedef void (*fortran)(void);
static fortran p_sgesdd, p_dgesdd, p_dgeqrf, p_dorgqr, p_dgesv, p_dpotrf, p_dpotrs, p_dsyevd;

static pthread_once_t once = PTHREAD_ONCE_INIT;
static bool loaded;
static char found[256];
static const char *description = "OpenBLAS on first use";

#define NAME "libopenblas.so.0"

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
static void *open_copy(void) {
  char path[4096];
  if (!find(path, sizeof path)) return NULL;
  int from = open(path, O_RDONLY | O_CLOEXEC);
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

static void look(void) {
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
  void *h = open_copy();
  if (!h) h = dlopen(NAME, binding());
  if (before) setenv("OPENBLAS_NUM_THREADS", before, 1);
  else unsetenv("OPENBLAS_NUM_THREADS");
  free(before);
#if defined(__x86_64__)
  if (chosen) unsetenv("OPENBLAS_CORETYPE");
#endif
  if (!h) {
    snprintf(found, sizeof found, "OpenBLAS was not found (" NAME "; Debian's package libopenblas0)");
    return;
  }
  bool ok = true;
#define FIND(name) ok = (p_##name = (__typeof__(&name))dlsym(h, #name)) && ok;
  EACH(FIND)
#define LAPACK(name) ok = (p_##name = (fortran)dlsym(h, #name "_")) && ok;
  LAPACK(sgesdd) LAPACK(dgesdd) LAPACK(dgeqrf) LAPACK(dorgqr) LAPACK(dgesv) LAPACK(dpotrf) LAPACK(dpotrs) LAPACK(dsyevd)
  if (!ok) {
    snprintf(found, sizeof found, NAME " lacks CBLAS or LAPACK functions");
    return;
  }
  char *(*config)(void) = (char *(*)(void))dlsym(h, "openblas_get_config");
  snprintf(found, sizeof found, "%s", config ? config() : "OpenBLAS");
  /* Products are cut up by the caller; one thread each. */
  p_openblas_set_num_threads(1);
  loaded = true;
}

static void load(void) {
  look();
  __atomic_store_n(&description, found, __ATOMIC_RELEASE);
}

bool twb_available(void) {
  pthread_once(&once, load);
  return loaded;
}
const char *twb_description(void) { return __atomic_load_n(&description, __ATOMIC_ACQUIRE); }

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
