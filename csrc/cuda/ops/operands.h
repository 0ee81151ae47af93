// Converts torch tensors to the kernels' plain structs, and owns the tensors that those point into.
#pragma once
#include "common/problem.h"
#include "cuda/kernels/conv.h"

namespace resnet_fused::cuda {

// Whether the address is a multiple of 16 bytes. This ignores that a copy to another layout would align the tensor;
// only views at odd offsets lose by it.
bool is_aligned(const Tensor& t);

// Values beyond 32 bits, from huge padding, become the largest int32, which the plan refuses.
ConvShape shape_of(const Conv& conv);

// A BatchNorm and its convolution's bias, in the kernels' form. Holds the tensors that pointers() points into.
class Vectors {
 public:
  Vectors(const BatchNorm& bn, const OptTensor& bias, const Tensor& x);

  BatchNormVectors pointers() const;

 private:
  OptTensor held_[5];
  double eps_;
};

// A convolution's tensors in the kernels' form: NHWC and KRSC, copied if necessary. A flipped filter is copied. Holds
// them.
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
