/* A step of thalweg as a call of XLA on the CPU: thalweg_xla_step, a handler of its foreign function interface.
 *
 * Operands   numbers, parameters (n), state (m), gradients (n), values of hyper-parameters (k), observed values (j);
 *            the last of the state holds all that is packed, if anything is
 * Results    numbers, parameters (n), state (m), in the memory of the operands where XLA allows
 * Attributes sentence, names, paths, observed: text, lists as lines; settings: signed 64-bit numbers, see `settings`;
 *            places: for each row of state where it lies among the packed ones, or -1
 *
 * A call is a function of its operands and attributes.  What is kept between calls is only what a sentence and shapes
 * compile to: optimizers, each used by one call at a time, found again by everything that made them. */
#include <fenv.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <thalweg/thalweg.h>
#include <xla/ffi/api/c_api.h>

enum settings { PARAMETERS, STATES, VALUES, OBSERVED, STATE_DTYPE, MASTER, NONFINITE, MAXIMIZE, SEED, MODE, SETTINGS };
enum { LINES = 64, KEPT = 32 };
/* Among operands and among results. */
enum { NUMBERS = 0, FIRST = 1 };

typedef XLA_FFI_Buffer Buffer;

/* ---- errors ------------------------------------------------------------------------------------------- */

static XLA_FFI_Error *error(const XLA_FFI_CallFrame *frame, XLA_FFI_Error_Code code, const char *message) {
  XLA_FFI_Error_Create_Args args;
  memset(&args, 0, sizeof args);
  args.struct_size = XLA_FFI_Error_Create_Args_STRUCT_SIZE;
  args.message = message;
  args.errc = code;
  return frame->api->XLA_FFI_Error_Create(&args);
}

static XLA_FFI_Error *refused(const XLA_FFI_CallFrame *frame, const char *what) {
  char message[2048];
  snprintf(message, sizeof message, "thalweg: %s%s%s", what, *what ? ": " : "", tw_last_error());
  return error(frame, XLA_FFI_Error_Code_INVALID_ARGUMENT, message);
}

static XLA_FFI_Error *malformed(const XLA_FFI_CallFrame *frame, const char *what) {
  char message[256];
  snprintf(message, sizeof message, "thalweg: this call was not made by thalweg.jax of this version: %s", what);
  return error(frame, XLA_FFI_Error_Code_INVALID_ARGUMENT, message);
}

/* ---- attributes --------------------------------------------------------------------------------------- */

static const void *attribute(const XLA_FFI_CallFrame *frame, const char *name, XLA_FFI_AttrType type) {
  for (int64_t i = 0; i < frame->attrs.size; i++) {
    const XLA_FFI_ByteSpan *is = frame->attrs.names[i];
    if (is->len == strlen(name) && memcmp(is->ptr, name, is->len) == 0)
      return frame->attrs.types[i] == type ? frame->attrs.attrs[i] : NULL;
  }
  return NULL;
}

typedef struct {
  XLA_FFI_ByteSpan sentence, names, paths, observed;
  int64_t settings[SETTINGS];
  const XLA_FFI_Array *places;
} call;

