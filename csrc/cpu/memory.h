// Where results go.
#pragma once
#include "common/problem.h"

namespace resnet_fused::cpu {

// A new channels_last tensor. Large ones ask for huge pages before they are first touched: a fresh 100 MB activation is
// 25,000 page faults otherwise, which cost as much as a convolution's worth of memory traffic.
Tensor output_buffer(const Ints& sizes, const Tensor& like);

}  // namespace resnet_fused::cpu
