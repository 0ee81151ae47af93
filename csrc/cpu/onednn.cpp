#include "cpu/onednn.h"

#include <cmath>

#include "cpu/bn_add_act.h"
#include "cpu/dispatch.h"
#include "cpu/finite.h"
#include "cpu/packed_cache.h"
#include "cpu/scale_shift.h"

// AOTInductor's C shims. They are the only way to these kernels that leaks nothing: through the boxed dispatcher every
// `str` argument leaks on torch <= 2.13. torch's own header for them cannot be included beside the stable ABI, and
// builds without oneDNN lack the symbols: declared weak here, null there.
extern "C" {
__attribute__((weak)) AOTITorchError aoti_torch_cpu_mkldnn__convolution_pointwise(
    AtenTensorHandle x, AtenTensorHandle weight, AtenTensorHandle* bias, const int64_t* padding, int64_t padding_len,
    const int64_t* stride, int64_t stride_len, const int64_t* dilation, int64_t dilation_len, int64_t groups,
    const char* unary, const double** scalars, int64_t scalars_len, const char** algorithm, AtenTensorHandle* out);
__attribute__((weak)) AOTITorchError aoti_torch_cpu_mkldnn__convolution_pointwise_binary(
    AtenTensorHandle x, AtenTensorHandle other, AtenTensorHandle weight, AtenTensorHandle* bias, const int64_t* padding,
    int64_t padding_len, const int64_t* stride, int64_t stride_len, const int64_t* dilation, int64_t dilation_len,
    int64_t groups, const char* binary, double* alpha, const char** unary, const double** scalars, int64_t scalars_len,
    const char** algorithm, AtenTensorHandle* out);
}

namespace resnet_fused::cpu {

namespace {

struct Folded final : Packed {
  ScaleShift<float> bn;  // what was folded in: a copy is current while BatchNorm still gives these
  Tensor weight, bias;
  bool finite;
};

Tensor reorder_weight(const Tensor& weight, const Conv& conv) {
  // _reorder_convolution_weight(Tensor self, SymInt[2] padding, stride, dilation, SymInt groups, SymInt[]? input_size)
  // oneDNN's order depends on the input's size. Without it a guess is made, and where the guess is wrong every call
  // reorders again by oneDNN's slowest way: 77 ms of a convolution of 2 (512 channels, 7x7, AVX2).
  const Sizes input{conv.n, conv.c, conv.h, conv.w};
  std::array<StableIValue, 6> stack{from(weight),        from(conv.padding), from(conv.stride),
                                    from(conv.dilation), from(conv.groups),  from(std::optional<IntView>(input))};
  call_aten("mkldnn::_reorder_convolution_weight", "", stack);
  return to<Tensor>(stack[0]);
}

std::shared_ptr<const Folded> fold(const Conv& conv, ScaleShift<float> bn) {
  auto folded = std::make_shared<Folded>();
  folded->weight = aten_empty(sizes_of(conv.weight), conv.weight, /*channels_last=*/false);
  folded->bias = aten_empty({conv.k}, conv.weight, /*channels_last=*/false);
  const Tensor w = aten_contiguous(conv.weight, /*channels_last=*/false);
  dispatch(w.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    const int64_t row = w.numel() / conv.k;
    T* to = static_cast<T*>(folded->weight.mutable_data_ptr());
    T* bias = static_cast<T*>(folded->bias.mutable_data_ptr());
    // in fp32 until this one rounding
    for (int64_t k = 0; k < conv.k; ++k) {
      store(bias + k, static_cast<typename AccType<T>::type>(bn.shift[k]));
      for (int64_t i = 0; i < row; ++i) store(to + k * row + i, load(data<T>(w)[k * row + i]) * bn.scale[k]);
    }
  });
  folded->finite = all_finite(folded->weight) && all_finite(folded->bias);
  folded->bytes = w.numel() * (w.scalar_type() == ScalarType::Float ? 4 : 2);
  folded->weight = reorder_weight(folded->weight, conv);
  folded->bn = std::move(bn);
  return folded;
}

}  // namespace

bool onednn_available() {
  return aoti_torch_cpu_mkldnn__convolution_pointwise && aoti_torch_cpu_mkldnn__convolution_pointwise_binary;
}

OptTensor onednn_conv(const Conv& conv, const OptTensor& residual, bool relu, bool keep_packed) {
  auto bn = scale_shift<float>(conv.bn, conv.bias, conv.k);
  if (!bn.bias_folds) return std::nullopt;
  // A product with a scale beyond this could overflow on the way to a sum that, scaled afterwards, would not.
  constexpr float kMostScale = 0x1p64f;
  for (int64_t k = 0; k < conv.k; ++k)
    if (!(std::abs(bn.scale[k]) <= kMostScale) || !std::isfinite(bn.shift[k])) return std::nullopt;
  const PackedLayout layout{kPackedOneDnn,  conv.padding[0],  conv.padding[1],  conv.stride[0],
                            conv.stride[1], conv.dilation[0], conv.dilation[1], conv.groups,
                            conv.n,         conv.c,           conv.h,           conv.w};
  const auto folded = std::static_pointer_cast<const Folded>(packed_weight(
      conv.weight, layout, keep_packed, [&] { return fold(conv, bn); },
      [&](const Packed& p) {
        const auto& f = static_cast<const Folded&>(p);
        return f.bn.scale == bn.scale && f.bn.shift == bn.shift;
      }));
  if (!folded->finite) return std::nullopt;
  const Tensor x = aten_contiguous(conv.x, conv.channels_last);
  OptTensor r;
  if (residual) r = aten_contiguous(*residual, conv.channels_last);
  // oneDNN's ReLU makes a NaN 0, and torch's fallback for groups knows no bf16: there, one pass of our own follows
  const bool after = (relu && !(all_finite(x) && (!r || all_finite(*r)))) || (r && conv.groups > 1);
  AtenTensorHandle bias = folded->bias.get(), out = nullptr;
  const char* unary = "relu";
  if (r && !after) {
    check_shim(aoti_torch_cpu_mkldnn__convolution_pointwise_binary(x.get(), r->get(), folded->weight.get(), &bias,
                                                                   conv.padding.data(), 2, conv.stride.data(), 2,
                                                                   conv.dilation.data(), 2, conv.groups, "add", nullptr,
                                                                   relu ? &unary : nullptr, nullptr, 0, nullptr, &out),
               "oneDNN convolution");
  } else {
    check_shim(aoti_torch_cpu_mkldnn__convolution_pointwise(
                   x.get(), folded->weight.get(), &bias, conv.padding.data(), 2, conv.stride.data(), 2,
                   conv.dilation.data(), 2, conv.groups, relu && !after ? "relu" : "none", nullptr, 0, nullptr, &out),
               "oneDNN convolution");
  }
  // torch picks the layout by its own rule, which ours follows; the exceptions cost a copy
  const Tensor y = aten_contiguous(Tensor(out), conv.channels_last);
  if (after) bn_add_act_into(y, y, std::nullopt, BatchNorm{}, r, relu, conv.channels_last);
  return y;
}

}  // namespace resnet_fused::cpu
