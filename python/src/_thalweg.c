/* _thalweg.c: the CPython extension of thalweg, a thin layer over thalweg.h.
 *
 * It holds handles, turns arrays into tw_tensor, turns statuses into exceptions, and releases the global interpreter
 * lock around the calls that work.  It computes nothing.  Everything convenient is in Python, in thalweg/.
 *
 * Arrays   come in through the buffer protocol (formats f, d, e; i, l, q for labels), or as a DLPack capsule or a tagged buffer that
 *          thalweg._arrays.adapt makes of what has no such buffer.  What is bound stays referenced: the Py_buffer or the
 *          DLPack tensor is held until other memory is bound or the handle is closed, so it cannot go away.  Tensors of
 *          torch may be given other memory, shapes and strides under the same object: before each use they are looked at
 *          again.  Between steps the gradients of the torch adapter are held by weak references alone (see `loosen`).
 * Threads  Each object has a busy flag, checked and set with the lock held: a second thread gets BusyError.
 * Errors   thalweg._errors.BY_STATUS maps a status to what makes its exception out of the library's message.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <math.h>
#include <stdarg.h>
#include <string.h>

#include <thalweg/thalweg.h>

/* ---- module state ---------------------------------------------------------------------------------------------- */

typedef struct {
  PyObject *by_status;    /* dict: status -> what makes the exception of a message */
  PyObject *error;        /* thalweg.Error */
  PyObject *adapt;        /* thalweg._arrays.adapt */
  PyObject *look;         /* thalweg._arrays.look */
  PyObject *ndarray;      /* numpy.ndarray */
  PyObject *step_closure; /* "_step_closure" */
  PyObject *exchange;     /* "__dlpack_c_exchange_api__" */
  PyObject *is_neg;       /* "is_neg" */
  PyObject *tensor;       /* torch.Tensor, from the first one on */
  PyObject *optimizer, *regularizer, *constraint, *objective, *cache, *schedule, *solver; /* the types */
} State;

static void raise_object(State *state, tw_status status, PyObject *message) {
  PyObject *key = PyLong_FromLong(status);
  PyObject *class = key && state->by_status ? PyDict_GetItemWithError(state->by_status, key) : NULL;
  if (!class && !PyErr_Occurred()) class = state->error ? state->error : PyExc_RuntimeError;
  PyObject *exception = class ? PyObject_CallFunctionObjArgs(class, message, NULL) : NULL;
  if (exception && PyObject_SetAttrString(exception, "status", key) == 0) {
    PyErr_SetObject((PyObject *)Py_TYPE(exception), exception);
  }
  Py_XDECREF(exception);
  Py_XDECREF(key);
}

/* Raises the exception of `status` with a message of our own.  Returns NULL. */
static void *fail(State *state, tw_status status, const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  PyObject *message = PyUnicode_FromFormatV(format, arguments);
  va_end(arguments);
  if (message) raise_object(state, status, message);
  Py_XDECREF(message);
  return NULL;
}

/* Raises the exception of `status` with the library's message.  Returns NULL. */
static PyObject *fail_library(State *state, tw_status status) {
  const char *text = tw_last_error();
  PyObject *message = PyUnicode_DecodeUTF8(text, (Py_ssize_t)strlen(text), "replace");
  if (message) raise_object(state, status, message);
  Py_XDECREF(message);
  return NULL;
}

/* ---- DLPack, as far as it is needed (layouts of DLPack 1.1) ---------------------------------------------------- */

typedef struct {
  void *data;
  struct {
    int32_t type, id;
  } device;
  int32_t ndim;
  struct {
    uint8_t code, bits;
    uint16_t lanes;
  } dtype;
  int64_t *shape, *strides;
  uint64_t byte_offset;
} DLTensor;

typedef struct DLManaged {
  DLTensor tensor;
  void *context;
  void (*deleter)(struct DLManaged *self);
} DLManaged;

typedef struct DLVersioned {
  struct {
    uint32_t major, minor;
  } version;
  void *context;
  void (*deleter)(struct DLVersioned *self);
  uint64_t flags; /* bit 0: read-only */
  DLTensor tensor;
} DLVersioned;

/* What a type offers under `__dlpack_c_exchange_api__` (DLPack 1.2): a look at a tensor without a call into Python. */
typedef struct {
  struct {
    uint32_t major, minor;
  } version;
  void *previous;
  void (*functions[3])(void);
  int (*describe)(void *object, DLTensor *out); /* borrowed, valid until the object changes; may be NULL */
  void (*more[1])(void);
} Exchange;

/* Devices whose memory the CPU addresses: kDLCPU, kDLCUDAHost, kDLROCMHost. */
static int is_host(int32_t device) { return device == 1 || device == 3 || device == 11; }

/* ---- bound arrays ---------------------------------------------------------------------------------------------- */

enum { INLINE_RANK = 6 };

/* What may become of an array's memory under the same object; as thalweg._arrays.adapt says. */
enum { STAYS = 0, MAY_MOVE = 1, UNKNOWN = 2, PLAIN = 4 };

/* One array that we hold: who gave it, and what keeps its memory alive. */
typedef struct {
  PyObject *object;       /* as the caller passed it; its identity is the cache key.  NULL while it is held loosely */
  PyObject *weak;         /* a weak reference to it: of NumPy's arrays, and from the first time that it was held loosely */
  Py_buffer view;         /* held when has_view */
  int has_view;
  int moves;              /* STAYS; MAY_MOVE: it is looked at before each use; UNKNOWN: it never counts as bound already */
  const Exchange *exchange; /* how to look at it, borrowed from its type; NULL: through thalweg._arrays.look */
  DLManaged *managed;     /* at most one of the two */
  DLVersioned *versioned;
  int64_t *dims;          /* shape, then strides: `fixed`, or allocated when the rank is high */
  int64_t fixed[2 * INLINE_RANK];
} Bound;

typedef struct {
  Py_ssize_t count;
  Bound *items;
  tw_tensor *tensors; /* parallel to items */
  int watched;        /* some item may move */
  int loose;          /* items that may move are held by weak references alone */
} Binding;

/* What an error message calls an array. */
typedef struct {
  const char *what;  /* "parameter" */
  Py_ssize_t index;  /* -1: there is only one */
  PyObject *names;   /* list of str or None, borrowed; NULL when there are none */
} Label;

static void *fail_array(State *state, tw_status status, const Label *label, const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  PyObject *reason = PyUnicode_FromFormatV(format, arguments);
  va_end(arguments);
  if (!reason) return NULL;
  PyObject *name = NULL;
  if (label->names && label->index >= 0 && label->index < PyList_Size(label->names)) {
    name = PyList_GetItem(label->names, label->index);
    if (name == Py_None) name = NULL;
  }
  if (label->index < 0) {
    fail(state, status, "%s: %U", label->what, reason);
  } else if (name) {
    fail(state, status, "%s %zd ('%S'): %U", label->what, label->index, name, reason);
  } else {
    fail(state, status, "%s %zd: %U", label->what, label->index, reason);
  }
  Py_DECREF(reason);
  return NULL;
}

static void bound_release(Bound *bound) {
  if (bound->has_view) PyBuffer_Release(&bound->view);
  if (bound->managed && bound->managed->deleter) bound->managed->deleter(bound->managed);
  if (bound->versioned && bound->versioned->deleter) bound->versioned->deleter(bound->versioned);
  if (bound->dims != bound->fixed) PyMem_Free(bound->dims);
  PyObject *object = bound->object, *weak = bound->weak;
  memset(bound, 0, sizeof *bound);
  Py_XDECREF(object);
  Py_XDECREF(weak);
}

static void binding_release(Binding *binding) {
  Binding old = *binding;
  memset(binding, 0, sizeof *binding);
  for (Py_ssize_t i = old.count; i-- > 0;) bound_release(&old.items[i]);
  PyMem_Free(old.items);
  PyMem_Free(old.tensors);
}

static int binding_allocate(Binding *binding, Py_ssize_t count) {
  memset(binding, 0, sizeof *binding);
  if (count == 0) return 0;
  binding->items = PyMem_Calloc((size_t)count, sizeof(Bound));
  binding->tensors = PyMem_Calloc((size_t)count, sizeof(tw_tensor));
  if (!binding->items || !binding->tensors) {
    binding_release(binding);
    PyErr_NoMemory();
    return -1;
  }
  return 0;
}

/* Points the tensors at their dims; needed after the items have moved. */
static void binding_settle(Binding *binding) {
  for (Py_ssize_t i = 0; i < binding->count; i++) {
    Bound *bound = &binding->items[i];
    tw_tensor *tensor = &binding->tensors[i];
    if (tensor->ndim <= INLINE_RANK) bound->dims = bound->fixed;
    tensor->shape = bound->dims;
    if (tensor->strides) tensor->strides = bound->dims + tensor->ndim;
  }
}

/* Moves all of `extra` behind `binding`, into `joined`: empty, with room for both, so that nothing can fail any more. */
static void binding_append(Binding *binding, Binding *extra, Binding *joined) {
  Binding *parts[2] = {binding, extra};
  for (int p = 0; p < 2; p++) {
    if (parts[p]->count == 0) continue;
    memcpy(joined->items + joined->count, parts[p]->items, (size_t)parts[p]->count * sizeof(Bound));
    memcpy(joined->tensors + joined->count, parts[p]->tensors, (size_t)parts[p]->count * sizeof(tw_tensor));
    joined->count += parts[p]->count;
    joined->watched |= parts[p]->watched;
    PyMem_Free(parts[p]->items);
    PyMem_Free(parts[p]->tensors);
    memset(parts[p], 0, sizeof(Binding));
  }
  binding_settle(joined);
  *binding = *joined;
  memset(joined, 0, sizeof *joined);
}

static int binding_traverse(Binding *binding, visitproc visit, void *arg) {
  for (Py_ssize_t i = 0; i < binding->count; i++) {
    Py_VISIT(binding->items[i].object);
    Py_VISIT(binding->items[i].weak);
    if (binding->items[i].has_view) Py_VISIT(binding->items[i].view.obj);
  }
  return 0;
}

/* What is done with an array besides reading real numbers from it. */
/* Briefly: until the call ends, during which no Python runs, and looked at again before it is used once more. */
enum { ACQUIRE_WRITE = 1, ACQUIRE_INTEGERS = 2, ACQUIRE_BRIEFLY = 4 };

/* The element type of a buffer format, 0 when it is none of ours, -1 when it is byte-swapped. */
static int32_t dtype_of_format(const char *format, Py_ssize_t size, int bf16, int integers) {
  static const int probe = 1;
  const char foreign = *(const char *)&probe ? '>' : '<';
  if (!format) return 0;
  int swapped = *format == foreign || (*format == '!' && foreign == '>');
  if (*format && strchr("@=<>!^", *format)) format++;
  if (!format[0] || format[1]) return 0;
  int32_t dtype = 0;
  if (bf16) {
    if (format[0] == 'H' || format[0] == 'h') dtype = TW_BF16;
  } else if (format[0] == 'f') {
    dtype = TW_F32;
  } else if (format[0] == 'd') {
    dtype = TW_F64;
  } else if (format[0] == 'e') {
    dtype = TW_F16;
  } else if (integers && strchr("ilq", format[0])) {
    dtype = size == 4 ? TW_I32 : TW_I64;
  }
  return dtype && swapped ? -1 : dtype;
}

static size_t item_size(int32_t dtype) {
  return dtype == TW_F64 || dtype == TW_I64 ? 8 : dtype == TW_F32 || dtype == TW_I32 ? 4 : 2;
}

/* What an element type is called that is none of ours: "int64" for the format "l", another format as it is. */
static const char *type_of_format(const char *format, Py_ssize_t size, char text[16]) {
  if (!format) return "uint8"; /* what no format stands for */
  const char *code = *format && strchr("@=<>!", *format) ? format + 1 : format;
  if (code[0] == 'Z' && code[1] && !code[2]) {
    PyOS_snprintf(text, 16, "complex%d", (int)(8 * size));
    return text;
  }
  const char *kind = !code[0] || code[1]         ? NULL
                     : strchr("bhilqn", code[0]) ? "int"
                     : strchr("BHILQN", code[0]) ? "uint"
                     : code[0] == '?'            ? "bool"
                     : code[0] == 'g'            ? "longdouble"
                     : code[0] == 'O'            ? "object"
                                                 : NULL;
  if (kind && !strchr("blo", *kind)) {
    PyOS_snprintf(text, 16, "%s%d", kind, (int)(8 * size));
  } else {
    PyOS_snprintf(text, 16, kind ? "%s" : "'%.10s'", kind ? kind : format);
  }
  return text;
}

/* How a refusal of an element type ends. */
static const char *dtypes_taken(int integers) {
  return integers ? "float32, float64, float16 and bfloat16, and int32 and int64 for whole numbers"
                  : "float32, float64, float16 and bfloat16";
}

/* Stores shape and strides (in elements; NULL when dense row-major) from `strides` in units of `unit` bytes. */
static int set_dims(State *state, Bound *bound, tw_tensor *tensor, int ndim, const Py_ssize_t *shape,
                    const Py_ssize_t *strides, Py_ssize_t unit, const Label *label) {
  if (ndim > INLINE_RANK) {
    bound->dims = PyMem_Calloc(2 * (size_t)ndim, sizeof(int64_t));
    if (!bound->dims) {
      bound->dims = bound->fixed;
      PyErr_NoMemory();
      return -1;
    }
  }
  int64_t expected = 1;
  int dense = 1, empty = 0;
  for (int d = 0; d < ndim; d++) empty |= shape[d] == 0;
  for (int d = ndim - 1; d >= 0; d--) {
    int64_t extent = shape[d], stride = strides ? strides[d] / unit : expected;
    if (strides && extent > 1 && strides[d] % unit) {
      fail_array(state, TW_ERROR_LAYOUT, label, "stride %zd of axis %d is no multiple of the element size %zd", strides[d],
                 d, unit);
      return -1;
    }
    if (extent > 1 && stride != expected) dense = 0;
    bound->dims[d] = extent;
    bound->dims[ndim + d] = extent > 1 ? stride : expected;
    if (extent > 1 && !empty) expected *= extent; /* real memory: no overflow */
  }
  tensor->ndim = ndim;
  tensor->shape = bound->dims;
  tensor->strides = dense || empty ? NULL : bound->dims + ndim;
  return 0;
}

static int take_view(State *state, Bound *bound, tw_tensor *tensor, int wanted, int bf16, int read_only,
                     const Label *label) {
  const Py_buffer *view = &bound->view;
  int32_t dtype = dtype_of_format(view->format, view->itemsize, bf16, wanted & ACQUIRE_INTEGERS);
  if (dtype == -1) {
    fail_array(state, TW_ERROR_DTYPE, label, "the array is byte-swapped (format '%s'); use a.astype(a.dtype.newbyteorder('='))",
               view->format);
    return -1;
  }
  if (dtype == 0) {
    char text[16];
    fail_array(state, TW_ERROR_DTYPE, label,
               "element type %s is not supported; thalweg takes %s", type_of_format(view->format, view->itemsize, text),
               dtypes_taken(wanted & ACQUIRE_INTEGERS));
    return -1;
  }
  read_only |= view->readonly;
  if ((wanted & ACQUIRE_WRITE) && read_only) {
    fail_array(state, TW_ERROR_LAYOUT, label, "the array is read-only");
    return -1;
  }
  tensor->data = view->buf;
  tensor->dtype = dtype;
  tensor->flags = read_only ? TW_TENSOR_READ_ONLY : 0;
  return set_dims(state, bound, tensor, view->ndim, view->shape, view->strides, (Py_ssize_t)item_size(dtype), label);
}

/* The element type of DLPack's code and bits, 0 when it is none of ours. */
static int32_t dtype_of_dlpack(int code, int bits, int integers) {
  if (code == 0 && integers) return bits == 32 ? TW_I32 : bits == 64 ? TW_I64 : 0;
  if (code == 4) return bits == 16 ? TW_BF16 : 0;
  return code != 2 ? 0 : bits == 32 ? TW_F32 : bits == 64 ? TW_F64 : bits == 16 ? TW_F16 : 0;
}

