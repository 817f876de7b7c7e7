/* Tensors that share memory, decided for strided views of one buffer and compared with its bytes. */
#include "check.h"

enum { BYTES = 1024, AXES = 4 };

typedef struct {
  int64_t shape[AXES], strides[AXES];
  tw_tensor t;
  unsigned char used[BYTES]; /* how many elements cover a byte */
  int twice;                 /* some byte is covered more than once */
} part;

static int64_t buffer[BYTES / 8];

static int size_of(int32_t dtype) { return dtype == TW_F64 ? 8 : dtype == TW_F32 ? 4 : 2; }

/* Counts the bytes of all elements from axis k on. */
static void cover(part *p, int k, int64_t at) {
  if (k == p->t.ndim) {
    for (int b = 0; b < size_of(p->t.dtype); b++)
      if (p->used[at * size_of(p->t.dtype) + b]++) p->twice = 1;
    return;
  }
  for (int64_t i = 0; i < p->shape[k]; i++) cover(p, k + 1, at + i * p->strides[k]);
}

/* A random view with `like`'s shape, or any, in the first `bytes` of the buffer. */
static void draw(part *p, uint64_t *seed, const part *like, int32_t dtype, int bytes) {
  memset(p, 0, sizeof *p);
  int32_t ndim = like != NULL ? like->t.ndim : (int32_t)random_index(seed, AXES + 1);
  p->t = view(NULL, dtype, ndim, p->shape, p->strides);
  int64_t room = bytes / size_of(dtype), low, high;
  do {
    low = high = 0;
    for (int k = 0; k < ndim; k++) {
      p->shape[k] = like != NULL ? like->shape[k] : (int64_t)random_index(seed, 5);
      p->strides[k] = (int64_t)random_index(seed, 19) - 9;
      int64_t reach = (p->shape[k] - 1) * p->strides[k];
      if (reach < 0) low += reach;
      else high += reach;
    }
  } while (high - low >= room);
  int64_t start = (int64_t)random_index(seed, (size_t)(room - (high - low))) - low;
  for (int k = 0; k < ndim; k++)
    if (p->shape[k] == 0) start = 0;
  p->t.data = (unsigned char *)buffer + start * size_of(dtype);
  cover(p, 0, start);
}

static int share(const part *a, const part *b) {
  for (int k = 0; k < BYTES; k++)
    if (a->used[k] && b->used[k]) return 1;
  return 0;
}

static int32_t any_dtype(uint64_t *seed) {
  static const int32_t dtypes[] = {TW_F32, TW_F64, TW_F16, TW_BF16};
  return dtypes[random_index(seed, 4)];
}

static tw_optimizer *create(int zero) {
  tw_options options;
  tw_optimizer *o = NULL;
  OK(tw_options_init(&options, sizeof options));
  options.zero_gradients = zero;
  OK(tw_optimizer_create("sgd(lr=0)", &options, &o));
  return o;
}

static void parameters(void) {
  uint64_t seed = 1;
  int seen[3] = {0, 0, 0};
  for (int round = 0; round < 20000; round++) {
    part p[3];
    tw_tensor t[3];
    int count = 1 + (int)random_index(&seed, 3);
    tw_status expected = TW_OK;
    for (int i = 0; i < count; i++) draw(&p[i], &seed, NULL, any_dtype(&seed), 160), t[i] = p[i].t;
    for (int i = 0; i < count; i++)
      for (int j = 0; j < i; j++)
        if (share(&p[i], &p[j])) expected = TW_ERROR_OVERLAP;
    for (int i = 0; i < count; i++)
      if (p[i].twice) expected = TW_ERROR_LAYOUT;
    seen[expected == TW_OK ? 0 : expected == TW_ERROR_OVERLAP ? 1 : 2]++;
    note("round %d", round);
    tw_optimizer *o = create(0);
    STATUS(expected, tw_optimizer_add_parameters(o, t, (size_t)count, NULL, NULL));
    OK(tw_optimizer_destroy(o));
  }
  note("%d taken, %d overlap, %d overlap themselves", seen[0], seen[1], seen[2]);
  CHECK(seen[0] > 1000 && seen[1] > 100 && seen[2] > 1000);
}

