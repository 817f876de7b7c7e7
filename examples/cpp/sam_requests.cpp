// A small network on a real data set with SAM, through the requests of each step.
//
// SAM asks for two gradients a step: at the weights, and at a point uphill of them.  Both are wanted on the same
// minibatch, which the tag of a request says; with gradient_accumulate(2) in front there are two minibatches, and four
// requests.  A loop over Optimizer::requests answers them; one that is left half way (here: by an exception) leaves the
// weights as they were before the step, bit for bit.
//
//   c++ -std=c++17 -O2 sam_requests.cpp $(pkg-config --cflags --libs thalweg) -o sam_requests
//   ./sam_requests [breast_cancer.csv]
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <random>
#include <stdexcept>
#include <thalweg/thalweg.hpp>
#include <vector>

#include "breast_cancer.hpp"

namespace {

constexpr std::size_t hidden = 16, batch = 64;
constexpr int steps = 150;
const char* const sentence = "gradient_accumulate(2) | sam(0.05) | adamw(lr=cosine(lr=0.02, total=150))";

/// 30 -> 16 -> 1: tanh, then the logit of the class.
struct Network {
  std::vector<float> w1 = std::vector<float>(hidden * features), b1 = std::vector<float>(hidden);
  std::vector<float> w2 = std::vector<float>(hidden), b2 = std::vector<float>(1);

  thalweg::Tensors tensors() {
    using thalweg::Role, thalweg::Tensor;
    return {Tensor(w1, {hidden, features}).as(Role::weight), Tensor(b1).as(Role::bias),
            Tensor(w2, {1, hidden}).as(Role::head), Tensor(b2).as(Role::bias)};
  }

  void fill(float value) {
    for (std::vector<float>* part : {&w1, &b1, &w2, &b2}) std::fill(part->begin(), part->end(), value);
  }

  bool operator==(const Network& other) const {
    return w1 == other.w1 && b1 == other.b1 && w2 == other.w2 && b2 == other.b2;
  }

  double logit(const double* x, std::array<double, hidden>& h) const {
    double z = b2[0];
    for (std::size_t i = 0; i < hidden; ++i) {
      double sum = b1[i];
      for (std::size_t j = 0; j < features; ++j) sum += w1[i * features + j] * x[j];
      h[i] = std::tanh(sum);
      z += w2[i] * h[i];
    }
    return z;
  }

  /// The mean loss on some rows; writes its gradient.
  double loss(const DataSet& data, const std::vector<std::size_t>& rows, Network& gradient) const {
    gradient.fill(0);
    double loss = 0;
    const double scale = 1.0 / static_cast<double>(rows.size());
    std::array<double, hidden> h{};
    for (const std::size_t row : rows) {
      const double* x = data.row(row);
      const double z = logit(x, h), y = data.y[row];
      loss += scale * (std::max(z, 0.0) - z * y + std::log1p(std::exp(-std::abs(z))));
      const double dz = scale * (1 / (1 + std::exp(-z)) - y);
      gradient.b2[0] += static_cast<float>(dz);
      for (std::size_t i = 0; i < hidden; ++i) {
        gradient.w2[i] += static_cast<float>(dz * h[i]);
        const double da = dz * w2[i] * (1 - h[i] * h[i]);
        gradient.b1[i] += static_cast<float>(da);
        for (std::size_t j = 0; j < features; ++j) gradient.w1[i * features + j] += static_cast<float>(da * x[j]);
      }
    }
    return loss;
  }

  double accuracy(const DataSet& data) const {
    std::array<double, hidden> h{};
    std::size_t right = 0;
    for (std::size_t i = 0; i < data.rows(); ++i) right += (logit(data.row(i), h) > 0) == (data.y[i] > 0.5);
    return static_cast<double>(right) / static_cast<double>(data.rows());
  }
};

int run(const std::string& path) {
  DataSet training, test;
  read(path, training, test);
  standardise(training, test);

  std::mt19937 random(7);
  std::uniform_real_distribution<float> start(-0.2f, 0.2f);
  std::uniform_int_distribution<std::size_t> any_row(0, training.rows() - 1);
  Network network, gradient;
  for (float& w : network.w1) w = start(random);
  for (float& w : network.w2) w = start(random);

  thalweg::Optimizer optimizer(sentence);
  optimizer.add_parameters(network.tensors(), {"hidden.weight", "hidden.bias", "out.weight", "out.bias"});
  optimizer.bind_gradients(gradient.tensors());
  std::printf("thalweg %s\n%s\n", thalweg::version().data(), sentence);

  int requests = 0;
  for (int step = 0; step < steps; ++step) {
    std::map<std::uint64_t, std::vector<std::size_t>> batches;  // of this step, by tag
    double loss = 0;
    for (thalweg::Request& request : optimizer.requests()) {
      std::vector<std::size_t>& rows = batches[request.tag()];
      while (rows.size() < batch) rows.push_back(any_row(random));
      loss = network.loss(training, rows, gradient);
      request.answer(loss);
      ++requests;
    }
    if (batches.size() != 2) throw std::runtime_error("a step has more minibatches than it should");
    if (step % 50 == 0) std::printf("step %3d   loss uphill %.4f\n", step, loss);
  }

  // The next minibatch cannot be read: the exception leaves the loop between two requests.
  const Network before = network;
  bool moved = false, same = false;
  try {
    for (thalweg::Request& request : optimizer.requests()) {
      moved = moved || !(network == before);
      if (request.pass() == 3) throw std::runtime_error("no more data");
      std::vector<std::size_t> rows{any_row(random)};
      network.loss(training, rows, gradient);
    }
  } catch (const std::runtime_error& error) {
    same = network == before;
    std::printf("%s: the weights are %s\n", error.what(), same ? "those from before the step" : "OTHERS");
  }
  std::printf("%d requests in %d steps; accuracy %.1f %% in training, %.1f %% in the test\n", requests, steps,
              100 * network.accuracy(training), 100 * network.accuracy(test));
  return requests == 4 * steps && moved && same && network.accuracy(test) > 0.95 ? EXIT_SUCCESS : EXIT_FAILURE;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return run(argc > 1 ? argv[1] : "../data/breast_cancer.csv");
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
  }
  return EXIT_FAILURE;
}
