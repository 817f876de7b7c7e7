// thalweg.hpp: ownership, errors, and every member once.
#define PROGRAM "cpp_wrapper"
#include "check.hpp"

#include <array>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <initializer_list>
#include <limits>
#include <optional>
#include <string>
#include <vector>

namespace {

// The statement must throw an Error with this status and a message.
#define THROWS(expected, ...) \
  do { \
    try { \
      __VA_ARGS__; \
      fail(__LINE__, "no error: " #__VA_ARGS__); \
    } catch (const thalweg::Error& error) { \
      if (error.status() != (expected) || error.what()[0] == 0) { \
        fail(__LINE__, std::string(#__VA_ARGS__ " threw ") + error.status_name() + ": " + error.what()); \
      } \
    } \
  } while (0)

using thalweg::Tensor;

void ownership() {
  NEED("sgd");
  std::vector<float> w{1, 2}, g{1, 1};
  thalweg::Optimizer a("sgd(lr=0.5)");
  a.add_parameters({Tensor(w)});
  a.bind_gradients({Tensor(g)});
  thalweg::Optimizer b(std::move(a));
  CHECK(a.c_handle() == nullptr && b.c_handle() != nullptr);
  CHECK(b.step());
  CHECK(w[0] == 0.5f && w[1] == 1.5f);
  THROWS(TW_ERROR_HANDLE, a.step());
  CHECK(a.parameter_count() == 0 && b.parameter_count() == 1);
  thalweg::Optimizer c("sgd(lr=0.25)");
  tw_optimizer* const replaced = c.c_handle();
  c = std::move(b);
  CHECK(b.c_handle() == nullptr);
  CHECK(tw_optimizer_parameter_count(replaced) == 0);  // gone, not kept alive in b
  CHECK(c.get("lr") == 0.5);
  thalweg::Optimizer& same = c;
  c = std::move(same);
  CHECK(c.get("lr") == 0.5);
  a = thalweg::Optimizer("sgd(lr=0.125)");
  CHECK(a.get("sgd.lr") == 0.125);
  std::vector<thalweg::Optimizer> many;
  for (int i = 0; i < 20; ++i) many.emplace_back("sgd(lr=0.5)");
  CHECK(many.back().get("lr") == 0.5);
}

void errors() {
  THROWS(TW_ERROR_METHOD, thalweg::Optimizer("no_such_method"));
  THROWS(TW_ERROR_SYNTAX, thalweg::Optimizer(""));
  THROWS(TW_ERROR_SYNTAX, thalweg::Regularizer("("));
  THROWS(TW_ERROR_METHOD, thalweg::method("no_such_method"));
  try {
    thalweg::method("no_such_method");
  } catch (const std::runtime_error& error) {
    CHECK(std::string(error.what()).find("no_such_method") != std::string::npos);
  }
  NEED("sgd");
  thalweg::Optimizer optimizer("sgd(lr=0.5)");
  THROWS(TW_ERROR_SEQUENCE, optimizer.step());
  THROWS(TW_ERROR_NAME, optimizer.get("nothing"));
  THROWS(TW_ERROR_RANGE, optimizer.set("lr", -1.0));
  THROWS(TW_ERROR_RANGE, optimizer.set("lr", std::numeric_limits<double>::quiet_NaN()));
  const std::vector<float> constant{1, 2};
  THROWS(TW_ERROR_LAYOUT, optimizer.add_parameters({Tensor(constant)}));
  std::vector<float> w{1, 2};
  THROWS(TW_ERROR_OVERLAP, optimizer.add_parameters({Tensor(w), Tensor(w)}));
  THROWS(TW_ERROR_COUNT, optimizer.add_parameters({Tensor(w)}, {"one", "two"}));
  THROWS(TW_ERROR_SHAPE, Tensor(w, {3}));
  THROWS(TW_ERROR_SHAPE, Tensor(w.data(), {2}, {1, 1}));
  THROWS(TW_ERROR_DTYPE, optimizer.add_parameters({Tensor(w.data(), static_cast<thalweg::DType>(99), {2})}));
  CHECK(optimizer.parameter_count() == 0);
}

void tensors() {
  std::vector<double> v(6);
  std::array<float, 4> a{};
  CHECK(Tensor(v).size() == 6 && Tensor(v).dtype() == thalweg::DType::f64);
  CHECK(Tensor(v, {2, 3}).shape() == (thalweg::Shape{2, 3}));
  CHECK(Tensor(a).dtype() == thalweg::DType::f32 && Tensor(a).c_view().flags == 0);
  const auto& constant = v;
  CHECK(Tensor(constant).c_view().flags == TW_TENSOR_READ_ONLY &&
        Tensor(v).read_only().c_view().flags == TW_TENSOR_READ_ONLY);
  CHECK(Tensor(v).as(thalweg::Role::bias).c_view().role == TW_ROLE_BIAS);
  CHECK(Tensor::absent(thalweg::DType::f32, {3}).c_view().flags == TW_TENSOR_ABSENT);
  CHECK(Tensor(v.data(), {INT64_MAX, 2}).size() == -1 && Tensor(v.data(), {-1}).size() == -1);
  CHECK(Tensor(v.data(), {INT64_MAX, 0}).size() == 0 && Tensor(v.data(), thalweg::Shape{}).size() == 1);
  const Tensor strided(v.data() + 5, {3}, {-2});
  const tw_tensor view = strided.c_view();
  CHECK(view.ndim == 1 && view.strides[0] == -2 && view.reserved[0] == 0 && view.data == v.data() + 5);
  const Tensor copy = strided;
  CHECK(copy.c_view().shape != view.shape && copy.c_view().shape[0] == 3);
}

void views_and_dtypes() {
  NEED("sgd");
  std::vector<float> memory(10, 1), g{1, 2, 3};
  thalweg::Optimizer optimizer("sgd(lr=0.5)");
  optimizer.add_parameters({Tensor(memory.data() + 9, {3}, {-4})});
  CHECK(optimizer.step_with({Tensor(g)}));
  CHECK(memory[9] == 0.5f && memory[5] == 0 && memory[1] == -0.5f && memory[0] == 1 && memory[4] == 1);
  std::vector<std::uint16_t> half{0x3F80}, half_g{0x3F80};
  thalweg::Optimizer brain("sgd(lr=0.5)");
  brain.add_parameters({Tensor(half.data(), thalweg::DType::bf16, {1})});
  brain.bind_gradients({Tensor(half_g.data(), thalweg::DType::bf16, {1})});
  brain.step();
  CHECK(half[0] == 0x3F00);
  double w[2] = {1, 2}, d[2] = {2, 4};
  const double* constant = d;
  thalweg::Optimizer dense("sgd(lr=0.5)");
  dense.add_dense(w, 2);
  dense.bind_dense(constant, 2);
  CHECK(dense.step() && w[0] == 0 && w[1] == 0);
  THROWS(TW_ERROR_SHAPE, dense.bind_dense(d, 1));
  THROWS(TW_ERROR_LAYOUT, dense.add_dense(constant, 2));
  thalweg::Status status;
  dense.add_dense(w, 2, status);
  CHECK(status.code() == TW_ERROR_OVERLAP);
}

void options() {
  NEED("sgd");
  std::vector<float> w{1, 1}, g{1, std::nanf("")};
  thalweg::Optimizer optimizer(
      "sgd(lr=0.5)", thalweg::Options().nonfinite(thalweg::NonFinite::skip).gradient_scale(0.5).maximize());
  optimizer.add_parameters({Tensor(w)});
  optimizer.bind_gradients({Tensor(g)});
  CHECK(!optimizer.step());
  CHECK(w[0] == 1 && optimizer.get("skipped") == 1);
  g[1] = 2;
  CHECK(optimizer.step());
  CHECK(w[0] == 1.25f && w[1] == 1.5f);
  const thalweg::Options all = thalweg::Options()
                                   .state(thalweg::Storage::q8)
                                   .master(thalweg::Master::stochastic)
                                   .zero_gradients()
                                   .consume_gradients(false)
                                   .seed(7);
  CHECK(all.c_options().struct_size == sizeof(tw_options) && all.c_options().seed == 7);
  CHECK(all.c_options().state_dtype == TW_STATE_Q8 && all.c_options().zero_gradients == 1);
}

void hyper_parameters() {
  NEED("adamw");
  std::vector<float> a{1}, b{1};
  thalweg::Optimizer optimizer("adamw(lr=0.5)");
  optimizer.add_parameters({Tensor(a)}, {"a"}, "slow");
  optimizer.add_parameters({Tensor(b)}, {"b"}, "fast");
  CHECK(optimizer.parameter_count() == 2);
  optimizer.set("lr", 0.25, "slow");
  CHECK(optimizer.get("lr", "slow") == 0.25 && optimizer.get("adamw.lr", "fast") == 0.5 &&
        optimizer.get("lr") == 0.5);
  optimizer.set("lr", 1);
  CHECK(optimizer.get("lr", "slow") == 1);
  optimizer.set("adamw.lr", "0.125");
  CHECK(optimizer.get("lr") == 0.125 && optimizer.get_text("lr") == "0.125");
  const std::string sentence = optimizer.sentence();
  CHECK(sentence.find("adamw") == 0 && sentence.size() > 64);
  CHECK(thalweg::Optimizer(sentence).sentence() == sentence);
}

void closures() {
  NEED("sgd");
  std::vector<double> w{3, 4}, g(2);
  thalweg::Optimizer plain("sgd(lr=0.5)");
  plain.add_parameters({Tensor(w)});
  plain.bind_gradients({Tensor(g)});
  int calls = 0;
  CHECK(plain.step([&] {
    ++calls;
    g = w;
    return 0.5 * (w[0] * w[0] + w[1] * w[1]);
  }));
  CHECK(calls == 1 && w[0] == 1.5 && w[1] == 2);
  std::function<void(thalweg::Request&)> answer = [&](thalweg::Request& request) {
    CHECK(request.kind() == thalweg::RequestKind::gradient && request.wants_gradient() &&
          !request.wants_loss());
    CHECK(request.pass() == 0 && request.probe_count() == 0);
    g = w;
  };
  CHECK(plain.step(answer));
  CHECK(w[0] == 0.75 && w[1] == 1);
  // A closure that throws: nothing has happened, and the next step is a fresh one.
  try {
    plain.step([]() -> double { throw std::runtime_error("no data"); });
    fail(__LINE__, "the exception was lost");
  } catch (const std::runtime_error& error) {
    CHECK(std::string(error.what()) == "no data");
  }
  CHECK(w[0] == 0.75 && plain.get("steps") == 2);
  THROWS(TW_ERROR_SEQUENCE, plain.cancel());
  // By hand.
  thalweg::Request request;
  CHECK(plain.next(request) == TW_MORE);
  g = w;
  CHECK(plain.next(request) == TW_OK);
  CHECK(w[0] == 0.375 && w[1] == 0.5);
  CHECK(plain.next(request) == TW_MORE);
  plain.cancel();
  CHECK(w[0] == 0.375);
  // A loop over a step that is refused ends; what it came to is a status as well.
  std::vector<double> v{1};
  thalweg::Optimizer careful("sgd(lr=0.5)", thalweg::Options().nonfinite(thalweg::NonFinite::skip));
  careful.add_parameters({Tensor(v)});
  careful.bind_gradients({Tensor(g.data(), {1})});
  for (const double value : {std::numeric_limits<double>::quiet_NaN(), 1.0}) {
    int asked = 0;
    thalweg::Next now = careful.next(request);
    for (; now && asked < 3; now = careful.next(request)) {
      g[0] = value;
      ++asked;
    }
    const bool more = now;
    const tw_status status = now;
    CHECK(asked == 1 && !more && !now.more() && now.skipped() == (value != value));
    CHECK(now == status && now != TW_MORE && status == (value != value ? TW_SKIPPED : TW_OK) && now.status() == status);
  }
  CHECK(v[0] == 0.5 && careful.get("skipped") == 1);
  if (!have("sam")) return;
  std::vector<double> u{3, 4};
  thalweg::Optimizer sam("sam(0.5) | sgd(lr=0.1)");
  sam.add_parameters({Tensor(u)});
  sam.bind_gradients({Tensor(g)});
  calls = 0;
  CHECK(sam.step([&] {
    ++calls;
    g = u;
    return 0.0;
  }));
  CHECK(calls == 2 && std::abs(u[0] - 2.67) < 1e-10 && std::abs(u[1] - 3.56) < 1e-10);
}

// An optimizer that ends between two requests leaves the weights where the step began; so does one that is moved over.
void ends_inside_a_step() {
  NEED("sam");
  std::vector<double> w{3, 4}, g{3, 4};
  const auto away = [&] {
    thalweg::Optimizer sam("sam(0.5) | sgd(lr=0.1)");
    sam.add_parameters({Tensor(w)});
    sam.bind_gradients({Tensor(g)});
    thalweg::Request request;
    CHECK(sam.next(request) == TW_MORE);
    CHECK(sam.next(request) == TW_MORE);
    CHECK(std::abs(w[0] - 3.3) < 1e-10 && std::abs(w[1] - 4.4) < 1e-10);
    return sam;
  };
  away();
  CHECK(w[0] == 3 && w[1] == 4);
  try {
    const thalweg::Optimizer sam = away();
    throw std::runtime_error("no data");
  } catch (const std::runtime_error&) {
  }
  CHECK(w[0] == 3 && w[1] == 4);
  thalweg::Optimizer sam = away();
  sam = thalweg::Optimizer("sgd(lr=1)");
  CHECK(w[0] == 3 && w[1] == 4);
}

// The requests of a step as a loop; whatever leaves it early, the weights are those from before the step.
void requests() {
  NEED("sam");
  std::vector<double> w{3, 4}, g(2);
  const std::vector<double> start = w;
  thalweg::Optimizer sam("sam(0.5) | sgd(lr=0.1)", thalweg::Options().nonfinite(thalweg::NonFinite::skip));
  sam.add_parameters({Tensor(w)});
  sam.bind_gradients({Tensor(g)});
  const auto leave = [&](int how) {
    for (thalweg::Request& request : sam.requests()) {
      g = w;
      if (request.pass() == 0) continue;
      CHECK(w != start);
      if (how == 0) break;
      if (how == 1) return;
      throw std::runtime_error("no data");
    }
  };
  for (const int how : {0, 1, 2}) {
    try {
      leave(how);
      CHECK(how < 2);
    } catch (const std::runtime_error&) {
      CHECK(how == 2);
    }
    CHECK(w == start && sam.get("steps") == 0);
  }
  THROWS(TW_ERROR_SEQUENCE, sam.cancel());
  // An error within the loop has ended the step by itself.
  THROWS(TW_ERROR_COUNT, for (thalweg::Request& request : sam.requests()) {
    if (request.pass() == 1) sam.bind_gradients({});
    g = w;
  });
  CHECK(w == start);
  // A name without tensors would be passed over, whatever it is.
  {
    thalweg::Requests named = sam.requests();
    named.begin();
    THROWS(TW_ERROR_ARGUMENT, sam.answer({{"gradients", {Tensor(g)}}, {"losses", {}}}));
    sam.answer({{"gradients", {Tensor(g)}}});
    named.cancel();
    CHECK(w == start);
  }
  // One that has been moved from cancels nothing, one that is cancelled twice is cancelled once.
  {
    thalweg::Requests first = sam.requests();
    thalweg::Requests::Iterator request = first.begin();
    CHECK(request != first.end() && request->kind() == thalweg::RequestKind::gradient && first.status() == TW_MORE);
    thalweg::Requests second(std::move(first));
    first.cancel();
    CHECK(second.status() == TW_MORE && sam.waiting(*request));
    second.cancel();
    second.cancel();
    CHECK(!sam.waiting(*request) && second.status() == TW_OK);
  }
  g[0] = std::numeric_limits<double>::quiet_NaN();
  thalweg::Requests refused = sam.requests();
  for (thalweg::Request& request : refused) CHECK(request.count() == 0);
  CHECK(refused.skipped() && w == start && sam.get("skipped") == 1);
  thalweg::Requests taken = sam.requests();
  int passes = 0;
  for (thalweg::Request& request : taken) {
    CHECK(request.pass() == passes++);
    g = w;
  }
  CHECK(passes == 2 && taken.status() == TW_OK && std::abs(w[0] - 2.67) < 1e-10 && std::abs(w[1] - 3.56) < 1e-10);
  // Requests that outlive their optimizer find a handle that is gone; the weights were put back when it went.
  {
    thalweg::Requests late = [&] {
      thalweg::Optimizer gone("sam(0.5) | sgd(lr=0.1)");
      gone.add_parameters({Tensor(w)});
      gone.bind_gradients({Tensor(g)});
      thalweg::Requests asked = gone.requests();
      ++asked.begin();
      CHECK(asked.status() == TW_MORE && std::abs(w[0] - 2.67) > 0.1);
      return asked;
    }();
    CHECK(late.status() == TW_MORE && std::abs(w[0] - 2.67) < 1e-10);
    THROWS(TW_ERROR_HANDLE, late.begin());
  }
  THROWS(TW_ERROR_HANDLE, {
    const thalweg::Optimizer away(std::move(sam));
    for (thalweg::Request& request : sam.requests()) request.answer(0);
  });
}

// A Status in place of exceptions: every call sets it anew.  cpp_status.cpp has the rest.
void statuses() {
  NEED("sgd");
  thalweg::Status status;
  CHECK(status && status.code() == TW_OK && status.message().empty());
  thalweg::Optimizer none("no_such_method", {}, status);
  CHECK(!status && status.code() == TW_ERROR_METHOD && !status.message().empty() && none.c_handle() == nullptr);
  CHECK(std::string(status.name()) == "TW_ERROR_METHOD");
  CHECK(!none.step(status) && status.code() == TW_ERROR_HANDLE);
  THROWS(TW_ERROR_HANDLE, none.step());
  std::vector<float> w{1}, g{1};
  thalweg::Optimizer sgd("sgd(lr=0.5)", {}, status);
  CHECK(status.ok() && status.message().empty());
  sgd.add_parameters({Tensor(w)}, {}, {}, {}, status);
  CHECK(status && sgd.step_with({Tensor(g)}, status) && w[0] == 0.5f);
  // An exception of the closure is no failure of the library: it comes through.
  try {
    sgd.step([]() -> double { throw std::runtime_error("no data"); }, status);
    fail(__LINE__, "the exception was lost");
  } catch (const std::runtime_error&) {
  }
}

// What a reducer of C++ throws comes out of the step that called it, and nothing has changed.
void reducers() {
  NEED("clip_global_norm");
  std::vector<double> w{3, 4}, g{3, 4};
  struct {
    bool broken = false;
    int calls = 0;
    void operator()(double* sums, std::size_t count, double*, std::size_t) {
      calls += 1;
      if (broken) throw std::out_of_range("a rank has gone");
      for (std::size_t i = 0; i < count; i += 1) sums[i] *= 4; // three more ranks with the same
    }
  } reduce;
  thalweg::Optimizer optimizer("clip_global_norm(5) | sgd(lr=1)");
  optimizer.add_parameters({Tensor(w)});
  optimizer.bind_gradients({Tensor(g)});
  optimizer.set_reducer(reduce);
  for (const bool closure : {false, true}) {
    reduce.broken = true;
    try {
      closure ? optimizer.step([] { return 0.; }) : optimizer.step();
      fail(__LINE__, "the exception was lost");
    } catch (const std::out_of_range& error) {
      CHECK(std::string(error.what()) == "a rank has gone");
    }
    CHECK(w[0] == 3 && w[1] == 4 && optimizer.get("steps") == 0);
    reduce.broken = false;
    THROWS(TW_ERROR_NAME, optimizer.get("nothing")); // and is thrown once
  }
  CHECK(optimizer.step() && reduce.calls > 2);
  CHECK(std::abs(w[0] - 1.5) < 1e-6 && std::abs(w[1] - 2) < 1e-6); // a norm of 10 was clipped to 5
  optimizer.set_reducer(nullptr);
}

// Threads of the host as a callable of C++.
void executors() {
  NEED("adamw");
  std::vector<float> w(200000, 1), g(200000, 0.5f), u = w;
  struct {
    std::size_t tasks = 0;
    void operator()(thalweg::Task task, std::size_t count) {
      for (tasks += count; count > 0;) task(--count);
    }
  } backwards;
  const int threads = thalweg::num_threads();
  thalweg::set_num_threads(3);
  for (std::vector<float>* at : {&w, &u}) {
    thalweg::Optimizer optimizer("adamw(lr=0.01)");
    optimizer.add_parameters({Tensor(*at)});
    if (at == &u) thalweg::set_executor(backwards);
    CHECK(optimizer.step_with({Tensor(g)}));
  }
  thalweg::set_executor(nullptr);
  thalweg::set_num_threads(threads);
  CHECK(backwards.tasks > 1 && u == w && w[0] != 1);
}

// The numbers are those of tw.aggregate in Python, where every method is compared (test_aggregate.py).
void aggregators() {
  NEED("upgrad");
  const std::vector<double> jacobian{1, -2, 0.5, 3, -2, 1, 1, 0.25, 0.5, 0.5, -3, 1};
  std::vector<double> g(4);
  const auto close = [&](std::initializer_list<double> expected) {
    std::size_t i = 0;
    for (const double x : expected) CHECK(std::abs(g[i++] - x) < 1e-14);
  };
  const auto combine = [&](const char* sentence) {
    thalweg::Aggregator aggregate(sentence);
    aggregate(Tensor(jacobian, {3, 4}), Tensor(g));
  };
  for (const char* sentence : {"upgrad", " upgrad( ) ", "upgrad(3)", "upgrad(tasks=3)"}) {
    combine(sentence);
    close({-0.7289930018300259, 0.09686844280357038, -0.46737977087333227, 1.8273600530228942});
  }
  combine("pareto_da"); // asks for one gradient that is of no task
  close({2, -4, 1, 6});
  combine("odice"); // takes no number of tasks
  // Views of any strides, a model of several tensors, and a memory of the call before.
  std::vector<double> turned(12), wide(8, 7), first(1), second(3);
  for (int k = 0; k < 3; k += 1) {
    for (int i = 0; i < 4; i += 1) turned[i * 3 + 2 - k] = 2 * jacobian[k * 4 + i]; // the last task first
  }
  thalweg::Aggregator vaccine("gradvac"), moved("mgda");
  vaccine(Tensor(jacobian, {3, 4}), Tensor(g));
  close({-2.107547640825453, 0.18273992240270198, -1.270612099490081, 5.4673517920740275});
  moved = std::move(vaccine);
  moved(Tensor(turned.data(), {3, 4}, {1, 3}), Tensor(wide.data() + 7, {4}, {-2}));
  close({-2.107547640825453, 0.18273992240270198, -1.270612099490081, 5.4673517920740275});
  for (int i = 0; i < 4; i += 1) g[i] = wide[7 - 2 * i];
  close({-2.631667112124919, -0.1509718905659012, -3.132043186751881, 9.714841283485713});
  CHECK(wide[0] == 7 && wide[6] == 7);
  thalweg::Aggregator several("upgrad");
  several({Tensor(jacobian.data(), {3, 1}, {4, 1}), Tensor(jacobian.data() + 1, {3, 3}, {4, 1})},
          {Tensor(first), Tensor(second)});
  g = {first[0], second[0], second[1], second[2]};
  close({-0.7289930018300259, 0.09686844280357038, -0.46737977087333227, 1.8273600530228942});
  std::vector<float> single(jacobian.begin(), jacobian.end()), f(4);
  thalweg::Aggregator("pcgrad")(Tensor(single, {3, 4}), Tensor(f));
  CHECK(std::abs(f[0] + 2.1075476f) < 1e-6f && std::abs(f[3] - 5.467352f) < 1e-6f);

  thalweg::Aggregator upgrad("upgrad"), two("upgrad(2)");
  THROWS(TW_ERROR_HANDLE, vaccine(Tensor(jacobian, {3, 4}), Tensor(g)));
  THROWS(TW_ERROR_COUNT, two(Tensor(jacobian, {3, 4}), Tensor(g)));
  THROWS(TW_ERROR_COUNT, upgrad(Tensor(jacobian, {3, 4}), Tensor(g), {1, 2}));
  THROWS(TW_ERROR_SHAPE, upgrad(Tensor(jacobian, {4, 3}), Tensor(g)));
  THROWS(TW_ERROR_SHAPE, upgrad(Tensor(jacobian.data(), {0, 4}), Tensor(g)));
  THROWS(TW_ERROR_DTYPE, upgrad(Tensor(jacobian, {3, 4}), Tensor(f)));
  THROWS(TW_ERROR_LAYOUT, upgrad(Tensor(jacobian, {3, 4}), Tensor(g).read_only()));
  THROWS(TW_ERROR_METHOD, thalweg::Aggregator("sgd"));
  THROWS(TW_ERROR_METHOD, thalweg::Aggregator("nothing_known"));
  THROWS(TW_ERROR_METHOD, thalweg::Aggregator(""));
  THROWS(TW_ERROR_RANGE, thalweg::Aggregator("pcgrad(tasks=2) | sam(0.05)"));
  THROWS(TW_ERROR_NAME, thalweg::Aggregator("upgrad(nothing=1)")(Tensor(jacobian, {3, 4}), Tensor(g)));
  std::vector<double> bad = jacobian;
  bad[5] = std::numeric_limits<double>::quiet_NaN();
  THROWS(TW_ERROR_NONFINITE, upgrad(Tensor(bad, {3, 4}), Tensor(g)));
  upgrad(Tensor(jacobian, {3, 4}), Tensor(g));
  close({-0.7289930018300259, 0.09686844280357038, -0.46737977087333227, 1.8273600530228942});
  THROWS(TW_ERROR_COUNT, upgrad(Tensor(jacobian.data(), {2, 4}), Tensor(g)));
  THROWS(TW_ERROR_SHAPE, upgrad(Tensor(jacobian.data(), {3, 2}), Tensor(g.data(), {2})));
}

void modes_and_commands() {
  NEED("ema");
  std::vector<float> w{0}, g{-1};
  thalweg::Optimizer optimizer("sgd(lr=1) | ema(0.5)");
  optimizer.add_parameters({Tensor(w)});
  optimizer.bind_gradients({Tensor(g)});
  optimizer.step();
  optimizer.step();
  optimizer.eval();
  CHECK(w[0] == 1.5f);
  THROWS(TW_ERROR_SEQUENCE, optimizer.step());
  optimizer.train();
  CHECK(w[0] == 2);
  THROWS(TW_ERROR_NAME, optimizer.command("ema.no_such_command"));
}

void state_and_checkpoints() {
  NEED("adamw");
  std::vector<float> w(100, 1), g(100, 0.5f), u;
  const auto start = [&](std::vector<float>& parameters) {
    thalweg::Optimizer optimizer("adamw(lr=0.01)");
    optimizer.add_parameters({Tensor(parameters, {10, 10})});
    optimizer.bind_gradients({Tensor(g, {10, 10})});
    return optimizer;
  };
  thalweg::Optimizer optimizer = start(w);
  optimizer.step();
  const std::vector<thalweg::State> rows = optimizer.state();
  bool found = false;
  for (std::size_t i = 0; i < rows.size(); ++i) {
    if (rows[i].slot != "exp_avg") continue;
    found = true;
    CHECK(rows[i].stage == "adamw" && rows[i].parameter == 0 && rows[i].count == 100 && rows[i].bytes == 400);
    CHECK(rows[i].storage == thalweg::Storage::f32);
    const std::vector<double> values = optimizer.read_state(i);
    CHECK(values.size() == 100 && std::abs(values[99] - 0.05) < 1e-7);
  }
  CHECK(found);
  const thalweg::MemoryReport memory = optimizer.memory();
  CHECK(memory.bytes >= 800 && memory.uses.size() >= 2);
  // Half in memory, half in a file.
  const std::vector<std::uint8_t> bytes = optimizer.save();
  u = w;
  thalweg::Optimizer second = start(u);
  second.load(bytes);
  CHECK(second.save() == bytes);
  optimizer.step();
  second.step();
  CHECK(u == w);
  const char* folder = std::getenv("TMPDIR");
  const std::string path =
      std::string(folder != nullptr ? folder : "/tmp") + "/thalweg-cpp-wrapper.safetensors";
  optimizer.save_file(path);
  std::vector<float> v = w;
  thalweg::Optimizer third = start(v);
  third.load_file(path);
  std::remove(path.c_str());
  optimizer.step();
  third.step();
  CHECK(v == w);
  THROWS(TW_ERROR_FILE, third.load_file(path));
  THROWS(TW_ERROR_FORMAT, third.load(bytes.data(), bytes.size() - 1));
  THROWS(TW_ERROR_FORMAT, third.load("", 0));
  // Other memory, the same state.
  std::vector<float> moved = v;
  third.rebind_parameters({Tensor(moved, {10, 10})});
  third.step();
  optimizer.step();
  CHECK(moved == w && v != w);
  std::vector<std::uint16_t> shadow(100);
  third.bind_shadow({Tensor(shadow.data(), thalweg::DType::bf16, {10, 10})});
  third.step();
  CHECK(shadow[0] != 0);
  third.bind_shadow({});
}

void absent_gradients() {
  NEED("sgd");
  std::vector<float> a{1}, b{1}, g{1};
  thalweg::Optimizer optimizer("sgd(lr=0.5)");
  optimizer.add_parameters({Tensor(a), Tensor(b)});
  optimizer.step_with({Tensor::absent(thalweg::DType::f32, {1}), Tensor(g).read_only()});
  CHECK(a[0] == 1 && b[0] == 0.5f);
}

void regularizers() {
  NEED("l1");
  std::vector<double> w{3, -0.25}, g{0, 0};
  const thalweg::Regularizer l1("l1(0.5)");
  CHECK(l1.value(Tensor(w)) == 1.625);
  l1.add_gradient(Tensor(w), Tensor(g), 2);
  CHECK(g[0] == 1 && g[1] == -1);
  l1.prox(Tensor(w), 1);
  std::vector<float> none(w.size(), 0);
  l1.prox(Tensor(w), Tensor(none));  // a step of 0 for each element changes nothing
  CHECK(w[0] == 2.5 && w[1] == 0);
  thalweg::Regularizer moved("l1(1)");
  moved = thalweg::Regularizer("l1(2)");
  CHECK(moved.value(Tensor(w)) == 5);
}

void constraints() {
  NEED("simplex");
  std::vector<double> w{1, 0.5, -2};
  const thalweg::Constraint simplex("simplex");
  simplex.project(Tensor(w));
  CHECK(std::abs(w[0] - 0.75) < 1e-15 && w[2] == 0);
  CHECK(simplex.c_handle() != nullptr);
  const thalweg::Constraint sphere("sphere");
  std::vector<double> x{1, 0}, y{1, 0}, u{0.5, 2};
  CHECK(sphere.check_tangent(Tensor(x), Tensor(u)) == std::vector<double>{0.5});
  sphere.project_tangent(Tensor(x), Tensor(u));
  CHECK(u[0] == 0 && sphere.inner(Tensor(x), Tensor(u), Tensor(u)) == std::vector<double>{4});
  sphere.exp(Tensor(y), Tensor(u));
  CHECK(std::abs(sphere.distance(Tensor(x), Tensor(y)).at(0) - 2) < 1e-15);
  std::vector<double> back{9, 9};
  sphere.log(Tensor(x), Tensor(y), Tensor(back));
  CHECK(std::abs(back[1] - 2) < 1e-15);
  sphere.transport(Tensor(x), Tensor(y), Tensor(back));
  CHECK(std::abs(back[0] * y[0] + back[1] * y[1]) < 1e-15);
  CHECK(sphere.check_point(Tensor(x)) == std::vector<double>{0});
  THROWS(TW_ERROR_UNSUPPORTED, simplex.distance(Tensor(x), Tensor(y)));
  std::vector<double> none;
  CHECK(thalweg::Constraint("euclidean").check_point(Tensor(none)).empty());
}

void objectives() {
  NEED("checkered_regression");
  std::vector<double> z{0.5, -1.5, 2}, dz{0, 0, 0};
  const std::vector<std::int64_t> y{1, -1, 1};
  const thalweg::Objective checkered("checkered_regression");
  thalweg::Cache cache;
  const thalweg::Tensors inputs{Tensor(z, {3, 1}), Tensor(y)};
  const double value = checkered.forward(inputs, cache);
  CHECK(value == checkered.value(inputs));
  const double losses = std::log1p(std::exp(-0.5)) + std::log1p(std::exp(-1.5)) + std::log1p(std::exp(-2.));
  CHECK(std::abs(value - losses / 3) < 1e-15);
  checkered.pullback(cache, {Tensor(dz, {3, 1})}, -3);
  CHECK(std::abs(dz[0] - 1 / (1 + std::exp(0.5))) < 1e-15);
  CHECK(std::abs(dz[1] + 1 / (1 + std::exp(1.5))) < 1e-15);
  THROWS(TW_ERROR_NEEDS, checkered.value({Tensor(z, {3, 1})}));
  THROWS(TW_ERROR_NEEDS, checkered.value({Tensor(z, {3, 1}), Tensor::absent()}));
  THROWS(TW_ERROR_SEQUENCE, checkered.pullback(thalweg::Cache(), {Tensor(dz, {3, 1})}));
  THROWS(TW_ERROR_METHOD, thalweg::Objective("sgd"));
  thalweg::Objective moved("sum_log_concave");
  moved = thalweg::Objective("checkered_regression");
  CHECK(moved.value(inputs) == value && moved.c_handle() != nullptr && cache.c_handle() != nullptr);
  THROWS(TW_ERROR_MISMATCH, moved.pullback(cache, {Tensor(dz, {3, 1})}));

  std::vector<double> w{0, 1, 1, 0}, delta{3, 4}, slope{1, 1}, g(4, 0.);
  const thalweg::Regularizer vanishing("rnn_vanishing");
  const thalweg::Tensors given{Tensor(w, {2, 2}), Tensor(delta, {1, 1, 2}), Tensor(slope, {1, 1, 2})};
  CHECK(std::abs(vanishing.value(given)) < 1e-30);
  vanishing.add_gradient(given, Tensor(g, {2, 2}), 2);
  CHECK(std::abs(g[0]) < 1e-14 && std::abs(g[3]) < 1e-14);
  THROWS(TW_ERROR_NEEDS, vanishing.value(Tensor(w, {2, 2})));
}

void solvers() {
  NEED("cg");
  const std::vector<double> diagonal{1, 2, 4};
  std::vector<double> b{1, 1, 1};
  const auto multiply = [&](const thalweg::SolverRequest& request) {
    const double* x = request.given(0).data<const double>();
    double* y = request.wanted(0).data<double>();
    for (std::size_t i = 0; i < request.given(0).size(); i += 1) y[i] = diagonal[i] * x[i];
  };
  thalweg::Solver solver("cg(rtol=1e-12)");
  THROWS(TW_ERROR_SEQUENCE, solver.next());
  solver.begin({Tensor(b)});
  CHECK(solver.next() && solver.request().name() == "product" && solver.request().wanted_count() == 1);
  THROWS(TW_ERROR_LAYOUT, solver.request().given(0).data<double>());
  THROWS(TW_ERROR_DTYPE, solver.request().given(0).data<const float>());
  THROWS(TW_ERROR_COUNT, solver.request().given(1));
  thalweg::Solver copy = solver.copy(), loaded("cg(rtol=1e-12)");
  loaded.load(solver.save());
  for (thalweg::Solver* each : {&solver, &copy, &loaded}) {
    CHECK(each->outcome() == thalweg::Outcome::running);
    do multiply(each->request());
    while (each->next());
    CHECK(each->outcome() == thalweg::Outcome::converged && each->request().outcome_name() == "converged");
    const double* x = each->tensor("x").data<const double>();
    for (std::size_t i = 0; i < 3; i += 1) CHECK(std::abs(x[i] - 1 / diagonal[i]) < 1e-12);
    CHECK(each->number("residual") < 1e-11 && each->tensor("x").shape() == thalweg::Shape{3});
  }
  THROWS(TW_ERROR_NAME, solver.number("nothing"));
  THROWS(TW_ERROR_METHOD, thalweg::Solver("sgd"));

  double phi0 = 0, dphi0 = -1;
  thalweg::Solver search("armijo(alpha0=8)");
  search.begin({Tensor(&phi0, {}), Tensor(&dphi0, {})});
  while (search.next()) {
    const double a = search.request().number(0);
    search.request().answer(0, a * a - a);
  }
  CHECK(search.outcome() == thalweg::Outcome::converged && search.number("alpha") == 0.5);
}

void schedules() {
  NEED("cosine");
  const thalweg::Schedule cosine("cosine(lr=0.5, total=100)");
  CHECK(cosine(0) == 0.5 && std::abs(cosine(50) - 0.25) < 1e-15);
  THROWS(TW_ERROR_RANGE, cosine(-1));
  NEED("reduce_on_plateau");
  thalweg::Schedule plateau("reduce_on_plateau(lr=1, patience=0)"), twin("reduce_on_plateau(lr=1, patience=0)");
  for (int i = 0; i < 3; i += 1) plateau.observe("metric", 1);
  twin.load(plateau.save());
  const thalweg::Schedule written(plateau.sentence());
  CHECK(plateau(0) < 0.5 && twin(0) == plateau(0) && written(0) == plateau(0));
  THROWS(TW_ERROR_FORMAT, twin.load("x", 1));
}

void introspection() {
  const std::vector<thalweg::MethodInfo> all = thalweg::methods();
  CHECK(all.size() == tw_method_count() && !all.empty());
  for (const thalweg::MethodInfo& method : all) {
    CHECK(!method.name.empty() && !method.kind.empty());
    for (const thalweg::ParameterInfo& parameter : method.parameters) {
      CHECK(!parameter.name.empty() && parameter.required == parameter.default_text.empty());
    }
  }
  NEED("pcg");
  const thalweg::MethodInfo pcg = thalweg::method("pcg");
  CHECK(pcg.asks.size() == 2 && pcg.asks[1].name == "precondition" && pcg.asks[1].given[0].shape == "(...,)");
  CHECK(pcg.asks[0].wanted.size() == 1 && !pcg.asks[0].takes_nonfinite);
  NEED("adamw");
  const thalweg::MethodInfo adamw = thalweg::method("adamw");
  CHECK(adamw.kind == "optimizer" && adamw.parameters.front().name == "lr");
  CHECK(adamw.parameters.front().type == thalweg::ParameterType::number && adamw.parameters.front().live);
  CHECK(adamw.state.size() >= 2 && adamw.inputs.empty());
  NEED("checkered_regression");
  const thalweg::MethodInfo checkered = thalweg::method("checkered_regression");
  CHECK(checkered.inputs.size() == 2);
  CHECK(checkered.inputs[0].name == "z" && checkered.inputs[0].shape == "(B, m)");
  CHECK(checkered.inputs[0].differentiable && checkered.inputs[1].integer && !checkered.inputs[1].optional);
}

void process() {
  CHECK(!thalweg::version().empty() && !thalweg::build_info().empty());
  const int threads = thalweg::num_threads();
  thalweg::set_num_threads(2);
  CHECK(thalweg::num_threads() == 2);
  THROWS(TW_ERROR_RANGE, thalweg::set_num_threads(0));
  thalweg::set_num_threads(threads);
  CHECK(thalweg::random_normal(1, 2, 3, 4, 5, 6).size() == 6);
  CHECK(thalweg::random_normal(1, 2, 3, 4, 0, 8)[5] == thalweg::random_normal(1, 2, 3, 4, 5, 1)[0]);
  thalweg::set_log(nullptr);
  thalweg::set_executor(nullptr);
  thalweg::set_allocator(nullptr, nullptr);
}

// Two runs take turns on one optimizer, which keeps nothing of them.
void carried() {
  std::vector<float> w(6, 1), same(6, 1), g(6, 0.5f), moment(6), other_moment(6);
  thalweg::Optimizer opt("sgd(lr=0.5, momentum=0.5)"), plain("sgd(lr=0.5, momentum=0.5)");
  opt.add_parameters({thalweg::Tensor(w, {6})});
  plain.add_parameters({thalweg::Tensor(same, {6})});
  plain.bind_gradients({thalweg::Tensor(g, {6})});
  std::vector<double> numbers(opt.carried_numbers()), other_numbers(numbers.size());
  std::vector<float> other(6, 1);
  for (int k = 0; k < 6; ++k) {
    const bool first = k % 2 == 0;
    void* parameters[1] = {first ? w.data() : other.data()};
    void* gradients[1] = {g.data()};
    void* state[1] = {first ? moment.data() : other_moment.data()};
    tw_carried c = {};
    c.count = 1, c.parameters = parameters, c.gradients = gradients, c.state = state, c.state_count = 1;
    c.numbers = first ? numbers.data() : other_numbers.data(), c.number_count = numbers.size();
    CHECK(opt.step_carried(c));
    if (first) plain.step();
  }
  CHECK(w == same && other == same && numbers[1] == 3);
  THROWS(TW_ERROR_COUNT, opt.step_carried(tw_carried{}));
  thalweg::Optimizer asks("sam(0.05) | sgd(lr=0.1)");
  THROWS(TW_ERROR_NEEDS, asks.carried_numbers());
}

void services() {
  static int asked;
  asked = 0;
  tw_services own = {};
  own.allocate = [](void*, std::size_t size, std::size_t) -> void* { return ++asked, std::aligned_alloc(64, (size + 63) / 64 * 64); };
  own.deallocate = [](void*, void* memory, std::size_t) { std::free(memory); };
  std::vector<float> w(8, 1), g(8, 1);
  const auto step = [&](thalweg::Optimizer& opt) {
    opt.add_parameters({thalweg::Tensor(w, {8})});
    opt.bind_gradients({thalweg::Tensor(g, {8})});
    opt.step();
  };
  {
    std::optional<thalweg::UseServices> use(std::in_place, own);
    thalweg::Optimizer mine("adamw(lr=0.1)");
    use.reset();
    step(mine);
  }
  const int before = asked;
  thalweg::Optimizer plain("adamw(lr=0.1)");
  step(plain);
  CHECK(before > 0 && asked == before);
  own.deallocate = nullptr;
  THROWS(TW_ERROR_ARGUMENT, thalweg::UseServices{own});
}

}  // namespace

int main() {
  RUN(ownership);
  RUN(errors);
  RUN(tensors);
  RUN(views_and_dtypes);
  RUN(options);
  RUN(hyper_parameters);
  RUN(closures);
  RUN(ends_inside_a_step);
  RUN(requests);
  RUN(statuses);
  RUN(reducers);
  RUN(executors);
  RUN(aggregators);
  RUN(modes_and_commands);
  RUN(state_and_checkpoints);
  RUN(absent_gradients);
  RUN(regularizers);
  RUN(constraints);
  RUN(objectives);
  RUN(solvers);
  RUN(schedules);
  RUN(introspection);
  RUN(carried);
  RUN(services);
  RUN(process);
  return bad > 0 ? EXIT_FAILURE : EXIT_SUCCESS;
}
