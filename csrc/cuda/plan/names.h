// Names of dtypes and modes in messages. Pure.
#pragma once
#include "cuda/kernels/conv.h"

namespace resnet_fused::cuda {

inline const char* name_of(ConvFwdMode mode) {
  switch (mode) {
    case ConvFwdMode::kPrologue:
      return "prologue";
    case ConvFwdMode::kProjection:
      return "projection";
    case ConvFwdMode::kProjectionPrologue:
      return "projection prologue";
    case ConvFwdMode::kStatistics:
      return "statistics";
    case ConvFwdMode::kPrologueStatistics:
      return "prologue statistics";
    case ConvFwdMode::kGradientSums:
      return "gradient sums";
    case ConvFwdMode::kPlain:
      break;
  }
  return "plain";
}

inline const char* name_of(Dtype dtype) {
  switch (dtype) {
    case Dtype::kFloat16:
      return "float16";
    case Dtype::kBFloat16:
      return "bfloat16";
    case Dtype::kFloat64:
      return "float64";
    case Dtype::kFloat32:
      break;
  }
  return "float32";
}

}  // namespace resnet_fused::cuda