static const char *read_call(const XLA_FFI_CallFrame *frame, call *c) {
  const XLA_FFI_ByteSpan *sentence = attribute(frame, "sentence", XLA_FFI_AttrType_STRING);
  const XLA_FFI_ByteSpan *names = attribute(frame, "names", XLA_FFI_AttrType_STRING);
  const XLA_FFI_ByteSpan *paths = attribute(frame, "paths", XLA_FFI_AttrType_STRING);
  const XLA_FFI_ByteSpan *observed = attribute(frame, "observed", XLA_FFI_AttrType_STRING);
  const XLA_FFI_Array *settings = attribute(frame, "settings", XLA_FFI_AttrType_ARRAY);
  c->places = attribute(frame, "places", XLA_FFI_AttrType_ARRAY);
  if (!sentence || !names || !paths || !observed || !settings || !c->places) return "an attribute is missing";
  if (settings->dtype != XLA_FFI_DataType_S64 || settings->size != SETTINGS || c->places->dtype != XLA_FFI_DataType_S64)
    return "its settings are others";
  c->sentence = *sentence, c->names = *names, c->paths = *paths, c->observed = *observed;
  memcpy(c->settings, settings->data, sizeof c->settings);
  const int64_t *s = c->settings;
  if (s[PARAMETERS] < 1 || s[STATES] < 0 || s[VALUES] < 0 || s[OBSERVED] < 0 || s[VALUES] > LINES ||
      s[OBSERVED] > LINES)
    return "its counts make no sense";
  if (frame->args.size / 2 < s[PARAMETERS] || frame->args.size - 2 * s[PARAMETERS] - FIRST < s[STATES] ||
      frame->args.size != FIRST + 2 * s[PARAMETERS] + s[STATES] + s[VALUES] + s[OBSERVED] ||
      frame->rets.size != FIRST + s[PARAMETERS] + s[STATES])
    return "its operands do not match its counts";
  return NULL;
}

/* Cuts text into `count` lines, in place; 0 when there are more or fewer. */
static int cut(char *text, size_t length, const char **lines, int64_t count) {
  char *at = text, *end = text + length;
  if (count == 0) return length == 0;
  for (int64_t i = 0; i < count; i++) {
    char *stop = memchr(at, '\n', (size_t)(end - at));
    if ((stop == NULL) != (i == count - 1)) return 0;
    lines[i] = at;
    if (stop) *stop = 0, at = stop + 1;
  }
  *end = 0;
  return 1;
}

static char *copy_text(XLA_FFI_ByteSpan s) {
  char *text = malloc(s.len + 1);
  if (!text) return NULL;
  if (s.len) memcpy(text, s.ptr, s.len);
  text[s.len] = 0;
  return text;
}

/* ---- buffers ------------------------------------------------------------------------------------------ */

static int dtype_of(XLA_FFI_DataType t, int32_t *dtype) {
  switch (t) {
    case XLA_FFI_DataType_F32: return *dtype = TW_F32, 1;
    case XLA_FFI_DataType_F64: return *dtype = TW_F64, 1;
    case XLA_FFI_DataType_F16: return *dtype = TW_F16, 1;
    case XLA_FFI_DataType_BF16: return *dtype = TW_BF16, 1;
    default: return 0;
  }
}

static size_t elements(const Buffer *b) {
  size_t n = 1;
  for (int64_t i = 0; i < b->rank; i++) n *= (size_t)b->dims[i];
  return n;
}

static size_t bytes_of(const Buffer *b) {
  switch (b->dtype) {
    case XLA_FFI_DataType_F64: return 8 * elements(b);
    case XLA_FFI_DataType_F32:
    case XLA_FFI_DataType_U32: return 4 * elements(b);
    case XLA_FFI_DataType_U8: return elements(b);
    default: return 2 * elements(b);
  }
}

/* What a buffer without elements is called by. */
static double nothing[8];
static void *address(const Buffer *b) { return b->data ? b->data : nothing; }

static int number_of(const Buffer *b, double *x) {
  if (b->rank != 0) return 0;
  if (b->dtype == XLA_FFI_DataType_F32) return *x = *(const float *)b->data, 1;
  if (b->dtype == XLA_FFI_DataType_F64) return *x = *(const double *)b->data, 1;
  return 0;
}

/* ---- optimizers --------------------------------------------------------------------------------------- */

typedef struct entry {
  char *key;
  size_t length;
  tw_optimizer *optimizer;
  size_t numbers, states, *sizes; /* bytes of each part of the state */
  char *texts; /* paths, then what is observed, as lines that are cut */
  const char *paths[LINES], *observed[LINES];
  struct entry *next;
} entry;

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static entry *idle; /* the last used first */

static void drop(entry *e) {
  if (!e) return;
  if (e->optimizer) tw_optimizer_destroy(e->optimizer);
  free(e->key);
  free(e->texts);
  free(e->sizes);
  free(e);
}

