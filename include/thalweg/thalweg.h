/* thalweg.h: the public C interface of libthalweg.
 *
 * An optimizer is a sentence ("clip_global_norm(1.0) | adamw(lr=3e-4) | ema(0.999)"); the library runs it in
 * place on buffers that the host owns.  Everything below holds for every function, unless it says otherwise:
 *
 * Ownership  A handle is created by *_create and released by *_destroy.  Strings and structs that the library
 *            returns belong to it and never change.  Arrays and strings passed in are borrowed for the call;
 *            the memory behind bound parameters and gradients is borrowed until it is bound anew or the
 *            handle is destroyed.
 * Threads    A handle may be used from any thread, by one thread at a time: a second one gets
 *            TW_ERROR_BUSY.  Different handles may be used at the same time.  Functions without a handle may
 *            be called at any time.  Safe after fork(): the child uses the calling thread only until it steps.
 *            Once loaded the library stays mapped, whatever dlclose says: its threads wait in its code.
 * Errors     Every function that can fail returns a tw_status and never aborts.  tw_last_error() gives the
 *            message of the calling thread's last failure.  A failing call changes nothing: parameters and
 *            state are as before.  NULL, destroyed and foreign handles are TW_ERROR_HANDLE.
 *            State, scratch, copies of tensors, files and whatever else has a size that the caller names fail
 *            with TW_ERROR_MEMORY.  Small records of a call (names, messages, the plan of a step) come from a
 *            reserve of one megabyte when malloc gives nothing; where that is used up too, or OpenBLAS gets
 *            no memory for its work, the process ends.
 * Numbers    Arithmetic is float32 for f32, f16 and bf16 parameters and float64 for f64 parameters; scalars
 *            and reductions are float64.  Results do not depend on the number of threads.
 * Growth     Structs that start with struct_size may grow at their end: set it to sizeof the struct that you
 *            compiled with; the library reads and writes that much.  Enumerators never change their value.
 *            tw_tensor is frozen at 64 bytes.
 * Overlap    What a step writes shares no byte with anything else that it reads or writes: parameters,
 *            shadows, and gradients with zero_gradients or consume_gradients.  Gradients that are only read
 *            may share memory among themselves, and be broadcast, but not with a parameter.  Two tensors:
 *            TW_ERROR_OVERLAP; elements of one: TW_ERROR_LAYOUT.  Strided views are decided exactly, element
 *            by element; where that would take too long they are refused, and the message says "may".
 * BLAS       OpenBLAS is loaded when a matrix method first needs it, as a copy of this library's own: what
 *            the host sets in its OpenBLAS, and other BLAS libraries of the process, make no difference, and
 *            the host's stays as it was.
 */
#ifndef THALWEG_H
#define THALWEG_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define TW_ABI_VERSION 1

/* The interface version of the library that is running.  Compatible when equal to TW_ABI_VERSION. */
uint32_t tw_abi_version(void);

/* The release, as "major.minor.patch".  Library-owned, constant. */
const char *tw_version(void);

/* How this binary was built: release, instruction set, and the OpenBLAS with its kernels once a method has used it, in words.
 * Library-owned. */
const char *tw_build_info(void);

/* ---- status ------------------------------------------------------------------------------------------- */

typedef int32_t tw_status;

enum {
  TW_OK = 0,
  TW_MORE = 1,               /* tw_optimizer_next: a request is waiting for its answer */
  TW_SKIPPED = 2,            /* the step was refused by its non-finite policy; counted, nothing changed */
  TW_ERROR_INTERNAL = -1,    /* a defect in the library */
  TW_ERROR_MEMORY = -2,      /* an allocation failed */
  TW_ERROR_ARGUMENT = -3,    /* a NULL or otherwise unusable argument */
  TW_ERROR_HANDLE = -4,      /* NULL, destroyed, or another kind of handle */
  TW_ERROR_BUSY = -5,        /* the handle is in use by another thread */
  TW_ERROR_COUNT = -6,       /* a wrong number of tensors */
  TW_ERROR_SYNTAX = -10,     /* the sentence cannot be read, or has more than 65,536 bytes */
  TW_ERROR_METHOD = -11,     /* no such method, or not allowed in this position */
  TW_ERROR_NAME = -12,       /* no such hyper-parameter, group, slot or command */
  TW_ERROR_TYPE = -13,       /* a hyper-parameter of the wrong type */
  TW_ERROR_RANGE = -14,      /* a hyper-parameter out of its range, or a bad combination */
  TW_ERROR_DTYPE = -20,      /* an element type that is unknown or does not fit */
  TW_ERROR_SHAPE = -21,      /* a shape that does not fit, is negative, or overflows */
  TW_ERROR_LAYOUT = -22,     /* misaligned, read-only or self-overlapping memory */
  TW_ERROR_OVERLAP = -23,    /* two tensors share memory */
  TW_ERROR_SEQUENCE = -30,   /* a call out of order: stepping before binding, in evaluation mode, ... */
  TW_ERROR_NEEDS = -31,      /* the method needs something that was not given (a loss, a metric, ...) */
  TW_ERROR_NONFINITE = -40,  /* a NaN or Inf where the policy or the method refuses one */
  TW_ERROR_NUMERIC = -41,    /* a factorisation failed */
  TW_ERROR_FORMAT = -50,     /* a checkpoint that is damaged, truncated or foreign */
  TW_ERROR_VERSION = -51,    /* a checkpoint of a newer version */
  TW_ERROR_MISMATCH = -52,   /* a checkpoint of another sentence, or of other tensors */
  TW_ERROR_FILE = -53,       /* the file cannot be read or written */
  TW_ERROR_SPACE = -54,      /* the caller's buffer is too small; *needed says how much */
  TW_ERROR_UNSUPPORTED = -60 /* not available in this build or for this method */
};

/* The name of a status ("TW_ERROR_SHAPE").  Library-owned, constant; "unknown" for other numbers. */
const char *tw_status_name(tw_status status);

/* The calling thread's last error message; valid until that thread's next failure.  Never NULL. */
const char *tw_last_error(void);

/* ---- tensors ------------------------------------------------------------------------------------------ */

enum { TW_F32 = 1, TW_F64 = 2, TW_F16 = 3, TW_BF16 = 4 };
enum { TW_I32 = 5, TW_I64 = 6 }; /* only for inputs that hold whole numbers: tw_input_info.integer */

enum {
  TW_TENSOR_READ_ONLY = 1, /* the library must not write it (gradients may be; parameters may not) */
  TW_TENSOR_ABSENT = 2     /* no gradient this time, an optional input left out: the tensor is skipped whole */
};

enum { /* what a tensor is, where a method needs more than its shape; 0 when the host does not say */
  TW_ROLE_UNKNOWN = 0,
  TW_ROLE_WEIGHT = 1,
  TW_ROLE_BIAS = 2,
  TW_ROLE_NORM = 3,
  TW_ROLE_EMBEDDING = 4,
  TW_ROLE_HEAD = 5
};

/* A view of memory that somebody else owns.  Strides count elements and may be negative; NULL means dense row-major.
 * ndim 0 is a scalar; a zero in the shape is an empty tensor (data may then be NULL). */
