/* The life of a handle, with numbers that can be worked out by hand: create, bind, step, save, load, destroy.
 */
#include "check.h"

/* ---- shorthands --------------------------------------------------------------------------------------- */

/* An optimizer with one parameter vector and its gradient. */
static tw_optimizer *with_vector(const char *sentence, const tw_options *options, int32_t dtype, void *w,
                                 void *g, int64_t length) {
  tw_optimizer *optimizer = NULL;
  OK(tw_optimizer_create(sentence, options, &optimizer));
  if (optimizer == NULL) return NULL;
  tw_tensor parameter = vector(w, dtype, &length), gradient = vector(g, dtype, &length);
  OK(tw_optimizer_add_parameters(optimizer, &parameter, 1, NULL, NULL));
  OK(tw_optimizer_bind_gradients(optimizer, &gradient, 1));
  return optimizer;
}

static tw_options options(void) {
  tw_options o;
  memset(&o, 0, sizeof o);
  o.struct_size = sizeof o;
  OK(tw_options_init(&o, sizeof o));
  return o;
}

static double number(tw_optimizer *optimizer, const char *path) {
  double value = NAN;
  OK(tw_optimizer_get_number(optimizer, NULL, path, &value));
  return value;
}

static void all_equal_f32(const float *a, const float *b, size_t count) {
  for (size_t i = 0; i < count; i++) {
    if (memcmp(a + i, b + i, sizeof *a) != 0) {
      check_fail(__FILE__, __LINE__, "element %zu is %.9g, not %.9g", i, (double)a[i], (double)b[i]);
      return;
    }
  }
}

/* ---- the library -------------------------------------------------------------------------------------- */

static void versions(void) {
  int major, minor, patch;
  CHECK(tw_abi_version() == TW_ABI_VERSION);
  CHECK(sscanf(tw_version(), "%d.%d.%d", &major, &minor, &patch) == 3);
  CHECK(tw_build_info() != NULL && tw_build_info()[0] != 0);
  CHECK(tw_version() == tw_version() && tw_build_info() == tw_build_info());
  CHECK(tw_last_error() != NULL);
}

static void status_names(void) {
  static const struct {
    tw_status status;
    const char *name;
  } all[] = {{TW_OK, "TW_OK"},
             {TW_MORE, "TW_MORE"},
             {TW_SKIPPED, "TW_SKIPPED"},
             {TW_ERROR_INTERNAL, "TW_ERROR_INTERNAL"},
             {TW_ERROR_MEMORY, "TW_ERROR_MEMORY"},
             {TW_ERROR_ARGUMENT, "TW_ERROR_ARGUMENT"},
             {TW_ERROR_HANDLE, "TW_ERROR_HANDLE"},
             {TW_ERROR_BUSY, "TW_ERROR_BUSY"},
             {TW_ERROR_COUNT, "TW_ERROR_COUNT"},
             {TW_ERROR_SYNTAX, "TW_ERROR_SYNTAX"},
             {TW_ERROR_METHOD, "TW_ERROR_METHOD"},
             {TW_ERROR_NAME, "TW_ERROR_NAME"},
             {TW_ERROR_TYPE, "TW_ERROR_TYPE"},
             {TW_ERROR_RANGE, "TW_ERROR_RANGE"},
             {TW_ERROR_DTYPE, "TW_ERROR_DTYPE"},
             {TW_ERROR_SHAPE, "TW_ERROR_SHAPE"},
             {TW_ERROR_LAYOUT, "TW_ERROR_LAYOUT"},
             {TW_ERROR_OVERLAP, "TW_ERROR_OVERLAP"},
             {TW_ERROR_SEQUENCE, "TW_ERROR_SEQUENCE"},
             {TW_ERROR_NEEDS, "TW_ERROR_NEEDS"},
             {TW_ERROR_NONFINITE, "TW_ERROR_NONFINITE"},
             {TW_ERROR_NUMERIC, "TW_ERROR_NUMERIC"},
             {TW_ERROR_FORMAT, "TW_ERROR_FORMAT"},
             {TW_ERROR_VERSION, "TW_ERROR_VERSION"},
             {TW_ERROR_MISMATCH, "TW_ERROR_MISMATCH"},
             {TW_ERROR_FILE, "TW_ERROR_FILE"},
             {TW_ERROR_SPACE, "TW_ERROR_SPACE"},
             {TW_ERROR_UNSUPPORTED, "TW_ERROR_UNSUPPORTED"}};
  for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
    if (strcmp(tw_status_name(all[i].status), all[i].name) != 0) {
      check_fail(__FILE__, __LINE__, "%d is called %s", all[i].status, tw_status_name(all[i].status));
    }
  }
  static const tw_status unknown[] = {3, 1000, -7, -9, -1000, INT32_MIN, INT32_MAX};
  for (size_t i = 0; i < sizeof unknown / sizeof *unknown; i++) {
    CHECK(strcmp(tw_status_name(unknown[i]), "unknown") == 0);
  }
}

static void default_options(void) {
  tw_options o = options();
  CHECK(o.struct_size == sizeof o);
  CHECK(o.state_dtype == TW_STATE_F32 && o.master == TW_MASTER_NONE && o.nonfinite == TW_NONFINITE_PROPAGATE);
  CHECK(o.maximize == 0 && o.zero_gradients == 0 && o.consume_gradients == 0);
  CHECK(o.gradient_scale == 1 && o.seed == 0);
}

/* ---- sgd, exactly ------------------------------------------------------------------------------------- */

/* w <- w - lr g with numbers that are exact in every format. */
static void sgd_f32(void) {
  NEED("sgd");
  float w[5] = {1, 2, -3, 0.5f, 0}, g[5] = {1, -2, 4, 0.25f, 8};
  const float expected[5] = {0.5f, 3, -5, 0.375f, -4};
  tw_optimizer *optimizer = with_vector("sgd(lr=0.5)", NULL, TW_F32, w, g, 5);
  CHECK(tw_optimizer_parameter_count(optimizer) == 1);
  MUST(tw_optimizer_step(optimizer));
  all_equal_f32(w, expected, 5);
  EQUAL(number(optimizer, "steps"), 1);
  EQUAL(number(optimizer, "lr"), 0.5);
  EQUAL(number(optimizer, "sgd.lr"), 0.5);
  OK(tw_optimizer_destroy(optimizer));
}

static void sgd_f64(void) {
  NEED("sgd");
  double w[3] = {1, 2, -3}, g[3] = {0.1, -0.2, 0.3};
  tw_optimizer *optimizer = with_vector("sgd(lr=0.5)", NULL, TW_F64, w, g, 3);
  MUST(tw_optimizer_step(optimizer));
  EQUAL(w[0], 1 - 0.5 * 0.1);
  EQUAL(w[1], 2 + 0.5 * 0.2);
  EQUAL(w[2], -3 - 0.5 * 0.3);
  OK(tw_optimizer_destroy(optimizer));
}

static void sgd_16_bits(void) {
  NEED("sgd");
  /* f16: 1 = 3C00, 2 = 4000, -4 = C400, 0.5 = 3800, 0 = 0000.  bf16: 3F80, 4000, C080, 3F00, 0000. */
  uint16_t half[4] = {0x3C00, 0x4000, 0xC400, 0x3800}, half_g[4] = {0x3C00, 0x4000, 0xC400, 0x3C00};
  uint16_t brain[4] = {0x3F80, 0x4000, 0xC080, 0x3F00}, brain_g[4] = {0x3F80, 0x4000, 0xC080, 0x3F80};
  const uint16_t half_expected[4] = {0x3800, 0x3C00, 0xC000, 0x0000};
  const uint16_t brain_expected[4] = {0x3F00, 0x3F80, 0xC000, 0x0000};
  tw_optimizer *optimizer = with_vector("sgd(lr=0.5)", NULL, TW_F16, half, half_g, 4);
  OK(tw_optimizer_step(optimizer));
  for (int i = 0; i < 4; i++) CHECK(half[i] == half_expected[i]);
  OK(tw_optimizer_destroy(optimizer));
  optimizer = with_vector("sgd(lr=0.5)", NULL, TW_BF16, brain, brain_g, 4);
  OK(tw_optimizer_step(optimizer));
  for (int i = 0; i < 4; i++) CHECK(brain[i] == brain_expected[i]);
  OK(tw_optimizer_destroy(optimizer));
}

/* Momentum, Nesterov, dampening and weight decay against the textbook recurrence, in numbers that are exact
 * in f32. */
static void sgd_momentum(void) {
  NEED("sgd");
  static const struct {
    const char *sentence;
    double momentum, dampening, decay;
    int nesterov;
  } cases[] = {{"sgd(lr=0.5, momentum=0.5)", 0.5, 0, 0, 0},
               {"sgd(lr=0.5, momentum=0.5, nesterov=true)", 0.5, 0, 0, 1},
               {"sgd(lr=0.5, momentum=0.5, dampening=0.5)", 0.5, 0.5, 0, 0},
               {"sgd(lr=0.5, weight_decay=0.25)", 0, 0, 0.25, 0},
               {"sgd(lr=0.5, momentum=0.5, weight_decay=0.25)", 0.5, 0, 0.25, 0}};
  for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
    note("%s", cases[c].sentence);
    float w[3] = {1, -2, 4}, g[3] = {1, 2, -1};
    double expected[3] = {1, -2, 4}, buffer[3] = {0, 0, 0};
    tw_optimizer *optimizer = with_vector(cases[c].sentence, NULL, TW_F32, w, g, 3);
    for (int step = 0; step < 3; step++) {
      OK(tw_optimizer_step(optimizer));
      for (int i = 0; i < 3; i++) {
        double d = g[i] + cases[c].decay * expected[i];
        if (cases[c].momentum != 0) {
          buffer[i] = step == 0 ? d : cases[c].momentum * buffer[i] + (1 - cases[c].dampening) * d;
          d = cases[c].nesterov ? d + cases[c].momentum * buffer[i] : buffer[i];
        }
        expected[i] -= 0.5 * d;
        EQUAL(w[i], expected[i]);
      }
    }
    OK(tw_optimizer_destroy(optimizer));
  }
}

