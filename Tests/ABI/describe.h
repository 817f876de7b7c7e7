/* describe.h: valid sentences for every method, written from nothing but its own description. */
#ifndef DESCRIBE_H
#define DESCRIBE_H

#include "check.h"

enum { SENTENCE_SIZE = 4096 };

/* A value that a hyper-parameter accepts, as its description says. */
CHECK_UNUSED static void describe_value(const tw_parameter_info *p, char *text, size_t size) {
  double low = p->min, high = p->max, value;
  switch (p->type) {
    case TW_PARAMETER_NUMBER:
    case TW_PARAMETER_INTEGER:
      if (low <= 1 && high >= 1 && !(low == 1 && p->min_open) && !(high == 1 && p->max_open))
        value = 1;
      else if (isfinite(low) && isfinite(high))
        value = 0.5 * low + 0.5 * high;
      else if (isfinite(low))
        value = low + 1;
      else if (isfinite(high))
        value = high - 1;
      else
        value = 1;
      if (p->type == TW_PARAMETER_INTEGER) value = ceil(value);
      snprintf(text, size, "%.17g", value);
      break;
    case TW_PARAMETER_FLAG: snprintf(text, size, "true"); break;
    case TW_PARAMETER_CHOICE: snprintf(text, size, "%.*s", (int)strcspn(p->choices, "|"), p->choices); break;
    case TW_PARAMETER_LIST: snprintf(text, size, "[0.5, 0.25]"); break;
    case TW_PARAMETER_REGULARIZER: snprintf(text, size, "l1(0.1)"); break;
    case TW_PARAMETER_CONSTRAINT: snprintf(text, size, "l2_ball(1)"); break;
    case TW_PARAMETER_PIPELINE: snprintf(text, size, "(sgd(lr=0.1))"); break;
    case TW_PARAMETER_SCHEDULE: snprintf(text, size, "cosine(lr=0.1, total=10)"); break;
    default: snprintf(text, size, "0"); break;
  }
}

/* What a description cannot say: combinations that a method demands (else NULL), and which methods are the
 * library's own grammar and have no source. */
static const struct {
  const char *method, *stage;
  int unsourced;
} describe_special[] = {
    {"arch_entropy", "arch_entropy(epochs=10)", 0},
    {"batch_ladder", "batch_ladder(boundaries=[2, 4], batches=[1, 2, 3])", 0},
    {"constant", NULL, 1},
    {"coordinate_clip", "coordinate_clip(threshold=1)", 0},
    {"decoupled", NULL, 1},
    {"gradient_noise_scale", "gradient_noise_scale(b_small=1, b_big=2)", 0},
    {"join", "join(schedules=[constant(lr=0.1), cosine(lr=0.1, total=10)], boundaries=[5])", 0},
    {"manifold", "manifold(stiefel)", 1},
    {"penalty", NULL, 1},
    {"project", NULL, 1},
    {"prox", NULL, 1},
    {"rho_schedule", "rho_schedule(lr=0.1)", 0},
    {"riemannian_cg", "riemannian_cg(set=sphere)", 0},
    {"route", "route(other=(sgd(lr=0.1)))", 1},
};

CHECK_UNUSED static int describe_unsourced(const char *method) {
  for (size_t i = 0; i < sizeof describe_special / sizeof *describe_special; i++) {
    if (strcmp(describe_special[i].method, method) == 0) return describe_special[i].unsourced;
  }
  return 0;
}

/* The method as a stage: its name, and a value for each hyper-parameter that has no default. */
CHECK_UNUSED static void describe_stage(const tw_method_info *method, char *text, size_t size) {
  for (size_t i = 0; i < sizeof describe_special / sizeof *describe_special; i++) {
    if (describe_special[i].stage != NULL && strcmp(describe_special[i].method, method->name) == 0) {
      snprintf(text, size, "%s", describe_special[i].stage);
      return;
    }
  }
  size_t length = (size_t)snprintf(text, size, "%s", method->name), given = 0;
  for (size_t i = 0; i < method->parameter_count && length + 64 < size; i++) {
    tw_parameter_info p = {.struct_size = sizeof p};
    char value[64];
    if (tw_method_parameter(method->name, i, &p) != TW_OK || !p.required) continue;
    describe_value(&p, value, sizeof value);
    length +=
        (size_t)snprintf(text + length, size - length, "%s%s=%s", given++ == 0 ? "(" : ", ", p.name, value);
  }
  if (given > 0) snprintf(text + length, size - length, ")");
}

