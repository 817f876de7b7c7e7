/* A host's allocator: every block comes back once with its size, is aligned as asked, and when one cannot be
 * had the call fails with TW_ERROR_MEMORY, changes nothing, and works when it is made again. */
#include "check.h"
#include "runs.h"

/* ---- books -------------------------------------------------------------------------------------------- */

enum { BLOCKS = 1 << 16 };

static struct {
  struct {
    void *memory;
    size_t size;
  } blocks[BLOCKS];
  size_t used; /* entries of `blocks`, some of them empty */
  size_t live; /* blocks that are out */
  size_t live_bytes;
  long calls; /* allocations asked for */
  int armed;  /* allocations are counted in `armed_calls`, and number `fail_at` fails */
  long armed_calls;
  long fail_at;
  int failing; /* every one fails */
} books;

/* The library may call from any of its threads. */
static int lock;
static void acquire(void) {
  while (__atomic_exchange_n(&lock, 1, __ATOMIC_ACQUIRE)) {
  }
}
static void release(void) { __atomic_store_n(&lock, 0, __ATOMIC_RELEASE); }

static void *allocate(void *context, size_t size, size_t alignment) {
  CHECK(context == &books);
  if (alignment == 0 || (alignment & (alignment - 1)) != 0) {
    check_fail(__FILE__, __LINE__, "alignment %zu is no power of two", alignment);
    return NULL;
  }
  if (size == 0) check_fail(__FILE__, __LINE__, "a block of no bytes is asked for");
  acquire();
  void *memory = NULL;
  int fails = books.failing || (books.armed && books.armed_calls++ == books.fail_at);
  books.calls++;
  if (!fails && posix_memalign(&memory, alignment < sizeof(void *) ? sizeof(void *) : alignment, size) == 0) {
    memset(memory, 0xCD, size); /* the library must not rely on zeros */
    size_t slot = books.used;
    for (size_t i = 0; i < books.used; i++) {
      if (books.blocks[i].memory == NULL) {
        slot = i;
        break;
      }
    }
    if (slot < BLOCKS) {
      if (slot == books.used) books.used++;
      books.blocks[slot].memory = memory;
      books.blocks[slot].size = size;
      books.live++;
      books.live_bytes += size;
    }
  }
  release();
  return memory;
}

static void deallocate(void *context, void *memory, size_t size) {
  CHECK(context == &books);
  if (memory == NULL) return;
  acquire();
  size_t i = 0;
  while (i < books.used && books.blocks[i].memory != memory) i++;
  if (i == books.used) {
    check_fail(__FILE__, __LINE__, "a block comes back that is not out");
  } else {
    if (books.blocks[i].size != size) {
      check_fail(__FILE__, __LINE__, "a block of %zu bytes comes back with %zu", books.blocks[i].size, size);
    }
    memset(memory, 0xDD, books.blocks[i].size);
    books.live--;
    books.live_bytes -= books.blocks[i].size;
    books.blocks[i].memory = NULL;
    free(memory);
  }
  release();
}

static void open_books(void) {
  memset(&books, 0, sizeof books);
  OK(tw_set_allocator(allocate, deallocate, &books));
}

static void close_books(const char *what) {
  if (books.live != 0)
    check_fail(__FILE__, __LINE__, "%s leaks %zu blocks, %zu bytes", what, books.live, books.live_bytes);
  OK(tw_set_allocator(NULL, NULL, NULL));
}

/* ---- tests -------------------------------------------------------------------------------------------- */

/* The hook is used, gives the same bits, and gets everything back. */
static void used_and_returned(void) {
  for (int s = 0; s < RUN_SENTENCES; s++) {
    if (!run_possible(run_sentences[s])) continue;
    note("%s", run_sentences[s]);
    run plain = new_run(3, 40, 30), hooked = new_run(3, 40, 30);
    OK(run_whole(&plain, run_sentences[s], 4));
    open_books();
    OK(run_whole(&hooked, run_sentences[s], 4));
    if (s > 0 && books.calls == 0) check_fail(__FILE__, __LINE__, "%s asks for no memory", run_sentences[s]);
    CHECK(memcmp(plain.w, hooked.w, run_bytes(&plain)) == 0);
    close_books(run_sentences[s]);
    free_run(&plain);
    free_run(&hooked);
  }
}

static long warned;
static void warn(void *context, int32_t level, const char *message) {
  CHECK(level == 1 && strstr(message, "skipped") != NULL);
  ++*(long *)context;
}