/* ---- adamw against its definition --------------------------------------------------------------------- */

/* One step of AdamW in double precision. */
static void adamw_step(double *w, double *m, double *v, const double *g, size_t count, int t, double lr,
                       double decay) {
  const double beta1 = 0.9, beta2 = 0.999, eps = 1e-8;
  for (size_t i = 0; i < count; i++) {
    m[i] = beta1 * m[i] + (1 - beta1) * g[i];
    v[i] = beta2 * v[i] + (1 - beta2) * g[i] * g[i];
    double mean = m[i] / (1 - pow(beta1, t)), square = v[i] / (1 - pow(beta2, t));
    w[i] = w[i] * (1 - lr * decay) - lr * mean / (sqrt(square) + eps);
  }
}

enum { MANY = 1003 };

static void adamw_both(void) {
  NEED("adamw");
  static double w[MANY], m[MANY], v[MANY], g[MANY], w64[MANY], g64[MANY];
  static float w32[MANY], g32[MANY];
  fill_f32(w32, MANY, 1);
  for (int i = 0; i < MANY; i++) w[i] = w64[i] = w32[i];
  tw_optimizer *single = with_vector("adamw(lr=0.01, weight_decay=0.1)", NULL, TW_F32, w32, g32, MANY);
  tw_optimizer *twice = with_vector("adamw(lr=0.01, weight_decay=0.1)", NULL, TW_F64, w64, g64, MANY);
  for (int t = 1; t <= 50; t++) {
    fill_f32(g32, MANY, 100 + (uint64_t)t);
    for (int i = 0; i < MANY; i++) g[i] = g64[i] = g32[i];
    adamw_step(w, m, v, g, MANY, t, 0.01, 0.1);
    MUST(tw_optimizer_step(single));
    MUST(tw_optimizer_step(twice));
  }
  for (int i = 0; i < MANY; i++) {
    NEAR(w64[i], w[i], 1e-13);
    NEAR(w32[i], w[i], 1e-5);
  }
  OK(tw_optimizer_destroy(single));
  OK(tw_optimizer_destroy(twice));
}

/* ---- views -------------------------------------------------------------------------------------------- */

/* Strided, transposed and reversed views give the bits of the dense tensor, and nothing between is touched.
 */
/* Tensors of one dimension by pointer and count: the same as with views. */
static void dense_tensors(void) {
  NEED("sgd");
  float w[3] = {1, 2, 3}, g[3] = {2, 2, 2};
  double v[2] = {1, 2}, h[2] = {1, -1};
  uint16_t half[1] = {0x3F80}, half_g[1] = {0x3F80};
  tw_optimizer *optimizer = NULL, *doubles = NULL, *brain = NULL;
  OK(tw_optimizer_create("sgd(lr=0.5)", NULL, &optimizer));
  OK(tw_optimizer_add_dense_f32(optimizer, w, 3));
  OK(tw_optimizer_bind_dense_f32(optimizer, g, 3));
  OK(tw_optimizer_step(optimizer));
  CHECK(w[0] == 0 && w[1] == 1 && w[2] == 2 && tw_optimizer_parameter_count(optimizer) == 1);
  STATUS(TW_ERROR_SHAPE, tw_optimizer_bind_dense_f32(optimizer, g, 2));
  STATUS(TW_ERROR_SHAPE, tw_optimizer_add_dense_f32(optimizer, w, SIZE_MAX));
  STATUS(TW_ERROR_OVERLAP, tw_optimizer_add_dense_f32(optimizer, w + 1, 2));
  STATUS(TW_ERROR_ARGUMENT, tw_optimizer_add_dense(optimizer, NULL, TW_F32, 2));
  float u[2] = {1, 1}, d[2] = {1, 1};
  OK(tw_optimizer_add_dense_f32(optimizer, u, 2));
  CHECK(tw_optimizer_parameter_count(optimizer) == 2);
  STATUS(TW_ERROR_COUNT, tw_optimizer_bind_dense_f32(optimizer, d, 2));
  OK(tw_optimizer_destroy(optimizer));

  OK(tw_optimizer_create("sgd(lr=0.5)", NULL, &doubles));
  OK(tw_optimizer_add_dense_f64(doubles, v, 2));
  OK(tw_optimizer_bind_dense_f64(doubles, h, 2));
  OK(tw_optimizer_step(doubles));
  CHECK(v[0] == 0.5 && v[1] == 2.5);
  OK(tw_optimizer_destroy(doubles));

  OK(tw_optimizer_create("sgd(lr=0.5)", NULL, &brain));
  OK(tw_optimizer_add_dense(brain, half, TW_BF16, 1));
  OK(tw_optimizer_bind_dense(brain, half_g, TW_BF16, 1));
  OK(tw_optimizer_step(brain));
  CHECK(half[0] == 0x3F00);
  OK(tw_optimizer_destroy(brain));
  STATUS(TW_ERROR_HANDLE, tw_optimizer_add_dense_f32(NULL, w, 3));
}

static void views(void) {
  NEED("adamw");
  enum { ROWS = 7, COLUMNS = 9 };
  const int64_t shape[2] = {ROWS, COLUMNS};
  static const struct {
    const char *name;
    int64_t strides[2];
    size_t offset;
  } layouts[] = {{"padded rows", {16, 1}, 3},
                 {"transposed", {1, ROWS}, 0},
                 {"every third", {3 * COLUMNS, 3}, 1},
                 {"rows backwards", {-COLUMNS, 1}, (ROWS - 1) * COLUMNS},
                 {"all backwards", {-COLUMNS, -1}, ROWS * COLUMNS - 1}};
  for (size_t l = 0; l < sizeof layouts / sizeof *layouts; l++) {
    note("%s", layouts[l].name);
    static float memory[256], gradient_memory[256];
    float w[ROWS * COLUMNS], g[ROWS * COLUMNS], untouched[256];
    fill_f32(w, ROWS * COLUMNS, 7);
    fill_f32(memory, 256, 8);
    fill_f32(gradient_memory, 256, 9);
    float *start = memory + layouts[l].offset, *gradient_start = gradient_memory + layouts[l].offset;
    const int64_t *s = layouts[l].strides;
    tw_optimizer *dense = NULL, *strided = NULL;
    MUST(tw_optimizer_create("adamw(lr=0.01)", NULL, &dense));
    MUST(tw_optimizer_create("adamw(lr=0.01)", NULL, &strided));
    tw_tensor dense_w = view(w, TW_F32, 2, shape, NULL), dense_g = view(g, TW_F32, 2, shape, NULL);
    tw_tensor strided_w = view(start, TW_F32, 2, shape, s),
              strided_g = view(gradient_start, TW_F32, 2, shape, s);
    MUST(tw_optimizer_add_parameters(dense, &dense_w, 1, NULL, NULL));
    MUST(tw_optimizer_add_parameters(strided, &strided_w, 1, NULL, NULL));
    MUST(tw_optimizer_bind_gradients(dense, &dense_g, 1));
    MUST(tw_optimizer_bind_gradients(strided, &strided_g, 1));
    memcpy(untouched, memory, sizeof untouched);
    for (int i = 0; i < ROWS; i++) {
      for (int j = 0; j < COLUMNS; j++) start[i * s[0] + j * s[1]] = w[i * COLUMNS + j];
    }
    for (uint64_t step = 0; step < 3; step++) {
      fill_f32(g, ROWS * COLUMNS, 20 + step);
      for (int i = 0; i < ROWS; i++) {
        for (int j = 0; j < COLUMNS; j++) gradient_start[i * s[0] + j * s[1]] = g[i * COLUMNS + j];
      }
      OK(tw_optimizer_step(dense));
      OK(tw_optimizer_step(strided));
    }
    for (int i = 0; i < ROWS; i++) {
      for (int j = 0; j < COLUMNS; j++) {
        float *element = &start[i * s[0] + j * s[1]];
        if (*element != w[i * COLUMNS + j])
          check_fail(__FILE__, __LINE__, "%s: (%d, %d)", layouts[l].name, i, j);
        *element = untouched[element - memory];
      }
    }
    CHECK(memcmp(memory, untouched, sizeof untouched) == 0);
    OK(tw_optimizer_destroy(dense));
    OK(tw_optimizer_destroy(strided));
  }
}