/* The places in which a stage can stand. */
static const char *const describe_places[] = {"%s",
                                              "%s | sgd(lr=0.1)",
                                              "sgd(lr=0.1) | %s",
                                              "sgd(lr=%s)",
                                              "sgd(lr=0.1) | prox(%s)",
                                              "penalty(%s) | sgd(lr=0.1)",
                                              "sgd(lr=0.1) | project(%s)",
                                              "sgd(lr=0.1) | manifold(%s)",
                                              "manifold(%s) | sgd(lr=0.1)",
                                              "sgd(lr=%s, momentum=0.9)"};

/* A whole sentence in which the stage is accepted; 0 when there is none. */
CHECK_UNUSED static int describe_sentence(const char *stage, char *text, size_t size) {
  for (size_t i = 0; i < sizeof describe_places / sizeof *describe_places; i++) {
    const char *place = describe_places[i], *gap = strstr(place, "%s");
    tw_optimizer *optimizer = NULL;
    int length = snprintf(text, size, "%.*s%s%s", (int)(gap - place), place, stage, gap + 2);
    if (length < 0 || (size_t)length >= size) continue;
    if (tw_optimizer_create(text, NULL, &optimizer) == TW_OK) return tw_optimizer_destroy(optimizer) == TW_OK;
  }
  return 0;
}

/* Which handle a stage alone makes besides an optimizer: 'r', 'c', 'o', 's', 'v' (a solver), or 0. */
CHECK_UNUSED static int describe_object(const char *stage) {
  tw_regularizer *regularizer = NULL;
  tw_constraint *constraint = NULL;
  tw_objective *objective = NULL;
  tw_schedule *schedule = NULL;
  tw_solver *solver = NULL;
  if (tw_regularizer_create(stage, &regularizer) == TW_OK)
    return tw_regularizer_destroy(regularizer) == TW_OK ? 'r' : 0;
  if (tw_constraint_create(stage, &constraint) == TW_OK)
    return tw_constraint_destroy(constraint) == TW_OK ? 'c' : 0;
  if (tw_objective_create(stage, &objective) == TW_OK)
    return tw_objective_destroy(objective) == TW_OK ? 'o' : 0;
  if (tw_schedule_create(stage, &schedule) == TW_OK) return tw_schedule_destroy(schedule) == TW_OK ? 's' : 0;
  if (tw_solver_create(stage, &solver) == TW_OK) return tw_solver_destroy(solver) == TW_OK ? 'v' : 0;
  return 0;
}

/* ---- a small run with any method ---------------------------------------------------------------------- */

/* A matrix and a vector, f32, with gradients; a method that refuses vectors gets the vector as a matrix of one row. */
typedef struct {
  float w[24], b[4], gw[24], gb[4];
  int64_t matrix[2], row[2];
  tw_tensor parameters[2], gradients[2];
} small_model;

CHECK_UNUSED static void small_model_fill(small_model *m) {
  memset(m, 0, sizeof *m);
  m->matrix[0] = 3, m->matrix[1] = 8, m->row[0] = 1, m->row[1] = 4;
  fill_f32(m->w, 24, 1);
  fill_f32(m->b, 4, 2);
  m->parameters[0] = view(m->w, TW_F32, 2, m->matrix, NULL);
  m->parameters[1] = view(m->b, TW_F32, 1, m->row + 1, NULL);
  m->gradients[0] = view(m->gw, TW_F32, 2, m->matrix, NULL);
  m->gradients[1] = view(m->gb, TW_F32, 1, m->row + 1, NULL);
}

