#include "cpu/onednn.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "common/parallel.h"
#include "cpu/bn_add_act.h"
#include "cpu/dispatch.h"
#include "cpu/finite.h"
#include "cpu/packed_cache.h"
#include "cpu/scale_shift.h"

// AOTInductor's C shims, because the boxed dispatcher leaks every `str` argument on torch <= 2.13. Declared here as
// weak symbols: their header conflicts with the stable ABI, and builds without oneDNN lack them.
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

// A weight in oneDNN's layout, multiplied by BatchNorm's scale if that is folded in.
struct Reordered final : Packed {
  ScaleShift<float> bn;  // folded into the copy, which is current only while BatchNorm gives the same values
  Tensor weight;
  OptTensor bias;
  bool finite = true;
};

// Folding saves a pass over the outputs and costs a second copy of the weight on the first call. Not worth it if the
// weight is larger than the output, as in the deep layers of a small batch. In bfloat16 it also saves a rounding.
bool is_worth_folding(const Conv& conv) {
  return scalar_type_of(conv.x) != ScalarType::Float || conv.n * conv.k * conv.oh * conv.ow >= conv.weight.numel();
}

template <typename T>
void scale_row(T* to, const T* from, int64_t stride, int64_t count, float scale) {
  if (stride == 1)
    for (int64_t i = 0; i < count; ++i) store(to + i, load(from[i]) * scale);
  else
    for (int64_t i = 0; i < count; ++i) store(to + i, load(from[i * stride]) * scale);
}

// Reorders from channels_last: torch first copies any other layout, which costs more than our copy.
Tensor reorder_weight(const Tensor& weight, const Conv& conv) {
  // _reorder_convolution_weight(Tensor self, SymInt[2] padding, stride, dilation, SymInt groups, SymInt[]? input_size)
  // oneDNN's layout depends on the input size. Without it torch guesses, and after a wrong guess every call reorders
  // again by oneDNN's slowest path: 77 ms for a convolution of 2 (512 channels, 7x7, AVX2).
  const Sizes input{conv.n, conv.c, conv.h, conv.w};
  std::array<StableIValue, 6> stack{from(weight),        from(conv.padding), from(conv.stride),
                                    from(conv.dilation), from(conv.groups),  from(std::optional<IntView>(input))};
  call_aten("mkldnn::_reorder_convolution_weight", "", stack);
  return to<Tensor>(stack[0]);
}

// weight[k] * scale[k], computed in fp32 and rounded once, in channels_last. Reads the weight with its own strides, so
// this is the only copy: two would set the peak memory of the first call.
Tensor scaled_weight(const Conv& conv, const std::vector<float>& scale) {
  const Tensor& w = conv.weight;
  const int64_t c = w.size(1), r = w.size(2), s = w.size(3);
  const Ints stride(w.strides().begin(), w.strides().end());
  Tensor scaled = aten_empty(sizes_of(w), w, /*channels_last=*/true);
  dispatch(scalar_type_of(w), [&](auto zero) {
    using T = decltype(zero);
    T* out = static_cast<T*>(scaled.mutable_data_ptr());
    const T* in = data<T>(w);
    constexpr int64_t kGrain = 1 << 15;
    parallel_for(0, conv.k, std::max<int64_t>(1, kGrain / (c * r * s)), [&](int64_t begin, int64_t end) {
      for (int64_t k = begin; k < end; ++k)
        for (int64_t tap = 0; tap < r * s; ++tap) {
          T* to = out + (k * r * s + tap) * c;
          const T* from = in + k * stride[0] + tap / s * stride[2] + tap % s * stride[3];
          scale_row(to, from, stride[1], c, scale[k]);
        }
    });
  });
  return scaled;
}

int64_t bytes_of(const Tensor& t) { return t.numel() * static_cast<int64_t>(t.element_size()); }

std::shared_ptr<const Reordered> fold(const Conv& conv, ScaleShift<float> bn) {
  auto folded = std::make_shared<Reordered>();
  const Tensor weight = scaled_weight(conv, bn.scale), bias = aten_empty({conv.k}, weight, /*channels_last=*/false);
  dispatch(scalar_type_of(weight), [&](auto zero) {
    using T = decltype(zero);
    T* to = static_cast<T*>(bias.mutable_data_ptr());
    for (int64_t k = 0; k < conv.k; ++k) store(to + k, static_cast<typename AccType<T>::type>(bn.shift[k]));
  });
  folded->finite = all_finite(weight) && all_finite(bias);
  folded->bytes = bytes_of(weight);
  folded->weight = reorder_weight(weight, conv);
  folded->bias = bias;
  folded->bn = std::move(bn);
  return folded;
}

