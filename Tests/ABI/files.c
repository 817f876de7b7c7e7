/* Checkpoints in files: what is no file, what claims to be large, links, permissions, several writers of one path. */
#include "check.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>

/* An optimizer of `count` parameters that has taken a step from `start`. */
typedef struct {
  tw_optimizer *optimizer;
  float *w, *g;
  int64_t count;
} model;

static model make(int64_t count, float start) {
  model m = {NULL, malloc((size_t)count * 4), malloc((size_t)count * 4), count};
  for (int64_t i = 0; i < count; i++) m.w[i] = start, m.g[i] = start;
  tw_tensor w = vector(m.w, TW_F32, &m.count), g = vector(m.g, TW_F32, &m.count);
  OK(tw_optimizer_create("sgd(lr=0.5, momentum=0.5)", NULL, &m.optimizer));
  OK(tw_optimizer_add_parameters(m.optimizer, &w, 1, NULL, NULL));
  OK(tw_optimizer_bind_gradients(m.optimizer, &g, 1));
  OK(tw_optimizer_step(m.optimizer));
  return m;
}
static void drop(model *m) {
  OK(tw_optimizer_destroy(m->optimizer));
  free(m->w);
  free(m->g);
}

static char folder[] = "/tmp/thalweg-files-XXXXXX";
static char path_buffer[8][512];
static const char *path(int k, const char *name) {
  snprintf(path_buffer[k], sizeof path_buffer[k], "%s/%s", folder, name);
  return path_buffer[k];
}
/* The number of directory entries; removes them all when `clear`. */
static int entries(int clear) {
  DIR *d = opendir(folder);
  int n = 0;
  for (struct dirent *e; d != NULL && (e = readdir(d)) != NULL;) {
    if (strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0) continue;
    n++;
    if (clear) unlink(path(7, e->d_name));
  }
  if (d != NULL) closedir(d);
  return n;
}
static void begin(void) {
  if (access(folder, F_OK) != 0) CHECK(mkdtemp(folder) != NULL);
  entries(1);
}
static void end(void) {
  entries(1);
  rmdir(folder);
}

static void what_is_no_file(void) {
  begin();
  model m = make(3, 1);
  CHECK(mkfifo(path(0, "pipe"), 0600) == 0);
  /* Nobody writes into it: opening it must not wait. */
  STATUS(TW_ERROR_FILE, tw_optimizer_load_file(m.optimizer, path(0, "pipe")));
  STATUS(TW_ERROR_FILE, tw_optimizer_save_file(m.optimizer, path(0, "pipe")));
  STATUS(TW_ERROR_FILE, tw_optimizer_load_file(m.optimizer, folder));
  STATUS(TW_ERROR_FILE, tw_optimizer_save_file(m.optimizer, folder));
  STATUS(TW_ERROR_FILE, tw_optimizer_load_file(m.optimizer, "/dev/zero"));
  STATUS(TW_ERROR_FILE, tw_optimizer_save_file(m.optimizer, "/dev/null"));
  STATUS(TW_ERROR_FILE, tw_optimizer_load_file(m.optimizer, path(0, "missing")));
  STATUS(TW_ERROR_FILE, tw_optimizer_save_file(m.optimizer, path(0, "missing/state")));
  STATUS(TW_ERROR_FILE, tw_optimizer_save_file(m.optimizer, ""));
  STATUS(TW_ERROR_FILE, tw_optimizer_load_file(m.optimizer, ""));
  CHECK(entries(0) == 1); /* the pipe, and nothing temporary */
  drop(&m);
  end();
}

static void claims_of_size(void) {
  begin();
  model m = make(3, 1);
  int fd = open(path(0, "sparse"), O_CREAT | O_RDWR, 0600);
  CHECK(fd >= 0);
  if (ftruncate(fd, (off_t)1 << 40) != 0) { /* this file system has no such files */
    check_skipped = 1;
  } else {
    STATUS(TW_ERROR_FORMAT, tw_optimizer_load_file(m.optimizer, path(0, "sparse")));
    /* A beginning that would be right. */
    unsigned char header[] = {16, 0, 0, 0, 0, 0, 0, 0, '{', '}'};
    CHECK(pwrite(fd, header, sizeof header, 0) == (ssize_t)sizeof header);
    STATUS(TW_ERROR_MEMORY, tw_optimizer_load_file(m.optimizer, path(0, "sparse")));
  }
  for (off_t size = 0; size < 24; size++) {
    CHECK(ftruncate(fd, size) == 0);
    STATUS(TW_ERROR_FORMAT, tw_optimizer_load_file(m.optimizer, path(0, "sparse")));
  }
  close(fd);
  drop(&m);
  end();
}

static int mode_of(const char *p) {
  struct stat info;
  return stat(p, &info) == 0 ? (int)(info.st_mode & 07777) : -1;
}

