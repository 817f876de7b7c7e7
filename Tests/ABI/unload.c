/* dlclose while the threads of the pool wait.  Not linked to the library: usage unload LIBRARY. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <thalweg/thalweg.h>
#include <unistd.h>

enum { COUNT = 300000, ROUNDS = 50 };

#define LOAD(name) \
  __typeof__(&name) name##_ = NULL; \
  *(void **)&name##_ = dlsym(library, #name); \
  if (name##_ == NULL) return "no " #name

/* Loads, steps on several threads, unloads; what went wrong, or NULL. */
static const char *round_trip(const char *path, float *w, float *g) {
  void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (library == NULL) return dlerror();
  LOAD(tw_set_num_threads);
  LOAD(tw_optimizer_create);
  LOAD(tw_optimizer_add_parameters);
  LOAD(tw_optimizer_step_with);
  LOAD(tw_optimizer_destroy);
  int64_t n = COUNT;
  tw_tensor p = {w, TW_F32, 1, &n, NULL, 0, 0, {0}}, d = {g, TW_F32, 1, &n, NULL, 0, 0, {0}};
  tw_optimizer *o = NULL;
  if (tw_set_num_threads_(4) != TW_OK || tw_optimizer_create_("sgd(lr=1)", NULL, &o) != TW_OK) return "create";
  if (tw_optimizer_add_parameters_(o, &p, 1, NULL, NULL) != TW_OK) return "add";
  if (tw_optimizer_step_with_(o, &d, 1) != TW_OK) return "step";
  if (tw_optimizer_destroy_(o) != TW_OK) return "destroy";
  return dlclose(library) == 0 ? NULL : "dlclose";
}

int main(int argc, char **argv) {
  if (argc < 2) return 2;
  float *w = calloc(COUNT, sizeof *w), *g = malloc(COUNT * sizeof *g);
  const char *wrong = NULL;
  for (int i = 0; i < COUNT; i++) g[i] = -1;
  for (int k = 0; k < ROUNDS && wrong == NULL; k++) {
    wrong = round_trip(argv[1], w, g);
    if (k % 5 == 0) usleep(20000); /* the threads go to sleep, and wake */
  }
  for (int i = 0; i < COUNT && wrong == NULL; i++)
    if (w[i] != ROUNDS) wrong = "a step is missing";
  usleep(50000);
  if (wrong != NULL) printf("       %s\n", wrong);
  printf("%s unload.threads_wait\n", wrong == NULL ? "ok  " : "FAIL");
  return wrong != NULL;
}