/* Scalars, empty tensors, several dtypes in one optimizer. */
static void odd_tensors(void) {
  NEED("sgd");
  float scalar = 1, scalar_g = 2;
  double vector64[2] = {1, 2}, vector64_g[2] = {4, 4};
  const int64_t empty_shape[3] = {2, 0, 3}, two = 2;
  tw_tensor w[3] = {view(&scalar, TW_F32, 0, NULL, NULL), view(NULL, TW_F32, 3, empty_shape, NULL),
                    vector(vector64, TW_F64, &two)};
  tw_tensor g[3] = {view(&scalar_g, TW_F32, 0, NULL, NULL), view(NULL, TW_F32, 3, empty_shape, NULL),
                    vector(vector64_g, TW_F64, &two)};
  tw_optimizer *optimizer = NULL;
  MUST(tw_optimizer_create("sgd(lr=0.25)", NULL, &optimizer));
  MUST(tw_optimizer_add_parameters(optimizer, w, 3, NULL, NULL));
  CHECK(tw_optimizer_parameter_count(optimizer) == 3);
  OK(tw_optimizer_step_with(optimizer, g, 3));
  EQUAL(scalar, 0.5);
  EQUAL(vector64[0], 0);
  EQUAL(vector64[1], 1);
  OK(tw_optimizer_destroy(optimizer));
}

/* A gradient of another element type than its parameter is refused, or read as the numbers that it holds. */
static void mixed_dtypes(void) {
  NEED("sgd");
  float wide[2] = {1, 2}, wide_g[2] = {2, -4};
  double widest_g[2] = {2, -4};
  uint16_t brain[2] = {0x3F80, 0x4000}, half[2] = {0x3C00, 0x4000}, brain_g[2] = {0x4000, 0xC080};
  const int64_t two = 2;
  const tw_tensor parameters[4] = {vector(brain, TW_BF16, &two), vector(half, TW_F16, &two),
                                   vector(wide, TW_F32, &two), vector(wide, TW_F32, &two)};
  const tw_tensor gradients[4] = {vector(wide_g, TW_F32, &two), vector(wide_g, TW_F32, &two),
                                  vector(widest_g, TW_F64, &two), vector(brain_g, TW_BF16, &two)};
  for (int i = 0; i < 4; i++) {
    note("pair %d", i);
    wide[0] = 1, wide[1] = 2;
    tw_optimizer *optimizer = NULL;
    MUST(tw_optimizer_create("sgd(lr=0.25)", NULL, &optimizer));
    OK(tw_optimizer_add_parameters(optimizer, &parameters[i], 1, NULL, NULL));
    tw_status status = tw_optimizer_step_with(optimizer, &gradients[i], 1);
    if (status != TW_OK) {
      STATUS(TW_ERROR_DTYPE, status);
    } else if (i == 0) {
      CHECK(brain[0] == 0x3F00 && brain[1] == 0x4040);
    } else if (i == 1) {
      CHECK(half[0] == 0x3800 && half[1] == 0x4200);
    } else {
      CHECK(wide[0] == 0.5f && wide[1] == 3);
    }
    OK(tw_optimizer_destroy(optimizer));
  }
}

/* An absent gradient skips its tensor whole: no decay, no state, no step count. */
static void absent_gradient(void) {
  NEED("adamw");
  float a[2] = {1, 2}, b[2] = {3, 4}, ga[2] = {1, 1}, gb[2] = {1, 1}, alone[2] = {1, 2};
  const int64_t two = 2;
  tw_tensor w[2] = {vector(a, TW_F32, &two), vector(b, TW_F32, &two)};
  tw_tensor g[2] = {vector(ga, TW_F32, &two), vector(gb, TW_F32, &two)};
  tw_optimizer *optimizer = NULL,
               *other = with_vector("adamw(lr=0.1, weight_decay=0.5)", NULL, TW_F32, alone, ga, 2);
  MUST(tw_optimizer_create("adamw(lr=0.1, weight_decay=0.5)", NULL, &optimizer));
  MUST(tw_optimizer_add_parameters(optimizer, w, 2, NULL, NULL));
  g[1].flags = TW_TENSOR_ABSENT;
  g[1].data = NULL;
  OK(tw_optimizer_step_with(optimizer, g, 2));
  OK(tw_optimizer_step(other));
  EQUAL(b[0], 3);
  EQUAL(b[1], 4);
  all_equal_f32(a, alone, 2);
  /* The first step of b, when it comes, is a first step: |update| = lr. */
  g[1].flags = 0;
  g[1].data = gb;
  g[0].flags = TW_TENSOR_ABSENT;
  OK(tw_optimizer_step_with(optimizer, g, 2));
  all_equal_f32(a, alone, 2);
  NEAR(b[0], 3 * (1 - 0.1 * 0.5) - 0.1, 1e-6);
  OK(tw_optimizer_destroy(optimizer));
  OK(tw_optimizer_destroy(other));
}

/* ---- groups and hyper-parameters ---------------------------------------------------------------------- */

static void groups(void) {
  NEED("sgd");
  float a[1] = {1}, b[1] = {1}, g[2] = {1, 1};
  const int64_t one = 1;
  tw_tensor wa = vector(a, TW_F32, &one), wb = vector(b, TW_F32, &one);
  tw_tensor gradients[2] = {vector(g, TW_F32, &one), vector(g + 1, TW_F32, &one)};
  const char *name_a = "alpha", *name_b = "beta \"quoted\" \\ \xc3\xa9\n";
  tw_optimizer *optimizer = NULL;
  MUST(tw_optimizer_create("sgd(lr=0.5)", NULL, &optimizer));
  OK(tw_optimizer_add_parameters(optimizer, &wa, 1, &name_a, "slow"));
  OK(tw_optimizer_add_parameters(optimizer, &wb, 1, &name_b, "fast"));
  OK(tw_optimizer_bind_gradients(optimizer, gradients, 2));
  OK(tw_optimizer_set_number(optimizer, "slow", "sgd.lr", 0.125));
  double value = 0;
  OK(tw_optimizer_get_number(optimizer, "slow", "lr", &value));
  EQUAL(value, 0.125);
  OK(tw_optimizer_get_number(optimizer, "fast", "lr", &value));
  EQUAL(value, 0.5);
  OK(tw_optimizer_get_number(optimizer, NULL, "lr", &value));
  EQUAL(value, 0.5);
  OK(tw_optimizer_step(optimizer));
  EQUAL(a[0], 0.875);
  EQUAL(b[0], 0.5);
  OK(tw_optimizer_set_number(optimizer, NULL, "lr", 0.25));
  OK(tw_optimizer_step(optimizer));
  EQUAL(a[0], 0.625);
  EQUAL(b[0], 0.25);
  checkpoint saved = save(optimizer);
  CHECK(saved.data != NULL);
  OK(tw_optimizer_load(optimizer, saved.data, saved.size));
  free(saved.data);
  OK(tw_optimizer_destroy(optimizer));
}

/* Texts come back through a buffer of exactly the size that is said to be needed. */
static void texts(void) {
  NEED("adamw");
  tw_optimizer *optimizer = NULL, *again = NULL;
  char small[4] = "abc", buffer[4096], second[4096];
  size_t needed = 0;
  MUST(tw_optimizer_create("adamw( lr = 1_0.5e-3 ,weight_decay=0)", NULL, &optimizer));
  NEAR(number(optimizer, "adamw.lr"), 0.0105, 1e-17);
  STATUS(TW_ERROR_SPACE, tw_optimizer_sentence(optimizer, small, sizeof small, &needed));
  CHECK(needed > sizeof small && needed < sizeof buffer);
  size_t whole = needed;
  OK(tw_optimizer_sentence(optimizer, buffer, whole, &needed));
  CHECK(needed == whole && strlen(buffer) + 1 == whole);
  CHECK(strstr(buffer, "adamw") != NULL && strstr(buffer, "beta1") != NULL);
  /* The sentence creates the same optimizer. */
  MUST(tw_optimizer_create(buffer, NULL, &again));
  OK(tw_optimizer_sentence(again, second, sizeof second, &needed));
  CHECK(strcmp(buffer, second) == 0);
  OK(tw_optimizer_get_text(optimizer, NULL, "adamw.beta1", buffer, sizeof buffer, &needed));
  CHECK(strcmp(buffer, "0.9") == 0 && needed == 4);
  OK(tw_optimizer_set_text(optimizer, NULL, "adamw.lr", "0.25"));
  EQUAL(number(optimizer, "lr"), 0.25);
  OK(tw_optimizer_destroy(optimizer));
  OK(tw_optimizer_destroy(again));
}

/* A schedule in a number's place: the value is that of the next step, and a number replaces it. */
static void schedules_in_sentences(void) {
  NEED("sgd");
  NEED("cosine");
  float w[1] = {0}, g[1] = {-1};
  tw_schedule *schedule = NULL;
  tw_optimizer *optimizer = NULL;
  optimizer = with_vector("sgd(lr=0.5)", NULL, TW_F32, w, g, 1);
  double first = 0, second = 0;
  MUST(tw_schedule_create("cosine(lr=0.5, total=4)", &schedule));
  OK(tw_schedule_value(schedule, 0, &first));
  OK(tw_schedule_value(schedule, 1, &second));
  OK(tw_optimizer_set_text(optimizer, NULL, "sgd.lr", "cosine(lr=0.5, total=4)"));
  EQUAL(number(optimizer, "lr"), first);
  OK(tw_optimizer_step(optimizer));
  EQUAL(w[0], first);
  EQUAL(number(optimizer, "lr"), second);
  OK(tw_optimizer_set_number(optimizer, NULL, "lr", 2));
  OK(tw_optimizer_step(optimizer));
  EQUAL(w[0], first + 2);
  OK(tw_schedule_destroy(schedule));
  OK(tw_optimizer_destroy(optimizer));
}

