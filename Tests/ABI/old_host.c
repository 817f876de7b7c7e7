/* A host that was compiled against an older header (run.sh names its folder) and runs with the library of today: what it knows means
 * what it meant, and nothing is written behind the structs that it has. */
#include "check.h"

enum { ROOM = 512 };

/* `type` as this host knows it, and bytes behind it that are not the library's. */
#define GUARDED(type) \
  union { \
    type value; \
    unsigned char bytes[ROOM]; \
  }
#define GUARD(room) memset((room).bytes, 0xA5, sizeof(room).bytes)
#define UNTOUCHED(room, from) check_untouched(__LINE__, (room).bytes, from)

static void check_untouched(int line, const unsigned char *bytes, size_t from) {
  for (size_t k = from; k < ROOM; k++) {
    if (bytes[k] != 0xA5) {
      check_fail(__FILE__, line, "byte %zu was written, behind the %zu that the caller has", k, from);
      return;
    }
  }
}

static void the_same_interface(void) {
  CHECK(tw_abi_version() == TW_ABI_VERSION);
  CHECK(strcmp(tw_status_name(TW_ERROR_OVERLAP), "TW_ERROR_OVERLAP") == 0);
}

/* SAM on x^2/2: x <- x - lr*(x + rho*sign(x)) for a single element. */
static void requests(void) {
  NEED("sam");
  float x = 1, g = 0;
  int64_t one = 1;
  tw_tensor w = vector(&x, TW_F32, &one), d = vector(&g, TW_F32, &one);
  GUARDED(tw_options) options;
  GUARD(options);
  MUST(tw_options_init(&options.value, sizeof(tw_options)));
  UNTOUCHED(options, sizeof(tw_options));
  CHECK(options.value.struct_size == sizeof(tw_options));
  options.value.gradient_scale = 0.5;
  tw_optimizer *o = NULL;
  MUST(tw_optimizer_create("sam(0.25) | sgd(lr=0.5)", &options.value, &o));
  OK(tw_optimizer_add_parameters(o, &w, 1, NULL, NULL));
  OK(tw_optimizer_bind_gradients(o, &d, 1));
  GUARDED(tw_request) request;
  GUARD(request);
  request.value.struct_size = sizeof(tw_request);
  for (int pass = 0; pass < 2; pass++) {
    STATUS(TW_MORE, tw_optimizer_next(o, &request.value));
    UNTOUCHED(request, sizeof(tw_request));
    CHECK(request.value.struct_size == sizeof(tw_request) && request.value.kind == TW_REQUEST_GRADIENT);
    CHECK(request.value.pass == pass && request.value.probe == NULL && request.value.probe_count == 0);
    NEAR(x, pass == 0 ? 1 : 1.25, 1e-6);
    GUARDED(tw_request) again;
    GUARD(again);
    again.value.struct_size = sizeof(tw_request);
    STATUS(TW_MORE, tw_optimizer_waiting(o, &again.value));
    UNTOUCHED(again, sizeof(tw_request));
    CHECK(again.value.kind == request.value.kind && again.value.tag == request.value.tag && again.value.pass == pass);
    g = 2 * x; /* scaled by 2 */
  }
  OK(tw_optimizer_next(o, &request.value));
  UNTOUCHED(request, sizeof(tw_request));
  NEAR(x, 1 - 0.5 * 1.25, 1e-6);
  OK(tw_optimizer_destroy(o));
}