/* Two parameters, then gradients and shadows of their shapes in the same buffer, in either order. */
static void gradients_and_shadows(void) {
  uint64_t seed = 2;
  int seen[3] = {0, 0, 0};
  for (int round = 0; round < 20000; round++) {
    part w[2], g[2], s[2];
    tw_tensor t[2], d[2], h[2];
    for (int i = 0; i < 2; i++) draw(&w[i], &seed, NULL, TW_F32, BYTES), t[i] = w[i].t;
    if (w[0].twice || w[1].twice || share(&w[0], &w[1])) continue;
    for (int i = 0; i < 2; i++) {
      draw(&g[i], &seed, &w[i], any_dtype(&seed), BYTES), d[i] = g[i].t;
      draw(&s[i], &seed, &w[i], TW_BF16, BYTES), h[i] = s[i].t;
    }
    int zero = round % 2, shadow_first = round % 4 / 2;
    /* one of the two may have no gradient */
    if (random_index(&seed, 4) == 0) d[1].flags = TW_TENSOR_ABSENT, memset(&g[1].used, 0, sizeof g[1].used), g[1].twice = 0;
    tw_status gradients = TW_OK, shadows = TW_OK;
    for (int i = 0; i < 2; i++) {
      for (int j = 0; j < 2; j++) {
        if (share(&w[i], &g[j])) gradients = TW_ERROR_OVERLAP;
        if (share(&w[i], &s[j])) shadows = TW_ERROR_OVERLAP;
      }
    }
    if (zero && share(&g[0], &g[1])) gradients = TW_ERROR_OVERLAP;
    if (share(&s[0], &s[1])) shadows = TW_ERROR_OVERLAP;
    if (zero && (g[0].twice || g[1].twice)) gradients = TW_ERROR_LAYOUT;
    if (s[0].twice || s[1].twice) shadows = TW_ERROR_LAYOUT;
    int meet = share(&g[0], &s[0]) || share(&g[0], &s[1]) || share(&g[1], &s[0]) || share(&g[1], &s[1]);
    if (shadow_first && shadows == TW_OK && meet && gradients == TW_OK) gradients = TW_ERROR_OVERLAP;
    if (!shadow_first && gradients == TW_OK && meet && shadows == TW_OK) shadows = TW_ERROR_OVERLAP;
    seen[0] += gradients == TW_OK, seen[1] += shadows == TW_OK, seen[2] += meet && shadows != gradients;
    note("round %d", round);
    tw_optimizer *o = create(zero);
    OK(tw_optimizer_add_parameters(o, t, 2, NULL, NULL));
    if (shadow_first) STATUS(shadows, tw_optimizer_bind_shadow(o, h, 2));
    STATUS(gradients, tw_optimizer_bind_gradients(o, d, 2));
    if (!shadow_first) STATUS(shadows, tw_optimizer_bind_shadow(o, h, 2));
    /* what was refused is not bound */
    STATUS(gradients == TW_OK ? TW_OK : TW_ERROR_SEQUENCE, tw_optimizer_step(o));
    OK(tw_optimizer_destroy(o));
  }
  CHECK(seen[0] > 100 && seen[1] > 30 && seen[2] > 10);
}

/* Many tensors in no order of their addresses; then one of them on top of two others. */
static void many_tensors(void) {
  enum { COUNT = 16384, EACH = 8 };
  float *w = calloc((size_t)COUNT * EACH, sizeof *w), *g = calloc((size_t)COUNT * EACH, sizeof *g);
  tw_tensor *t = malloc(COUNT * sizeof *t), *d = malloc(COUNT * sizeof *d);
  int64_t length = EACH;
  for (size_t i = 0; i < COUNT; i++) {
    size_t place = i * 5 % COUNT;
    t[i] = vector(w + place * EACH, TW_F32, &length);
    d[i] = vector(g + place * EACH, TW_F32, &length);
  }
  tw_optimizer *o = create(1);
  OK(tw_optimizer_add_parameters(o, t, COUNT, NULL, NULL));
  OK(tw_optimizer_bind_gradients(o, d, COUNT));
  OK(tw_optimizer_step(o));
  d[7000].data = g + 1;
  STATUS(TW_ERROR_OVERLAP, tw_optimizer_bind_gradients(o, d, COUNT));
  d[7000].data = w + 1;
  STATUS(TW_ERROR_OVERLAP, tw_optimizer_bind_gradients(o, d, COUNT));
  t[7000].data = w + 1;
  STATUS(TW_ERROR_OVERLAP, tw_optimizer_rebind_parameters(o, t, COUNT));
  OK(tw_optimizer_step(o));
  OK(tw_optimizer_destroy(o));
  free(w), free(g), free(t), free(d);
}

/* The ends of the address space, and strides that nobody reads through. */
static void extremes(void) {
  float x = 0;
  int64_t shape[2] = {2, 0}, strides[2] = {INT64_MAX, INT64_MIN};
  tw_tensor empty = view(&x, TW_F32, 2, shape, strides), one[2];
  tw_optimizer *o = create(1);
  int64_t single[2] = {1, 1};
  one[0] = view(&x, TW_F32, 2, single, strides);
  one[1] = empty;
  OK(tw_optimizer_add_parameters(o, one, 2, NULL, NULL));
  OK(tw_optimizer_destroy(o));
  int64_t wide[2] = {3, 3}, far[2] = {INT64_C(1) << 55, (INT64_C(1) << 55) + 2};
  o = create(1);
  tw_tensor huge = view(&x, TW_F32, 2, wide, far);
  tw_status status = tw_optimizer_add_parameters(o, &huge, 1, NULL, NULL);
  CHECK(status == TW_ERROR_LAYOUT || status == TW_ERROR_SHAPE || status == TW_OK);
  OK(tw_optimizer_destroy(o));
}

int main(void) {
  RUN(parameters);
  RUN(gradients_and_shadows);
  RUN(many_tensors);
  RUN(extremes);
  FINISH();
}