/* One handle has an allocator and a log of its own; others of the same process have neither. */
static void services_of_a_handle(void) {
  NEED("adamw");
  memset(&books, 0, sizeof books);
  long own = 0;
  tw_services services = {sizeof services, allocate, deallocate, &books, warn, &own};
  run mine = new_run(2, 40, 30), plain = new_run(2, 40, 30);
  OK(tw_use_services(&services));
  tw_options options;
  OK(tw_options_init(&options, sizeof options));
  options.nonfinite = TW_NONFINITE_SKIP;
  OK(tw_optimizer_create("adamw(lr=0.01)", &options, &mine.optimizer));
  OK(tw_use_services(NULL));
  OK(tw_optimizer_create("adamw(lr=0.01)", &options, &plain.optimizer));
  OK(tw_set_log(warn, &warned));
  run *both[2] = {&mine, &plain};
  for (int k = 0; k < 2; k++) {
    run *r = both[k];
    for (size_t i = 0; i < r->count; i++) r->parameters[i].shape = r->gradients[i].shape = r->shape;
    OK(tw_optimizer_add_parameters(r->optimizer, r->parameters, r->count, NULL, NULL));
    OK(tw_optimizer_bind_gradients(r->optimizer, r->gradients, r->count));
    long calls = books.calls;
    OK(run_step(r, 0));
    CHECK(k == 0 ? books.calls > calls : books.calls == calls);
    r->g[0] = (float)NAN;
    STATUS(TW_SKIPPED, tw_optimizer_step(r->optimizer));
    CHECK(own == 1 && warned == k);
  }
  CHECK(memcmp(mine.w, plain.w, run_bytes(&mine)) == 0);
  OK(tw_set_log(NULL, NULL));
  OK(tw_optimizer_destroy(mine.optimizer));
  OK(tw_optimizer_destroy(plain.optimizer));
  if (books.live != 0) check_fail(__FILE__, __LINE__, "%zu blocks leak", books.live);
  /* Objectives and solvers too; what is not whole is refused. */
  tw_objective *objective = NULL;
  long calls = books.calls;
  OK(tw_use_services(&services));
  OK(tw_objective_create("bce_with_logits", &objective));
  OK(tw_use_services(NULL));
  OK(tw_objective_destroy(objective));
  CHECK(books.calls >= calls && books.live == 0);
  services.deallocate = NULL;
  STATUS(TW_ERROR_ARGUMENT, tw_use_services(&services));
  services.struct_size = 8;
  STATUS(TW_ERROR_ARGUMENT, tw_use_services(&services));
  free_run(&mine);
  free_run(&plain);
}

/* The optimizer keeps the allocator that it was created with. */
static void allocator_of_creation(void) {
  NEED("adamw");
  run r = new_run(1, 10, 10);
  open_books();
  OK(run_start(&r, "adamw(lr=0.01)"));
  OK(tw_set_allocator(NULL, NULL, NULL));
  OK(run_step(&r, 0));
  CHECK(books.calls > 0 && books.live > 0);
  OK(tw_optimizer_destroy(r.optimizer));
  CHECK(books.live == 0);
  /* And one created before the hook is not touched by it. */
  OK(run_start(&r, "adamw(lr=0.01)"));
  open_books();
  OK(run_step(&r, 0));
  OK(tw_optimizer_destroy(r.optimizer));
  CHECK(books.calls == 0);
  close_books("adamw");
  free_run(&r);
}

/* What a call must leave alone when it fails. */
typedef struct {
  float *w;
  checkpoint state;
} moment;

static moment remember(run *r) {
  moment m = {malloc(run_bytes(r)), {NULL, 0}};
  memcpy(m.w, r->w, run_bytes(r));
  if (r->optimizer != NULL) m.state = save(r->optimizer);
  return m;
}

static void compare_and_forget(run *r, moment *m, const char *what) {
  if (memcmp(m->w, r->w, run_bytes(r)) != 0)
    check_fail(__FILE__, __LINE__, "%s: parameters have changed", what);
  if (r->optimizer != NULL && m->state.data != NULL) {
    checkpoint now = save(r->optimizer);
    if (!same_checkpoint(now, m->state)) check_fail(__FILE__, __LINE__, "%s: state has changed", what);
    free(now.data);
  }
  free(m->state.data);
  free(m->w);
}

/* Makes `call`, which works on the run `r`, while allocation `books.fail_at` fails.  A failure must be clean,
 * and the call must work when it is made again. */
