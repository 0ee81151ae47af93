// Every op of the library, on one screen. Kernels register themselves: CPU ones below csrc/cpu, CUDA
// ones in csrc/cuda/*ops.cpp; shapes without data (fake kernels) in resnet_fused/ops.py.
//
// All activations are (N, C, H, W) of any strides, weights (K, C / groups, R, S). BatchNorm arrives as
// its own tensors of shape (K): y * gamma / sqrt(var + eps) + beta - mean * gamma / sqrt(var + eps).
// mean and var are both given or both absent (no BatchNorm). Absent gamma is 1, absent beta 0.
// keep_packed: keep the weight in the kernel's own order between calls, for as long as its bytes are the same (CPU).
// internal: nobody but this library will see the result, which may lie in memory that is kept for later results, and
// that torch cannot resize (CPU).
// allow_tf32: float32 may be multiplied as TF32, as torch's own convolutions are where its switch allows it (CUDA).
#include "common/torch_abi.h"

#define BN "Tensor? gamma, Tensor? beta, Tensor? mean, Tensor? var, float eps"
#define FILTER "Tensor weight, Tensor? bias, " BN ", int[2] stride, int[2] padding, int[2] dilation, int groups"
#define CONV "Tensor x, " FILTER
#define PROJ                                                                                      \
  "Tensor proj_x, Tensor proj_weight, Tensor? proj_bias, Tensor? proj_gamma, Tensor? proj_beta, " \
  "Tensor? proj_mean, Tensor? proj_var, float proj_eps, int[2] proj_stride, "                     \
  "Tensor? pre_gamma, Tensor? pre_beta, Tensor? pre_mean, Tensor? pre_var, float pre_eps"
#define NUMBERED(i)                                                                                                \
  "Tensor weight" i ", Tensor? bias" i ", Tensor? gamma" i ", Tensor? beta" i ", Tensor? mean" i ", Tensor? var" i \
  ", float eps" i
#define HOW "bool keep_packed, bool allow_tf32"
#define MEMORY ", bool internal=False"

