// The LibTorch stable ABI, plus what it lacks: ATen op calls and error messages.
#pragma once
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <array>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "common/dtype.h"

// torch >= 2.13 keeps the message of the last failed shim call; older libtorch prints it to stderr.
extern "C" __attribute__((weak)) const char* torch_exception_get_what_without_backtrace();

namespace resnet_fused {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptTensor = std::optional<Tensor>;
using Ints = std::vector<int64_t>;
using Sizes = std::array<int64_t, 4>;
using Pair = std::array<int64_t, 2>;
using IntView = torch::headeronly::IntHeaderOnlyArrayRef;  // non-owning view of either, or of a braced list

// Convert the arguments and results of call_aten. library.h also declares from and to in the global namespace, so use
// these qualified or from inside this namespace.
using torch::stable::detail::from;
using torch::stable::detail::to;
inline StableIValue from(const Pair& pair) { return from(IntView(pair)); }

inline void check_shim(AOTITorchError code, const char* what) {
  if (code == AOTI_TORCH_SUCCESS) return;
  const char* why =
      torch_exception_get_what_without_backtrace ? torch_exception_get_what_without_backtrace() : "see stderr";
  throw std::runtime_error(std::string(what) + ": " + why);
}

// RF_CHECK(condition, sentence...): the error shows only the sentence, without file and line.
template <typename... Args>
[[noreturn]] void fail(const Args&... args) {
  std::ostringstream sentence;
  (sentence << ... << args);
  throw std::runtime_error(sentence.str());
}
#define RF_CHECK(condition, ...) \
  if (!(condition)) ::resnet_fused::fail(__VA_ARGS__)

template <size_t N>
void call_aten(const char* op, const char* overload, std::array<StableIValue, N>& stack) {
  // The torch version of the build, not the target version: it tells libtorch the layout of our arguments.
  check_shim(torch_call_dispatcher(op, overload, stack.data(), TORCH_ABI_VERSION), op);
}

// Faster than t.scalar_type(), which queries libtorch for every dtype in turn.
ScalarType scalar_type_of(const Tensor& t);
Dtype dtype_of(const Tensor& t);  // of an activation or weight that the ops have checked

// Bytes from the tensor's first element to the end of its last one.
int64_t span_bytes(const Tensor& t);

// True if x is dense in the given dimension order, ignoring dimensions of size 1. A call to torch would cost a
// dispatch.
bool is_dense(const Tensor& x, bool channels_last);

// ATen ops used by the engines.
Tensor aten_convolution(const Tensor& x, const Tensor& weight, const OptTensor& bias, IntView stride, IntView padding,
                        IntView dilation, int64_t groups);
// The gradient of a convolution's input or of its weight.
enum class GradientOf { kInput, kWeight };
Tensor aten_convolution_backward(GradientOf which, const Tensor& grad, const Tensor& x, const Tensor& weight,
                                 IntView stride, IntView padding, IntView dilation, int64_t groups);
// A filter with its taps in reverse order: a copy, or the filter itself if it is 1x1.
Tensor aten_flip(const Tensor& weight);
Tensor aten_max_pool2d(const Tensor& x, IntView kernel, IntView stride, IntView padding);
Tensor aten_to(const Tensor& x, ScalarType dtype);
// A dense tensor with like's dtype (or the given one), channels_last if requested and four-dimensional. Bypasses the
// dispatcher.
Tensor aten_empty(IntView sizes, const Tensor& like, bool channels_last, std::optional<ScalarType> dtype = {});
Tensor aten_contiguous(const Tensor& x, bool channels_last);
// aten_contiguous for what an op returns. A buffer of one channel has both formats at once, and torch reads the format
// from strides: they are those of the wanted one, without a copy.
Tensor in_format(const Tensor& x, bool channels_last);
int64_t aten_version(const Tensor& x);
bool aten_is_inference(const Tensor& x);

}  // namespace resnet_fused