typedef struct tw_tensor {
  void *data;
  int32_t dtype;
  int32_t ndim;
  const int64_t *shape;
  const int64_t *strides;
  uint32_t flags;
  uint32_t role;
  uint64_t reserved[3]; /* zero */
} tw_tensor;

/* Views without the eight fields, for readers of this header (the library exports none of these): role and flags are set
 * behind them.  The shape and strides are borrowed; in C99 they may stand in the call, for the block that it is in:
 *
 *   tw_tensor w = tw_tensor_dense_f32(memory, 2, (int64_t[]){10, 64}); */
static inline tw_tensor tw_tensor_strided(void *data, int32_t dtype, int32_t ndim, const int64_t *shape,
                                          const int64_t *strides) {
  tw_tensor tensor = {NULL, 0, 0, NULL, NULL, 0, 0, {0, 0, 0}};
  tensor.data = data;
  tensor.dtype = dtype;
  tensor.ndim = ndim;
  tensor.shape = shape;
  tensor.strides = strides;
  return tensor;
}
static inline tw_tensor tw_tensor_dense(void *data, int32_t dtype, int32_t ndim, const int64_t *shape) {
  return tw_tensor_strided(data, dtype, ndim, shape, NULL);
}
static inline tw_tensor tw_tensor_dense_f32(float *data, int32_t ndim, const int64_t *shape) {
  return tw_tensor_dense(data, TW_F32, ndim, shape);
}
static inline tw_tensor tw_tensor_dense_f64(double *data, int32_t ndim, const int64_t *shape) {
  return tw_tensor_dense(data, TW_F64, ndim, shape);
}

/* No gradient this time, an input that is left out: the shape of the parameter; any, where an input is left out. */
static inline tw_tensor tw_tensor_absent(int32_t dtype, int32_t ndim, const int64_t *shape) {
  tw_tensor tensor = tw_tensor_dense(NULL, dtype, ndim, shape);
  tensor.flags = TW_TENSOR_ABSENT;
  return tensor;
}

/* ---- the methods: introspection ------------------------------------------------------------------------ */

typedef struct tw_method_info {
  size_t struct_size;
  const char *name;
  const char *kind;       /* "optimizer", "transform", "update", "perturbation", "aggregator", "schedule", "average",
                             "regularizer", "constraint", "objective", "mask", "routing", "weighting",
                             "diagnostic", "solver" */
  const char *summary;    /* one sentence */
  const char *rule;       /* the update rule, several lines */
  const char *source;     /* authors, year, arXiv number */
  const char *sentence;   /* what the name stands for when it is made of other methods, else "" */
  const char *requests;   /* what it asks for besides one gradient a step, comma separated, else "" */
  size_t parameter_count;
  size_t state_count;
  size_t input_count;     /* named tensors that it takes where it is called on its own: see tw_method_input */
  size_t request_count;   /* kinds of request that a solver makes: see tw_method_request */
} tw_method_info;

enum {
  TW_PARAMETER_NUMBER = 1,
  TW_PARAMETER_INTEGER = 2,
  TW_PARAMETER_FLAG = 3,
  TW_PARAMETER_CHOICE = 4,
  TW_PARAMETER_LIST = 5,       /* of numbers; for `join`, of schedules */
  TW_PARAMETER_REGULARIZER = 6,
  TW_PARAMETER_CONSTRAINT = 7,
  TW_PARAMETER_PIPELINE = 8,
  TW_PARAMETER_SCHEDULE = 9    /* a schedule; a TW_PARAMETER_NUMBER that is live takes a schedule too */
};

typedef struct tw_parameter_info {
  size_t struct_size;
  const char *name;
  const char *meaning;
  int32_t type;
  int32_t required;            /* 1 when there is no default */
  int32_t optional;            /* 1 when `none` is a value */
  int32_t min_open;            /* 1 when min itself is excluded */
  int32_t max_open;
  int32_t live;                /* 1 when it may change while running */
  const char *default_text;    /* as it would be written in a sentence; "" when required */
  const char *choices;         /* "a|b|c" for TW_PARAMETER_CHOICE, else "" */
  double min, max;             /* infinities where unbounded */
} tw_parameter_info;

typedef struct tw_state_slot_info {
  size_t struct_size;
  const char *name;
  const char *meaning;
} tw_state_slot_info;

/* A tensor that an objective or a solver takes or gives, or that a regularizer needs besides the weights. */
typedef struct tw_input_info {
  size_t struct_size;
  const char *name;
  const char *meaning;
  const char *shape;           /* "(B, m)": a name is one size wherever it occurs, a leading ... any axes; none may be empty */
  int32_t optional;            /* 1 when it may be left out */
  int32_t integer;             /* 1 when it holds whole numbers: TW_I32, TW_I64, or any other dtype with whole values */
  int32_t differentiable;      /* 1 when the pull-back gives its gradient; otherwise it is held constant */
  int32_t result;              /* 1 when it is no input: only the pull-back writes it; what a solver finds ("()": a number) */
} tw_input_info;

/* A kind of request that a solver makes. */
typedef struct tw_request_info {
  size_t struct_size;
  const char *name;            /* "product" */
  const char *meaning;
  size_t given_count;          /* tensors that it shows: tw_method_request_tensor 0 ... given_count - 1 */
  size_t wanted_count;         /* tensors that the host fills: those behind */
  int32_t takes_nonfinite;     /* 1 when an answer that is infinite or NaN is one like any other; else it ends the run */
} tw_request_info;

/* How many methods there are; they are sorted by name. */
size_t tw_method_count(void);

/* Fills *info for the method at `index`.  TW_ERROR_ARGUMENT when out of range, or info or its struct_size is unusable. */
tw_status tw_method_at(size_t index, tw_method_info *info);

/* The same by name.  TW_ERROR_METHOD, with the nearest name in the message, when there is none. */
tw_status tw_method_find(const char *name, tw_method_info *info);

/* The hyper-parameter at `index` of the method `name`, in the order in which positional arguments are taken. */
tw_status tw_method_parameter(const char *name, size_t index, tw_parameter_info *info);

/* The state slot at `index` of the method `name`. */
tw_status tw_method_state(const char *name, size_t index, tw_state_slot_info *info);

/* The input at `index` of the method `name`, in the order in which arrays of tensors hold them. */
tw_status tw_method_input(const char *name, size_t index, tw_input_info *info);

/* The kind of request at `index` of the solver `name`. */
tw_status tw_method_request(const char *name, size_t index, tw_request_info *info);

/* The tensor at `tensor` of that kind of request: the given ones, then the wanted ones.  "()" is a number, in f64. */
tw_status tw_method_request_tensor(const char *name, size_t index, size_t tensor, tw_input_info *info);

/* ---- optimizers ---------------------------------------------------------------------------------------- */

typedef struct tw_optimizer tw_optimizer;

