// Logistic regression on a real data set, in C++.
//
// Reads examples/data/breast_cancer.csv, trains on four fifths of the rows with AdamW, a warm-up and cosine
// schedule and an L1 prox, which makes useless weights exactly zero, and tests on the rest.  Half way the
// state goes to a file; at the end a second optimizer starts from there and must arrive at the same bits.
//
//   c++ -std=c++17 logistic.cpp $(pkg-config --cflags --libs thalweg) -o logistic && ./logistic [breast_cancer.csv]
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <numeric>
#include <stdexcept>
#include <string>
#include <thalweg/thalweg.hpp>
#include <vector>

#include "breast_cancer.hpp"

namespace {

constexpr int steps = 400;
const char* const sentence =
    "clip_global_norm(1.0) | adamw(lr=warmup_cosine(peak=0.05, warmup=20, total=400), weight_decay=0.01) "
    "| prox(l1(0.05))";

/// The model: a weight for each feature, and a bias.
struct Model {
  std::vector<double> w = std::vector<double>(features), b = std::vector<double>(1);

  /// The weights as a matrix of one row, so that the L1 prox takes them and leaves the bias alone.
  thalweg::Tensors tensors() {
    return {thalweg::Tensor(w, {1, features}).as(thalweg::Role::weight),
            thalweg::Tensor(b).as(thalweg::Role::bias)};
  }

  double logit(const double* x) const { return std::inner_product(w.begin(), w.end(), x, b[0]); }

  double accuracy(const DataSet& data) const {
    std::size_t right = 0;
    for (std::size_t i = 0; i < data.rows(); ++i) right += (logit(data.row(i)) > 0) == (data.y[i] > 0.5);
    return static_cast<double>(right) / static_cast<double>(data.rows());
  }

  /// The mean logistic loss on `data`; writes its gradient.
  double loss(const DataSet& data, Model& gradient) const {
    double loss = 0;
    std::fill(gradient.w.begin(), gradient.w.end(), 0.0);
    gradient.b[0] = 0;
    const double scale = 1.0 / static_cast<double>(data.rows());
    for (std::size_t i = 0; i < data.rows(); ++i) {
      const double z = logit(data.row(i));
      loss += scale * (std::max(z, 0.0) - z * data.y[i] + std::log1p(std::exp(-std::abs(z))));
      const double dz = scale * (1 / (1 + std::exp(-z)) - data.y[i]);
      for (std::size_t j = 0; j < features; ++j) gradient.w[j] += dz * data.row(i)[j];
      gradient.b[0] += dz;
    }
    return loss;
  }
};

/// An optimizer for `model`, which reads its gradients from `gradient`.
thalweg::Optimizer make_optimizer(Model& model, Model& gradient) {
  thalweg::Optimizer optimizer(sentence);
  optimizer.add_parameters(model.tensors(), {"weight", "bias"});
  optimizer.bind_gradients(gradient.tensors());
  return optimizer;
}

int run(const std::string& path) {
  DataSet training, test;
  read(path, training, test);
  standardise(training, test);
  std::printf("thalweg %s, %zu rows to train on, %zu to test on\n%s\n", thalweg::version().data(),
              training.rows(), test.rows(), sentence);

  // The first half, a checkpoint, the second half.
  Model model, gradient;
  thalweg::Optimizer optimizer = make_optimizer(model, gradient);
  double loss = 0;
  const auto closure = [&] { return loss = model.loss(training, gradient); };
  for (int step = 0; step < steps / 2; ++step) {
    optimizer.step(closure);
    if (step % 50 == 0)
      std::printf("step %3d   loss %.4f   next lr %.4f\n", step, loss, optimizer.get("adamw.lr"));
  }
  const auto checkpoint = std::filesystem::temp_directory_path() / "thalweg-logistic.safetensors";
  optimizer.save_file(checkpoint.string());
  Model resumed = model;
  for (int step = steps / 2; step < steps; ++step) optimizer.step(closure);

  // The second half once more, from the checkpoint.
  thalweg::Optimizer second = make_optimizer(resumed, gradient);
  second.load_file(checkpoint.string());
  std::filesystem::remove(checkpoint);
  for (int step = steps / 2; step < steps; ++step) {
    second.step([&] { return resumed.loss(training, gradient); });
  }
  const bool same = model.w == resumed.w && model.b == resumed.b;

  for (const thalweg::MemoryUse& use : optimizer.memory().uses) {
    std::printf("state %s.%s: %zu bytes\n", use.stage.c_str(), use.slot.c_str(), use.bytes);
  }
  std::printf("loss %.4f, %td of %zu weights are zero\n", loss,
              std::count(model.w.begin(), model.w.end(), 0.0), features);
  std::printf("accuracy: %.1f %% in training, %.1f %% in the test\n", 100 * model.accuracy(training),
              100 * model.accuracy(test));
  std::printf("the resumed run has %s\n", same ? "the same bits" : "OTHER BITS");
  return same && model.accuracy(test) > 0.95 ? EXIT_SUCCESS : EXIT_FAILURE;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return run(argc > 1 ? argv[1] : "../data/breast_cancer.csv");
  } catch (const thalweg::Error& error) {
    std::fprintf(stderr, "%s: %s\n", error.status_name(), error.what());
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
  }
  return EXIT_FAILURE;
}
