// Arguments of an op after validation: tensors and plain numbers. Every backend starts here.
#pragma once
#include "common/geometry.h"

namespace resnet_fused {

// A BatchNorm in eval mode: per-channel tensors of shape (K), any floating dtype. mean absent: no BatchNorm.
struct BatchNorm {
  OptTensor gamma, beta, mean, var;
  double eps = 0;
  bool present() const { return mean.has_value(); }
};

// One convolution: (N, C, H, W) * (K, C / groups, R, S) -> (N, K, OH, OW).
struct Conv {
  Tensor x, weight;
  OptTensor bias;
  BatchNorm bn;
  BatchNorm pre;                   // over x's channels: if present, the convolution reads relu(pre(x))
  Pair stride, padding, dilation;  // height, width
  int64_t groups = 1;

  int64_t n, c, h, w, k, r, s, oh, ow;
  bool channels_last;    // torch's rule: the output is channels_last if the input or the weight is
  bool flipped = false;  // the filter is the weight flipped: its taps are read from the last to the first

  Sizes output_sizes() const { return {n, k, oh, ow}; }
};

// Each throws std::runtime_error with the offending values if the arguments are invalid. prefix: prepended to the names
// of weight, bias and bn in error messages, as in the op's schema.
Conv make_conv(const char* op, Tensor x, Tensor weight, OptTensor bias, BatchNorm bn, IntView stride, IntView padding,
               IntView dilation, int64_t groups, BatchNorm pre = {}, const char* prefix = "");
// The input gradient of a convolution with stride 1 and one group, as a convolution of the output's gradient with the
// flipped filter: a view of the weight, to be read from the last tap on. `grad_addend` must have its shape.
Conv make_input_gradient(const char* op, Tensor grad, Tensor weight, IntView padding, IntView dilation,
                         const OptTensor& grad_addend);
// Copies a flipped filter, for kernels that need it as a weight.
Conv with_weight(Conv conv);
void check_activation(const char* op, const Tensor& x, const char* name = "x");
// Throws if a tensor's storage has been freed (FSDP and others free the storage but keep the tensor).
void check_allocated(const char* op, const char* prefix, const char* name, const Tensor& t);

// relu(bn2(conv2(relu(bn1(conv1(x))))) + x): two 3x3 convolutions of stride 1 that keep x's shape.
struct BasicBlock {
  Conv first, second;  // second.x is first.x until of_middle() replaces it with first's output
  Conv of_middle(Tensor middle) const;
};
BasicBlock make_basic_block(Tensor x, Tensor weight1, OptTensor bias1, BatchNorm bn1, Tensor weight2, OptTensor bias2,
                            BatchNorm bn2);

// prefix: prepended to the names of bn's tensors, as in the op's schema.
void check_batch_norm(const char* op, const BatchNorm& bn, int64_t channels, const Tensor& x, const char* prefix = "");
void check_residual(const char* op, const OptTensor& residual, IntView sizes, const Tensor& x);
// A tensor of x's shape, dtype and device.
void check_like(const char* op, const char* name, const Tensor& t, const Tensor& x);
// The arguments shared by bn_act_backward and bn_act_backward_reduce.
void check_gradient(const char* op, const Tensor& grad, const Tensor& x, const BatchNorm& bn, const OptTensor& out);
void check_sums(const char* op, const OptTensor& sum_g, const OptTensor& sum_g_xhat, double count, const Tensor& x);
// The arguments of bn_relu_max_pool and its backward.
void check_pooled(const char* op, const Tensor& x, const BatchNorm& bn, const MaxPool& pool);
void check_pooled_gradient(const char* op, const Tensor& grad, const Tensor& argmax, const Tensor& x,
                           const MaxPool& pool);
// The arguments of avg_pool_linear.
void check_pooled_linear(const char* op, const Tensor& x, const Tensor& weight, const OptTensor& bias);
// The gradient of a convolution's output (dy).
void check_output_gradient(const char* op, const Tensor& grad, const Conv& forward);
// The arguments of conv_backward_reduce, for a convolution that reads relu(bn(x)).
void check_conv_gradient(const char* op, const Tensor& grad, const Conv& forward, const BatchNorm& bn,
                         const OptTensor& grad_addend);
void check_projection(const char* op, const Conv& conv, const Conv& projection);

// c10's suggest_memory_format() == ChannelsLast: torch's rule for the output format of a convolution.
bool suggests_channels_last(const Tensor& x);

inline Ints sizes_of(const Tensor& x) { return Ints(x.sizes().begin(), x.sizes().end()); }

}  // namespace resnet_fused
