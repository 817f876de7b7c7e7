// thalweg.hpp without exceptions: every failure lands in a Status, or ends the program.  Built with -fno-exceptions, as
// C++20, whose spans are tensors.
#include <sys/wait.h>
#include <unistd.h>

#include <cmath>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <span>
#include <string>
#include <vector>

#define PROGRAM "cpp_status"
#include "check.hpp"

#if defined(__cpp_exceptions)
#error "this test is built with -fno-exceptions"
#endif

namespace {

thalweg::Status status;

// The last call came to this, with a message; the next one starts clean.
#define FAILED(expected, ...) \
  do { \
    static_cast<void>(__VA_ARGS__); \
    if (status.code() != (expected) || status || status.message().empty()) { \
      fail(__LINE__, std::string(#__VA_ARGS__ " came to ") + status.name() + ": " + status.message()); \
    } \
  } while (0)

using thalweg::Tensor;

void optimizers() {
  NEED("adamw");
  FAILED(TW_ERROR_METHOD, thalweg::Optimizer("adamm", {}, status));
  CHECK(status.message().find("adam") != std::string::npos);
  thalweg::Optimizer none("(", {}, status);
  FAILED(TW_ERROR_HANDLE, none.step(status));
  FAILED(TW_ERROR_HANDLE, none.save(status));
  CHECK(none.sentence(status).empty() && status.code() == TW_ERROR_HANDLE && none.parameter_count() == 0);
  CHECK(none.state(status).empty() && none.memory(status).uses.empty());

  std::vector<float> w(8, 1), g(8, 0.5f);
  thalweg::Optimizer optimizer("adamw(lr=0.125)", thalweg::Options().seed(3), status);
  CHECK(status && status.message().empty());
  FAILED(TW_ERROR_SEQUENCE, optimizer.step(status));
  optimizer.add_parameters({Tensor(w)}, {"one", "two"}, {}, {}, status);
  FAILED(TW_ERROR_COUNT, 0);
  optimizer.add_parameters({Tensor(w, {9}, status)}, {}, {}, {}, status); // (the library refuses such a tensor as well)
  FAILED(TW_ERROR_SHAPE, 0);
  CHECK(Tensor(w.data(), {8}, {1, 1}, status).shape() == thalweg::Shape{-1});
  FAILED(TW_ERROR_SHAPE, 0);
  optimizer.add_parameters({Tensor(w)}, {"w"}, "all", {{"lr", "0.25"}}, status);
  optimizer.bind_gradients({Tensor(g)}, status);
  CHECK(status && optimizer.step(status) && w[0] < 1);
  CHECK(optimizer.get("lr", "all", status) == 0.25 && status);
  FAILED(TW_ERROR_NAME, optimizer.get("nothing", {}, status));
  CHECK(optimizer.get_text("nothing", {}, status).empty());
  optimizer.set("lr", -1, {}, status);
  FAILED(TW_ERROR_RANGE, 0);
  optimizer.set("adamw.lr", "x(", {}, status);
  CHECK(!status);
  FAILED(TW_ERROR_ARGUMENT, optimizer.read_state(1000, status).size());
  const std::vector<std::uint8_t> bytes = optimizer.save(status);
  CHECK(status && !bytes.empty());
  optimizer.load(std::span<const std::uint8_t>(bytes).first(bytes.size() - 1), status);
  FAILED(TW_ERROR_FORMAT, 0);
  optimizer.load(std::span<const std::uint8_t>(bytes), status);
  CHECK(status);
  optimizer.load_file("/no/such/file", status);
  FAILED(TW_ERROR_FILE, 0);
}

void requests() {
  NEED("sam");
  std::vector<double> w{3, 4}, g(2);
  thalweg::Optimizer sam("sam(0.5) | sgd(lr=0.1)", {}, status);
  sam.add_parameters({Tensor(w)}, {}, {}, {}, status);
  int passes = 0;
  for (thalweg::Request& request : sam.requests(status)) passes += 1, request.answer(0);
  FAILED(TW_ERROR_SEQUENCE, 0); // no gradients are bound
  CHECK(w[0] == 3 && w[1] == 4);
  sam.bind_gradients({Tensor(g)}, status);
  passes = 0;
  thalweg::Requests asked = sam.requests(status);
  for (thalweg::Request& request : asked) {
    passes += request.wants_gradient();
    g = w;
  }
  CHECK(status && passes == 2 && asked.status() == TW_OK && std::abs(w[0] - 2.67) < 1e-10);
  for (thalweg::Request& request : sam.requests(status)) {
    if (request.pass() == 1) break;
  }
  CHECK(std::abs(w[0] - 2.67) < 1e-10);
  sam.cancel(status);
  FAILED(TW_ERROR_SEQUENCE, 0);
  const auto closure = [&] { return g = w, 0.; };
  CHECK(sam.step(closure, status) && status && w[0] < 2.5);
  // More than the closure can answer: the step is cancelled, and the next one is a fresh one.
  NEED("pcgrad");
  thalweg::Optimizer tasks("pcgrad(tasks=2) | sgd(lr=0.1)", {}, status);
  tasks.add_parameters({Tensor(w)}, {}, {}, {}, status);
  tasks.bind_gradients({Tensor(g)}, status);
  CHECK(!tasks.step(closure, status));
  FAILED(TW_ERROR_NEEDS, 0);
  thalweg::Request request;
  CHECK(!tasks.waiting(request, status) && status);
  thalweg::Optimizer moved(std::move(tasks));
  CHECK(!tasks.next(request, status) && status.code() == TW_ERROR_HANDLE && moved.next(request, status) == TW_MORE);
}

void the_others() {
  NEED("checkered_regression");
  std::vector<double> z{0.5, -1.5}, w{3, -0.25};
  const std::vector<std::int64_t> y{1, -1};
  FAILED(TW_ERROR_METHOD, thalweg::Objective("sgd", status));
  FAILED(TW_ERROR_METHOD, thalweg::Constraint("sgd", status));
  FAILED(TW_ERROR_METHOD, thalweg::Regularizer("simplex", status));
  FAILED(TW_ERROR_METHOD, thalweg::Solver("sgd", status));
  FAILED(TW_ERROR_METHOD, thalweg::Schedule("sgd", status));
  FAILED(TW_ERROR_METHOD, thalweg::Aggregator("sgd", status));
  FAILED(TW_ERROR_METHOD, thalweg::method("sgdd", status));
  CHECK(thalweg::methods(status).size() == tw_method_count() && status);
  const thalweg::Objective checkered("checkered_regression", status);
  thalweg::Cache cache(status);
  CHECK(checkered.forward({Tensor(z, {2, 1}), Tensor(y)}, cache, status) > 0 && status);
  CHECK(checkered.value({Tensor(z, {2, 1})}, status) == 0 && status.code() == TW_ERROR_NEEDS);
  checkered.pullback(thalweg::Cache(status), {Tensor(w, {2, 1})}, 1, status);
  FAILED(TW_ERROR_SEQUENCE, 0);
  const thalweg::Schedule cosine("cosine(lr=0.5, total=100)", status);
  CHECK(cosine(0, status) == 0.5 && cosine(-1, status) == 0 && status.code() == TW_ERROR_RANGE);
  thalweg::set_num_threads(0, status);
  FAILED(TW_ERROR_RANGE, 0);
  thalweg::Aggregator two("upgrad(2)", status);
  two(Tensor(z.data(), {1, 2}), Tensor(w), {}, status);
  FAILED(TW_ERROR_COUNT, 0);
  CHECK(w[0] == 3);
}

void solvers() {
  NEED("cg");
  std::vector<double> b{1, 1};
  thalweg::Solver solver("cg(rtol=1e-12)", status);
  CHECK(!solver.next(status) && status.code() == TW_ERROR_SEQUENCE);
  solver.begin({Tensor(std::span<double>(b))}, status);
  CHECK(status && solver.next(status) && status.code() == TW_MORE);
  FAILED(TW_ERROR_COUNT, solver.request().given(1, status));
  CHECK(solver.request().given(1, status).size() == 0 && solver.request().given(1, status).c_view().data == nullptr);
  FAILED(TW_ERROR_LAYOUT, solver.request().given(0).data<double>(status));
  CHECK(solver.request().given(0).span<const float>(status).empty() && status.code() == TW_ERROR_DTYPE);
  CHECK(std::isnan(solver.request().number(7, status)) && status.code() == TW_ERROR_COUNT);
  do {
    const std::span<const double> x = solver.request().given(0).span<const double>(status);
    const std::span<double> to = solver.request().wanted(0).span<double>(status);
    for (std::size_t i = 0; i < to.size(); i += 1) to[i] = static_cast<double>(i + 1) * x[i];
  } while (solver.next(status));
  CHECK(status && solver.outcome() == thalweg::Outcome::converged);
  const thalweg::SolverTensor found = solver.tensor("x", status);
  const std::span<const double> x = found.span<const double>();
  CHECK(x.size() == 2 && std::abs(x[0] - 1) < 1e-12 && std::abs(x[1] - 0.5) < 1e-12);
  CHECK(solver.tensor("nothing", status).shape() == thalweg::Shape{0} && status.code() == TW_ERROR_NAME);
  CHECK(solver.number("nothing", status) == 0 && !status);
}

void spans() {
  NEED("sgd");
  std::vector<float> memory{1, 2, 3, 4, 5, 6}, g{1, 1, 1, 1};
  const std::span<float> part = std::span(memory).subspan(1, 4);
  thalweg::Optimizer sgd("sgd(lr=0.5)");
  sgd.add_parameters({Tensor(part, {2, 2})});
  CHECK(sgd.step_with({Tensor(std::span<const float, 4>(g), {2, 2})}));
  CHECK(memory == (std::vector<float>{1, 1.5f, 2.5f, 3.5f, 4.5f, 6}));
  CHECK(Tensor(std::span<const float>(g)).c_view().flags == TW_TENSOR_READ_ONLY && Tensor(part).size() == 4);
  FAILED(TW_ERROR_SHAPE, Tensor(part, {5}, status));
}

// A failure that no Status takes ends the program, with the message.
void untaken() {
  if (std::getenv("THALWEG_TEST_NO_FORK") != nullptr) {
    skipped = true;
    return;
  }
  int ends[2];
  if (pipe(ends) != 0) return fail(__LINE__, "no pipe");
  const pid_t child = fork();
  if (child == 0) {
    dup2(ends[1], STDERR_FILENO);
    thalweg::method("no_such_method");
    _exit(0);
  }
  close(ends[1]);
  std::string said(4096, '\0');
  const ssize_t length = read(ends[0], said.data(), said.size());
  close(ends[0]);
  int ended = 0;
  CHECK(child > 0 && waitpid(child, &ended, 0) == child && WIFSIGNALED(ended) && WTERMSIG(ended) == SIGABRT);
  CHECK(length > 0 && said.find("TW_ERROR_METHOD: ") == 0 && said.find("no_such_method") != std::string::npos);
}

}  // namespace

int main() {
  RUN(optimizers);
  RUN(requests);
  RUN(the_others);
  RUN(solvers);
  RUN(spans);
  RUN(untaken);
  return bad > 0 ? EXIT_FAILURE : EXIT_SUCCESS;
}