/* ---- options ------------------------------------------------------------------------------------------ */

static void maximize_and_scale(void) {
  NEED("sgd");
  float w[2] = {1, 1}, g[2] = {2, 4};
  tw_options o = options();
  o.maximize = 1;
  o.gradient_scale = 0.5;
  o.zero_gradients = 1;
  tw_optimizer *optimizer = with_vector("sgd(lr=0.5)", &o, TW_F32, w, g, 2);
  EQUAL(number(optimizer, "gradient_scale"), 0.5);
  MUST(tw_optimizer_step(optimizer));
  EQUAL(w[0], 1.5);
  EQUAL(w[1], 2);
  EQUAL(g[0], 0);
  EQUAL(g[1], 0);
  g[0] = 2;
  OK(tw_optimizer_set_number(optimizer, NULL, "gradient_scale", 0.25));
  OK(tw_optimizer_step(optimizer));
  EQUAL(w[0], 1.75);
  EQUAL(w[1], 2);
  OK(tw_optimizer_destroy(optimizer));
}

/* A NaN is propagated, skipped (and counted), or refused; the last two change nothing. */
static void nonfinite(void) {
  NEED("sgd");
  float w[2] = {1, 1}, g[2] = {1, NAN};
  tw_options o = options();
  tw_optimizer *optimizer = with_vector("sgd(lr=0.5, momentum=0.5)", &o, TW_F32, w, g, 2);
  OK(tw_optimizer_step(optimizer));
  EQUAL(w[0], 0.5);
  CHECK(isnan(w[1]));
  OK(tw_optimizer_destroy(optimizer));
  for (int round = 0; round < 2; round++) {
    w[0] = w[1] = 1;
    g[0] = 1;
    g[1] = round == 0 ? NAN : -INFINITY;
    o.nonfinite = TW_NONFINITE_SKIP;
    optimizer = with_vector("sgd(lr=0.5, momentum=0.5)", &o, TW_F32, w, g, 2);
    STATUS(TW_SKIPPED, tw_optimizer_step(optimizer));
    STATUS(TW_SKIPPED, tw_optimizer_step(optimizer));
    EQUAL(w[0], 1);
    EQUAL(w[1], 1);
    EQUAL(number(optimizer, "skipped"), 2);
    EQUAL(number(optimizer, "steps"), 0);
    g[1] = 1;
    OK(tw_optimizer_step(optimizer));
    EQUAL(w[1], 0.5);
    EQUAL(number(optimizer, "steps"), 1);
    OK(tw_optimizer_destroy(optimizer));
    w[1] = w[0] = 1;
    g[1] = round == 0 ? NAN : -INFINITY;
    o.nonfinite = TW_NONFINITE_ERROR;
    optimizer = with_vector("sgd(lr=0.5, momentum=0.5)", &o, TW_F32, w, g, 2);
    STATUS(TW_ERROR_NONFINITE, tw_optimizer_step(optimizer));
    EQUAL(w[0], 1);
    EQUAL(w[1], 1);
    OK(tw_optimizer_destroy(optimizer));
  }
}

/* A 16-bit copy of the parameters, written by the step. */
static void shadow(void) {
  NEED("sgd");
  float w[3] = {1, 2, -3}, g[3] = {1, 2, 2};
  uint16_t copy[3] = {7, 7, 7};
  const int64_t three = 3;
  tw_tensor target = vector(copy, TW_BF16, &three);
  tw_optimizer *optimizer = with_vector("sgd(lr=0.5)", NULL, TW_F32, w, g, 3);
  MUST(tw_optimizer_bind_shadow(optimizer, &target, 1));
  OK(tw_optimizer_step(optimizer));
  CHECK(copy[0] == 0x3F00 && copy[1] == 0x3F80 && copy[2] == 0xC080);
  OK(tw_optimizer_bind_shadow(optimizer, NULL, 0));
  OK(tw_optimizer_step(optimizer));
  CHECK(copy[0] == 0x3F00 && copy[1] == 0x3F80 && copy[2] == 0xC080);
  OK(tw_optimizer_destroy(optimizer));
}

/* ---- reverse communication ---------------------------------------------------------------------------- */

/* One gradient a step, asked for: the same bits as tw_optimizer_step. */
static void requests_for_one_gradient(void) {
  NEED("adamw");
  float a[4] = {1, 2, 3, 4}, b[4] = {1, 2, 3, 4}, ga[4], gb[4];
  tw_optimizer *asked = with_vector("adamw(lr=0.1)", NULL, TW_F32, a, ga, 4);
  tw_optimizer *told = with_vector("adamw(lr=0.1)", NULL, TW_F32, b, gb, 4);
  for (int step = 0; step < 5; step++) {
    tw_request request;
    memset(&request, 0, sizeof request);
    request.struct_size = sizeof request;
    STATUS(TW_MORE, tw_optimizer_next(asked, &request));
    CHECK(request.kind == TW_REQUEST_GRADIENT && request.pass == 0);
    memcpy(ga, a, sizeof ga);
    OK(tw_optimizer_next(asked, &request));
    memcpy(gb, b, sizeof gb);
    OK(tw_optimizer_step(told));
    all_equal_f32(a, b, 4);
  }
  /* A cancelled step has not been. */
  tw_request request;
  memset(&request, 0, sizeof request);
  request.struct_size = sizeof request;
  checkpoint before = save(asked), after;
  STATUS(TW_MORE, tw_optimizer_next(asked, &request));
  OK(tw_optimizer_cancel(asked));
  after = save(asked);
  CHECK(same_checkpoint(before, after));
  all_equal_f32(a, b, 4);
  free(before.data);
  free(after.data);
  OK(tw_optimizer_destroy(asked));
  OK(tw_optimizer_destroy(told));
}

/* sam on |w|^2 / 2 at (3, 4): the second gradient is asked for at w (1 + rho / 5). */
static void requests_of_sam(void) {
  NEED("sam");
  NEED("sgd");
  double w[2] = {3, 4}, g[2];
  tw_optimizer *optimizer = with_vector("sam(0.5) | sgd(lr=0.1)", NULL, TW_F64, w, g, 2);
  tw_request request;
  memset(&request, 0, sizeof request);
  request.struct_size = sizeof request;
  STATUS(TW_MORE, tw_optimizer_next(optimizer, &request));
  uint64_t tag = request.tag;
  CHECK(request.kind == TW_REQUEST_GRADIENT && request.pass == 0);
  EQUAL(w[0], 3);
  memcpy(g, w, sizeof g);
  STATUS(TW_MORE, tw_optimizer_next(optimizer, &request));
  CHECK(request.kind == TW_REQUEST_GRADIENT && request.pass == 1 && request.tag == tag);
  NEAR(w[0], 3.3, 1e-11);
  NEAR(w[1], 4.4, 1e-11);
  memcpy(g, w, sizeof g);
  OK(tw_optimizer_next(optimizer, &request));
  NEAR(w[0], 3 - 0.33, 1e-11);
  NEAR(w[1], 4 - 0.44, 1e-11);
  EQUAL(number(optimizer, "steps"), 1);
  /* Cancelled at the trial point: the parameters come back bit for bit. */
  double before[2];
  memcpy(before, w, sizeof before);
  STATUS(TW_MORE, tw_optimizer_next(optimizer, &request));
  CHECK(request.tag != tag);
  memcpy(g, w, sizeof g);
  STATUS(TW_MORE, tw_optimizer_next(optimizer, &request));
  CHECK(memcmp(before, w, sizeof w) != 0);
  OK(tw_optimizer_cancel(optimizer));
  CHECK(memcmp(before, w, sizeof w) == 0);
  /* One call cannot give two gradients. */
  STATUS(TW_ERROR_NEEDS, tw_optimizer_step(optimizer));
  CHECK(memcmp(before, w, sizeof w) == 0);
  OK(tw_optimizer_destroy(optimizer));
}