std::shared_ptr<const Reordered> reorder(const Conv& conv) {
  auto reordered = std::make_shared<Reordered>();
  const Tensor weight = aten_contiguous(conv.weight, /*channels_last=*/true);
  reordered->finite = all_finite(weight);  // eager may multiply padding zeros by an infinity; oneDNN never does
  reordered->bytes = bytes_of(weight);
  reordered->weight = reorder_weight(weight, conv);
  return reordered;
}

// Runs oneDNN's kernel, with or without post-ops. torch chooses the output format.
Tensor convolve(const Conv& conv, const Tensor& x, const Reordered& packed, const OptTensor& residual, bool relu) {
  AtenTensorHandle bias = packed.bias ? packed.bias->get() : nullptr, out = nullptr;
  AtenTensorHandle* const maybe_bias = packed.bias ? &bias : nullptr;
  const char* unary = "relu";
  if (residual)
    check_shim(
        aoti_torch_cpu_mkldnn__convolution_pointwise_binary(
            x.get(), residual->get(), packed.weight.get(), maybe_bias, conv.padding.data(), 2, conv.stride.data(), 2,
            conv.dilation.data(), 2, conv.groups, "add", nullptr, relu ? &unary : nullptr, nullptr, 0, nullptr, &out),
        "oneDNN convolution");
  else
    check_shim(aoti_torch_cpu_mkldnn__convolution_pointwise(
                   x.get(), packed.weight.get(), maybe_bias, conv.padding.data(), 2, conv.stride.data(), 2,
                   conv.dilation.data(), 2, conv.groups, relu ? unary : "none", nullptr, 0, nullptr, &out),
               "oneDNN convolution");
  return Tensor(out);
}

}  // namespace

bool onednn_available() {
  return aoti_torch_cpu_mkldnn__convolution_pointwise && aoti_torch_cpu_mkldnn__convolution_pointwise_binary;
}

OptTensor onednn_conv(const Conv& conv, const OptTensor& residual, bool relu, bool keep_packed) {
  auto bn = scale_shift<float>(conv.bn, conv.bias, conv.k);
  if (!bn.bias_folds) return std::nullopt;
  // With a larger scale, folded products could overflow where a sum scaled afterwards would not.
  constexpr float kMostScale = 0x1p64f;
  for (int64_t k = 0; k < conv.k; ++k)
    if (!(std::abs(bn.scale[k]) <= kMostScale) || !std::isfinite(bn.shift[k])) return std::nullopt;
  const PackedLayout layout{kPackedOneDnn,  conv.padding[0],  conv.padding[1],  conv.stride[0],
                            conv.stride[1], conv.dilation[0], conv.dilation[1], conv.groups,
                            conv.n,         conv.c,           conv.h,           conv.w};
  const bool folds = is_worth_folding(conv);
  const auto packed = std::static_pointer_cast<const Reordered>(packed_weight(
      conv.weight, layout, keep_packed,
      [&](bool) -> std::shared_ptr<const Packed> { return folds ? fold(conv, bn) : reorder(conv); },
      [&](const Packed& p) {
        const auto& kept = static_cast<const Reordered&>(p);
        return !folds || (kept.bn.scale == bn.scale && kept.bn.shift == bn.shift);
      }));
  if (!packed->finite) return std::nullopt;
  const Tensor x = aten_contiguous(conv.x, conv.channels_last);
  OptTensor r;
  if (residual) r = aten_contiguous(*residual, conv.channels_last);
  // One pass of ours follows in three cases: oneDNN's ReLU turns NaN into 0; torch's fallback for groups does not
  // support bf16; torch 2.11 fails ("could not create a memory") on a residual that is both contiguous and
  // channels_last.
  const bool both_formats = conv.k == 1 || conv.oh * conv.ow == 1;
  const bool after =
      !folds || (relu && !(all_finite(x) && (!r || all_finite(*r)))) || (r && (conv.groups > 1 || both_formats));
  const Tensor out = convolve(conv, x, *packed, after ? std::nullopt : r, relu && !after);
  // torch applies its own layout rule, which ours follows; exceptions cost a copy
  const Tensor y = in_format(out, conv.channels_last);
  if (after)
    bn_add_act_into(y, y, folds ? std::nullopt : conv.bias, folds ? BatchNorm{} : conv.bn, r, relu, conv.channels_last);
  return y;
}

}  // namespace resnet_fused::cpu
