#include "common/torch_abi.h"

namespace resnet_fused {

using torch::headeronly::MemoryFormat;

namespace {
// Whether x is packed in that order; dimensions of one element have no say. Asking torch costs a dispatch.
bool is_dense(const Tensor& x, bool channels_last) {
  constexpr int kNchw[4] = {3, 2, 1, 0}, kNhwc[4] = {1, 3, 2, 0};
  if (x.dim() != 4) return false;
  int64_t expected = 1;
  for (int d : channels_last ? kNhwc : kNchw) {
    if (x.size(d) != 1 && x.stride(d) != expected) return false;
    expected *= x.size(d);
  }
  return true;
}

MemoryFormat format(bool channels_last) {
  return channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous;
}
}  // namespace

Tensor aten_convolution(const Tensor& x, const Tensor& weight, const OptTensor& bias, const Ints& stride,
                        const Ints& padding, const Ints& dilation, int64_t groups) {
  std::array<StableIValue, 9> stack{from(x),        from(weight), from(bias),       from(stride), from(padding),
                                    from(dilation), from(false),  from(Ints{0, 0}), from(groups)};
  call_aten("aten::convolution", "", stack);
  return to<Tensor>(stack[0]);
}

Tensor aten_max_pool2d(const Tensor& x, const Ints& kernel, const Ints& stride, const Ints& padding) {
  std::array<StableIValue, 6> stack{from(x), from(kernel), from(stride), from(padding), from(Ints{1, 1}), from(false)};
  call_aten("aten::max_pool2d_with_indices", "", stack);
  Tensor indices = to<Tensor>(stack[1]);  // takes ownership, so that it is freed
  return to<Tensor>(stack[0]);
}

Tensor aten_to(const Tensor& x, ScalarType dtype) { return torch::stable::to(x, dtype); }

Tensor aten_empty(const Ints& sizes, const Tensor& like, bool channels_last) {
  return torch::stable::empty(sizes, like.scalar_type(), std::nullopt, like.device(), std::nullopt,
                              format(channels_last));
}

Tensor aten_contiguous(const Tensor& x, bool channels_last) {
  if (is_dense(x, channels_last)) return x;
  return torch::stable::contiguous(x, format(channels_last));
}

int64_t aten_version(const Tensor& x) {
  std::array<StableIValue, 1> stack{from(x)};
  call_aten("aten::_version", "", stack);
  return to<int64_t>(stack[0]);
}

bool aten_is_inference(const Tensor& x) {
  std::array<StableIValue, 1> stack{from(x)};
  call_aten("aten::is_inference", "", stack);
  return to<bool>(stack[0]);
}

}  // namespace resnet_fused
