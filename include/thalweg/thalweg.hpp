/* thalweg.hpp: libthalweg for C++17 and later.  Header-only, over the C interface in thalweg.h.
 *
 *   std::vector<float> w(n), g(n);
 *   thalweg::Optimizer optimizer("clip_global_norm(1.0) | adamw(lr=3e-4)");
 *   optimizer.add_parameters({thalweg::Tensor(w)});
 *   optimizer.bind_gradients({thalweg::Tensor(g)});
 *   for (...) { compute_gradient(w, g); optimizer.step(); }
 *
 * Ownership  Optimizer, Regularizer, Constraint, Objective, Cache, Solver, Schedule and Aggregator own their handles,
 *            release them when they die, can be moved but not copied.  A Tensor is a view: the memory behind it
 *            belongs to somebody else and must outlive its use, for bound parameters and gradients until they are
 *            bound anew or the optimizer dies.
 * Threads    One object may be used by one thread at a time (a second one gets TW_ERROR_BUSY), different objects at
 *            the same time.  Destroy an object only when no other thread uses it.
 * Errors     What can fail takes `Errors` as its last argument.  Left out, a failure throws Error.  Given a Status, it
 *            is written there, and the call returns something empty (0, false, no elements):
 *
 *              thalweg::Status status;
 *              optimizer.step(status);
 *              if (!status) std::puts(status.message().c_str());
 *
 *            Destructors and moves never fail.  A failing call changes nothing.  An object that has been moved from,
 *            or whose constructor failed into a Status, answers every call with TW_ERROR_HANDLE.
 *            Without exceptions (-fno-exceptions, or THALWEG_NO_EXCEPTIONS defined in front of the header) a failure
 *            that no Status takes ends the program with its message.
 * Callbacks  An exception must not pass through the library.  What takes a callable of C++ (step, set_reducer) hands it
 *            on around it; functions with the C signatures, and whatever runs or logs for the library, must not throw.
 * C++20      A std::span is a tensor, bytes to load, and the elements of a solver's tensor.
 */
#ifndef THALWEG_HPP
#define THALWEG_HPP

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <iterator>
#include <limits>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>
#if defined(__has_include)
#if __has_include(<version>)
#include <version>
#endif
#endif
#ifdef __cpp_lib_span
#include <span>
#endif

#include "thalweg.h"

#if !defined(THALWEG_NO_EXCEPTIONS) && !defined(__cpp_exceptions) && !defined(_CPPUNWIND)
#define THALWEG_NO_EXCEPTIONS
#endif

namespace thalweg {

/* ---- errors ------------------------------------------------------------------------------------------- */

/* A call that failed: its status (TW_ERROR_*) and the library's message as what(). */
class Error : public std::runtime_error {
 public:
  Error(tw_status status, const std::string& message) : std::runtime_error(message), status_(status) {}

  /* The status that the library returned: TW_ERROR_SHAPE and so on. */
  tw_status status() const noexcept { return status_; }

  /* Its name: "TW_ERROR_SHAPE". */
  const char* status_name() const noexcept { return tw_status_name(status_); }

 private:
  tw_status status_;
};

/* What a call came to, for a host that asks instead of catching.  Each call that it is given to sets it anew. */
class Status {
 public:
  bool ok() const noexcept { return code_ >= 0; }
  explicit operator bool() const noexcept { return ok(); }

  /* TW_OK, TW_MORE, TW_SKIPPED, or TW_ERROR_*; its name; the library's message, empty when nothing failed. */
  tw_status code() const noexcept { return code_; }
  const char* name() const noexcept { return tw_status_name(code_); }
  const std::string& message() const noexcept { return message_; }

  void set(tw_status code, std::string message = {}) noexcept {
    code_ = code;
    message_ = std::move(message);
  }

