// Converts torch tensors to the kernels' plain structs, and owns what those point to.
#pragma once
#include "common/problem.h"
#include "cuda/conv.h"

namespace resnet_fused::cuda {

Dtype dtype_of(const Tensor& t);

// A tensor that would be copied for its layout would be aligned by that; only views of odd places pay for not asking.
bool is_aligned(const Tensor& t);

// A number beyond 32 bits becomes the largest: padding, or what belongs to it, that the plan refuses.
ConvShape shape_of(const Conv& conv);

// A BatchNorm, with its convolution's bias, as the kernels take it. Holds the tensors that it points into.
class Vectors {
 public:
  Vectors(const BatchNorm& bn, const OptTensor& bias, const Tensor& x);

  BatchNormVectors pointers() const;

 private:
  OptTensor held_[5];
  double eps_;
};

// A convolution's tensors as conv_fwd takes them.
class Operands {
 public:
  explicit Operands(const Conv& conv);

  ConvOperands pointers() const;

 private:
  Tensor x_, weight_;
  Vectors pre_, bn_;
  ConvShape shape_;
};

}  // namespace resnet_fused::cuda