static int take_capsule(State *state, Bound *bound, tw_tensor *tensor, PyObject *capsule, int wanted, int read_only,
                        const Label *label) {
  const DLTensor *source;
  if (PyCapsule_IsValid(capsule, "dltensor_versioned")) {
    DLVersioned *versioned = PyCapsule_GetPointer(capsule, "dltensor_versioned");
    if (!versioned) return -1;
    if (versioned->version.major != 1) {
      fail_array(state, TW_ERROR_LAYOUT, label, "DLPack version %u is not supported", (unsigned)versioned->version.major);
      return -1;
    }
    if (PyCapsule_SetName(capsule, "used_dltensor_versioned") < 0) return -1;
    bound->versioned = versioned;
    source = &versioned->tensor;
    read_only |= (int)(versioned->flags & 1);
  } else if (PyCapsule_IsValid(capsule, "dltensor")) {
    DLManaged *managed = PyCapsule_GetPointer(capsule, "dltensor");
    if (!managed || PyCapsule_SetName(capsule, "used_dltensor") < 0) return -1;
    bound->managed = managed;
    source = &managed->tensor;
  } else {
    fail_array(state, TW_ERROR_LAYOUT, label, "__dlpack__ returned no usable capsule");
    return -1;
  }
  if (!is_host(source->device.type)) {
    fail_array(state, TW_ERROR_LAYOUT, label, "the array is on DLPack device %d, not in CPU memory",
               (int)source->device.type);
    return -1;
  }
  int code = source->dtype.code, bits = source->dtype.bits;
  int32_t dtype = dtype_of_dlpack(code, bits, wanted & ACQUIRE_INTEGERS);
  if (dtype == 0 || source->dtype.lanes != 1) {
    const char *const taken = dtypes_taken(wanted & ACQUIRE_INTEGERS);
    if (code == 5) {
      fail_array(state, TW_ERROR_DTYPE, label, "element type complex%d is not supported; thalweg takes %s", bits,
                 taken);
    } else {
      fail_array(state, TW_ERROR_DTYPE, label, "DLPack type (code %d, %d bits) is not supported; thalweg takes %s",
                 code, bits, taken);
    }
    return -1;
  }
  if ((wanted & ACQUIRE_WRITE) && read_only) {
    fail_array(state, TW_ERROR_LAYOUT, label, "the array is read-only");
    return -1;
  }
  Py_ssize_t small[2 * INLINE_RANK], *dims = small;
  int ndim = source->ndim;
  if (ndim > INLINE_RANK && !(dims = PyMem_Calloc(2 * (size_t)ndim, sizeof(Py_ssize_t)))) {
    PyErr_NoMemory();
    return -1;
  }
  for (int d = 0; d < ndim; d++) {
    dims[d] = (Py_ssize_t)source->shape[d];
    if (source->strides) dims[ndim + d] = (Py_ssize_t)source->strides[d];
  }
  tensor->data = source->data ? (char *)source->data + source->byte_offset : NULL;
  tensor->dtype = dtype;
  tensor->flags = read_only ? TW_TENSOR_READ_ONLY : 0;
  int status = set_dims(state, bound, tensor, ndim, dims, source->strides ? dims + ndim : NULL, 1, label);
  if (dims != small) PyMem_Free(dims);
  return status;
}

/* What the type of a tensor offers to look at it, NULL when it offers nothing that we know. */
static const Exchange *exchange_of(State *state, PyObject *object) {
  PyObject *capsule = PyObject_GetAttr((PyObject *)Py_TYPE(object), state->exchange);
  const Exchange *exchange = capsule && PyCapsule_IsValid(capsule, "dlpack_exchange_api")
                                 ? PyCapsule_GetPointer(capsule, "dlpack_exchange_api") : NULL;
  Py_XDECREF(capsule); /* the type keeps it */
  PyErr_Clear();
  return exchange && exchange->version.major == 1 && exchange->describe ? exchange : NULL;
}

/* The same for a plain torch tensor whose memory is ours to read for a moment: nothing is exported, so that its storage
 * may be resized later.  0 when it was taken, 1 when it has to be adapted, -1 on error. */
static int take_briefly(State *state, Bound *bound, tw_tensor *tensor, const Label *label) {
  DLTensor now;
  const Exchange *exchange = exchange_of(state, bound->object);
  if (!exchange) return 1;
  PyObject *negative = PyObject_CallMethodObjArgs(bound->object, state->is_neg, NULL); /* of an imaginary part, say */
  int plain = negative == Py_False && exchange->describe(bound->object, &now) == 0;
  Py_XDECREF(negative);
  PyErr_Clear();
  int32_t dtype = plain ? dtype_of_dlpack(now.dtype.code, now.dtype.bits, 0) : 0;
  if (!dtype || now.dtype.lanes != 1 || !is_host(now.device.type) || now.ndim > INLINE_RANK || !now.strides) return 1;
  if (!now.data) return 1; /* nothing lies there: empty, or freed */
  Py_ssize_t dims[2 * INLINE_RANK];
  for (int d = 0; d < now.ndim; d++) {
    dims[d] = (Py_ssize_t)now.shape[d];
    dims[now.ndim + d] = (Py_ssize_t)now.strides[d];
  }
  tensor->data = now.data ? (char *)now.data + now.byte_offset : NULL;
  tensor->dtype = dtype;
  tensor->flags = 0;
  bound->moves = MAY_MOVE;
  bound->exchange = exchange;
  return set_dims(state, bound, tensor, now.ndim, dims, dims + now.ndim, 1, label);
}

/* NumPy resizes no array to which there is a weak reference, even where it is told not to count others (refcheck=False):
 * one to the array that owns the memory, of which the object may be a view. */
static void keep_size(State *state, Bound *bound) {
  PyObject *owner = bound->object, *next;
  Py_INCREF(owner);
  while (owner) {
    int view = PyMemoryView_Check(owner);
    int is = (PyObject *)Py_TYPE(owner) == state->ndarray ? 1 : PyObject_IsInstance(owner, state->ndarray);
    if (is <= 0 && !view) break;
    next = PyObject_GetAttrString(owner, view ? "obj" : "base");
    if (!next || next == Py_None) { /* it owns its memory */
      Py_XDECREF(next);
      if (is > 0) bound->weak = PyWeakref_NewRef(owner, NULL);
      break;
    }
    Py_DECREF(owner);
    owner = next;
  }
  Py_DECREF(owner);
  PyErr_Clear();
}

/* Fills `bound` and `tensor` from an array-like object.  On failure `bound` holds what bound_release has to undo. */
static int acquire(State *state, Bound *bound, tw_tensor *tensor, PyObject *object, int wanted, const Label *label) {
  Py_INCREF(object);
  bound->object = object;
  bound->dims = bound->fixed;
  if ((wanted & ACQUIRE_BRIEFLY) && (PyObject *)Py_TYPE(object) == state->tensor) {
    int status = take_briefly(state, bound, tensor, label);
    if (status <= 0) return status;
  }
  /* A class made of numpy.ndarray may mean something else by its elements (numpy.ma): adapt knows. */
  int derived = (PyObject *)Py_TYPE(object) == state->ndarray ? 0 : PyObject_IsInstance(object, state->ndarray);
  if (derived < 0) return -1;
  if (!derived && PyObject_CheckBuffer(object)) {
    if (PyObject_GetBuffer(object, &bound->view, PyBUF_STRIDES | PyBUF_FORMAT) == 0) {
      bound->has_view = 1;
      keep_size(state, bound);
      return take_view(state, bound, tensor, wanted, 0, 0, label);
    }
    if (!PyErr_ExceptionMatches(PyExc_ValueError) && !PyErr_ExceptionMatches(PyExc_BufferError) &&
        !PyErr_ExceptionMatches(PyExc_TypeError) && !PyErr_ExceptionMatches(PyExc_NotImplementedError)) {
      return -1;
    }
    PyErr_Clear(); /* bfloat16 arrays end here: adapt knows them */
  }
  /* (source: buffer or capsule | str: why not, is it bfloat16, is it read-only, what may become of its memory) */
  PyObject *adapted = PyObject_CallFunctionObjArgs(state->adapt, object, NULL);
  if (!adapted) return -1;
  PyObject *source;
  int bf16, read_only, status = -1;
  if (!PyArg_ParseTuple(adapted, "Oppi", &source, &bf16, &read_only, &bound->moves)) {
    Py_DECREF(adapted);
    return -1;
  }
  if (bound->moves & PLAIN) {
    bound->moves &= ~PLAIN;
    if (!state->tensor) {
      state->tensor = (PyObject *)Py_TYPE(object);
      Py_INCREF(state->tensor);
    }
  }
  bound->exchange = bound->moves == MAY_MOVE ? exchange_of(state, object) : NULL;
  if (PyUnicode_Check(source)) {
    fail_array(state, TW_ERROR_DTYPE, label, "%U", source);
  } else if (PyCapsule_CheckExact(source)) {
    status = take_capsule(state, bound, tensor, source, wanted, read_only, label);
  } else if (PyObject_GetBuffer(source, &bound->view, PyBUF_STRIDES | PyBUF_FORMAT) == 0) {
    bound->has_view = 1;
    keep_size(state, bound);
    status = take_view(state, bound, tensor, wanted, bf16, read_only, label);
  }
  Py_DECREF(adapted);
  return status;
}

/* Acquires every array of `arrays` (a list or tuple).  With `like`, None stands for an absent tensor of that shape. */
static int binding_acquire(State *state, Binding *binding, PyObject *arrays, int write, const Binding *like, Label label) {
  int is_list = PyList_Check(arrays);
  Py_ssize_t count = is_list ? PyList_Size(arrays) : PyTuple_Size(arrays);
  if (binding_allocate(binding, count) < 0) return -1;
  for (Py_ssize_t i = 0; i < count; i++) {
    /* adapt may run code that shortens the list: GetItem checks the index again */
    PyObject *object = is_list ? PyList_GetItem(arrays, i) : PyTuple_GetItem(arrays, i);
    Bound *bound = &binding->items[i];
    tw_tensor *tensor = &binding->tensors[i];
    int status = -1;
    binding->count = i + 1;
    label.index = i;
    bound->dims = bound->fixed;
    if (object && object == Py_None && like && i < like->count) {
      const tw_tensor *model = &like->tensors[i];
      Py_INCREF(object);
      bound->object = object;
      if (model->ndim > INLINE_RANK) bound->dims = PyMem_Calloc(2 * (size_t)model->ndim, sizeof(int64_t));
      if (bound->dims) {
        memcpy(bound->dims, model->shape, (size_t)model->ndim * sizeof(int64_t));
        tensor->dtype = model->dtype;
        tensor->ndim = model->ndim;
        tensor->shape = bound->dims;
        tensor->flags = TW_TENSOR_ABSENT;
        status = 0;
      } else {
        bound->dims = bound->fixed;
        PyErr_NoMemory();
      }
    } else if (object) {
      Py_INCREF(object);
      status = acquire(state, bound, tensor, object, write, &label);
      Py_DECREF(object);
    }
    if (status < 0) {
      binding_release(binding);
      return -1;
    }
    binding->watched |= bound->moves == MAY_MOVE;
  }
  return 0;
}

/* 1 when memory of this address, shape and strides (in elements; NULL: dense) is what was bound. */
static int lies_so(const tw_tensor *tensor, const void *data, int32_t ndim, const int64_t *shape,
                   const int64_t *strides) {
  if (ndim != tensor->ndim) return 0;
  int64_t dense = 1;
  int same = 1;
  for (int d = ndim - 1; d >= 0; d--) {
    if (shape[d] != tensor->shape[d]) return 0;
    if (shape[d] == 0) same = -1; /* nothing lies anywhere: neither the address nor strides matter */
    int64_t bound = tensor->strides ? tensor->strides[d] : dense, now = strides ? strides[d] : dense;
    if (same == 1 && shape[d] > 1 && bound != now) same = 0;
    dense *= shape[d];
  }
  return same < 0 || (same && data == tensor->data);
}

/* 1 when a tensor no longer lies as it was bound: at another address, or with another shape, strides or element type. */
static int has_moved(State *state, const Bound *bound, const tw_tensor *tensor) {
  if (bound->exchange) {
    DLTensor now;
    if (bound->exchange->describe(bound->object, &now) != 0) {
      PyErr_Clear(); /* it is bound anew, which says what is wrong with it */
      return 1;
    }
    int code = now.dtype.code, bits = now.dtype.bits;
    int32_t dtype = dtype_of_dlpack(code, bits, 0);
    const void *data = now.data ? (const char *)now.data + now.byte_offset : NULL;
    return !is_host(now.device.type) || dtype != tensor->dtype || now.dtype.lanes != 1 ||
           !lies_so(tensor, data, now.ndim, now.shape, now.strides);
  }
  /* (address, element type, shape, strides in elements) */
  PyObject *looked = PyObject_CallFunctionObjArgs(state->look, bound->object, NULL);
  if (!looked) return -1;
  PyObject *address, *shape, *strides;
  int dtype, moved = -1;
  if (PyArg_ParseTuple(looked, "OiO!O!", &address, &dtype, &PyTuple_Type, &shape, &PyTuple_Type, &strides)) {
    void *data = PyLong_AsVoidPtr(address);
    Py_ssize_t ndim = PyTuple_Size(shape);
    moved = ndim != tensor->ndim || PyTuple_Size(strides) != ndim || dtype != tensor->dtype;
    int64_t small[2 * INLINE_RANK], *dims = small;
    if (!moved && ndim > INLINE_RANK && !(dims = PyMem_Calloc(2 * (size_t)ndim, sizeof *dims))) PyErr_NoMemory();
    for (Py_ssize_t d = 0; !moved && dims && d < ndim; d++) {
      dims[d] = PyLong_AsLongLong(PyTuple_GetItem(shape, d));
      dims[ndim + d] = PyLong_AsLongLong(PyTuple_GetItem(strides, d));
    }
    if (PyErr_Occurred()) {
      moved = -1;
    } else if (!moved) {
      moved = !lies_so(tensor, data, (int32_t)ndim, dims, dims + ndim);
    }
    if (dims != small) PyMem_Free(dims);
  }
  Py_DECREF(looked);
  return moved;
}

/* 1 when a tensor no longer lies where it was bound, -1 on error. */
static int binding_moved(State *state, const Binding *binding) {
  for (Py_ssize_t i = 0; i < binding->count; i++) {
    if (binding->items[i].moves != MAY_MOVE) continue;
    int moved = has_moved(state, &binding->items[i], &binding->tensors[i]);
    if (moved) return moved;
  }
  return 0;
}

/* Holds the arrays that may move by weak references alone: whoever owns them may free them.  -1 on error. */
static int binding_loosen(Binding *binding) {
  for (Py_ssize_t i = 0; i < binding->count; i++) {
    Bound *bound = &binding->items[i];
    if (bound->moves != MAY_MOVE || !bound->object) continue;
    if (!bound->weak && !(bound->weak = PyWeakref_NewRef(bound->object, NULL))) return -1;
    binding->loose = 1;
    if (bound->has_view) PyBuffer_Release(&bound->view);
    bound->has_view = 0;
    PyObject *object = bound->object;
    bound->object = NULL;
    Py_DECREF(object);
  }
  return 0;
}

/* Takes hold of them again; 1 when one of them is gone (its object stays NULL). */
static int binding_tighten(Binding *binding) {
  int gone = 0;
  if (!binding->loose) return 0;
  binding->loose = 0;
  for (Py_ssize_t i = 0; i < binding->count; i++) {
    Bound *bound = &binding->items[i];
    if (bound->object) continue;
    PyObject *object = bound->weak ? PyWeakref_GetObject(bound->weak) : Py_None;
    if (object && object != Py_None) {
      Py_INCREF(object);
      bound->object = object;
    } else {
      PyErr_Clear();
      gone = 1;
    }
  }
  return gone;
}

/* A new list of the objects that were bound. */
static PyObject *binding_objects(const Binding *binding) {
  PyObject *list = PyList_New(binding->count);
  for (Py_ssize_t i = 0; list && i < binding->count; i++) {
    PyObject *object = binding->items[i].object;
    if (!object && binding->items[i].weak) object = PyWeakref_GetObject(binding->items[i].weak);
    if (!object) object = Py_None; /* it is gone */
    Py_INCREF(object);
    PyList_SetItem(list, i, object);
  }
  return list;
}

/* 1 when `arrays` (a list or tuple) holds just the objects that are bound. */
static int binding_same(const Binding *binding, PyObject *arrays) {
  int is_list = PyList_Check(arrays);
  Py_ssize_t count = is_list ? PyList_Size(arrays) : PyTuple_Size(arrays);
  if (count != binding->count || count == 0) return 0;
  for (Py_ssize_t i = 0; i < count; i++) {
    PyObject *object = is_list ? PyList_GetItem(arrays, i) : PyTuple_GetItem(arrays, i);
    if (object != binding->items[i].object || binding->items[i].moves == UNKNOWN) return 0;
  }
  return 1;
}

/* ---- what all handles share ------------------------------------------------------------------------------------ */

typedef struct {
  PyObject_HEAD
  PyObject *module; /* owns `state`; NULL until the handle is created */
  State *state;
  void *handle; /* NULL when closed */
  int busy;
} Handle;

/* Says which of the objects of a call is closed, by the name of its class. */
static void fail_closed(Handle *self) {
  PyObject *name = PyType_GetName(Py_TYPE((PyObject *)self));
  if (name) fail(self->state, TW_ERROR_HANDLE, "this %U is closed", name);
  Py_XDECREF(name);
}

/* Claims the handle for this call; 0 when that is not possible, with an exception set. */
static int enter(Handle *self) {
  if (!self->state) {
    PyErr_SetString(PyExc_RuntimeError, "the object was not initialised: call __init__ of the base class");
    return 0;
  }
  if (!self->handle) {
    fail_closed(self);
    return 0;
  }
  if (self->busy) {
    fail(self->state, TW_ERROR_BUSY, "the handle is in use by another thread or by an outer call");
    return 0;
  }
  self->busy = 1;
  return 1;
}

