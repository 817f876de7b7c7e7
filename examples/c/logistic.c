/* Logistic regression on a real data set, in C.
 *
 * Reads examples/data/breast_cancer.csv, trains on four fifths of the rows with AdamW, a warm-up and cosine
 * schedule and an L1 prox, which makes useless weights exactly zero, and tests on the rest.  Half way the
 * state is saved; at the end a second optimizer starts from there and must arrive at the same bits.
 *
 *   cc logistic.c $(pkg-config --cflags --libs thalweg) -lm -o logistic && ./logistic [breast_cancer.csv]
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <thalweg/thalweg.h>

enum { FEATURES = 30, STEPS = 400 };

static const char *const sentence =
    "adamw(lr=warmup_cosine(peak=0.05, warmup=20, total=400), weight_decay=0.01) | prox(l1(0.05))";

/* Rows of FEATURES numbers, and the class of each row (0 malignant, 1 benign). */
typedef struct {
  size_t rows;
  float *x;
  float *y;
} data_set;

/* The model: a weight for each feature, and a bias. */
typedef struct {
  float w[FEATURES];
  float b;
} model;

static void fail(const char *what) {
  fprintf(stderr, "%s\n", what);
  exit(EXIT_FAILURE);
}

/* Every status goes through here: a message, and the end. */
static void check(tw_status status) {
  if (status < 0) {
    fprintf(stderr, "%s: %s\n", tw_status_name(status), tw_last_error());
    exit(EXIT_FAILURE);
  }
}

/* ---- data --------------------------------------------------------------------------------------------- */

static data_set new_data(size_t rows) {
  data_set data = {rows, malloc(rows * FEATURES * sizeof(float)), malloc(rows * sizeof(float))};
  if (data.x == NULL || data.y == NULL) fail("out of memory");
  return data;
}

static void free_data(data_set *data) {
  free(data->x);
  free(data->y);
}

/* Reads the file: a header "rows,features,names...", then one row a line. */
static data_set read_data(const char *path) {
  FILE *file = fopen(path, "r");
  if (file == NULL) {
    fprintf(stderr, "%s cannot be opened\n", path);
    exit(EXIT_FAILURE);
  }
  size_t rows, features;
  if (fscanf(file, "%zu,%zu,%*[^\n]", &rows, &features) != 2 || rows == 0 || rows > 100000 ||
      features != FEATURES) {
    fail("the header of the data is not understood");
  }
  data_set data = new_data(rows);
  for (size_t i = 0; i < rows; i++) {
    for (size_t j = 0; j < FEATURES; j++) {
      if (fscanf(file, "%f,", &data.x[i * FEATURES + j]) != 1) fail("a row of the data is not understood");
    }
    if (fscanf(file, "%f", &data.y[i]) != 1) fail("a class in the data is not understood");
  }
  fclose(file);
  return data;
}

/* Every fifth row goes to the test set, the others to the training set. */
static void split(const data_set *all, data_set *train, data_set *test) {
  *test = new_data((all->rows + 4) / 5);
  *train = new_data(all->rows - test->rows);
  size_t next_train = 0, next_test = 0;
  for (size_t i = 0; i < all->rows; i++) {
    data_set *to = i % 5 == 0 ? test : train;
    size_t row = i % 5 == 0 ? next_test++ : next_train++;
    memcpy(to->x + row * FEATURES, all->x + i * FEATURES, FEATURES * sizeof(float));
    to->y[row] = all->y[i];
  }
}

/* Shifts and scales each feature to mean 0 and variance 1 on the training set. */
static void standardise(data_set *train, data_set *test) {
  for (size_t j = 0; j < FEATURES; j++) {
    double sum = 0, squares = 0;
    for (size_t i = 0; i < train->rows; i++) sum += train->x[i * FEATURES + j];
    double mean = sum / (double)train->rows;
    for (size_t i = 0; i < train->rows; i++) squares += pow(train->x[i * FEATURES + j] - mean, 2);
    double deviation = sqrt(squares / (double)train->rows);
    for (size_t i = 0; i < train->rows; i++) {
      train->x[i * FEATURES + j] = (float)((train->x[i * FEATURES + j] - mean) / deviation);
    }
    for (size_t i = 0; i < test->rows; i++) {
      test->x[i * FEATURES + j] = (float)((test->x[i * FEATURES + j] - mean) / deviation);
    }
  }
}

/* ---- the model ---------------------------------------------------------------------------------------- */

static double logit(const model *m, const float *x) {
  double z = m->b;
  for (size_t j = 0; j < FEATURES; j++) z += (double)m->w[j] * x[j];
  return z;
}