/* Everything that an optimizer is made of, as bytes. */
static char *make_key(const XLA_FFI_CallFrame *frame, const call *c, size_t *length) {
  const XLA_FFI_ByteSpan spans[4] = {c->sentence, c->names, c->paths, c->observed};
  const size_t places = c->places->size * sizeof(int64_t);
  size_t n = sizeof c->settings + places;
  for (int i = 0; i < 4; i++) n += sizeof(size_t) + spans[i].len;
  for (int64_t i = 0; i < c->settings[PARAMETERS]; i++)
    n += (2 + (size_t)((const Buffer *)frame->args.args[FIRST + i])->rank) * sizeof(int64_t);
  char *key = malloc(n), *at = key;
  if (!key) return NULL;
  memcpy(at, c->settings, sizeof c->settings), at += sizeof c->settings;
  memcpy(at, c->places->data, places), at += places;
  for (int i = 0; i < 4; i++) {
    memcpy(at, &spans[i].len, sizeof(size_t)), at += sizeof(size_t);
    if (spans[i].len) memcpy(at, spans[i].ptr, spans[i].len), at += spans[i].len;
  }
  for (int64_t i = 0; i < c->settings[PARAMETERS]; i++) {
    const Buffer *b = frame->args.args[FIRST + i];
    int64_t head[2] = {(int64_t)b->dtype, b->rank};
    memcpy(at, head, sizeof head), at += sizeof head;
    if (b->rank) memcpy(at, b->dims, (size_t)b->rank * sizeof(int64_t)), at += (size_t)b->rank * sizeof(int64_t);
  }
  *length = n;
  return key;
}

static entry *take(char *key, size_t length) {
  entry *found = NULL;
  pthread_mutex_lock(&mutex);
  for (entry **e = &idle; *e; e = &(*e)->next) {
    if ((*e)->length != length || memcmp((*e)->key, key, length) != 0) continue;
    found = *e;
    *e = found->next;
    break;
  }
  pthread_mutex_unlock(&mutex);
  return found;
}

static void give(entry *e) {
  entry *old = NULL;
  pthread_mutex_lock(&mutex);
  e->next = idle;
  idle = e;
  entry *last = e;
  for (int k = 1; k < KEPT && last; k++) last = last->next;
  if (last) old = last->next, last->next = NULL;
  pthread_mutex_unlock(&mutex);
  while (old) {
    entry *next = old->next;
    drop(old);
    old = next;
  }
}