/* Gives the handle back and turns a status into None or an exception. */
static PyObject *leave(Handle *self, tw_status status) {
  self->busy = 0;
  if (status < 0) return PyErr_Occurred() ? NULL : fail_library(self->state, status); /* an exception of a callback stays */
  Py_RETURN_NONE;
}

/* The same after an exception of our own. */
static PyObject *leave_error(Handle *self) {
  self->busy = 0;
  return NULL;
}

/* Prepares a fresh object for its handle. */
static int adopt(Handle *self, PyTypeObject *class) {
  if (self->module) {
    PyErr_SetString(PyExc_RuntimeError, "the object is initialised already");
    return -1;
  }
  PyObject *module = PyType_GetModule(class);
  if (!module) return -1;
  Py_INCREF(module);
  self->module = module;
  self->state = PyModule_GetState(module);
  return 0;
}

static void handle_free(PyObject *object) {
  PyTypeObject *type = Py_TYPE(object);
  freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
  release(object);
  Py_DECREF(type);
}

static int handle_traverse(PyObject *object, visitproc visit, void *arg) {
  Py_VISIT(Py_TYPE(object));
  Py_VISIT(((Handle *)object)->module);
  return 0;
}

/* Checks the number of positional arguments; keywords are refused by the calling convention. */
static int takes(Py_ssize_t count, Py_ssize_t least, Py_ssize_t most, const char *name) {
  if (count >= least && count <= most) return 1;
  if (least == most) {
    PyErr_Format(PyExc_TypeError, "%s() takes %zd arguments (%zd given)", name, most, count);
  } else {
    PyErr_Format(PyExc_TypeError, "%s() takes %zd to %zd arguments (%zd given)", name, least, most, count);
  }
  return 0;
}

/* A str as UTF-8; NULL for None.  *ok is 0 with an exception set when it is neither. */
static const char *text_or_null(PyObject *object, int *ok) {
  if (object == Py_None) return NULL;
  Py_ssize_t size = 0;
  const char *text = PyUnicode_Check(object) ? PyUnicode_AsUTF8AndSize(object, &size) : NULL;
  if (text && strlen(text) != (size_t)size) {
    PyErr_SetString(PyExc_ValueError, "embedded null character");
    text = NULL;
  }
  if (!text) {
    if (!PyErr_Occurred()) PyErr_Format(PyExc_TypeError, "expected a str, got %R", (PyObject *)Py_TYPE(object));
    *ok = 0;
  }
  return text;
}

static const char *text_of(PyObject *object, int *ok) {
  if (object == Py_None) {
    PyErr_SetString(PyExc_TypeError, "expected a str, got None");
    *ok = 0;
    return NULL;
  }
  return text_or_null(object, ok);
}

/* ---- optimizers ------------------------------------------------------------------------------------------------- */

typedef struct {
  Handle base;
  Binding parameters, gradients, shadows;
  int stale;       /* the gradients are of fewer parameters than there are now */
  tw_status refused; /* why the library did not take the last arrays */
  PyObject *names;   /* list, parallel to parameters: str or None */
  PyObject *reducer; /* called with two writable buffers of doubles, sums and maxima */
  Binding *kept;      /* gradients that the library reads where they lie until the step ends, and how many */
  Py_ssize_t kept_count;
  int stays;          /* those that are bound now are such */
  tw_request request;
  unsigned long long edits; /* calls that may have changed hyper-parameters, other than steps */
} Optimizer;

#define HANDLE(self) ((tw_optimizer *)(self)->base.handle)

/* The step is over: the library looks at nothing but what is bound. */
static void release_kept(Optimizer *self) {
  Binding *kept = self->kept;
  Py_ssize_t count = self->kept_count;
  self->kept = NULL;
  self->kept_count = self->stays = 0;
  while (count-- > 0) binding_release(&kept[count]);
  PyMem_Free(kept);
}

static void optimizer_let_go(Optimizer *self) {
  if (self->base.handle) tw_optimizer_destroy(HANDLE(self));
  self->base.handle = NULL;
  release_kept(self);
  binding_release(&self->gradients);
  binding_release(&self->shadows);
  binding_release(&self->parameters);
}

static int optimizer_clear(PyObject *object) {
  Optimizer *self = (Optimizer *)object;
  optimizer_let_go(self);
  Py_CLEAR(self->names);
  Py_CLEAR(self->reducer);
  return 0;
}

static void optimizer_dealloc(PyObject *object) {
  PyObject_GC_UnTrack(object);
  optimizer_clear(object);
  Py_CLEAR(((Handle *)object)->module);
  handle_free(object);
}

static int optimizer_traverse(PyObject *object, visitproc visit, void *arg) {
  Optimizer *self = (Optimizer *)object;
  Py_VISIT(self->names);
  Py_VISIT(self->reducer);
  int status = binding_traverse(&self->parameters, visit, arg);
  if (!status) status = binding_traverse(&self->gradients, visit, arg);
  if (!status) status = binding_traverse(&self->shadows, visit, arg);
  for (Py_ssize_t i = 0; !status && i < self->kept_count; i++) status = binding_traverse(&self->kept[i], visit, arg);
  return status ? status : handle_traverse(object, visit, arg);
}

/* _create(sentence, state_dtype, master, nonfinite, maximize, zero_gradients, consume_gradients, scale, seed) */
static PyObject *optimizer_create(PyObject *object, PyTypeObject *class, PyObject *const *args, Py_ssize_t nargs,
                                  PyObject *kwnames) {
  Optimizer *self = (Optimizer *)object;
  if (kwnames && PyTuple_Size(kwnames)) return PyErr_Format(PyExc_TypeError, "_create() takes no keyword arguments");
  if (!takes(nargs, 9, 9, "_create") || adopt(&self->base, class) < 0) return NULL;
  int ok = 1;
  const char *sentence = text_of(args[0], &ok);
  if (!ok) return NULL;
  tw_options options;
  memset(&options, 0, sizeof options);
  options.struct_size = sizeof options;
  tw_status status = tw_options_init(&options, sizeof options);
  if (status < 0) return fail_library(self->base.state, status);
  long numbers[6];
  for (int i = 0; i < 6; i++) {
    numbers[i] = PyLong_AsLong(args[i + 1]);
    if (numbers[i] == -1 && PyErr_Occurred()) return NULL;
  }
  options.state_dtype = (int32_t)numbers[0];
  options.master = (int32_t)numbers[1];
  options.nonfinite = (int32_t)numbers[2];
  options.maximize = (int32_t)numbers[3];
  options.zero_gradients = (int32_t)numbers[4];
  options.consume_gradients = (int32_t)numbers[5];
  options.gradient_scale = PyFloat_AsDouble(args[7]);
  options.seed = PyLong_AsUnsignedLongLong(args[8]);
  if (PyErr_Occurred()) return NULL;
  self->names = PyList_New(0);
  if (!self->names) return NULL;
  tw_optimizer *handle = NULL;
  Py_BEGIN_ALLOW_THREADS
  status = tw_optimizer_create(sentence, &options, &handle);
  Py_END_ALLOW_THREADS
  if (status < 0) return fail_library(self->base.state, status);
  self->base.handle = handle;
  Py_RETURN_NONE;
}

static int is_sequence(PyObject *object) { return PyList_Check(object) || PyTuple_Check(object); }

/* A list of str as UTF-8, borrowed; NULL with an exception set when it is none.  PyMem_Free the array. */
static const char **texts_of(PyObject *list, Py_ssize_t count) {
  if (!PyList_Check(list) || PyList_Size(list) != count) {
    PyErr_Format(PyExc_TypeError, "expected a list of %zd str", count);
    return NULL;
  }
  const char **texts = PyMem_Calloc((size_t)count + 1, sizeof *texts);
  int ok = 1;
  if (!texts) PyErr_NoMemory();
  for (Py_ssize_t i = 0; texts && ok && i < count; i++) texts[i] = text_of(PyList_GetItem(list, i), &ok);
  if (ok) return texts;
  PyMem_Free(texts);
  return NULL;
}

static int enter_working(Optimizer *self);

/* _add(arrays, names or None, group or None, paths, values): binds parameters behind those there are, and gives their
 * group hyper-parameters of its own. */
static PyObject *optimizer_add(PyObject *object, PyObject *const *args, Py_ssize_t nargs) {
  Optimizer *self = (Optimizer *)object;
  if (!takes(nargs, 6, 6, "_add")) return NULL;
  const long role = PyLong_AsLong(args[5]);
  if (role == -1 && PyErr_Occurred()) return NULL;
  if (!is_sequence(args[0]) || (args[1] != Py_None && !PyList_Check(args[1])) || !PyList_Check(args[3])) {
    return PyErr_Format(PyExc_TypeError, "_add() takes a list of arrays, a list of names, and lists of paths and values");
  }
  Py_ssize_t settings = PyList_Size(args[3]);
  const char **paths = texts_of(args[3], settings), **values = paths ? texts_of(args[4], settings) : NULL;
  if (!values || !enter_working(self)) {
    PyMem_Free(paths);
    PyMem_Free(values);
    return NULL;
  }
  State *state = self->base.state;
  Binding extra, joined;
  memset(&extra, 0, sizeof extra);
  memset(&joined, 0, sizeof joined);
  const char **names = NULL;
  int ok = 1;
  tw_status status = TW_OK;
  const char *group = text_or_null(args[2], &ok);
  PyObject *labels = args[1] == Py_None ? NULL : args[1];
  if (ok && binding_acquire(state, &extra, args[0], 1, NULL, (Label){"parameter", 0, labels}) < 0) ok = 0;
  for (Py_ssize_t i = 0; ok && i < extra.count; i++) extra.tensors[i].role = (uint32_t)role;
  if (ok && labels) {
    if (PyList_Size(labels) != extra.count) {
      fail(state, TW_ERROR_COUNT, "%zd names for %zd parameters", PyList_Size(labels), extra.count);
      ok = 0;
    } else if (!(names = PyMem_Calloc((size_t)extra.count + 1, sizeof *names))) {
      PyErr_NoMemory();
      ok = 0;
    }
    for (Py_ssize_t i = 0; ok && i < extra.count; i++) names[i] = text_of(PyList_GetItem(labels, i), &ok);
  }
  PyObject *all_names = NULL;
  if (ok) {
    all_names = PyList_GetSlice(self->names, 0, PyList_Size(self->names));
    if (!all_names) ok = 0;
    for (Py_ssize_t i = 0; ok && i < extra.count; i++) {
      if (PyList_Append(all_names, labels ? PyList_GetItem(labels, i) : Py_None) < 0) ok = 0;
    }
  }
  /* Room for all of them first: once the library has the memory, nothing may fail. */
  if (ok && binding_allocate(&joined, self->parameters.count + extra.count) < 0) ok = 0;
  if (ok) {
    status = tw_optimizer_add_group(HANDLE(self), extra.tensors, (size_t)extra.count, names, group, paths, values,
                                    (size_t)settings);
    if (status >= 0) {
      PyObject *old = self->names;
      self->names = all_names;
      all_names = old;
      binding_append(&self->parameters, &extra, &joined);
      self->stale = self->gradients.count > 0;
    }
  }
  Py_XDECREF(all_names);
  PyMem_Free(names);
  PyMem_Free(paths);
  PyMem_Free(values);
  binding_release(&extra);
  binding_release(&joined);
  return ok ? leave(&self->base, status) : leave_error(&self->base);
}

typedef tw_status (*Bind)(tw_optimizer *, const tw_tensor *, size_t);

/* Binds `arrays` in place of what `binding` holds; -1 with an exception set, everything as before, when refused. */
static int bind(Optimizer *self, Binding *binding, PyObject *arrays, int write, const Binding *like, const char *what,
                Bind call) {
  Binding fresh;
  Label label = {what, 0, self->names};
  int keeps = self->stays && binding == &self->gradients;
  if (keeps) { /* room for one more */
    Binding *kept = PyMem_Realloc(self->kept, (size_t)(self->kept_count + 1) * sizeof *kept);
    if (!kept) {
      PyErr_NoMemory();
      return -1;
    }
    self->kept = kept;
  }
  self->refused = TW_OK;
  if (binding_acquire(self->base.state, &fresh, arrays, write, like, label) < 0) return -1;
  tw_status status = call(HANDLE(self), fresh.tensors, (size_t)fresh.count);
  if (status < 0) {
    self->refused = status;
    binding_release(&fresh);
    fail_library(self->base.state, status);
    return -1;
  }
  Binding old = *binding;
  *binding = fresh;
  if (keeps) {
    self->kept[self->kept_count++] = old;
    self->stays = 0;
  } else {
    binding_release(&old);
  }
  return 0;
}

/* What `arrays` may be where a list of tensors is expected: a new reference to a list or tuple. */
static PyObject *as_sequence(Optimizer *self, PyObject *arrays, const char *what) {
  if (is_sequence(arrays)) {
    Py_INCREF(arrays);
    return arrays;
  }
  if (PyObject_CheckBuffer(arrays) || PyObject_HasAttrString(arrays, "__dlpack__") || PyUnicode_Check(arrays) ||
      PyFloat_Check(arrays) || PyLong_Check(arrays)) {
    return PyErr_Format(PyExc_TypeError, "%ss are given as a list, one array for each parameter, not as %R", what,
                        (PyObject *)Py_TYPE(arrays));
  }
  (void)self;
  return PySequence_List(arrays);
}

/* What messages call a tensor that is bound as a gradient, by the request that waits. */
static const char *noun_of(const Optimizer *self) {
  switch (self->request.kind) {
    case TW_REQUEST_HESSIAN_VECTOR: return "product";
    case TW_REQUEST_PARTICIPANT: return "participant's parameter";
    default: return "gradient";
  }
}

static int bind_gradients_as(Optimizer *self, PyObject *arrays, int wanted) {
  int status = bind(self, &self->gradients, arrays, wanted, &self->parameters, noun_of(self), tw_optimizer_bind_gradients);
  if (status == 0) self->stale = 0;
  return status;
}
static int bind_gradients(Optimizer *self, PyObject *arrays) { return bind_gradients_as(self, arrays, 0); }

/* Binds absent gradients for all parameters, so that the library keeps no pointer. */
static int bind_absent(Optimizer *self) {
  PyObject *absent = PyList_New(self->parameters.count);
  for (Py_ssize_t i = 0; absent && i < self->parameters.count; i++) {
    Py_INCREF(Py_None);
    PyList_SetItem(absent, i, Py_None);
  }
  int status = absent ? bind_gradients(self, absent) : -1;
  Py_XDECREF(absent);
  return status;
}

/* The same within an error that is under way, where some of the memory is gone. */
static void let_go_of_gone(Optimizer *self) {
  PyObject *kind, *value, *trace;
  PyErr_Fetch(&kind, &value, &trace);
  if (bind_absent(self) < 0) PyErr_Clear();
  PyErr_Restore(kind, value, trace);
}

/* Takes hold of gradients that are held loosely, before anything may look at them; those that are gone become absent. */
static int settle(Optimizer *self) {
  if (!binding_tighten(&self->gradients)) return 0;
  if (self->stale) return bind_absent(self);
  PyObject *objects = binding_objects(&self->gradients);
  int status = objects ? bind_gradients(self, objects) : -1;
  Py_XDECREF(objects);
  if (status < 0) let_go_of_gone(self);
  return status;
}

/* Claims the handle for a call in which the library may look at the gradients. */
static int enter_working(Optimizer *self) {
  if (!enter(&self->base)) return 0;
  if (!self->gradients.loose || settle(self) == 0) return 1;
  self->base.busy = 0;
  return 0;
}

/* Follows parameters whose memory has moved under the same object (torch: p.data = ..., p.t_()). */
static int follow_parameters(Optimizer *self) {
  if (self->parameters.watched) {
    int moved = binding_moved(self->base.state, &self->parameters);
    if (moved < 0) return -1;
    if (moved) {
      PyObject *objects = binding_objects(&self->parameters);
      int status = objects ? bind(self, &self->parameters, objects, 1, NULL, "parameter", tw_optimizer_rebind_parameters)
                           : -1;
      Py_XDECREF(objects);
      if (status < 0) return -1;
    }
  }
  return 0;
}

/* The same for gradients. */
static int follow_gradients(Optimizer *self) {
  if (self->gradients.watched && !self->stale) {
    int moved = binding_moved(self->base.state, &self->gradients);
    if (moved < 0) return -1;
    if (moved) {
      PyObject *objects = binding_objects(&self->gradients);
      int status = objects ? bind_gradients(self, objects) : -1;
      Py_XDECREF(objects);
      if (status < 0) return -1;
    }
  }
  return 0;
}

static int follow(Optimizer *self) { return follow_parameters(self) < 0 || follow_gradients(self) < 0 ? -1 : 0; }

