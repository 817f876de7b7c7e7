/* thalweg.h in strict C99, and the layout of every public struct on 64-bit machines.  Compiling is the test.
 */
#include <thalweg/thalweg.h>
#include <thalweg/thalweg.h> /* twice: the guard */

#define ASSERT_JOIN_(a, b) a##b
#define ASSERT_JOIN(a, b) ASSERT_JOIN_(a, b)
#define ASSERT(condition) typedef char ASSERT_JOIN(assert_on_line_, __LINE__)[(condition) ? 1 : -1]
#define AT(type, field, offset) ASSERT(offsetof(type, field) == (offset))

ASSERT(sizeof(void *) == 8 && sizeof(size_t) == 8);
ASSERT(sizeof(tw_status) == 4);
ASSERT(TW_ABI_VERSION == 1);

ASSERT(sizeof(tw_tensor) == 64);
AT(tw_tensor, data, 0);
AT(tw_tensor, dtype, 8);
AT(tw_tensor, ndim, 12);
AT(tw_tensor, shape, 16);
AT(tw_tensor, strides, 24);
AT(tw_tensor, flags, 32);
AT(tw_tensor, role, 36);
AT(tw_tensor, reserved, 40);

/* Structs that grow: what is there stays where it is. */
AT(tw_method_info, struct_size, 0);
AT(tw_method_info, name, 8);
AT(tw_method_info, kind, 16);
AT(tw_method_info, summary, 24);
AT(tw_method_info, rule, 32);
AT(tw_method_info, source, 40);
AT(tw_method_info, sentence, 48);
AT(tw_method_info, requests, 56);
AT(tw_method_info, parameter_count, 64);
AT(tw_method_info, state_count, 72);
AT(tw_method_info, input_count, 80);
AT(tw_method_info, request_count, 88);
ASSERT(sizeof(tw_method_info) == 96);

AT(tw_request_info, struct_size, 0);
AT(tw_request_info, name, 8);
AT(tw_request_info, meaning, 16);
AT(tw_request_info, given_count, 24);
AT(tw_request_info, wanted_count, 32);
AT(tw_request_info, takes_nonfinite, 40);
ASSERT(sizeof(tw_request_info) == 48);

AT(tw_solver_request, struct_size, 0);
AT(tw_solver_request, kind, 8);
AT(tw_solver_request, outcome, 12);
AT(tw_solver_request, name, 16);
AT(tw_solver_request, outcome_name, 24);
AT(tw_solver_request, tag, 32);
AT(tw_solver_request, given, 40);
AT(tw_solver_request, given_count, 48);
AT(tw_solver_request, wanted, 56);
AT(tw_solver_request, wanted_count, 64);
ASSERT(sizeof(tw_solver_request) == 72);

AT(tw_input_info, struct_size, 0);
AT(tw_input_info, name, 8);
AT(tw_input_info, meaning, 16);
AT(tw_input_info, shape, 24);
AT(tw_input_info, optional, 32);
AT(tw_input_info, integer, 36);
AT(tw_input_info, differentiable, 40);
AT(tw_input_info, result, 44);
ASSERT(sizeof(tw_input_info) == 48);

AT(tw_parameter_info, struct_size, 0);
AT(tw_parameter_info, name, 8);
AT(tw_parameter_info, meaning, 16);
AT(tw_parameter_info, type, 24);
AT(tw_parameter_info, required, 28);
AT(tw_parameter_info, optional, 32);
AT(tw_parameter_info, min_open, 36);
AT(tw_parameter_info, max_open, 40);
AT(tw_parameter_info, live, 44);
AT(tw_parameter_info, default_text, 48);
AT(tw_parameter_info, choices, 56);
AT(tw_parameter_info, min, 64);
AT(tw_parameter_info, max, 72);
ASSERT(sizeof(tw_parameter_info) == 80);

AT(tw_state_slot_info, struct_size, 0);
AT(tw_state_slot_info, name, 8);
AT(tw_state_slot_info, meaning, 16);
ASSERT(sizeof(tw_state_slot_info) == 24);

AT(tw_options, struct_size, 0);
AT(tw_options, state_dtype, 8);
AT(tw_options, master, 12);
AT(tw_options, nonfinite, 16);
AT(tw_options, maximize, 20);
AT(tw_options, zero_gradients, 24);
AT(tw_options, consume_gradients, 28);
AT(tw_options, gradient_scale, 32);
AT(tw_options, seed, 40);
ASSERT(sizeof(tw_options) == 48);

AT(tw_request, struct_size, 0);
AT(tw_request, kind, 8);
AT(tw_request, pass, 12);
AT(tw_request, tag, 16);
AT(tw_request, index, 24);
AT(tw_request, count, 32);
AT(tw_request, loss, 40);
AT(tw_request, probe, 48);
AT(tw_request, probe_count, 56);
AT(tw_request, gradients_stay, 64);
ASSERT(sizeof(tw_request) == 72);

AT(tw_state_info, struct_size, 0);
AT(tw_state_info, stage, 8);
AT(tw_state_info, slot, 16);
AT(tw_state_info, parameter, 24);
AT(tw_state_info, count, 32);
AT(tw_state_info, bytes, 40);
AT(tw_state_info, storage, 48);
ASSERT(sizeof(tw_state_info) == 56);