/* Binds the tensors of the call; the error is returned, and *out is then as it was. */
static XLA_FFI_Error *make(const XLA_FFI_CallFrame *frame, const call *c, char *key, size_t length, entry **out) {
  int64_t n = c->settings[PARAMETERS];
  XLA_FFI_Error *problem = NULL;
  entry *e = calloc(1, sizeof *e);
  tw_tensor *tensors = calloc((size_t)n, sizeof *tensors);
  const char **names = calloc((size_t)n, sizeof *names);
  char *sentence = copy_text(c->sentence), *lines = copy_text(c->names);
  char *texts = malloc(c->paths.len + c->observed.len + 2);
  if (!e || !tensors || !names || !sentence || !lines || !texts) {
    problem = error(frame, XLA_FFI_Error_Code_RESOURCE_EXHAUSTED, "thalweg: no memory for the tensors of a step");
    free(key);
    free(texts);
    goto done;
  }
  e->key = key, e->length = length, e->texts = texts;
  if (c->paths.len) memcpy(texts, c->paths.ptr, c->paths.len);
  if (c->observed.len) memcpy(texts + c->paths.len + 1, c->observed.ptr, c->observed.len);
  if (!cut(lines, c->names.len, names, n) || !cut(texts, c->paths.len, e->paths, c->settings[VALUES]) ||
      !cut(texts + c->paths.len + 1, c->observed.len, e->observed, c->settings[OBSERVED])) {
    problem = malformed(frame, "its names are not as many as its operands");
    goto done;
  }
  for (int64_t i = 0; i < n; i++) {
    const Buffer *b = frame->args.args[FIRST + i];
    int32_t dtype;
    if (!dtype_of(b->dtype, &dtype)) {
      problem = malformed(frame, "a parameter is not of a floating-point type");
      goto done;
    }
    tensors[i].data = address(b), tensors[i].dtype = dtype;
    tensors[i].ndim = (int32_t)b->rank, tensors[i].shape = b->dims;
  }
  tw_options options;
  tw_options_init(&options, sizeof options);
  options.state_dtype = (int32_t)c->settings[STATE_DTYPE], options.master = (int32_t)c->settings[MASTER];
  options.nonfinite = (int32_t)c->settings[NONFINITE], options.maximize = (int32_t)c->settings[MAXIMIZE];
  options.seed = (uint64_t)c->settings[SEED];
  if (tw_optimizer_create(sentence, &options, &e->optimizer) < 0 ||
      tw_optimizer_add_parameters(e->optimizer, tensors, (size_t)n, names, NULL) < 0) {
    problem = refused(frame, "");
    goto done;
  }
  e->numbers = tw_optimizer_carried_numbers(e->optimizer);
  e->states = tw_optimizer_state_count(e->optimizer);
  e->sizes = calloc(e->states + 1, sizeof *e->sizes);
  for (size_t i = 0; i < e->states; i++) {
    tw_state_info info;
    memset(&info, 0, sizeof info);
    info.struct_size = sizeof info;
    if (!e->sizes || tw_optimizer_state_at(e->optimizer, i, &info) < 0) {
      problem = refused(frame, "its state");
      goto done;
    }
    e->sizes[i] = info.bytes;
  }
done:
  free(tensors);
  free(names);
  free(sentence);
  free(lines);
  if (problem) drop(e);
  else *out = e;
  return problem;
}

/* ---- the step ----------------------------------------------------------------------------------------- */

/* XLA gives operand and result the same memory; where it does not, the step is made in the result. */
static void *in_place(const Buffer *operand, const Buffer *result) {
  if (operand->data != result->data && bytes_of(operand)) memcpy(result->data, operand->data, bytes_of(operand));
  return address(result);
}

