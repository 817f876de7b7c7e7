#define _GNU_SOURCE
#include "CThalweg.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>

static _Thread_local char last_error[4096] = "no error";

void twi_set_error(const char *message, size_t length) {
  if (length >= sizeof last_error) length = sizeof last_error - 1;
  memcpy(last_error, message, length);
  last_error[length] = 0;
}

const char *twi_get_error(void) { return last_error; }

static _Thread_local tw_services creating;
static _Thread_local twi_call at_work;

tw_services twi_services(void) { return at_work.within ? at_work.services : creating; }

twi_call twi_enter(tw_services services, twi_depot *depot) {
  twi_call before = at_work;
  at_work.services = services;
  at_work.depot = depot;
  at_work.within = 1;
  return before;
}

void twi_leave(twi_call before) { at_work = before; }

twi_depot *twi_depot_at_work(void) { return at_work.depot; }
void twi_depot_work(twi_depot *depot) { at_work.depot = depot; }

void twi_set_services(tw_services services) { creating = services; }

int32_t twi_cpu_count(void) {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof set, &set) != 0) return 1;
  int n = CPU_COUNT(&set);
  return n > 0 ? n : 1;
}

const char *twi_instruction_set(void) {
#if defined(__AVX512F__)
  return "x86-64-v4";
#elif defined(__AVX2__)
  return "x86-64-v3";
#elif defined(__x86_64__)
  return "x86-64";
#elif defined(__aarch64__)
  return "aarch64";
#else
  return "generic";
#endif
}

int twi_errno(void) { return errno; }
const char *twi_strerror(int code) { return strerror(code); }
int twi_open_new(const char *path, int mode) { return open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, (mode_t)mode); }
int twi_open_read(const char *path) { return open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY); }

bool twi_can_allocate(size_t size) {
  void *volatile p = malloc(size); /* volatile: a pair of malloc and free would be taken for one that succeeds */
  bool ok = p != NULL;
  free(p);
  return ok;
}