 private:
  tw_status code_ = TW_OK;
  std::string message_;
};

#ifndef THALWEG_NO_EXCEPTIONS
namespace detail {

/* An exception that a callback threw: it waits here, on the thread that steps, until the library has returned. */
inline std::exception_ptr& pending() noexcept {
  static thread_local std::exception_ptr exception;
  return exception;
}

}  // namespace detail
#endif

/* Programs may mix files with and without exceptions: those have functions of different names. */
#ifdef THALWEG_NO_EXCEPTIONS
inline namespace without_exceptions {
#else
inline namespace with_exceptions {
#endif

/* Where the failures of a call go: nowhere in particular (they are thrown), or into a Status. */
class Errors {
 public:
  Errors() noexcept = default;
  Errors(Status& status) noexcept : status_(&status) {}

  /* A failure: throws or returns its status. */
  tw_status fail(tw_status code, const std::string& message) const {
    if (status_ != nullptr) {
      status_->set(code, message);
      return code;
    }
#ifdef THALWEG_NO_EXCEPTIONS
    std::fprintf(stderr, "%s: %s\n", tw_status_name(code), message.c_str());
    std::abort();
#else
    throw Error(code, message);
#endif
  }

  /* What a function of the C interface returned. */
  tw_status check(tw_status status) const {
    if (status >= 0) {
      if (status_ != nullptr) status_->set(status);
      return status;
    }
#ifndef THALWEG_NO_EXCEPTIONS
    if (detail::pending()) std::rethrow_exception(std::exchange(detail::pending(), nullptr));
#endif
    return fail(status, tw_last_error());
  }
  bool ok(tw_status status) const { return check(status) >= 0; }

 private:
  Status* status_ = nullptr;
};

}  // namespace with_exceptions or without_exceptions

namespace detail {

/* Whether header and library belong together. */
inline bool require_compatible_library(Errors errors) {
  if (tw_abi_version() == TW_ABI_VERSION) return true;
  errors.fail(TW_ERROR_UNSUPPORTED, "thalweg.hpp was written for ABI version " + std::to_string(TW_ABI_VERSION) +
                                        ", the loaded library has version " + std::to_string(tw_abi_version()));
  return false;
}

/* The C interface takes NULL where no name is meant. */
inline const char* null_if_empty(const std::string& text) noexcept {
  return text.empty() ? nullptr : text.c_str();
}

/* Reads a text through a "buffer, capacity, needed" function, however long it is. */
template <typename Read>
std::string read_text(Errors errors, Read&& read) {
  std::string text(64, '\0');
  for (;;) {
    std::size_t needed = 0;
    const tw_status status = read(&text[0], text.size(), &needed);
    if (status == TW_ERROR_SPACE && needed > text.size()) {
      text.resize(needed);
      continue;
    }
    if (!errors.ok(status)) return {};
    text.resize(std::char_traits<char>::length(text.c_str()));
    return text;
  }
}

/* What a function of the form (object, buffer, capacity, needed) writes. */
template <typename Object>
std::vector<std::uint8_t> read_bytes(Errors errors, tw_status (*save)(Object*, void*, std::size_t, std::size_t*),
                                     Object* object) {
  std::size_t needed = 0;
  if (!errors.ok(save(object, nullptr, 0, &needed))) return {};
  std::vector<std::uint8_t> bytes(needed);
  if (!errors.ok(save(object, bytes.data(), bytes.size(), &needed))) return {};
  bytes.resize(needed);
  return bytes;
}

/* A reducer of C++ behind the signature of C. */
template <typename Reduce>
tw_status reduce_with(void* context, double* sums, std::size_t sum_count, double* maxima,
                      std::size_t maximum_count) noexcept {
  Reduce& reduce = *static_cast<Reduce*>(context);
#ifdef THALWEG_NO_EXCEPTIONS
  reduce(sums, sum_count, maxima, maximum_count);
#else
  try {
    reduce(sums, sum_count, maxima, maximum_count);
  } catch (...) {
    pending() = std::current_exception();
    return TW_ERROR_INTERNAL;
  }
#endif
  return TW_OK;
}

/* The handle of an object: released once, moved without throwing. */
template <typename Object, tw_status (*Destroy)(Object*)>
class Handle {
 public:
  Handle() noexcept = default;
  explicit Handle(Object* object) noexcept : object_(object) {}
  Handle(const Handle&) = delete;
  Handle& operator=(const Handle&) = delete;
  Handle(Handle&& other) noexcept : object_(std::exchange(other.object_, nullptr)) {}
  Handle& operator=(Handle&& other) noexcept {
    Handle old(std::exchange(object_, std::exchange(other.object_, nullptr)));
    return *this;
  }
  ~Handle() {
    if (object_ != nullptr) Destroy(object_);
  }

  Object* get() const noexcept { return object_; }
  Object** out() noexcept { return &object_; }

 private:
  Object* object_ = nullptr;
};

/* The library's element type of a C++ type. */
template <typename T>
struct DTypeOf;
template <>
struct DTypeOf<float> {
  static constexpr std::int32_t value = TW_F32;
};
template <>
struct DTypeOf<double> {
  static constexpr std::int32_t value = TW_F64;
};
template <>
struct DTypeOf<std::int32_t> {
  static constexpr std::int32_t value = TW_I32;
};
template <>
struct DTypeOf<std::int64_t> {
  static constexpr std::int32_t value = TW_I64;
};

/* A contiguous container of elements: it has data() and size().  std::vector, std::array, ... */
template <typename C, typename = void>
struct IsContiguous : std::false_type {};
template <typename C>
struct IsContiguous<C, std::void_t<decltype(std::declval<C&>().data()), decltype(std::declval<C&>().size())>>
    : std::true_type {};
#ifdef __cpp_lib_span
template <typename T, std::size_t N>
struct IsContiguous<std::span<T, N>, void> : std::false_type {}; /* taken by value: it owns nothing */
template <typename T, std::size_t N>
struct IsContiguous<const std::span<T, N>, void> : std::false_type {};
#endif

}  // namespace detail

/* ---- tensors ------------------------------------------------------------------------------------------ */

/* How the elements of a tensor are stored; i32 and i64 are for inputs of an objective that are whole numbers. */
enum class DType : std::int32_t {
  f32 = TW_F32,
  f64 = TW_F64,
  f16 = TW_F16,
  bf16 = TW_BF16,
  i32 = TW_I32,
  i64 = TW_I64
};

/* What a tensor is, where a method needs more than its shape. */
enum class Role : std::uint32_t {
  unknown = TW_ROLE_UNKNOWN,
  weight = TW_ROLE_WEIGHT,
  bias = TW_ROLE_BIAS,
  norm = TW_ROLE_NORM,
  embedding = TW_ROLE_EMBEDDING,
  head = TW_ROLE_HEAD
};

using Shape = std::vector<std::int64_t>;

/* A view of elements that somebody else owns.  Copies of a view show the same elements.  One whose constructor failed
 * into a Status has a shape that the library refuses. */
class Tensor {
 public:
  /* Elements of any type: `strides` count elements and may be negative; none means dense row-major. */
  Tensor(void* data, DType dtype, Shape shape, Shape strides = {}, Errors errors = {})
      : data_(data), dtype_(dtype), shape_(std::move(shape)), strides_(std::move(strides)) {
    if (!strides_.empty() && strides_.size() != shape_.size()) {
      refuse(errors, "a tensor of " + std::to_string(shape_.size()) + " dimensions has " +
                         std::to_string(strides_.size()) + " strides");
    }
  }

  /* The same for memory that the library must not write. */
  Tensor(const void* data, DType dtype, Shape shape, Shape strides = {}, Errors errors = {})
      : Tensor(const_cast<void*>(data), dtype, std::move(shape), std::move(strides), errors) {
    flags_ = TW_TENSOR_READ_ONLY;
  }

  /* float or double elements, or whole numbers; those of a pointer to const are read-only. */
  template <typename T, std::int32_t = detail::DTypeOf<std::remove_const_t<T>>::value>
  Tensor(T* data, Shape shape, Shape strides = {}, Errors errors = {})
      : Tensor(data, static_cast<DType>(detail::DTypeOf<std::remove_const_t<T>>::value), std::move(shape),
               std::move(strides), errors) {}

  /* The elements of a std::vector, std::array ...: one dimension. */
  template <typename C, std::enable_if_t<detail::IsContiguous<C>::value, int> = 0>
  explicit Tensor(C& elements) : Tensor(elements.data(), Shape{static_cast<std::int64_t>(elements.size())}) {}

  /* The same seen in another shape; the number of elements must agree. */
  template <typename C, std::enable_if_t<detail::IsContiguous<C>::value, int> = 0>
  Tensor(C& elements, Shape shape, Errors errors = {}) : Tensor(elements.data(), std::move(shape)) {
    must_have(elements.size(), errors);
  }

#ifdef __cpp_lib_span
  /* The same two of a span. */
  template <typename T, std::size_t N>
  explicit Tensor(std::span<T, N> elements)
      : Tensor(elements.data(), Shape{static_cast<std::int64_t>(elements.size())}) {}
  template <typename T, std::size_t N>
  Tensor(std::span<T, N> elements, Shape shape, Errors errors = {}) : Tensor(elements.data(), std::move(shape)) {
    must_have(elements.size(), errors);
  }
#endif

  /* No gradient this time: stands in a list of gradients for a tensor that is to be skipped. */
  static Tensor absent(DType dtype, Shape shape) {
    Tensor tensor(static_cast<void*>(nullptr), dtype, std::move(shape));
    tensor.flags_ |= TW_TENSOR_ABSENT;
    return tensor;
  }

  /* Stands in a list of inputs for one that is left out, in a list of gradients for one that is not wanted. */
  static Tensor absent() { return absent(DType::f32, {}); }

  /* The same view with a role. */
  Tensor as(Role role) const {
    Tensor tensor = *this;
    tensor.role_ = role;
    return tensor;
  }

  /* The same view, read-only. */
  Tensor read_only() const {
    Tensor tensor = *this;
    tensor.flags_ |= TW_TENSOR_READ_ONLY;
    return tensor;
  }

  void* data() const noexcept { return data_; }
  DType dtype() const noexcept { return dtype_; }
  Role role() const noexcept { return role_; }
  const Shape& shape() const noexcept { return shape_; }
  const Shape& strides() const noexcept { return strides_; }

  /* The number of elements; -1 when the shape is negative or too large for any memory (the library refuses
   * both). */
  std::int64_t size() const noexcept {
    std::int64_t product = 1;
    for (const std::int64_t extent : shape_) {
      if (extent < 0) return -1;
      if (extent == 0) return 0;
    }
    for (const std::int64_t extent : shape_) {
      if (product > std::numeric_limits<std::int64_t>::max() / extent) return -1;
      product *= extent;
    }
    return product;
  }

  /* The C view; it points into this object and is valid as long as this object is. */
  tw_tensor c_view() const noexcept {
    tw_tensor view{};
    view.data = data_;
    view.dtype = static_cast<std::int32_t>(dtype_);
    view.ndim = static_cast<std::int32_t>(shape_.size());
    view.shape = shape_.empty() ? nullptr : shape_.data();
    view.strides = strides_.empty() ? nullptr : strides_.data();
    view.flags = flags_;
    view.role = static_cast<std::uint32_t>(role_);
    return view;
  }

 private:
  void must_have(std::size_t count, Errors errors) {
    if (size() == static_cast<std::int64_t>(count)) return;
    refuse(errors, "a container of " + std::to_string(count) + " elements does not fill a tensor of " +
                       std::to_string(size()));
  }
  void refuse(Errors errors, const std::string& message) {
    shape_ = {-1};
    strides_.clear();
    errors.fail(TW_ERROR_SHAPE, message);
  }

  void* data_;
  DType dtype_;
  Shape shape_;
  Shape strides_;
  std::uint32_t flags_ = 0;
  Role role_ = Role::unknown;
};

using Tensors = std::vector<Tensor>;

namespace detail {

inline std::vector<tw_tensor> c_views(const Tensors& tensors) {
  std::vector<tw_tensor> views;
  views.reserve(tensors.size());
  for (const Tensor& tensor : tensors) views.push_back(tensor.c_view());
  return views;
}

}  // namespace detail

/* ---- options ------------------------------------------------------------------------------------------ */

/* How element-wise state is stored, see TW_STATE_*; f64 parameters always keep f64. */
enum class Storage : std::int32_t { f64 = 0, f32 = TW_STATE_F32, bf16 = TW_STATE_BF16, q8 = TW_STATE_Q8 };

/* How 16-bit parameters keep what their type cannot hold. */
enum class Master : std::int32_t {
  none = TW_MASTER_NONE,
  f32 = TW_MASTER_F32,
  stochastic = TW_MASTER_STOCHASTIC
};

/* What a NaN or Inf in a gradient does. */
enum class NonFinite : std::int32_t {
  propagate = TW_NONFINITE_PROPAGATE,
  skip = TW_NONFINITE_SKIP,
  error = TW_NONFINITE_ERROR
};

/* What belongs to the optimizer as a whole: Options().state(Storage::bf16).seed(7). */
class Options {
 public:
  Options() {
    options_.struct_size = sizeof options_;
    Errors().check(tw_options_init(&options_, sizeof options_)); /* cannot fail: the size is right */
  }

  Options& state(Storage storage) noexcept {
    return options_.state_dtype = static_cast<std::int32_t>(storage), *this;
  }
  Options& master(Master master) noexcept {
    return options_.master = static_cast<std::int32_t>(master), *this;
  }
  Options& nonfinite(NonFinite policy) noexcept {
    return options_.nonfinite = static_cast<std::int32_t>(policy), *this;
  }

  /* Ascend instead of descend. */
  Options& maximize(bool on = true) noexcept { return options_.maximize = on ? 1 : 0, *this; }

  /* Set the gradients to zero in the same pass. */
  Options& zero_gradients(bool on = true) noexcept { return options_.zero_gradients = on ? 1 : 0, *this; }

  /* Gradients may be used as scratch, and hold rubbish afterwards. */
  Options& consume_gradients(bool on = true) noexcept {
    return options_.consume_gradients = on ? 1 : 0, *this;
  }

  /* Gradients are multiplied by it: 1 / loss scale. */
  Options& gradient_scale(double scale) noexcept { return options_.gradient_scale = scale, *this; }

  /* Of every random draw. */
  Options& seed(std::uint64_t seed) noexcept { return options_.seed = seed, *this; }

  const tw_options& c_options() const noexcept { return options_; }

 private:
  tw_options options_{};
};

/* ---- requests ----------------------------------------------------------------------------------------- */

/* What a rank holds of a model that is spread over processes. */
enum class Shards : std::int32_t { tensors = TW_SHARDS_TENSORS, elements = TW_SHARDS_ELEMENTS };

/* What a method asks for within a step. */
enum class RequestKind : std::int32_t {
  none = TW_REQUEST_NONE,
  gradient = TW_REQUEST_GRADIENT,
  loss = TW_REQUEST_LOSS,
  loss_and_gradient = TW_REQUEST_LOSS_AND_GRADIENT,
  hessian_vector = TW_REQUEST_HESSIAN_VECTOR,
  task_gradient = TW_REQUEST_TASK_GRADIENT,
  previous_gradient = TW_REQUEST_PREVIOUS_GRADIENT,
  logit_derivatives = TW_REQUEST_LOGIT_DERIVATIVES,
  activations = TW_REQUEST_ACTIVATIONS,
  sample_gradients = TW_REQUEST_SAMPLE_GRADIENTS,
  participant = TW_REQUEST_PARTICIPANT
};

/* One request.  The parameters stand where the answer is wanted; gradients go into the bound gradient
 * tensors. */
class Request {
 public:
  Request() noexcept { request_.struct_size = sizeof(tw_request); }

  RequestKind kind() const noexcept { return static_cast<RequestKind>(request_.kind); }

  /* 0, 1, ... within one step. */
  int pass() const noexcept { return request_.pass; }

  /* Equal tags mean: the same minibatch and the same dropout; within a step they may come back after others. */
  std::uint64_t tag() const noexcept { return request_.tag; }

  /* Task `index` of `count`, for task_gradient. */
  std::int64_t index() const noexcept { return request_.index; }
  std::int64_t count() const noexcept { return request_.count; }

  bool wants_loss() const noexcept {
    return kind() == RequestKind::loss || kind() == RequestKind::loss_and_gradient;
  }
  /* The answer goes into the bound gradients: a gradient, the product of a hessian_vector, a participant's
   * parameters. */
  bool wants_gradient() const noexcept {
    return kind() != RequestKind::none && kind() != RequestKind::loss &&
           kind() != RequestKind::logit_derivatives && kind() != RequestKind::activations &&
           kind() != RequestKind::sample_gradients;
  }

  /* The vectors to multiply with the Hessian, shaped like the parameters.  Library-owned, valid until the
   * next call. */
  const tw_tensor* probe() const noexcept { return request_.probe; }
  std::size_t probe_count() const noexcept { return request_.probe_count; }

  /* Answers with the loss. */
  void answer(double loss) noexcept { request_.loss = loss; }
  /* The gradients that are bound now stay as and where they are until the step has ended: nothing need copy them. */
  void gradients_stay() noexcept { request_.gradients_stay = 1; }

  tw_request* c_request() noexcept { return &request_; }

 private:
  tw_request request_{};
};

/* ---- optimizers --------------------------------------------------------------------------------------- */

/* One row of the state: one slot of one stage for one tensor, or for a whole group. */
struct State {
  static constexpr std::size_t whole_group = SIZE_MAX;

  std::string stage;
  std::string slot;
  std::size_t parameter = whole_group; /* index of the tensor it belongs to, or whole_group */
  std::int64_t count = 0;              /* elements */
  std::size_t bytes = 0;               /* as stored */
  Storage storage = Storage::f32;
};

/* The memory of one kind of state, over all tensors. */
struct MemoryUse {
  std::string stage;
  std::string slot;
  std::size_t rows = 0;
  std::int64_t count = 0;
  std::size_t bytes = 0;
};

/* What the state of an optimizer takes; known before it is allocated. */
struct MemoryReport {
  std::vector<MemoryUse> uses; /* in the order of the pipeline */
  std::size_t bytes = 0;       /* all together */
};

/* Which parameters a hyper-parameter is for: "head" is those of that group; nothing at all (and the empty string) is
 * all groups and those added later; Group::unnamed() is the parameters that were bound without a group. */
class Group {
 public:
  Group() = default;
  Group(std::string name) : name_(std::move(name)), all_(name_.empty()) {}
  Group(const char* name) : Group(std::string(name)) {}

  static Group unnamed() {
    Group group;
    group.all_ = false;
    return group;
  }

  const char* c_name() const noexcept { return all_ ? nullptr : name_.c_str(); }

 private:
  std::string name_;
  bool all_ = true;
};

/* What Optimizer::next came to: true while a request waits for its answer, so that a loop
 * `while (optimizer.next(request))` ends after a step that was refused, too.  It compares with TW_MORE, TW_OK and
 * TW_SKIPPED as the status that it is. */
class Next {
 public:
  constexpr explicit Next(tw_status status) noexcept : status_(status) {}

  /* A request waits. */
  constexpr bool more() const noexcept { return status_ == TW_MORE; }

  /* The step is done, and the non-finite policy refused it. */
  constexpr bool skipped() const noexcept { return status_ == TW_SKIPPED; }

  constexpr tw_status status() const noexcept { return status_; }
  constexpr operator tw_status() const noexcept { return status_; }

  /* A template, so that only what wants a bool gets one: a comparison with a status is one of numbers. */
  template <typename Bool, std::enable_if_t<std::is_same_v<Bool, bool>, int> = 0>
  constexpr operator Bool() const noexcept {
    return more();
  }

 private:
  tw_status status_;
};

/* The requests of one step:
 *
 *   for (thalweg::Request& request : optimizer.requests()) request.answer(loss_and_gradient(batch_of(request.tag())));
 *
 * The step is done when the loop has ended.  A loop that is left before (break, return, an exception) cancels the step:
 * parameters and state are those from before it.  The optimizer must stay where it is meanwhile. */
class Requests {
 public:
  Requests(tw_optimizer* optimizer, Errors errors) noexcept : optimizer_(optimizer), errors_(errors) {}
  Requests(const Requests&) = delete;
  Requests& operator=(const Requests&) = delete;
  Requests(Requests&& other) noexcept
      : optimizer_(other.optimizer_), errors_(other.errors_), request_(other.request_),
        status_(std::exchange(other.status_, TW_OK)) {}
  ~Requests() { cancel(); }

  class Iterator {
   public:
    using iterator_category = std::input_iterator_tag;
    using value_type = Request;
    using difference_type = std::ptrdiff_t;
    using pointer = Request*;
    using reference = Request&;

    explicit Iterator(Requests* all = nullptr) noexcept : all_(all) {}
    Request& operator*() const noexcept { return all_->request_; }
    Request* operator->() const noexcept { return &all_->request_; }
    Iterator& operator++() {
      if (!all_->next()) all_ = nullptr;
      return *this;
    }
    void operator++(int) { ++*this; }
    friend bool operator==(const Iterator& a, const Iterator& b) noexcept { return a.all_ == b.all_; }
    friend bool operator!=(const Iterator& a, const Iterator& b) noexcept { return a.all_ != b.all_; }

   private:
    Requests* all_;
  };

  /* The first request; a step has one begin. */
  Iterator begin() { return Iterator(next() ? this : nullptr); }
  Iterator end() noexcept { return Iterator(); }

  /* TW_MORE while a request waits; then what the step came to: TW_OK, TW_SKIPPED, or an error. */
  tw_status status() const noexcept { return status_; }
  bool skipped() const noexcept { return status_ == TW_SKIPPED; }

  /* Ends the step early.  Nothing happens when none is open. */
  void cancel() noexcept {
    if (std::exchange(status_, status_ == TW_MORE ? tw_status(TW_OK) : status_) == TW_MORE) {
      tw_optimizer_cancel(optimizer_);
    }
  }

 private:
  bool next() {
    status_ = TW_OK; /* an error has ended the step, so that an exception finds nothing to cancel */
    status_ = errors_.check(tw_optimizer_next(optimizer_, request_.c_request()));
    return status_ == TW_MORE;
  }

  tw_optimizer* optimizer_;
  Errors errors_;
  Request request_;
  tw_status status_ = TW_OK;
};

/* Several hyper-parameters: paths, and values as they are written in a sentence. */
using Settings = std::vector<std::pair<std::string, std::string>>;

/* An optimizer: a sentence, parameters, gradients, state. */
class Optimizer {
 public:
  /* Reads the sentence.  Throws with the sentence, a caret and the nearest name in the message. */
  explicit Optimizer(const std::string& sentence, const Options& options = Options(), Errors errors = {}) {
    if (detail::require_compatible_library(errors)) {
      errors.check(tw_optimizer_create(sentence.c_str(), &options.c_options(), handle_.out()));
    }
  }

  /* Binds parameters behind those already bound.  `names` are unique, one each, or none at all; `settings` are
   * hyper-parameters for the group alone.  When one of them is refused, nothing is bound. */
  void add_parameters(const Tensors& parameters, const std::vector<std::string>& names = {},
                      const std::string& group = {}, const Settings& settings = {}, Errors errors = {}) {
    if (!names.empty() && names.size() != parameters.size()) {
      errors.fail(TW_ERROR_COUNT, std::to_string(parameters.size()) + " parameters have " +
                                      std::to_string(names.size()) + " names");
      return;
    }
    std::vector<const char*> pointers;
    pointers.reserve(names.size());
    for (const std::string& name : names) pointers.push_back(name.c_str());
    const std::vector<tw_tensor> views = detail::c_views(parameters);
    std::vector<const char*> paths, values;
    for (const auto& [path, value] : settings) {
      paths.push_back(path.c_str());
      values.push_back(value.c_str());
    }
    errors.check(tw_optimizer_add_group(handle_.get(), views.data(), views.size(),
                                         pointers.empty() ? nullptr : pointers.data(),
                                         detail::null_if_empty(group), paths.data(), values.data(), paths.size()));
  }

  /* Moves all bound parameters to other memory of the same shapes; state is kept. */
  void rebind_parameters(const Tensors& parameters, Errors errors = {}) {
    const std::vector<tw_tensor> views = detail::c_views(parameters);
    errors.check(tw_optimizer_rebind_parameters(handle_.get(), views.data(), views.size()));
  }

  /* Binds the gradients, one for each parameter in order. */
  void bind_gradients(const Tensors& gradients, Errors errors = {}) {
    const std::vector<tw_tensor> views = detail::c_views(gradients);
    errors.check(tw_optimizer_bind_gradients(handle_.get(), views.data(), views.size()));
  }

  /* One tensor of one dimension, `count` float or double elements: a parameter behind those already bound, without a name,
   * in the default group; the gradient of an optimizer that has one such parameter. */
  template <typename T>
  void add_dense(T* data, std::size_t count, Errors errors = {}) {
    add_parameters({Tensor(data, Shape{static_cast<std::int64_t>(count)})}, {}, {}, {}, errors);
  }
  template <typename T>
  void bind_dense(T* data, std::size_t count, Errors errors = {}) {
    bind_gradients({Tensor(data, Shape{static_cast<std::int64_t>(count)})}, errors);
  }

  /* Binds 16-bit copies that each step writes in the same pass; none unbinds. */
  void bind_shadow(const Tensors& shadows, Errors errors = {}) {
    const std::vector<tw_tensor> views = detail::c_views(shadows);
    errors.check(tw_optimizer_bind_shadow(handle_.get(), views.data(), views.size()));
  }

  std::size_t parameter_count() const noexcept { return tw_optimizer_parameter_count(handle_.get()); }

  /* One step with the bound gradients.  False when the non-finite policy refused it, or it failed into a Status. */
  bool step(Errors errors = {}) { return errors.check(tw_optimizer_step(handle_.get())) == TW_OK; }

  /* bind_gradients and step in one. */
  bool step_with(const Tensors& gradients, Errors errors = {}) {
    const std::vector<tw_tensor> views = detail::c_views(gradients);
    return errors.check(tw_optimizer_step_with(handle_.get(), views.data(), views.size())) == TW_OK;
  }

  /* One step that asks as often as the method needs.  The closure either takes a Request& and answers it, or
   * takes nothing, fills the bound gradients and returns the loss (enough for gradient and loss requests).
   * When it throws, the step is cancelled: parameters and state are those from before it.
   * False when the non-finite policy refused the step, or it failed into a Status. */
  template <typename Closure,
            std::enable_if_t<
                std::is_invocable_v<Closure&, Request&> || std::is_invocable_r_v<double, Closure&>, int> = 0>
  bool step(Closure&& closure, Errors errors = {}) {
    Requests asked = requests(errors);
    for (Request& request : asked) {
      if constexpr (std::is_invocable_v<Closure&, Request&>) {
        closure(request);
      } else {
        if (!request.wants_loss() && request.kind() != RequestKind::gradient &&
            request.kind() != RequestKind::previous_gradient) {
          asked.cancel();
          errors.fail(TW_ERROR_NEEDS,
                      "the method asks for more than a loss and a gradient: "
                      "give step a closure that takes a Request&");
          return false;
        }
        request.answer(closure());
      }
    }
    return asked.status() == TW_OK;
  }

  /* A step whose whole state is the host's; see tw_carried.  True when it was taken, false when it was skipped.  How many
   * numbers a run carries (0, an error: the sentence asks for more than one gradient a step). */
  bool step_carried(tw_carried carried, Errors errors = {}) {
    carried.struct_size = sizeof carried;
    return errors.check(tw_optimizer_step_carried(handle_.get(), &carried)) == TW_OK;
  }
  std::size_t carried_numbers(Errors errors = {}) const {
    const std::size_t count = tw_optimizer_carried_numbers(handle_.get());
    errors.check(count == 0 ? TW_ERROR_NEEDS : TW_OK);
    return count;
  }

  /* The requests of one step, for a loop; see Requests. */
  Requests requests(Errors errors = {}) { return Requests(handle_.get(), errors); }

  /* Reverse communication by hand: `while (optimizer.next(request)) answer(request);` is one step.  True (TW_MORE) when
   * `request` waits for its answer, false (TW_OK, or TW_SKIPPED, see Next::skipped) when the step is done. */
  Next next(Request& request, Errors errors = {}) {
    return Next(errors.check(tw_optimizer_next(handle_.get(), request.c_request())));
  }

  /* Fills `request` with the one that waits for its answer; false between steps. */
  bool waiting(Request& request, Errors errors = {}) {
    return errors.check(tw_optimizer_waiting(handle_.get(), request.c_request())) == TW_MORE;
  }

  /* Ends a step between two requests: parameters and state are those from before it. */
  void cancel(Errors errors = {}) { errors.check(tw_optimizer_cancel(handle_.get())); }

  /* Adds up sums over the processes that a model is spread over; nullptr ends it.  See tw_optimizer_set_reducer. */
  void set_reducer(tw_reducer reducer, void* context = nullptr, Shards shards = Shards::tensors, Errors errors = {},
                   std::int32_t rank = 0) {
    errors.check(tw_optimizer_set_reducer(handle_.get(), reducer, context,
                                          TW_SHARDS_OF_RANK(static_cast<std::int32_t>(shards), rank)));
  }

  /* The same with a callable of C++, reduce(sums, sum_count, maxima, maximum_count), which must live as long as it is
   * set.  When it throws, nothing has changed, and the step that called it throws the same. */
  template <typename Reduce, std::enable_if_t<std::is_invocable_v<Reduce&, double*, std::size_t, double*, std::size_t>,
                                              int> = 0>
  void set_reducer(Reduce& reduce, Shards shards = Shards::tensors, Errors errors = {}, std::int32_t rank = 0) {
    set_reducer(detail::reduce_with<Reduce>, &reduce, shards, errors, rank);
  }

  /* Answers the request that waits by the names that request_info has: {{"products", {...}}}, {{"loss", {...}}, {"gradients", {...}}}. */
  void answer(const std::vector<std::pair<std::string, Tensors>>& answers, Errors errors = {}) {
    std::vector<const char*> names;
    std::vector<tw_tensor> views;
    for (const auto& [name, tensors] : answers) {
      if (tensors.empty()) {
        errors.fail(TW_ERROR_ARGUMENT, "`" + name + "` has no tensors: leave out what is not given");
        return;
      }
      for (const Tensor& tensor : tensors) {
        names.push_back(name.c_str());
        views.push_back(tensor.c_view());
      }
    }
    errors.check(tw_optimizer_answer(handle_.get(), names.data(), views.data(), views.size()));
  }
  /* Answers a request for the gradients of samples: (samples, shape...) for each parameter. */
  void answer_samples(const Tensors& gradients, Errors errors = {}) {
    const std::vector<tw_tensor> views = detail::c_views(gradients);
    errors.check(tw_optimizer_answer_samples(handle_.get(), views.data(), views.size()));
  }
  /* Answers a request for matrices: what they are says tw_optimizer_answer_matrix. */
  void answer_matrix(const Tensor& first, Errors errors = {}) {
    const tw_tensor view = first.c_view();
    errors.check(tw_optimizer_answer_matrix(handle_.get(), &view, nullptr));
  }
  void answer_matrix(const Tensor& first, const Tensor& second, Errors errors = {}) {
    const tw_tensor view = first.c_view(), second_view = second.c_view();
    errors.check(tw_optimizer_answer_matrix(handle_.get(), &view, &second_view));
  }
  /* Answers logit_derivatives without derivatives: the request comes once more, a little along the probe. */
  void answer_logits(const Tensor& logits, Errors errors = {}) {
    const tw_tensor view = logits.c_view();
    errors.check(tw_optimizer_answer_matrix(handle_.get(), nullptr, &view));
  }

  /* Tells the pipeline a number that it watches: "loss", "metric", "batch_size". */
  void observe(const std::string& what, double value, Errors errors = {}) {
    errors.check(tw_optimizer_observe(handle_.get(), what.c_str(), value));
  }

  /* Runs a command of a stage: "gradient_accumulate.flush". */
  void command(const std::string& command, Errors errors = {}) {
    errors.check(tw_optimizer_command(handle_.get(), command.c_str()));
  }

  /* Puts the training weights back, bit for bit. */
  void train(Errors errors = {}) { errors.check(tw_optimizer_set_mode(handle_.get(), TW_MODE_TRAIN)); }

  /* Writes the evaluation weights (averages, schedule-free iterates) into the parameters. */
  void eval(Errors errors = {}) { errors.check(tw_optimizer_set_mode(handle_.get(), TW_MODE_EVAL)); }

  /* A hyper-parameter or a measured value: "adamw.lr", "lr", "steps".  No group reads the default. */
  double get(const std::string& path, const std::string& group = {}, Errors errors = {}) const {
    double value = 0;
    errors.check(tw_optimizer_get_number(handle_.get(), detail::null_if_empty(group), path.c_str(), &value));
    return value;
  }

  /* The value as it would be written in a sentence. */
  std::string get_text(const std::string& path, const std::string& group = {}, Errors errors = {}) const {
    return detail::read_text(errors, [&](char* buffer, std::size_t capacity, std::size_t* needed) {
      return tw_optimizer_get_text(handle_.get(), detail::null_if_empty(group), path.c_str(), buffer,
                                   capacity, needed);
    });
  }

  /* Changes a hyper-parameter while running, for one group or for all.  Replaces a schedule. */
  template <typename Number, std::enable_if_t<std::is_arithmetic_v<Number>, int> = 0>
  void set(const std::string& path, Number value, const Group& group = {}, Errors errors = {}) {
    if constexpr (std::is_same_v<Number, bool>) {
      set(path, std::string(value ? "true" : "false"), group, errors);
    } else {
      errors.check(
          tw_optimizer_set_number(handle_.get(), group.c_name(), path.c_str(), static_cast<double>(value)));
    }
  }

  /* The same with a value as it is written in a sentence: "cosine(lr=0.1, total=1000)", "mean". */
  void set(const std::string& path, const std::string& value, const Group& group = {}, Errors errors = {}) {
    errors.check(tw_optimizer_set_text(handle_.get(), group.c_name(), path.c_str(), value.c_str()));
  }

  /* Several at once, in any order: all of them, or none when one is refused. */
  void set_texts(const Settings& settings, const Group& group = {}, Errors errors = {}) {
    std::vector<const char*> paths, values;
    for (const auto& [path, value] : settings) {
      paths.push_back(path.c_str());
      values.push_back(value.c_str());
    }
    errors.check(tw_optimizer_set_texts(handle_.get(), group.c_name(), paths.data(), values.data(), paths.size()));
  }

  /* The whole pipeline as a sentence, with every hyper-parameter. */
  std::string sentence(Errors errors = {}) const {
    return detail::read_text(errors, [&](char* buffer, std::size_t capacity, std::size_t* needed) {
      return tw_optimizer_sentence(handle_.get(), buffer, capacity, needed);
    });
  }

  /* Bytes that steps keep beside the state for those to come (tw_optimizer_scratch). */
  std::size_t scratch() const noexcept { return tw_optimizer_scratch(handle_.get()); }

  /* The state, one row a slot and tensor. */
  std::vector<State> state(Errors errors = {}) const {
    std::vector<State> rows(tw_optimizer_state_count(handle_.get()));
    for (std::size_t index = 0; index < rows.size(); index += 1) {
      tw_state_info info{};
      info.struct_size = sizeof info;
      if (!errors.ok(tw_optimizer_state_at(handle_.get(), index, &info))) return {};
      rows[index] = State{info.stage, info.slot,  info.parameter,
                          info.count, info.bytes, static_cast<Storage>(info.storage)};
    }
    return rows;
  }

  /* The elements of the state's row `index`, widened to double. */
  std::vector<double> read_state(std::size_t index, Errors errors = {}) const {
    tw_state_info info{};
    info.struct_size = sizeof info;
    if (!errors.ok(tw_optimizer_state_at(handle_.get(), index, &info))) return {};
    std::vector<double> elements(static_cast<std::size_t>(info.count));
    if (!errors.ok(tw_optimizer_state_read(handle_.get(), index, elements.data(), elements.size()))) return {};
    return elements;
  }

  /* What the state takes, by stage and slot. */
  MemoryReport memory(Errors errors = {}) const {
    MemoryReport report;
    for (State& row : state(errors)) {
      MemoryUse* use = nullptr;
      for (MemoryUse& known : report.uses) {
        if (known.stage == row.stage && known.slot == row.slot) use = &known;
      }
      if (use == nullptr) {
        report.uses.push_back(MemoryUse{std::move(row.stage), std::move(row.slot), 0, 0, 0});
        use = &report.uses.back();
      }
      use->rows += 1;
      use->count += row.count;
      use->bytes += row.bytes;
      report.bytes += row.bytes;
    }
    return report;
  }

  /* The whole state as bytes (safetensors layout). */
  std::vector<std::uint8_t> save(Errors errors = {}) const {
    return detail::read_bytes(errors, tw_optimizer_save, handle_.get());
  }

  /* Reads what save wrote.  A damaged or foreign checkpoint leaves the optimizer as it was. */
  void load(const void* data, std::size_t size, Errors errors = {}) {
    errors.check(tw_optimizer_load(handle_.get(), data, size));
  }
  void load(const std::vector<std::uint8_t>& bytes, Errors errors = {}) { load(bytes.data(), bytes.size(), errors); }
#ifdef __cpp_lib_span
  void load(std::span<const std::uint8_t> bytes, Errors errors = {}) { load(bytes.data(), bytes.size(), errors); }
#endif

  /* The same to and from a file; writing is atomic. */
  void save_file(const std::string& path, Errors errors = {}) const {
    errors.check(tw_optimizer_save_file(handle_.get(), path.c_str()));
  }
  void load_file(const std::string& path, Errors errors = {}) {
    errors.check(tw_optimizer_load_file(handle_.get(), path.c_str()));
  }

  /* The C handle; this object keeps owning it.  NULL after a move. */
  tw_optimizer* c_handle() const noexcept { return handle_.get(); }

 private:
  detail::Handle<tw_optimizer, tw_optimizer_destroy> handle_;
};

/* ---- regularizers, constraints, objectives, schedules ------------------------------------------------- */

/* A penalty on its own: "group_lasso(1e-3, axis=row)". */
class Regularizer {
 public:
  explicit Regularizer(const std::string& sentence, Errors errors = {}) {
    if (detail::require_compatible_library(errors)) {
      errors.check(tw_regularizer_create(sentence.c_str(), handle_.out()));
    }
  }

  /* The penalty at w, its weight included. */
  double value(const Tensor& w, Errors errors = {}) const {
    const tw_tensor view = w.c_view();
    double value = 0;
    errors.check(tw_regularizer_value(handle_.get(), &view, &value));
    return value;
  }

  /* g += scale * gradient at w. */
  void add_gradient(const Tensor& w, const Tensor& g, double scale = 1, Errors errors = {}) const {
    const tw_tensor view = w.c_view(), gradient = g.c_view();
    errors.check(tw_regularizer_gradient(handle_.get(), &view, scale, &gradient));
  }

  /* The same two for a regularizer that needs more than the weights: `inputs` in the order of
   * MethodInfo::inputs, the weights first. */
  double value(const Tensors& inputs, Errors errors = {}) const {
    const std::vector<tw_tensor> views = detail::c_views(inputs);
    double value = 0;
    errors.check(tw_regularizer_value_with(handle_.get(), views.data(), views.size(), &value));
    return value;
  }
  void add_gradient(const Tensors& inputs, const Tensor& g, double scale = 1, Errors errors = {}) const {
    const std::vector<tw_tensor> views = detail::c_views(inputs);
    const tw_tensor gradient = g.c_view();
    errors.check(tw_regularizer_gradient_with(handle_.get(), views.data(), views.size(), scale, &gradient));
  }

  /* w <- argmin_u 1/2 |u - w|^2 + t * penalty(u), in place. */
  void prox(const Tensor& w, double t, Errors errors = {}) const {
    const tw_tensor view = w.c_view();
    errors.check(tw_regularizer_prox(handle_.get(), &view, t));
  }
  /* The same with a step for each element, of the shape of w. */
  void prox(const Tensor& w, const Tensor& steps, Errors errors = {}) const {
    const tw_tensor view = w.c_view(), each = steps.c_view();
    errors.check(tw_regularizer_prox_steps(handle_.get(), &view, &each));
  }

  tw_regularizer* c_handle() const noexcept { return handle_.get(); }

 private:
  detail::Handle<tw_regularizer, tw_regularizer_destroy> handle_;
};

/* A set on its own: "simplex", "stiefel". */
class Constraint {
 public:
  explicit Constraint(const std::string& sentence, Errors errors = {}) {
    if (detail::require_compatible_library(errors)) {
      errors.check(tw_constraint_create(sentence.c_str(), handle_.out()));
    }
  }

  /* w <- the nearest point of the set, in place. */
  void project(const Tensor& w, Errors errors = {}) const {
    const tw_tensor view = w.c_view();
    errors.check(tw_constraint_project(handle_.get(), &view));
  }

  /* The geometry of a manifold; of other sets Status::unsupported.  Nothing here looks whether w and y are points, u and v tangents
   * at w: check_point and check_tangent do. */

  /* g <- the Riemannian gradient of the Euclidean gradient g at w (egrad2rgrad). */
  void tangent(const Tensor& w, const Tensor& g, Errors errors = {}) const {
    const tw_tensor view = w.c_view(), gradient = g.c_view();
    errors.check(tw_constraint_tangent(handle_.get(), &view, &gradient));
  }

  /* u <- the tangent part of any vector u at w. */
  void project_tangent(const Tensor& w, const Tensor& u, Errors errors = {}) const {
    const tw_tensor view = w.c_view(), vector = u.c_view();
    errors.check(tw_constraint_project_tangent(handle_.get(), &view, &vector));
  }

  /* w <- the point of the manifold that the tangent step u leads to, by the retraction that the sentence names. */
  void retract(const Tensor& w, const Tensor& u, Errors errors = {}) const {
    const tw_tensor view = w.c_view(), step = u.c_view();
    errors.check(tw_constraint_retract(handle_.get(), &view, &step));
  }

  /* w <- the point that the geodesic along u leads to. */
  void exp(const Tensor& w, const Tensor& u, Errors errors = {}) const {
    const tw_tensor view = w.c_view(), step = u.c_view();
    errors.check(tw_constraint_exp(handle_.get(), &view, &step));
  }

  /* u <- the tangent at w whose exponential is y. */
  void log(const Tensor& w, const Tensor& y, const Tensor& u, Errors errors = {}) const {
    const tw_tensor view = w.c_view(), end = y.c_view(), step = u.c_view();
    errors.check(tw_constraint_log(handle_.get(), &view, &end, &step));
  }

  /* u, a tangent at w <- what it becomes at y. */
  void transport(const Tensor& w, const Tensor& y, const Tensor& u, Errors errors = {}) const {
    const tw_tensor view = w.c_view(), end = y.c_view(), vector = u.c_view();
    errors.check(tw_constraint_transport(handle_.get(), &view, &end, &vector));
  }

  /* One number for each point of w, see tw_constraint_points: <u, v> in the metric at w. */
  std::vector<double> inner(const Tensor& w, const Tensor& u, const Tensor& v, Errors errors = {}) const {
    const tw_tensor view = w.c_view(), first = u.c_view(), second = v.c_view();
    std::vector<double> out(points(view, errors));
    errors.check(tw_constraint_inner(handle_.get(), &view, &first, &second, room(out), out.size()));
    return out;
  }
  /* The distances of w and y. */
  std::vector<double> distance(const Tensor& w, const Tensor& y, Errors errors = {}) const {
    const tw_tensor view = w.c_view(), end = y.c_view();
    std::vector<double> out(points(view, errors));
    errors.check(tw_constraint_distance(handle_.get(), &view, &end, room(out), out.size()));
    return out;
  }
  /* How far w is from where `project` puts it. */
  std::vector<double> check_point(const Tensor& w, Errors errors = {}) const {
    const tw_tensor view = w.c_view();
    std::vector<double> out(points(view, errors));
    errors.check(tw_constraint_check_point(handle_.get(), &view, room(out), out.size()));
    return out;
  }
  /* How long the part of u is that is not tangent at w. */
  std::vector<double> check_tangent(const Tensor& w, const Tensor& u, Errors errors = {}) const {
    const tw_tensor view = w.c_view(), vector = u.c_view();
    std::vector<double> out(points(view, errors));
    errors.check(tw_constraint_check_tangent(handle_.get(), &view, &vector, room(out), out.size()));
    return out;
  }

  /* s <- a point of the set that minimises <g, s>. */
  void minimize_linear(const Tensor& g, const Tensor& s, Errors errors = {}) const {
    const tw_tensor gradient = g.c_view(), view = s.c_view();
    errors.check(tw_constraint_lmo(handle_.get(), &gradient, &view));
  }

  tw_constraint* c_handle() const noexcept { return handle_.get(); }

 private:
  std::size_t points(const tw_tensor& w, Errors errors) const {
    std::size_t count = 0;
    errors.check(tw_constraint_points(handle_.get(), &w, nullptr, &count));
    return count;
  }
  static double* room(std::vector<double>& out) {
    if (out.empty()) out.reserve(1);
    return out.data();
  }

  detail::Handle<tw_constraint, tw_constraint_destroy> handle_;
};

/* What a forward pass keeps for its pull-backs; the next forward pass fills it anew. */
class Cache {
 public:
  explicit Cache(Errors errors = {}) {
    if (detail::require_compatible_library(errors)) {
      errors.check(tw_cache_create(handle_.out()));
    }
  }

  tw_cache* c_handle() const noexcept { return handle_.get(); }

 private:
  detail::Handle<tw_cache, tw_cache_destroy> handle_;
};

/* A scalar function of named tensors: "checkered_regression".  Inputs and gradients stand in the order of
 * MethodInfo::inputs; Tensor::absent() stands for one that is left out, and those at the end may be missing. */
class Objective {
 public:
  explicit Objective(const std::string& sentence, Errors errors = {}) {
    if (detail::require_compatible_library(errors)) {
      errors.check(tw_objective_create(sentence.c_str(), handle_.out()));
    }
  }

  /* The value alone. */
  double value(const Tensors& inputs, Errors errors = {}) const { return forward(inputs, nullptr, errors); }

  /* The value; the cache then holds what pullback needs. */
  double forward(const Tensors& inputs, Cache& cache, Errors errors = {}) const {
    return forward(inputs, cache.c_handle(), errors);
  }

  /* gradients[i] += upstream * derivative of the value by input i. */
  void pullback(const Cache& cache, const Tensors& gradients, double upstream = 1, Errors errors = {}) const {
    const std::vector<tw_tensor> views = detail::c_views(gradients);
    errors.check(
        tw_objective_pullback(handle_.get(), cache.c_handle(), upstream, views.data(), views.size()));
  }

  /* What it remembers of its forward passes, as bytes; load takes it up in an objective of the same sentence. */
  std::vector<std::uint8_t> save(Errors errors = {}) const {
    return detail::read_bytes(errors, tw_objective_save, handle_.get());
  }
  void load(const void* data, std::size_t size, Errors errors = {}) {
    errors.check(tw_objective_load(handle_.get(), data, size));
  }
  void load(const std::vector<std::uint8_t>& bytes, Errors errors = {}) { load(bytes.data(), bytes.size(), errors); }
#ifdef __cpp_lib_span
  void load(std::span<const std::uint8_t> bytes, Errors errors = {}) { load(bytes.data(), bytes.size(), errors); }
#endif

  tw_objective* c_handle() const noexcept { return handle_.get(); }

 private:
  double forward(const Tensors& inputs, tw_cache* cache, Errors errors) const {
    const std::vector<tw_tensor> views = detail::c_views(inputs);
    double value = 0;
    errors.check(tw_objective_forward(handle_.get(), views.data(), views.size(), cache, &value));
    return value;
  }

  detail::Handle<tw_objective, tw_objective_destroy> handle_;
};

/* How a run of a solver ended. */
enum class Outcome : std::int32_t {
  running = TW_SOLVER_RUNNING,
  converged = TW_SOLVER_CONVERGED,
  max_iter = TW_SOLVER_MAX_ITER,
  negative_curvature = TW_SOLVER_NEGATIVE_CURVATURE,
  infeasible = TW_SOLVER_INFEASIBLE,
  line_search_failed = TW_SOLVER_LINE_SEARCH_FAILED,
  nonfinite = TW_SOLVER_NONFINITE,
  diverged = TW_SOLVER_DIVERGED
};

/* A tensor of a solver: dense memory that belongs to it. */
class SolverTensor {
 public:
  SolverTensor() noexcept : view_{}, shape_{0} {} /* no elements: what a failed call returns */
  explicit SolverTensor(const tw_tensor& view) : view_(view), shape_(view.shape, view.shape + view.ndim) {}

  DType dtype() const noexcept { return static_cast<DType>(view_.dtype); }
  const Shape& shape() const noexcept { return shape_; }
  std::size_t size() const noexcept {
    std::size_t product = 1;
    for (const std::int64_t extent : shape_) product *= static_cast<std::size_t>(extent);
    return product;
  }
  bool read_only() const noexcept { return (view_.flags & TW_TENSOR_READ_ONLY) != 0; }

  /* Its elements; T must be the type that they are stored in (float or double). */
  template <typename T>
  T* data(Errors errors = {}) const {
    if (view_.dtype != detail::DTypeOf<std::remove_const_t<T>>::value) {
      errors.fail(TW_ERROR_DTYPE, "a tensor of a solver is read as another type than it has");
      return nullptr;
    }
    if (!std::is_const<T>::value && read_only()) {
      errors.fail(TW_ERROR_LAYOUT, "a tensor of a solver is read-only");
      return nullptr;
    }
    return static_cast<T*>(view_.data);
  }
#ifdef __cpp_lib_span
  template <typename T>
  std::span<T> span(Errors errors = {}) const {
    T* const elements = data<T>(errors);
    return {elements, elements != nullptr ? size() : 0};
  }
#endif
  const tw_tensor& c_view() const noexcept { return view_; }

 private:
  tw_tensor view_;
  Shape shape_;
};

/* What a run needs now: see tw_solver_request.  Valid until the next call of begin, next or load. */
class SolverRequest {
 public:
  explicit SolverRequest(const tw_solver_request& request) : request_(request) {}

  std::string_view name() const noexcept { return request_.name; }
  int kind() const noexcept { return request_.kind; }
  std::uint64_t tag() const noexcept { return request_.tag; }
  Outcome outcome() const noexcept { return static_cast<Outcome>(request_.outcome); }
  std::string_view outcome_name() const noexcept { return request_.outcome_name; }
  std::size_t given_count() const noexcept { return request_.given_count; }
  std::size_t wanted_count() const noexcept { return request_.wanted_count; }
  SolverTensor given(std::size_t index, Errors errors = {}) const {
    return at(request_.given, request_.given_count, index, errors);
  }
  SolverTensor wanted(std::size_t index, Errors errors = {}) const {
    return at(request_.wanted, request_.wanted_count, index, errors);
  }

  /* A number that is given; a number that is wanted. */
  double number(std::size_t index, Errors errors = {}) const {
    const double* const at = scalar<const double>(given(index, errors), errors);
    return at != nullptr ? *at : std::numeric_limits<double>::quiet_NaN();
  }
  void answer(std::size_t index, double value, Errors errors = {}) const {
    if (double* const at = scalar<double>(wanted(index, errors), errors)) *at = value;
  }

 private:
  static SolverTensor at(const tw_tensor* tensors, std::size_t count, std::size_t index, Errors errors) {
    if (index < count) return errors.check(TW_OK), SolverTensor(tensors[index]);
    errors.fail(TW_ERROR_COUNT, "the request has fewer tensors");
    return SolverTensor();
  }
  template <typename T>
  static T* scalar(const SolverTensor& tensor, Errors errors) {
    if (tensor.c_view().data == nullptr) return nullptr; /* said already */
    return tensor.data<T>(errors);
  }
  tw_solver_request request_;
};

/* A method that runs on its own and may ask on its way: "cg(rtol=1e-8)".
 *
 *   Solver solver("cg");
 *   solver.begin({Tensor(b)});
 *   while (solver.next()) multiply(a, solver.request().given(0), solver.request().wanted(0));
 *   use(solver.tensor("x"), solver.request().outcome());
 */
class Solver {
 public:
  explicit Solver(const std::string& sentence, Errors errors = {}) {
    if (detail::require_compatible_library(errors)) {
      errors.check(tw_solver_create(sentence.c_str(), handle_.out()));
    }
  }

  /* Starts a run; the inputs are copied.  Tensor::absent() stands for one that is left out. */
  void begin(const Tensors& inputs, Errors errors = {}) {
    const std::vector<tw_tensor> views = detail::c_views(inputs);
    errors.check(tw_solver_begin(handle_.get(), views.data(), views.size()));
  }

  /* Goes on: true with the next request, false when the run has ended. */
  bool next(Errors errors = {}) { return read(tw_solver_next, errors); }

  /* The request that waits, after load: false when none does. */
  bool waiting(Errors errors = {}) { return read(tw_solver_waiting, errors); }

  SolverRequest request() const { return SolverRequest(request_); }
  Outcome outcome() const noexcept { return static_cast<Outcome>(request_.outcome); }

  /* A result, a part of the request, or of what is kept. */
  SolverTensor tensor(const std::string& name, Errors errors = {}) const {
    tw_tensor view{};
    if (!errors.ok(tw_solver_tensor(handle_.get(), name.c_str(), &view))) return SolverTensor();
    return SolverTensor(view);
  }
  double number(const std::string& name, Errors errors = {}) const {
    double value = 0;
    errors.check(tw_solver_number(handle_.get(), name.c_str(), &value));
    return value;
  }

  /* A second solver that stands where this one stands. */
  Solver copy(Errors errors = {}) const {
    Solver other;
    if (errors.ok(tw_solver_copy(handle_.get(), other.handle_.out()))) other.waiting(errors);
    return other;
  }

  /* The run as bytes; load takes it up in a solver of the same sentence. */
  std::vector<std::uint8_t> save(Errors errors = {}) const {
    return detail::read_bytes(errors, tw_solver_save, handle_.get());
  }
  void load(const void* data, std::size_t size, Errors errors = {}) {
    if (errors.ok(tw_solver_load(handle_.get(), data, size))) waiting(errors);
  }
  void load(const std::vector<std::uint8_t>& bytes, Errors errors = {}) { load(bytes.data(), bytes.size(), errors); }
#ifdef __cpp_lib_span
  void load(std::span<const std::uint8_t> bytes, Errors errors = {}) { load(bytes.data(), bytes.size(), errors); }
#endif

  tw_solver* c_handle() const noexcept { return handle_.get(); }

 private:
  Solver() = default;
  bool read(tw_status (*call)(tw_solver*, tw_solver_request*), Errors errors) {
    tw_solver_request request{};
    request.struct_size = sizeof request;
    const tw_status status = errors.check(call(handle_.get(), &request));
    if (status >= 0) request_ = request;
    return status == TW_MORE;
  }

  detail::Handle<tw_solver, tw_solver_destroy> handle_;
  tw_solver_request request_{};
};

/* A schedule on its own: schedule(step) is its value. */
class Schedule {
 public:
  explicit Schedule(const std::string& sentence, Errors errors = {}) {
    if (detail::require_compatible_library(errors)) {
      errors.check(tw_schedule_create(sentence.c_str(), handle_.out()));
    }
  }

  /* The value at a step, counted from 0. */
  double operator()(std::int64_t step, Errors errors = {}) const {
    double value = 0;
    errors.check(tw_schedule_value(handle_.get(), step, &value));
    return value;
  }

  /* Tells a schedule that watches the run what it watches: "metric", "loss", "batch_size". */
  void observe(const std::string& what, double value, Errors errors = {}) {
    errors.check(tw_schedule_observe(handle_.get(), what.c_str(), value));
  }

  /* Shows per-sample gradients (samples, n) to a batch-size rule. */
  void observe_samples(const Tensor& gradients, Errors errors = {}) {
    const tw_tensor view = gradients.c_view();
    errors.check(tw_schedule_observe_samples(handle_.get(), &view));
  }

  /* Runs a command: "begin_decay". */
  void command(const std::string& command, Errors errors = {}) {
    errors.check(tw_schedule_command(handle_.get(), command.c_str()));
  }

  /* What it remembers of the run, as bytes; load takes it up in a schedule of the same sentence. */
  std::vector<std::uint8_t> save(Errors errors = {}) const {
    return detail::read_bytes(errors, tw_schedule_save, handle_.get());
  }
  void load(const void* data, std::size_t size, Errors errors = {}) {
    errors.check(tw_schedule_load(handle_.get(), data, size));
  }
  void load(const std::vector<std::uint8_t>& bytes, Errors errors = {}) { load(bytes.data(), bytes.size(), errors); }
#ifdef __cpp_lib_span
  void load(std::span<const std::uint8_t> bytes, Errors errors = {}) { load(bytes.data(), bytes.size(), errors); }
#endif

  /* The schedule as a sentence that goes on from what it remembers. */
  std::string sentence(Errors errors = {}) const {
    return detail::read_text(errors, [&](char* buffer, std::size_t capacity, std::size_t* needed) {
      return tw_schedule_sentence(handle_.get(), buffer, capacity, needed);
    });
  }

  tw_schedule* c_handle() const noexcept { return handle_.get(); }

 private:
  detail::Handle<tw_schedule, tw_schedule_destroy> handle_;
};

/* ---- introspection ------------------------------------------------------------------------------------ */

/* What a hyper-parameter takes. */
enum class ParameterType : std::int32_t {
  number = TW_PARAMETER_NUMBER,
  integer = TW_PARAMETER_INTEGER,
  flag = TW_PARAMETER_FLAG,
  choice = TW_PARAMETER_CHOICE,
  list = TW_PARAMETER_LIST,
  regularizer = TW_PARAMETER_REGULARIZER,
  constraint = TW_PARAMETER_CONSTRAINT,
  pipeline = TW_PARAMETER_PIPELINE,
  schedule = TW_PARAMETER_SCHEDULE
};

/* A hyper-parameter of a method.  The texts are library-owned and constant, and live as long as the process.
 */
struct ParameterInfo {
  std::string_view name, meaning;
  ParameterType type;
  bool required, optional, live;
  bool min_open, max_open;
  std::string_view default_text, choices;
  double min, max;
};

/* A state slot of a method. */
struct SlotInfo {
  std::string_view name, meaning;
};

/* An input of an objective, or of a regularizer that needs more than the weights; see tw_input_info. */
struct InputInfo {
  std::string_view name, meaning, shape;
  bool optional, integer, differentiable, result;
};

/* A kind of request that a solver makes; see tw_request_info. */
struct RequestInfo {
  std::string_view name, meaning;
  bool takes_nonfinite;
  std::vector<InputInfo> given, wanted;
};

/* A method.  The texts are library-owned and constant, and live as long as the process. */
struct MethodInfo {
  std::string_view name, kind, summary, rule, source, sentence, requests;
  std::vector<ParameterInfo> parameters; /* in the order in which positional arguments are taken */
  std::vector<SlotInfo> state;
  std::vector<InputInfo> inputs; /* in the order in which lists of tensors hold them */
  std::vector<RequestInfo> asks; /* of a solver */
};

namespace detail {

inline InputInfo describe(const tw_input_info& input) {
  return InputInfo{input.name,          input.meaning,      input.shape,
                   input.optional != 0, input.integer != 0, input.differentiable != 0,
                   input.result != 0};
}

/* request(info) and tensor(index, info) ask the library. */
template <typename Request, typename Tensor>
RequestInfo describe_request(Request request, Tensor tensor, Errors errors) {
  tw_request_info r{};
  r.struct_size = sizeof r;
  if (!errors.ok(request(&r))) return {};
  RequestInfo info{r.name, r.meaning, r.takes_nonfinite != 0, {}, {}};
  for (std::size_t k = 0; k < r.given_count + r.wanted_count; k += 1) {
    tw_input_info input{};
    input.struct_size = sizeof input;
    if (!errors.ok(tensor(k, &input))) return {};
    (k < r.given_count ? info.given : info.wanted).push_back(describe(input));
  }
  return info;
}

inline MethodInfo describe(const tw_method_info& info, Errors errors) {
  MethodInfo method{info.name,     info.kind,     info.summary, info.rule, info.source,
                    info.sentence, info.requests, {},           {},        {},        {}};
  method.parameters.reserve(info.parameter_count);
  for (std::size_t index = 0; index < info.parameter_count; index += 1) {
    tw_parameter_info p{};
    p.struct_size = sizeof p;
    if (!errors.ok(tw_method_parameter(info.name, index, &p))) return {};
    method.parameters.push_back(ParameterInfo{p.name, p.meaning, static_cast<ParameterType>(p.type),
                                              p.required != 0, p.optional != 0, p.live != 0, p.min_open != 0,
                                              p.max_open != 0, p.default_text, p.choices, p.min, p.max});
  }
  method.state.reserve(info.state_count);
  for (std::size_t index = 0; index < info.state_count; index += 1) {
    tw_state_slot_info slot{};
    slot.struct_size = sizeof slot;
    if (!errors.ok(tw_method_state(info.name, index, &slot))) return {};
    method.state.push_back(SlotInfo{slot.name, slot.meaning});
  }
  method.inputs.reserve(info.input_count);
  for (std::size_t index = 0; index < info.input_count; index += 1) {
    tw_input_info input{};
    input.struct_size = sizeof input;
    if (!errors.ok(tw_method_input(info.name, index, &input))) return {};
    method.inputs.push_back(describe(input));
  }
  method.asks.reserve(info.request_count);
  for (std::size_t index = 0; index < info.request_count; index += 1) {
    method.asks.push_back(describe_request(
        [&](tw_request_info* r) { return tw_method_request(info.name, index, r); },
        [&](std::size_t k, tw_input_info* input) { return tw_method_request_tensor(info.name, index, k, input); }, errors));
    if (method.asks.back().name.empty()) return {};
  }
  return method;
}

}  // namespace detail

/* What a kind of request of optimizers shows and wants, by name. */
inline RequestInfo request_info(RequestKind kind, Errors errors = {}) {
  const std::int32_t number = static_cast<std::int32_t>(kind);
  return detail::describe_request(
      [&](tw_request_info* r) { return tw_request_kind(number, r); },
      [&](std::size_t k, tw_input_info* input) { return tw_request_kind_tensor(number, k, input); }, errors);
}

/* Every method that the library knows, sorted by name. */
inline std::vector<MethodInfo> methods(Errors errors = {}) {
  if (!detail::require_compatible_library(errors)) return {};
  std::vector<MethodInfo> all;
  all.reserve(tw_method_count());
  for (std::size_t index = 0; index < tw_method_count(); index += 1) {
    tw_method_info info{};
    info.struct_size = sizeof info;
    if (!errors.ok(tw_method_at(index, &info))) return {};
    all.push_back(detail::describe(info, errors));
  }
  return all;
}

/* One method by name; throws with the nearest name when there is none. */
inline MethodInfo method(const std::string& name, Errors errors = {}) {
  if (!detail::require_compatible_library(errors)) return {};
  tw_method_info info{};
  info.struct_size = sizeof info;
  if (!errors.ok(tw_method_find(name.c_str(), &info))) return {};
  return detail::describe(info, errors);
}

/* ---- aggregators -------------------------------------------------------------------------------------- */

/* One gradient made of those of several tasks, without an optimizer around it:
 *
 *   thalweg::Aggregator upgrad("upgrad");
 *   upgrad(Tensor(jacobian, {tasks, n}), Tensor(g)); // g <- what the rows come to
 *
 * The number of tasks is that of the rows, unless the sentence says it.  What a method remembers of earlier calls
 * (gradvac, nash_mtl, ...) belongs to the object: one for each run, called once a step. */
class Aggregator {
 public:
  explicit Aggregator(std::string sentence, Errors errors = {}) : sentence_(std::move(sentence)) {
    const std::string name = this->name();
    const MethodInfo info = method(name, errors);
    if (info.name.empty()) return;
    if (info.kind != "aggregator" || info.requests.find("task_gradient") == std::string_view::npos) {
      errors.fail(TW_ERROR_METHOD, "`" + name + "` does not combine the gradients of tasks");
    } else if (stages() != 1) {
      errors.fail(TW_ERROR_RANGE, "an aggregator is one stage, got \"" + sentence_ + "\"");
    } else {
      usable_.on = true;
    }
  }

  /* Writes the combined gradient.  `jacobian` (tasks, shape...) is float or double, and read where it lies; `combined`
   * has the same type and its shape behind the tasks; `losses` of the tasks, for methods that watch them.
   * TW_ERROR_COUNT where the rows are not the tasks of the sentence or of earlier calls, TW_ERROR_SHAPE, _DTYPE;
   * TW_ERROR_NONFINITE where a method meets a NaN.  Nothing that is remembered has changed then. */
  void operator()(const Tensor& jacobian, const Tensor& combined, const std::vector<double>& losses = {},
                  Errors errors = {}) {
    (*this)(Tensors{jacobian}, Tensors{combined}, losses, errors);
  }

  /* The same for a model of several tensors: one of each for every one of them. */
  void operator()(const Tensors& jacobians, const Tensors& combined, const std::vector<double>& losses = {},
                  Errors errors = {}) {
    if (!fits(jacobians, combined, losses, errors)) return;
    const std::int64_t tasks = jacobians[0].shape()[0];
    if (at_.empty() && !make(combined, tasks, errors)) return;
    for (Buffer& at : at_) at.clear();
    for (std::size_t k = 0; k < losses.size(); k += 1) {
      if (!errors.ok(tw_optimizer_observe(optimizer_.get(), ("loss_" + std::to_string(k)).c_str(), losses[k]))) return;
    }
    Requests asked(optimizer_.get(), errors);
    for (Request& request : asked) {
      if (request.count() != tasks) {
        asked.cancel();
        errors.fail(TW_ERROR_COUNT, "\"" + sentence_ + "\" is for " + std::to_string(request.count()) + " tasks, got " +
                                        std::to_string(tasks) + " rows");
        return;
      }
      Tensors rows;
      for (const Tensor& jacobian : jacobians) rows.push_back(row(jacobian, request.index()));
      const std::vector<tw_tensor> views = detail::c_views(rows);
      const tw_status bound = tw_optimizer_bind_gradients(optimizer_.get(), views.data(), views.size());
      if (bound < 0) {
        const std::string message = tw_last_error();
        asked.cancel();
        errors.fail(bound, message);
        return;
      }
      request.gradients_stay();
    }
    if (asked.status() < 0) return;
    for (std::size_t i = 0; i < at_.size(); i += 1) at_[i].write(combined[i]); /* plain SGD with a rate of 1, from 0 */
  }

  /* A number that the method tells of the last call: "residual", by how much the conditions of an exact answer are
   * missed (0 to 1, of a method that iterates), "iterations", "stationary".  TW_ERROR_SEQUENCE before the first call,
   * TW_ERROR_NAME where there is no such number. */
  double get(std::string_view what, Errors errors = {}) const {
    double value = 0;
    if (at_.empty()) {
      errors.fail(TW_ERROR_SEQUENCE, "\"" + sentence_ + "\" has not been called");
    } else {
      errors.ok(tw_optimizer_get_number(optimizer_.get(), nullptr, (name() + "." + std::string(what)).c_str(), &value));
    }
    return value;
  }

  const std::string& sentence() const noexcept { return sentence_; }

 private:
  /* Off in what has been moved from. */
  struct Usable {
    bool on = false;
    Usable() = default;
    Usable(Usable&& other) noexcept : on(std::exchange(other.on, false)) {}
    Usable& operator=(Usable&& other) noexcept { return on = std::exchange(other.on, false), *this; }
  };

  /* The parameters that the method moves: dense. */
  struct Buffer {
    Shape shape;
    DType dtype;
    std::vector<float> f32;
    std::vector<double> f64;

    Tensor tensor() {
      return dtype == DType::f32 ? Tensor(f32.data(), shape) : Tensor(f64.data(), shape);
    }
    void clear() noexcept {
      for (float& x : f32) x = 0;
      for (double& x : f64) x = 0;
    }
    void write(const Tensor& to) const {
      if (dtype == DType::f32) {
        write(to, f32);
      } else {
        write(to, f64);
      }
    }
    template <typename T>
    static void write(const Tensor& to, const std::vector<T>& from) {
      const Shape& shape = to.shape();
      Shape index(shape.size());
      for (const T x : from) {
        std::int64_t offset = 0;
        for (std::size_t d = 0; d < shape.size(); d += 1) {
          offset = to.strides().empty() ? offset * shape[d] + index[d] : offset + index[d] * to.strides()[d];
        }
        static_cast<T*>(to.data())[offset] = 0 - x;
        for (std::size_t d = shape.size(); d > 0 && ++index[d - 1] == shape[d - 1]; d -= 1) index[d - 1] = 0;
      }
    }
  };

  static Tensor row(const Tensor& jacobian, std::int64_t k) {
    const Shape shape(jacobian.shape().begin() + 1, jacobian.shape().end());
    const bool dense = jacobian.strides().empty();
    Shape strides(dense ? jacobian.strides().end() : jacobian.strides().begin() + 1, jacobian.strides().end());
    const std::int64_t width = jacobian.dtype() == DType::f32 ? sizeof(float) : sizeof(double);
    const std::int64_t step = dense ? Tensor(jacobian.data(), jacobian.dtype(), shape).size() : jacobian.strides()[0];
    return Tensor(static_cast<const void*>(static_cast<const char*>(jacobian.data()) + k * step * width),
                  jacobian.dtype(), shape, std::move(strides));
  }

  bool fits(const Tensors& jacobians, const Tensors& combined, const std::vector<double>& losses, Errors errors) const {
    const auto refuse = [errors](tw_status status, const char* message) {
      errors.fail(status, message);
      return false;
    };
    if (!usable_.on) return refuse(TW_ERROR_HANDLE, "this aggregator could not be made, or was moved from");
    if (jacobians.empty() || jacobians.size() != combined.size() || (!at_.empty() && at_.size() != combined.size())) {
      return refuse(TW_ERROR_COUNT, "expected a combined gradient for each jacobian, and as many as in earlier calls");
    }
    const std::int64_t tasks = jacobians[0].shape().empty() ? 0 : jacobians[0].shape()[0];
    if (tasks < 1) return refuse(TW_ERROR_SHAPE, "expected a jacobian (tasks, shape...) with at least one task");
    if (!losses.empty() && static_cast<std::int64_t>(losses.size()) != tasks) {
      return refuse(TW_ERROR_COUNT, "expected as many losses as tasks");
    }
    for (std::size_t i = 0; i < combined.size(); i += 1) {
      const Tensor &j = jacobians[i], &g = combined[i];
      if (j.dtype() != jacobians[0].dtype() || g.dtype() != j.dtype() ||
          (j.dtype() != DType::f32 && j.dtype() != DType::f64)) {
        return refuse(TW_ERROR_DTYPE, "expected jacobians and combined gradients that are all float, or all double");
      }
      if (j.shape().empty() || j.shape()[0] != tasks || j.size() < 0 ||
          Shape(j.shape().begin() + 1, j.shape().end()) != g.shape()) {
        return refuse(TW_ERROR_SHAPE, "expected jacobians (tasks, shape...) and combined gradients of that shape");
      }
      if (g.c_view().flags != 0 || (g.data() == nullptr && g.size() != 0)) {
        return refuse(TW_ERROR_LAYOUT, "the combined gradient is memory that must not be written");
      }
      if (!at_.empty() && (at_[i].shape != g.shape() || at_[i].dtype != g.dtype())) {
        return refuse(TW_ERROR_SHAPE, "expected tensors like those of earlier calls");
      }
    }
    return true;
  }

  /* The name in front of the bracket, what is in the bracket, and how many stages the sentence has. */
  std::string name() const {
    const std::size_t first = sentence_.find_first_not_of(blank), open = sentence_.find('(');
    if (first == std::string::npos) return {};
    const std::size_t last = sentence_.find_last_not_of(blank, open == std::string::npos ? open : open - 1);
    return last == std::string::npos || last < first ? std::string() : sentence_.substr(first, last - first + 1);
  }
  std::string inside() const {
    const std::size_t open = sentence_.find('('), close = sentence_.rfind(')');
    if (open == std::string::npos || close == std::string::npos || close < open) return {};
    const std::string text = sentence_.substr(open + 1, close - open - 1);
    return text.find_first_not_of(blank) == std::string::npos ? std::string() : text;
  }
  int stages() const noexcept {
    int depth = 0, count = 1;
    for (const char c : sentence_) {
      depth += (c == '(' || c == '[') - (c == ')' || c == ']');
      count += c == '|' && depth == 0;
    }
    return count;
  }

  bool make(const Tensors& like, std::int64_t tasks, Errors errors) {
    std::vector<Buffer> at;
    for (const Tensor& g : like) {
      const std::size_t size = static_cast<std::size_t>(g.size());
      at.push_back({g.shape(), g.dtype(), {}, {}});
      g.dtype() == DType::f32 ? at.back().f32.resize(size) : at.back().f64.resize(size);
    }
    Tensors parameters;
    for (Buffer& buffer : at) parameters.push_back(buffer.tensor());
    const std::vector<tw_tensor> views = detail::c_views(parameters);
    /* The tasks of the rows; a sentence that says the tasks, or cannot, stays as it is. */
    std::int64_t asked = 0;
    const std::string more = inside().empty() ? inside() : ", " + inside();
    detail::Handle<tw_optimizer, tw_optimizer_destroy> made;
    for (std::int64_t want = tasks; want > 0;) {
      made = start(name() + "(tasks=" + std::to_string(want) + more + ")", views, &asked);
      if (made.get() == nullptr || asked <= tasks || want != tasks) break;
      want = tasks - (asked - tasks); /* pareto_da asks for one gradient that is of no task */
    }
    if (made.get() == nullptr) made = start(sentence_, views, &asked);
    if (made.get() == nullptr) {
      errors.check(static_cast<tw_status>(asked));
      return false;
    }
    at_ = std::move(at);
    optimizer_ = std::move(made);
    return true;
  }

  /* An optimizer around the sentence, and how many gradients it asks for; none, and the status. */
  static detail::Handle<tw_optimizer, tw_optimizer_destroy> start(const std::string& sentence,
                                                                  const std::vector<tw_tensor>& views,
                                                                  std::int64_t* asked) {
    detail::Handle<tw_optimizer, tw_optimizer_destroy> made;
    Request first;
    tw_status status = tw_optimizer_create((sentence + " | sgd(lr=1)").c_str(), nullptr, made.out());
    if (status >= 0) status = tw_optimizer_add_parameters(made.get(), views.data(), views.size(), nullptr, nullptr);
    if (status >= 0) status = tw_optimizer_next(made.get(), first.c_request());
    if (status >= 0) status = tw_optimizer_cancel(made.get());
    *asked = status < 0 ? status : first.count();
    return status < 0 ? detail::Handle<tw_optimizer, tw_optimizer_destroy>() : std::move(made);
  }

  static constexpr const char* blank = " \t\n";
  std::string sentence_;
  Usable usable_;
  std::vector<Buffer> at_; /* in front of the optimizer, which dies first */
  detail::Handle<tw_optimizer, tw_optimizer_destroy> optimizer_;
};

/* ---- the process -------------------------------------------------------------------------------------- */

/* The release of the library that is running, as "major.minor.patch", and how it was built. */
inline std::string_view version() noexcept { return tw_version(); }
inline std::string_view build_info() noexcept { return tw_build_info(); }

/* The number of threads of a step: at least 1. */
inline void set_num_threads(int count, Errors errors = {}) { errors.check(tw_set_num_threads(count)); }
inline int num_threads() noexcept { return tw_get_num_threads(); }

/* Runs steps on the host's threads; nullptr restores the library's own pool.  See tw_set_executor. */
inline void set_executor(tw_executor executor, void* context = nullptr, Errors errors = {}) {
  errors.check(tw_set_executor(executor, context));
}

/* What a host's threads are to do: task(0), ... task(count - 1), in any order. */
class Task {
 public:
  Task(tw_task task, void* context) noexcept : task_(task), context_(context) {}
  void operator()(std::size_t index) const noexcept { task_(context_, index); }

 private:
  tw_task task_;
  void* context_;
};

/* The same with a callable of C++: run(task, count) returns when all tasks are done.  It must live until another
 * executor is set.  Half a step cannot be taken back on other threads: an exception that leaves it ends the program. */
template <typename Run, std::enable_if_t<std::is_invocable_v<Run&, Task, std::size_t>, int> = 0>
void set_executor(Run& run, Errors errors = {}) {
  constexpr auto call = [](void* context, tw_task task, void* task_context, std::size_t count) noexcept {
    (*static_cast<Run*>(context))(Task(task, task_context), count);
  };
  errors.check(tw_set_executor(call, &run));
}

/* Receives warnings (level 1) and notes (level 2); nullptr silences.  The function must not throw. */
inline void set_log(tw_log log, void* context = nullptr, Errors errors = {}) {
  errors.check(tw_set_log(log, context));
}

/* Where state and scratch memory comes from, for optimizers created afterwards; nullptr, nullptr restores malloc. */
inline void set_allocator(tw_allocate allocate, tw_deallocate deallocate, void* context = nullptr, Errors errors = {}) {
  errors.check(tw_set_allocator(allocate, deallocate, context));
}

/* While it lives, handles that this thread creates have an allocator, a log, or both of their own; see tw_services. */
class UseServices {
 public:
  explicit UseServices(tw_services services, Errors errors = {}) {
    services.struct_size = sizeof services;
    errors.check(tw_use_services(&services));
  }
  ~UseServices() { tw_use_services(nullptr); }
  UseServices(const UseServices&) = delete;
  UseServices& operator=(const UseServices&) = delete;
};

/* The normal draws that the random methods use: elements offset, offset + 1, ... of (seed, stream, step,
 * tensor). */
inline std::vector<double> random_normal(std::uint64_t seed, std::uint32_t stream, std::uint64_t step,
                                         std::uint32_t tensor, std::uint64_t offset, std::size_t count,
                                         Errors errors = {}) {
  std::vector<double> draws(count);
  if (!errors.ok(tw_random_normal(seed, stream, step, tensor, offset, draws.data(), count))) return {};
  return draws;
}

}  // namespace thalweg

#endif /* THALWEG_HPP */
