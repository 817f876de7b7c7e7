/* runs.h: small training runs that several tests repeat under other conditions and compare bit for bit. */
#ifndef RUNS_H
#define RUNS_H

#include "check.h"

/* Sentences that are worth running everywhere; those whose methods a build lacks are left out by
 * run_possible. */
static const char *const run_sentences[] = {"sgd(lr=0.1)",
                                            "sgd(lr=0.1, momentum=0.9, nesterov=true)",
                                            "adamw(lr=0.01)",
                                            "clip_global_norm(0.5) | adamw(lr=0.01, weight_decay=0.1)",
                                            "adamw(lr=0.01) | ema(0.9)",
                                            "sam(0.05) | sgd(lr=0.1)",
                                            "lion(lr=0.01)",
                                            "gradient_noise(0.01) | sgd(lr=0.1)",
                                            "muon(lr=0.02)",
                                            "shampoo(lr=0.01)",
                                            "adafactor(lr=0.01)",
                                            "sgd(lr=0.1) | prox(l1(0.001)) | project(l2_ball(1.0))",
                                            "schedule_free_adamw(lr=0.01)",
                                            "adamw(lr=0.01) | lookahead(2)"};

enum { RUN_SENTENCES = sizeof run_sentences / sizeof *run_sentences };

CHECK_UNUSED static int run_possible(const char *sentence) {
  tw_optimizer *optimizer = NULL;
  if (tw_optimizer_create(sentence, NULL, &optimizer) != TW_OK) return 0;
  return tw_optimizer_destroy(optimizer) == TW_OK;
}

/* The parameters of a run: `count` matrices of rows x columns. */
typedef struct {
  size_t count;
  int64_t shape[2];
  size_t elements; /* of all matrices */
  float *w, *g;
  tw_tensor *parameters, *gradients;
  tw_optimizer *optimizer;
} run;

CHECK_UNUSED static size_t run_bytes(const run *r) { return r->elements * sizeof(float); }

/* Allocates and fills; the optimizer is not created yet. */
CHECK_UNUSED static run new_run(size_t count, int64_t rows, int64_t columns) {
  run r = {.count = count, .shape = {rows, columns}};
  size_t each = (size_t)(rows * columns);
  r.elements = count * each;
  r.w = malloc(run_bytes(&r));
  r.g = malloc(run_bytes(&r));
  r.parameters = malloc(count * sizeof(tw_tensor));
  r.gradients = malloc(count * sizeof(tw_tensor));
  fill_f32(r.w, r.elements, 1);
  for (size_t i = 0; i < count; i++) {
    r.parameters[i] = view(r.w + i * each, TW_F32, 2, NULL, NULL);
    r.gradients[i] = view(r.g + i * each, TW_F32, 2, NULL, NULL);
  }
  return r;
}

CHECK_UNUSED static void free_run(run *r) {
  free(r->w);
  free(r->g);
  free(r->parameters);
  free(r->gradients);
  memset(r, 0, sizeof *r);
}

/* Creates and binds; the first failure is returned, and the optimizer is then gone. */
CHECK_UNUSED static tw_status run_start(run *r, const char *sentence) {
  for (size_t i = 0; i < r->count; i++) r->parameters[i].shape = r->gradients[i].shape = r->shape;
  r->optimizer = NULL;
  tw_status status = tw_optimizer_create(sentence, NULL, &r->optimizer);
  if (status != TW_OK) return status;
  status = tw_optimizer_add_parameters(r->optimizer, r->parameters, r->count, NULL, NULL);
  if (status == TW_OK) status = tw_optimizer_bind_gradients(r->optimizer, r->gradients, r->count);
  if (status != TW_OK) {
    tw_optimizer_destroy(r->optimizer);
    r->optimizer = NULL;
  }
  return status;
}

/* A gradient that depends on the parameters: noise of the pass, and a pull to zero. */
CHECK_UNUSED static void run_gradient(run *r, uint64_t pass) {
  uint64_t seed = 1000 + pass;
  for (size_t i = 0; i < r->elements; i++) r->g[i] = (float)(0.1 * random_number(&seed)) + 0.5f * r->w[i];
}

/* One step, however many gradients it takes. */
CHECK_UNUSED static tw_status run_step(run *r, uint64_t step) {
  tw_request request;
  memset(&request, 0, sizeof request);
  request.struct_size = sizeof request;
  for (;;) {
    tw_status status = tw_optimizer_next(r->optimizer, &request);
    if (status != TW_MORE) return status;
    run_gradient(r, step);
    request.loss = 1;
  }
}

/* The whole run from its start: steps, and the parameters in r->w. */
CHECK_UNUSED static tw_status run_whole(run *r, const char *sentence, uint64_t steps) {
  fill_f32(r->w, r->elements, 1);
  tw_status status = run_start(r, sentence);
  for (uint64_t step = 0; status == TW_OK && step < steps; step++) status = run_step(r, step);
  if (r->optimizer != NULL) {
    tw_status end = tw_optimizer_destroy(r->optimizer);
    if (status == TW_OK) status = end;
  }
  r->optimizer = NULL;
  return status;
}

#endif /* RUNS_H */