/* tract on one layer and its bias, by hand: X = (1, 0, 0), G = (1, 2), lam = 1, so that the move is G' X / 2. */
static void requests_of_tract(void) {
  NEED("tract");
  NEED("sgd");
  double w[6] = {1, 1, 1, 1, 1, 1}, b[2] = {1, 1}, gw[6] = {9, 9, 9, 9, 9, 9}, gb[2] = {1, 2}, norm[4] = {1, 1, 1, 1};
  double x[3] = {1, 0, 0}, z[2] = {1, 2};
  const int64_t layer[2] = {2, 3}, bias = 2, square[2] = {2, 2}, one_three[2] = {1, 3}, one_two[2] = {1, 2};
  tw_tensor parameters[3] = {vector(b, TW_F64, &bias), view(w, TW_F64, 2, layer, NULL), view(norm, TW_F64, 2, square, NULL)};
  tw_tensor gradients[3] = {vector(gb, TW_F64, &bias), view(gw, TW_F64, 2, layer, NULL), view(gw, TW_F64, 2, square, NULL)};
  tw_tensor inputs = view(x, TW_F64, 2, one_three, NULL), outputs = view(z, TW_F64, 2, one_two, NULL);
  parameters[2].role = TW_ROLE_NORM; /* a matrix, but no layer */
  tw_optimizer *optimizer = NULL;
  tw_request request = {.struct_size = sizeof request};
  MUST(tw_optimizer_create("tract(1.0) | sgd(lr=1.0)", NULL, &optimizer));
  OK(tw_optimizer_add_parameters(optimizer, parameters, 3, NULL, NULL));
  OK(tw_optimizer_bind_gradients(optimizer, gradients, 3));
  OK(tw_optimizer_waiting(optimizer, &request));
  CHECK(request.kind == TW_REQUEST_NONE);
  STATUS(TW_MORE, tw_optimizer_next(optimizer, &request));
  CHECK(request.kind == TW_REQUEST_GRADIENT);
  STATUS(TW_MORE, tw_optimizer_next(optimizer, &request));
  CHECK(request.kind == TW_REQUEST_ACTIVATIONS && request.index == 1 && request.count == 1 && request.probe == NULL);
  OK(tw_optimizer_answer_matrix(optimizer, &inputs, &outputs));
  OK(tw_optimizer_next(optimizer, &request));
  const double moved[6] = {0.5, 1, 1, 0, 1, 1};
  for (int i = 0; i < 6; i++) NEAR(w[i], moved[i], 1e-15);
  EQUAL(b[0], 0);
  EQUAL(b[1], -1);
  EQUAL(norm[0], -8);
  STATUS(TW_ERROR_NEEDS, tw_optimizer_step(optimizer));
  OK(tw_optimizer_destroy(optimizer));
}

/* ghost_step on two logits that are the parameters: u = (-1, 1), spread 2, radius pi / 2.  The step is saved at the request, and gone
 * on with by another optimizer, which sees the same probe. */
static void requests_of_ghost_step(void) {
  NEED("ghost_step");
  NEED("sgd");
  for (int alone = 0; alone < 2; alone++) {
    double w[2] = {0.5, 0.5}, g[2] = {1, -1}, other[2], zeros[2] = {0, 0};
    const int64_t row[2] = {1, 2};
    const char *sentence = "sgd(lr=10.0) | ghost_step(fd_eps=0.001)";
    tw_optimizer *optimizer = with_vector(sentence, NULL, TW_F64, w, g, 2);
    tw_request request = {.struct_size = sizeof request}, again = {.struct_size = sizeof again};
    STATUS(TW_MORE, tw_optimizer_next(optimizer, &request));
    STATUS(TW_MORE, tw_optimizer_next(optimizer, &request));
    CHECK(request.kind == TW_REQUEST_LOGIT_DERIVATIVES && request.probe_count == 1);
    if (request.probe_count != 1) return;
    const double *u = request.probe[0].data;
    EQUAL(u[0], -1);
    EQUAL(u[1], 1);
    NEAR(number(optimizer, "ghost_step.norm"), sqrt(2), 1e-15);
    tw_tensor a = view((void *)(uintptr_t)u, TW_F64, 2, row, NULL), logits = view(w, TW_F64, 2, row, NULL);
    if (alone) {
      OK(tw_optimizer_answer_matrix(optimizer, NULL, &logits));
      STATUS(TW_MORE, tw_optimizer_next(optimizer, &request));
      CHECK(request.kind == TW_REQUEST_LOGIT_DERIVATIVES && request.pass == 2);
      NEAR(w[0], 0.5 - 0.001 / sqrt(2), 1e-15);
    }
    memcpy(other, w, sizeof other);
    checkpoint saved = save(optimizer);
    tw_optimizer *resumed = with_vector(sentence, NULL, TW_F64, other, zeros, 2);
    OK(tw_optimizer_load(resumed, saved.data, saved.size));
    free(saved.data);
    STATUS(TW_MORE, tw_optimizer_waiting(resumed, &again));
    CHECK(again.kind == request.kind && again.pass == request.pass && again.tag == request.tag && again.probe_count == 1);
    if (again.probe_count == 1) EQUAL(((const double *)again.probe[0].data)[0], -1);
    tw_tensor there = view(other, TW_F64, 2, row, NULL);
    OK(tw_optimizer_answer_matrix(optimizer, alone ? NULL : &a, alone ? &logits : NULL));
    OK(tw_optimizer_answer_matrix(resumed, alone ? NULL : &a, alone ? &there : NULL));
    OK(tw_optimizer_next(optimizer, &request));
    OK(tw_optimizer_next(resumed, &again));
    const double radius = 3.14159265358979323846 / 2, tolerance = alone ? 1e-10 : 1e-14;
    NEAR(w[0], 0.5 - radius, tolerance);
    NEAR(w[1], 0.5 + radius, tolerance);
    CHECK(memcmp(w, other, sizeof w) == 0);
    NEAR(number(optimizer, "ghost_step.r"), 10 / radius, 1e-9);
    NEAR(number(optimizer, "ghost_step.tau"), radius, tolerance);
    OK(tw_optimizer_destroy(optimizer));
    OK(tw_optimizer_destroy(resumed));
  }
}

/* svrg: the full gradient alone, then two gradients of one minibatch, the second at the snapshot. */
static void requests_of_svrg(void) {
  NEED("svrg");
  double w[2] = {3, 4}, g[2] = {3, 4};
  tw_optimizer *optimizer = with_vector("svrg(lr=0.5, inner=2)", NULL, TW_F64, w, g, 2);
  tw_request request = {.struct_size = sizeof request};
  STATUS(TW_MORE, tw_optimizer_next(optimizer, &request));
  OK(tw_optimizer_next(optimizer, &request));
  EQUAL(w[0], 1.5);
  EQUAL(w[1], 2);
  for (int goes_on = 0; goes_on < 2; goes_on++) {
    STATUS(TW_MORE, tw_optimizer_next(optimizer, &request));
    uint64_t tag = request.tag;
    g[0] = g[1] = 1;
    STATUS(TW_MORE, tw_optimizer_next(optimizer, &request));
    CHECK(request.kind == TW_REQUEST_GRADIENT && request.pass == 1 && request.tag == tag);
    EQUAL(w[0], 3);
    EQUAL(w[1], 4);
    if (!goes_on) {
      OK(tw_optimizer_cancel(optimizer));
      EQUAL(w[0], 1.5);
      EQUAL(w[1], 2);
    }
  }
  g[0] = 0.5;
  g[1] = 0;
  OK(tw_optimizer_next(optimizer, &request));
  EQUAL(w[0], 1.5 - 0.5 * (1 - 0.5 + 3));
  EQUAL(w[1], 2 - 0.5 * (1 - 0 + 4));
  STATUS(TW_ERROR_NEEDS, tw_optimizer_step(optimizer));
  OK(tw_optimizer_destroy(optimizer));
}

/* rolling_ball without a radius on w^2 / 2 at 1: the centre is (0.5, 0).  A loss that is not a number puts the ball back. */
static void requests_of_rolling_ball(void) {
  NEED("rolling_ball");
  double w[1] = {1}, g[1];
  const char *sentence = "rolling_ball(lr=0.5, radius=0, projection_lr=0.1, n_projection=2)";
  tw_optimizer *optimizer = with_vector(sentence, NULL, TW_F64, w, g, 1);
  tw_request request = {.struct_size = sizeof request};
  STATUS(TW_MORE, tw_optimizer_next(optimizer, &request));
  for (int pass = 0; pass < 3; pass++) {
    CHECK(request.kind == TW_REQUEST_LOSS_AND_GRADIENT && request.pass == pass);
    NEAR(w[0], pass < 2 ? 1 : 0.9, 1e-15);
    g[0] = w[0];
    request.loss = pass < 2 ? w[0] * w[0] / 2 : (double)NAN;
    if (pass < 2) STATUS(TW_MORE, tw_optimizer_next(optimizer, &request));
  }
  STATUS(TW_ERROR_NEEDS, tw_optimizer_next(optimizer, &request));
  EQUAL(w[0], 1);
  EQUAL(number(optimizer, "steps"), 0);
  STATUS(TW_MORE, tw_optimizer_next(optimizer, &request));
  for (int pass = 0; pass < 3; pass++) {
    g[0] = w[0];
    request.loss = w[0] * w[0] / 2;
    tw_status status = tw_optimizer_next(optimizer, &request);
    CHECK(status == (pass < 2 ? TW_MORE : TW_OK));
  }
  NEAR(w[0], 0.9 - 0.1 * (0.4 + 0.405 * 0.9), 1e-15);
  OK(tw_optimizer_destroy(optimizer));
}

/* ---- stages around the rule --------------------------------------------------------------------------- */

static void clipping(void) {
  NEED("clip_global_norm");
  NEED("sgd");
  double w[2] = {0, 0}, g[2] = {3, 4};
  tw_optimizer *optimizer = with_vector("clip_global_norm(1.0) | sgd(lr=1)", NULL, TW_F64, w, g, 2);
  MUST(tw_optimizer_step(optimizer));
  NEAR(w[0], -0.6, 1e-15);
  NEAR(w[1], -0.8, 1e-15);
  NEAR(number(optimizer, "clip_global_norm.norm"), 5, 1e-15);
  EQUAL(g[0], 3);
  EQUAL(g[1], 4);
  OK(tw_optimizer_destroy(optimizer));
}