#define ATTEMPT(r, text, call) \
  do { \
    moment before = remember(r); \
    note("%s, allocation %ld fails: %s", sentence, books.fail_at, text); \
    books.armed = 1; \
    tw_status attempt = (call); \
    books.armed = 0; \
    if (attempt == TW_OK) { \
      free(before.state.data); \
      free(before.w); \
    } else { \
      if (attempt != TW_ERROR_MEMORY) { \
        check_fail(__FILE__, __LINE__, "%s, %s: %s: %s", sentence, text, tw_status_name(attempt), \
                   tw_last_error()); \
      } \
      if (tw_last_error()[0] == 0) check_fail(__FILE__, __LINE__, "%s, %s: no message", sentence, text); \
      failures++; \
      compare_and_forget(r, &before, text); \
      OK(call); \
    } \
  } while (0)

/* A whole life in which allocation `n` fails; returns whether there was one. */
static int life_with_failure(const char *sentence, long n, const run *plain) {
  int failures = 0;
  run r = new_run(2, 12, 7), resumed = new_run(2, 12, 7);
  for (size_t i = 0; i < r.count; i++) r.parameters[i].shape = r.gradients[i].shape = r.shape;
  open_books();
  books.fail_at = n;
  ATTEMPT(&r, "create", tw_optimizer_create(sentence, NULL, &r.optimizer));
  ATTEMPT(&r, "add_parameters", tw_optimizer_add_parameters(r.optimizer, r.parameters, r.count, NULL, NULL));
  ATTEMPT(&r, "bind_gradients", tw_optimizer_bind_gradients(r.optimizer, r.gradients, r.count));
  ATTEMPT(&r, "step 0", run_step(&r, 0));
  ATTEMPT(&r, "step 1", run_step(&r, 1));
  checkpoint saved = save(r.optimizer);
  memcpy(resumed.w, r.w, run_bytes(&r));
  OK(run_start(&resumed, sentence));
  ATTEMPT(&resumed, "load", tw_optimizer_load(resumed.optimizer, saved.data, saved.size));
  free(saved.data);
  ATTEMPT(&resumed, "step 2", run_step(&resumed, 2));
  ATTEMPT(&r, "step 2", run_step(&r, 2));
  if (memcmp(r.w, plain->w, run_bytes(&r)) != 0) {
    check_fail(__FILE__, __LINE__, "%s: other bits after the failure of allocation %ld", sentence, n);
  }
  if (memcmp(resumed.w, plain->w, run_bytes(&r)) != 0) {
    check_fail(__FILE__, __LINE__, "%s: other bits after load and the failure of allocation %ld", sentence,
               n);
  }
  if (strstr(sentence, "ema") != NULL) {
    ATTEMPT(&resumed, "eval", tw_optimizer_set_mode(resumed.optimizer, TW_MODE_EVAL));
  }
  ATTEMPT(&resumed, "train", tw_optimizer_set_mode(resumed.optimizer, TW_MODE_TRAIN));
  CHECK(memcmp(resumed.w, plain->w, run_bytes(&r)) == 0);
  OK(tw_optimizer_destroy(r.optimizer));
  OK(tw_optimizer_destroy(resumed.optimizer));
  close_books(sentence);
  free_run(&r);
  free_run(&resumed);
  return failures > 0;
}

/* Allocation 0, 1, 2, ... of a whole life fails, once each. */
static void every_allocation(const char *sentence) {
  run plain = new_run(2, 12, 7);
  OK(run_whole(&plain, sentence, 3));
  for (long n = 0; n < 2000 && check_failures == 0; n++) {
    if (!life_with_failure(sentence, n, &plain)) break;
  }
  free_run(&plain);
}

static void every_allocation_of_every_run(void) {
  for (int s = 0; s < RUN_SENTENCES; s++) {
    if (run_possible(run_sentences[s])) every_allocation(run_sentences[s]);
  }
}

/* No memory at all: every call fails, none crashes. */
static void no_memory_at_all(void) {
  for (int s = 0; s < RUN_SENTENCES; s++) {
    if (!run_possible(run_sentences[s])) continue;
    note("%s", run_sentences[s]);
    run r = new_run(2, 12, 7);
    float *before = malloc(run_bytes(&r));
    memcpy(before, r.w, run_bytes(&r));
    open_books();
    books.failing = 1;
    tw_status status = run_start(&r, run_sentences[s]);
    for (int step = 0; status == TW_OK && step < 3; step++) {
      status = run_step(&r, 0);
      if (status == TW_OK) memcpy(before, r.w, run_bytes(&r)); /* it needed none */
    }
    CHECK(status == TW_OK || status == TW_ERROR_MEMORY);
    CHECK(memcmp(before, r.w, run_bytes(&r)) == 0);
    if (r.optimizer != NULL) OK(tw_optimizer_destroy(r.optimizer));
    close_books(run_sentences[s]);
    free(before);
    free_run(&r);
  }
}

