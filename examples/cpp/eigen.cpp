// Eigen's matrices, column- and row-major, and blocks of larger ones: a view is a pointer, a shape and strides.
//
// Fits a linear map with Muon, three times: with weights in Eigen's own order, row by row, and as a block of a larger
// matrix.  All three come to the same bits, and to the map that made the data.
//
//   c++ -std=c++17 -O2 eigen.cpp $(pkg-config --cflags --libs thalweg eigen3) -o eigen && ./eigen
#include <Eigen/Core>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <thalweg/thalweg.hpp>
#include <type_traits>

namespace {

/// A view of a matrix, vector, block or map of Eigen's; it must outlive its use, as any memory behind a Tensor.
template <typename Derived>
thalweg::Tensor view(Eigen::DenseBase<Derived>& matrix) {
  auto& m = matrix.derived();
  if constexpr (Derived::IsVectorAtCompileTime) return thalweg::Tensor(m.data(), {m.size()}, {m.innerStride()});
  return thalweg::Tensor(m.data(), {m.rows(), m.cols()}, {m.rowStride(), m.colStride()});
}

constexpr int samples = 200, inputs = 12, outputs = 5;
const char* const sentence =
    "route(matrix=(muon(lr=cosine(lr=0.05, total=400))), other=(adamw(lr=cosine(lr=0.05, total=400))))";

/// Fits y = x W^T + b from zero; the gradients have the order of `Gradient`, whatever that of W.
template <typename Gradient, typename Weights>
void fit(const Eigen::MatrixXd& x, const Eigen::MatrixXd& y, Eigen::DenseBase<Weights>& w, Eigen::VectorXd& b) {
  w.setZero();
  b.setZero();
  Gradient dw(outputs, inputs);
  Eigen::VectorXd db(outputs);
  thalweg::Optimizer optimizer(sentence);
  optimizer.add_parameters({view(w).as(thalweg::Role::weight), view(b).as(thalweg::Role::bias)}, {"w", "b"});
  optimizer.bind_gradients({view(dw), view(db)});
  for (int step = 0; step < 400; ++step) {
    const Eigen::MatrixXd weights = w.derived();
    Eigen::MatrixXd error = x * weights.transpose() - y;
    error.rowwise() += b.transpose();
    const Eigen::MatrixXd product = error.transpose() * x / samples;
    dw = product;
    db = error.colwise().mean();
    optimizer.step();
  }
}

int run() {
  std::srand(1);  // Eigen's random numbers
  const Eigen::MatrixXd x = Eigen::MatrixXd::Random(samples, inputs);
  const Eigen::MatrixXd truth = Eigen::MatrixXd::Random(outputs, inputs);
  const Eigen::MatrixXd y = x * truth.transpose();

  using RowMajor = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
  Eigen::MatrixXd columns(outputs, inputs), larger = Eigen::MatrixXd::Constant(outputs + 4, inputs + 3, 7);
  RowMajor rows(outputs, inputs);
  auto block = larger.block(2, 1, outputs, inputs);
  Eigen::VectorXd b(outputs), b_rows(outputs), b_block(outputs);
  fit<Eigen::MatrixXd>(x, y, columns, b);
  fit<RowMajor>(x, y, rows, b_rows);
  fit<RowMajor>(x, y, block, b_block);

  const double off = (columns - truth).cwiseAbs().maxCoeff();
  const bool same = columns == rows && columns == block && b == b_rows && b == b_block;
  block.setConstant(7);
  const bool around = (larger.array() == 7).all();  // nothing was written beside the block
  std::printf("thalweg %s, Eigen %d.%d.%d\n%s\n", thalweg::version().data(), EIGEN_WORLD_VERSION, EIGEN_MAJOR_VERSION,
              EIGEN_MINOR_VERSION, sentence);
  std::printf("column-major, row-major and block have %s\n", same ? "the same bits" : "OTHER BITS");
  std::printf("the largest difference from the true weights: %.1e\n", off);
  return same && around && off < 1e-4 ? EXIT_SUCCESS : EXIT_FAILURE;
}

}  // namespace

int main() {
  try {
    return run();
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
  }
  return EXIT_FAILURE;
}
