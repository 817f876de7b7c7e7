/* Arguments that no program should pass.  Every call must return an error with a message, crash nothing, and
 * leave parameters and state as they were. */
#include "check.h" /* first: it asks for the extensions of the system's headers */

#include <fcntl.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

/* ---- the victim: a healthy optimizer that every refused call must leave alone ------------------------- */

enum { ROWS = 3, COLUMNS = 4, WEIGHTS = ROWS * COLUMNS, BIASES = 5 };

static const int64_t matrix_shape[2] = {ROWS, COLUMNS};
static const int64_t bias_shape[1] = {BIASES};
static const int64_t one = 1, two = 2, four = 4;

static struct {
  tw_optimizer *optimizer;
  float w[WEIGHTS], b[BIASES], gw[WEIGHTS], gb[BIASES];
  float w_before[WEIGHTS], b_before[BIASES];
  checkpoint state;
  tw_tensor parameters[2], gradients[2];
} victim;

/* Steps a few times and remembers how everything stands. */
static void make_victim(const char *sentence) {
  memset(&victim, 0, sizeof victim);
  fill_f32(victim.w, WEIGHTS, 1);
  fill_f32(victim.b, BIASES, 2);
  fill_f32(victim.gw, WEIGHTS, 3);
  fill_f32(victim.gb, BIASES, 4);
  victim.parameters[0] = view(victim.w, TW_F32, 2, matrix_shape, NULL);
  victim.parameters[1] = view(victim.b, TW_F32, 1, bias_shape, NULL);
  victim.gradients[0] = view(victim.gw, TW_F32, 2, matrix_shape, NULL);
  victim.gradients[1] = view(victim.gb, TW_F32, 1, bias_shape, NULL);
  static const char *const names[2] = {"weight", "bias"};
  OK(tw_optimizer_create(sentence, NULL, &victim.optimizer));
  if (victim.optimizer == NULL) return;
  OK(tw_optimizer_add_parameters(victim.optimizer, victim.parameters, 2, names, "all"));
  OK(tw_optimizer_bind_gradients(victim.optimizer, victim.gradients, 2));
  OK(tw_optimizer_step(victim.optimizer));
  OK(tw_optimizer_step(victim.optimizer));
  victim.state = save(victim.optimizer);
  CHECK(victim.state.data != NULL);
  memcpy(victim.w_before, victim.w, sizeof victim.w);
  memcpy(victim.b_before, victim.b, sizeof victim.b);
}

static void check_victim(int line, const char *call) {
  if (victim.optimizer == NULL) return;
  if (memcmp(victim.w, victim.w_before, sizeof victim.w) != 0 ||
      memcmp(victim.b, victim.b_before, sizeof victim.b) != 0) {
    check_fail(__FILE__, line, "%s changed the parameters", call);
    memcpy(victim.w, victim.w_before, sizeof victim.w);
    memcpy(victim.b, victim.b_before, sizeof victim.b);
  }
  checkpoint now = save(victim.optimizer);
  if (!same_checkpoint(now, victim.state)) check_fail(__FILE__, line, "%s changed the state", call);
  free(now.data);
}

/* The victim still works at the end, and goes away. */
static void end_victim(void) {
  if (victim.optimizer == NULL) return;
  OK(tw_optimizer_bind_gradients(victim.optimizer, victim.gradients, 2));
  OK(tw_optimizer_step(victim.optimizer));
  CHECK(memcmp(victim.w, victim.w_before, sizeof victim.w) != 0);
  OK(tw_optimizer_destroy(victim.optimizer));
  free(victim.state.data);
  memset(&victim, 0, sizeof victim);
}

/* ---- refusals ----------------------------------------------------------------------------------------- */

/* Sets the thread's message to one that no other call gives. */
static void mark_message(void) { tw_method_find("zz_marker_zz", NULL); }

static int refused(int line, const char *call, tw_status status) {
  const char *message = tw_last_error();
  if (status >= 0) {
    check_fail(__FILE__, line, "%s was not refused: %s", call, tw_status_name(status));
    return 0;
  }
  if (status == TW_ERROR_INTERNAL) check_fail(__FILE__, line, "%s is an internal error: %s", call, message);
  if (strcmp(tw_status_name(status), "unknown") == 0)
    check_fail(__FILE__, line, "%s: status %d", call, status);
  if (message == NULL || message[0] == 0) check_fail(__FILE__, line, "%s left no message", call);
  if (message != NULL && strstr(message, "zz_marker_zz") != NULL) {
    check_fail(__FILE__, line, "%s left the message of an earlier call", call);
  }
  check_victim(line, call);
  return 1;
}

