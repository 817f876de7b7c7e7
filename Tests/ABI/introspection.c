/* What the library says about its methods is complete, consistent, and true: every method can be made,
 * stepped, saved and resumed from its description alone. */
#include "check.h"
#include "describe.h"

static int is_name(const char *text) {
  if (text == NULL || text[0] < 'a' || text[0] > 'z') return 0;
  return text[strspn(text, "abcdefghijklmnopqrstuvwxyz0123456789_")] == 0;
}

/* what is a letter in its paper, a diameter D or a bound G, keeps it */
static int is_named(const char *text) {
  return is_name(text) || (text != NULL && text[0] >= 'A' && text[0] <= 'Z' && text[1] == 0);
}

static int is_one_of(const char *word, const char *list) {
  size_t length = strlen(word);
  for (const char *at = list; (at = strstr(at, word)) != NULL; at++) {
    if ((at == list || at[-1] == '|') && (at[length] == 0 || at[length] == '|')) return length > 0;
  }
  return 0;
}

#define SAY(condition, what) \
  do { \
    if (!(condition)) check_fail(__FILE__, __LINE__, "%s: %s", method.name, what); \
  } while (0)

#define EACH_METHOD(method) \
  for (size_t method##_index = 0; method##_index < tw_method_count(); method##_index++) \
    for (tw_method_info method = {.struct_size = sizeof method}; \
         method.name == NULL && tw_method_at(method##_index, &method) == TW_OK;)

static void methods(void) {
  const char *previous = "";
  size_t seen = 0;
  EACH_METHOD(method) {
    tw_method_info again = {.struct_size = sizeof again};
    seen++;
    SAY(is_name(method.name), "the name");
    SAY(strcmp(previous, method.name) < 0, "not sorted");
    previous = method.name;
    SAY(is_one_of(method.kind,
                  "optimizer|transform|update|perturbation|aggregator|schedule|average|regularizer|"
                  "constraint|objective|mask|routing|weighting|diagnostic|solver"),
        "the kind");
    SAY(method.summary != NULL && method.summary[0], "no summary");
    SAY(method.source != NULL && (method.source[0] || describe_unsourced(method.name)), "no source");
    SAY(method.rule != NULL && (method.rule[0] || (method.sentence != NULL && method.sentence[0])),
        "no rule");
    SAY(method.sentence != NULL && method.requests != NULL, "NULL");
    SAY(tw_method_find(method.name, &again) == TW_OK && again.summary == method.summary,
        "find gives another");
  }
  CHECK(seen > 0 && seen == tw_method_count());
}

static void hyper_parameters(void) {
  EACH_METHOD(method) {
    tw_parameter_info none = {.struct_size = sizeof none};
    STATUS(TW_ERROR_ARGUMENT, tw_method_parameter(method.name, method.parameter_count, &none));
    for (size_t i = 0; i < method.parameter_count; i++) {
      tw_parameter_info p = {.struct_size = sizeof p};
      MUST(tw_method_parameter(method.name, i, &p));
      note("%s.%s", method.name, p.name);
      SAY(is_named(p.name), p.name);
      SAY(p.meaning != NULL && p.meaning[0], p.name);
      SAY(p.type >= TW_PARAMETER_NUMBER && p.type <= TW_PARAMETER_SCHEDULE, p.name);
      SAY((p.required | 1) == 1 && (p.optional | 1) == 1 && (p.min_open | 1) == 1 && (p.max_open | 1) == 1,
          p.name);
      SAY((p.live | 1) == 1, p.name);
      SAY(p.default_text != NULL && p.choices != NULL, p.name);
      SAY(p.required == (p.default_text[0] == 0), "a default or not");
      SAY(p.min <= p.max, p.name);
      SAY((p.type == TW_PARAMETER_CHOICE) == (p.choices[0] != 0), p.name);
      if (p.type == TW_PARAMETER_CHOICE && !p.required && strcmp(p.default_text, "none") != 0) {
        SAY(is_one_of(p.default_text, p.choices), "the default is no choice");
      }
      if (p.type == TW_PARAMETER_FLAG && !p.required)
        SAY(is_one_of(p.default_text, "true|false|none"), p.name);
      for (size_t k = 0; k < i; k++) {
        tw_parameter_info other = {.struct_size = sizeof other};
        OK(tw_method_parameter(method.name, k, &other));
        SAY(strcmp(p.name, other.name) != 0, "two hyper-parameters of one name");
      }
    }
    for (size_t i = 0; i < method.state_count; i++) {
      tw_state_slot_info slot = {.struct_size = sizeof slot};
      MUST(tw_method_state(method.name, i, &slot));
      SAY(is_named(slot.name) && slot.meaning != NULL && slot.meaning[0], "a state slot");
    }
    tw_state_slot_info slot = {.struct_size = sizeof slot};
    STATUS(TW_ERROR_ARGUMENT, tw_method_state(method.name, method.state_count, &slot));
  }
}

static void inputs(void) {
  EACH_METHOD(method) {
    tw_input_info none = {.struct_size = sizeof none};
    STATUS(TW_ERROR_ARGUMENT, tw_method_input(method.name, method.input_count, &none));
    int differentiable = 0, results = 0;
    for (size_t i = 0; i < method.input_count; i++) {
      tw_input_info input = {.struct_size = sizeof input};
      MUST(tw_method_input(method.name, i, &input));
      note("%s.%s", method.name, input.name);
      SAY(is_named(input.name), "the name");
      SAY(input.meaning != NULL && input.meaning[0], input.name);
      SAY(input.shape != NULL && input.shape[0] == '(', input.name);
      SAY(input.shape[strlen(input.shape) - 1] == ')', input.name);
      SAY((input.optional | 1) == 1 && (input.integer | 1) == 1, input.name);
      SAY((input.differentiable | 1) == 1 && (input.result | 1) == 1, input.name);
      SAY( input.integer + input.differentiable + input.result <= 1, input.name);
      SAY(!input.result || input.optional, "a result is never given");
      differentiable += input.differentiable;
      results += input.result;
      for (size_t k = 0; k < i; k++) {
        tw_input_info other = {.struct_size = sizeof other};
        OK(tw_method_input(method.name, k, &other));
        SAY(strcmp(input.name, other.name) != 0, "two inputs of one name");
      }
    }
    if (strcmp(method.kind, "solver") == 0) {
      SAY(differentiable == 0 && method.input_count > 0, "what a solver takes and finds");
    } else if (strcmp(method.kind, "diagnostic") == 0 || strcmp(method.kind, "weighting") == 0) {
      SAY(method.input_count > 0, "nothing to look at");
    } else {
      SAY((differentiable + results > 0) == (method.input_count > 0), "nothing to differentiate, and no result");
    }
    if (strcmp(method.kind, "objective") == 0) SAY(method.input_count > 0, "an objective without inputs");
  }
}

static void requests(void) {
  EACH_METHOD(method) {
    tw_request_info none = {.struct_size = sizeof none};
    tw_input_info tensor = {.struct_size = sizeof tensor};
    STATUS(TW_ERROR_ARGUMENT, tw_method_request(method.name, method.request_count, &none));
    if (strcmp(method.kind, "solver") != 0) SAY(method.request_count == 0, "only solvers list their requests");
    for (size_t i = 0; i < method.request_count; i++) {
      tw_request_info r = {.struct_size = sizeof r};
      MUST(tw_method_request(method.name, i, &r));
      note("%s.%s", method.name, r.name);
      SAY(is_name(r.name) && r.meaning != NULL && r.meaning[0], "a request");
      SAY(strstr(method.requests, r.name) != NULL, "requests and list differ");
      size_t count = r.given_count + r.wanted_count;
      SAY(count > 0 && (r.takes_nonfinite | 1) == 1, "an empty request");
      for (size_t k = 0; k < count; k++) {
        MUST(tw_method_request_tensor(method.name, i, k, &tensor));
        SAY(is_name(tensor.name) && tensor.meaning[0] && tensor.shape[0] == '(', tensor.name);
      }
      STATUS(TW_ERROR_ARGUMENT, tw_method_request_tensor(method.name, i, count, &tensor));
    }
  }
}

/* A sentence from the description is accepted, in some place; writing it out and reading it again changes
 * nothing. */
static void sentences(void) {
  EACH_METHOD(method) {
    char stage[SENTENCE_SIZE], sentence[SENTENCE_SIZE], written[SENTENCE_SIZE], again[SENTENCE_SIZE];
    size_t needed = 0;
    describe_stage(&method, stage, sizeof stage);
    note("%s", stage);
    int object = describe_object(stage);
    if (strcmp(method.kind, "regularizer") == 0) SAY(object == 'r', "makes no regularizer");
    if (strcmp(method.kind, "constraint") == 0) SAY(object == 'c', "makes no constraint");
    if (strcmp(method.kind, "objective") == 0) SAY(object == 'o', "makes no objective");
    if (strcmp(method.kind, "weighting") == 0) SAY(object == 'o', "makes no weighting");
    if (strcmp(method.kind, "diagnostic") == 0) SAY(object == 'o', "makes no diagnostic");
    if (strcmp(method.kind, "solver") == 0) SAY(object == 'v', "makes no solver");
    if (strcmp(method.kind, "schedule") == 0) SAY(object == 's', "makes no schedule");
    if (!describe_sentence(stage, sentence, sizeof sentence)) {
      if (object == 0) check_fail(__FILE__, __LINE__, "\"%s\" fits nowhere: %s", stage, tw_last_error());
      continue;
    }
    tw_optimizer *optimizer = NULL;
    MUST(tw_optimizer_create(sentence, NULL, &optimizer));
    OK(tw_optimizer_sentence(optimizer, written, sizeof written, &needed));
    OK(tw_optimizer_destroy(optimizer));
    note("%s: %s", sentence, written);
    optimizer = NULL;
    OK(tw_optimizer_create(written, NULL, &optimizer));
    if (optimizer == NULL) continue;
    OK(tw_optimizer_sentence(optimizer, again, sizeof again, &needed));
    if (strcmp(written, again) != 0)
      check_fail(__FILE__, __LINE__, "\"%s\"\n         becomes \"%s\"", written, again);
    OK(tw_optimizer_destroy(optimizer));
  }
}

/* Every bound that is stated is kept. */
static void bounds(void) {
  EACH_METHOD(method) {
    char stage[SENTENCE_SIZE];
    describe_stage(&method, stage, sizeof stage);
    for (size_t i = 0; i < method.parameter_count; i++) {
      tw_parameter_info p = {.struct_size = sizeof p};
      MUST(tw_method_parameter(method.name, i, &p));
      if (p.type != TW_PARAMETER_NUMBER && p.type != TW_PARAMETER_INTEGER) continue;
      double outside[4];
      size_t count = 0;
      double unit = p.type == TW_PARAMETER_INTEGER ? 1 : 0.125;
      if (isfinite(p.min) && fabs(p.min) < 1e15) outside[count++] = p.min_open ? p.min : p.min - unit;
      if (isfinite(p.max) && fabs(p.max) < 1e15) outside[count++] = p.max_open ? p.max : p.max + unit;
      for (size_t k = 0; k < count; k++) {
        /* The required values, with this one outside. */
        char bad[SENTENCE_SIZE], sentence[2 * SENTENCE_SIZE];
        size_t length = (size_t)snprintf(bad, sizeof bad, "%s(", method.name);
        for (size_t j = 0; j < method.parameter_count; j++) {
          tw_parameter_info q = {.struct_size = sizeof q};
          char value[64];
          OK(tw_method_parameter(method.name, j, &q));
          if (j == i)
            snprintf(value, sizeof value, "%.17g", outside[k]);
          else if (q.required)
            describe_value(&q, value, sizeof value);
          else
            continue;
          length += (size_t)snprintf(bad + length, sizeof bad - length, "%s=%s, ", q.name, value);
        }
        snprintf(bad + length - 2, sizeof bad - length + 2, ")");
        int refusals = 0;
        for (size_t place = 0; place < sizeof describe_places / sizeof *describe_places; place++) {
          const char *gap = strstr(describe_places[place], "%s");
          snprintf(sentence, sizeof sentence, "%.*s%s%s", (int)(gap - describe_places[place]),
                   describe_places[place], bad, gap + 2);
          tw_optimizer *optimizer = NULL;
          note("%s", sentence);
          tw_status status = tw_optimizer_create(sentence, NULL, &optimizer);
          if (status == TW_OK) {
            check_fail(__FILE__, __LINE__, "out of range, and accepted: %s", sentence);
            OK(tw_optimizer_destroy(optimizer));
          }
          refusals += status == TW_ERROR_RANGE;
        }
        if (refusals == 0) check_fail(__FILE__, __LINE__, "%s: never refused for its range", bad);
      }
    }
  }
}

/* Every method steps, and its state is saved and resumed with the same bits. */
static void steps(void) {
  EACH_METHOD(method) {
    char stage[SENTENCE_SIZE], sentence[SENTENCE_SIZE];
    describe_stage(&method, stage, sizeof stage);
    if (!describe_sentence(stage, sentence, sizeof sentence)) continue;
    note("%s", sentence);
    static small_model model, copy;
    small_model_fill(&model);
    tw_optimizer *optimizer = NULL, *resumed = NULL;
    MUST(tw_optimizer_create(sentence, NULL, &optimizer));
    tw_status status = small_model_bind(&model, optimizer);
    for (int step = 0; status == TW_OK && step < 4; step++) {
      small_model_observe(optimizer);
      status = small_model_step(&model, optimizer);
      if (status == TW_SKIPPED) status = TW_OK;
    }
    if (status < 0) { /* a matrix method that refuses the vector, a method that needs another sentence ... */
      if (status == TW_ERROR_INTERNAL) check_fail(__FILE__, __LINE__, "%s: %s", sentence, tw_last_error());
      OK(tw_optimizer_destroy(optimizer));
      continue;
    }
    checkpoint saved = save(optimizer);
    if (saved.data == NULL) check_fail(__FILE__, __LINE__, "%s is not saved: %s", sentence, tw_last_error());
    small_model_fill(&copy);
    memcpy(copy.w, model.w, sizeof copy.w);
    memcpy(copy.b, model.b, sizeof copy.b);
    MUST(tw_optimizer_create(sentence, NULL, &resumed));
    OK(small_model_bind(&copy, resumed));
    status = tw_optimizer_load(resumed, saved.data, saved.size);
    if (status != TW_OK) check_fail(__FILE__, __LINE__, "%s is not loaded: %s", sentence, tw_last_error());
    for (int step = 0; status == TW_OK && step < 3; step++) {
      small_model_observe(optimizer);
      small_model_observe(resumed);
      tw_status first = small_model_step(&model, optimizer), second = small_model_step(&copy, resumed);
      if (first != second) {
        check_fail(__FILE__, __LINE__, "%s: %s, resumed %s", sentence, tw_status_name(first),
                   tw_status_name(second));
        break;
      }
      if (memcmp(model.w, copy.w, sizeof model.w) != 0 || memcmp(model.b, copy.b, sizeof model.b) != 0) {
        check_fail(__FILE__, __LINE__, "%s: other bits when resumed", sentence);
        break;
      }
    }
    free(saved.data);
    OK(tw_optimizer_destroy(optimizer));
    OK(tw_optimizer_destroy(resumed));
  }
}

int main(void) {
  RUN(methods);
  RUN(hyper_parameters);
  RUN(inputs);
  RUN(requests);
  RUN(sentences);
  RUN(bounds);
  RUN(steps);
  FINISH();
}