static int needs_follow(const Optimizer *self) { return self->parameters.watched || self->gradients.watched; }

/* step(gradients_or_closure=None) */
static PyObject *optimizer_step(PyObject *object, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames) {
  Optimizer *self = (Optimizer *)object;
  PyObject *what = nargs > 0 ? args[0] : Py_None;
  if (kwnames && PyTuple_Size(kwnames)) {
    PyObject *name = PyTuple_GetItem(kwnames, 0);
    if (nargs || PyTuple_Size(kwnames) > 1 || (PyUnicode_CompareWithASCIIString(name, "grads") != 0 &&
                                               PyUnicode_CompareWithASCIIString(name, "closure") != 0)) {
      return PyErr_Format(PyExc_TypeError, "step() takes one argument: grads or closure");
    }
    what = args[0];
  } else if (!takes(nargs, 0, 1, "step")) {
    return NULL;
  }
  if (what != Py_None && !is_sequence(what) && PyCallable_Check(what)) {
    if (!self->base.state) {
      enter(&self->base);
      return NULL;
    }
    return PyObject_CallMethodObjArgs(object, self->base.state->step_closure, what, NULL);
  }
  if (!enter(&self->base)) return NULL;
  int gone = binding_tighten(&self->gradients);
  int failed = follow_parameters(self) < 0; /* first: gradients are measured by them */
  if (failed && what != Py_None && self->refused == TW_ERROR_OVERLAP && self->gradients.count) {
    /* with the gradients of the last step, which are not wanted any more */
    PyErr_Clear();
    failed = bind_absent(self) < 0 || follow_parameters(self) < 0;
  }
  if (failed) {
    if (gone) let_go_of_gone(self);
    return leave_error(&self->base);
  }
  if (what != Py_None && (gone || self->stale || !is_sequence(what) || !binding_same(&self->gradients, what))) {
    PyObject *arrays = as_sequence(self, what, noun_of(self));
    int status = arrays ? bind_gradients_as(self, arrays, ACQUIRE_BRIEFLY) : -1;
    Py_XDECREF(arrays);
    if (status < 0) {
      if (gone) let_go_of_gone(self);
      return leave_error(&self->base);
    }
  } else if (gone) {
    self->gradients.loose = 1;
    if (settle(self) < 0) return leave_error(&self->base);
  }
  if (self->gradients.watched && follow_gradients(self) < 0) return leave_error(&self->base);
  tw_status status;
  Py_BEGIN_ALLOW_THREADS
  status = tw_optimizer_step(HANDLE(self));
  Py_END_ALLOW_THREADS
  return leave(&self->base, status);
}

/* After a call that fills the request: (kind, pass, tag, index, count, probe_count) where one waits, else None. */
static PyObject *leave_request(Optimizer *self, tw_status status) {
  if (status != TW_MORE) {
    memset(&self->request, 0, sizeof self->request);
    return leave(&self->base, status);
  }
  self->base.busy = 0;
  const tw_request *request = &self->request;
  return Py_BuildValue("(iiKLLn)", (int)request->kind, (int)request->pass, (unsigned long long)request->tag,
                       (long long)request->index, (long long)request->count, (Py_ssize_t)request->probe_count);
}

/* _next(loss or None, stays): None when the step is done, else what it asks for.  `stays`: nobody changes the gradients
 * that are bound before the step has ended. */
static PyObject *optimizer_next(PyObject *object, PyObject *const *args, Py_ssize_t nargs) {
  Optimizer *self = (Optimizer *)object;
  double value = NAN;
  if (!takes(nargs, 2, 2, "_next")) return NULL;
  PyObject *loss = args[0];
  int stays = PyObject_IsTrue(args[1]);
  if (stays < 0) return NULL;
  if (loss != Py_None) {
    value = PyFloat_AsDouble(loss);
    if (value == -1.0 && PyErr_Occurred()) return NULL;
  }
  if (!enter_working(self)) return NULL;
  if (needs_follow(self) && follow(self) < 0) return leave_error(&self->base);
  self->request.struct_size = sizeof self->request;
  self->request.loss = value;
  self->request.gradients_stay = stays;
  tw_status status;
  Py_BEGIN_ALLOW_THREADS
  status = tw_optimizer_next(HANDLE(self), &self->request);
  Py_END_ALLOW_THREADS
  if (status == TW_MORE) {
    self->stays = stays;
  } else {
    release_kept(self);
  }
  return leave_request(self, status);
}

/* _waiting(): the request that waits for its answer, or None. */
static PyObject *optimizer_waiting(PyObject *object, PyObject *unused) {
  Optimizer *self = (Optimizer *)object;
  (void)unused;
  if (!enter(&self->base)) return NULL;
  self->request.struct_size = sizeof self->request;
  return leave_request(self, tw_optimizer_waiting(HANDLE(self), &self->request));
}

/* Walks a strided tensor in row-major order; copies to *out, or with out NULL sets everything to zero. */
static void walk(const tw_tensor *tensor, int axis, char *at, size_t size, char **out) {
  if (axis == tensor->ndim) {
    if (out) {
      memcpy(*out, at, size);
      *out += size;
    } else {
      memset(at, 0, size);
    }
    return;
  }
  for (int64_t i = 0; i < tensor->shape[axis]; i++) {
    walk(tensor, axis + 1, at + i * tensor->strides[axis] * (int64_t)size, size, out);
  }
}

static int64_t element_count(const tw_tensor *tensor) {
  int64_t count = 1;
  for (int d = 0; d < tensor->ndim; d++) count *= tensor->shape[d];
  return count;
}

/* _probe(): a list of (dtype, shape, bytes), a copy of the pending request's probe. */
static PyObject *optimizer_probe(PyObject *object, PyObject *unused) {
  Optimizer *self = (Optimizer *)object;
  (void)unused;
  if (!enter(&self->base)) return NULL;
  size_t count = self->request.probe ? self->request.probe_count : 0;
  PyObject *list = PyList_New((Py_ssize_t)count);
  for (size_t i = 0; list && i < count; i++) {
    const tw_tensor *tensor = &self->request.probe[i];
    size_t size = item_size(tensor->dtype), bytes = (size_t)element_count(tensor) * size;
    PyObject *data = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)bytes);
    PyObject *shape = PyTuple_New(tensor->ndim);
    PyObject *row = NULL;
    if (data && shape) {
      for (int d = 0; d < tensor->ndim; d++) PyTuple_SetItem(shape, d, PyLong_FromLongLong(tensor->shape[d]));
      char *out = PyBytes_AsString(data);
      if (bytes && tensor->strides) {
        walk(tensor, 0, tensor->data, size, &out);
      } else if (bytes) {
        memcpy(out, tensor->data, bytes);
      }
      row = Py_BuildValue("(iOO)", (int)tensor->dtype, shape, data);
    }
    Py_XDECREF(data);
    Py_XDECREF(shape);
    if (!row) {
      Py_CLEAR(list);
    } else {
      PyList_SetItem(list, (Py_ssize_t)i, row);
    }
  }
  self->base.busy = 0;
  return list;
}

static PyObject *doubles(double *numbers, size_t count) {
  return PyMemoryView_FromMemory((char *)numbers, (Py_ssize_t)(count * sizeof *numbers), PyBUF_WRITE);
}

/* The host's reducer, on the thread that steps: an exception stays set until the call comes back. */
static tw_status reduce(void *context, double *sums, size_t sum_count, double *maxima, size_t maximum_count) {
  PyGILState_STATE state = PyGILState_Ensure();
  Optimizer *self = context;
  PyObject *first = doubles(sums, sum_count), *second = doubles(maxima, maximum_count), *done = NULL;
  if (first && second && self->reducer) done = PyObject_CallFunctionObjArgs(self->reducer, first, second, NULL);
  Py_XDECREF(first);
  Py_XDECREF(second);
  Py_XDECREF(done);
  PyGILState_Release(state);
  return done ? TW_OK : TW_ERROR_INTERNAL;
}

/* _set_reducer(callable or None, shards) */
static PyObject *optimizer_set_reducer(PyObject *object, PyObject *const *args, Py_ssize_t nargs) {
  Optimizer *self = (Optimizer *)object;
  if (!takes(nargs, 2, 2, "_set_reducer")) return NULL;
  long shards = PyLong_AsLong(args[1]);
  if (shards == -1 && PyErr_Occurred()) return NULL;
  if (!enter_working(self)) return NULL;
  tw_status status =
      tw_optimizer_set_reducer(HANDLE(self), args[0] == Py_None ? NULL : reduce, self, (int32_t)shards);
  if (status == TW_OK) {
    PyObject *old = self->reducer;
    self->reducer = args[0] == Py_None ? NULL : Py_NewRef(args[0]);
    Py_XDECREF(old);
  }
  return leave(&self->base, status);
}

static PyObject *optimizer_cancel(PyObject *object, PyObject *unused) {
  Optimizer *self = (Optimizer *)object;
  (void)unused;
  if (!enter_working(self)) return NULL;
  memset(&self->request, 0, sizeof self->request);
  tw_status status;
  Py_BEGIN_ALLOW_THREADS
  status = tw_optimizer_cancel(HANDLE(self));
  Py_END_ALLOW_THREADS
  release_kept(self);
  return leave(&self->base, status);
}

/* _answer_matrix(first, second), or _answer_matrix(first, second, its name, the other's): None for what is not given. */
static PyObject *optimizer_answer_matrix(PyObject *object, PyObject *const *args, Py_ssize_t nargs) {
  Optimizer *self = (Optimizer *)object;
  if (!takes(nargs, 1, 4, "_answer_matrix") || !enter(&self->base)) return NULL;
  Bound bound[2];
  tw_tensor tensors[2], list[2];
  memset(bound, 0, sizeof bound);
  memset(tensors, 0, sizeof tensors);
  const char *what[2] = {"first", "second"}, *names[2];
  int ok = 1, given[2] = {0, 0}, count = 0;
  for (int i = 0; ok && i < 2; i++) {
    if (nargs == 4) what[i] = text_of(args[2 + i], &ok);
    if (!ok || i >= nargs || args[i] == Py_None) continue;
    Label label = {what[i], -1, NULL};
    ok = given[i] = acquire(self->base.state, &bound[i], &tensors[i], args[i], 0, &label) == 0;
    if (ok) {
      names[count] = what[i];
      list[count++] = tensors[i];
    }
  }
  tw_status status = TW_OK;
  if (ok && nargs == 4) status = tw_optimizer_answer(HANDLE(self), names, list, (size_t)count);
  else if (ok) status = tw_optimizer_answer_matrix(HANDLE(self), given[0] ? &tensors[0] : NULL, given[1] ? &tensors[1] : NULL);
  for (int i = 2; i-- > 0;) {
    if (bound[i].object) bound_release(&bound[i]);
  }
  return ok ? leave(&self->base, status) : leave_error(&self->base);
}

/* Tensors by name: arrays, with None for those that are left out. */
typedef struct {
  Binding arrays;
  PyObject *names; /* a tuple of str, borrowed: what messages call them */
} Inputs;

/* Acquires `arrays`, a tuple as long as `names`. */
static int inputs_acquire(State *state, Inputs *inputs, PyObject *names, PyObject *arrays, int wanted) {
  inputs->names = names;
  memset(&inputs->arrays, 0, sizeof inputs->arrays);
  if (!PyTuple_Check(names) || !PyTuple_Check(arrays) || PyTuple_Size(names) != PyTuple_Size(arrays)) {
    PyErr_SetString(PyExc_TypeError, "expected a tuple of names and one of as many arrays");
    return -1;
  }
  Py_ssize_t count = PyTuple_Size(arrays);
  if (binding_allocate(&inputs->arrays, count) < 0) return -1;
  for (Py_ssize_t i = 0; i < count; i++) {
    PyObject *object = PyTuple_GetItem(arrays, i);
    Bound *bound = &inputs->arrays.items[i];
    tw_tensor *tensor = &inputs->arrays.tensors[i];
    int ok = 1;
    inputs->arrays.count = i + 1;
    bound->dims = bound->fixed;
    Label label = {text_of(PyTuple_GetItem(names, i), &ok), -1, NULL};
    if (ok && object == Py_None) {
      tensor->flags = TW_TENSOR_ABSENT;
    } else if (!ok || acquire(state, bound, tensor, object, wanted, &label) < 0) {
      binding_release(&inputs->arrays);
      return -1;
    }
  }
  return 0;
}

/* _answer_samples(names, arrays): (samples, shape...) for each parameter, None where it is absent. */
static PyObject *optimizer_answer_samples(PyObject *object, PyObject *const *args, Py_ssize_t nargs) {
  Optimizer *self = (Optimizer *)object;
  Inputs inputs;
  if (!takes(nargs, 2, 2, "_answer_samples") || !enter(&self->base)) return NULL;
  if (inputs_acquire(self->base.state, &inputs, args[0], args[1], 0) < 0) return leave_error(&self->base);
  tw_status status;
  Py_BEGIN_ALLOW_THREADS
  status = tw_optimizer_answer_samples(HANDLE(self), inputs.arrays.tensors, (size_t)inputs.arrays.count);
  Py_END_ALLOW_THREADS
  binding_release(&inputs.arrays);
  return leave(&self->base, status);
}

static PyObject *optimizer_bind_gradients(PyObject *object, PyObject *arrays) {
  Optimizer *self = (Optimizer *)object;
  if (!enter(&self->base)) return NULL;
  PyObject *sequence = as_sequence(self, arrays, noun_of(self));
  int status = sequence ? bind_gradients(self, sequence) : -1;
  Py_XDECREF(sequence);
  return status < 0 ? leave_error(&self->base) : leave(&self->base, TW_OK);
}

/* _answer(gradients): bind_gradients, but the same objects as before are left as they are bound. */
static PyObject *optimizer_answer(PyObject *object, PyObject *arrays) {
  Optimizer *self = (Optimizer *)object;
  if (is_sequence(arrays) && binding_same(&self->gradients, arrays)) Py_RETURN_NONE;
  return optimizer_bind_gradients(object, arrays);
}

static PyObject *optimizer_rebind(PyObject *object, PyObject *arrays) {
  Optimizer *self = (Optimizer *)object;
  if (!enter_working(self)) return NULL;
  PyObject *sequence = as_sequence(self, arrays, "parameter");
  int status =
      sequence ? bind(self, &self->parameters, sequence, 1, NULL, "parameter", tw_optimizer_rebind_parameters) : -1;
  Py_XDECREF(sequence);
  return status < 0 ? leave_error(&self->base) : leave(&self->base, TW_OK);
}

static PyObject *optimizer_bind_shadow(PyObject *object, PyObject *arrays) {
  Optimizer *self = (Optimizer *)object;
  if (!enter_working(self)) return NULL;
  PyObject *sequence = arrays == Py_None ? PyList_New(0) : as_sequence(self, arrays, "shadow");
  int status = sequence ? bind(self, &self->shadows, sequence, 1, NULL, "shadow", tw_optimizer_bind_shadow) : -1;
  Py_XDECREF(sequence);
  return status < 0 ? leave_error(&self->base) : leave(&self->base, TW_OK);
}

static PyObject *optimizer_release_gradients(PyObject *object, PyObject *unused) {
  Optimizer *self = (Optimizer *)object;
  (void)unused;
  if (!enter(&self->base)) return NULL;
  if (self->gradients.count == 0) return leave(&self->base, TW_OK);
  return bind_absent(self) < 0 ? leave_error(&self->base) : leave(&self->base, TW_OK);
}

/* _loosen(): leaves the gradients that are torch tensors to their owners until they are used again; see binding_loosen. */
static PyObject *optimizer_loosen(PyObject *object, PyObject *unused) {
  Optimizer *self = (Optimizer *)object;
  (void)unused;
  if (!enter(&self->base)) return NULL;
  return binding_loosen(&self->gradients) < 0 ? leave_error(&self->base) : leave(&self->base, TW_OK);
}

static PyObject *optimizer_zero_grad(PyObject *object, PyObject *unused) {
  Optimizer *self = (Optimizer *)object;
  (void)unused;
  if (!enter_working(self)) return NULL;
  if (follow_gradients(self) < 0) return leave_error(&self->base);
  for (Py_ssize_t i = 0; i < self->gradients.count; i++) {
    if (self->gradients.tensors[i].flags & TW_TENSOR_READ_ONLY) {
      Label label = {"gradient", i, self->names};
      fail_array(self->base.state, TW_ERROR_LAYOUT, &label, "the array is read-only");
      return leave_error(&self->base);
    }
  }
  for (Py_ssize_t i = 0; i < self->gradients.count; i++) {
    const tw_tensor *tensor = &self->gradients.tensors[i];
    size_t size = item_size(tensor->dtype);
    int64_t count = tensor->data ? element_count(tensor) : 0;
    if (count && tensor->strides) {
      walk(tensor, 0, tensor->data, size, NULL);
    } else if (count) {
      memset(tensor->data, 0, (size_t)count * size);
    }
  }
  return leave(&self->base, TW_OK);
}