/* The average is 1 - d^k behind; evaluation mode shows it, training mode brings the weights back. */
static void averages(void) {
  NEED("ema");
  NEED("sgd");
  float w[2] = {0, 8}, g[2] = {-1, 0};
  tw_optimizer *optimizer = with_vector("sgd(lr=1) | ema(0.5)", NULL, TW_F32, w, g, 2);
  double average = 0;
  for (int k = 1; k <= 4; k++) {
    OK(tw_optimizer_step(optimizer));
    average = k == 1 ? k : 0.5 * average + 0.5 * k; /* the first update copies */
  }
  EQUAL(w[0], 4);
  OK(tw_optimizer_set_mode(optimizer, TW_MODE_EVAL));
  EQUAL(w[0], average);
  EQUAL(w[1], 8);
  OK(tw_optimizer_set_mode(optimizer, TW_MODE_EVAL));
  EQUAL(w[0], average);
  STATUS(TW_ERROR_SEQUENCE, tw_optimizer_step(optimizer));
  OK(tw_optimizer_set_mode(optimizer, TW_MODE_TRAIN));
  EQUAL(w[0], 4);
  EQUAL(w[1], 8);
  OK(tw_optimizer_step(optimizer));
  EQUAL(w[0], 5);
  OK(tw_optimizer_destroy(optimizer));
}

static void accumulation(void) {
  NEED("gradient_accumulate");
  NEED("sgd");
  float w[1] = {0}, g[1];
  tw_optimizer *optimizer = with_vector("gradient_accumulate(4) | sgd(lr=1)", NULL, TW_F32, w, g, 1);
  for (int k = 1; k <= 4; k++) {
    EQUAL(w[0], 0);
    g[0] = (float)k;
    OK(tw_optimizer_step(optimizer));
  }
  EQUAL(w[0], -2.5);
  g[0] = 1;
  OK(tw_optimizer_step(optimizer));
  g[0] = 2;
  OK(tw_optimizer_step(optimizer));
  EQUAL(w[0], -2.5);
  OK(tw_optimizer_command(optimizer, "gradient_accumulate.flush"));
  EQUAL(w[0], -4);
  OK(tw_optimizer_destroy(optimizer));
}

static void prox_after_the_step(void) {
  NEED("prox");
  NEED("l1");
  NEED("sgd");
  double w[4] = {3, -3, 0.25, -0.25}, g[4] = {0, 0, 0, 0};
  const int64_t shape[2] = {2, 2};
  tw_tensor parameter = view(w, TW_F64, 2, shape, NULL), gradient = view(g, TW_F64, 2, shape, NULL);
  tw_optimizer *optimizer = NULL;
  MUST(tw_optimizer_create("sgd(lr=0.5) | prox(l1(1))", NULL, &optimizer));
  MUST(tw_optimizer_add_parameters(optimizer, &parameter, 1, NULL, NULL));
  MUST(tw_optimizer_bind_gradients(optimizer, &gradient, 1));
  OK(tw_optimizer_step(optimizer));
  EQUAL(w[0], 2.5);
  EQUAL(w[1], -2.5);
  EQUAL(w[2], 0);
  EQUAL(w[3], 0);
  OK(tw_optimizer_destroy(optimizer));
}

/* ---- state -------------------------------------------------------------------------------------------- */

static void state_listing(void) {
  NEED("adamw");
  float w[6] = {1, 2, 3, 4, 5, 6}, g[6] = {1, -1, 2, -2, 3, -3};
  tw_optimizer *optimizer = with_vector("adamw(lr=0.1)", NULL, TW_F32, w, g, 6);
  size_t rows = tw_optimizer_state_count(optimizer);
  CHECK(rows >= 2);
  OK(tw_optimizer_step(optimizer));
  CHECK(tw_optimizer_state_count(optimizer) == rows);
  int means = 0, squares = 0;
  for (size_t i = 0; i < rows; i++) {
    tw_state_info info;
    memset(&info, 0, sizeof info);
    info.struct_size = sizeof info;
    MUST(tw_optimizer_state_at(optimizer, i, &info));
    CHECK(strcmp(info.stage, "adamw") == 0 && info.slot != NULL && info.slot[0] != 0);
    if (info.count != 6) continue;
    double values[6];
    OK(tw_optimizer_state_read(optimizer, i, values, 6));
    CHECK(info.parameter == 0 && info.bytes == 24 && info.storage == TW_STATE_F32);
    if (strcmp(info.slot, "exp_avg") == 0) {
      means++;
      for (int k = 0; k < 6; k++) NEAR(values[k], 0.1 * g[k], 1e-6);
    } else if (strcmp(info.slot, "exp_avg_sq") == 0) {
      squares++;
      for (int k = 0; k < 6; k++) NEAR(values[k], 0.001 * g[k] * g[k], 1e-8);
    }
  }
  CHECK(means == 1 && squares == 1);
  OK(tw_optimizer_destroy(optimizer));
}

/* Smaller state is smaller, close to full state, and survives a checkpoint bit for bit. */
static void state_storage(void) {
  NEED("adamw");
  enum { COUNT = 4096 };
  static float w[3][COUNT], g[COUNT];
  static const int32_t storages[3] = {TW_STATE_F32, TW_STATE_BF16, TW_STATE_Q8};
  size_t bytes[3] = {0, 0, 0};
  for (int s = 0; s < 3; s++) {
    note("storage %d", storages[s]);
    tw_options o = options();
    o.state_dtype = storages[s];
    fill_f32(w[s], COUNT, 5);
    tw_optimizer *optimizer = with_vector("adamw(lr=0.01)", &o, TW_F32, w[s], g, COUNT);
    for (uint64_t step = 0; step < 5; step++) {
      fill_f32(g, COUNT, 40 + step);
      MUST(tw_optimizer_step(optimizer));
    }
    for (size_t i = 0; i < tw_optimizer_state_count(optimizer); i++) {
      tw_state_info info;
      memset(&info, 0, sizeof info);
      info.struct_size = sizeof info;
      OK(tw_optimizer_state_at(optimizer, i, &info));
      bytes[s] += info.bytes;
    }
    /* The same bits after save and load. */
    static float copy[COUNT];
    memcpy(copy, w[s], sizeof copy);
    tw_optimizer *resumed = with_vector("adamw(lr=0.01)", &o, TW_F32, copy, g, COUNT);
    checkpoint saved = save(optimizer);
    OK(tw_optimizer_load(resumed, saved.data, saved.size));
    free(saved.data);
    fill_f32(g, COUNT, 50);
    OK(tw_optimizer_step(optimizer));
    OK(tw_optimizer_step(resumed));
    CHECK(memcmp(copy, w[s], sizeof copy) == 0);
    for (int i = 0; i < COUNT; i++) NEAR(w[s][i], w[0][i], 0.02);
    OK(tw_optimizer_destroy(optimizer));
    OK(tw_optimizer_destroy(resumed));
  }
  CHECK(bytes[1] < bytes[0] && bytes[2] < bytes[1]);
}

/* A run that is cut by a checkpoint, in memory or in a file, gives the bits of one that is not. */
static void save_and_load(void) {
  static const char *const sentences[] = {"sgd(lr=0.1)",
                                          "sgd(lr=0.1, momentum=0.9)",
                                          "adamw(lr=0.01)",
                                          "clip_global_norm(0.5) | adamw(lr=0.01)",
                                          "adamw(lr=0.01) | ema(0.9)",
                                          "adamw(lr=cosine(lr=0.1, total=12))",
                                          "gradient_accumulate(3) | adamw(lr=0.01)",
                                          "lion(lr=0.01)",
                                          "adamw(lr=0.01) | lookahead(3)",
                                          "schedule_free_adamw(lr=0.01)"};
  enum { COUNT = 77 };
  char path[] = "/tmp/thalweg-abi-XXXXXX";
  int file = mkstemp(path);
  CHECK(file >= 0);
  close(file);
  int ran = 0;
  for (size_t s = 0; s < sizeof sentences / sizeof *sentences; s++) {
    note("%s", sentences[s]);
    tw_optimizer *probe = NULL;
    if (tw_optimizer_create(sentences[s], NULL, &probe) != TW_OK)
      continue; /* a method that this build lacks */
    OK(tw_optimizer_destroy(probe));
    ran++;
    for (int through_file = 0; through_file < 2; through_file++) {
      float whole[COUNT], cut[COUNT], g[COUNT];
      fill_f32(whole, COUNT, 3);
      tw_optimizer *straight = with_vector(sentences[s], NULL, TW_F32, whole, g, COUNT);
      tw_optimizer *resumed = NULL;
      for (uint64_t step = 0; step < 12; step++) {
        fill_f32(g, COUNT, 60 + step);
        if (step == 5) {
          memcpy(cut, whole, sizeof cut);
          resumed = with_vector(sentences[s], NULL, TW_F32, cut, g, COUNT);
          if (through_file) {
            OK(tw_optimizer_save_file(straight, path));
            OK(tw_optimizer_load_file(resumed, path));
          } else {
            checkpoint saved = save(straight);
            OK(tw_optimizer_load(resumed, saved.data, saved.size));
            checkpoint again = save(resumed);
            CHECK(same_checkpoint(saved, again));
            free(saved.data);
            free(again.data);
          }
        }
        MUST(tw_optimizer_step(straight));
        if (step >= 5) MUST(tw_optimizer_step(resumed));
      }
      EQUAL(number(straight, "steps"), number(resumed, "steps"));
      if (memcmp(whole, cut, sizeof cut) != 0) check_fail(__FILE__, __LINE__, "%s: other bits", sentences[s]);
      OK(tw_optimizer_destroy(straight));
      OK(tw_optimizer_destroy(resumed));
    }
  }
  unlink(path);
  CHECK(ran > 0);
}