CHECK_UNUSED static tw_status small_model_bind(small_model *m, tw_optimizer *optimizer) {
  tw_status status = tw_optimizer_add_parameters(optimizer, m->parameters, 2, NULL, NULL);
  /* only a method that says that it wants matrices is given them: one that wrongly refuses vectors fails the test */
  if (status == TW_ERROR_SHAPE && strstr(tw_last_error(), "parameter 1: ") != NULL &&
      strstr(tw_last_error(), "needs a tensor of rank 2 or more") != NULL) {
    m->parameters[1] = view(m->b, TW_F32, 2, m->row, NULL);
    m->gradients[1] = view(m->gb, TW_F32, 2, m->row, NULL);
    status = tw_optimizer_add_parameters(optimizer, m->parameters, 2, NULL, NULL);
  }
  return status == TW_OK ? tw_optimizer_bind_gradients(optimizer, m->gradients, 2) : status;
}

/* Answers a request, for a loss of |w|^2 / 2. */
CHECK_UNUSED static tw_status small_model_answer(small_model *m, tw_optimizer *optimizer, tw_request *request) {
  float values[12], inputs[32];
  request->loss = 0;
  for (int i = 0; i < 24; i++) request->loss += 0.5 * m->w[i] * m->w[i];
  for (int i = 0; i < 4; i++) request->loss += 0.5 * m->b[i] * m->b[i];
  switch (request->kind) {
    case TW_REQUEST_HESSIAN_VECTOR:
      if (request->probe != NULL && request->probe_count == 2) {
        memcpy(m->gw, request->probe[0].data, sizeof m->gw);
        memcpy(m->gb, request->probe[1].data, sizeof m->gb);
      }
      return TW_OK;
    case TW_REQUEST_LOGIT_DERIVATIVES: {
      const int64_t samples_by_classes[2] = {4, 3};
      tw_tensor matrix = view(values, TW_F32, 2, samples_by_classes, NULL);
      fill_f32(values, 12, 3 + (uint64_t)request->pass);
      return tw_optimizer_answer_matrix(optimizer, request->pass < 2 ? &matrix : NULL, &matrix);
    }
    case TW_REQUEST_ACTIVATIONS: {
      if (request->index < 0 || request->index > 1) return TW_ERROR_ARGUMENT;
      const int64_t *weight = m->parameters[request->index].shape, in[2] = {4, weight[1]}, out[2] = {4, weight[0]};
      tw_tensor first = view(inputs, TW_F32, 2, in, NULL), second = view(values, TW_F32, 2, out, NULL);
      fill_f32(inputs, 32, 4);
      fill_f32(values, 12, 3);
      return tw_optimizer_answer_matrix(optimizer, &first, &second);
    }
    default:
      memcpy(m->gw, m->w, sizeof m->gw);
      memcpy(m->gb, m->b, sizeof m->gb);
      if (request->index % 2 == 1) m->gw[0] += 1; /* tasks differ */
      return TW_OK;
  }
}

/* One step, or the rest of one: every request is answered.  A method that asks without end is cancelled. */
CHECK_UNUSED static tw_status small_model_step(small_model *m, tw_optimizer *optimizer) {
  tw_request request = {.struct_size = sizeof request};
  tw_status status = tw_optimizer_waiting(optimizer, &request);
  if (status == TW_OK) status = tw_optimizer_next(optimizer, &request);
  for (int pass = 0; pass < 1000; pass++) {
    if (status != TW_MORE) return status;
    status = small_model_answer(m, optimizer, &request);
    if (status < 0) {
      tw_optimizer_cancel(optimizer);
      return status;
    }
    status = tw_optimizer_next(optimizer, &request);
  }
  return tw_optimizer_cancel(optimizer);
}

/* Numbers that a method watches, as far as it does. */
CHECK_UNUSED static void small_model_observe(tw_optimizer *optimizer) {
  tw_optimizer_observe(optimizer, "loss", 1);
  tw_optimizer_observe(optimizer, "metric", 1);
  tw_optimizer_observe(optimizer, "batch_size", 32);
}

#endif /* DESCRIBE_H */