static XLA_FFI_Error *step(const XLA_FFI_CallFrame *frame, const call *c, entry *e) {
  const size_t n = (size_t)c->settings[PARAMETERS], m = (size_t)c->settings[STATES], k = (size_t)c->settings[VALUES];
  const size_t j = (size_t)c->settings[OBSERVED], rows = e->states;
  Buffer **args = (Buffer **)frame->args.args, **rets = (Buffer **)frame->rets.rets;
  Buffer **parameters = args + FIRST, **states = parameters + n, **gradients = states + m, **given = gradients + n;
  Buffer **stepped = rets + FIRST, **after = stepped + n;
  const Buffer *numbers = args[NUMBERS];
  double values[LINES], x;
  const int64_t *places = c->places->data;
  size_t own = 0;
  for (size_t i = 0; i < rows && i < c->places->size; i++) own += places[i] < 0;
  const Buffer *packed = own < rows && m > own ? states[own] : NULL;
  if (c->places->size != (rows ? rows : 1) || m != own + (own < rows) ||
      bytes_of(numbers) != e->numbers * sizeof(double) || numbers->dtype != XLA_FFI_DataType_U32)
    return malformed(frame, "the state is that of another sentence, or of other shapes");
  for (size_t i = 0; i < k; i++) {
    if (!number_of(given[i], &x)) return malformed(frame, "a hyper-parameter is no number");
    if (tw_optimizer_set_number(e->optimizer, NULL, e->paths[i], x) < 0) return refused(frame, e->paths[i]);
  }
  for (size_t i = 0; i < j; i++)
    if (!number_of(given[k + i], &values[i])) return malformed(frame, "what is observed is no number");
  for (size_t i = 0; i < m; i++)
    if (bytes_of(states[i]) != bytes_of(after[i]))
      return malformed(frame, "a part of the state has another size behind the step");
  for (size_t i = 0, at = 0; i < rows; i++) {
    if (places[i] < 0 ? bytes_of(states[at++]) != e->sizes[i]
                      : places[i] % 64 != 0 || (uint64_t)places[i] > bytes_of(packed) ||
                            bytes_of(packed) - (uint64_t)places[i] < e->sizes[i])
      return malformed(frame, "a part of the state has another size");
  }
  for (size_t i = 0; i < n; i++) {
    const size_t bytes = bytes_of(parameters[i]);
    if (gradients[i]->dtype != parameters[i]->dtype || bytes_of(gradients[i]) != bytes || bytes_of(stepped[i]) != bytes)
      return malformed(frame, "a gradient or a result is not like its parameter");
  }
  if (bytes_of(rets[NUMBERS]) != bytes_of(numbers)) return malformed(frame, "its numbers have another size");
  void **pointers = malloc((2 * n + rows) * sizeof *pointers);
  if (!pointers)
    return error(frame, XLA_FFI_Error_Code_RESOURCE_EXHAUSTED, "thalweg: no memory for the addresses of a step");
  for (size_t i = 0; i < n; i++)
    pointers[i] = in_place(parameters[i], stepped[i]), pointers[n + i] = address(gradients[i]);
  double *counts = in_place(numbers, rets[NUMBERS]);
  char *base = packed ? in_place(packed, after[own]) : NULL;
  for (size_t i = 0, at = 0; i < rows; i++) {
    if (places[i] >= 0) pointers[2 * n + i] = base + places[i];
    else pointers[2 * n + i] = in_place(states[at], after[at]), at++;
  }
  tw_carried carried;
  memset(&carried, 0, sizeof carried);
  carried.struct_size = sizeof carried;
  carried.count = n, carried.parameters = pointers, carried.gradients = pointers + n;
  carried.state = pointers + 2 * n, carried.state_count = rows;
  carried.numbers = counts, carried.number_count = e->numbers;
  carried.observed = e->observed, carried.values = values, carried.observed_count = j;
  carried.mode = (int32_t)c->settings[MODE];
  tw_status status = tw_optimizer_step_carried(e->optimizer, &carried);
  free(pointers);
  return status < 0 ? refused(frame, "") : NULL;
}

/* The version that this was compiled for, when XLA asks before it registers the handler. */
static int answers_metadata(const XLA_FFI_CallFrame *frame) {
  const XLA_FFI_Extension_Base *x = frame->extension_start;
  if (!x || x->type != XLA_FFI_Extension_Metadata) return 0;
  XLA_FFI_Metadata *metadata = ((const XLA_FFI_Metadata_Extension *)x)->metadata;
  metadata->api_version.major_version = XLA_FFI_API_MAJOR;
  metadata->api_version.minor_version = XLA_FFI_API_MINOR;
  metadata->traits = 0;
  return 1;
}

__attribute__((visibility("default"))) XLA_FFI_Error *thalweg_xla_step(XLA_FFI_CallFrame *frame) {
  if (answers_metadata(frame) || frame->stage != XLA_FFI_ExecutionStage_EXECUTE) return NULL;
  call c;
  const char *wrong = read_call(frame, &c);
  if (wrong) return malformed(frame, wrong);
  size_t length;
  char *key = make_key(frame, &c, &length);
  if (!key) return error(frame, XLA_FFI_Error_Code_RESOURCE_EXHAUSTED, "thalweg: no memory for a step");
  entry *e = take(key, length);
  XLA_FFI_Error *problem = NULL;
  if (e) free(key);
  else problem = make(frame, &c, key, length, &e);
  if (problem) return problem;
  /* XLA's threads take denormal numbers for zero; the library's do not, and a step is the same on any of them. */
  fenv_t environment;
  fegetenv(&environment);
  fesetenv(FE_DFL_ENV);
  problem = step(frame, &c, e);
  fesetenv(&environment);
  give(e);
  return problem;
}