/* A checkpoint of other tensors or another sentence is refused, and nothing changes. */
static void mismatched_checkpoints(void) {
  NEED("sgd");
  NEED("adamw");
  float w[4] = {1, 2, 3, 4}, g[4] = {1, 1, 1, 1}, w3[3] = {1, 2, 3};
  double w64[4] = {1, 2, 3, 4}, g64[4] = {1, 1, 1, 1};
  tw_optimizer *source = with_vector("adamw(lr=0.1)", NULL, TW_F32, w, g, 4);
  OK(tw_optimizer_step(source));
  checkpoint saved = save(source);
  tw_optimizer *others[3] = {with_vector("sgd(lr=0.1, momentum=0.9)", NULL, TW_F32, w, g, 4),
                             with_vector("adamw(lr=0.1)", NULL, TW_F32, w3, g, 3),
                             with_vector("adamw(lr=0.1)", NULL, TW_F64, w64, g64, 4)};
  for (int i = 0; i < 3; i++) {
    OK(tw_optimizer_step(others[i]));
    checkpoint before = save(others[i]);
    STATUS(TW_ERROR_MISMATCH, tw_optimizer_load(others[i], saved.data, saved.size));
    checkpoint after = save(others[i]);
    CHECK(same_checkpoint(before, after));
    free(before.data);
    free(after.data);
    OK(tw_optimizer_step(others[i]));
    OK(tw_optimizer_destroy(others[i]));
  }
  free(saved.data);
  OK(tw_optimizer_destroy(source));
}

/* Parameters that move keep their state. */
static void rebinding(void) {
  NEED("sgd");
  float here[2] = {1, 1}, there[2] = {0, 0}, g[2] = {1, 2};
  const int64_t two = 2, three = 3;
  tw_optimizer *optimizer = with_vector("sgd(lr=0.5, momentum=0.5)", NULL, TW_F32, here, g, 2);
  OK(tw_optimizer_step(optimizer));
  memcpy(there, here, sizeof there);
  tw_tensor moved = vector(there, TW_F32, &two), longer = vector(there, TW_F32, &three);
  STATUS(TW_ERROR_SHAPE, tw_optimizer_rebind_parameters(optimizer, &longer, 1));
  OK(tw_optimizer_rebind_parameters(optimizer, &moved, 1));
  OK(tw_optimizer_step(optimizer));
  EQUAL(here[0], 0.5);
  EQUAL(there[0], 0.5 - 0.5 * 1.5);
  EQUAL(there[1], 0 - 0.5 * 3);
  OK(tw_optimizer_destroy(optimizer));
}

/* The order in which tensors are bound does not change their numbers. */
static void order_of_binding(void) {
  NEED("adamw");
  enum { TENSORS = 5, COUNT = 100 };
  static float w[2][TENSORS][COUNT], g[TENSORS][COUNT];
  const int64_t count = COUNT;
  for (int order = 0; order < 2; order++) {
    tw_optimizer *optimizer = NULL;
    MUST(tw_optimizer_create("adamw(lr=0.01)", NULL, &optimizer));
    tw_tensor parameters[TENSORS], gradients[TENSORS];
    for (int t = 0; t < TENSORS; t++) {
      int which = order == 0 ? t : TENSORS - 1 - t;
      fill_f32(w[order][which], COUNT, 70 + (uint64_t)which);
      fill_f32(g[which], COUNT, 80 + (uint64_t)which);
      parameters[t] = vector(w[order][which], TW_F32, &count);
      gradients[t] = vector(g[which], TW_F32, &count);
    }
    OK(tw_optimizer_add_parameters(optimizer, parameters, TENSORS, NULL, NULL));
    OK(tw_optimizer_bind_gradients(optimizer, gradients, TENSORS));
    for (int step = 0; step < 3; step++) OK(tw_optimizer_step(optimizer));
    OK(tw_optimizer_destroy(optimizer));
  }
  CHECK(memcmp(w[0], w[1], sizeof w[0]) == 0);
}

/* ---- regularizers, constraints, schedules, random numbers --------------------------------------------- */

static void regularizers(void) {
  NEED("l1");
  NEED("l2");
  double w[4] = {3, -4, 0, 0.25}, g[4] = {1, 1, 1, 1}, value = 0;
  const int64_t four = 4;
  tw_tensor tw = vector(w, TW_F64, &four), tg = vector(g, TW_F64, &four);
  tw_regularizer *l1 = NULL, *l2 = NULL;
  MUST(tw_regularizer_create("l1(0.5)", &l1));
  MUST(tw_regularizer_create("l2(0.5)", &l2));
  OK(tw_regularizer_value(l1, &tw, &value));
  EQUAL(value, 0.5 * 7.25);
  OK(tw_regularizer_gradient(l1, &tw, 2, &tg));
  EQUAL(g[0], 2);
  EQUAL(g[1], 0);
  EQUAL(g[2], 1);
  EQUAL(g[3], 2);
  OK(tw_regularizer_value(l2, &tw, &value));
  EQUAL(value, 0.25 * (9 + 16 + 0.0625));
  OK(tw_regularizer_prox(l1, &tw, 1));
  EQUAL(w[0], 2.5);
  EQUAL(w[1], -3.5);
  EQUAL(w[2], 0);
  EQUAL(w[3], 0);
  OK(tw_regularizer_prox(l2, &tw, 2));
  EQUAL(w[0], 1.25);
  EQUAL(w[1], -1.75);
  OK(tw_regularizer_prox(l1, &tw, 0));
  EQUAL(w[0], 1.25);
  /* a step for each element */
  float steps[4] = {1, 0, 0.5f, 8};
  const tw_tensor ts = vector(steps, TW_F32, &four);
  w[2] = -1, w[3] = 3;
  OK(tw_regularizer_prox_steps(l1, &tw, &ts));
  EQUAL(w[0], 0.75);
  EQUAL(w[1], -1.75);
  EQUAL(w[2], -0.75);
  EQUAL(w[3], 0);
  OK(tw_regularizer_destroy(l1));
  OK(tw_regularizer_destroy(l2));
}

/* A value and a gradient by hand: P = 1/2 (1 + y tanh(z1/2) tanh(z2/2)). */
static void objectives(void) {
  NEED("checkered_regression");
  NEED("rnn_vanishing");
  static const int64_t row[2] = {1, 2}, square[2] = {2, 2}, cube[3] = {1, 1, 2};
  const int64_t one_row = 1, two_parts = 2;
  double z[2] = {0.5, -1.5}, dz[2] = {10, 20}, value = 0;
  int32_t y[1] = {-1};
  double a = tanh(0.25), b = tanh(-0.75), p = (1 - a * b) / 2;
  tw_objective *checkered = NULL, *sum = NULL;
  tw_cache *cache = NULL;
  MUST(tw_objective_create("checkered_regression", &checkered));
  MUST(tw_objective_create("sum_log_concave", &sum));
  MUST(tw_cache_create(&cache));
  tw_tensor in[2] = {view(z, TW_F64, 2, row, NULL), vector(y, TW_I32, &one_row)};
  tw_tensor out = view(dz, TW_F64, 2, row, NULL);
  OK(tw_objective_forward(checkered, in, 2, cache, &value));
  NEAR(value, -log(p), 1e-15);
  z[0] = z[1] = 1e9; /* the cache has its own copy */
  OK(tw_objective_pullback(checkered, cache, 2, &out, 1));
  NEAR(dz[0], 10 + 2 * 0.25 * (1 - a * a) * b / p, 1e-14);
  NEAR(dz[1], 20 + 2 * 0.25 * (1 - b * b) * a / p, 1e-14);
  double f[2] = {0, log(3)}, w[2] = {0, 0};
  tw_tensor tf = vector(f, TW_F64, &two_parts), tw = vector(w, TW_F64, &two_parts);
  OK(tw_objective_forward(sum, &tf, 1, cache, &value)); /* one cache serves any objective */
  NEAR(value, log(0.75), 1e-15);
  OK(tw_objective_pullback(sum, cache, 4, &tw, 1));
  NEAR(w[0], 3, 1e-14);
  NEAR(w[1], 1, 1e-14);
  OK(tw_objective_destroy(checkered));
  OK(tw_objective_destroy(sum));
  OK(tw_cache_destroy(cache));

  /* W = diag(2, 1), delta = (3, 4), slope = (1, 1/2): u = (6, 2), r = sqrt(40)/5 */
  float m[4] = {2, 0, 0, 1}, delta[2] = {3, 4}, slope[2] = {1, 0.5f}, g[4] = {0};
  tw_tensor given[3] = {view(m, TW_F32, 2, square, NULL), view(delta, TW_F32, 3, cube, NULL),
                        view(slope, TW_F32, 3, cube, NULL)};
  tw_tensor tg = view(g, TW_F32, 2, square, NULL);
  double r = sqrt(40) / 5, k = 2 * 3 * (r - 1) / (5 * sqrt(40));
  tw_regularizer *vanishing = NULL;
  MUST(tw_regularizer_create("rnn_vanishing(3)", &vanishing));
  OK(tw_regularizer_value_with(vanishing, given, 3, &value));
  NEAR(value, 3 * (r - 1) * (r - 1), 1e-6);
  OK(tw_regularizer_gradient_with(vanishing, given, 3, 2, &tg));
  NEAR(g[0], 2 * k * 3 * 6, 1e-5);
  NEAR(g[1], 2 * k * 3 * 1, 1e-5);
  NEAR(g[2], 2 * k * 4 * 6, 1e-5);
  NEAR(g[3], 2 * k * 4 * 1, 1e-5);
  OK(tw_regularizer_destroy(vanishing));
}