/* How element-wise moments of f32, f16 and bf16 parameters are stored.  TW_STATE_BF16 and TW_STATE_Q8 round up or down
 * at random so that the mean is right: an average at rate 0.9999 follows its gradients as in f32, where rounding to
 * nearest would leave it standing.  The noise belongs to seed, step, tensor and element: the same bits on any number
 * of threads, and in a run that was resumed.
 *
 *   TW_STATE_BF16  half the memory.  A second moment carries noise of 5 to 8 %; steps are those of f32 in the mean,
 *                  within 2 %.
 *   TW_STATE_Q8    a quarter, 256 numbers sharing one scale.  Second moments carry noise of 15 to 20 %; steps are
 *                  those of f32 in the mean, within 3 % (adadelta, whose step is a quotient of two averages: 10 %).
 *                  Not for averages of signed gradients at rates above 0.99 (a momentum of 0.999, the slow average of
 *                  ademamix): noise drowns what is left of a gradient that changes its sign.  Tensors of fewer than
 *                  4,096 elements keep f32. */
enum { TW_STATE_F32 = 1, TW_STATE_BF16 = 2, TW_STATE_Q8 = 3 };
enum { TW_MASTER_NONE = 0, TW_MASTER_F32 = 1, TW_MASTER_STOCHASTIC = 2 };
enum { TW_NONFINITE_PROPAGATE = 0, TW_NONFINITE_SKIP = 1, TW_NONFINITE_ERROR = 2 };

/* What belongs to the optimizer as a whole and to no method. */
typedef struct tw_options {
  size_t struct_size;
  int32_t state_dtype;       /* how element-wise moments are stored: TW_STATE_*; f64 parameters always keep f64 */
  int32_t master;            /* for 16-bit parameters: TW_MASTER_* */
  int32_t nonfinite;         /* what a NaN or Inf in a gradient does: TW_NONFINITE_* */
  int32_t maximize;          /* 1: ascend */
  int32_t zero_gradients;    /* 1: gradients are set to zero in the same pass */
  int32_t consume_gradients; /* 1: gradients may be used as scratch, and hold rubbish afterwards */
  double gradient_scale;     /* gradients are multiplied by it: 1 / loss scale */
  uint64_t seed;             /* of every random draw */
} tw_options;

/* Fills *options with the defaults (f32 state, no master copies, propagate, scale 1, seed 0) and its struct_size, which is
 * sizeof(tw_options) as the caller compiled it. */
tw_status tw_options_init(tw_options *options, size_t struct_size);

/* Reads the sentence and creates an optimizer without parameters.  `options` may be NULL.
 * TW_ERROR_SYNTAX, _METHOD, _NAME, _TYPE, _RANGE: the message shows the sentence, a caret and the nearest name. */
tw_status tw_optimizer_create(const char *sentence, const tw_options *options, tw_optimizer **out);

/* Releases the optimizer and its state; a step between two requests is cancelled first, so the bound memory must still be there.
 * TW_ERROR_HANDLE for NULL and for a handle that is gone already. */
tw_status tw_optimizer_destroy(tw_optimizer *optimizer);

/* Binds `count` parameter tensors behind those already bound.  `names` (one each, unique) and `group` may be NULL; NULL
 * and "" are the default group.  A new group starts with the values and schedules of the sentence, and with what was set
 * for all groups since.  State is allocated by the first step, and what starts at a parameter starts at its weights as they
 * are at its first step: saving, reading or describing state before fixes nothing.
 *
 * Between steps the host may write the parameters (load weights, clip them, reset a layer); the next step goes on from
 * what it finds.  f32 master copies take over every element that is not their rounded value.  State that the next
 * parameters are made of (schedule-free iterates, lookahead's slow weights, the starting point of dog and prodigy, the
 * dense tensor behind a mask) starts anew there, for each changed element and at most 31 others of its block of 4,096;
 * averages that only watch (ema, swa) go on.
 *
 * TW_ERROR_DTYPE, _SHAPE, _LAYOUT, _OVERLAP name the tensor that does not fit; TW_ERROR_ARGUMENT: the groups would differ
 * in a value that is one for all (`sam` has a rho for each group, `clip_global_norm` one norm for all). */
tw_status tw_optimizer_add_parameters(tw_optimizer *optimizer, const tw_tensor *parameters, size_t count,
                                      const char *const *names, const char *group);

/* The same, with hyper-parameters of the group's own: `value_count` paths and values as for tw_optimizer_set_texts.  When a
 * tensor or a value is refused, nothing is bound and nothing changes. */
tw_status tw_optimizer_add_group(tw_optimizer *optimizer, const tw_tensor *parameters, size_t count, const char *const *names,
                                 const char *group, const char *const *paths, const char *const *values,
                                 size_t value_count);

/* Moves the bound parameters to other memory of the same shapes and dtypes (count = all of them); state is kept.
 * TW_ERROR_OVERLAP when that is memory of bound gradients or shadows. */
tw_status tw_optimizer_rebind_parameters(tw_optimizer *optimizer, const tw_tensor *parameters, size_t count);

/* Binds the gradients, one for each parameter in order; they are read (and with zero_gradients or consume_gradients
 * written) at every step.  TW_ERROR_OVERLAP, _LAYOUT: see Overlap, at the top; what was bound stays bound. */
tw_status tw_optimizer_bind_gradients(tw_optimizer *optimizer, const tw_tensor *gradients, size_t count);

/* One tensor of one dimension, `count` numbers at `data`, without a shape or a view to write down (inline, as the views):
 *
 *   tw_optimizer_add_dense_f32(optimizer, w, n);  tw_optimizer_bind_dense_f32(optimizer, g, n);
 *
 * _add_dense binds a parameter behind those already bound, without a name, in the default group, as
 * tw_optimizer_add_parameters does.  _bind_dense binds the gradient of an optimizer that has one parameter, of one dimension,
 * as tw_optimizer_bind_gradients does: TW_ERROR_COUNT with more.  For matrix methods, which want to see rows and columns,
 * there are tw_tensor_dense and the two functions above. */
static inline tw_status tw_optimizer_add_dense(tw_optimizer *optimizer, void *data, int32_t dtype, size_t count) {
  const int64_t length = (int64_t)count;
  const tw_tensor parameter = tw_tensor_dense(data, dtype, 1, &length);
  return tw_optimizer_add_parameters(optimizer, &parameter, 1, NULL, NULL);
}
static inline tw_status tw_optimizer_add_dense_f32(tw_optimizer *optimizer, float *data, size_t count) {
  return tw_optimizer_add_dense(optimizer, data, TW_F32, count);
}
static inline tw_status tw_optimizer_add_dense_f64(tw_optimizer *optimizer, double *data, size_t count) {
  return tw_optimizer_add_dense(optimizer, data, TW_F64, count);
}
static inline tw_status tw_optimizer_bind_dense(tw_optimizer *optimizer, void *data, int32_t dtype, size_t count) {
  const int64_t length = (int64_t)count;
  const tw_tensor gradient = tw_tensor_dense(data, dtype, 1, &length);
  return tw_optimizer_bind_gradients(optimizer, &gradient, 1);
}
static inline tw_status tw_optimizer_bind_dense_f32(tw_optimizer *optimizer, float *data, size_t count) {
  return tw_optimizer_bind_dense(optimizer, data, TW_F32, count);
}
static inline tw_status tw_optimizer_bind_dense_f64(tw_optimizer *optimizer, double *data, size_t count) {
  return tw_optimizer_bind_dense(optimizer, data, TW_F64, count);
}

