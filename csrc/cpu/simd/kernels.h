// The kernels of one instruction set and element type. Only declarations: any file may include this.
#pragma once
#include "cpu/direct.h"
#include "cpu/direct_gradient.h"
#include "cpu/grouped.h"
#include "cpu/linear.h"
#include "cpu/plan.h"
#include "cpu/winograd.h"
#include "cpu/winograd_gradient.h"

namespace resnet_fused::cpu {

struct VectorKernels {
  DirectKernels direct;
  GroupedKernels grouped;
  WinogradKernels winograd;
  WinogradGradientKernels winograd_gradient;
  LinearKernels linear;
  DirectGradientKernels direct_gradient;  // null where there are none
};

namespace avx2 {
extern const VectorKernels kernels_fp32, kernels_converted_bf16, kernels_fp16;
}

namespace avx512 {
extern const VectorKernels kernels_fp32, kernels_bf16, kernels_converted_bf16, kernels_fp16;
}

namespace amx {
extern const DirectKernels direct_bf16;
extern const DirectGradientKernels direct_gradient_bf16;
}  // namespace amx

// The kernels of the instruction set that the plan chooses for these elements.
const VectorKernels& kernels_of(Dtype dtype, Isa isa);

}  // namespace resnet_fused::cpu