/* The call must fail, with any honest error. */
#define REFUSED(call) \
  do { \
    note("%s", #call); \
    mark_message(); \
    refused(__LINE__, #call, (call)); \
  } while (0)

/* The call must fail with one error. */
#define REFUSED_AS(expected, call) \
  do { \
    note("%s", #call); \
    mark_message(); \
    tw_status refusal = (call); \
    if (refused(__LINE__, #call, refusal) && refusal != (expected)) { \
      check_fail(__FILE__, __LINE__, "%s\n         gave %s, not %s: %s", #call, tw_status_name(refusal), \
                 tw_status_name(expected), tw_last_error()); \
    } \
  } while (0)

/* The call may do what it likes, except crash, claim a defect, or change the victim. */
#define SURVIVES(call) \
  do { \
    note("%s", #call); \
    mark_message(); \
    tw_status outcome = (call); \
    if (outcome < 0) \
      refused(__LINE__, #call, outcome); \
    else \
      check_victim(__LINE__, #call); \
  } while (0)

/* ---- handles ------------------------------------------------------------------------------------------ */

/* Everything that takes an optimizer, with arguments that are otherwise fine. */
static void all_optimizer_calls(tw_optimizer *handle, const char *what) {
  float w[4] = {1, 2, 3, 4}, g[4] = {1, 1, 1, 1};
  tw_tensor tw = vector(w, TW_F32, &four), tg = vector(g, TW_F32, &four);
  tw_request request = {.struct_size = sizeof request};
  tw_state_info info = {.struct_size = sizeof info};
  double value = 0;
  char buffer[256];
  size_t needed = 0;
  note("%s", what);
  int before = check_failures;
  REFUSED_AS(TW_ERROR_HANDLE, tw_optimizer_add_parameters(handle, &tw, 1, NULL, NULL));
  REFUSED_AS(TW_ERROR_HANDLE, tw_optimizer_rebind_parameters(handle, &tw, 1));
  REFUSED_AS(TW_ERROR_HANDLE, tw_optimizer_bind_gradients(handle, &tg, 1));
  REFUSED_AS(TW_ERROR_HANDLE, tw_optimizer_bind_shadow(handle, NULL, 0));
  CHECK(tw_optimizer_parameter_count(handle) == 0);
  REFUSED_AS(TW_ERROR_HANDLE, tw_optimizer_step(handle));
  REFUSED_AS(TW_ERROR_HANDLE, tw_optimizer_step_with(handle, &tg, 1));
  REFUSED_AS(TW_ERROR_HANDLE, tw_optimizer_next(handle, &request));
  REFUSED_AS(TW_ERROR_HANDLE, tw_optimizer_waiting(handle, &request));
  REFUSED_AS(TW_ERROR_HANDLE, tw_optimizer_cancel(handle));
  REFUSED_AS(TW_ERROR_HANDLE, tw_optimizer_answer_matrix(handle, &tw, NULL));
  REFUSED_AS(TW_ERROR_HANDLE, tw_optimizer_observe(handle, "loss", 1));
  REFUSED_AS(TW_ERROR_HANDLE, tw_optimizer_command(handle, "gradient_accumulate.flush"));
  REFUSED_AS(TW_ERROR_HANDLE, tw_optimizer_set_mode(handle, TW_MODE_EVAL));
  REFUSED_AS(TW_ERROR_HANDLE, tw_optimizer_get_number(handle, NULL, "lr", &value));
  REFUSED_AS(TW_ERROR_HANDLE, tw_optimizer_set_number(handle, NULL, "lr", 1));
  REFUSED_AS(TW_ERROR_HANDLE, tw_optimizer_set_text(handle, NULL, "lr", "1"));
  REFUSED_AS(TW_ERROR_HANDLE, tw_optimizer_get_text(handle, NULL, "lr", buffer, sizeof buffer, &needed));
  REFUSED_AS(TW_ERROR_HANDLE, tw_optimizer_sentence(handle, buffer, sizeof buffer, &needed));
  CHECK(tw_optimizer_state_count(handle) == 0);
  REFUSED_AS(TW_ERROR_HANDLE, tw_optimizer_state_at(handle, 0, &info));
  REFUSED_AS(TW_ERROR_HANDLE, tw_optimizer_state_read(handle, 0, &value, 1));
  REFUSED_AS(TW_ERROR_HANDLE, tw_optimizer_save(handle, NULL, 0, &needed));
  REFUSED_AS(TW_ERROR_HANDLE, tw_optimizer_load(handle, victim.state.data, victim.state.size));
  REFUSED_AS(TW_ERROR_HANDLE, tw_optimizer_save_file(handle, "/tmp/thalweg-abi-never-written"));
  REFUSED_AS(TW_ERROR_HANDLE, tw_optimizer_load_file(handle, "/tmp/thalweg-abi-never-written"));
  REFUSED_AS(TW_ERROR_HANDLE, tw_optimizer_destroy(handle));
  CHECK(w[0] == 1 && g[0] == 1);
  if (check_failures > before) check_fail(__FILE__, __LINE__, "... with %s", what);
}

static void all_other_calls(void *handle, const char *what) {
  float w[4] = {1, 2, 3, 4}, g[4] = {1, 1, 1, 1};
  tw_tensor tw = vector(w, TW_F32, &four), tg = vector(g, TW_F32, &four);
  tw_tensor samples = view(w, TW_F32, 2, (const int64_t[]){2, 2}, NULL);
  double value = 0;
  int before = check_failures;
  tw_regularizer *regularizer = handle;
  REFUSED_AS(TW_ERROR_HANDLE, tw_regularizer_value(regularizer, &tw, &value));
  REFUSED_AS(TW_ERROR_HANDLE, tw_regularizer_gradient(regularizer, &tw, 1, &tg));
  REFUSED_AS(TW_ERROR_HANDLE, tw_regularizer_prox(regularizer, &tw, 1));
  REFUSED_AS(TW_ERROR_HANDLE, tw_regularizer_value_with(regularizer, &tw, 1, &value));
  REFUSED_AS(TW_ERROR_HANDLE, tw_regularizer_gradient_with(regularizer, &tw, 1, 1, &tg));
  REFUSED_AS(TW_ERROR_HANDLE, tw_regularizer_destroy(regularizer));
  tw_constraint *constraint = handle;
  REFUSED_AS(TW_ERROR_HANDLE, tw_constraint_project(constraint, &tw));
  REFUSED_AS(TW_ERROR_HANDLE, tw_constraint_tangent(constraint, &tw, &tg));
  REFUSED_AS(TW_ERROR_HANDLE, tw_constraint_retract(constraint, &tw, &tg));
  REFUSED_AS(TW_ERROR_HANDLE, tw_constraint_lmo(constraint, &tg, &tw));
  REFUSED_AS(TW_ERROR_HANDLE, tw_constraint_project_tangent(constraint, &tw, &tg));
  REFUSED_AS(TW_ERROR_HANDLE, tw_constraint_exp(constraint, &tw, &tg));
  REFUSED_AS(TW_ERROR_HANDLE, tw_constraint_log(constraint, &tw, &tw, &tg));
  REFUSED_AS(TW_ERROR_HANDLE, tw_constraint_transport(constraint, &tw, &tw, &tg));
  REFUSED_AS(TW_ERROR_HANDLE, tw_constraint_points(constraint, &tw, NULL, NULL));
  REFUSED_AS(TW_ERROR_HANDLE, tw_constraint_inner(constraint, &tw, &tg, &tg, &value, 1));
  REFUSED_AS(TW_ERROR_HANDLE, tw_constraint_distance(constraint, &tw, &tg, &value, 1));
  REFUSED_AS(TW_ERROR_HANDLE, tw_constraint_check_point(constraint, &tw, &value, 1));
  REFUSED_AS(TW_ERROR_HANDLE, tw_constraint_check_tangent(constraint, &tw, &tg, &value, 1));
  REFUSED_AS(TW_ERROR_HANDLE, tw_constraint_destroy(constraint));
  tw_objective *objective = handle, *live = NULL;
  tw_cache *cache = handle;
  REFUSED_AS(TW_ERROR_HANDLE, tw_objective_forward(objective, &tw, 1, NULL, &value));
  REFUSED_AS(TW_ERROR_HANDLE, tw_objective_pullback(objective, cache, 1, &tg, 1));
  REFUSED_AS(TW_ERROR_HANDLE, tw_objective_destroy(objective));
  REFUSED_AS(TW_ERROR_HANDLE, tw_cache_destroy(cache));
  MUST(tw_objective_create("sum_log_concave", &live));
  if (handle != NULL) REFUSED_AS(TW_ERROR_HANDLE, tw_objective_forward(live, &tw, 1, cache, &value));
  REFUSED_AS(TW_ERROR_HANDLE, tw_objective_pullback(live, cache, 1, &tg, 1));
  OK(tw_objective_destroy(live));
  CHECK(value == 0 && g[0] == 1);
  tw_solver *solver = handle, *copied = NULL;
  tw_solver_request request = {.struct_size = sizeof request};
  tw_tensor tensor;
  size_t bytes = 0;
  REFUSED_AS(TW_ERROR_HANDLE, tw_solver_begin(solver, &tw, 1));
  REFUSED_AS(TW_ERROR_HANDLE, tw_solver_next(solver, &request));
  REFUSED_AS(TW_ERROR_HANDLE, tw_solver_waiting(solver, &request));
  REFUSED_AS(TW_ERROR_HANDLE, tw_solver_tensor(solver, "x", &tensor));
  REFUSED_AS(TW_ERROR_HANDLE, tw_solver_number(solver, "residual", &value));
  REFUSED_AS(TW_ERROR_HANDLE, tw_solver_save(solver, NULL, 0, &bytes));
  REFUSED_AS(TW_ERROR_HANDLE, tw_solver_load(solver, "x", 1));
  REFUSED_AS(TW_ERROR_HANDLE, tw_solver_copy(solver, &copied));
  REFUSED_AS(TW_ERROR_HANDLE, tw_solver_destroy(solver));
  tw_schedule *schedule = handle;
  REFUSED_AS(TW_ERROR_HANDLE, tw_schedule_value(schedule, 0, &value));
  REFUSED_AS(TW_ERROR_HANDLE, tw_schedule_observe(schedule, "loss", 1));
  REFUSED_AS(TW_ERROR_HANDLE, tw_schedule_observe_samples(schedule, &samples));
  REFUSED_AS(TW_ERROR_HANDLE, tw_schedule_command(schedule, "begin_decay"));
  size_t length = 0;
  REFUSED_AS(TW_ERROR_HANDLE, tw_schedule_save(schedule, NULL, 0, &length));
  REFUSED_AS(TW_ERROR_HANDLE, tw_schedule_load(schedule, "x", 1));
  REFUSED_AS(TW_ERROR_HANDLE, tw_schedule_sentence(schedule, NULL, 0, &length));
  REFUSED_AS(TW_ERROR_HANDLE, tw_schedule_destroy(schedule));
  if (check_failures > before) check_fail(__FILE__, __LINE__, "... with %s", what);
}

static void null_and_garbage_handles(void) {
  make_victim("sgd(lr=0.5, momentum=0.5)");
  uint64_t stack[16] = {0};
  void *heap = calloc(64, 8);
  const struct {
    void *pointer;
    const char *what;
  } garbage[] = {{NULL, "NULL"},
                 {(void *)1, "1"},
                 {(void *)8, "8"},
                 {(void *)4096, "4096"},
                 {(void *)INTPTR_MAX, "INTPTR_MAX"},
                 {(void *)-1, "-1"},
                 {(void *)-16, "-16"},
                 {(void *)(uintptr_t)UINT64_C(0xDEADBEEFDEADBEEF), "0xDEADBEEFDEADBEEF"},
                 {stack, "a stack address"},
                 {heap, "a block of zeros"},
                 {(char *)heap + 1, "an odd address"},
                 {(void *)(uintptr_t)null_and_garbage_handles, "the address of code"},
                 {(char *)victim.optimizer + 8, "an address behind a handle"},
                 {(char *)victim.optimizer + 1, "an address in a handle"},
                 {(char *)victim.optimizer - 16, "an address before a handle"}};
  for (size_t i = 0; i < sizeof garbage / sizeof *garbage; i++) {
    all_optimizer_calls(garbage[i].pointer, garbage[i].what);
    all_other_calls(garbage[i].pointer, garbage[i].what);
  }
  free(heap);
  end_victim();
}

static void destroyed_handles(void) {
  make_victim("sgd(lr=0.5, momentum=0.5)");
  tw_optimizer *gone = NULL;
  MUST(tw_optimizer_create("sgd(lr=0.5)", NULL, &gone));
  OK(tw_optimizer_destroy(gone));
  all_optimizer_calls(gone, "a destroyed optimizer");
  all_other_calls(gone, "a destroyed optimizer");
  for (int i = 0; i < 100; i++) {
    MUST(tw_optimizer_create("sgd(lr=0.5)", NULL, &gone));
    OK(tw_optimizer_destroy(gone));
    REFUSED_AS(TW_ERROR_HANDLE, tw_optimizer_destroy(gone));
  }
  if (have("l1")) {
    tw_regularizer *regularizer = NULL;
    MUST(tw_regularizer_create("l1(0.1)", &regularizer));
    OK(tw_regularizer_destroy(regularizer));
    all_other_calls(regularizer, "a destroyed regularizer");
  }
  if (have("cosine")) {
    tw_schedule *schedule = NULL;
    MUST(tw_schedule_create("cosine(lr=0.1, total=10)", &schedule));
    OK(tw_schedule_destroy(schedule));
    all_other_calls(schedule, "a destroyed schedule");
  }
  tw_objective *objective = NULL;
  tw_cache *cache = NULL;
  MUST(tw_objective_create("sum_log_concave", &objective));
  OK(tw_objective_destroy(objective));
  all_other_calls(objective, "a destroyed objective");
  MUST(tw_cache_create(&cache));
  OK(tw_cache_destroy(cache));
  all_other_calls(cache, "a destroyed cache");
  tw_solver *solver = NULL;
  MUST(tw_solver_create("cg", &solver));
  OK(tw_solver_destroy(solver));
  all_other_calls(solver, "a destroyed solver");
  end_victim();
}

static void handles_of_another_kind(void) {
  NEED("l1");
  NEED("simplex");
  NEED("cosine");
  make_victim("sgd(lr=0.5, momentum=0.5)");
  float w[4] = {1, 2, 3, 4};
  tw_tensor tensor = vector(w, TW_F32, &four);
  double value = 0;
  tw_regularizer *regularizer = NULL;
  tw_constraint *constraint = NULL;
  tw_schedule *schedule = NULL;
  MUST(tw_regularizer_create("l1(0.1)", &regularizer));
  MUST(tw_constraint_create("simplex", &constraint));
  MUST(tw_schedule_create("cosine(lr=0.1, total=10)", &schedule));
  all_optimizer_calls((tw_optimizer *)(void *)regularizer, "a regularizer");
  all_optimizer_calls((tw_optimizer *)(void *)constraint, "a constraint");
  all_optimizer_calls((tw_optimizer *)(void *)schedule, "a schedule");
  all_other_calls(victim.optimizer, "an optimizer");
  REFUSED_AS(TW_ERROR_HANDLE, tw_regularizer_value((tw_regularizer *)(void *)schedule, &tensor, &value));
  REFUSED_AS(TW_ERROR_HANDLE, tw_constraint_project((tw_constraint *)(void *)regularizer, &tensor));
  REFUSED_AS(TW_ERROR_HANDLE, tw_schedule_value((tw_schedule *)(void *)constraint, 0, &value));
  REFUSED_AS(TW_ERROR_HANDLE, tw_schedule_destroy((tw_schedule *)(void *)constraint));
  OK(tw_regularizer_destroy(regularizer));
  OK(tw_constraint_destroy(constraint));
  OK(tw_schedule_destroy(schedule));
  end_victim();
}

/* ---- NULL in every place ------------------------------------------------------------------------------ */

static void null_arguments(void) {
  make_victim("sgd(lr=0.5, momentum=0.5)");
  tw_optimizer *o = victim.optimizer, *out = NULL;
  tw_request request = {.struct_size = sizeof request};
  tw_state_info info = {.struct_size = sizeof info};
  tw_method_info method = {.struct_size = sizeof method};
  tw_parameter_info parameter = {.struct_size = sizeof parameter};
  tw_state_slot_info slot = {.struct_size = sizeof slot};
  double value = 7;
  char buffer[8];
  size_t needed = 0;
  REFUSED_AS(TW_ERROR_ARGUMENT, tw_method_at(0, NULL));
  REFUSED_AS(TW_ERROR_ARGUMENT, tw_method_find(NULL, &method));
  REFUSED_AS(TW_ERROR_ARGUMENT, tw_method_find("sgd", NULL));
  REFUSED_AS(TW_ERROR_ARGUMENT, tw_method_parameter(NULL, 0, &parameter));
  REFUSED_AS(TW_ERROR_ARGUMENT, tw_method_parameter("sgd", 0, NULL));
  REFUSED_AS(TW_ERROR_ARGUMENT, tw_method_state(NULL, 0, &slot));
  REFUSED_AS(TW_ERROR_ARGUMENT, tw_method_state("sgd", 0, NULL));
  REFUSED_AS(TW_ERROR_ARGUMENT, tw_options_init(NULL, sizeof(tw_options)));
  REFUSED_AS(TW_ERROR_ARGUMENT, tw_optimizer_create(NULL, NULL, &out));
  REFUSED_AS(TW_ERROR_ARGUMENT, tw_optimizer_create("sgd", NULL, NULL));
  REFUSED_AS(TW_ERROR_ARGUMENT, tw_optimizer_create(NULL, NULL, NULL));
  CHECK(out == NULL);
  REFUSED_AS(TW_ERROR_ARGUMENT, tw_optimizer_add_parameters(o, NULL, 1, NULL, NULL));
  REFUSED_AS(TW_ERROR_ARGUMENT, tw_optimizer_rebind_parameters(o, NULL, 2));
  REFUSED_AS(TW_ERROR_ARGUMENT, tw_optimizer_bind_gradients(o, NULL, 2));
  REFUSED_AS(TW_ERROR_ARGUMENT, tw_optimizer_bind_shadow(o, NULL, 2));
  REFUSED_AS(TW_ERROR_ARGUMENT, tw_optimizer_step_with(o, NULL, 2));
  REFUSED_AS(TW_ERROR_ARGUMENT, tw_optimizer_next(o, NULL));
  REFUSED_AS(TW_ERROR_ARGUMENT, tw_optimizer_waiting(o, NULL));
  REFUSED(tw_optimizer_answer_matrix(o, NULL, NULL));
  REFUSED_AS(TW_ERROR_ARGUMENT, tw_optimizer_observe(o, NULL, 1));
  REFUSED_AS(TW_ERROR_ARGUMENT, tw_optimizer_command(o, NULL));
  REFUSED_AS(TW_ERROR_ARGUMENT, tw_optimizer_get_number(o, NULL, NULL, &value));
  REFUSED_AS(TW_ERROR_ARGUMENT, tw_optimizer_get_number(o, NULL, "lr", NULL));
  REFUSED_AS(TW_ERROR_ARGUMENT, tw_optimizer_set_number(o, NULL, NULL, 1));
  REFUSED_AS(TW_ERROR_ARGUMENT, tw_optimizer_set_text(o, NULL, NULL, "1"));
  REFUSED_AS(TW_ERROR_ARGUMENT, tw_optimizer_set_text(o, NULL, "lr", NULL));
  REFUSED_AS(TW_ERROR_ARGUMENT, tw_optimizer_get_text(o, NULL, NULL, buffer, sizeof buffer, &needed));
  REFUSED_AS(TW_ERROR_ARGUMENT, tw_optimizer_get_text(o, NULL, "lr", NULL, 8, &needed));
  SURVIVES(tw_optimizer_get_text(o, NULL, "lr", NULL, 0, &needed));
  SURVIVES(tw_optimizer_get_text(o, NULL, "lr", buffer, sizeof buffer, NULL));
  REFUSED_AS(TW_ERROR_ARGUMENT, tw_optimizer_sentence(o, NULL, 8, &needed));
  SURVIVES(tw_optimizer_sentence(o, NULL, 0, &needed));
  SURVIVES(tw_optimizer_sentence(o, NULL, 0, NULL));
  REFUSED_AS(TW_ERROR_ARGUMENT, tw_optimizer_state_at(o, 0, NULL));
  REFUSED_AS(TW_ERROR_ARGUMENT, tw_optimizer_state_read(o, 0, NULL, WEIGHTS));
  REFUSED_AS(TW_ERROR_ARGUMENT, tw_optimizer_save(o, NULL, 64, &needed));
  SURVIVES(tw_optimizer_save(o, NULL, 0, NULL));
  SURVIVES(tw_optimizer_save(o, buffer, sizeof buffer, NULL));
  REFUSED_AS(TW_ERROR_ARGUMENT, tw_optimizer_load(o, NULL, 100));
  REFUSED(tw_optimizer_load(o, NULL, 0));
  REFUSED_AS(TW_ERROR_ARGUMENT, tw_optimizer_save_file(o, NULL));
  REFUSED_AS(TW_ERROR_ARGUMENT, tw_optimizer_load_file(o, NULL));
  REFUSED_AS(TW_ERROR_ARGUMENT, tw_regularizer_create(NULL, (tw_regularizer **)(void *)&out));
  REFUSED_AS(TW_ERROR_ARGUMENT, tw_regularizer_create("l1(1)", NULL));
  REFUSED_AS(TW_ERROR_ARGUMENT, tw_constraint_create(NULL, (tw_constraint **)(void *)&out));
  REFUSED_AS(TW_ERROR_ARGUMENT, tw_constraint_create("simplex", NULL));
  REFUSED_AS(TW_ERROR_ARGUMENT, tw_objective_create(NULL, (tw_objective **)(void *)&out));
  REFUSED_AS(TW_ERROR_ARGUMENT, tw_objective_create("sum_log_concave", NULL));
  REFUSED_AS(TW_ERROR_ARGUMENT, tw_cache_create(NULL));
  REFUSED_AS(TW_ERROR_ARGUMENT, tw_method_input(NULL, 0, NULL));
  REFUSED_AS(TW_ERROR_ARGUMENT, tw_method_input("sum_log_concave", 0, NULL));
  REFUSED_AS(TW_ERROR_ARGUMENT, tw_schedule_create(NULL, (tw_schedule **)(void *)&out));
  REFUSED_AS(TW_ERROR_ARGUMENT, tw_schedule_create("cosine(lr=1, total=1)", NULL));
  REFUSED_AS(TW_ERROR_ARGUMENT, tw_random_normal(0, 0, 0, 0, 0, NULL, 1));
  CHECK(value == 7);
  (void)request;
  (void)info;
  end_victim();
}


/* Every prefix and every changed byte of a saved schedule is refused, and so are the bytes of another one. */
static void saved_schedules(void) {
  tw_schedule *schedule = NULL, *twin = NULL;
  MUST(tw_schedule_create("reduce_on_plateau(lr=1, patience=0)", &schedule));
  for (int i = 0; i < 3; i += 1) OK(tw_schedule_observe(schedule, "metric", 1));
  double value = 0, other = 0;
  OK(tw_schedule_value(schedule, 5, &value));
  size_t needed = 0, text = 0;
  REFUSED_AS(TW_ERROR_ARGUMENT, tw_schedule_save(schedule, NULL, 0, NULL));
  REFUSED_AS(TW_ERROR_ARGUMENT, tw_schedule_sentence(schedule, NULL, 0, NULL));
  REFUSED_AS(TW_ERROR_ARGUMENT, tw_schedule_load(schedule, NULL, 8));
  OK(tw_schedule_save(schedule, NULL, 0, &needed));
  OK(tw_schedule_sentence(schedule, NULL, 0, &text));
  unsigned char *bytes = calloc(1, needed + 1);
  char *sentence = calloc(1, text);
  CHECK(bytes != NULL && sentence != NULL);
  if (bytes == NULL || sentence == NULL) return;
  REFUSED_AS(TW_ERROR_ARGUMENT, tw_schedule_save(schedule, NULL, needed, &needed));
  REFUSED_AS(TW_ERROR_SPACE, tw_schedule_save(schedule, bytes, needed - 1, &needed));
  REFUSED_AS(TW_ERROR_SPACE, tw_schedule_sentence(schedule, sentence, text - 1, NULL));
  OK(tw_schedule_save(schedule, bytes, needed, &needed));
  OK(tw_schedule_sentence(schedule, sentence, text, &text));
  MUST(tw_schedule_create("reduce_on_plateau(lr=1, patience=0)", &twin));
  for (size_t n = 0; n < needed; n += 1) {
    REFUSED_AS(TW_ERROR_FORMAT, tw_schedule_load(twin, bytes, n));
    bytes[n] ^= 1;
    REFUSED_AS(TW_ERROR_FORMAT, tw_schedule_load(twin, bytes, needed));
    bytes[n] ^= 1;
  }
  REFUSED_AS(TW_ERROR_FORMAT, tw_schedule_load(twin, bytes, needed + 1));
  REFUSED_AS(TW_ERROR_FORMAT, tw_schedule_load(twin, bytes, SIZE_MAX));
  OK(tw_schedule_value(twin, 5, &other));
  CHECK(other == 1 && value < 0.5);
  OK(tw_schedule_load(twin, bytes, needed));
  OK(tw_schedule_value(twin, 5, &other));
  CHECK(other == value);
  OK(tw_schedule_destroy(twin));
  MUST(tw_schedule_create("reduce_on_plateau(lr=2, patience=0)", &twin));
  REFUSED_AS(TW_ERROR_MISMATCH, tw_schedule_load(twin, bytes, needed));
  OK(tw_schedule_destroy(twin));
  MUST(tw_schedule_create(sentence, &twin));
  OK(tw_schedule_value(twin, 5, &other));
  CHECK(other == value);
  OK(tw_schedule_destroy(twin));
  OK(tw_schedule_destroy(schedule));
  free(bytes);
  free(sentence);
}

static void null_arguments_of_the_others(void) {
  float w[4] = {1, 2, 3, 4}, g[4] = {5, 6, 7, 8};
  tw_tensor tw = vector(w, TW_F32, &four), tg = vector(g, TW_F32, &four);
  double value = 7;
  if (have("l1")) {
    tw_regularizer *regularizer = NULL;
    MUST(tw_regularizer_create("l1(0.5)", &regularizer));
    REFUSED_AS(TW_ERROR_ARGUMENT, tw_regularizer_value(regularizer, NULL, &value));
    REFUSED_AS(TW_ERROR_ARGUMENT, tw_regularizer_value(regularizer, &tw, NULL));
    REFUSED_AS(TW_ERROR_ARGUMENT, tw_regularizer_gradient(regularizer, NULL, 1, &tg));
    REFUSED_AS(TW_ERROR_ARGUMENT, tw_regularizer_gradient(regularizer, &tw, 1, NULL));
    REFUSED_AS(TW_ERROR_ARGUMENT, tw_regularizer_prox(regularizer, NULL, 1));
    REFUSED(tw_regularizer_prox(regularizer, &tw, -1));
    REFUSED(tw_regularizer_prox(regularizer, &tw, NAN));
    REFUSED_AS(TW_ERROR_ARGUMENT, tw_regularizer_prox_steps(regularizer, &tw, NULL));
    REFUSED_AS(TW_ERROR_ARGUMENT, tw_regularizer_prox_steps(regularizer, NULL, &tg));
    SURVIVES(tw_regularizer_gradient(regularizer, &tw, 0, &tw)); /* w and g are one */
    OK(tw_regularizer_destroy(regularizer));
  }
  if (have("simplex")) {
    tw_constraint *constraint = NULL;
    MUST(tw_constraint_create("simplex", &constraint));
    REFUSED_AS(TW_ERROR_ARGUMENT, tw_constraint_project(constraint, NULL));
    REFUSED(tw_constraint_tangent(constraint, NULL, &tg));
    REFUSED(tw_constraint_tangent(constraint, &tw, NULL));
    REFUSED(tw_constraint_retract(constraint, NULL, &tg));
    REFUSED(tw_constraint_retract(constraint, &tw, NULL));
    REFUSED(tw_constraint_lmo(constraint, NULL, &tw));
    REFUSED(tw_constraint_lmo(constraint, &tg, NULL));
    OK(tw_constraint_destroy(constraint));
  }
  if (have("euclidean")) {
    tw_constraint *constraint = NULL;
    double value = NAN;
    MUST(tw_constraint_create("euclidean", &constraint));
    REFUSED_AS(TW_ERROR_ARGUMENT, tw_constraint_project_tangent(constraint, NULL, &tg));
    REFUSED_AS(TW_ERROR_ARGUMENT, tw_constraint_exp(constraint, &tw, NULL));
    REFUSED_AS(TW_ERROR_ARGUMENT, tw_constraint_log(constraint, &tw, NULL, &tg));
    REFUSED_AS(TW_ERROR_ARGUMENT, tw_constraint_transport(constraint, &tw, NULL, &tg));
    REFUSED_AS(TW_ERROR_ARGUMENT, tw_constraint_points(constraint, NULL, NULL, NULL));
    REFUSED_AS(TW_ERROR_ARGUMENT, tw_constraint_inner(constraint, &tw, &tg, NULL, &value, 1));
    REFUSED_AS(TW_ERROR_ARGUMENT, tw_constraint_distance(constraint, &tw, &tg, NULL, 1000));
    REFUSED_AS(TW_ERROR_SPACE, tw_constraint_distance(constraint, &tw, &tg, &value, 0));
    REFUSED_AS(TW_ERROR_ARGUMENT, tw_constraint_check_point(constraint, &tw, NULL, SIZE_MAX));
    REFUSED_AS(TW_ERROR_ARGUMENT, tw_constraint_check_tangent(constraint, &tw, NULL, &value, 1));
    SURVIVES(tw_constraint_transport(constraint, &tw, &tw, &tw)); /* all are one */
    OK(tw_constraint_destroy(constraint));
  }
  if (have("cosine")) {
    tw_schedule *schedule = NULL;
    MUST(tw_schedule_create("cosine(lr=1, total=10)", &schedule));
    REFUSED_AS(TW_ERROR_ARGUMENT, tw_schedule_value(schedule, 0, NULL));
    REFUSED_AS(TW_ERROR_ARGUMENT, tw_schedule_observe(schedule, NULL, 1));
    REFUSED(tw_schedule_observe_samples(schedule, NULL));
    REFUSED_AS(TW_ERROR_ARGUMENT, tw_schedule_command(schedule, NULL));
    REFUSED(tw_schedule_command(schedule, ""));
    REFUSED(tw_schedule_observe(schedule, "nonsense", 1));
    OK(tw_schedule_destroy(schedule));
  }
  if (have("reduce_on_plateau")) saved_schedules();
  CHECK(value == 7 && w[0] == 1 && g[0] == 5);
}

static void objectives(void) {
  static const int64_t three = 3, none = 0, most = INT64_MAX, nothing = 0, backward = -1;
  static const int64_t scores_shape[2] = {2, 2}, vast[2] = {INT64_C(1) << 44, 2}, still[2] = {0, 0};
  static const int64_t parts_shape[2] = {4, 3};
  float f[4] = {1, 2, 3, 4}, grads[12] = {0}, df[4] = {5, 6, 7, 8}, x[3] = {1, 2, 3}, z[4] = {1, -2, 3, -4};
  int64_t y[2] = {1, -1}, labels[2] = {1, 2};
  double value = 7;
  tw_objective *sum = NULL, *other = NULL, *checkered = NULL;
  tw_cache *cache = NULL, *empty = NULL;
  MUST(tw_objective_create("sum_log_concave", &sum));
  MUST(tw_objective_create("sum_log_concave", &other));
  MUST(tw_objective_create("checkered_regression", &checkered));
  MUST(tw_cache_create(&cache));
  MUST(tw_cache_create(&empty));
  tw_tensor in[4] = {vector(f, TW_F32, &four), view(grads, TW_F32, 2, parts_shape, NULL),
                     vector(x, TW_F32, &three)};
  tw_tensor out[4] = {vector(df, TW_F32, &four), view(NULL, 0, -1, NULL, NULL), vector(x, TW_F32, &three)};
  in[3] = out[3] = view(NULL, 0, -1, NULL, NULL);
  out[1].flags = TW_TENSOR_ABSENT; /* nothing else of it is read */
  tw_tensor good[2] = {in[0], in[1]};
  /* NULL and wrong counts */
  REFUSED_AS(TW_ERROR_ARGUMENT, tw_objective_forward(sum, NULL, 1, NULL, &value));
  REFUSED_AS(TW_ERROR_ARGUMENT, tw_objective_forward(sum, in, 1, NULL, NULL));
  REFUSED_AS(TW_ERROR_NEEDS, tw_objective_forward(sum, in, 0, NULL, &value));
  REFUSED_AS(TW_ERROR_NEEDS, tw_objective_forward(sum, NULL, 0, NULL, &value));
  REFUSED_AS(TW_ERROR_ARGUMENT, tw_objective_forward(sum, in, 3, NULL, &value)); /* a result is no input */
  REFUSED_AS(TW_ERROR_COUNT, tw_objective_forward(sum, in, SIZE_MAX, NULL, &value));
  REFUSED_AS(TW_ERROR_COUNT, tw_objective_forward(sum, in, (size_t)1 << 40, NULL, &value));
  REFUSED(tw_objective_forward(sum, in, 4, NULL, &value));
  REFUSED_AS(TW_ERROR_SEQUENCE, tw_objective_pullback(sum, empty, 1, out, 1));
  CHECK(value == 7);
  OK(tw_objective_forward(sum, good, 2, cache, &value));
  REFUSED_AS(TW_ERROR_ARGUMENT, tw_objective_pullback(sum, cache, 1, NULL, 1));
  REFUSED_AS(TW_ERROR_COUNT, tw_objective_pullback(sum, cache, 1, out, SIZE_MAX));
  REFUSED(tw_objective_pullback(sum, cache, 1, out, 4));
  REFUSED_AS(TW_ERROR_MISMATCH, tw_objective_pullback(other, cache, 1, out, 1));
  REFUSED_AS(TW_ERROR_MISMATCH, tw_objective_pullback(checkered, cache, 1, out, 1));
  REFUSED_AS(TW_ERROR_RANGE, tw_objective_pullback(sum, cache, NAN, out, 1));
  REFUSED_AS(TW_ERROR_RANGE, tw_objective_pullback(sum, cache, -INFINITY, out, 1));
  REFUSED_AS(TW_ERROR_HANDLE, tw_objective_pullback(sum, NULL, 1, out, 1));
  REFUSED_AS(TW_ERROR_HANDLE, tw_objective_pullback(sum, (tw_cache *)(void *)sum, 1, out, 1));
  REFUSED_AS(TW_ERROR_HANDLE, tw_objective_forward(sum, in, 1, (tw_cache *)(void *)sum, &value));
  REFUSED_AS(TW_ERROR_ARGUMENT, tw_objective_pullback(sum, cache, 1, in, 2)); /* grads is held constant */
  OK(tw_objective_pullback(sum, cache, 1, NULL, 0));
  /* gradients that cannot be written */
#define BAD_GRADIENT(expected, change) \
  do { \
    tw_tensor kept = out[2]; \
    change; \
    REFUSED_AS(expected, tw_objective_pullback(sum, cache, 1, out, 3)); \
    CHECK(df[0] == 5 && x[0] == 1 && x[2] == 3); \
    out[2] = kept; \
  } while (0)
  BAD_GRADIENT(TW_ERROR_SHAPE, out[2].shape = &four);
  BAD_GRADIENT(TW_ERROR_SHAPE, out[2].shape = &none);
  BAD_GRADIENT(TW_ERROR_SHAPE, out[2].shape = &most);
  BAD_GRADIENT(TW_ERROR_DTYPE, out[2].dtype = TW_I32);
  BAD_GRADIENT(TW_ERROR_DTYPE, out[2].dtype = 0);
  BAD_GRADIENT(TW_ERROR_LAYOUT, out[2].flags = TW_TENSOR_READ_ONLY);
  BAD_GRADIENT(TW_ERROR_LAYOUT, out[2].data = (char *)x + 1);
  BAD_GRADIENT(TW_ERROR_ARGUMENT, out[2].data = NULL);
  BAD_GRADIENT(TW_ERROR_OVERLAP, out[2].strides = &nothing);
  BAD_GRADIENT(TW_ERROR_OVERLAP, out[2].data = df + 1);
#undef BAD_GRADIENT
  OK(tw_objective_pullback(sum, cache, 1, out, 3));
  CHECK(df[0] > 5 && x[0] == 1);
  /* without the gradients of the parts there is no gradient at the point */
  OK(tw_objective_forward(sum, in, 1, cache, &value));
  REFUSED_AS(TW_ERROR_NEEDS, tw_objective_pullback(sum, cache, 1, out, 3));
  /* one part alone, and the parts backwards */
  tw_tensor single = view(f, TW_F32, 1, &one, NULL), reversed = view(f + 3, TW_F32, 1, &four, &backward);
  OK(tw_objective_forward(sum, &single, 1, NULL, &value));
  EQUAL(value, 1);
  double straight = 0;
  OK(tw_objective_forward(sum, in, 1, NULL, &straight));
  OK(tw_objective_forward(sum, &reversed, 1, NULL, &value));
  NEAR(value, straight, 1e-15);
  single.shape = &none;
  REFUSED_AS(TW_ERROR_SHAPE, tw_objective_forward(sum, &single, 1, NULL, &value));
  single = view(f, TW_F32, 0, NULL, NULL);
  REFUSED_AS(TW_ERROR_SHAPE, tw_objective_forward(sum, &single, 1, NULL, &value));
  single = view(labels, TW_I64, 1, &two, NULL);
  REFUSED_AS(TW_ERROR_DTYPE, tw_objective_forward(sum, &single, 1, NULL, &value));
  /* labels */
  tw_tensor pair[2] = {view(z, TW_F32, 2, scores_shape, NULL), vector(y, TW_I64, &two)};
  OK(tw_objective_forward(checkered, pair, 2, cache, &value));
  REFUSED_AS(TW_ERROR_NEEDS, tw_objective_forward(checkered, pair, 1, cache, &value));
  pair[1].data = labels;
  REFUSED_AS(TW_ERROR_RANGE, tw_objective_forward(checkered, pair, 2, cache, &value));
  pair[1] = vector((char *)y + 4, TW_I64, &two);
  REFUSED_AS(TW_ERROR_LAYOUT, tw_objective_forward(checkered, pair, 2, cache, &value));
  pair[1] = vector(y, 7, &two);
  REFUSED_AS(TW_ERROR_DTYPE, tw_objective_forward(checkered, pair, 2, cache, &value));
  pair[1] = vector(y, TW_I64, &two);
  pair[1].flags = TW_TENSOR_ABSENT;
  REFUSED_AS(TW_ERROR_NEEDS, tw_objective_forward(checkered, pair, 2, cache, &value));
  /* sixteen trillion rows that are one row; no machine has room for them */
  pair[0] = view(z, TW_F16, 2, vast, still), pair[1] = vector(y, TW_I64, vast);
  pair[1].strides = &nothing;
  REFUSED_AS(TW_ERROR_MEMORY, tw_objective_forward(checkered, pair, 2, cache, &value));
  /* the cache is still that of the last good pass */
  tw_tensor dz = view(z, TW_F32, 2, scores_shape, NULL);
  OK(tw_objective_pullback(checkered, cache, 0, &dz, 1));
  CHECK(z[0] == 1 && z[3] == -4);
  OK(tw_objective_destroy(checkered));
  OK(tw_objective_destroy(other));
  OK(tw_objective_destroy(sum));
  OK(tw_cache_destroy(empty));
  OK(tw_cache_destroy(cache));
}

static void inputs_of_regularizers(void) {
  static const int64_t square[2] = {2, 2}, cube[3] = {3, 1, 2}, other[3] = {3, 1, 4};
  float w[4] = {1, 2, 3, 4}, g[4] = {5, 6, 7, 8};
  float delta[12] = {1, 1, 1, 1, 1, 1}, slope[12] = {1, 1, 1, 1, 1, 1};
  double value = 7;
  tw_regularizer *r = NULL, *l1 = NULL;
  MUST(tw_regularizer_create("rnn_vanishing", &r));
  MUST(tw_regularizer_create("l1(0.5)", &l1));
  tw_tensor in[3] = {view(w, TW_F32, 2, square, NULL), view(delta, TW_F32, 3, cube, NULL),
                     view(slope, TW_F32, 3, cube, NULL)};
  tw_tensor tg = view(g, TW_F32, 2, square, NULL), wrong = view(g, TW_F32, 1, &four, NULL);
  REFUSED_AS(TW_ERROR_NEEDS, tw_regularizer_value(r, in, &value));
  REFUSED_AS(TW_ERROR_NEEDS, tw_regularizer_gradient(r, in, 1, &tg));
  REFUSED_AS(TW_ERROR_NEEDS, tw_regularizer_value_with(r, in, 2, &value));
  REFUSED_AS(TW_ERROR_UNSUPPORTED, tw_regularizer_prox(r, in, 1));
  REFUSED_AS(TW_ERROR_ARGUMENT, tw_regularizer_value_with(r, NULL, 3, &value));
  REFUSED_AS(TW_ERROR_ARGUMENT, tw_regularizer_value_with(r, in, 3, NULL));
  REFUSED_AS(TW_ERROR_COUNT, tw_regularizer_value_with(r, in, SIZE_MAX, &value));
  REFUSED_AS(TW_ERROR_ARGUMENT, tw_regularizer_gradient_with(r, in, 3, 1, NULL));
  REFUSED_AS(TW_ERROR_RANGE, tw_regularizer_gradient_with(r, in, 3, NAN, &tg));
  REFUSED_AS(TW_ERROR_SHAPE, tw_regularizer_gradient_with(r, in, 3, 1, &wrong));
  in[2].shape = other;
  REFUSED_AS(TW_ERROR_SHAPE, tw_regularizer_gradient_with(r, in, 3, 1, &tg));
  in[2].shape = cube;
  OK(tw_regularizer_gradient_with(r, in, 3, 0, &tg));
  /* those that need the weights alone take them alone */
  REFUSED_AS(TW_ERROR_COUNT, tw_regularizer_value_with(l1, in, 3, &value));
  REFUSED_AS(TW_ERROR_COUNT, tw_regularizer_gradient_with(l1, in, 0, 1, &tg));
  REFUSED_AS(TW_ERROR_SHAPE, tw_regularizer_gradient_with(l1, in, 1, 1, &wrong));
  CHECK(value == 7 && g[0] == 5 && g[3] == 8);
  OK(tw_regularizer_value_with(l1, in, 1, &value));
  EQUAL(value, 5);
  OK(tw_regularizer_destroy(r));
  OK(tw_regularizer_destroy(l1));
}

/* ---- tensors ------------------------------------------------------------------------------------------ */

typedef struct {
  const char *what;
  tw_tensor tensor;
  tw_status status; /* what add_parameters must say; 0: any refusal; 1: may be accepted */
} bad_tensor;

static float bad_memory[64];
static int64_t many_ones[2000];

/* Every way we know to make a tensor that a parameter cannot be. */
static size_t bad_tensors(bad_tensor *list) {
  static const int64_t negative[2] = {4, -1}, most_negative[1] = {INT64_MIN}, huge[1] = {INT64_MAX};
  static const int64_t huge_two[2] = {INT64_MAX, 2}, product[2] = {INT64_C(1) << 32, INT64_C(1) << 32};
  static const int64_t bytes[1] = {INT64_C(1) << 61},
                       three_big[3] = {INT64_C(1) << 21, INT64_C(1) << 21, 1 << 21};
  static const int64_t wrap[4] = {INT64_C(1) << 16, INT64_C(1) << 16, INT64_C(1) << 16, INT64_C(1) << 16};
  static const int64_t half[1] = {INT64_C(1) << 62}, empty_huge[3] = {0, INT64_MAX, INT64_MAX};
  static const int64_t empty_negative[2] = {0, -5}, thousand[1] = {1000};
  static const int64_t four_by_four[2] = {4, 4};
  static const int64_t zero_stride[1] = {0}, windows[2] = {1, 1}, partly[2] = {2, 1}, zero_inner[2] = {4, 0};
  static const int64_t stride_max[1] = {INT64_MAX}, stride_min[1] = {INT64_MIN},
                       stride_big[1] = {INT64_C(1) << 60};
  static const int64_t opposing[2] = {-1, 1};
  for (size_t i = 0; i < sizeof many_ones / sizeof *many_ones; i++) many_ones[i] = 1;
  size_t n = 0;
#define BAD(text, expected, ...) \
  list[n].what = text, list[n].status = expected, list[n].tensor = view(__VA_ARGS__), n++
  BAD("ndim -1", TW_ERROR_SHAPE, bad_memory, TW_F32, -1, &four, NULL);
  BAD("ndim INT32_MIN", TW_ERROR_SHAPE, bad_memory, TW_F32, INT32_MIN, &four, NULL);
  BAD("ndim 65", TW_ERROR_SHAPE, bad_memory, TW_F32, 65, many_ones, NULL);
  BAD("ndim 2000", TW_ERROR_SHAPE, bad_memory, TW_F32, 2000, many_ones, NULL);
  BAD("ndim INT32_MAX", TW_ERROR_SHAPE, bad_memory, TW_F32, INT32_MAX, &four, NULL);
  BAD("NULL shape", 0, bad_memory, TW_F32, 1, NULL, NULL);
  BAD("NULL data", 0, NULL, TW_F32, 1, &four, NULL);
  BAD("NULL scalar", 0, NULL, TW_F32, 0, NULL, NULL);
  BAD("a negative extent", TW_ERROR_SHAPE, bad_memory, TW_F32, 2, negative, NULL);
  BAD("extent INT64_MIN", TW_ERROR_SHAPE, bad_memory, TW_F32, 1, most_negative, NULL);
  BAD("extent INT64_MAX", TW_ERROR_SHAPE, bad_memory, TW_F32, 1, huge, NULL);
  BAD("extents INT64_MAX, 2", TW_ERROR_SHAPE, bad_memory, TW_F32, 2, huge_two, NULL);
  BAD("2^32 times 2^32", TW_ERROR_SHAPE, bad_memory, TW_F32, 2, product, NULL);
  BAD("2^63", TW_ERROR_SHAPE, bad_memory, TW_F32, 3, three_big, NULL);
  BAD("2^64", TW_ERROR_SHAPE, bad_memory, TW_F32, 4, wrap, NULL);
  BAD("2^61 elements of 4 bytes", TW_ERROR_SHAPE, bad_memory, TW_F32, 1, bytes, NULL);
  BAD("2^62 elements of 2 bytes", TW_ERROR_SHAPE, bad_memory, TW_BF16, 1, half, NULL);
  BAD("empty, with a negative extent", TW_ERROR_SHAPE, bad_memory, TW_F32, 2, empty_negative, NULL);
  BAD("empty, of huge extents", 1, bad_memory, TW_F32, 3, empty_huge, NULL);
  BAD("dtype 0", TW_ERROR_DTYPE, bad_memory, 0, 1, &four, NULL);
  BAD("dtype 5", TW_ERROR_DTYPE, bad_memory, 5, 1, &four, NULL);
  BAD("dtype -1", TW_ERROR_DTYPE, bad_memory, -1, 1, &four, NULL);
  BAD("dtype INT32_MIN", TW_ERROR_DTYPE, bad_memory, INT32_MIN, 1, &four, NULL);
  BAD("dtype INT32_MAX", TW_ERROR_DTYPE, bad_memory, INT32_MAX, 1, &four, NULL);
  BAD("misaligned by 1", TW_ERROR_LAYOUT, (char *)bad_memory + 1, TW_F32, 1, &four, NULL);
  BAD("misaligned by 2", TW_ERROR_LAYOUT, (char *)bad_memory + 2, TW_F32, 1, &four, NULL);
  BAD("misaligned f64", TW_ERROR_LAYOUT, (char *)bad_memory + 4, TW_F64, 1, &four, NULL);
  BAD("misaligned f16", TW_ERROR_LAYOUT, (char *)bad_memory + 1, TW_F16, 1, &four, NULL);
  BAD("stride 0", TW_ERROR_LAYOUT, bad_memory, TW_F32, 1, &four, zero_stride);
  BAD("inner stride 0", TW_ERROR_LAYOUT, bad_memory, TW_F32, 2, four_by_four, zero_inner);
  BAD("sliding windows", TW_ERROR_LAYOUT, bad_memory, TW_F32, 2, four_by_four, windows);
  BAD("rows that overlap", TW_ERROR_LAYOUT, bad_memory, TW_F32, 2, four_by_four, partly);
  BAD("windows that run against each other", TW_ERROR_LAYOUT, bad_memory + 32, TW_F32, 2, four_by_four,
      opposing);
  BAD("stride INT64_MAX", 0, bad_memory, TW_F32, 1, &four, stride_max);
  BAD("stride INT64_MIN", 0, bad_memory, TW_F32, 1, &four, stride_min);
  BAD("stride 2^60", 0, bad_memory, TW_F32, 1, &four, stride_big);
  BAD("memory that ends behind the address space", 0, (void *)(UINTPTR_MAX - 3), TW_F32, 1, thousand, NULL);
  BAD("data -4", 0, (void *)(UINTPTR_MAX - 3), TW_F32, 1, &four, NULL);
  BAD("read-only", TW_ERROR_LAYOUT, bad_memory, TW_F32, 1, &four, NULL);
  list[n - 1].tensor.flags = TW_TENSOR_READ_ONLY;
  BAD("absent", 1, bad_memory, TW_F32, 1, &four, NULL);
  list[n - 1].tensor.flags = TW_TENSOR_ABSENT;
  BAD("absent and NULL", 0, NULL, TW_F32, 1, &four, NULL);
  list[n - 1].tensor.flags = TW_TENSOR_ABSENT;
  BAD("unknown flags", 1, bad_memory, TW_F32, 1, &four, NULL);
  list[n - 1].tensor.flags = UINT32_C(0xFFFFFFF0);
  BAD("an unknown role", 1, bad_memory, TW_F32, 1, &four, NULL);
  list[n - 1].tensor.role = UINT32_MAX;
  BAD("reserved words in use", 1, bad_memory, TW_F32, 1, &four, NULL);
  list[n - 1].tensor.reserved[0] = list[n - 1].tensor.reserved[2] = UINT64_MAX;
#undef BAD
  return n;
}

static void bad_parameters(void) {
  static bad_tensor list[64];
  size_t count = bad_tensors(list);
  make_victim("sgd(lr=0.5, momentum=0.5)");
  float before[64];
  memcpy(before, bad_memory, sizeof before);
  for (size_t i = 0; i < count; i++) {
    tw_optimizer *fresh = NULL;
    float good = 1;
    tw_tensor pair[2] = {view(&good, TW_F32, 0, NULL, NULL), list[i].tensor};
    MUST(tw_optimizer_create("sgd(lr=0.5)", NULL, &fresh));
    note("parameter: %s", list[i].what);
    mark_message();
    tw_status status = tw_optimizer_add_parameters(fresh, pair, 2, NULL, NULL);
    if (status < 0) {
      if (refused(__LINE__, list[i].what, status) && list[i].status < 0 && status != list[i].status) {
        check_fail(__FILE__, __LINE__, "%s gave %s, not %s: %s", list[i].what, tw_status_name(status),
                   tw_status_name(list[i].status), tw_last_error());
      }
      /* Neither tensor was bound. */
      CHECK(tw_optimizer_parameter_count(fresh) == 0);
      OK(tw_optimizer_add_parameters(fresh, pair, 1, NULL, NULL));
    } else if (list[i].status != 1) {
      check_fail(__FILE__, __LINE__, "a parameter was accepted: %s", list[i].what);
    }
    OK(tw_optimizer_destroy(fresh));
    /* The same behind the parameters of an optimizer that runs, and in its place. */
    if (status < 0) {
      REFUSED(tw_optimizer_add_parameters(victim.optimizer, &list[i].tensor, 1, NULL, NULL));
    }
    tw_tensor moved[2] = {list[i].tensor, victim.parameters[1]};
    int failures = check_failures;
    REFUSED(tw_optimizer_rebind_parameters(victim.optimizer, moved, 2));
    REFUSED(tw_optimizer_bind_shadow(victim.optimizer, moved, 2));
    if (check_failures > failures) {
      check_fail(__FILE__, __LINE__, "... with %s", list[i].what);
      return;
    }
  }
  CHECK(memcmp(before, bad_memory, sizeof before) == 0);
  CHECK(tw_optimizer_parameter_count(victim.optimizer) == 2);
  end_victim();
}

static void bad_gradients(void) {
  static bad_tensor list[64];
  size_t count = bad_tensors(list);
  make_victim("sgd(lr=0.5, momentum=0.5)");
  tw_optimizer *o = victim.optimizer;
  for (size_t i = 0; i < count; i++) {
    if (list[i].tensor.flags == TW_TENSOR_READ_ONLY || list[i].tensor.flags == TW_TENSOR_ABSENT) continue;
    /* In the place of the bias, whose shape none of them has. */
    tw_tensor gradients[2] = {victim.gradients[0], list[i].tensor};
    note("gradient: %s", list[i].what);
    REFUSED(tw_optimizer_bind_gradients(o, gradients, 2));
    REFUSED(tw_optimizer_step_with(o, gradients, 2));
  }
  /* The right shape in every other wrong way. */
  tw_tensor g[2] = {victim.gradients[0], victim.gradients[1]};
  static const int64_t six = 6, backward = -1, far = INT64_MAX / 2;
  static const int64_t transposed[2] = {COLUMNS, ROWS};
  static double wide[BIASES]; /* may be refused, or rounded */
  g[1].dtype = TW_F64, g[1].data = wide;
  SURVIVES(tw_optimizer_bind_gradients(o, g, 2));
  g[1] = victim.gradients[1], g[1].shape = &six;
  REFUSED_AS(TW_ERROR_SHAPE, tw_optimizer_bind_gradients(o, g, 2));
  g[1] = victim.gradients[1], g[0].shape = transposed;
  REFUSED_AS(TW_ERROR_SHAPE, tw_optimizer_bind_gradients(o, g, 2));
  g[0] = victim.gradients[0], g[1].data = NULL;
  REFUSED(tw_optimizer_bind_gradients(o, g, 2));
  g[1] = victim.gradients[1], g[1].data = (char *)victim.gb + 1;
  REFUSED_AS(TW_ERROR_LAYOUT, tw_optimizer_bind_gradients(o, g, 2));
  g[1] = victim.gradients[1], g[1].strides = &far;
  REFUSED(tw_optimizer_bind_gradients(o, g, 2));
  /* A gradient in the memory of a parameter. */
  g[1] = victim.gradients[1], g[1].data = victim.b;
  REFUSED_AS(TW_ERROR_OVERLAP, tw_optimizer_bind_gradients(o, g, 2));
  g[1] = victim.gradients[1], g[0].data = victim.w;
  REFUSED_AS(TW_ERROR_OVERLAP, tw_optimizer_bind_gradients(o, g, 2));
  REFUSED_AS(TW_ERROR_OVERLAP, tw_optimizer_step_with(o, g, 2));
  (void)backward;
  /* Wrong counts. */
  REFUSED_AS(TW_ERROR_COUNT, tw_optimizer_bind_gradients(o, victim.gradients, 0));
  REFUSED_AS(TW_ERROR_COUNT, tw_optimizer_bind_gradients(o, victim.gradients, 1));
  /* The count is looked at before the tensors: behind the second there may be anything. */
  tw_tensor three[3] = {victim.gradients[0], victim.gradients[1], view(NULL, 0, -1, NULL, NULL)};
  REFUSED_AS(TW_ERROR_COUNT, tw_optimizer_bind_gradients(o, three, 3));
  REFUSED_AS(TW_ERROR_COUNT, tw_optimizer_step_with(o, three, 3));
  REFUSED_AS(TW_ERROR_COUNT, tw_optimizer_bind_shadow(o, three, 3));
  REFUSED_AS(TW_ERROR_COUNT, tw_optimizer_bind_gradients(o, victim.gradients, SIZE_MAX));
  REFUSED_AS(TW_ERROR_COUNT, tw_optimizer_step_with(o, victim.gradients, 1));
  REFUSED_AS(TW_ERROR_COUNT, tw_optimizer_step_with(o, victim.gradients, SIZE_MAX));
  REFUSED_AS(TW_ERROR_COUNT, tw_optimizer_rebind_parameters(o, victim.parameters, 1));
  three[0] = victim.parameters[0], three[1] = victim.parameters[1];
  REFUSED_AS(TW_ERROR_COUNT, tw_optimizer_rebind_parameters(o, three, 3));
  REFUSED_AS(TW_ERROR_COUNT, tw_optimizer_bind_shadow(o, victim.gradients, 1));
  REFUSED(tw_optimizer_bind_shadow(o, victim.gradients, 2)); /* f32 is not 16 bits wide */
  REFUSED(tw_optimizer_add_parameters(o, victim.gradients, SIZE_MAX, NULL, NULL));
  SURVIVES(tw_optimizer_add_parameters(o, NULL, 0, NULL, NULL));
  end_victim();
}

static void overlapping_parameters(void) {
  static float memory[64];
  static const int64_t eight = 8;
  make_victim("sgd(lr=0.5, momentum=0.5)");
  tw_optimizer *fresh = NULL;
  MUST(tw_optimizer_create("sgd(lr=0.5)", NULL, &fresh));
  tw_tensor same[2] = {vector(memory, TW_F32, &eight), vector(memory, TW_F32, &eight)};
  tw_tensor shifted[2] = {vector(memory, TW_F32, &eight), vector(memory + 7, TW_F32, &eight)};
  tw_tensor inside[2] = {vector(memory, TW_F32, &eight), vector(memory + 2, TW_F32, &one)};
  tw_tensor other_type[2] = {vector(memory, TW_F32, &eight), vector(memory + 6, TW_F64, &four)};
  tw_tensor apart[2] = {vector(memory, TW_F32, &eight), vector(memory + 8, TW_F32, &eight)};
  REFUSED_AS(TW_ERROR_OVERLAP, tw_optimizer_add_parameters(fresh, same, 2, NULL, NULL));
  REFUSED_AS(TW_ERROR_OVERLAP, tw_optimizer_add_parameters(fresh, shifted, 2, NULL, NULL));
  REFUSED_AS(TW_ERROR_OVERLAP, tw_optimizer_add_parameters(fresh, inside, 2, NULL, NULL));
  REFUSED_AS(TW_ERROR_OVERLAP, tw_optimizer_add_parameters(fresh, other_type, 2, NULL, NULL));
  CHECK(tw_optimizer_parameter_count(fresh) == 0);
  OK(tw_optimizer_add_parameters(fresh, apart, 1, NULL, NULL));
  REFUSED_AS(TW_ERROR_OVERLAP, tw_optimizer_add_parameters(fresh, same, 1, NULL, NULL));
  REFUSED_AS(TW_ERROR_OVERLAP, tw_optimizer_add_parameters(fresh, &shifted[1], 1, NULL, NULL));
  OK(tw_optimizer_add_parameters(fresh, &apart[1], 1, NULL, NULL));
  REFUSED_AS(TW_ERROR_OVERLAP, tw_optimizer_rebind_parameters(fresh, same, 2));
  REFUSED_AS(TW_ERROR_OVERLAP, tw_optimizer_rebind_parameters(fresh, shifted, 2));
  /* Many tensors, of which the first and the last meet. */
  enum { MANY = 3000 };
  static float column[MANY];
  static tw_tensor many[MANY + 1];
  tw_optimizer *wide = NULL;
  for (int i = 0; i < MANY; i++) many[i] = vector(&column[i], TW_F32, &one);
  many[MANY] = vector(&column[0], TW_F32, &one);
  MUST(tw_optimizer_create("sgd(lr=0.5)", NULL, &wide));
  REFUSED_AS(TW_ERROR_OVERLAP, tw_optimizer_add_parameters(wide, many, MANY + 1, NULL, NULL));
  OK(tw_optimizer_add_parameters(wide, many, MANY, NULL, NULL));
  OK(tw_optimizer_destroy(wide));
  OK(tw_optimizer_destroy(fresh));
  end_victim();
}

static void bad_names(void) {
  float a[2] = {1, 2}, b[2] = {3, 4};
  make_victim("sgd(lr=0.5, momentum=0.5)");
  tw_tensor pair[2] = {vector(a, TW_F32, &two), vector(b, TW_F32, &two)};
  static char long_name[100001];
  memset(long_name, 'n', sizeof long_name - 1);
  const char *const twice[2] = {"x", "x"}, *const hole[2] = {"x", NULL}, *const taken[2] = {"x", "bias"};
  const char *const no_text[2] = {"x", "\xff\xfe"}, *const empty[2] = {"", ""},
                    *const longs[2] = {"x", long_name};
  REFUSED(tw_optimizer_add_parameters(victim.optimizer, pair, 2, twice, NULL));
  REFUSED_AS(TW_ERROR_ARGUMENT, tw_optimizer_add_parameters(victim.optimizer, pair, 2, hole, NULL));
  REFUSED(tw_optimizer_add_parameters(victim.optimizer, pair, 2, taken, NULL));
  REFUSED(tw_optimizer_add_parameters(victim.optimizer, pair, 2, empty, NULL));
  /* Odd names are refused or survive a checkpoint. */
  const char *const *const odd[2] = {no_text, longs};
  for (int i = 0; i < 2; i++) {
    tw_optimizer *fresh = NULL;
    tw_tensor gradients[2] = {pair[1], pair[0]};
    float ga[2] = {1, 1}, gb[2] = {1, 1};
    gradients[0].data = ga, gradients[1].data = gb;
    MUST(tw_optimizer_create("sgd(lr=0.5, momentum=0.5)", NULL, &fresh));
    mark_message();
    tw_status status = tw_optimizer_add_parameters(fresh, pair, 2, odd[i], NULL);
    if (status < 0) {
      refused(__LINE__, "odd names", status);
    } else {
      OK(tw_optimizer_step_with(fresh, gradients, 2));
      checkpoint saved = save(fresh);
      CHECK(saved.data != NULL);
      OK(tw_optimizer_load(fresh, saved.data, saved.size));
      free(saved.data);
    }
    OK(tw_optimizer_destroy(fresh));
  }
  SURVIVES(tw_optimizer_get_number(victim.optimizer, long_name, "lr", (double[1]){0}));
  end_victim();
}

/* ---- structs that grow -------------------------------------------------------------------------------- */

enum { ROOM = 512 };

/* Whatever struct_size says, nothing behind it (or behind the struct that the library knows) is written. */
#define CANARY(type, text, call) \
  do { \
    static const size_t sizes[] = {0, \
                                   1, \
                                   7, \
                                   8, \
                                   9, \
                                   15, \
                                   16, \
                                   sizeof(type) - 8, \
                                   sizeof(type) - 1, \
                                   sizeof(type), \
                                   sizeof(type) + 1, \
                                   sizeof(type) + 8, \
                                   256, \
                                   SIZE_MAX}; \
    for (size_t canary_i = 0; canary_i < sizeof sizes / sizeof *sizes; canary_i++) { \
      union { \
        type value; \
        unsigned char bytes[ROOM]; \
      } room; \
      memset(&room, 0xA5, sizeof room); \
      room.value.struct_size = sizes[canary_i]; \
      type *info = &room.value; \
      note("%s with struct_size %zu", text, sizes[canary_i]); \
      mark_message(); \
      tw_status canary_status = (call); \
      if (canary_status < 0) refused(__LINE__, text, canary_status); \
      size_t end = sizes[canary_i] < sizeof(type) ? sizes[canary_i] : sizeof(type); \
      if (end < sizeof(size_t)) end = sizeof(size_t); \
      for (size_t k = end; k < sizeof room; k++) { \
        if (room.bytes[k] != 0xA5) { \
          check_fail(__FILE__, __LINE__, "%s with struct_size %zu writes byte %zu", text, sizes[canary_i], \
                     k); \
          break; \
        } \
      } \
      if (sizes[canary_i] == 0 && canary_status >= 0) \
        check_fail(__FILE__, __LINE__, "%s accepts size 0", text); \
      if (sizes[canary_i] == sizeof(type) && canary_status < 0) { \
        check_fail(__FILE__, __LINE__, "%s refuses its size: %s", text, tw_last_error()); \
      } \
    } \
  } while (0)

static void struct_sizes(void) {
  make_victim("sgd(lr=0.5, momentum=0.5)");
  CANARY(tw_method_info, "tw_method_at", tw_method_at(0, info));
  CANARY(tw_method_info, "tw_method_find", tw_method_find("sgd", info));
  CANARY(tw_parameter_info, "tw_method_parameter", tw_method_parameter("sgd", 0, info));
  CANARY(tw_input_info, "tw_method_input", tw_method_input("sum_log_concave", 0, info));
  CANARY(tw_state_slot_info, "tw_method_state", tw_method_state("adamw", 0, info));
  CANARY(tw_state_info, "tw_optimizer_state_at", tw_optimizer_state_at(victim.optimizer, 0, info));
  CANARY(tw_options, "tw_options_init", tw_options_init(info, info->struct_size));
  end_victim();
}

static void request_sizes(void) {
  /* what stands in front of gradients_stay was in the first release */
  static const size_t sizes[] = {0, 1, 8, 16, 40, offsetof(tw_request, gradients_stay) - 1};
  make_victim("sgd(lr=0.5, momentum=0.5)");
  for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
    tw_request request;
    memset(&request, 0, sizeof request);
    request.struct_size = sizes[i];
    mark_message();
    tw_status status = tw_optimizer_next(victim.optimizer, &request);
    if (status == TW_MORE) {
      OK(tw_optimizer_cancel(victim.optimizer));
      check_victim(__LINE__, "next with a short request");
    } else {
      refused(__LINE__, "next with a short request", status);
    }
    if (sizes[i] == 0) CHECK(status == TW_ERROR_ARGUMENT);
    REFUSED_AS(TW_ERROR_ARGUMENT, tw_optimizer_waiting(victim.optimizer, &request));
  }
  end_victim();
}

static void bad_options(void) {
  tw_optimizer *out = NULL;
  tw_options good;
  memset(&good, 0, sizeof good);
  good.struct_size = sizeof good;
  MUST(tw_options_init(&good, sizeof good));
#define BAD_OPTION(field, bad) \
  do { \
    tw_options o = good; \
    o.field = bad; \
    REFUSED(tw_optimizer_create("sgd(lr=0.5)", &o, &out)); \
    CHECK(out == NULL); \
  } while (0)
  BAD_OPTION(struct_size, 0);
  BAD_OPTION(struct_size, 1);
  BAD_OPTION(struct_size, 7);
  BAD_OPTION(state_dtype, 0);
  BAD_OPTION(state_dtype, 4);
  BAD_OPTION(state_dtype, -1);
  BAD_OPTION(state_dtype, INT32_MAX);
  BAD_OPTION(master, 3);
  BAD_OPTION(master, -1);
  BAD_OPTION(nonfinite, 3);
  BAD_OPTION(nonfinite, INT32_MIN);
  BAD_OPTION(gradient_scale, NAN);
  BAD_OPTION(gradient_scale, INFINITY);
  BAD_OPTION(maximize, 2);
  BAD_OPTION(maximize, -1);
#undef BAD_OPTION
  /* Larger structs of a later release: accepted or refused, not read beyond what is known. */
  static const size_t sizes[] = {sizeof good + 1, sizeof good + 8, 4096, SIZE_MAX};
  for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
    tw_options o = good;
    o.struct_size = sizes[i];
    out = NULL;
    SURVIVES(tw_optimizer_create("sgd(lr=0.5)", &o, &out));
    if (out != NULL) OK(tw_optimizer_destroy(out));
  }
}

/* ---- sentences ---------------------------------------------------------------------------------------- */

static void refuse_sentence(int line, const char *sentence, tw_status expected) {
  tw_optimizer *out = NULL;
  note("sentence: %.300s", sentence);
  mark_message();
  tw_status status = tw_optimizer_create(sentence, NULL, &out);
  if (refused(line, "create", status)) {
    if (expected < 0 && status != expected) {
      check_fail(__FILE__, line, "\"%.100s\" gave %s, not %s: %.300s", sentence, tw_status_name(status),
                 tw_status_name(expected), tw_last_error());
    }
    if (strlen(tw_last_error()) > 100000)
      check_fail(__FILE__, line, "a message of %zu bytes", strlen(tw_last_error()));
    CHECK(out == NULL);
  } else {
    check_fail(__FILE__, line, "accepted: %.200s", sentence);
    if (out != NULL) OK(tw_optimizer_destroy(out));
  }
  tw_regularizer *regularizer = NULL;
  tw_constraint *constraint = NULL;
  tw_objective *objective = NULL;
  tw_schedule *schedule = NULL;
  SURVIVES(tw_regularizer_create(sentence, &regularizer));
  SURVIVES(tw_objective_create(sentence, &objective));
  if (objective != NULL) OK(tw_objective_destroy(objective));
  tw_solver *solver = NULL;
  SURVIVES(tw_solver_create(sentence, &solver));
  if (solver != NULL) OK(tw_solver_destroy(solver));
  SURVIVES(tw_constraint_create(sentence, &constraint));
  SURVIVES(tw_schedule_create(sentence, &schedule));
  if (regularizer != NULL) OK(tw_regularizer_destroy(regularizer));
  if (constraint != NULL) OK(tw_constraint_destroy(constraint));
  if (schedule != NULL) OK(tw_schedule_destroy(schedule));
}

#define SENTENCE(expected, text) refuse_sentence(__LINE__, text, expected)

static void broken_sentences(void) {
  make_victim("sgd(lr=0.5, momentum=0.5)");
  SENTENCE(TW_ERROR_SYNTAX, "");
  SENTENCE(TW_ERROR_SYNTAX, " \t\r\n ");
  SENTENCE(TW_ERROR_SYNTAX, "|");
  SENTENCE(TW_ERROR_SYNTAX, "sgd |");
  SENTENCE(TW_ERROR_SYNTAX, "| sgd");
  SENTENCE(TW_ERROR_SYNTAX, "sgd || sgd");
  SENTENCE(TW_ERROR_SYNTAX, "sgd(");
  SENTENCE(TW_ERROR_SYNTAX, "sgd)");
  SENTENCE(TW_ERROR_SYNTAX, "sgd(lr");
  SENTENCE(TW_ERROR_SYNTAX, "sgd(lr=");
  SENTENCE(TW_ERROR_SYNTAX, "sgd(lr=)");
  SENTENCE(TW_ERROR_SYNTAX, "sgd(lr==1)");
  SENTENCE(TW_ERROR_SYNTAX, "sgd(=1)");
  SENTENCE(TW_ERROR_SYNTAX, "sgd(,)");
  SENTENCE(TW_ERROR_SYNTAX, "sgd(lr=1,,momentum=0)");
  SENTENCE(TW_ERROR_SYNTAX, "sgd(lr=0.1 momentum=0)");
  SENTENCE(TW_ERROR_SYNTAX, "sgd(lr=0.1))");
  SENTENCE(TW_ERROR_SYNTAX, "sgd(lr=0.1");
  SENTENCE(TW_ERROR_SYNTAX, "sgd(lr=[1, 2)");
  SENTENCE(TW_ERROR_SYNTAX, "sgd(lr=\"0.1)");
  SENTENCE(TW_ERROR_SYNTAX, "sgd(lr=1..2)");
  SENTENCE(TW_ERROR_SYNTAX, "sgd(lr=1e)");
  SENTENCE(TW_ERROR_SYNTAX, "sgd(lr=--1)");
  SENTENCE(TW_ERROR_SYNTAX, "123");
  SENTENCE(TW_ERROR_SYNTAX, "sgd adamw");
  SENTENCE(0, "sgd(lr=0x10)");
  SENTENCE(0, "sgd(lr=_1)");
  SENTENCE(TW_ERROR_SYNTAX, "sgd(lr=0.1)\x01");
  SENTENCE(TW_ERROR_SYNTAX, "sgd\x1b(lr=0.1)");
  SENTENCE(TW_ERROR_SYNTAX, "sgd(lr=\x7f)");
  SENTENCE(0, "sgd(lr=\xff)");
  SENTENCE(0, "\xc3");
  SENTENCE(0, "sgd(lr=0.1) \xe2\x82");
  SENTENCE(0, "\xed\xa0\x80sgd");
  SENTENCE(0, "\xf5\x80\x80\x80");
  SENTENCE(0, "s\xc3\xbcgd(lr=0.1)");
  SENTENCE(0, "sgd(l\xcc\x84r=0.1)");
  SENTENCE(TW_ERROR_METHOD, "sdg(lr=0.1)");
  SENTENCE(TW_ERROR_METHOD, "no_such_method");
  SENTENCE(TW_ERROR_NAME, "sgd(learning=0.1)");
  SENTENCE(TW_ERROR_TYPE, "sgd(lr=true)");
  SENTENCE(TW_ERROR_TYPE, "sgd(nesterov=3)");
  SENTENCE(TW_ERROR_TYPE, "sgd(lr=\"fast\")");
  SENTENCE(TW_ERROR_TYPE, "sgd(lr=[1, 2])");
  SENTENCE(TW_ERROR_RANGE, "sgd(lr=-1)");
  SENTENCE(TW_ERROR_RANGE, "sgd(lr=0.1, momentum=-0.5)");
  SENTENCE(TW_ERROR_RANGE, "split_sgd(fraction=1)");
  SENTENCE(TW_ERROR_RANGE, "split_sgd(sign_lr=-1)");
  SENTENCE(TW_ERROR_RANGE, "visual_prompt(lr=1, pad=-1)");
  SENTENCE(TW_ERROR_NAME, "visual_prompt");
  SENTENCE(TW_ERROR_RANGE, "curl_descent(axis=2) | sgd(lr=0.1)");
  SENTENCE(TW_ERROR_RANGE, "curl_descent(units=[0, -1]) | sgd(lr=0.1)");
  SENTENCE(TW_ERROR_RANGE, "curl_descent(units=[9e15]) | sgd(lr=0.1)");
  SENTENCE(TW_ERROR_RANGE, "powerprop_precond(alpha=0.5) | sgd(lr=0.1)");
  SENTENCE(TW_ERROR_RANGE, "sgd(lr=effective_lr(lr=0, weight_decay=1, inner=1))");
  SENTENCE(TW_ERROR_NAME, "sgd(lr=effective_lr(lr=1, weight_decay=1))");
  SENTENCE(0, "sgd(lr=1e999)");
  SENTENCE(0, "sgd(lr=-1e999)");
  SENTENCE(0, "sgd(lr=nan)");
  SENTENCE(0, "sgd(lr=inf)");
  SENTENCE(0, "sgd(lr=NaN)");
  SENTENCE(0, "sgd(lr=-inf)");
  SENTENCE(0, "sgd(lr=0.1, lr=0.2)");
  SENTENCE(0, "sgd(0.1, lr=0.2)");
  SENTENCE(0, "sgd(1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20)");
  SENTENCE(0, "sgd(lr=sgd(lr=0.1))");
  SENTENCE(0, "sgd(lr=0.1) | sgd(lr=0.1)"); /* two update rules */
  SENTENCE(TW_ERROR_METHOD, "route(other=(sgd(lr=0.1))) | sgd(lr=0.1)");
  SENTENCE(TW_ERROR_METHOD, "sgd(lr=0.1) | route(other=(sgd(lr=0.1)))");
  SENTENCE(0, "(sgd(lr=0.1))()");
  end_victim();
}

/* A long text in one block: `head`, `count` times `body`, `tail`. */
static char *long_text(const char *head, const char *body, size_t count, const char *tail) {
  size_t length = strlen(body);
  char *text = malloc(strlen(head) + length * count + strlen(tail) + 1), *end = text;
  end += sprintf(end, "%s", head);
  for (size_t i = 0; i < count; i++, end += length) memcpy(end, body, length);
  strcpy(end, tail);
  return text;
}

static void huge_sentences(void) {
  static const struct {
    const char *head, *body, *tail;
    size_t count;
    tw_status status;
  } texts[] = {{"", "a", "", 1000000, 0},
               {"", "|", "", 1000000, TW_ERROR_SYNTAX},
               {"", "sgd|", "sgd", 250000, 0},
               {"sgd(", "1,", "1)", 500000, 0},
               {"sgd(lr=", "9", ")", 1000000, 0},
               {"sgd(lr=0.", "0", "1x)", 1000000, TW_ERROR_SYNTAX},
               {"sgd(lr=\"", "x", "\")", 1000000, 0},
               {"sgd(", "x", "=1)", 1000000, 0},
               {"sgd(lr=[", "1,", "1])", 500000, 0},
               {"", "\xff", "", 1000000, 0},
               {"", "\xc3\xa9", "", 500000, 0},
               {"", "\x01", "", 1000000, TW_ERROR_SYNTAX},
               {"sgd(lr=0.1)", " ", "x", 1000000, 0},
               /* nesting */
               {"", "(", "", 10000, TW_ERROR_SYNTAX},
               {"", "(", "", 1000000, TW_ERROR_SYNTAX},
               {"sgd(lr=", "(", "", 10000, TW_ERROR_SYNTAX},
               {"sgd(", "(", "", 1000000, TW_ERROR_SYNTAX},
               {"sgd(lr=", "[", "", 10000, TW_ERROR_SYNTAX},
               {"sgd(lr=", "[", "", 1000000, TW_ERROR_SYNTAX},
               {"", "sgd(", "", 10000, TW_ERROR_SYNTAX},
               {"", "sgd(lr=", "", 150000, TW_ERROR_SYNTAX},
               {"", "prox(", "", 200000, TW_ERROR_SYNTAX},
               {"sgd(lr=", "(sgd|", "", 200000, TW_ERROR_SYNTAX}};
  make_victim("sgd(lr=0.5, momentum=0.5)");
  for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
    char *text = long_text(texts[i].head, texts[i].body, texts[i].count, texts[i].tail);
    refuse_sentence(__LINE__, text, texts[i].status);
    free(text);
  }
  /* Balanced, and still too deep. */
  static const char *const opened[] = {"(", "[", "sgd("}, *const closed[] = {")", "]", ")"};
  for (int i = 0; i < 3; i++) {
    char *tail = long_text("1", closed[i], 10000, ")");
    char *text = long_text("sgd(lr=", opened[i], 10000, tail);
    refuse_sentence(__LINE__, text, TW_ERROR_SYNTAX);
    free(text);
    free(tail);
  }
  end_victim();
}

/* ---- hyper-parameters while running -------------------------------------------------------------------- */

static void bad_values(void) {
  make_victim("sgd(lr=0.5, momentum=0.5)");
  tw_optimizer *o = victim.optimizer;
  double value = 7;
  size_t needed = 0;
  char buffer[64];
  REFUSED_AS(TW_ERROR_RANGE, tw_optimizer_set_number(o, NULL, "lr", -1));
  REFUSED_AS(TW_ERROR_RANGE, tw_optimizer_set_number(o, NULL, "lr", NAN));
  REFUSED_AS(TW_ERROR_RANGE, tw_optimizer_set_number(o, NULL, "lr", INFINITY));
  OK(tw_optimizer_set_number(o, NULL, "lr", 0.5));
  REFUSED_AS(TW_ERROR_RANGE, tw_optimizer_set_number(o, NULL, "lr", -INFINITY));
  REFUSED_AS(TW_ERROR_RANGE, tw_optimizer_set_number(o, NULL, "sgd.momentum", -0.5));
  REFUSED_AS(TW_ERROR_NAME, tw_optimizer_set_number(o, NULL, "sgd.learning", 1));
  REFUSED_AS(TW_ERROR_NAME, tw_optimizer_set_number(o, NULL, "adamw.lr", 1));
  REFUSED_AS(TW_ERROR_NAME, tw_optimizer_set_number(o, NULL, "", 1));
  REFUSED_AS(TW_ERROR_NAME, tw_optimizer_set_number(o, NULL, ".", 1));
  REFUSED_AS(TW_ERROR_NAME, tw_optimizer_set_number(o, NULL, "sgd.", 1));
  REFUSED_AS(TW_ERROR_NAME, tw_optimizer_set_number(o, NULL, ".lr", 1));
  REFUSED_AS(TW_ERROR_NAME, tw_optimizer_set_number(o, NULL, "sgd#1.lr", 1));
  REFUSED_AS(TW_ERROR_NAME, tw_optimizer_set_number(o, NULL, "sgd#-1.lr", 1));
  REFUSED_AS(TW_ERROR_NAME, tw_optimizer_set_number(o, NULL, "sgd#99999999999999999999.lr", 1));
  REFUSED_AS(TW_ERROR_NAME, tw_optimizer_set_number(o, NULL, "sgd#.lr", 1));
  REFUSED(tw_optimizer_set_number(o, NULL, "\xff\xfe", 1));
  REFUSED(tw_optimizer_set_number(o, NULL, "sgd.nesterov", 0.5));
  REFUSED(tw_optimizer_set_number(o, NULL, "steps", 3));
  REFUSED_AS(TW_ERROR_NAME, tw_optimizer_set_number(o, "nobody", "lr", 1));
  REFUSED_AS(TW_ERROR_NAME, tw_optimizer_get_number(o, "nobody", "lr", &value));
  REFUSED_AS(TW_ERROR_NAME, tw_optimizer_get_number(o, "", "no.such.path", &value));
  REFUSED(tw_optimizer_get_number(o, "\xff", "lr", &value));
  REFUSED_AS(TW_ERROR_NAME, tw_optimizer_get_text(o, "nobody", "lr", buffer, sizeof buffer, &needed));
  REFUSED_AS(TW_ERROR_NAME, tw_optimizer_get_text(o, NULL, "nothing", buffer, sizeof buffer, &needed));
  REFUSED_AS(TW_ERROR_RANGE, tw_optimizer_set_text(o, NULL, "lr", "-1"));
  REFUSED_AS(TW_ERROR_TYPE, tw_optimizer_set_text(o, NULL, "lr", "true"));
  REFUSED(tw_optimizer_set_text(o, NULL, "lr", ""));
  REFUSED(tw_optimizer_set_text(o, NULL, "lr", "nan"));
  REFUSED(tw_optimizer_set_text(o, NULL, "lr", "1)"));
  REFUSED(tw_optimizer_set_text(o, NULL, "lr", "1 2"));
  REFUSED(tw_optimizer_set_text(o, NULL, "lr", "1 | sgd"));
  REFUSED(tw_optimizer_set_text(o, NULL, "lr", "\xff"));
  REFUSED(tw_optimizer_set_text(o, NULL, "lr", "no_such_schedule(1)"));
  REFUSED(tw_optimizer_set_text(o, "nobody", "lr", "1"));
  char *deep = long_text("", "(", 100000, "");
  REFUSED(tw_optimizer_set_text(o, NULL, "lr", deep));
  REFUSED(tw_optimizer_set_number(o, NULL, deep, 1));
  REFUSED(tw_optimizer_command(o, deep));
  SURVIVES(tw_optimizer_observe(o, deep, 1));
  free(deep);
  CHECK(value == 7);
  OK(tw_optimizer_get_number(o, NULL, "lr", &value));
  EQUAL(value, 0.5);
  REFUSED_AS(TW_ERROR_NAME, tw_optimizer_command(o, "sgd.no_such_command"));
  REFUSED_AS(TW_ERROR_NAME, tw_optimizer_command(o, "nobody.flush"));
  REFUSED_AS(TW_ERROR_NAME, tw_optimizer_command(o, ""));
  REFUSED_AS(TW_ERROR_NAME, tw_optimizer_command(o, "."));
  SURVIVES(tw_optimizer_observe(o, "loss", NAN));
  SURVIVES(tw_optimizer_observe(o, "", 1));
  SURVIVES(tw_optimizer_observe(o, "batch_size", -1));
  REFUSED(tw_optimizer_set_mode(o, 2));
  REFUSED(tw_optimizer_set_mode(o, -1));
  REFUSED(tw_optimizer_set_mode(o, INT32_MAX));
  end_victim();
}

/* ---- calls out of order ------------------------------------------------------------------------------- */

static void out_of_order(void) {
  tw_optimizer *o = NULL;
  float w[4] = {1, 2, 3, 4}, g[4] = {1, 1, 1, 1}, other[4] = {5, 6, 7, 8};
  const int64_t square[2] = {2, 2};
  tw_tensor parameter = vector(w, TW_F32, &four), gradient = vector(g, TW_F32, &four);
  tw_tensor second = vector(other, TW_F32, &four), matrix = view(g, TW_F32, 2, square, NULL);
  tw_request request = {.struct_size = sizeof request};
  MUST(tw_optimizer_create("sgd(lr=0.5, momentum=0.5)", NULL, &o));
  REFUSED_AS(TW_ERROR_SEQUENCE, tw_optimizer_step(o));
  SURVIVES(tw_optimizer_set_mode(o, TW_MODE_EVAL));
  SURVIVES(tw_optimizer_set_mode(o, TW_MODE_TRAIN));
  OK(tw_optimizer_add_parameters(o, &parameter, 1, NULL, NULL));
  REFUSED_AS(TW_ERROR_SEQUENCE, tw_optimizer_step(o));
  REFUSED_AS(TW_ERROR_SEQUENCE, tw_optimizer_cancel(o));
  /* asking is allowed before gradients are bound; answering without them ends the step */
  STATUS(TW_MORE, tw_optimizer_next(o, &request));
  REFUSED_AS(TW_ERROR_SEQUENCE, tw_optimizer_next(o, &request));
  REFUSED_AS(TW_ERROR_SEQUENCE, tw_optimizer_cancel(o));
  REFUSED_AS(TW_ERROR_SEQUENCE, tw_optimizer_answer_matrix(o, &matrix, NULL));
  EQUAL(w[0], 1);
  OK(tw_optimizer_bind_gradients(o, &gradient, 1));
  REFUSED_AS(TW_ERROR_SEQUENCE, tw_optimizer_cancel(o));
  OK(tw_optimizer_step(o));
  EQUAL(w[0], 0.5);
  REFUSED_AS(TW_ERROR_SEQUENCE, tw_optimizer_cancel(o));
  /* A pipeline without evaluation weights may refuse the mode; once in it, it does not step. */
  if (tw_optimizer_set_mode(o, TW_MODE_EVAL) == TW_OK) {
    REFUSED_AS(TW_ERROR_SEQUENCE, tw_optimizer_step(o));
    REFUSED_AS(TW_ERROR_SEQUENCE, tw_optimizer_step_with(o, &gradient, 1));
    REFUSED_AS(TW_ERROR_SEQUENCE, tw_optimizer_next(o, &request));
  }
  OK(tw_optimizer_set_mode(o, TW_MODE_TRAIN));
  EQUAL(w[0], 0.5);
  /* In the middle of a step. */
  STATUS(TW_MORE, tw_optimizer_next(o, &request));
  REFUSED_AS(TW_ERROR_SEQUENCE, tw_optimizer_step(o));
  REFUSED_AS(TW_ERROR_SEQUENCE, tw_optimizer_step_with(o, &gradient, 1));
  REFUSED_AS(TW_ERROR_SEQUENCE, tw_optimizer_add_parameters(o, &second, 1, NULL, NULL));
  REFUSED(tw_optimizer_set_mode(o, TW_MODE_EVAL));
  REFUSED_AS(TW_ERROR_SEQUENCE, tw_optimizer_answer_matrix(o, &matrix, NULL));
  OK(tw_optimizer_cancel(o));
  REFUSED_AS(TW_ERROR_SEQUENCE, tw_optimizer_cancel(o));
  EQUAL(w[0], 0.5);
  /* Gradients that are gone after new parameters have come. */
  OK(tw_optimizer_add_parameters(o, &second, 1, NULL, NULL));
  REFUSED(tw_optimizer_step(o));
  EQUAL(w[0], 0.5);
  EQUAL(other[0], 5);
  /* Destroying in the middle of a step is allowed. */
  tw_tensor both[2] = {gradient, gradient};
  float g2[4] = {1, 1, 1, 1};
  both[1].data = g2;
  OK(tw_optimizer_bind_gradients(o, both, 2));
  STATUS(TW_MORE, tw_optimizer_next(o, &request));
  OK(tw_optimizer_destroy(o));
}

/* Matrices that do not answer the request: it goes on waiting, and in the end it is answered.  NaN ends the step. */
static void bad_answers(void) {
  static const char *const sentences[2] = {"tract | sgd(lr=0.5, momentum=0.5)", "sgd(lr=0.5, momentum=0.5) | ghost_step"};
  static const int64_t in[2] = {4, COLUMNS}, out[2] = {4, ROWS}, short_out[2] = {3, ROWS}, huge[2] = {INT64_MAX, INT64_MAX};
  static const int64_t negative[2] = {-1, ROWS}, tall[2] = {INT64_C(1) << 40, COLUMNS}, still[2] = {0, 0}, wide[2] = {0, INT64_MAX};
  float w[WEIGHTS], b[BIASES], gw[WEIGHTS], gb[BIASES], x[4 * COLUMNS], z[4 * ROWS];
  for (int which = 0; which < 2; which++) {
    fill_f32(w, WEIGHTS, 1);
    fill_f32(b, BIASES, 2);
    fill_f32(gw, WEIGHTS, 3);
    fill_f32(gb, BIASES, 4);
    fill_f32(x, 4 * COLUMNS, 5);
    fill_f32(z, 4 * ROWS, 6);
    tw_tensor parameters[2] = {view(w, TW_F32, 2, matrix_shape, NULL), view(b, TW_F32, 1, bias_shape, NULL)};
    tw_tensor gradients[2] = {view(gw, TW_F32, 2, matrix_shape, NULL), view(gb, TW_F32, 1, bias_shape, NULL)};
    tw_optimizer *o = NULL;
    tw_request request = {.struct_size = sizeof request};
    MUST(tw_optimizer_create(sentences[which], NULL, &o));
    OK(tw_optimizer_add_parameters(o, parameters, 2, NULL, NULL));
    OK(tw_optimizer_bind_gradients(o, gradients, 2));
    const tw_tensor first = view(x, TW_F32, 2, in, NULL), second = view(z, TW_F32, 2, out, NULL);
    const tw_tensor good = which == 0 ? first : second;
    tw_tensor bad;
    REFUSED_AS(TW_ERROR_SEQUENCE, tw_optimizer_answer_matrix(o, &good, &second));
    for (int round = 0; round < 3; round++) { /* NaN, no answer, an answer */
      float before[WEIGHTS];
      memcpy(before, w, sizeof w);
      STATUS(TW_MORE, tw_optimizer_next(o, &request));
      REFUSED_AS(TW_ERROR_SEQUENCE, tw_optimizer_answer_matrix(o, &good, &second));
      STATUS(TW_MORE, tw_optimizer_next(o, &request));
      CHECK(request.kind == (which == 0 ? TW_REQUEST_ACTIVATIONS : TW_REQUEST_LOGIT_DERIVATIVES));
      REFUSED_AS(TW_ERROR_ARGUMENT, tw_optimizer_answer_matrix(o, NULL, NULL));
#define BAD_MATRIX(status, memory, dtype, ndim, shape, strides) \
  do { \
    bad = view(memory, dtype, ndim, shape, strides); \
    REFUSED_AS(status, tw_optimizer_answer_matrix(o, &bad, &second)); \
    REFUSED_AS(status, tw_optimizer_answer_matrix(o, &good, &bad)); \
  } while (0)
      BAD_MATRIX(TW_ERROR_SHAPE, z, TW_F32, 2, short_out, NULL);
      BAD_MATRIX(TW_ERROR_SHAPE, z, TW_F32, 1, out, NULL);
      BAD_MATRIX(TW_ERROR_SHAPE, z, TW_F32, 2, negative, NULL);
      BAD_MATRIX(TW_ERROR_SHAPE, z, TW_F32, 2, huge, NULL);
      BAD_MATRIX(TW_ERROR_SHAPE, z, TW_F32, 2, wide, NULL);
      BAD_MATRIX(TW_ERROR_MEMORY, z, TW_F32, 2, tall, still);
      BAD_MATRIX(TW_ERROR_DTYPE, z, 99, 2, out, NULL);
      BAD_MATRIX(TW_ERROR_ARGUMENT, NULL, TW_F32, 2, out, NULL);
      bad = second;
      bad.flags = TW_TENSOR_ABSENT;
      REFUSED_AS(TW_ERROR_ARGUMENT, tw_optimizer_answer_matrix(o, &good, &bad));
      REFUSED(tw_optimizer_step(o));
      if (round == 1) {
        STATUS(TW_ERROR_NEEDS, tw_optimizer_next(o, &request));
      } else {
        const float kept = z[1];
        if (round == 0) z[1] = NAN;
        OK(tw_optimizer_answer_matrix(o, &good, &second));
        STATUS(round == 0 ? TW_ERROR_NONFINITE : TW_OK, tw_optimizer_next(o, &request));
        z[1] = kept;
      }
      CHECK((memcmp(before, w, sizeof w) == 0) == (round < 2));
      OK(tw_optimizer_waiting(o, &request));
    }
    OK(tw_optimizer_destroy(o));
  }
}

/* The same in evaluation mode: whatever is refused leaves the training weights to be found again. */
static void in_evaluation_mode(void) {
  NEED("ema");
  make_victim("sgd(lr=0.5, momentum=0.5) | ema(0.5)");
  tw_optimizer *o = victim.optimizer;
  tw_request request = {.struct_size = sizeof request};
  float trained[WEIGHTS], shown[WEIGHTS];
  memcpy(trained, victim.w, sizeof trained);
  OK(tw_optimizer_set_mode(o, TW_MODE_EVAL));
  memcpy(shown, victim.w, sizeof shown);
  CHECK(memcmp(trained, shown, sizeof shown) != 0);
  STATUS(TW_ERROR_SEQUENCE, tw_optimizer_step(o));
  STATUS(TW_ERROR_SEQUENCE, tw_optimizer_step_with(o, victim.gradients, 2));
  STATUS(TW_ERROR_SEQUENCE, tw_optimizer_next(o, &request));
  STATUS(TW_ERROR_SEQUENCE, tw_optimizer_cancel(o));
  CHECK(memcmp(victim.w, shown, sizeof shown) == 0);
  /* A checkpoint of this moment holds the mode and the training weights: whoever loads it finds both. */
  checkpoint now = save(o);
  CHECK(now.data != NULL);
  OK(tw_optimizer_set_mode(o, TW_MODE_TRAIN));
  CHECK(memcmp(victim.w, trained, sizeof trained) == 0);
  if (now.data != NULL) {
    double training = 1;
    OK(tw_optimizer_load(o, now.data, now.size));
    OK(tw_optimizer_get_number(o, NULL, "training", &training));
    CHECK(training == 0);
    memset(victim.w, 0, sizeof trained);
    OK(tw_optimizer_set_mode(o, TW_MODE_TRAIN));
    CHECK(memcmp(victim.w, trained, sizeof trained) == 0);
  }
  free(now.data);
  end_victim();
}

/* ---- buffers that are too small ----------------------------------------------------------------------- */

static void small_buffers(void) {
  make_victim("sgd(lr=0.5, momentum=0.5)");
  tw_optimizer *o = victim.optimizer;
  size_t size = victim.state.size;
  unsigned char *buffer = malloc(size + 16);
  const size_t capacities[] = {1, 2, 8, size / 2, size - 1};
  for (size_t i = 0; i < sizeof capacities / sizeof *capacities; i++) {
    size_t needed = 0;
    memset(buffer, 0xA5, size + 16);
    REFUSED_AS(TW_ERROR_SPACE, tw_optimizer_save(o, buffer, capacities[i], &needed));
    CHECK(needed == size);
    for (size_t k = capacities[i]; k < size + 16; k++) {
      if (buffer[k] != 0xA5) {
        check_fail(__FILE__, __LINE__, "save writes byte %zu of %zu", k, capacities[i]);
        break;
      }
    }
  }
  free(buffer);
  char text[512], whole[512];
  size_t needed = 0;
  OK(tw_optimizer_sentence(o, whole, sizeof whole, &needed));
  size_t length = needed;
  for (size_t capacity = 1; capacity < length; capacity++) {
    memset(text, 0x5A, sizeof text);
    REFUSED_AS(TW_ERROR_SPACE, tw_optimizer_sentence(o, text, capacity, &needed));
    CHECK(needed == length);
    if (text[capacity] != 0x5A) check_fail(__FILE__, __LINE__, "sentence writes behind %zu bytes", capacity);
  }
  memset(text, 0x5A, sizeof text);
  REFUSED_AS(TW_ERROR_SPACE, tw_optimizer_get_text(o, NULL, "lr", text, 1, &needed));
  CHECK(needed == 4 && text[1] == 0x5A);
  double values[WEIGHTS];
  REFUSED_AS(TW_ERROR_COUNT, tw_optimizer_state_read(o, 0, values, 1));
  REFUSED_AS(TW_ERROR_COUNT, tw_optimizer_state_read(o, 0, values, SIZE_MAX));
  REFUSED(tw_optimizer_state_read(o, tw_optimizer_state_count(o), values, 1));
  REFUSED(tw_optimizer_state_read(o, SIZE_MAX, values, 1));
  tw_state_info info = {.struct_size = sizeof info};
  REFUSED_AS(TW_ERROR_ARGUMENT, tw_optimizer_state_at(o, tw_optimizer_state_count(o), &info));
  REFUSED_AS(TW_ERROR_ARGUMENT, tw_optimizer_state_at(o, SIZE_MAX, &info));
  tw_method_info method = {.struct_size = sizeof method};
  REFUSED_AS(TW_ERROR_ARGUMENT, tw_method_at(tw_method_count(), &method));
  REFUSED_AS(TW_ERROR_ARGUMENT, tw_method_at(SIZE_MAX, &method));
  tw_parameter_info parameter = {.struct_size = sizeof parameter};
  REFUSED_AS(TW_ERROR_ARGUMENT, tw_method_parameter("sgd", 1000, &parameter));
  REFUSED_AS(TW_ERROR_ARGUMENT, tw_method_parameter("sgd", SIZE_MAX, &parameter));
  REFUSED_AS(TW_ERROR_METHOD, tw_method_parameter("no_such_method", 0, &parameter));
  tw_state_slot_info slot = {.struct_size = sizeof slot};
  REFUSED_AS(TW_ERROR_ARGUMENT, tw_method_state("sgd", SIZE_MAX, &slot));
  REFUSED_AS(TW_ERROR_METHOD, tw_method_state("", 0, &slot));
  REFUSED(tw_method_find("\xff\xff", &method));
  char *endless = long_text("", "x", 1000000, "");
  REFUSED_AS(TW_ERROR_METHOD, tw_method_find(endless, &method));
  free(endless);
  end_victim();
}

/* ---- checkpoints and files ---------------------------------------------------------------------------- */

static void damaged_checkpoints(void) {
  make_victim("adamw(lr=0.01)");
  tw_optimizer *o = victim.optimizer;
  size_t size = victim.state.size;
  unsigned char *data = malloc(size + 64);
  /* Every truncation, each in a block of exactly that size, so that tools see a read behind it. */
  for (size_t length = 0; length < size; length += size > 3000 ? 7 : 1) {
    void *cut = malloc(length > 0 ? length : 1);
    memcpy(cut, victim.state.data, length);
    note("a checkpoint of %zu of %zu bytes", length, size);
    REFUSED_AS(TW_ERROR_FORMAT, tw_optimizer_load(o, cut, length));
    free(cut);
  }
  /* Bytes behind the end. */
  memcpy(data, victim.state.data, size);
  memset(data + size, 0, 64);
  REFUSED_AS(TW_ERROR_FORMAT, tw_optimizer_load(o, data, size + 64));
  REFUSED_AS(TW_ERROR_FORMAT, tw_optimizer_load(o, data, size + 1));
  /* The length of the header. */
  static const uint64_t lengths[] = {0, 1, 2, 8, INT64_MAX, UINT64_MAX, UINT64_MAX - 7, UINT64_C(1) << 40};
  for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
    memcpy(data, victim.state.data, size);
    memcpy(data, &lengths[i], 8);
    REFUSED_AS(TW_ERROR_FORMAT, tw_optimizer_load(o, data, size));
  }
  /* Headers that are no table, or too much of one. */
  static const struct {
    const char *head, *body, *tail;
    size_t count;
  } headers[] = {{"", "[", "", 100000},
                 {"", "{\"a\":", "", 50000},
                 {"{\"a\":", "[", "", 100000},
                 {"", "\"", "", 1001},
                 {"{\"", "x", "\":1}", 100000},
                 {"{\"a\":", "9", "}", 100000},
                 {"", " ", "", 1000},
                 {"{\"a\":\"", "\\u0000", "\"}", 100},
                 {"{\"a\":\"", "\\ud800", "\"}", 3},
                 {"", "{}", "", 1},
                 {"", "null", "", 1},
                 {"", "\xff", "", 1000},
                 {"{\"a\":", "-", "1}", 50},
                 {"{", "\"a\":1,", "\"a\":1}", 10}};
  for (size_t i = 0; i < sizeof headers / sizeof *headers; i++) {
    char *text = long_text(headers[i].head, headers[i].body, headers[i].count, headers[i].tail);
    uint64_t length = strlen(text);
    unsigned char *file = malloc(8 + length);
    memcpy(file, &length, 8);
    memcpy(file + 8, text, length);
    note("a header of %zu times %s", headers[i].count, headers[i].body);
    REFUSED(tw_optimizer_load(o, file, 8 + length));
    free(file);
    free(text);
  }
  /* Noise. */
  uint64_t seed = 5;
  for (int round = 0; round < 200; round++) {
    size_t length = random_index(&seed, 600);
    for (size_t i = 0; i < length; i++) data[i % size] = (unsigned char)random_bits(&seed);
    if (length > size) length = size;
    if (length > 8 && round % 2 == 0) memcpy(data, (uint64_t[]){length / 2}, 8);
    REFUSED(tw_optimizer_load(o, data, length));
  }
  free(data);
  end_victim();
}

static void impossible_files(void) {
  make_victim("sgd(lr=0.5, momentum=0.5)");
  tw_optimizer *o = victim.optimizer;
  char folder[] = "/tmp/thalweg-abi-XXXXXX", path[128];
  CHECK(mkdtemp(folder) != NULL);
  REFUSED_AS(TW_ERROR_FILE, tw_optimizer_save_file(o, folder));
  REFUSED_AS(TW_ERROR_FILE, tw_optimizer_load_file(o, folder));
  REFUSED(tw_optimizer_save_file(o, ""));
  REFUSED(tw_optimizer_load_file(o, ""));
  REFUSED_AS(TW_ERROR_FILE, tw_optimizer_load_file(o, "/nonexistent/checkpoint"));
  REFUSED_AS(TW_ERROR_FILE, tw_optimizer_save_file(o, "/nonexistent/checkpoint"));
  REFUSED_AS(TW_ERROR_FILE, tw_optimizer_save_file(o, "/proc/thalweg-checkpoint"));
  REFUSED_AS(TW_ERROR_FILE, tw_optimizer_save_file(o, "/dev/null/checkpoint"));
  char *endless = long_text("/tmp/", "x", 100000, "");
  REFUSED_AS(TW_ERROR_FILE, tw_optimizer_save_file(o, endless));
  REFUSED_AS(TW_ERROR_FILE, tw_optimizer_load_file(o, endless));
  free(endless);
  SURVIVES(tw_optimizer_load_file(o, "\xff\xfe/\x01"));
  /* Files that hold no checkpoint. */
  snprintf(path, sizeof path, "%s/empty", folder);
  int file = open(path, O_CREAT | O_WRONLY, 0600);
  close(file);
  REFUSED_AS(TW_ERROR_FORMAT, tw_optimizer_load_file(o, path));
  unlink(path);
  REFUSED(tw_optimizer_load_file(o, "/dev/null"));
  REFUSED(tw_optimizer_load_file(o, "/dev/zero"));
  /* A full device of our own: neither written nor replaced. */
  snprintf(path, sizeof path, "%s/full", folder);
  struct stat kind;
  if (mknod(path, S_IFCHR | 0666, makedev(1, 7)) == 0) {
    REFUSED_AS(TW_ERROR_FILE, tw_optimizer_save_file(o, path));
    if (stat(path, &kind) != 0 || !S_ISCHR(kind.st_mode))
      check_fail(__FILE__, __LINE__, "the device was replaced");
    unlink(path);
  } else if (access("/dev", W_OK) != 0) {
    REFUSED_AS(TW_ERROR_FILE, tw_optimizer_save_file(o, "/dev/full"));
  }
  /* A disk that is full: the file that was there stays, and nothing is left behind. */
  snprintf(path, sizeof path, "%s/checkpoint", folder);
  OK(tw_optimizer_save_file(o, path));
  struct rlimit before, tiny;
  signal(SIGXFSZ, SIG_IGN);
  getrlimit(RLIMIT_FSIZE, &before);
  tiny = before;
  tiny.rlim_cur = 100;
  fflush(stdout);
  setrlimit(RLIMIT_FSIZE, &tiny);
  mark_message();
  tw_status status = tw_optimizer_save_file(o, path);
  setrlimit(RLIMIT_FSIZE, &before);
  CHECK(status == TW_ERROR_FILE);
  refused(__LINE__, "save_file on a full disk", status);
  OK(tw_optimizer_load_file(o, path));
  unlink(path);
  if (rmdir(folder) != 0) check_fail(__FILE__, __LINE__, "%s is not empty", folder);
  end_victim();
}

/* ---- the process -------------------------------------------------------------------------------------- */

static void *no_memory(void *context, size_t size, size_t alignment) {
  (void)context, (void)size, (void)alignment;
  return NULL;
}

static void count_warning(void *context, int32_t level, const char *message) {
  CHECK(level >= 1 && message != NULL && message[0]);
  ++*(int32_t *)context;
}

static void process_settings(void) {
  make_victim("sgd(lr=0.5, momentum=0.5)");
  int32_t threads = tw_get_num_threads();
  CHECK(threads >= 1);
  REFUSED(tw_set_num_threads(0));
  REFUSED(tw_set_num_threads(-1));
  REFUSED(tw_set_num_threads(INT32_MIN));
  CHECK(tw_get_num_threads() == threads);
  SURVIVES(tw_set_num_threads(INT32_MAX));
  CHECK(tw_get_num_threads() >= 1);
  OK(tw_set_num_threads(threads));
  REFUSED_AS(TW_ERROR_ARGUMENT, tw_set_allocator(no_memory, NULL, NULL));
  REFUSED_AS(TW_ERROR_ARGUMENT, tw_set_allocator(NULL, (tw_deallocate)(uintptr_t)no_memory, NULL));
  OK(tw_set_allocator(NULL, NULL, NULL));
  OK(tw_set_executor(NULL, NULL));
  int32_t warnings = 0;
  tw_optimizer *ascending = NULL;
  OK(tw_set_log(count_warning, &warnings));
  OK(tw_optimizer_create("curl_descent(fraction=0.5) | sgd(lr=0.1)", NULL, &ascending));
  OK(tw_optimizer_destroy(ascending));
  CHECK(warnings == 0);
  OK(tw_optimizer_create("curl_descent(fraction=1) | sgd(lr=0.1)", NULL, &ascending));
  OK(tw_optimizer_destroy(ascending));
  CHECK(warnings > 0);
  OK(tw_set_log(NULL, NULL));
  end_victim();
}

/* The message stays until the thread's next failure, and success does not touch it. */
static void messages(void) {
  REFUSED_AS(TW_ERROR_METHOD, tw_method_find("sdg_with_a_long_name",
                                             &(tw_method_info){.struct_size = sizeof(tw_method_info)}));
  char first[4096];
  snprintf(first, sizeof first, "%s", tw_last_error());
  CHECK(strstr(first, "sdg_with_a_long_name") != NULL);
  CHECK(have("sgd"));
  CHECK(strcmp(first, tw_last_error()) == 0);
  tw_optimizer *out = NULL;
  STATUS(TW_ERROR_NAME, tw_optimizer_create("sgd(momentun=0.5)", NULL, &out));
  /* The sentence, a caret, the nearest name. */
  CHECK(strstr(tw_last_error(), "momentun") != NULL);
  CHECK(strchr(tw_last_error(), '^') != NULL);
  CHECK(strstr(tw_last_error(), "momentum") != NULL);
  STATUS(TW_ERROR_METHOD, tw_optimizer_create("sdg(lr=0.5)", NULL, &out));
  CHECK(strchr(tw_last_error(), '^') != NULL && strstr(tw_last_error(), "sgd") != NULL);
}

int main(void) {
  RUN(null_and_garbage_handles);
  RUN(destroyed_handles);
  RUN(handles_of_another_kind);
  RUN(null_arguments);
  RUN(null_arguments_of_the_others);
  RUN(objectives);
  RUN(inputs_of_regularizers);
  RUN(bad_parameters);
  RUN(bad_gradients);
  RUN(overlapping_parameters);
  RUN(bad_names);
  RUN(struct_sizes);
  RUN(request_sizes);
  RUN(bad_options);
  RUN(broken_sentences);
  RUN(huge_sentences);
  RUN(bad_values);
  RUN(out_of_order);
  RUN(bad_answers);
  RUN(in_evaluation_mode);
  RUN(small_buffers);
  RUN(damaged_checkpoints);
  RUN(impossible_files);
  RUN(process_settings);
  RUN(messages);
  FINISH();
}
