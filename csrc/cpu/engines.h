// The AVX-512 engines behind one door. Both write into a dense NHWC buffer of conv's output (or pooled) shape.
#pragma once
#include "common/problem.h"

namespace resnet_fused::cpu {

struct Pool {
  Ints kernel, stride, padding;
};

// out = [max_pool](act(bn(conv(x)) + residual)). residual and out are channels_last and dense, and may be the same
// tensor. False: a weight is not finite, so that the zeros of the padding would turn to NaN; nothing was computed.
bool direct_conv(const Conv& conv, const OptTensor& residual, const Pool* pool, bool relu, bool keep_packed,
                 const Tensor& out);

// The same without a pool. False: something in the result was not finite, and the caller must use another engine,
// because Winograd's sums can turn one Inf, or an overflow on the way, into NaN where the definition has none.
bool winograd_conv(const Conv& conv, const OptTensor& residual, bool relu, bool keep_packed, const Tensor& out);

}  // namespace resnet_fused::cpu