/* Binds 16-bit tensors that receive a rounded copy of the parameters in the same pass; count 0 unbinds.  They share memory with
 * nothing: TW_ERROR_OVERLAP, _LAYOUT. */
tw_status tw_optimizer_bind_shadow(tw_optimizer *optimizer, const tw_tensor *shadows, size_t count);

size_t tw_optimizer_parameter_count(tw_optimizer *optimizer);

/* One whole step with the bound gradients.  For pipelines that need one gradient a step; others: TW_ERROR_NEEDS.
 * TW_SKIPPED when the non-finite policy refused the step. */
tw_status tw_optimizer_step(tw_optimizer *optimizer);

/* bind_gradients and step in one call. */
tw_status tw_optimizer_step_with(tw_optimizer *optimizer, const tw_tensor *gradients, size_t count);

/* ---- state that the host carries ----
 *
 * One step as a function: all that a run remembers lies in the host's memory, and the optimizer only knows the rule.  For
 * compilers of arrays (XLA), which own every buffer, move it between calls and may run a step twice; one optimizer then serves
 * many runs.  For pipelines that need one gradient a step. */
typedef struct tw_carried {
  size_t struct_size;
  size_t count;                /* of parameters */
  void *const *parameters;     /* one each: dense, in C order, as they were bound; stepped in place */
  void *const *gradients;      /* the same, of the parameters' dtype, only read; NULL: absent this time */
  void *const *state;          /* one buffer a row of tw_optimizer_state_at, of its `bytes`; stepped in place */
  size_t state_count;
  double *numbers;             /* counters, scalars, what schedules remember; all 0 begins a run, whatever `state` holds */
  size_t number_count;         /* tw_optimizer_carried_numbers */
  const char *const *observed; /* what tw_optimizer_observe would be told before the step; may be NULL when there are none */
  const double *values;
  size_t observed_count;
  int32_t mode;                /* TW_MODE_TRAIN: a step; TW_MODE_EVAL: the parameters become the evaluation weights, and nothing
                                  else changes; the training weights are the host's to keep */
} tw_carried;

/* How many numbers a run carries, once all parameters are bound; 0 with an error message for a bad handle, and for a sentence
 * that asks for more than one gradient a step. */
size_t tw_optimizer_carried_numbers(tw_optimizer *optimizer);

/* Steps so.  What the host writes into parameters between steps is not looked for: state that the next parameters are made of
 * goes on as it was.  Hyper-parameters are those of the optimizer (tw_optimizer_set_number), not of the run.  The first call
 * decides: an optimizer that has state of its own refuses (TW_ERROR_SEQUENCE), and one that has stepped so refuses the others
 * (steps, requests, saving, evaluation mode).
 * TW_SKIPPED when the non-finite policy refused the step.  TW_ERROR_LAYOUT, _OVERLAP: a buffer is not aligned to its elements,
 * or shares memory with another; TW_ERROR_NEEDS: the sentence asks for more than one gradient.  After an error parameters and
 * numbers are as before, and so is the state of a run that has begun. */
tw_status tw_optimizer_step_carried(tw_optimizer *optimizer, const tw_carried *carried);

enum {
  TW_REQUEST_NONE = 0,
  TW_REQUEST_GRADIENT = 1,          /* the gradient at the parameters as they stand now */
  TW_REQUEST_LOSS = 2,              /* the loss there, into `loss` */
  TW_REQUEST_LOSS_AND_GRADIENT = 3,
  TW_REQUEST_HESSIAN_VECTOR = 4,    /* the Hessian there times `probe` */
  TW_REQUEST_TASK_GRADIENT = 5,     /* the gradient of task `index` of `count` */
  TW_REQUEST_PREVIOUS_GRADIENT = 6, /* the gradient of this minibatch at the previous parameters (they stand there now) */
  TW_REQUEST_LOGIT_DERIVATIVES = 7, /* derivatives of the logits along `probe`: see tw_optimizer_answer_matrix */
  TW_REQUEST_ACTIVATIONS = 8,       /* of the layer whose weight is parameter `index`: inputs, and the gradient at its
                                       pre-activations: see tw_optimizer_answer_matrix */
  TW_REQUEST_SAMPLE_GRADIENTS = 9,  /* the gradients of every sample of part `index` of `count` of the minibatch: see
                                       tw_optimizer_answer_samples */
  TW_REQUEST_PARTICIPANT = 10       /* the parameters of participant `index` of `count`, into the bound gradients */
};

/* What a method needs now.  The parameters stand where the answer is wanted.  Equal tags mean: the same minibatch, the
 * same dropout; tags of one step may come back after others (A B A B: both gradients of sam over two minibatches), those of
 * other steps never do.  How many requests a step makes depends on the sentence and may depend on the answers; `pass` counts
 * them.  `probe` is library-owned and valid until the next call, zero for tensors of other pipelines of a route; the answer
 * goes into the bound gradients. */
typedef struct tw_request {
  size_t struct_size;
  int32_t kind;
  int32_t pass;              /* 0, 1, ... within one step */
  uint64_t tag;
  int64_t index, count;      /* of the task and how many, for TASK_GRADIENT (PARTICIPANT, SAMPLE_GRADIENTS: the same of those);
                                the parameter and how many are asked for, for ACTIVATIONS */
  double loss;               /* in: the host's answer to a LOSS request */
  const tw_tensor *probe;    /* `probe_count` tensors shaped like the parameters, for HESSIAN_VECTOR and LOGIT_DERIVATIVES */
  size_t probe_count;
  int32_t gradients_stay;    /* in: not 0 where the gradients that are bound now stay as and where they are until the step has ended
                                (other answers bind other memory): what combines several gradients then reads them there, where they
                                are dense and of the compute type, and need not copy them.  Set anew for every answer. */
} tw_request;

/* Reverse communication.  The first call of a step asks (TW_MORE, *request says for what); the host fills the bound gradients
 * and request->loss and calls again, until TW_OK (or TW_SKIPPED) says that the step is done.  Where a stage needs the loss and
 * the method's own first request does not bring it, a LOSS request comes first.  A tensor that has a gradient at the first
 * request has one at every further one: TW_ERROR_SEQUENCE otherwise.
 * An error ends the step: parameters and state are those from before it, whatever is bound by then. */
tw_status tw_optimizer_next(tw_optimizer *optimizer, tw_request *request);

/* Fills *request with the one that waits for its answer (TW_MORE), or with none (TW_OK): what to go on with after loading
 * a state that was saved inside a step.  The parameters then go where that request wants them, at the first call of this,
 * of bind_gradients or of next; nothing else changes. */
tw_status tw_optimizer_waiting(tw_optimizer *optimizer, tw_request *request);

/* Ends a step between two requests: parameters and state are those from before it. */
tw_status tw_optimizer_cancel(tw_optimizer *optimizer);

