// A host whose tensors are described as ggml's are: `ne` counts elements, the fastest axis first; `nb` are strides in
// bytes; unused axes count 1.  `view` is all that such a host needs.
//
// Trains a linear layer whose weights are rows of a padded buffer and whose gradient is a transposed view, and checks
// that plain dense memory comes to the same bits.  Built without exceptions, as such hosts often are: a call that can
// fail takes a Status, or ends the program with its message.
//
//   c++ -std=c++17 -O2 -fno-exceptions ggml_host.cpp $(pkg-config --cflags --libs thalweg) -o ggml_host && ./ggml_host
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <thalweg/thalweg.hpp>
#include <vector>

namespace host {

enum class type { f32 = 0, f16 = 1, q8_0 = 8, i32 = 26, i64 = 27, f64 = 28, bf16 = 30 };

struct tensor {
  host::type type;
  std::int64_t ne[4];
  std::size_t nb[4];
  void* data;
};

}  // namespace host

namespace {

/// The same memory as a tensor of thalweg.  TW_ERROR_DTYPE for quantised blocks, TW_ERROR_LAYOUT where a stride ends
/// within an element.
thalweg::Tensor view(const host::tensor& t, thalweg::Errors errors = {}) {
  using thalweg::DType;
  DType dtype{};
  std::size_t width = 0;
  switch (t.type) {
    case host::type::f32: dtype = DType::f32, width = 4; break;
    case host::type::f64: dtype = DType::f64, width = 8; break;
    case host::type::f16: dtype = DType::f16, width = 2; break;
    case host::type::bf16: dtype = DType::bf16, width = 2; break;
    case host::type::i32: dtype = DType::i32, width = 4; break;
    case host::type::i64: dtype = DType::i64, width = 8; break;
    default:
      errors.fail(TW_ERROR_DTYPE,
                  "type " + std::to_string(static_cast<int>(t.type)) + " is stored in blocks: it has no view");
  }
  int axes = 4;
  while (axes > 1 && t.ne[axes - 1] == 1) --axes;
  thalweg::Shape shape, strides;
  for (int axis = axes - 1; axis >= 0 && width > 0; --axis) {  // the slowest first
    if (t.nb[axis] % width != 0) errors.fail(TW_ERROR_LAYOUT, "a stride ends within an element"), width = 0;
    if (width > 0) shape.push_back(t.ne[axis]), strides.push_back(static_cast<std::int64_t>(t.nb[axis] / width));
  }
  return width > 0 ? thalweg::Tensor(t.data, dtype, shape, strides) : thalweg::Tensor::absent();
}

constexpr std::int64_t in = 6, out = 3, padded = 8;
const char* const sentence =
    "route(matrix=(muon(lr=cosine(lr=0.1, total=400))), other=(adamw(lr=cosine(lr=0.1, total=400))))";

double input(int sample, std::int64_t j) { return std::sin(1 + 1.7 * sample + 2.3 * static_cast<double>(j * sample)); }
double truth(std::int64_t i, std::int64_t j) { return std::cos(static_cast<double>(1 + 3 * i + 5 * j)); }
float* at(const host::tensor& t, std::int64_t i, std::int64_t j) {
  return reinterpret_cast<float*>(static_cast<char*>(t.data) + static_cast<std::size_t>(j) * t.nb[0] +
                                  static_cast<std::size_t>(i) * t.nb[1]);
}

/// Fits w x + b to the truth, in whatever layout the four tensors have; the mean squared error at the end.
double fit(const host::tensor& w, const host::tensor& b, const host::tensor& dw, const host::tensor& db) {
  thalweg::Optimizer optimizer(sentence);
  optimizer.add_parameters({view(w).as(thalweg::Role::weight), view(b).as(thalweg::Role::bias)}, {"w", "b"});
  optimizer.bind_gradients({view(dw), view(db)});
  const auto loss_and_gradient = [&] {
    constexpr int samples = 40;
    double loss = 0;
    for (std::int64_t i = 0; i < out; ++i) {
      double bias = 0, row[in] = {};
      for (int sample = 0; sample < samples; ++sample) {
        double error = *at(b, 0, i);
        for (std::int64_t j = 0; j < in; ++j) error += (*at(w, i, j) - truth(i, j)) * input(sample, j);
        loss += error * error / samples;
        bias += 2 * error / samples;
        for (std::int64_t j = 0; j < in; ++j) row[j] += 2 * error * input(sample, j) / samples;
      }
      *at(db, 0, i) = static_cast<float>(bias);
      for (std::int64_t j = 0; j < in; ++j) *at(dw, i, j) = static_cast<float>(row[j]);
    }
    return loss;
  };
  for (int step = 0; step < 400; ++step) optimizer.step(loss_and_gradient);
  return loss_and_gradient();
}

}  // namespace

int main() {
  // Rows of the weights lie 8 floats apart, the gradient is (in, out) seen as (out, in).
  std::vector<float> buffer(out * padded, 7), bias(out), turned(in * out), bias_gradient(out);
  host::tensor w{host::type::f32, {in, out, 1, 1}, {4, padded * 4, out * padded * 4, out * padded * 4}, buffer.data()};
  host::tensor b{host::type::f32, {out, 1, 1, 1}, {4, out * 4, out * 4, out * 4}, bias.data()};
  host::tensor dw{host::type::f32, {in, out, 1, 1}, {out * 4, 4, in * out * 4, in * out * 4}, turned.data()};
  host::tensor db{host::type::f32, {out, 1, 1, 1}, {4, out * 4, out * 4, out * 4}, bias_gradient.data()};
  for (std::int64_t i = 0; i < out; ++i) {
    for (std::int64_t j = 0; j < in; ++j) *at(w, i, j) = 0;
  }
  const double loss = fit(w, b, dw, db);

  std::vector<float> plain(in * out), plain_bias(out), gradient(in * out);
  const std::size_t dense[4] = {4, in * 4, in * out * 4, in * out * 4};
  host::tensor v{host::type::f32, {in, out, 1, 1}, {dense[0], dense[1], dense[2], dense[3]}, plain.data()};
  host::tensor dv{host::type::f32, {in, out, 1, 1}, {dense[0], dense[1], dense[2], dense[3]}, gradient.data()};
  host::tensor c = b;
  c.data = plain_bias.data();
  fit(v, c, dv, db);
  bool same = bias == plain_bias, around = true;
  for (std::int64_t i = 0; i < out; ++i) {
    for (std::int64_t j = 0; j < in; ++j) same = same && *at(w, i, j) == *at(v, i, j);
    for (std::int64_t j = in; j < padded; ++j) around = around && buffer[static_cast<std::size_t>(i * padded + j)] == 7;
  }

  host::tensor quantised = w, odd = w;
  quantised.type = host::type::q8_0;
  odd.nb[1] = 30;
  thalweg::Status no_view, no_stride;
  view(quantised, no_view);
  view(odd, no_stride);
  std::printf("thalweg %s\n%s\n", thalweg::version().data(), sentence);
  std::printf("loss %.1e; padded and transposed tensors have %s as dense ones; the padding is %s\n", loss,
              same ? "the same bits" : "OTHER BITS", around ? "untouched" : "WRITTEN");
  std::printf("refused: %s; %s\n", no_view.message().c_str(), no_stride.message().c_str());
  const bool refused = no_view.code() == TW_ERROR_DTYPE && no_stride.code() == TW_ERROR_LAYOUT;
  return same && around && refused && loss < 1e-4 ? EXIT_SUCCESS : EXIT_FAILURE;
}