/* Numbers that are part of the interface: they never change. */
ASSERT(TW_OK == 0 && TW_MORE == 1 && TW_SKIPPED == 2);
ASSERT(TW_ERROR_INTERNAL == -1 && TW_ERROR_MEMORY == -2 && TW_ERROR_ARGUMENT == -3 && TW_ERROR_HANDLE == -4);
ASSERT(TW_ERROR_BUSY == -5 && TW_ERROR_COUNT == -6);
ASSERT(TW_ERROR_SYNTAX == -10 && TW_ERROR_METHOD == -11 && TW_ERROR_NAME == -12 && TW_ERROR_TYPE == -13);
ASSERT(TW_ERROR_RANGE == -14);
ASSERT(TW_ERROR_DTYPE == -20 && TW_ERROR_SHAPE == -21 && TW_ERROR_LAYOUT == -22 && TW_ERROR_OVERLAP == -23);
ASSERT(TW_ERROR_SEQUENCE == -30 && TW_ERROR_NEEDS == -31 && TW_ERROR_NONFINITE == -40 &&
       TW_ERROR_NUMERIC == -41);
ASSERT(TW_ERROR_FORMAT == -50 && TW_ERROR_VERSION == -51 && TW_ERROR_MISMATCH == -52 && TW_ERROR_FILE == -53);
ASSERT(TW_ERROR_SPACE == -54 && TW_ERROR_UNSUPPORTED == -60);
ASSERT(TW_F32 == 1 && TW_F64 == 2 && TW_F16 == 3 && TW_BF16 == 4 && TW_I32 == 5 && TW_I64 == 6);
ASSERT(TW_TENSOR_READ_ONLY == 1 && TW_TENSOR_ABSENT == 2);
ASSERT(TW_ROLE_UNKNOWN == 0 && TW_ROLE_WEIGHT == 1 && TW_ROLE_BIAS == 2 && TW_ROLE_NORM == 3);
ASSERT(TW_ROLE_EMBEDDING == 4 && TW_ROLE_HEAD == 5);
ASSERT(TW_PARAMETER_NUMBER == 1 && TW_PARAMETER_INTEGER == 2 && TW_PARAMETER_FLAG == 3 &&
       TW_PARAMETER_CHOICE == 4);
ASSERT(TW_PARAMETER_LIST == 5 && TW_PARAMETER_REGULARIZER == 6 && TW_PARAMETER_CONSTRAINT == 7);
ASSERT(TW_PARAMETER_PIPELINE == 8 && TW_PARAMETER_SCHEDULE == 9);
ASSERT(TW_STATE_F32 == 1 && TW_STATE_BF16 == 2 && TW_STATE_Q8 == 3);
ASSERT(TW_MASTER_NONE == 0 && TW_MASTER_F32 == 1 && TW_MASTER_STOCHASTIC == 2);
ASSERT(TW_NONFINITE_PROPAGATE == 0 && TW_NONFINITE_SKIP == 1 && TW_NONFINITE_ERROR == 2);
ASSERT(TW_REQUEST_NONE == 0 && TW_REQUEST_GRADIENT == 1 && TW_REQUEST_LOSS == 2);
ASSERT(TW_REQUEST_LOSS_AND_GRADIENT == 3 && TW_REQUEST_HESSIAN_VECTOR == 4 && TW_REQUEST_TASK_GRADIENT == 5);
ASSERT(TW_REQUEST_PREVIOUS_GRADIENT == 6 && TW_REQUEST_LOGIT_DERIVATIVES == 7 && TW_REQUEST_ACTIVATIONS == 8);
ASSERT(TW_REQUEST_SAMPLE_GRADIENTS == 9 && TW_REQUEST_PARTICIPANT == 10);
ASSERT(TW_SHARDS_TENSORS == 1 && TW_SHARDS_ELEMENTS == 2);
ASSERT(TW_MODE_TRAIN == 0 && TW_MODE_EVAL == 1);

/* Functions have C types that C hosts expect. */
static tw_status (*const step)(tw_optimizer *) = tw_optimizer_step;
static size_t (*const count)(void) = tw_method_count;

/* Views of a line each, without functions of the library. */
int main(void) {
  float f[6] = {0};
  double d[1] = {0};
  static const int64_t strides[2] = {1, 2};
  tw_tensor dense = tw_tensor_dense_f32(f, 2, (int64_t[]){2, 3}), number = tw_tensor_dense_f64(d, 0, NULL);
  tw_tensor turned = tw_tensor_strided(f, TW_F32, 2, dense.shape, strides);
  tw_tensor absent = tw_tensor_absent(TW_F32, 2, dense.shape), half = tw_tensor_dense(f, TW_F16, 2, dense.shape);
  return step == NULL || count == NULL || dense.data != f || dense.dtype != TW_F32 || dense.ndim != 2 ||
         dense.shape[1] != 3 || dense.strides != NULL || dense.flags != 0 || dense.role != 0 || dense.reserved[2] != 0 ||
         number.dtype != TW_F64 || number.ndim != 0 || turned.strides != strides || absent.data != NULL ||
         absent.flags != TW_TENSOR_ABSENT || half.dtype != TW_F16;
}