/* What a rank holds: some of the tensors, each whole; or a part of every tensor, bound in the same order on all ranks. */
enum { TW_SHARDS_TENSORS = 1, TW_SHARDS_ELEMENTS = 2 };
/* The same with the number of this rank, from 0 to 16383: its random draws (noise, probes) then differ from those of the
 * other ranks, as they would between tensors of one process. */
#define TW_SHARDS_OF_RANK(shards, rank) ((int32_t)((shards) | (int32_t)(rank) << 8))

/* Adds `sums` over all ranks, and takes the largest of `maxima`, in place and to the same numbers on each of them.  Called by
 * the thread that steps, in the same order on all ranks; a negative status ends the step, with nothing changed. */
typedef tw_status (*tw_reducer)(void *context, double *sums, size_t sum_count, double *maxima, size_t maximum_count);

/* Spreads a model over processes: norms, dot products and counts (clipping, lamb, dog, prodigy, sam) are then those of the
 * whole, and all ranks skip a step or none does.  Ranks step together, with the same sentence and the same settings; which
 * tensors have gradients must agree.  With TW_SHARDS_ELEMENTS sentences with whole-tensor stages are TW_ERROR_UNSUPPORTED.
 * Random draws want TW_SHARDS_OF_RANK: without it the first tensor of every rank gets the same noise.  Where something has
 * changed before the last sum, steps keep copies of it.  NULL ends it.  A copy of the optimizer has no reducer. */
tw_status tw_optimizer_set_reducer(tw_optimizer *optimizer, tw_reducer reducer, void *context, int32_t shards);

/* What a kind of request (TW_REQUEST_GRADIENT ...) shows and wants, by name: "hessian_vector" shows `probe` and wants `products`.
 * Where a shape is "(...)" there is one tensor for each parameter, of its shape. */
tw_status tw_request_kind(int32_t kind, tw_request_info *info);
tw_status tw_request_kind_tensor(int32_t kind, size_t tensor, tw_input_info *info);

/* Answers the request that waits by these names: tensors[i] is of names[i], and those of one name stand in a row, in the order of
 * the parameters; `loss` is a tensor of one number, and takes the place of request->loss.  Gradients and what goes in their place
 * are bound, as tw_optimizer_bind_gradients does; other answers are read before the call returns.  The step goes on with
 * tw_optimizer_next.  TW_ERROR_SEQUENCE when no request waits, TW_ERROR_ARGUMENT for a name that it does not want, TW_ERROR_NEEDS
 * for one that is missing: the request still waits. */
tw_status tw_optimizer_answer(tw_optimizer *optimizer, const char *const *names, const tw_tensor *tensors, size_t count);

/* Answers a request for matrices, of two axes, f32, f64, f16 or bf16; they are read before the call returns.  The gradients
 * stay bound meanwhile; what they hold does not matter.
 *   LOGIT_DERIVATIVES  first (samples, classes): the derivatives of the logits along `probe`, of the layers as they are when
 *                      they are evaluated (no dropout, fixed batch statistics); second (samples, classes): the logits, or NULL.
 *                      One column is the logit of a sigmoid.  A host without forward-mode derivatives passes first = NULL and
 *                      the logits: the same request comes once more, with the parameters a little along the probe, and takes
 *                      the logits of the same samples there.
 *   ACTIVATIONS        first (rows, in): the inputs of the layer; second (rows, out): the gradient of the loss at its
 *                      pre-activations, scaled as the other gradients are.  The weight is (out, in); of (out, in, kh, kw) it
 *                      is (out, in*kh*kw), and the rows are the patches of all samples and positions.
 * TW_ERROR_SEQUENCE when no such request waits; TW_ERROR_SHAPE, _ARGUMENT: the request still waits. */
tw_status tw_optimizer_answer_matrix(tw_optimizer *optimizer, const tw_tensor *first, const tw_tensor *second);

/* Answers a request for the gradients of samples: one tensor for each parameter, in the order of binding, with the shape
 * (samples, shape of the parameter...), read before the call returns; TW_TENSOR_ABSENT for parameters that are marked absent.
 * There may be no samples (a first axis of 0).  They are scaled as the other gradients are.  Gradients need not be bound.
 * TW_ERROR_SEQUENCE when no such request waits, or for missing samples of a parameter that takes part; TW_ERROR_SHAPE,
 * _ARGUMENT: the request still waits. */
tw_status tw_optimizer_answer_samples(tw_optimizer *optimizer, const tw_tensor *gradients, size_t count);

/* Tells the pipeline a number that it watches: "loss" (Polyak steps), "metric" (reduce_on_plateau), "batch_size", ...  What a step
 * looks at (the loss, a sample, weights) counts for the next step, taken, skipped or refused, and is saved until then. */
tw_status tw_optimizer_observe(tw_optimizer *optimizer, const char *what, double value);

/* Runs a command of a stage, written "stage.command": "gradient_accumulate.flush", "wsd.begin_decay". */
tw_status tw_optimizer_command(tw_optimizer *optimizer, const char *command);

enum { TW_MODE_TRAIN = 0, TW_MODE_EVAL = 1 };

/* EVAL writes the evaluation weights (averages, schedule-free iterates; the parameters themselves where there are none) into the
 * parameters; TRAIN puts the training weights back, bit for bit.  Stepping in EVAL mode is TW_ERROR_SEQUENCE. */
tw_status tw_optimizer_set_mode(tw_optimizer *optimizer, int32_t mode);

/* Reads a hyper-parameter or a measured value.  Paths: "adamw.lr"; "lr" when only one stage has it; "adamw#1.lr" for the second
 * stage of that name; "steps", "skipped", "gradient_scale", "training" (1, or 0 in evaluation mode) for the optimizer;
 * "clip_global_norm.norm" for what a stage measured.  `group` NULL and "" read the default group.  A scheduled value is the one
 * of the next step. */
tw_status tw_optimizer_get_number(tw_optimizer *optimizer, const char *group, const char *path, double *out);

/* Changes a hyper-parameter while running: for one group ("": the default group), or with NULL for all and for those that
 * are added later; ranges are checked.  Replaces a schedule.  All or nothing: what one group refuses is set for none.
 * TW_ERROR_ARGUMENT: one value serves all groups, and another group is there. */
tw_status tw_optimizer_set_number(tw_optimizer *optimizer, const char *group, const char *path, double value);

/* The same with a value as it is written in a sentence: "cosine(lr=0.1, total=1000)", "true", "mean", "[1, 2]". */
tw_status tw_optimizer_set_text(tw_optimizer *optimizer, const char *group, const char *path, const char *value);

/* Changes several at once: all of them, or none when one is refused.  They are taken in whatever order they fit, so that values
 * that are right only together may come in any order. */
tw_status tw_optimizer_set_texts(tw_optimizer *optimizer, const char *group, const char *const *paths,
                                 const char *const *values, size_t count);

/* The value as it would be written in a sentence. */
tw_status tw_optimizer_get_text(tw_optimizer *optimizer, const char *group, const char *path, char *buffer, size_t capacity,
                                size_t *needed);