/* A caller may have more than the library knows, too; what is behind stays. */
static void requests_of_other_sizes(void) {
  static const size_t sizes[] = {sizeof(tw_request), sizeof(tw_request) + 8, sizeof(tw_request) + 13, 256, ROOM};
  float x = 1, g = 1;
  int64_t one = 1;
  tw_tensor w = vector(&x, TW_F32, &one), d = vector(&g, TW_F32, &one);
  tw_optimizer *o = NULL;
  MUST(tw_optimizer_create("sgd(lr=0.5)", NULL, &o));
  OK(tw_optimizer_add_parameters(o, &w, 1, NULL, NULL));
  OK(tw_optimizer_bind_gradients(o, &d, 1));
  for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
    GUARDED(tw_request) request;
    GUARD(request);
    request.value.struct_size = sizes[i];
    STATUS(TW_MORE, tw_optimizer_next(o, &request.value));
    STATUS(TW_MORE, tw_optimizer_waiting(o, &request.value));
    CHECK(request.value.struct_size == sizes[i] && request.value.kind == TW_REQUEST_GRADIENT);
    OK(tw_optimizer_next(o, &request.value));
    /* The library of today knows at most this much more. */
    UNTOUCHED(request, sizes[i] < 256 ? sizes[i] : 256);
    EQUAL(x, 1 - 0.5 * (double)(i + 1));
  }
  tw_request small;
  memset(&small, 0, sizeof small);
  small.struct_size = sizeof small - 1;
  STATUS(TW_ERROR_ARGUMENT, tw_optimizer_next(o, &small));
  STATUS(TW_ERROR_ARGUMENT, tw_optimizer_waiting(o, &small));
  small.struct_size = (size_t)1 << 40;
  STATUS(TW_ERROR_ARGUMENT, tw_optimizer_next(o, &small));
  OK(tw_optimizer_destroy(o));
}

#define INFO(type, call) \
  do { \
    GUARDED(type) room; \
    type *info = &room.value; \
    GUARD(room); \
    info->struct_size = sizeof(type); \
    OK(call); \
    UNTOUCHED(room, sizeof(type)); \
    CHECK(info->struct_size == sizeof(type)); \
  } while (0)

static void infos(void) {
  NEED("adamw");
  float x = 1;
  int64_t one = 1;
  tw_tensor w = vector(&x, TW_F32, &one);
  tw_optimizer *o = NULL;
  MUST(tw_optimizer_create("adamw", NULL, &o));
  OK(tw_optimizer_add_parameters(o, &w, 1, NULL, NULL));
  INFO(tw_method_info, tw_method_find("adamw", info));
  INFO(tw_method_info, tw_method_at(0, info));
  INFO(tw_parameter_info, tw_method_parameter("adamw", 0, info));
  INFO(tw_state_slot_info, tw_method_state("adamw", 0, info));
  if (have("sum_log_concave")) INFO(tw_input_info, tw_method_input("sum_log_concave", 0, info));
  INFO(tw_state_info, tw_optimizer_state_at(o, 0, info));
  OK(tw_optimizer_destroy(o));
}

/* Options of a caller with fewer fields keep the defaults of the rest; the field before is read. */
static void options_of_other_sizes(void) {
  static const size_t sizes[] = {offsetof(tw_options, seed), sizeof(tw_options), sizeof(tw_options) + 8, ROOM};
  for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
    GUARDED(tw_options) options;
    GUARD(options);
    MUST(tw_options_init(&options.value, sizes[i]));
    /* What a larger caller has behind today's struct it must clear itself: here it is rubbish that nobody reads. */
    UNTOUCHED(options, sizes[i] < 256 ? sizes[i] : 256);
    CHECK(options.value.struct_size == sizes[i]);
    options.value.gradient_scale = 0.25;
    float x = 1, g = 4;
    int64_t one = 1;
    tw_tensor w = vector(&x, TW_F32, &one), d = vector(&g, TW_F32, &one);
    tw_optimizer *o = NULL;
    MUST(tw_optimizer_create("sgd(lr=0.5)", &options.value, &o));
    OK(tw_optimizer_add_parameters(o, &w, 1, NULL, NULL));
    OK(tw_optimizer_bind_gradients(o, &d, 1));
    OK(tw_optimizer_step(o));
    EQUAL(x, 0.5);
    OK(tw_optimizer_destroy(o));
  }
}

int main(void) {
  RUN(the_same_interface);
  RUN(requests);
  RUN(requests_of_other_sizes);
  RUN(infos);
  RUN(options_of_other_sizes);
  FINISH();
}