static void permissions_and_links(void) {
  begin();
  umask(022);
  model m = make(3, 1), other = make(3, 2);
  OK(tw_optimizer_save_file(m.optimizer, path(0, "state")));
  CHECK(mode_of(path(0, "state")) == 0644);
  CHECK(chmod(path(0, "state"), 0600) == 0);
  OK(tw_optimizer_save_file(m.optimizer, path(0, "state")));
  CHECK(mode_of(path(0, "state")) == 0600);
  CHECK(chmod(path(0, "state"), 0664) == 0);
  OK(tw_optimizer_save_file(m.optimizer, path(0, "state")));
  CHECK(mode_of(path(0, "state")) == 0664);
  /* A chain of links, the last of them relative. */
  CHECK(symlink("state", path(1, "near")) == 0);
  CHECK(symlink(path(1, "near"), path(2, "far")) == 0);
  OK(tw_optimizer_save_file(other.optimizer, path(2, "far")));
  struct stat info;
  CHECK(lstat(path(1, "near"), &info) == 0 && S_ISLNK(info.st_mode));
  CHECK(lstat(path(2, "far"), &info) == 0 && S_ISLNK(info.st_mode));
  CHECK(lstat(path(0, "state"), &info) == 0 && S_ISREG(info.st_mode));
  checkpoint expected = save(other.optimizer);
  OK(tw_optimizer_load_file(m.optimizer, path(0, "state")));
  checkpoint loaded = save(m.optimizer);
  CHECK(same_checkpoint(expected, loaded));
  free(expected.data);
  free(loaded.data);
  /* A link to nothing yet. */
  CHECK(symlink("later", path(3, "dangling")) == 0);
  OK(tw_optimizer_save_file(m.optimizer, path(3, "dangling")));
  CHECK(lstat(path(4, "later"), &info) == 0 && S_ISREG(info.st_mode));
  /* A link to itself. */
  CHECK(symlink("loop", path(5, "loop")) == 0);
  STATUS(TW_ERROR_FILE, tw_optimizer_save_file(m.optimizer, path(5, "loop")));
  STATUS(TW_ERROR_FILE, tw_optimizer_load_file(m.optimizer, path(5, "loop")));
  CHECK(lstat(path(5, "loop"), &info) == 0 && S_ISLNK(info.st_mode));
  /* A name as long as names may be. */
  char name[256];
  memset(name, 'n', 255);
  name[255] = 0;
  OK(tw_optimizer_save_file(m.optimizer, path(6, name)));
  OK(tw_optimizer_load_file(m.optimizer, path(6, name)));
  CHECK(entries(0) == 7);
  drop(&m);
  drop(&other);
  end();
}

/* A file system without room: the file is the old one, and nothing temporary stays. */
static void no_room(void) {
  begin();
  model m = make(100000, 1);
  OK(tw_optimizer_save_file(m.optimizer, path(0, "state")));
  signal(SIGXFSZ, SIG_IGN);
  struct rlimit small = {4096, RLIM_INFINITY}, before;
  CHECK(getrlimit(RLIMIT_FSIZE, &before) == 0);
  small.rlim_max = before.rlim_max;
  CHECK(setrlimit(RLIMIT_FSIZE, &small) == 0);
  STATUS(TW_ERROR_FILE, tw_optimizer_save_file(m.optimizer, path(0, "state")));
  CHECK(setrlimit(RLIMIT_FSIZE, &before) == 0);
  CHECK(entries(0) == 1);
  OK(tw_optimizer_load_file(m.optimizer, path(0, "state")));
  drop(&m);
  end();
}

/* ---- several writers ------------------------------------------------------------------------------------ */

enum { WRITERS = 3, ROUNDS = 60 };
static int written;

static void *write_often(void *argument) {
  model *m = argument;
  for (int i = 0; i < ROUNDS; i++) OK(tw_optimizer_save_file(m->optimizer, path_buffer[0]));
  __atomic_add_fetch(&written, 1, __ATOMIC_SEQ_CST);
  return NULL;
}

/* Three optimizers save to one path; whoever loads it meanwhile finds the whole state of one of them. */
static void several_writers(void) {
  begin();
  path(0, "state");
  model m[WRITERS], reader = make(50000, 9);
  pthread_t threads[WRITERS];
  for (int i = 0; i < WRITERS; i++) m[i] = make(50000, (float)(i + 1));
  OK(tw_optimizer_save_file(m[0].optimizer, path_buffer[0]));
  for (int i = 0; i < WRITERS; i++) CHECK(pthread_create(&threads[i], NULL, write_often, &m[i]) == 0);
  double *state = malloc(50000 * sizeof *state);
  int loads = 0;
  while (__atomic_load_n(&written, __ATOMIC_SEQ_CST) < WRITERS) {
    OK(tw_optimizer_load_file(reader.optimizer, path_buffer[0]));
    OK(tw_optimizer_state_read(reader.optimizer, 0, state, 50000));
    for (int k = 0; k < 50000; k += 777) EQUAL(state[k], state[0]);
    CHECK(state[0] == 1 || state[0] == 2 || state[0] == 3);
    loads++;
  }
  CHECK(loads > 0);
  for (int i = 0; i < WRITERS; i++) pthread_join(threads[i], NULL);
  CHECK(entries(0) == 1);
  for (int i = 0; i < WRITERS; i++) drop(&m[i]);
  drop(&reader);
  free(state);
  end();
}

int main(void) {
  RUN(what_is_no_file);
  RUN(claims_of_size);
  RUN(permissions_and_links);
  RUN(no_room);
  RUN(several_writers);
  FINISH();
}