static PyObject *optimizer_observe(PyObject *object, PyObject *const *args, Py_ssize_t nargs) {
  Optimizer *self = (Optimizer *)object;
  int ok = 1;
  if (!takes(nargs, 2, 2, "observe")) return NULL;
  const char *what = text_of(args[0], &ok);
  double value = ok ? PyFloat_AsDouble(args[1]) : 0;
  if (!ok || PyErr_Occurred() || !enter(&self->base)) return NULL;
  self->edits++;
  return leave(&self->base, tw_optimizer_observe(HANDLE(self), what, value));
}

static PyObject *optimizer_command(PyObject *object, PyObject *command) {
  Optimizer *self = (Optimizer *)object;
  int ok = 1;
  const char *text = text_of(command, &ok);
  if (!ok || !enter_working(self)) return NULL;
  self->edits++;
  tw_status status;
  Py_BEGIN_ALLOW_THREADS
  status = tw_optimizer_command(HANDLE(self), text);
  Py_END_ALLOW_THREADS
  return leave(&self->base, status);
}

static PyObject *optimizer_set_mode(PyObject *object, PyObject *mode) {
  Optimizer *self = (Optimizer *)object;
  long value = PyLong_AsLong(mode);
  if ((value == -1 && PyErr_Occurred()) || !enter_working(self)) return NULL;
  if (follow_parameters(self) < 0) return leave_error(&self->base);
  tw_status status;
  Py_BEGIN_ALLOW_THREADS
  status = tw_optimizer_set_mode(HANDLE(self), (int32_t)value);
  Py_END_ALLOW_THREADS
  return leave(&self->base, status);
}

/* _get_number(group or None, path) */
static PyObject *optimizer_get_number(PyObject *object, PyObject *const *args, Py_ssize_t nargs) {
  Optimizer *self = (Optimizer *)object;
  int ok = 1;
  if (!takes(nargs, 2, 2, "_get_number")) return NULL;
  const char *group = text_or_null(args[0], &ok), *path = ok ? text_of(args[1], &ok) : NULL;
  if (!ok || !enter(&self->base)) return NULL;
  double value = 0;
  tw_status status = tw_optimizer_get_number(HANDLE(self), group, path, &value);
  if (status < 0) return leave(&self->base, status);
  self->base.busy = 0;
  return PyFloat_FromDouble(value);
}

/* _set_number(group or None, path, value) */
static PyObject *optimizer_set_number(PyObject *object, PyObject *const *args, Py_ssize_t nargs) {
  Optimizer *self = (Optimizer *)object;
  int ok = 1;
  if (!takes(nargs, 3, 3, "_set_number")) return NULL;
  const char *group = text_or_null(args[0], &ok), *path = ok ? text_of(args[1], &ok) : NULL;
  double value = ok ? PyFloat_AsDouble(args[2]) : 0;
  if (!ok || PyErr_Occurred() || !enter(&self->base)) return NULL;
  self->edits++;
  return leave(&self->base, tw_optimizer_set_number(HANDLE(self), group, path, value));
}

/* _set_text(group or None, path, value) */
static PyObject *optimizer_set_text(PyObject *object, PyObject *const *args, Py_ssize_t nargs) {
  Optimizer *self = (Optimizer *)object;
  int ok = 1;
  if (!takes(nargs, 3, 3, "_set_text")) return NULL;
  const char *group = text_or_null(args[0], &ok), *path = ok ? text_of(args[1], &ok) : NULL;
  const char *value = ok ? text_of(args[2], &ok) : NULL;
  if (!ok || !enter(&self->base)) return NULL;
  self->edits++;
  return leave(&self->base, tw_optimizer_set_text(HANDLE(self), group, path, value));
}

/* _set_texts(group or None, paths, values) */
static PyObject *optimizer_set_texts(PyObject *object, PyObject *const *args, Py_ssize_t nargs) {
  Optimizer *self = (Optimizer *)object;
  int ok = 1;
  if (!takes(nargs, 3, 3, "_set_texts")) return NULL;
  const char *group = text_or_null(args[0], &ok);
  Py_ssize_t count = PyList_Check(args[1]) ? PyList_Size(args[1]) : 0;
  const char **paths = ok ? texts_of(args[1], count) : NULL, **values = paths ? texts_of(args[2], count) : NULL;
  PyObject *result = NULL;
  if (values && enter(&self->base)) {
    self->edits++;
    result = leave(&self->base, tw_optimizer_set_texts(HANDLE(self), group, paths, values, (size_t)count));
  }
  PyMem_Free(paths);
  PyMem_Free(values);
  return result;
}

/* The text behind `path`, or (NULL) the sentence. */
static PyObject *read_text(Optimizer *self, const char *group, const char *path) {
  if (!enter(&self->base)) return NULL;
  char small[256], *buffer = small;
  size_t capacity = sizeof small, needed = 0;
  tw_status status;
  for (;;) {
    status = path ? tw_optimizer_get_text(HANDLE(self), group, path, buffer, capacity, &needed)
                  : tw_optimizer_sentence(HANDLE(self), buffer, capacity, &needed);
    if (status != TW_ERROR_SPACE || needed + 1 <= capacity) break;
    capacity = needed + 1;
    if (buffer != small) PyMem_Free(buffer);
    buffer = PyMem_Malloc(capacity);
    if (!buffer) {
      PyErr_NoMemory();
      return leave_error(&self->base);
    }
  }
  PyObject *text = status < 0 ? NULL : PyUnicode_DecodeUTF8(buffer, (Py_ssize_t)strlen(buffer), "replace");
  if (buffer != small) PyMem_Free(buffer);
  if (status < 0) return leave(&self->base, status);
  self->base.busy = 0;
  return text;
}

/* _get_text(group or None, path) */
static PyObject *optimizer_get_text(PyObject *object, PyObject *const *args, Py_ssize_t nargs) {
  int ok = 1;
  if (!takes(nargs, 2, 2, "_get_text")) return NULL;
  const char *group = text_or_null(args[0], &ok), *path = ok ? text_of(args[1], &ok) : NULL;
  return ok ? read_text((Optimizer *)object, group, path) : NULL;
}

/* _state_rows(): a list of (stage, slot, parameter or -1, count, bytes, storage). */
static PyObject *optimizer_state_rows(PyObject *object, PyObject *unused) {
  Optimizer *self = (Optimizer *)object;
  (void)unused;
  if (!enter(&self->base)) return NULL;
  size_t count = tw_optimizer_state_count(HANDLE(self));
  PyObject *list = PyList_New(0);
  tw_status status = TW_OK;
  for (size_t i = 0; list && i < count; i++) {
    tw_state_info info;
    memset(&info, 0, sizeof info);
    info.struct_size = sizeof info;
    status = tw_optimizer_state_at(HANDLE(self), i, &info);
    if (status < 0) break;
    PyObject *row = Py_BuildValue("(ssnLni)", info.stage, info.slot,
                                  info.parameter == SIZE_MAX ? (Py_ssize_t)-1 : (Py_ssize_t)info.parameter,
                                  (long long)info.count, (Py_ssize_t)info.bytes, (int)info.storage);
    if (!row || PyList_Append(list, row) < 0) Py_CLEAR(list);
    Py_XDECREF(row);
  }
  if (status < 0) {
    Py_XDECREF(list);
    return leave(&self->base, status);
  }
  self->base.busy = 0;
  return list;
}

/* _scratch(): the bytes that steps keep for those to come. */
static PyObject *optimizer_scratch(PyObject *object, PyObject *unused) {
  Optimizer *self = (Optimizer *)object;
  (void)unused;
  if (!enter(&self->base)) return NULL;
  size_t bytes = tw_optimizer_scratch(HANDLE(self));
  self->base.busy = 0;
  return PyLong_FromSize_t(bytes);
}

/* _carried_numbers(): how many numbers a run carries whose state the host keeps. */
static PyObject *optimizer_carried_numbers(PyObject *object, PyObject *unused) {
  Optimizer *self = (Optimizer *)object;
  (void)unused;
  if (!enter(&self->base)) return NULL;
  size_t count = tw_optimizer_carried_numbers(HANDLE(self));
  if (count == 0) return leave(&self->base, TW_ERROR_NEEDS);
  self->base.busy = 0;
  return PyLong_FromSize_t(count);
}

/* Writable float64 memory without gaps; *view is held on success. */
static double *take_doubles(PyObject *out, Py_buffer *view, size_t *count) {
  if (PyObject_GetBuffer(out, view, PyBUF_C_CONTIGUOUS | PyBUF_FORMAT | PyBUF_WRITABLE) < 0) return NULL;
  if (dtype_of_format(view->format, view->itemsize, 0, 0) != TW_F64) {
    PyBuffer_Release(view);
    PyErr_SetString(PyExc_TypeError, "expected a float64 array");
    return NULL;
  }
  *count = (size_t)view->len / sizeof(double);
  return view->buf;
}

/* _state_read(index, out) */
static PyObject *optimizer_state_read(PyObject *object, PyObject *const *args, Py_ssize_t nargs) {
  Optimizer *self = (Optimizer *)object;
  if (!takes(nargs, 2, 2, "_state_read")) return NULL;
  size_t index = PyLong_AsSize_t(args[0]), count = 0;
  if (PyErr_Occurred()) return NULL;
  Py_buffer view;
  double *out = take_doubles(args[1], &view, &count);
  if (!out) return NULL;
  if (!enter(&self->base)) {
    PyBuffer_Release(&view);
    return NULL;
  }
  tw_status status;
  Py_BEGIN_ALLOW_THREADS
  status = tw_optimizer_state_read(HANDLE(self), index, out, count);
  Py_END_ALLOW_THREADS
  PyBuffer_Release(&view);
  return leave(&self->base, status);
}

static PyObject *optimizer_save(PyObject *object, PyObject *unused) {
  Optimizer *self = (Optimizer *)object;
  (void)unused;
  if (!enter(&self->base)) return NULL;
  size_t needed = 0;
  tw_status status = tw_optimizer_save(HANDLE(self), NULL, 0, &needed);
  if (status < 0) return leave(&self->base, status);
  PyObject *bytes = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)needed);
  if (!bytes) return leave_error(&self->base);
  char *buffer = PyBytes_AsString(bytes);
  size_t capacity = needed;
  Py_BEGIN_ALLOW_THREADS
  status = tw_optimizer_save(HANDLE(self), buffer, capacity, &needed);
  Py_END_ALLOW_THREADS
  if (status < 0) {
    Py_DECREF(bytes);
    return leave(&self->base, status);
  }
  self->base.busy = 0;
  return bytes;
}

static PyObject *optimizer_load(PyObject *object, PyObject *data) {
  Optimizer *self = (Optimizer *)object;
  Py_buffer view;
  if (PyObject_GetBuffer(data, &view, PyBUF_SIMPLE) < 0) return NULL;
  if (!enter_working(self)) {
    PyBuffer_Release(&view);
    return NULL;
  }
  self->edits++;
  tw_status status;
  Py_BEGIN_ALLOW_THREADS
  status = tw_optimizer_load(HANDLE(self), view.buf, (size_t)view.len);
  Py_END_ALLOW_THREADS
  PyBuffer_Release(&view);
  return leave(&self->base, status);
}

static PyObject *file_call(Optimizer *self, PyObject *path, tw_status (*call)(tw_optimizer *, const char *)) {
  PyObject *encoded = NULL;
  if (!PyUnicode_FSConverter(path, &encoded)) return NULL;
  const char *text = PyBytes_AsString(encoded);
  if (!text || !enter_working(self)) {
    Py_DECREF(encoded);
    return NULL;
  }
  self->edits++;
  tw_status status;
  Py_BEGIN_ALLOW_THREADS
  status = call(HANDLE(self), text);
  Py_END_ALLOW_THREADS
  Py_DECREF(encoded);
  return leave(&self->base, status);
}

static PyObject *optimizer_save_file(PyObject *object, PyObject *path) {
  return file_call((Optimizer *)object, path, tw_optimizer_save_file);
}

static PyObject *optimizer_load_file(PyObject *object, PyObject *path) {
  return file_call((Optimizer *)object, path, tw_optimizer_load_file);
}

static PyObject *optimizer_close(PyObject *object, PyObject *unused) {
  Optimizer *self = (Optimizer *)object;
  (void)unused;
  if (!self->base.handle) Py_RETURN_NONE;
  if (!enter(&self->base)) return NULL;
  optimizer_let_go(self);
  self->base.busy = 0;
  Py_RETURN_NONE;
}

static PyObject *optimizer_params(PyObject *object, void *unused) {
  (void)unused;
  return binding_objects(&((Optimizer *)object)->parameters);
}

static PyObject *optimizer_grads(PyObject *object, void *unused) {
  Optimizer *self = (Optimizer *)object;
  (void)unused;
  if (self->gradients.count == 0 || self->stale) Py_RETURN_NONE;
  return binding_objects(&self->gradients);
}

static PyObject *optimizer_names(PyObject *object, void *unused) {
  Optimizer *self = (Optimizer *)object;
  (void)unused;
  if (!self->names) return PyList_New(0);
  return PyList_GetSlice(self->names, 0, PyList_Size(self->names));
}

static PyObject *optimizer_sentence(PyObject *object, void *unused) {
  (void)unused;
  return read_text((Optimizer *)object, NULL, NULL);
}

/* A number that grows when hyper-parameters may have changed by something else than a step. */
static PyObject *optimizer_edits(PyObject *object, void *unused) {
  (void)unused;
  return PyLong_FromUnsignedLongLong(((Optimizer *)object)->edits);
}

static PyObject *handle_closed(PyObject *object, void *unused) {
  (void)unused;
  return PyBool_FromLong(((Handle *)object)->handle == NULL);
}

/* _shapes(): the shapes of the bound parameters, as tuples. */
static PyObject *optimizer_shapes(PyObject *object, PyObject *unused) {
  Optimizer *self = (Optimizer *)object;
  (void)unused;
  PyObject *list = PyList_New(self->parameters.count);
  for (Py_ssize_t i = 0; list && i < self->parameters.count; i++) {
    const tw_tensor *tensor = &self->parameters.tensors[i];
    PyObject *shape = PyTuple_New(tensor->ndim);
    if (!shape) {
      Py_CLEAR(list);
      break;
    }
    for (int d = 0; d < tensor->ndim; d++) PyTuple_SetItem(shape, d, PyLong_FromLongLong(tensor->shape[d]));
    PyList_SetItem(list, i, shape);
  }
  return list;
}

#define FAST(function) ((PyCFunction)(void (*)(void))(function))