/* The whole pipeline as a sentence, with every hyper-parameter. */
tw_status tw_optimizer_sentence(tw_optimizer *optimizer, char *buffer, size_t capacity, size_t *needed);

typedef struct tw_state_info {
  size_t struct_size;
  const char *stage;      /* "adamw" */
  const char *slot;       /* "exp_avg" */
  size_t parameter;       /* index of the tensor it belongs to; SIZE_MAX for the whole group */
  int64_t count;          /* elements */
  size_t bytes;           /* as stored */
  int32_t storage;        /* TW_STATE_*, or 0 for f64 */
} tw_state_info;

/* The state, one row a slot and tensor; known before it is allocated. */
size_t tw_optimizer_state_count(tw_optimizer *optimizer);
tw_status tw_optimizer_state_at(tw_optimizer *optimizer, size_t index, tw_state_info *info);

/* Bytes that steps have asked the system for beside the state, and keep for those to come: from the third step on with the same
 * tensors, they ask for none. What is large of it and not in use goes back where TW_MODE_EVAL is set.  A handle that steps takes
 * 1 MB of address space, of which it uses what it needs; beyond 16,384 such handles and large blocks malloc serves, as it does in
 * processes with AddressSanitizer, and this is 0. */
size_t tw_optimizer_scratch(tw_optimizer *optimizer);

/* Copies the state at `index`, widened to f64, into `out` (count elements). */
tw_status tw_optimizer_state_read(tw_optimizer *optimizer, size_t index, double *out, size_t count);

/* Writes the whole state (safetensors layout) into `buffer`.  With capacity 0 only *needed is set (TW_OK).
 *
 * It holds all that decides the future of the run: state, counters and scalars by the name of their tensor,
 * hyper-parameters, schedules and their memories of every group, what was observed for the next step, gradient_scale, the
 * mode (and in EVAL mode the training weights), between two requests also what that step needs.  Not in it: the
 * parameters, and the other options of creation. */
tw_status tw_optimizer_save(tw_optimizer *optimizer, void *buffer, size_t capacity, size_t *needed);

/* Reads what save wrote, of this or an older version; the tensors are found by name, in whatever order they are bound,
 * the groups by name or else by position.  After a file of EVAL mode the optimizer is in EVAL mode, and TRAIN writes the
 * training weights.  TW_ERROR_SEQUENCE within a step and in EVAL mode; TW_ERROR_FORMAT, _VERSION, _MISMATCH leave the
 * optimizer as it was. */
tw_status tw_optimizer_load(tw_optimizer *optimizer, const void *data, size_t size);

/* The same to and from a regular file; anything else (a pipe, a device, a folder) is TW_ERROR_FILE at once.  Writing is atomic: into a
 * file of a name of its own in the same folder, synced, renamed.  Whoever reads meanwhile finds the old file or the new one, several
 * writers do not mix, a symbolic link stays and its target is replaced, with the permissions that it had. */
tw_status tw_optimizer_save_file(tw_optimizer *optimizer, const char *path);
tw_status tw_optimizer_load_file(tw_optimizer *optimizer, const char *path);

/* ---- regularizers --------------------------------------------------------------------------------------- */

typedef struct tw_regularizer tw_regularizer;

/* From one stage, as "group_lasso(1e-3, axis=row)". */
tw_status tw_regularizer_create(const char *sentence, tw_regularizer **out);
tw_status tw_regularizer_destroy(tw_regularizer *regularizer);

/* The penalty at w, its weight included.  TW_ERROR_NEEDS where it takes further inputs. */
tw_status tw_regularizer_value(tw_regularizer *regularizer, const tw_tensor *w, double *out);

/* g += scale * gradient at w (w and g of one shape). */
tw_status tw_regularizer_gradient(tw_regularizer *regularizer, const tw_tensor *w, double scale, const tw_tensor *g);

/* The same two for a regularizer that needs more than the weights: `inputs` are the tensors of tw_method_input in order, the weights
 * first, `count` of them; g has the shape of the weights.  One that declares no inputs takes the weights alone (count 1).
 * TW_ERROR_NEEDS names an input that is missing, TW_ERROR_SHAPE an axis that does not fit. */
tw_status tw_regularizer_value_with(tw_regularizer *regularizer, const tw_tensor *inputs, size_t count, double *out);
tw_status tw_regularizer_gradient_with(tw_regularizer *regularizer, const tw_tensor *inputs, size_t count, double scale,
                                       const tw_tensor *g);

/* w <- argmin_u 1/2 |u - w|^2 + t * penalty(u), in place; t >= 0.  TW_ERROR_UNSUPPORTED where there is no prox. */
tw_status tw_regularizer_prox(tw_regularizer *regularizer, const tw_tensor *w, double t);

/* The same with a step for each element, `steps` of the shape of w, each finite and at least 0:
 * w <- argmin_u sum_i (u_i - w_i)^2 / (2 steps_i) + penalty(u).  TW_ERROR_UNSUPPORTED where elements depend on one another. */
tw_status tw_regularizer_prox_steps(tw_regularizer *regularizer, const tw_tensor *w, const tw_tensor *steps);

/* ---- constraints ---------------------------------------------------------------------------------------- */

typedef struct tw_constraint tw_constraint;

tw_status tw_constraint_create(const char *sentence, tw_constraint **out);
tw_status tw_constraint_destroy(tw_constraint *constraint);

/* w <- the nearest point of the set, in place. */
tw_status tw_constraint_project(tw_constraint *constraint, const tw_tensor *w);

/* The geometry of a manifold; of other sets TW_ERROR_UNSUPPORTED.  All tensors of a call have one shape.  Nothing here looks whether w
 * and y are points and u and v tangents at w: tw_constraint_check_point and _check_tangent do. */

/* g <- the Riemannian gradient of the Euclidean gradient g at w (egrad2rgrad). */
tw_status tw_constraint_tangent(tw_constraint *constraint, const tw_tensor *w, const tw_tensor *g);

/* u <- the tangent part of any vector u at w. */
tw_status tw_constraint_project_tangent(tw_constraint *constraint, const tw_tensor *w, const tw_tensor *u);

/* w <- the point of the manifold that the tangent step u leads to, by the retraction that the sentence names. */
tw_status tw_constraint_retract(tw_constraint *constraint, const tw_tensor *w, const tw_tensor *u);

/* w <- the point that the geodesic along u leads to; u <- the tangent at w that leads to y in this way.  TW_ERROR_UNSUPPORTED where
 * there is no closed form. */
tw_status tw_constraint_exp(tw_constraint *constraint, const tw_tensor *w, const tw_tensor *u);
tw_status tw_constraint_log(tw_constraint *constraint, const tw_tensor *w, const tw_tensor *y, const tw_tensor *u);

/* u, a tangent at w <- what it becomes at y: by parallel transport (sphere, spd, lorentz, poincare_ball, euclidean), or its tangent
 * part there. */
tw_status tw_constraint_transport(tw_constraint *constraint, const tw_tensor *w, const tw_tensor *y, const tw_tensor *u);

