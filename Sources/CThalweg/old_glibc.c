/* Names of the C library as glibc 2.28 and earlier have them, so that the built library runs on systems as old as that.
 *
 * A linker takes the newest version of a name that it finds: exp of 2.29, pthread_create of 2.34, hypot of 2.35.  The older
 * ones are there as well, and do the same: exp, pow, hypot and the like differ in setting errno alone, and take the same
 * time.  The shared library is linked with --wrap for the names below (Sources/packaging/old_glibc.txt): its calls come
 * here and go on to the older name.  Most are one jump, whatever the arguments are. */
#define _GNU_SOURCE
#include <features.h>
#include <stdlib.h>
#include <sys/stat.h>

#if defined(__x86_64__) && defined(__GLIBC__)

#define OLD(name, version)                                                                                                 \
  __asm__(".symver thalweg_old_" #name ", " #name "@" version "\n.pushsection .text.__wrap_" #name ",\"ax\",@progbits\n"   \
          ".globl __wrap_" #name "\n.hidden __wrap_" #name "\n.type __wrap_" #name ", @function\n__wrap_" #name ":\n"       \
          "  endbr64\n  jmp *thalweg_old_" #name "@GOTPCREL(%rip)\n.size __wrap_" #name ", .-__wrap_" #name "\n"             \
          ".popsection");

/* libdl and libpthread, which became part of libc in 2.34. */
OLD(dladdr, "GLIBC_2.2.5")
OLD(dlclose, "GLIBC_2.2.5")
OLD(dlerror, "GLIBC_2.2.5")
OLD(dlinfo, "GLIBC_2.3.3")
OLD(dlopen, "GLIBC_2.2.5")
OLD(dlsym, "GLIBC_2.2.5")
OLD(pthread_attr_getstack, "GLIBC_2.2.5")
OLD(pthread_create, "GLIBC_2.2.5")
OLD(pthread_getattr_np, "GLIBC_2.2.5")
OLD(pthread_once, "GLIBC_2.2.5")
OLD(pthread_sigmask, "GLIBC_2.2.5")
OLD(sem_open, "GLIBC_2.2.5")

/* libm: 2.29, and hypot 2.35. */
OLD(exp, "GLIBC_2.2.5")
OLD(exp2, "GLIBC_2.2.5")
OLD(log, "GLIBC_2.2.5")
OLD(log2, "GLIBC_2.2.5")
OLD(pow, "GLIBC_2.2.5")
OLD(hypot, "GLIBC_2.2.5")
OLD(hypotf, "GLIBC_2.2.5")

/* Functions since 2.33; the headers before turned them into calls of these. */
int __xstat(int version, const char *path, struct stat *info);
int __fxstat(int version, int file, struct stat *info);
int __wrap_stat(const char *path, struct stat *info) { return __xstat(1, path, info); }
int __wrap_fstat(int file, struct stat *info) { return __fxstat(1, file, info); }

/* Of libstdc++ 11.  The C++ in the Swift runtime has no exceptions: what cannot be allocated ends the process. */
void __wrap__ZSt28__throw_bad_array_new_lengthv(void) { abort(); }

#endif