static PyMethodDef optimizer_methods[] = {
    {"_create", FAST(optimizer_create), METH_METHOD | METH_FASTCALL | METH_KEYWORDS, NULL},
    {"_add", FAST(optimizer_add), METH_FASTCALL, NULL},
    {"step", FAST(optimizer_step), METH_FASTCALL | METH_KEYWORDS,
     PyDoc_STR("step($self, grads=None)\n--\n\n"
               "One step, in place.\n\n"
               "grads    None: the gradients that are bound.  A list with one array for each parameter (None where there\n"
               "         is no gradient this time): they are bound, then used; the same list of the same arrays again\n"
               "         costs nothing.  A callable: a closure, called as often as the method asks; it returns\n"
               "         (loss, grads), or grads, or a loss when it filled the bound gradients itself.  A closure with\n"
               "         one required argument is given the Request.  Without it the closure does not know which\n"
               "         minibatch is meant: behind gradient_accumulate the calls of one step want several, and SAM\n"
               "         wants each of them twice (the same request.tag: the same minibatch).\n\n"
               "Returns the closure's first loss, else None.  Raises NeedsError when the method asks for more than one\n"
               "gradient and no closure was given, SequenceError before gradients are bound or in evaluation mode,\n"
               "NonfiniteError under nonfinite=\"error\".  After an exception parameters and state are as before.")},
    {"_next", FAST(optimizer_next), METH_FASTCALL, NULL},
    {"_waiting", optimizer_waiting, METH_NOARGS, NULL},
    {"_probe", optimizer_probe, METH_NOARGS, NULL},
    {"_answer", optimizer_answer, METH_O, NULL},
    {"_answer_matrix", FAST(optimizer_answer_matrix), METH_FASTCALL, NULL},
    {"_answer_samples", FAST(optimizer_answer_samples), METH_FASTCALL, NULL},
    {"_set_reducer", FAST(optimizer_set_reducer), METH_FASTCALL, NULL},
    {"cancel", optimizer_cancel, METH_NOARGS,
     PyDoc_STR("cancel($self)\n--\n\nEnds a step between two requests: parameters and state are those from before it.")},
    {"bind_gradients", optimizer_bind_gradients, METH_O,
     PyDoc_STR("bind_gradients($self, grads, /)\n--\n\n"
               "Binds one gradient array for each parameter (None: absent); step() reads them from then on.\n"
               "They stay referenced, and cannot be resized, until others are bound or the optimizer is closed.")},
    {"release_gradients", optimizer_release_gradients, METH_NOARGS,
     PyDoc_STR("release_gradients($self)\n--\n\n"
               "Lets go of the bound gradients, so that their memory can be freed; until others are bound, they count as\n"
               "absent.")},
    {"rebind_parameters", optimizer_rebind, METH_O,
     PyDoc_STR("rebind_parameters($self, params, /)\n--\n\n"
               "Moves the parameters to other arrays of the same shapes and dtypes; the state is kept.")},
    {"bind_shadow", optimizer_bind_shadow, METH_O,
     PyDoc_STR("bind_shadow($self, shadows, /)\n--\n\n"
               "Binds 16-bit arrays that receive a rounded copy of the parameters at every step; None or [] unbinds.")},
    {"_loosen", optimizer_loosen, METH_NOARGS, NULL},
    {"zero_grad", optimizer_zero_grad, METH_NOARGS,
     PyDoc_STR("zero_grad($self)\n--\n\nSets the bound gradients to zero.  The option zero_gradients does it inside the step.")},
    {"observe", FAST(optimizer_observe), METH_FASTCALL,
     PyDoc_STR("observe($self, what, value, /)\n--\n\n"
               "Tells the pipeline a number that it watches: \"loss\", \"metric\", \"batch_size\".\n"
               "reduce_on_plateau and greedy keep their rate until they are told the \"metric\", after each validation;\n"
               "`python -m thalweg show NAME` says what a method watches.\n"
               "UnknownNameError for one that nobody watches; every pipeline takes the loss.")},
    {"command", optimizer_command, METH_O,
     PyDoc_STR("command($self, command, /)\n--\n\nRuns a command of a stage: \"gradient_accumulate.flush\".")},
    {"_scratch", optimizer_scratch, METH_NOARGS, NULL},
    {"_set_mode", optimizer_set_mode, METH_O, NULL},
    {"_get_number", FAST(optimizer_get_number), METH_FASTCALL, NULL},
    {"_set_number", FAST(optimizer_set_number), METH_FASTCALL, NULL},
    {"_get_text", FAST(optimizer_get_text), METH_FASTCALL, NULL},
    {"_set_text", FAST(optimizer_set_text), METH_FASTCALL, NULL},
    {"_set_texts", FAST(optimizer_set_texts), METH_FASTCALL, NULL},
    {"_state_rows", optimizer_state_rows, METH_NOARGS, NULL},
    {"_carried_numbers", optimizer_carried_numbers, METH_NOARGS, NULL},
    {"_state_read", FAST(optimizer_state_read), METH_FASTCALL, NULL},
    {"_save", optimizer_save, METH_NOARGS, NULL},
    {"_load", optimizer_load, METH_O, NULL},
    {"_save_file", optimizer_save_file, METH_O, NULL},
    {"_load_file", optimizer_load_file, METH_O, NULL},
    {"_shapes", optimizer_shapes, METH_NOARGS, NULL},
    {"close", optimizer_close, METH_NOARGS,
     PyDoc_STR("close($self)\n--\n\nReleases the state and every bound array.  Later calls raise HandleError.")},
    {NULL, NULL, 0, NULL}};

static PyGetSetDef optimizer_properties[] = {
    {"params", optimizer_params, NULL, PyDoc_STR("The bound parameter arrays, in order (a new list)."), NULL},
    {"grads", optimizer_grads, NULL, PyDoc_STR("The bound gradient arrays (a new list), or None."), NULL},
    {"names", optimizer_names, NULL, PyDoc_STR("The names of the parameters; None for one without."), NULL},
    {"sentence", optimizer_sentence, NULL, PyDoc_STR("The whole pipeline with every hyper-parameter."), NULL},
    {"closed", handle_closed, NULL, PyDoc_STR("True after close()."), NULL},
    {"_edits", optimizer_edits, NULL, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL}};

static PyType_Slot optimizer_slots[] = {{Py_tp_dealloc, optimizer_dealloc},
                                        {Py_tp_traverse, optimizer_traverse},
                                        {Py_tp_clear, optimizer_clear},
                                        {Py_tp_methods, optimizer_methods},
                                        {Py_tp_getset, optimizer_properties},
                                        {0, NULL}};

static PyType_Spec optimizer_spec = {"thalweg._thalweg.Optimizer", sizeof(Optimizer), 0,
                                     Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC, optimizer_slots};

/* ---- regularizers, constraints, objectives, schedules ---------------------------------------------------------------------- */

static int small_clear(PyObject *object) {
  (void)object;
  return 0;
}

#define SMALL_END(KIND)                                                                                           \
  static void KIND##_let_go(Handle *self) {                                                                       \
    if (self->handle) tw_##KIND##_destroy(self->handle);                                                          \
    self->handle = NULL;                                                                                          \
  }                                                                                                               \
  static void KIND##_dealloc(PyObject *object) {                                                                  \
    PyObject_GC_UnTrack(object);                                                                                  \
    KIND##_let_go((Handle *)object);                                                                              \
    Py_CLEAR(((Handle *)object)->module);                                                                         \
    handle_free(object);                                                                                          \
  }

#define SMALL_CLOSE(KIND)                                                                                        \
  static PyObject *KIND##_close(PyObject *object, PyObject *unused) {                                             \
    Handle *self = (Handle *)object;                                                                              \
    (void)unused;                                                                                                 \
    if (!self->handle) Py_RETURN_NONE;                                                                            \
    if (!enter(self)) return NULL;                                                                                \
    KIND##_let_go(self);                                                                                          \
    self->busy = 0;                                                                                               \
    Py_RETURN_NONE;                                                                                               \
  }

#define SMALL_LIFE(KIND) SMALL_END(KIND) SMALL_CLOSE(KIND)

/* A handle that is made from a sentence. */
#define SMALL_MADE(KIND)                                                                                          \
  static PyObject *KIND##_create(PyObject *object, PyTypeObject *class, PyObject *const *args, Py_ssize_t nargs,  \
                                 PyObject *kwnames) {                                                             \
    Handle *self = (Handle *)object;                                                                              \
    (void)kwnames;                                                                                                \
    int ok = 1;                                                                                                   \
    if (!takes(nargs, 1, 1, "_create") || adopt(self, class) < 0) return NULL;                                    \
    const char *sentence = text_of(args[0], &ok);                                                                 \
    if (!ok) return NULL;                                                                                         \
    tw_##KIND *handle = NULL;                                                                                     \
    tw_status status = tw_##KIND##_create(sentence, &handle);                                                     \
    if (status < 0) return fail_library(self->state, status);                                                     \
    self->handle = handle;                                                                                        \
    Py_RETURN_NONE;                                                                                               \
  }

#define SMALL_HANDLE(KIND) SMALL_LIFE(KIND) SMALL_MADE(KIND)

SMALL_HANDLE(regularizer)
SMALL_HANDLE(constraint)
SMALL_HANDLE(objective)
SMALL_LIFE(cache)
SMALL_HANDLE(schedule)
SMALL_END(solver)
SMALL_MADE(solver)

static PyGetSetDef small_properties[] = {
    {"closed", handle_closed, NULL, PyDoc_STR("True after close()."), NULL}, {NULL, NULL, NULL, NULL, NULL}};

/* Calls with up to three arrays and perhaps a number, without the lock. */
typedef tw_status (*Work)(void *handle, const tw_tensor *arrays, double number, double *out);

static PyObject *with_arrays(Handle *self, PyObject *const *arrays, const char *const *what, const int *write, int count,
                             double number, double *out, Work work) {
  if (!enter(self)) return NULL;
  Bound bound[3];
  tw_tensor tensors[3];
  memset(bound, 0, sizeof bound);
  memset(tensors, 0, sizeof tensors);
  int ok = 1;
  for (int i = 0; ok && i < count; i++) {
    Label label = {what[i], -1, NULL};
    ok = acquire(self->state, &bound[i], &tensors[i], arrays[i], write[i], &label) == 0;
  }
  tw_status status = TW_OK;
  if (ok) {
    Py_BEGIN_ALLOW_THREADS
    status = work(self->handle, tensors, number, out);
    Py_END_ALLOW_THREADS
  }
  for (int i = count; i-- > 0;) {
    if (bound[i].object) bound_release(&bound[i]);
  }
  return ok ? leave(self, status) : leave_error(self);
}

static tw_status work_value(void *handle, const tw_tensor *t, double number, double *out) {
  (void)number;
  return tw_regularizer_value(handle, &t[0], out);
}

static tw_status work_gradient(void *handle, const tw_tensor *t, double number, double *out) {
  (void)out;
  return tw_regularizer_gradient(handle, &t[0], number, &t[1]);
}

static tw_status work_prox(void *handle, const tw_tensor *t, double number, double *out) {
  (void)out;
  return tw_regularizer_prox(handle, &t[0], number);
}

/* Those of arrays alone. */
#define WORK(NAME, ...)                                                                                          \
  static tw_status work_##NAME(void *handle, const tw_tensor *t, double number, double *out) {                    \
    (void)number, (void)out;                                                                                      \
    return __VA_ARGS__;                                                                                           \
  }
WORK(prox_steps, tw_regularizer_prox_steps(handle, &t[0], &t[1]))
WORK(project, tw_constraint_project(handle, &t[0]))
WORK(tangent, tw_constraint_tangent(handle, &t[0], &t[1]))
WORK(project_tangent, tw_constraint_project_tangent(handle, &t[0], &t[1]))
WORK(retract, tw_constraint_retract(handle, &t[0], &t[1]))
WORK(exp, tw_constraint_exp(handle, &t[0], &t[1]))
WORK(log, tw_constraint_log(handle, &t[0], &t[1], &t[2]))
WORK(transport, tw_constraint_transport(handle, &t[0], &t[1], &t[2]))
WORK(lmo, tw_constraint_lmo(handle, &t[0], &t[1]))
WORK(samples, tw_schedule_observe_samples(handle, &t[0]))

/* One number a point: `number` is the room there is. */
#define MEASURE(NAME, ...)                                                                                       \
  static tw_status work_##NAME(void *handle, const tw_tensor *t, double number, double *out) {                    \
    return tw_constraint_##NAME(handle, __VA_ARGS__, out, (size_t)number);                                        \
  }
MEASURE(inner, &t[0], &t[1], &t[2])
MEASURE(distance, &t[0], &t[1])
MEASURE(check_point, &t[0])
MEASURE(check_tangent, &t[0], &t[1])

static tw_status work_points(void *handle, const tw_tensor *t, double number, double *out) {
  size_t axes = 0, count = 0;
  (void)number;
  tw_status status = tw_constraint_points(handle, &t[0], &axes, &count);
  out[0] = (double)axes;
  out[1] = (double)count;
  return status;
}

static PyObject *regularizer_value(PyObject *self, PyObject *w) {
  double value = 0;
  PyObject *done =
      with_arrays((Handle *)self, &w, (const char *const[]){"w"}, (const int[]){0}, 1, 0, &value, work_value);
  if (!done) return NULL;
  Py_DECREF(done);
  return PyFloat_FromDouble(value);
}

/* ---- named inputs */

/* Claims a second object for a call that has the first; 0 with an exception set when it is not one of `type`, or not free. */
static int enter_second(Handle *first, PyObject *second, PyObject *type) {
  int fits = PyObject_IsInstance(second, type);
  if (fits == 0) PyErr_Format(PyExc_TypeError, "expected a cache, got %R", (PyObject *)Py_TYPE(second));
  if (fits > 0 && enter((Handle *)second)) return 1;
  first->busy = 0;
  return 0;
}

/* _value_with(names, arrays): the weights, then what they are seen with. */
static PyObject *regularizer_value_with(PyObject *object, PyObject *const *args, Py_ssize_t nargs) {
  Handle *self = (Handle *)object;
  Inputs inputs;
  double value = 0;
  if (!takes(nargs, 2, 2, "_value_with") || !enter(self)) return NULL;
  if (inputs_acquire(self->state, &inputs, args[0], args[1], ACQUIRE_INTEGERS) < 0) return leave_error(self);
  tw_status status;
  Py_BEGIN_ALLOW_THREADS
  status = tw_regularizer_value_with(self->handle, inputs.arrays.tensors, (size_t)inputs.arrays.count, &value);
  Py_END_ALLOW_THREADS
  binding_release(&inputs.arrays);
  if (status < 0) return leave(self, status);
  self->busy = 0;
  return PyFloat_FromDouble(value);
}

/* _gradient_with(names, arrays, scale, g) */
static PyObject *regularizer_gradient_with(PyObject *object, PyObject *const *args, Py_ssize_t nargs) {
  Handle *self = (Handle *)object;
  Inputs inputs;
  Bound bound;
  tw_tensor g;
  const Label label = {"out", -1, NULL};
  if (!takes(nargs, 4, 4, "_gradient_with")) return NULL;
  double scale = PyFloat_AsDouble(args[2]);
  if (PyErr_Occurred() || !enter(self)) return NULL;
  if (inputs_acquire(self->state, &inputs, args[0], args[1], ACQUIRE_INTEGERS) < 0) return leave_error(self);
  memset(&bound, 0, sizeof bound);
  memset(&g, 0, sizeof g);
  int ok = acquire(self->state, &bound, &g, args[3], ACQUIRE_WRITE, &label) == 0;
  tw_status status = TW_OK;
  if (ok) {
    Py_BEGIN_ALLOW_THREADS
    status = tw_regularizer_gradient_with(self->handle, inputs.arrays.tensors, (size_t)inputs.arrays.count, scale, &g);
    Py_END_ALLOW_THREADS
  }
  bound_release(&bound);
  binding_release(&inputs.arrays);
  return ok ? leave(self, status) : leave_error(self);
}

/* _forward(cache or None, names, arrays) */
static PyObject *objective_forward(PyObject *object, PyObject *const *args, Py_ssize_t nargs) {
  Handle *self = (Handle *)object, *cache = NULL;
  Inputs inputs;
  double value = 0;
  if (!takes(nargs, 3, 3, "_forward") || !enter(self)) return NULL;
  if (args[0] != Py_None) {
    if (!enter_second(self, args[0], self->state->cache)) return NULL;
    cache = (Handle *)args[0];
  }
  int ok = inputs_acquire(self->state, &inputs, args[1], args[2], ACQUIRE_INTEGERS) == 0;
  tw_status status = TW_OK;
  if (ok) {
    Py_BEGIN_ALLOW_THREADS
    status = tw_objective_forward(self->handle, inputs.arrays.tensors, (size_t)inputs.arrays.count,
                                  cache ? cache->handle : NULL, &value);
    Py_END_ALLOW_THREADS
    binding_release(&inputs.arrays);
  }
  if (cache) cache->busy = 0;
  if (!ok) return leave_error(self);
  if (status < 0) return leave(self, status);
  self->busy = 0;
  return PyFloat_FromDouble(value);
}

/* _pullback(cache, upstream, names, arrays) */
static PyObject *objective_pullback(PyObject *object, PyObject *const *args, Py_ssize_t nargs) {
  Handle *self = (Handle *)object;
  Inputs gradients;
  if (!takes(nargs, 4, 4, "_pullback")) return NULL;
  double upstream = PyFloat_AsDouble(args[1]);
  if (PyErr_Occurred() || !enter(self) || !enter_second(self, args[0], self->state->cache)) return NULL;
  Handle *cache = (Handle *)args[0];
  int ok = inputs_acquire(self->state, &gradients, args[2], args[3], ACQUIRE_WRITE) == 0;
  tw_status status = TW_OK;
  if (ok) {
    Py_BEGIN_ALLOW_THREADS
    status = tw_objective_pullback(self->handle, cache->handle, upstream, gradients.arrays.tensors,
                                   (size_t)gradients.arrays.count);
    Py_END_ALLOW_THREADS
    binding_release(&gradients.arrays);
  }
  cache->busy = 0;
  return ok ? leave(self, status) : leave_error(self);
}

/* _create() */
static PyObject *cache_create(PyObject *object, PyTypeObject *class, PyObject *const *args, Py_ssize_t nargs,
                              PyObject *kwnames) {
  Handle *self = (Handle *)object;
  (void)args, (void)kwnames;
  if (!takes(nargs, 0, 0, "_create") || adopt(self, class) < 0) return NULL;
  tw_cache *handle = NULL;
  tw_status status = tw_cache_create(&handle);
  if (status < 0) return fail_library(self->state, status);
  self->handle = handle;
  Py_RETURN_NONE;
}

/* _gradient(w, scale, g) */
static PyObject *regularizer_gradient(PyObject *self, PyObject *const *args, Py_ssize_t nargs) {
  if (!takes(nargs, 3, 3, "_gradient")) return NULL;
  double scale = PyFloat_AsDouble(args[1]);
  if (PyErr_Occurred()) return NULL;
  PyObject *arrays[2] = {args[0], args[2]};
  return with_arrays((Handle *)self, arrays, (const char *const[]){"w", "out"}, (const int[]){0, 1}, 2, scale, NULL,
                     work_gradient);
}