/* The mean logistic loss and its gradient. */
static double loss_and_gradient(const model *m, const data_set *data, model *gradient) {
  double loss = 0, dw[FEATURES] = {0}, db = 0;
  for (size_t i = 0; i < data->rows; i++) {
    const float *x = data->x + i * FEATURES;
    double z = logit(m, x);
    loss += fmax(z, 0) - z * data->y[i] + log1p(exp(-fabs(z)));
    double dz = 1 / (1 + exp(-z)) - data->y[i];
    for (size_t j = 0; j < FEATURES; j++) dw[j] += dz * x[j];
    db += dz;
  }
  for (size_t j = 0; j < FEATURES; j++) gradient->w[j] = (float)(dw[j] / (double)data->rows);
  gradient->b = (float)(db / (double)data->rows);
  return loss / (double)data->rows;
}

static double accuracy(const model *m, const data_set *data) {
  size_t right = 0;
  for (size_t i = 0; i < data->rows; i++)
    right += (logit(m, data->x + i * FEATURES) > 0) == (data->y[i] > 0.5f);
  return (double)right / (double)data->rows;
}

/* ---- training ----------------------------------------------------------------------------------------- */

/* An optimizer for `m`, which reads its gradients from `gradient`.  The weights are a matrix of one row, so
 * that the L1 prox takes them and leaves the bias alone. */
static tw_optimizer *new_optimizer(model *m, model *gradient) {
  static const int64_t w_shape[] = {1, FEATURES}, b_shape[] = {1};
  static const char *const names[] = {"weight", "bias"};
  tw_tensor parameters[] = {tw_tensor_dense_f32(m->w, 2, w_shape), tw_tensor_dense_f32(&m->b, 1, b_shape)};
  const tw_tensor gradients[] = {tw_tensor_dense_f32(gradient->w, 2, w_shape),
                                 tw_tensor_dense_f32(&gradient->b, 1, b_shape)};
  parameters[0].role = TW_ROLE_WEIGHT;
  parameters[1].role = TW_ROLE_BIAS;
  tw_optimizer *optimizer;
  check(tw_optimizer_create(sentence, NULL, &optimizer));
  check(tw_optimizer_add_parameters(optimizer, parameters, 2, names, NULL));
  check(tw_optimizer_bind_gradients(optimizer, gradients, 2));
  return optimizer;
}

/* Steps from `first` up to `last`; returns the last loss. */
static double train(tw_optimizer *optimizer, model *m, model *gradient, const data_set *data, int first,
                    int last) {
  double loss = 0;
  for (int step = first; step < last; step++) {
    loss = loss_and_gradient(m, data, gradient);
    if (step % 100 == 0) {
      double lr;
      check(tw_optimizer_get_number(optimizer, NULL, "adamw.lr", &lr));
      printf("step %3d   loss %.4f   lr %.4f\n", step, loss, lr);
    }
    check(tw_optimizer_step(optimizer));
  }
  return loss;
}

int main(int argc, char **argv) {
  data_set all = read_data(argc > 1 ? argv[1] : "../data/breast_cancer.csv"), training, test;
  split(&all, &training, &test);
  standardise(&training, &test);
  printf("thalweg %s, %zu rows to train on, %zu to test on\n%s\n", tw_version(), training.rows, test.rows,
         sentence);

  /* The first half, a checkpoint, the second half. */
  model m = {{0}, 0}, gradient;
  tw_optimizer *optimizer = new_optimizer(&m, &gradient);
  train(optimizer, &m, &gradient, &training, 0, STEPS / 2);
  size_t size;
  check(tw_optimizer_save(optimizer, NULL, 0, &size));
  void *checkpoint = malloc(size);
  if (checkpoint == NULL) fail("out of memory");
  check(tw_optimizer_save(optimizer, checkpoint, size, &size));
  model resumed = m;
  double loss = train(optimizer, &m, &gradient, &training, STEPS / 2, STEPS);
  check(tw_optimizer_destroy(optimizer));

  /* The second half once more, from the checkpoint. */
  printf("again from the checkpoint (%zu bytes)\n", size);
  optimizer = new_optimizer(&resumed, &gradient);
  check(tw_optimizer_load(optimizer, checkpoint, size));
  train(optimizer, &resumed, &gradient, &training, STEPS / 2, STEPS);
  check(tw_optimizer_destroy(optimizer));
  int same = memcmp(&m, &resumed, sizeof m) == 0;

  int zeros = 0;
  for (size_t j = 0; j < FEATURES; j++) zeros += m.w[j] == 0;
  double test_accuracy = accuracy(&m, &test);
  printf("loss %.4f, %d of %d weights are zero\n", loss, zeros, FEATURES);
  printf("accuracy: %.1f %% in training, %.1f %% in the test\n", 100 * accuracy(&m, &training),
         100 * test_accuracy);
  printf("the resumed run has %s\n", same ? "the same bits" : "OTHER BITS");

  free(checkpoint);
  free_data(&all);
  free_data(&training);
  free_data(&test);
  return same && test_accuracy > 0.95 ? EXIT_SUCCESS : EXIT_FAILURE;
}