STABLE_TORCH_LIBRARY(resnet_fused, m) {
  // act(bn(conv(x)) + residual)
  m.def("conv_bn_act(" CONV ", Tensor? residual, bool relu, " HOW MEMORY ") -> Tensor");
  // act(bn(conv(relu(pre(x)))) + residual), pre being a BatchNorm of x's channels: a pre-activation block's beginning
  m.def(
      "bn_relu_conv_bn_act(Tensor x, Tensor? pre_gamma, Tensor? pre_beta, Tensor pre_mean, Tensor pre_var, float "
      "pre_eps, " FILTER ", Tensor? residual, bool relu, " HOW MEMORY ") -> Tensor");
  // act(bn(conv(x)) + proj_bn(conv1x1(proj_x))): a projection shortcut, added where the output goes. With pre_mean, the
  // projection reads relu(pre(proj_x)): that of a pre-activation block
  m.def("conv_bn_proj_act(" CONV ", " PROJ ", bool relu, " HOW MEMORY ") -> Tensor");
  // relu(bn2(conv2(relu(bn1(conv1(x))))) + x), both 3x3 with stride and padding 1, C to C: an identity BasicBlock
  m.def("basic_block(Tensor x, " NUMBERED("1") ", " NUMBERED("2") ", " HOW MEMORY ") -> Tensor");
  // max_pool2d(relu(bn(conv(x)))): a ResNet's stem
  m.def("conv_bn_relu_pool(" CONV ", int[2] pool_kernel, int[2] pool_stride, int[2] pool_padding, " HOW MEMORY
        ") -> Tensor");
  // act(bn(x) + residual)
  m.def("bn_add_act(Tensor x, " BN ", Tensor? residual, bool relu" MEMORY ") -> Tensor");

  // Training. BatchNorm with the batch's own statistics is given as mean and biased var like any other.
  // mean and biased var of each channel over N, H and W: float32, or float64 of float64 (no cancellation: a mean of
  // 1e3 with a deviation of 1 keeps its digits); the same bits in every run.
  m.def("bn_stats(Tensor x) -> (Tensor, Tensor)");
  // raw = conv(relu(pre(x))), or conv(x) where pre_mean is absent, with its bias, rounded; and bn_stats(raw)
  m.def(
      "conv_stats(Tensor x, Tensor? pre_gamma, Tensor? pre_beta, Tensor? pre_mean, Tensor? pre_var, float pre_eps, "
      "Tensor weight, Tensor? bias, int[2] stride, int[2] padding, int[2] dilation, int groups, " HOW
      ") -> (Tensor, Tensor, Tensor)");
  // act(bn(x) + bn'(shortcut)), act(bn(x) + shortcut) where shortcut_mean is absent
  m.def(
      "bn_add_bn_act(Tensor x, " BN
      ", Tensor shortcut, Tensor? shortcut_gamma, Tensor? shortcut_beta, Tensor? shortcut_mean, Tensor? shortcut_var, "
      "float shortcut_eps, bool relu" MEMORY ") -> Tensor");
  // With g = grad where the ReLU let something through (out <= 0 is false if out is given, else bn(x) <= 0 if relu,
  // else everywhere: NaN lets the gradient through, as in torch) and xhat = (x - mean) / sqrt(var + eps): the sums of g
  // and of g * xhat over N, H and W, float32 (float64).
  m.def("bn_act_backward_reduce(Tensor grad, Tensor x, " BN ", Tensor? out, bool relu) -> (Tensor, Tensor)");
  // g itself, and these sums, where out is the ReLU's result after an addition: g is the shortcut's gradient too.
  m.def("bn_add_act_backward_reduce(Tensor grad, Tensor x, " BN ", Tensor out" MEMORY ") -> (Tensor, Tensor, Tensor)");
  // Backward through conv(relu(bn(x))), a convolution of stride 1 in one group with that weight, padding and dilation:
  // the gradient of relu(bn(x)) from that of the output, with another one, `beside`, added before the one rounding
  // where it is given; and bn_act_backward_reduce of it.
  m.def("conv_backward_reduce(Tensor grad, Tensor weight, int[2] padding, int[2] dilation, Tensor x, " BN
        ", Tensor? beside, bool allow_tf32) -> (Tensor, Tensor, Tensor)");
  // The weight's gradient of conv(relu(pre(x))), or of conv(x) where pre_mean is absent, from the output's; in the
  // weight's own layout, of whose values nothing is read (CPU).
  m.def(
      "conv_backward_weight(Tensor grad, Tensor x, Tensor? pre_gamma, Tensor? pre_beta, Tensor? pre_mean, Tensor? "
      "pre_var, float pre_eps, Tensor weight, int[2] stride, int[2] padding, int[2] dilation, int groups) -> Tensor");
  // The gradient of x: gamma / sqrt(var + eps) * (g - sum_g / count - xhat * sum_g_xhat / count); without sums (frozen
  // statistics) gamma / sqrt(var + eps) * g. One pass, one rounding.
  m.def("bn_act_backward(Tensor grad, Tensor x, " BN
        ", Tensor? out, bool relu, Tensor? sum_g, Tensor? sum_g_xhat, float count" MEMORY ") -> Tensor");
  // max_pool2d(relu(bn(x))), and for each of its values, in uint8, which of its window's elements it is: row * width of
  // the window + column, the first of the largest, NaN being larger than any number; 255 where the ReLU is closed
  // there.
  m.def("bn_relu_max_pool(Tensor x, " BN ", int[2] pool_kernel, int[2] pool_stride, int[2] pool_padding" MEMORY
        ") -> (Tensor, Tensor)");
  // From that value's gradient to that of bn(x): each element's is the sum over the windows that took it. One rounding.
  m.def(
      "bn_relu_max_pool_backward(Tensor grad, Tensor taken, Tensor x, int[2] pool_kernel, int[2] pool_stride, int[2] "
      "pool_padding" MEMORY ") -> Tensor");

  // On the CPU conv_stats and conv_backward_reduce are made of other ops, in Python; these throw what they refuse.
  m.def(
      "check_conv_stats(Tensor x, Tensor? pre_gamma, Tensor? pre_beta, Tensor? pre_mean, Tensor? pre_var, float "
      "pre_eps, Tensor weight, Tensor? bias, int[2] stride, int[2] padding, int[2] dilation, int groups) -> ()");
  m.def("check_conv_backward_reduce(Tensor grad, Tensor weight, int[2] padding, int[2] dilation, Tensor x, " BN
        ", Tensor? beside) -> ()");

  // Drops what keep_packed kept for these weights, and thaws them. Safe at any time, from any thread.
  m.def("forget_packed(Tensor[] weights) -> ()");
  // From now on a kept copy of these weights is used without comparing their bytes: their versions must not move.
  m.def("freeze_packed(Tensor[] weights) -> ()");
  // Bytes that keep_packed holds now.
  m.def("packed_bytes() -> int");
  // Python's part of keep_packed: calls storage_ended(address) when the weight's storage is freed.
  m.def("watch_packed(Tensor weight, int address) -> ()");
  m.def("storage_ended(int address) -> ()");
  // Returns to the system every packed weight, and the memory that is kept for results of the next call and that no
  // tensor uses (CPU).
  m.def("release_memory() -> ()");
  // The plan that conv_bn_act would run on the CPU for these shapes, in words; dtype is "float32", "bfloat16", ...
  m.def(
      "explain_cpu(int[] x_shape, int[] weight_shape, int[2] stride, int[2] padding, int[2] dilation, int groups, str "
      "dtype) -> str");
  // The plan that a convolution would run on a GPU, in words. mode is "plain", "prologue" (bn_relu_conv_bn_act),
  // "projection" or "projection prologue" (conv_bn_proj_act without and with pre_mean), "statistics" or "prologue
  // statistics" (conv_stats likewise), "gradient sums" (conv_backward_reduce; x_shape is the gradient's, weight_shape
  // the turned weight's, residual is beside); proj_x_shape and proj_stride are read where there is a projection. device
  // is compute capability (80 for 8.0), SMs, and the shared memory in bytes that a block may have and that an SM has.
  m.def(
      "explain_cuda(int[] x_shape, int[] weight_shape, int[2] stride, int[2] padding, int[2] dilation, int groups, str "
      "dtype, str mode, int[] proj_x_shape, int[2] proj_stride, bool residual, bool aligned, bool allow_tf32, int[] "
      "device) -> str");
  // For each family of kernels a line: its name, and whether a GPU of that compute capability has proven it right.
  m.def("explain_trust(int capability) -> str");
  // The plan that basic_block would run on a GPU, in words, likewise.
  m.def("explain_cuda_block(int[] x_shape, str dtype, bool aligned, bool allow_tf32, int[] device) -> str");
  // What RESNET_FUSED_CUDA_ENGINE may be, separated by ", ".
  m.def("cuda_engines() -> str");
  // Microseconds that a GPU is predicted to take for conv_bn_act by one engine: cudnn (which adds and applies ReLU in
  // its kernel), torch, sm80..., sm90..., as in RESNET_FUSED_CUDA_ENGINE. constants are those of
  // csrc/cuda/model_constants.h for this GPU, or others that take their place: what benchmarks.fit_model varies.
  m.def(
      "predict_cuda(int[] x_shape, int[] weight_shape, int[2] stride, int[2] padding, str dtype, bool residual, int[] "
      "device, str engine, float[] constants) -> float");
}