/* A tensor may hold several points: the rows of `oblique`, the lines along the last axis of `poincare_ball` and `lorentz`, every
 * element of `euclidean`.  Its first `axes` axes number them; there are `count`.  Either may be NULL. */
tw_status tw_constraint_points(tw_constraint *constraint, const tw_tensor *w, size_t *axes, size_t *count);

/* One number a point, in `out`, which has room for `capacity` (TW_ERROR_SPACE): <u, v> in the metric at w; the distance of w and y
 * (TW_ERROR_UNSUPPORTED where there is no closed form); how far w is from where tw_constraint_project puts it, 0 for points to
 * rounding; how long the part of u is that is not tangent at w. */
tw_status tw_constraint_inner(tw_constraint *constraint, const tw_tensor *w, const tw_tensor *u, const tw_tensor *v, double *out,
                              size_t capacity);
tw_status tw_constraint_distance(tw_constraint *constraint, const tw_tensor *w, const tw_tensor *y, double *out, size_t capacity);
tw_status tw_constraint_check_point(tw_constraint *constraint, const tw_tensor *w, double *out, size_t capacity);
tw_status tw_constraint_check_tangent(tw_constraint *constraint, const tw_tensor *w, const tw_tensor *u, double *out,
                                      size_t capacity);

/* s <- a point of the set that minimises <g, s> (linear minimisation oracle); s and g of one shape. */
tw_status tw_constraint_lmo(tw_constraint *constraint, const tw_tensor *g, const tw_tensor *s);

/* ---- objectives ----------------------------------------------------------------------------------------- */

/* A scalar function of named tensors, in two calls: the forward pass gives the value, the pull-back the gradients.
 * Arithmetic is float64 when an input is f64, else float32; the inputs may differ in dtype, and so may the
 * gradients. */
typedef struct tw_objective tw_objective;

/* What a forward pass keeps for its pull-backs.  It holds copies: the inputs may change or go as soon as the forward
 * pass returns.  A cache serves any number of pull-backs of the objective that filled it; the next forward pass
 * fills it anew. */
typedef struct tw_cache tw_cache;

/* From one stage, as "checkered_regression".  A weighting (losses in, weights out) and a diagnostic (tensors in, numbers
 * out) are called the same way: what they give besides the value are their results, which the pull-back writes.
 * Some remember what earlier forward passes saw (dwa: the losses before); each forward pass that succeeds counts.
 * Of an objective of the losses of tasks (stch, uncertainty_weighting, imtl_l) the gradient for `losses` are the weights.
 *
 * Also from an aggregator that combines the gradients of tasks ("cagrad(c=0.5)"): its inputs are `J` (tasks, n), one task
 * a row, and `losses` (tasks) where it looks at them; the value is the length of the combined gradient; the results are
 * `gradient` (n), and, where it has such, `weights` (tasks), `residual` and `iterations` (TW_ERROR_NEEDS where it has
 * none).  The number of tasks is that of the rows, unless the sentence says it (then TW_ERROR_COUNT for others); the
 * shape of J is the same in all calls.  TW_ERROR_NONFINITE names a task whose gradient has a NaN. */
tw_status tw_objective_create(const char *sentence, tw_objective **out);
tw_status tw_objective_destroy(tw_objective *objective);

/* An empty cache, for any objective. */
tw_status tw_cache_create(tw_cache **out);
tw_status tw_cache_destroy(tw_cache *cache);

/* value <- the objective at `inputs`: the tensors of tw_method_input in order, `count` of them.  An optional one, or
 * a result, is marked TW_TENSOR_ABSENT (nothing else of it is read), or stands behind the last and is not counted.
 * Inputs are read only and may share memory.  `cache` NULL: the value alone.  A value that is infinite or NaN is
 * returned as such.  TW_ERROR_NEEDS names an input that is missing, TW_ERROR_SHAPE an axis that is empty or does not
 * fit, TW_ERROR_DTYPE whole numbers in place of real ones, TW_ERROR_RANGE a label that is none.  After an error the
 * cache is as before.  Both handles are in use meanwhile. */
tw_status tw_objective_forward(tw_objective *objective, const tw_tensor *inputs, size_t count, tw_cache *cache, double *value);

/* gradients[i] += upstream * derivative of the value by input i, at the inputs of the forward pass that filled the
 * cache; a result receives what it stands for, times upstream.  The array is in the order of tw_method_input; what
 * is marked TW_TENSOR_ABSENT, or not counted at the end, is not wanted and not computed.  The gradients must not
 * share memory with each other.  Both handles are in use meanwhile.  TW_ERROR_SEQUENCE: the cache is empty;
 * TW_ERROR_MISMATCH: another objective filled it; TW_ERROR_ARGUMENT: an input that is held constant; TW_ERROR_NEEDS:
 * a gradient or a result whose optional inputs were left out; TW_ERROR_NONFINITE: the value is infinite or NaN. */
tw_status tw_objective_pullback(tw_objective *objective, tw_cache *cache, double upstream, const tw_tensor *gradients,
                                size_t count);

/* What the objective remembers of its forward passes, as bytes: writes them to the buffer and their number to *needed
 * (may be NULL); a capacity of 0 only asks for the number.  TW_ERROR_SPACE: the buffer is too small. */
tw_status tw_objective_save(tw_objective *objective, void *buffer, size_t capacity, size_t *needed);

/* Takes it up again, in an objective of the same sentence.  TW_ERROR_FORMAT: damaged bytes; TW_ERROR_MISMATCH: those
 * of another objective.  On an error nothing is changed. */
tw_status tw_objective_load(tw_objective *objective, const void *data, size_t size);

/* ---- solvers -------------------------------------------------------------------------------------------- */

/* A method that runs on its own, from named tensors to named results, and may ask the host on its way: a linear solver, a
 * line search, a spectrum, a bilevel method.
 *
 *   tw_solver_create("cg(rtol=1e-8)", &solver);
 *   tw_solver_begin(solver, &b, 1);
 *   while ((status = tw_solver_next(solver, &request)) == TW_MORE)    // request.name is "product"
 *     multiply(a, request.given[0].data, request.wanted[0].data);
 *   tw_solver_tensor(solver, "x", &x);                                // request.outcome says how it ended
 *
 * Arithmetic is float64 when an input is f64 or none is a tensor, else float32; numbers (tensors without axes) are float64
 * always.  The tensors of a solver are its own, dense, and stay where they are until the next run; numbers are tensors of ndim 0. */
typedef struct tw_solver tw_solver;

enum { /* how a run ended */
  TW_SOLVER_RUNNING = 0,
  TW_SOLVER_CONVERGED = 1,
  TW_SOLVER_MAX_ITER = 2,
  TW_SOLVER_NEGATIVE_CURVATURE = 3,
  TW_SOLVER_INFEASIBLE = 4,
  TW_SOLVER_LINE_SEARCH_FAILED = 5,
  TW_SOLVER_NONFINITE = 6,   /* an answer or an input was infinite or NaN: the results are those from before it */
  TW_SOLVER_DIVERGED = 7
};