static PyObject *regularizer_prox(PyObject *self, PyObject *const *args, Py_ssize_t nargs) {
  if (!takes(nargs, 2, 2, "_prox")) return NULL;
  double t = PyFloat_AsDouble(args[1]);
  if (PyErr_Occurred()) return NULL;
  return with_arrays((Handle *)self, args, (const char *const[]){"w"}, (const int[]){1}, 1, t, NULL, work_prox);
}

static PyObject *regularizer_prox_steps(PyObject *self, PyObject *const *args, Py_ssize_t nargs) {
  if (!takes(nargs, 2, 2, "_prox_steps")) return NULL;
  return with_arrays((Handle *)self, args, (const char *const[]){"w", "step"}, (const int[]){1, 0}, 2, 0, NULL,
                     work_prox_steps);
}

static PyObject *constraint_project(PyObject *self, PyObject *w) {
  return with_arrays((Handle *)self, &w, (const char *const[]){"w"}, (const int[]){1}, 1, 0, NULL, work_project);
}

/* A method of `_constraint` that takes so many arrays, of which one is written. */
#define GEOMETRY(NAME, COUNT, NAMES, WRITES)                                                                     \
  static PyObject *constraint_##NAME(PyObject *self, PyObject *const *args, Py_ssize_t nargs) {                   \
    if (!takes(nargs, COUNT, COUNT, "_" #NAME)) return NULL;                                                      \
    return with_arrays((Handle *)self, args, (const char *const[])NAMES, (const int[])WRITES, COUNT, 0, NULL,     \
                       work_##NAME);                                                                              \
  }
#define LIST(...) {__VA_ARGS__}
GEOMETRY(tangent, 2, LIST("w", "g"), LIST(0, 1))
GEOMETRY(project_tangent, 2, LIST("w", "u"), LIST(0, 1))
GEOMETRY(retract, 2, LIST("w", "u"), LIST(1, 0))
GEOMETRY(exp, 2, LIST("w", "u"), LIST(1, 0))
GEOMETRY(log, 3, LIST("w", "y", "out"), LIST(0, 0, 1))
GEOMETRY(transport, 3, LIST("w", "y", "u"), LIST(0, 0, 1))

/* (axes that number the points of the first array, a number for each of them as bytes of doubles). */
static PyObject *measure(PyObject *self, PyObject *const *args, const char *const *what, int count, Work work) {
  static const int none[3] = {0, 0, 0};
  double points[2] = {0, 0};
  PyObject *done = with_arrays((Handle *)self, args, what, none, 1, 0, points, work_points);
  if (!done) return NULL;
  Py_DECREF(done);
  PyObject *numbers = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)points[1] * (Py_ssize_t)sizeof(double));
  if (!numbers) return NULL;
  double *out = PyMem_Malloc((points[1] > 0 ? (size_t)points[1] : 1) * sizeof(double));
  done = out ? with_arrays((Handle *)self, args, what, none, count, points[1], out, work) : PyErr_NoMemory();
  if (done) memcpy(PyBytes_AsString(numbers), out, (size_t)points[1] * sizeof(double));
  PyMem_Free(out);
  if (!done) {
    Py_DECREF(numbers);
    return NULL;
  }
  Py_DECREF(done);
  return Py_BuildValue("(nN)", (Py_ssize_t)points[0], numbers);
}

#define MEASURED(NAME, COUNT, ...)                                                                               \
  static PyObject *constraint_##NAME(PyObject *self, PyObject *const *args, Py_ssize_t nargs) {                   \
    if (!takes(nargs, COUNT, COUNT, "_" #NAME)) return NULL;                                                      \
    return measure(self, args, (const char *const[]){__VA_ARGS__}, COUNT, work_##NAME);                           \
  }
MEASURED(inner, 3, "w", "u", "v")
MEASURED(distance, 2, "w", "y")
MEASURED(check_point, 1, "w")
MEASURED(check_tangent, 2, "w", "u")

static PyObject *constraint_lmo(PyObject *self, PyObject *const *args, Py_ssize_t nargs) {
  if (!takes(nargs, 2, 2, "_lmo")) return NULL;
  return with_arrays((Handle *)self, args, (const char *const[]){"g", "out"}, (const int[]){0, 1}, 2, 0, NULL, work_lmo);
}

static PyObject *schedule_value(PyObject *object, PyObject *step) {
  Handle *self = (Handle *)object;
  long long k = PyLong_AsLongLong(step);
  if ((k == -1 && PyErr_Occurred()) || !enter(self)) return NULL;
  double value = 0;
  tw_status status = tw_schedule_value(self->handle, k, &value);
  if (status < 0) return leave(self, status);
  self->busy = 0;
  return PyFloat_FromDouble(value);
}

static PyObject *schedule_observe(PyObject *object, PyObject *const *args, Py_ssize_t nargs) {
  Handle *self = (Handle *)object;
  int ok = 1;
  if (!takes(nargs, 2, 2, "observe")) return NULL;
  const char *what = text_of(args[0], &ok);
  double value = ok ? PyFloat_AsDouble(args[1]) : 0;
  if (!ok || PyErr_Occurred() || !enter(self)) return NULL;
  return leave(self, tw_schedule_observe(self->handle, what, value));
}

static PyObject *schedule_observe_samples(PyObject *self, PyObject *gradients) {
  return with_arrays((Handle *)self, &gradients, (const char *const[]){"gradients"}, (const int[]){0}, 1, 0, NULL,
                     work_samples);
}

static PyObject *schedule_command(PyObject *object, PyObject *command) {
  Handle *self = (Handle *)object;
  int ok = 1;
  const char *text = text_of(command, &ok);
  if (!ok || !enter(self)) return NULL;
  return leave(self, tw_schedule_command(self->handle, text));
}

typedef tw_status Saves(void *handle, void *buffer, size_t capacity, size_t *needed);
typedef tw_status Loads(void *handle, const void *data, size_t size);

/* What a small object remembers, as bytes. */
static PyObject *save_with(PyObject *object, Saves *save) {
  Handle *self = (Handle *)object;
  if (!enter(self)) return NULL;
  size_t needed = 0;
  tw_status status = save(self->handle, NULL, 0, &needed);
  if (status < 0) return leave(self, status);
  PyObject *bytes = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)needed);
  if (!bytes) return leave_error(self);
  char *buffer = PyBytes_AsString(bytes);
  Py_BEGIN_ALLOW_THREADS
  status = save(self->handle, buffer, needed, &needed);
  Py_END_ALLOW_THREADS
  if (status < 0) {
    Py_DECREF(bytes);
    return leave(self, status);
  }
  self->busy = 0;
  return bytes;
}

static PyObject *load_with(PyObject *object, PyObject *data, Loads *load) {
  Handle *self = (Handle *)object;
  Py_buffer view;
  if (PyObject_GetBuffer(data, &view, PyBUF_SIMPLE) < 0) return NULL;
  if (!enter(self)) {
    PyBuffer_Release(&view);
    return NULL;
  }
  tw_status status = load(self->handle, view.buf, (size_t)view.len);
  PyBuffer_Release(&view);
  return leave(self, status);
}

static tw_status save_schedule(void *handle, void *buffer, size_t capacity, size_t *needed) {
  return tw_schedule_save(handle, buffer, capacity, needed);
}
static tw_status load_schedule(void *handle, const void *data, size_t size) {
  return tw_schedule_load(handle, data, size);
}
static tw_status save_objective(void *handle, void *buffer, size_t capacity, size_t *needed) {
  return tw_objective_save(handle, buffer, capacity, needed);
}
static tw_status load_objective(void *handle, const void *data, size_t size) {
  return tw_objective_load(handle, data, size);
}

/* _save(), _load(bytes) */
static PyObject *schedule_save(PyObject *self, PyObject *unused) {
  (void)unused;
  return save_with(self, save_schedule);
}
static PyObject *schedule_load(PyObject *self, PyObject *data) { return load_with(self, data, load_schedule); }
static PyObject *objective_save(PyObject *self, PyObject *unused) {
  (void)unused;
  return save_with(self, save_objective);
}
static PyObject *objective_load(PyObject *self, PyObject *data) { return load_with(self, data, load_objective); }

/* _sentence() */
static PyObject *schedule_sentence(PyObject *object, PyObject *unused) {
  Handle *self = (Handle *)object;
  (void)unused;
  if (!enter(self)) return NULL;
  size_t needed = 0, capacity = 256;
  for (;;) {
    char *buffer = PyMem_Malloc(capacity);
    if (!buffer) {
      PyErr_NoMemory();
      return leave_error(self);
    }
    tw_status status = tw_schedule_sentence(self->handle, buffer, capacity, &needed);
    if (status == TW_ERROR_SPACE && needed + 1 > capacity) {
      PyMem_Free(buffer);
      capacity = needed + 1;
      continue;
    }
    PyObject *text = status < 0 ? NULL : PyUnicode_DecodeUTF8(buffer, (Py_ssize_t)strlen(buffer), "replace");
    PyMem_Free(buffer);
    if (status < 0) return leave(self, status);
    self->busy = 0;
    return text;
  }
}

/* ---- solvers */

/* (address, element type, shape, read-only): Python makes an array of it that keeps the handle alive. */
static PyObject *memory_row(const tw_tensor *tensor) {
  PyObject *shape = PyTuple_New(tensor->ndim);
  for (int32_t d = 0; shape && d < tensor->ndim; d++) {
    PyObject *extent = PyLong_FromLongLong(tensor->shape[d]);
    if (extent) {
      PyTuple_SetItem(shape, d, extent);
    } else {
      Py_CLEAR(shape);
    }
  }
  if (!shape) return NULL;
  return Py_BuildValue("(KiNN)", (unsigned long long)(uintptr_t)tensor->data, (int)tensor->dtype, shape,
                       PyBool_FromLong(tensor->flags & TW_TENSOR_READ_ONLY));
}

/* (kind, tag, outcome, tensors): the given tensors, then the wanted ones; kind -1 when the run has ended. */
static PyObject *solver_row(const tw_solver_request *request) {
  PyObject *tensors = PyList_New(0);
  for (size_t i = 0; tensors && i < request->given_count + request->wanted_count; i++) {
    PyObject *row = memory_row(i < request->given_count ? &request->given[i]
                                                         : &request->wanted[i - request->given_count]);
    if (!row || PyList_Append(tensors, row) < 0) Py_CLEAR(tensors);
    Py_XDECREF(row);
  }
  if (!tensors) return NULL;
  return Py_BuildValue("(iKsN)", (int)request->kind, (unsigned long long)request->tag, request->outcome_name, tensors);
}

/* _begin(names, arrays) */
static PyObject *solver_begin(PyObject *object, PyObject *const *args, Py_ssize_t nargs) {
  Handle *self = (Handle *)object;
  Inputs inputs;
  if (!takes(nargs, 2, 2, "_begin") || !enter(self)) return NULL;
  if (inputs_acquire(self->state, &inputs, args[0], args[1], ACQUIRE_INTEGERS) < 0) return leave_error(self);
  tw_status status;
  Py_BEGIN_ALLOW_THREADS
  status = tw_solver_begin(self->handle, inputs.arrays.tensors, (size_t)inputs.arrays.count);
  Py_END_ALLOW_THREADS
  binding_release(&inputs.arrays);
  return leave(self, status);
}

/* _next(goes_on): the next request, or the one that waits. */
static PyObject *solver_next(PyObject *object, PyObject *goes_on) {
  Handle *self = (Handle *)object;
  int on = PyObject_IsTrue(goes_on);
  if (on < 0 || !enter(self)) return NULL;
  tw_solver_request request;
  memset(&request, 0, sizeof request);
  request.struct_size = sizeof request;
  tw_status status;
  Py_BEGIN_ALLOW_THREADS
  status = on ? tw_solver_next(self->handle, &request) : tw_solver_waiting(self->handle, &request);
  Py_END_ALLOW_THREADS
  if (status < 0) return leave(self, status);
  PyObject *row = solver_row(&request);
  self->busy = 0;
  return row;
}

/* _tensor(name) */
static PyObject *solver_tensor(PyObject *object, PyObject *name) {
  Handle *self = (Handle *)object;
  int ok = 1;
  const char *text = text_of(name, &ok);
  if (!ok || !enter(self)) return NULL;
  tw_tensor tensor;
  memset(&tensor, 0, sizeof tensor);
  tw_status status = tw_solver_tensor(self->handle, text, &tensor);
  if (status < 0) return leave(self, status);
  PyObject *row = memory_row(&tensor);
  self->busy = 0;
  return row;
}

static tw_status save_solver(void *handle, void *buffer, size_t capacity, size_t *needed) {
  return tw_solver_save(handle, buffer, capacity, needed);
}
static tw_status load_solver(void *handle, const void *data, size_t size) {
  return tw_solver_load(handle, data, size);
}
static PyObject *solver_save(PyObject *self, PyObject *unused) {
  (void)unused;
  return save_with(self, save_solver);
}
static PyObject *solver_load(PyObject *self, PyObject *data) { return load_with(self, data, load_solver); }