static void constraints(void) {
  NEED("simplex");
  double w[3] = {1, 0.5, -2}, s[3] = {9, 9, 9}, g[3] = {1, -1, 0};
  const int64_t three = 3;
  tw_tensor tw = vector(w, TW_F64, &three), ts = vector(s, TW_F64, &three), tg = vector(g, TW_F64, &three);
  tw_constraint *constraint = NULL;
  MUST(tw_constraint_create("simplex", &constraint));
  OK(tw_constraint_project(constraint, &tw));
  NEAR(w[0], 0.75, 1e-15);
  NEAR(w[1], 0.25, 1e-15);
  EQUAL(w[2], 0);
  tw_status status = tw_constraint_lmo(constraint, &tg, &ts);
  CHECK(status == TW_OK || status == TW_ERROR_UNSUPPORTED);
  if (status == TW_OK) CHECK(s[0] == 0 && s[1] == 1 && s[2] == 0);
  OK(tw_constraint_destroy(constraint));
  if (!have("sphere")) return;
  MUST(tw_constraint_create("sphere", &constraint));
  w[0] = 0, w[1] = 3, w[2] = 4;
  OK(tw_constraint_project(constraint, &tw));
  NEAR(w[1], 0.6, 1e-15);
  NEAR(w[2], 0.8, 1e-15);
  g[0] = 2, g[1] = 0.6, g[2] = 0.8;
  OK(tw_constraint_tangent(constraint, &tw, &tg));
  NEAR(g[0], 2, 1e-15);
  NEAR(g[1], 0, 1e-15);
  NEAR(g[2], 0, 1e-15);
  OK(tw_constraint_retract(constraint, &tw, &tg));
  NEAR(w[0] * w[0] + w[1] * w[1] + w[2] * w[2], 1, 1e-15);
  CHECK(w[0] > 0);
  /* from (1, 0, 0) a quarter of a circle to (0, 1, 0) */
  double u[3] = {0.5, asin(1), 0}, y[3], out[1] = {NAN};
  tw_tensor tu = vector(u, TW_F64, &three), ty = vector(y, TW_F64, &three);
  w[0] = 1, w[1] = 0, w[2] = 0;
  y[0] = 1, y[1] = 0, y[2] = 0;
  OK(tw_constraint_check_tangent(constraint, &tw, &tu, out, 1));
  NEAR(out[0], 0.5, 1e-15);
  OK(tw_constraint_project_tangent(constraint, &tw, &tu));
  EQUAL(u[0], 0);
  OK(tw_constraint_inner(constraint, &tw, &tu, &tu, out, 1));
  NEAR(out[0], asin(1) * asin(1), 1e-15);
  OK(tw_constraint_exp(constraint, &ty, &tu));
  NEAR(y[1], 1, 1e-15);
  OK(tw_constraint_distance(constraint, &tw, &ty, out, 1));
  NEAR(out[0], asin(1), 1e-15);
  OK(tw_constraint_log(constraint, &tw, &ty, &tg));
  NEAR(g[1], asin(1), 1e-15);
  OK(tw_constraint_transport(constraint, &tw, &ty, &tg));
  NEAR(g[0], -asin(1), 1e-15);
  NEAR(g[1], 0, 1e-15);
  OK(tw_constraint_check_point(constraint, &tw, out, 1));
  EQUAL(out[0], 0);
  size_t axes = 9, count = 9;
  OK(tw_constraint_points(constraint, &tw, &axes, &count));
  CHECK(axes == 0 && count == 1);
  OK(tw_constraint_points(constraint, &tw, NULL, NULL));
  CHECK(tw_constraint_check_point(constraint, &tw, out, 0) == TW_ERROR_SPACE);
  OK(tw_constraint_destroy(constraint));
}

static void schedules(void) {
  NEED("cosine");
  tw_schedule *schedule = NULL;
  double value = NAN;
  MUST(tw_schedule_create("cosine(lr=0.5, total=100)", &schedule));
  OK(tw_schedule_value(schedule, 0, &value));
  EQUAL(value, 0.5);
  OK(tw_schedule_value(schedule, 50, &value));
  NEAR(value, 0.25, 1e-16);
  OK(tw_schedule_value(schedule, 100, &value));
  NEAR(value, 0, 1e-16);
  OK(tw_schedule_value(schedule, (INT64_C(1) << 53) - 1, &value));
  NEAR(value, 0, 1e-16);
  STATUS(TW_ERROR_RANGE, tw_schedule_value(schedule, INT64_C(1) << 53, &value));
  STATUS(TW_ERROR_RANGE, tw_schedule_value(schedule, INT64_MAX, &value));
  STATUS(TW_ERROR_RANGE, tw_schedule_value(schedule, -1, &value));
  STATUS(TW_ERROR_RANGE, tw_schedule_value(schedule, INT64_MIN, &value));
  OK(tw_schedule_destroy(schedule));
}

/* The draws depend on their address alone: any cut gives the same numbers; and they look normal. */
static void random_draws(void) {
  enum { COUNT = 20000 };
  static double whole[COUNT], piece[COUNT];
  MUST(tw_random_normal(7, 1, 2, 3, 0, whole, COUNT));
  for (size_t offset = 0, length = 1; offset < COUNT; offset += length, length = length * 2 + 1) {
    if (length > COUNT - offset) length = COUNT - offset;
    OK(tw_random_normal(7, 1, 2, 3, offset, piece, length));
    if (memcmp(piece, whole + offset, length * sizeof *piece) != 0) {
      check_fail(__FILE__, __LINE__, "offset %zu gives other numbers", offset);
    }
  }
  double sum = 0, squares = 0;
  for (int i = 0; i < COUNT; i++) {
    sum += whole[i];
    squares += whole[i] * whole[i];
  }
  NEAR(sum / COUNT, 0, 0.04);
  NEAR(squares / COUNT, 1, 0.06);
  for (int which = 0; which < 4; which++) {
    OK(tw_random_normal(7 + (which == 0), 1 + (which == 1), 2 + (which == 2), 3 + (which == 3), 0, piece,
                        COUNT));
    double product = 0;
    for (int i = 0; i < COUNT; i++) product += piece[i] * whole[i];
    NEAR(product / COUNT, 0, 0.04);
  }
  tw_status far = tw_random_normal(7, 1, 2, 3, UINT64_MAX - 10, piece, 4);
  CHECK(far == TW_OK || far == TW_ERROR_RANGE);
  OK(tw_random_normal(7, 1, 2, 3, 0, NULL, 0));
}

/* Many handles, created and destroyed in every order. */
static void many_handles(void) {
  NEED("sgd");
  enum { HANDLES = 300 };
  static tw_optimizer *handles[HANDLES];
  static float w[HANDLES], g[HANDLES];
  uint64_t seed = 11;
  for (int i = 0; i < HANDLES; i++) {
    w[i] = 1;
    g[i] = 1;
    handles[i] = with_vector("sgd(lr=0.5, momentum=0.5)", NULL, TW_F32, &w[i], &g[i], 1);
  }
  for (int round = 0; round < 2000; round++) {
    size_t i = random_index(&seed, HANDLES);
    if (handles[i] == NULL) {
      w[i] = 1;
      handles[i] = with_vector("sgd(lr=0.5, momentum=0.5)", NULL, TW_F32, &w[i], &g[i], 1);
    } else if (random_index(&seed, 3) == 0) {
      OK(tw_optimizer_destroy(handles[i]));
      handles[i] = NULL;
    } else {
      OK(tw_optimizer_step(handles[i]));
    }
  }
  for (int i = 0; i < HANDLES; i++) {
    if (handles[i] != NULL) OK(tw_optimizer_destroy(handles[i]));
  }
}

int main(void) {
  RUN(versions);
  RUN(status_names);
  RUN(default_options);
  RUN(sgd_f32);
  RUN(sgd_f64);
  RUN(sgd_16_bits);
  RUN(sgd_momentum);
  RUN(adamw_both);
  RUN(dense_tensors);
  RUN(views);
  RUN(odd_tensors);
  RUN(mixed_dtypes);
  RUN(absent_gradient);
  RUN(groups);
  RUN(texts);
  RUN(schedules_in_sentences);
  RUN(maximize_and_scale);
  RUN(nonfinite);
  RUN(shadow);
  RUN(requests_for_one_gradient);
  RUN(requests_of_sam);
  RUN(requests_of_tract);
  RUN(requests_of_ghost_step);
  RUN(requests_of_svrg);
  RUN(requests_of_rolling_ball);
  RUN(clipping);
  RUN(averages);
  RUN(accumulation);
  RUN(prox_after_the_step);
  RUN(state_listing);
  RUN(state_storage);
  RUN(save_and_load);
  RUN(mismatched_checkpoints);
  RUN(rebinding);
  RUN(order_of_binding);
  RUN(regularizers);
  RUN(constraints);
  RUN(objectives);
  RUN(schedules);
  RUN(random_draws);
  RUN(many_handles);
  FINISH();
}