/* What a solver needs now.  Equal tags mean: the same minibatch, the same dropout; another tag means another sample. */
typedef struct tw_solver_request {
  size_t struct_size;
  int32_t kind;              /* index of tw_method_request; -1 when the run has ended */
  int32_t outcome;           /* TW_SOLVER_* */
  const char *name;          /* "product"; "" when the run has ended */
  const char *outcome_name;  /* "converged"; "" while it runs */
  uint64_t tag;
  const tw_tensor *given;    /* read-only, in the order of tw_method_request_tensor; valid until the next call of begin, */
  size_t given_count;        /* next or load */
  const tw_tensor *wanted;   /* what the host fills, in place; it holds rubbish before */
  size_t wanted_count;
} tw_solver_request;

/* From one stage, as "cg(rtol=1e-8)". */
tw_status tw_solver_create(const char *sentence, tw_solver **out);
tw_status tw_solver_destroy(tw_solver *solver);

/* A second solver that stands where this one stands, and goes on by itself. */
tw_status tw_solver_copy(tw_solver *solver, tw_solver **out);

/* Starts a run (and drops the one before) from the tensors of tw_method_input, in order, `count` of them; they are copied.
 * An optional one, or a result, is marked TW_TENSOR_ABSENT, or stands behind the last and is not counted.  Errors are those
 * of tw_objective_forward, and leave the run before as it was. */
tw_status tw_solver_begin(tw_solver *solver, const tw_tensor *inputs, size_t count);

/* Takes the answer to the request before, if there was one, and goes on: TW_MORE with the next request, or TW_OK when the
 * run has ended (then again and again).  A number that is not filled is NaN.  TW_ERROR_SEQUENCE: no run has begun.  Other
 * errors end the run: begin another. */
tw_status tw_solver_next(tw_solver *solver, tw_solver_request *request);

/* Fills *request with the one that waits for its answer (TW_MORE), or with none (TW_OK): what to go on with after load. */
tw_status tw_solver_waiting(tw_solver *solver, tw_solver_request *request);

/* A tensor of the solver by name: what the waiting request wants; else a result as it stands now, what is kept
 * (tw_method_state), or the copy of an input; else what the request shows.  Read-only, unless a request wants it.  The tensor's shape is valid until the
 * next call with this solver, its data until the next begin or load.  TW_ERROR_NAME, TW_ERROR_SEQUENCE. */
tw_status tw_solver_tensor(tw_solver *solver, const char *name, tw_tensor *tensor);

/* The same for a number. */
tw_status tw_solver_number(tw_solver *solver, const char *name, double *out);

/* Writes the run (safetensors layout) into `buffer`, inputs and all: it can be taken up at the request that waits, in a
 * solver of the same sentence, with the same bits.  With capacity 0 only *needed is set. */
tw_status tw_solver_save(tw_solver *solver, void *buffer, size_t capacity, size_t *needed);

/* Takes up what save wrote; tw_solver_waiting then tells the request.  TW_ERROR_FORMAT, _VERSION, _MISMATCH leave the run as
 * it was. */
tw_status tw_solver_load(tw_solver *solver, const void *data, size_t size);

/* ---- schedules ------------------------------------------------------------------------------------------ */

typedef struct tw_schedule tw_schedule;

tw_status tw_schedule_create(const char *sentence, tw_schedule **out);
tw_status tw_schedule_destroy(tw_schedule *schedule);

/* The value at a step, counted from 0.  TW_ERROR_RANGE for a negative step and from 2^53 on. */
tw_status tw_schedule_value(tw_schedule *schedule, int64_t step, double *out);

/* Tells a schedule that watches the run what it watches: "metric", "loss", "batch_size". */
tw_status tw_schedule_observe(tw_schedule *schedule, const char *what, double value);

/* Shows per-sample gradients (samples, n) to a batch-size rule (norm_test, inner_product_test). */
tw_status tw_schedule_observe_samples(tw_schedule *schedule, const tw_tensor *gradients);

/* Runs a command, as "begin_decay". */
tw_status tw_schedule_command(tw_schedule *schedule, const char *command);

/* What the schedule remembers of the run (an observed metric, a batch size, an ended plateau), as bytes: writes them
 * to the buffer and their number to *needed (may be NULL); a capacity of 0 only asks for the number.
 * TW_ERROR_SPACE: the buffer is too small. */
tw_status tw_schedule_save(tw_schedule *schedule, void *buffer, size_t capacity, size_t *needed);

/* Takes it up again, in a schedule of the same sentence.  TW_ERROR_FORMAT: damaged bytes; TW_ERROR_MISMATCH: those of
 * another schedule.  On an error nothing is changed. */
tw_status tw_schedule_load(tw_schedule *schedule, const void *data, size_t size);

/* The schedule as a sentence that goes on from what it remembers: with memory=[...] as its last argument, if that is
 * not what it was made with.  As the value of a hyper-parameter it continues there. */
tw_status tw_schedule_sentence(tw_schedule *schedule, char *buffer, size_t capacity, size_t *needed);

/* ---- the process ---------------------------------------------------------------------------------------- */

/* The number of threads of a step: at least 1.  The default is the CPU affinity mask's size, or THALWEG_NUM_THREADS. */
tw_status tw_set_num_threads(int32_t count);
int32_t tw_get_num_threads(void);

typedef void (*tw_task)(void *task_context, size_t index);
typedef void (*tw_executor)(void *context, tw_task task, void *task_context, size_t count);

/* Runs steps on the host's threads: `executor` must call task(task_context, i) for every i < count, in any order and on any threads,
 * and return when all are done.  NULL restores the library's own pool. */
tw_status tw_set_executor(tw_executor executor, void *context);

typedef void *(*tw_allocate)(void *context, size_t size, size_t alignment);
typedef void (*tw_deallocate)(void *context, void *memory, size_t size);

/* Where state and scratch memory comes from, for optimizers created afterwards.  NULL, NULL restores malloc. */
tw_status tw_set_allocator(tw_allocate allocate, tw_deallocate deallocate, void *context);

typedef void (*tw_log)(void *context, int32_t level, const char *message);

/* Receives warnings (level 1) and notes (level 2); silent when NULL, which is the default. */
tw_status tw_set_log(tw_log log, void *context);

/* What a handle has of its own beside what serves the process.  NULL in it: the process's. */
typedef struct tw_services {
  size_t struct_size;
  tw_allocate allocate;        /* both or none */
  tw_deallocate deallocate;
  void *allocator_context;
  tw_log log;
  void *log_context;
} tw_services;

/* Gives services to every handle (optimizer, objective, solver, ...) that this thread creates from now on; NULL ends that.  A
 * handle keeps them for life: they serve all calls on it, from whichever thread, and must outlive it.  TW_ERROR_ARGUMENT: one
 * of allocate and deallocate without the other. */
tw_status tw_use_services(const tw_services *services);

/* The normal draws of (seed, stream, step, tensor), elements offset..offset+count: what the random methods use. */
tw_status tw_random_normal(uint64_t seed, uint32_t stream, uint64_t step, uint32_t tensor, uint64_t offset, double *out,
                           size_t count);

#ifdef __cplusplus
}
#endif

#endif /* THALWEG_H */
