// thalweg.h and thalweg.hpp in strict C++17: what they promise about types.  Compiling is the test.
#include <thalweg/thalweg.h>
#include <thalweg/thalweg.hpp>
#include <thalweg/thalweg.hpp>  // twice: the guard

#include <array>
#include <type_traits>

static_assert(sizeof(tw_tensor) == 64 && std::is_standard_layout_v<tw_tensor> &&
              std::is_trivial_v<tw_tensor>);
static_assert(std::is_standard_layout_v<tw_options> && std::is_trivial_v<tw_options>);
static_assert(std::is_standard_layout_v<tw_request> && std::is_trivial_v<tw_request>);
static_assert(std::is_same_v<tw_status, std::int32_t>);

template <typename T>
constexpr bool owns_a_handle =
    !std::is_copy_constructible_v<T> && !std::is_copy_assignable_v<T> &&
    std::is_nothrow_move_constructible_v<T> && std::is_nothrow_move_assignable_v<T> &&
    std::is_nothrow_destructible_v<T> && sizeof(T) == sizeof(void*);
static_assert(owns_a_handle<thalweg::Optimizer>);
static_assert(owns_a_handle<thalweg::Regularizer>);
static_assert(owns_a_handle<thalweg::Constraint>);
static_assert(owns_a_handle<thalweg::Schedule>);

static_assert(std::is_base_of_v<std::runtime_error, thalweg::Error>);
static_assert(std::is_nothrow_copy_constructible_v<thalweg::Error>);
static_assert(std::is_copy_constructible_v<thalweg::Tensor> &&
              std::is_nothrow_move_constructible_v<thalweg::Tensor>);

// A sentence does not become an optimizer by accident, and a number no tensor.
static_assert(!std::is_convertible_v<const char*, thalweg::Optimizer>);
static_assert(!std::is_constructible_v<thalweg::Tensor, int>);

// Views come from what has elements of a type that the library knows.
static_assert(std::is_constructible_v<thalweg::Tensor, std::vector<float>&>);
static_assert(std::is_constructible_v<thalweg::Tensor, const std::vector<double>&>);
static_assert(std::is_constructible_v<thalweg::Tensor, std::array<float, 4>&, thalweg::Shape>);
static_assert(!std::is_constructible_v<thalweg::Tensor, std::vector<float>&&>);  // it would dangle

int main() { return 0; }
