// Interface of the AVX-512 engines. Both write into a dense NHWC buffer of conv's output (or pooled) shape.
#pragma once
#include "common/problem.h"
#include "cpu/plan.h"

namespace resnet_fused::cpu {

struct Pool {
  Ints kernel, stride, padding;
};

// The plan for conv, followed by an optional pool.
Engine engine_of(const Conv& conv, const Pool* pool = nullptr);

// Replaces x by relu(pre(x)) if conv has a pre: a convolution reads its input many times, so it is computed once.
Conv without_pre(Conv conv);

// out = [max_pool](act(bn(conv(x)) + residual)). residual and out are channels_last and dense, and may be the same
// tensor. False: a weight is not finite, so that the zeros of the padding would turn to NaN, or the bias must be
// added before the BatchNorm (scale_shift.h); nothing was computed.
bool direct_conv(const Conv& conv, const OptTensor& residual, const Pool* pool, bool relu, bool keep_packed,
                 const Tensor& out);

// The same without a pool. False: something in the result was not finite, and the caller must use another engine,
// because Winograd's sums can turn one Inf, or an overflow on the way, into NaN where the definition has none.
bool winograd_conv(const Conv& conv, const OptTensor& residual, bool relu, bool keep_packed, const Tensor& out);

// to = the weight's gradient of conv(x), or of conv(relu(pre(x))), from the output's, which is channels_last and dense.
// False: likewise.
bool winograd_gradient(const Conv& conv, const Tensor& grad, const Tensor& to);

}  // namespace resnet_fused::cpu