/* Creating and destroying gives everything back, also without a step and in the middle of one. */
static void short_lives(void) {
  open_books();
  for (int s = 0; s < RUN_SENTENCES; s++) {
    if (!run_possible(run_sentences[s])) continue;
    for (int life = 0; life < 4; life++) {
      run r = new_run(2, 12, 7);
      tw_request request = {.struct_size = sizeof request};
      OK(run_start(&r, run_sentences[s]));
      if (life >= 1) OK(run_step(&r, 0));
      if (life >= 2) STATUS(TW_MORE, tw_optimizer_next(r.optimizer, &request));
      if (life >= 3) OK(tw_optimizer_cancel(r.optimizer));
      OK(tw_optimizer_destroy(r.optimizer));
      free_run(&r);
    }
    if (books.live != 0) check_fail(__FILE__, __LINE__, "%s leaks %zu blocks", run_sentences[s], books.live);
  }
  close_books("short lives");
}

/* ---- beyond the end ----------------------------------------------------------------------------------- */

/* Blocks that end where memory that nobody may touch begins. */
enum { GUARD = 1 << 20 };
static void *allocate_fenced(void *context, size_t size, size_t alignment) {
  (void)context;
  if (alignment > 4096) return NULL;
  size_t room = (size + 4095) / 4096 * 4096, from = (room - size) & ~(alignment - 1);
  char *memory = mmap(NULL, room + GUARD, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) return NULL;
  return mprotect(memory, room, PROT_READ | PROT_WRITE) == 0 ? memory + from : NULL;
}
static void deallocate_fenced(void *context, void *memory, size_t size) {
  (void)context;
  char *start = (char *)((uintptr_t)memory & ~(uintptr_t)4095);
  size_t from = (size_t)((char *)memory - start);
  munmap(start, (from + size + 4095) / 4096 * 4096 + GUARD);
}

/* State that methods of curvature keep in fewer bits is not widened for the kernel that moves the parameters, which has
 * nothing there; its last vector of a tensor, which is not full, read where it would have been, far beyond its rows. */
static void narrow_state_within_its_blocks(void) {
  static const char *const sentences[] = {"fosi(lr=0.01, k=1, interval=1, order=3)", "mfac(lr=0.01, ngrads=3)", "lbfgs(lr=0.01, history=2)",
                                          "psgd_lra(lr=0.01)", "singd(lr=0.01)", "adahessian(lr=0.01)"};
  enum { N = 16384 + 15 };
  static float w[N], g[N];
  const int64_t n = N;
  const tw_tensor parameter = tw_tensor_dense_f32(w, 1, &n), gradient = tw_tensor_dense_f32(g, 1, &n);
  STATUS(TW_OK, tw_set_allocator(allocate_fenced, deallocate_fenced, NULL));
  for (size_t k = 0; k < sizeof sentences / sizeof *sentences; k++) {
    for (int32_t state = TW_STATE_BF16; state <= TW_STATE_Q8; state++) {
      tw_options options;
      STATUS(TW_OK, tw_options_init(&options, sizeof options));
      options.state_dtype = state;
      tw_optimizer *optimizer = NULL;
      if (tw_optimizer_create(sentences[k], &options, &optimizer) != TW_OK) continue; /* this build lacks it */
      note("%s, state %d", sentences[k], (int)state);
      fill_f32(w, N, 3);
      STATUS(TW_OK, tw_optimizer_add_parameters(optimizer, &parameter, 1, NULL, NULL));
      STATUS(TW_OK, tw_optimizer_bind_gradients(optimizer, &gradient, 1));
      for (int step = 0; step < 3; step++) {
        tw_request request = {.struct_size = sizeof request};
        tw_status status;
        while ((status = tw_optimizer_next(optimizer, &request)) == TW_MORE) {
          const float *at = request.kind == TW_REQUEST_HESSIAN_VECTOR ? request.probe[0].data : w;
          request.loss = 0; /* of half the sum of squares */
          for (size_t i = 0; i < N; i++) {
            g[i] = at[i];
            request.loss += 0.5 * (double)w[i] * (double)w[i];
          }
        }
        STATUS(TW_OK, status);
      }
      STATUS(TW_OK, tw_optimizer_destroy(optimizer));
    }
  }
  STATUS(TW_OK, tw_set_allocator(NULL, NULL, NULL));
}

int main(void) {
  RUN(used_and_returned);
  RUN(allocator_of_creation);
  RUN(services_of_a_handle);
  RUN(every_allocation_of_every_run);
  RUN(no_memory_at_all);
  RUN(short_lives);
  RUN(narrow_state_within_its_blocks);
  FINISH();
}