#define CREATE(KIND) {"_create", FAST(KIND##_create), METH_METHOD | METH_FASTCALL | METH_KEYWORDS, NULL}
#define CLOSE(KIND) \
  {"close", KIND##_close, METH_NOARGS, PyDoc_STR("close($self)\n--\n\nReleases the handle.  Later calls raise HandleError.")}

static PyMethodDef regularizer_methods[] = {
    CREATE(regularizer),
    CLOSE(regularizer),
    {"_value", regularizer_value, METH_O, NULL},
    {"_gradient", FAST(regularizer_gradient), METH_FASTCALL, NULL},
    {"_value_with", FAST(regularizer_value_with), METH_FASTCALL, NULL},
    {"_gradient_with", FAST(regularizer_gradient_with), METH_FASTCALL, NULL},
    {"_prox", FAST(regularizer_prox), METH_FASTCALL, NULL},
    {"_prox_steps", FAST(regularizer_prox_steps), METH_FASTCALL, NULL},
    {NULL, NULL, 0, NULL}};

static PyMethodDef constraint_methods[] = {CREATE(constraint),
                                           CLOSE(constraint),
                                           {"_project", constraint_project, METH_O, NULL},
                                           {"_tangent", FAST(constraint_tangent), METH_FASTCALL, NULL},
                                           {"_retract", FAST(constraint_retract), METH_FASTCALL, NULL},
                                           {"_project_tangent", FAST(constraint_project_tangent), METH_FASTCALL, NULL},
                                           {"_exp", FAST(constraint_exp), METH_FASTCALL, NULL},
                                           {"_log", FAST(constraint_log), METH_FASTCALL, NULL},
                                           {"_transport", FAST(constraint_transport), METH_FASTCALL, NULL},
                                           {"_inner", FAST(constraint_inner), METH_FASTCALL, NULL},
                                           {"_distance", FAST(constraint_distance), METH_FASTCALL, NULL},
                                           {"_check_point", FAST(constraint_check_point), METH_FASTCALL, NULL},
                                           {"_check_tangent", FAST(constraint_check_tangent), METH_FASTCALL, NULL},
                                           {"_lmo", FAST(constraint_lmo), METH_FASTCALL, NULL},
                                           {NULL, NULL, 0, NULL}};

static PyMethodDef objective_methods[] = {CREATE(objective),
                                          CLOSE(objective),
                                          {"_forward", FAST(objective_forward), METH_FASTCALL, NULL},
                                          {"_pullback", FAST(objective_pullback), METH_FASTCALL, NULL},
                                          {"_save", objective_save, METH_NOARGS, NULL},
                                          {"_load", objective_load, METH_O, NULL},
                                          {NULL, NULL, 0, NULL}};

static PyMethodDef cache_methods[] = {CREATE(cache), CLOSE(cache), {NULL, NULL, 0, NULL}};

static PyMethodDef schedule_methods[] = {
    CREATE(schedule),
    CLOSE(schedule),
    {"_value", schedule_value, METH_O, NULL},
    {"_save", schedule_save, METH_NOARGS, NULL},
    {"_load", schedule_load, METH_O, NULL},
    {"_sentence", schedule_sentence, METH_NOARGS, NULL},
    {"observe", FAST(schedule_observe), METH_FASTCALL,
     PyDoc_STR("observe($self, what, value, /)\n--\n\nTells the schedule a number that it watches: \"metric\", \"loss\".")},
    {"observe_samples", schedule_observe_samples, METH_O,
     PyDoc_STR("observe_samples($self, gradients, /)\n--\n\n"
               "Shows per-sample gradients, an array (samples, n), to a batch-size rule.")},
    {"command", schedule_command, METH_O,
     PyDoc_STR("command($self, command, /)\n--\n\nRuns a command of the schedule: \"begin_decay\".")},
    {NULL, NULL, 0, NULL}};

/* Without close(): arrays over the memory of a run keep its handle alive. */
static PyMethodDef solver_methods[] = {CREATE(solver),
                                       {"_begin", FAST(solver_begin), METH_FASTCALL, NULL},
                                       {"_next", solver_next, METH_O, NULL},
                                       {"_tensor", solver_tensor, METH_O, NULL},
                                       {"_save", solver_save, METH_NOARGS, NULL},
                                       {"_load", solver_load, METH_O, NULL},
                                       {NULL, NULL, 0, NULL}};

#define SMALL_TYPE(KIND, NAME)                                                   \
  static PyType_Slot KIND##_slots[] = {{Py_tp_dealloc, KIND##_dealloc},          \
                                       {Py_tp_traverse, handle_traverse},        \
                                       {Py_tp_clear, small_clear},               \
                                       {Py_tp_methods, KIND##_methods},          \
                                       {Py_tp_getset, small_properties},         \
                                       {0, NULL}};                               \
  static PyType_Spec KIND##_spec = {"thalweg._thalweg." NAME, sizeof(Handle), 0, \
                                    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC, KIND##_slots}

SMALL_TYPE(regularizer, "Regularizer");
SMALL_TYPE(constraint, "Constraint");
SMALL_TYPE(objective, "Objective");
SMALL_TYPE(cache, "Cache");
SMALL_TYPE(schedule, "Schedule");
SMALL_TYPE(solver, "Solver");

/* ---- functions of the module ------------------------------------------------------------------------------------ */

static PyObject *module_version(PyObject *module, PyObject *unused) {
  (void)module, (void)unused;
  return PyUnicode_FromString(tw_version());
}

static PyObject *module_build_info(PyObject *module, PyObject *unused) {
  (void)module, (void)unused;
  return PyUnicode_FromString(tw_build_info());
}

static PyObject *parameter_row(State *state, const char *method, size_t index) {
  tw_parameter_info info;
  memset(&info, 0, sizeof info);
  info.struct_size = sizeof info;
  tw_status status = tw_method_parameter(method, index, &info);
  if (status < 0) return fail_library(state, status);
  return Py_BuildValue("(ssiNNNNNssdd)", info.name, info.meaning, (int)info.type, PyBool_FromLong(info.required),
                       PyBool_FromLong(info.optional), PyBool_FromLong(info.min_open), PyBool_FromLong(info.max_open),
                       PyBool_FromLong(info.live), info.default_text, info.choices, info.min, info.max);
}

static PyObject *tensor_row(const tw_input_info *info) {
  return Py_BuildValue("(sssNNNN)", info->name, info->meaning, info->shape, PyBool_FromLong(info->optional),
                       PyBool_FromLong(info->integer), PyBool_FromLong(info->differentiable),
                       PyBool_FromLong(info->result));
}

static PyObject *input_row(State *state, const char *method, size_t index) {
  tw_input_info info;
  memset(&info, 0, sizeof info);
  info.struct_size = sizeof info;
  tw_status status = tw_method_input(method, index, &info);
  return status < 0 ? fail_library(state, status) : tensor_row(&info);
}

/* (name, meaning, takes_nonfinite, given, wanted): of a solver, or without a method of optimizers, by the number of the kind. */
static PyObject *request_row(State *state, const char *method, size_t index) {
  tw_request_info info;
  memset(&info, 0, sizeof info);
  info.struct_size = sizeof info;
  const int32_t kind = (int32_t)index + 1;
  tw_status status = method ? tw_method_request(method, index, &info) : tw_request_kind(kind, &info);
  if (status < 0) return fail_library(state, status);
  PyObject *given = PyList_New(0), *wanted = PyList_New(0);
  for (size_t i = 0; given && wanted && i < info.given_count + info.wanted_count; i++) {
    tw_input_info tensor;
    memset(&tensor, 0, sizeof tensor);
    tensor.struct_size = sizeof tensor;
    status = method ? tw_method_request_tensor(method, index, i, &tensor) : tw_request_kind_tensor(kind, i, &tensor);
    PyObject *row = status < 0 ? fail_library(state, status) : tensor_row(&tensor);
    if (!row || PyList_Append(i < info.given_count ? given : wanted, row) < 0) Py_CLEAR(given);
    Py_XDECREF(row);
  }
  if (!given || !wanted) {
    Py_XDECREF(given);
    Py_XDECREF(wanted);
    return NULL;
  }
  return Py_BuildValue("(ssNNN)", info.name, info.meaning, PyBool_FromLong(info.takes_nonfinite), given, wanted);
}

static PyObject *slot_row(State *state, const char *method, size_t index) {
  tw_state_slot_info info;
  memset(&info, 0, sizeof info);
  info.struct_size = sizeof info;
  tw_status status = tw_method_state(method, index, &info);
  if (status < 0) return fail_library(state, status);
  return Py_BuildValue("(ss)", info.name, info.meaning);
}

typedef PyObject *(*Row)(State *, const char *, size_t);

static PyObject *rows(State *state, const char *method, size_t count, Row row) {
  PyObject *tuple = PyTuple_New((Py_ssize_t)count);
  for (size_t i = 0; tuple && i < count; i++) {
    PyObject *item = row(state, method, i);
    if (item) {
      PyTuple_SetItem(tuple, (Py_ssize_t)i, item);
    } else {
      Py_CLEAR(tuple);
    }
  }
  return tuple;
}

static PyObject *method_row(State *state, const tw_method_info *info) {
  PyObject *parameters = rows(state, info->name, info->parameter_count, parameter_row);
  PyObject *slots = parameters ? rows(state, info->name, info->state_count, slot_row) : NULL;
  PyObject *inputs = slots ? rows(state, info->name, info->input_count, input_row) : NULL;
  PyObject *asks = inputs ? rows(state, info->name, info->request_count, request_row) : NULL;
  PyObject *row = NULL;
  if (asks) {
    row = Py_BuildValue("(sssssssOOOO)", info->name, info->kind, info->summary, info->rule, info->source, info->sentence,
                        info->requests, parameters, slots, inputs, asks);
  }
  Py_XDECREF(parameters);
  Py_XDECREF(slots);
  Py_XDECREF(inputs);
  Py_XDECREF(asks);
  return row;
}

/* A row for every method, sorted by name. */
static PyObject *each_method(PyObject *module, PyObject *(*make)(State *, const tw_method_info *)) {
  State *state = PyModule_GetState(module);
  PyObject *list = PyList_New(0);
  size_t count = tw_method_count();
  for (size_t i = 0; list && i < count; i++) {
    tw_method_info info;
    memset(&info, 0, sizeof info);
    info.struct_size = sizeof info;
    tw_status status = tw_method_at(i, &info);
    PyObject *row = status < 0 ? fail_library(state, status) : make(state, &info);
    if (!row || PyList_Append(list, row) < 0) Py_CLEAR(list);
    Py_XDECREF(row);
  }
  return list;
}

static PyObject *name_row(State *state, const tw_method_info *info) {
  (void)state;
  return Py_BuildValue("(ss)", info->name, info->kind);
}

/* _methods(): everything the registry says;  _names(): (name, kind). */
static PyObject *module_methods(PyObject *module, PyObject *unused) {
  (void)unused;
  return each_method(module, method_row);
}
static PyObject *module_names(PyObject *module, PyObject *unused) {
  (void)unused;
  return each_method(module, name_row);
}

/* _method(name) */
static PyObject *module_method(PyObject *module, PyObject *name) {
  State *state = PyModule_GetState(module);
  int ok = 1;
  const char *text = text_of(name, &ok);
  if (!ok) return NULL;
  tw_method_info info;
  memset(&info, 0, sizeof info);
  info.struct_size = sizeof info;
  tw_status status = tw_method_find(text, &info);
  return status < 0 ? fail_library(state, status) : method_row(state, &info);
}

static PyObject *module_set_num_threads(PyObject *module, PyObject *count) {
  long value = PyLong_AsLong(count);
  if (value == -1 && PyErr_Occurred()) return NULL;
  if (value > INT32_MAX) value = INT32_MAX;
  if (value < INT32_MIN) value = INT32_MIN;
  tw_status status;
  Py_BEGIN_ALLOW_THREADS
  status = tw_set_num_threads((int32_t)value);
  Py_END_ALLOW_THREADS
  if (status < 0) return fail_library(PyModule_GetState(module), status);
  Py_RETURN_NONE;
}

static PyObject *module_get_num_threads(PyObject *module, PyObject *unused) {
  (void)module, (void)unused;
  return PyLong_FromLong(tw_get_num_threads());
}

static PyObject *module_status_name(PyObject *module, PyObject *status) {
  (void)module;
  long value = PyLong_AsLong(status);
  if (value == -1 && PyErr_Occurred()) return NULL;
  return PyUnicode_FromString(tw_status_name((tw_status)value));
}

/* _random_normal(seed, stream, step, tensor, offset, out) */
static PyObject *module_random_normal(PyObject *module, PyObject *args) {
  unsigned long long seed, step, offset;
  unsigned int stream, tensor;
  PyObject *array;
  if (!PyArg_ParseTuple(args, "KIKIKO", &seed, &stream, &step, &tensor, &offset, &array)) return NULL;
  Py_buffer view;
  size_t count = 0;
  double *out = take_doubles(array, &view, &count);
  if (!out) return NULL;
  tw_status status;
  Py_BEGIN_ALLOW_THREADS
  status = tw_random_normal(seed, stream, step, tensor, offset, out, count);
  Py_END_ALLOW_THREADS
  PyBuffer_Release(&view);
  if (status < 0) return fail_library(PyModule_GetState(module), status);
  Py_RETURN_NONE;
}

/* The hash of a checkpoint, for one that is put together from parts: four lanes of FNV-1a over words of 8 bytes, as
 * Safetensors.swift has it.  (The library has no call that writes state from outside.) */
typedef struct digest {
  uint64_t lanes[4];
} digest;

static uint64_t digest_mix(uint64_t key, uint64_t counter) {
  uint64_t z = key + counter * 0x9E3779B97F4A7C15u;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  return z ^ (z >> 31);
}

static uint64_t digest_stir(uint64_t lane, uint64_t word) {
  uint64_t x = (lane ^ word) * 0x100000001B3u;
  return x ^ (x >> 29);
}

static void digest_start(digest *d, uint64_t seed) {
  static const uint64_t start[4] = {0xCBF29CE484222325u, 0x9E3779B97F4A7C15u, 0xC2B2AE3D27D4EB4Fu, 0x165667B19E3779F9u};
  for (int k = 0; k < 4; k++) d->lanes[k] = seed ^ start[k];
}

/* The whole of it: called once for each digest. */
static uint64_t digest_of(digest *d, const unsigned char *bytes, size_t count) {
  size_t i = 0;
  uint64_t word[4];
  for (; i + 32 <= count; i += 32) {
    memcpy(word, bytes + i, 32);
    for (int k = 0; k < 4; k++) d->lanes[k] = digest_stir(d->lanes[k], word[k]);
  }
  for (; i < count; i++) d->lanes[0] = digest_stir(d->lanes[0], (uint64_t)bytes[i] | 0x100);
  return digest_mix(d->lanes[0], digest_mix(d->lanes[1], digest_mix(d->lanes[2], d->lanes[3] + count)));
}

/* _digest(table, body) -> int */
static PyObject *module_digest(PyObject *module, PyObject *args) {
  Py_buffer table, body;
  (void)module;
  if (!PyArg_ParseTuple(args, "y*y*", &table, &body)) return NULL;
  digest d;
  uint64_t hash;
  Py_BEGIN_ALLOW_THREADS
  digest_start(&d, 1);
  hash = digest_of(&d, table.buf, (size_t)table.len);
  digest_start(&d, hash);
  hash = digest_of(&d, body.buf, (size_t)body.len);
  Py_END_ALLOW_THREADS
  PyBuffer_Release(&table);
  PyBuffer_Release(&body);
  return PyLong_FromUnsignedLongLong(hash);
}

/* What optimizers ask for: a row for each kind, from TW_REQUEST_GRADIENT on. */
static PyObject *module_request_kinds(PyObject *module, PyObject *unused) {
  (void)unused;
  return rows(PyModule_GetState(module), NULL, TW_REQUEST_PARTICIPANT, request_row);
}

static PyMethodDef module_functions[] = {
    {"version", module_version, METH_NOARGS, NULL},
    {"build_info", module_build_info, METH_NOARGS, NULL},
    {"_names", module_names, METH_NOARGS, NULL},
    {"_methods", module_methods, METH_NOARGS, NULL},
    {"_method", module_method, METH_O, NULL},
    {"_request_kinds", module_request_kinds, METH_NOARGS, NULL},
    {"set_num_threads", module_set_num_threads, METH_O,
     PyDoc_STR("set_num_threads(count, /)\n--\n\nSets the number of threads of a step, at least 1.  Results do not depend on it.")},
    {"get_num_threads", module_get_num_threads, METH_NOARGS,
     PyDoc_STR("get_num_threads()\n--\n\nThe number of threads of a step.")},
    {"status_name", module_status_name, METH_O,
     PyDoc_STR("status_name(status, /)\n--\n\nThe name of a status number: \"TW_ERROR_SHAPE\".")},
    {"_random_normal", module_random_normal, METH_VARARGS, NULL},
    {"_digest", module_digest, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL}};

static PyObject *import_attribute(const char *module, const char *name) {
  PyObject *imported = PyImport_ImportModule(module);
  PyObject *attribute = imported ? PyObject_GetAttrString(imported, name) : NULL;
  Py_XDECREF(imported);
  return attribute;
}

static int add_type(PyObject *module, PyType_Spec *spec, PyObject **type) {
  *type = PyType_FromModuleAndSpec(module, spec, NULL);
  return *type ? PyModule_AddType(module, (PyTypeObject *)*type) : -1;
}

static int module_exec(PyObject *module) {
  State *state = PyModule_GetState(module);
  if (tw_abi_version() != TW_ABI_VERSION) {
    PyErr_Format(PyExc_ImportError, "libthalweg has interface version %u, this extension needs %d",
                 (unsigned)tw_abi_version(), TW_ABI_VERSION);
    return -1;
  }
  if (!(state->error = import_attribute("thalweg._errors", "Error"))) return -1;
  if (!(state->by_status = import_attribute("thalweg._errors", "BY_STATUS"))) return -1;
  if (!(state->adapt = import_attribute("thalweg._arrays", "adapt"))) return -1;
  if (!(state->look = import_attribute("thalweg._arrays", "look"))) return -1;
  if (!(state->ndarray = import_attribute("numpy", "ndarray"))) return -1;
  if (!(state->step_closure = PyUnicode_InternFromString("_step_closure"))) return -1;
  if (!(state->exchange = PyUnicode_InternFromString("__dlpack_c_exchange_api__"))) return -1;
  if (!(state->is_neg = PyUnicode_InternFromString("is_neg"))) return -1;
  if (add_type(module, &optimizer_spec, &state->optimizer) < 0) return -1;
  if (add_type(module, &regularizer_spec, &state->regularizer) < 0) return -1;
  if (add_type(module, &constraint_spec, &state->constraint) < 0) return -1;
  if (add_type(module, &objective_spec, &state->objective) < 0) return -1;
  if (add_type(module, &cache_spec, &state->cache) < 0) return -1;
  if (add_type(module, &schedule_spec, &state->schedule) < 0) return -1;
  return add_type(module, &solver_spec, &state->solver);
}

static int module_traverse(PyObject *module, visitproc visit, void *arg) {
  State *state = PyModule_GetState(module);
  Py_VISIT(state->by_status);
  Py_VISIT(state->error);
  Py_VISIT(state->adapt);
  Py_VISIT(state->look);
  Py_VISIT(state->ndarray);
  Py_VISIT(state->tensor);
  Py_VISIT(state->optimizer);
  Py_VISIT(state->regularizer);
  Py_VISIT(state->constraint);
  Py_VISIT(state->objective);
  Py_VISIT(state->cache);
  Py_VISIT(state->schedule);
  Py_VISIT(state->solver);
  return 0;
}

static int module_clear(PyObject *module) {
  State *state = PyModule_GetState(module);
  Py_CLEAR(state->by_status);
  Py_CLEAR(state->error);
  Py_CLEAR(state->adapt);
  Py_CLEAR(state->look);
  Py_CLEAR(state->ndarray);
  Py_CLEAR(state->step_closure);
  Py_CLEAR(state->exchange);
  Py_CLEAR(state->is_neg);
  Py_CLEAR(state->tensor);
  Py_CLEAR(state->optimizer);
  Py_CLEAR(state->regularizer);
  Py_CLEAR(state->constraint);
  Py_CLEAR(state->objective);
  Py_CLEAR(state->cache);
  Py_CLEAR(state->schedule);
  Py_CLEAR(state->solver);
  return 0;
}

static void module_free(void *module) { module_clear(module); }

static PyModuleDef_Slot module_slots[] = {{Py_mod_exec, module_exec}, {0, NULL}};

static struct PyModuleDef module_definition = {PyModuleDef_HEAD_INIT,
                                               "thalweg._thalweg",
                                               "Handles of libthalweg; use the package thalweg.",
                                               sizeof(State),
                                               module_functions,
                                               module_slots,
                                               module_traverse,
                                               module_clear,
                                               module_free};

PyMODINIT_FUNC PyInit__thalweg(void) { return PyModuleDef_Init(&module_definition); }
