// Interface of our own engines. Both write into a dense NHWC buffer of conv's output (or pooled) shape.
#pragma once
#include "common/problem.h"
#include "cpu/plan.h"

namespace resnet_fused::cpu {

// conv for the plan; `flipped` ones, which compute input gradients, too.
ConvShape shape_of(const Conv& conv, Purpose purpose = Purpose::kInference);
Plan plan_of(const Conv& conv, Purpose purpose);
// The engine for inference of conv, followed by an optional pool.
Engine engine_of(const Conv& conv, const MaxPool* pool = nullptr);

// conv's sizes in a kernel's parameters.
template <typename Parameters>
void set_sizes(Parameters& q, const Conv& conv) {
  q.n = narrow(conv.n), q.c = narrow(conv.c), q.h = narrow(conv.h), q.w = narrow(conv.w);
  q.k = narrow(conv.k), q.oh = narrow(conv.oh), q.ow = narrow(conv.ow);
  q.pad_h = narrow(conv.padding[0]), q.pad_w = narrow(conv.padding[1]);
}

// And its filter's size, stride and dilation.
template <typename Parameters>
void set_geometry(Parameters& q, const Conv& conv) {
  set_sizes(q, conv);
  q.r = narrow(conv.r), q.s = narrow(conv.s);
  q.stride_h = narrow(conv.stride[0]), q.stride_w = narrow(conv.stride[1]);
  q.dil_h = narrow(conv.dilation[0]), q.dil_w = narrow(conv.dilation[1]);
}

// A convolution's filter in memory, read in place: the value at (k, c, r, s) is k * strides[0] + c * strides[1] + r *
// strides[2] + s * strides[3] elements after `data`. Strides of a flipped filter are negative.
struct FilterView {
  const void* data;
  int64_t strides[4];
};
FilterView filter_of(const Conv& conv);

// Replaces x with relu(pre(x)) if conv has a pre: a convolution reads its input many times, so compute it once.
Conv without_pre(Conv conv);

// out = [max_pool](act(bn(conv(x)) + residual)). residual and out are channels_last and dense, and may be the same
// tensor. Returns false, with nothing computed, if a weight is not finite (zero padding would produce NaN) or the bias
// must be added before the BatchNorm (scale_shift.h).
bool direct_conv(const Conv& conv, const OptTensor& residual, const MaxPool* pool, bool relu, bool keep_packed,
                 const Tensor& out);

// The same without a pool. Returns false if a result was not finite: Winograd's sums can turn an Inf, or an
// intermediate overflow, into NaN where the definition has none. The caller must then use another engine.
bool winograd_conv(const Conv& conv, const OptTensor& residual, bool relu, bool keep_packed, const Tensor& out);

}  // namespace resnet_fused::cpu
