// Every op of the library, on one screen. Kernels register themselves: CPU ones below csrc/cpu, CUDA
// ones in csrc/cuda/ops; shapes without data (fake kernels) in resnet_fused/ops.py.
//
// All activations are (N, C, H, W) of any strides, weights (K, C / groups, R, S). BatchNorm arrives as
// its own tensors of shape (K): y * gamma / sqrt(var + eps) + beta - mean * gamma / sqrt(var + eps).
// mean and var are both given or both absent (no BatchNorm). Absent gamma is 1, absent beta 0.
// keep_packed: cache the packed weight between calls while its bytes are unchanged (CPU).
// internal: only this library sees the result, which may come from the pool and cannot be resized by torch (CPU).
// allow_tf32: float32 may be multiplied as TF32, like torch's own convolutions if its switch allows it (CUDA).
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
  // act(bn(conv(relu(pre(x)))) + residual), pre a BatchNorm of x's channels: the start of a pre-activation block
  m.def(
      "bn_relu_conv_bn_act(Tensor x, Tensor? pre_gamma, Tensor? pre_beta, Tensor pre_mean, Tensor pre_var, float "
      "pre_eps, " FILTER ", Tensor? residual, bool relu, " HOW MEMORY ") -> Tensor");
  // act(bn(conv(x)) + proj_bn(conv1x1(proj_x))): a projection shortcut. With pre_mean the projection reads
  // relu(pre(proj_x)), as in a pre-activation block
  m.def("conv_bn_proj_act(" CONV ", " PROJ ", bool relu, " HOW MEMORY ") -> Tensor");
  // relu(bn2(conv2(relu(bn1(conv1(x))))) + x), both 3x3 with stride and padding 1, C to C: an identity BasicBlock
  m.def("basic_block(Tensor x, " NUMBERED("1") ", " NUMBERED("2") ", " HOW MEMORY ") -> Tensor");
  // max_pool2d(relu(bn(conv(x)))): a ResNet's stem
  m.def("conv_bn_relu_pool(" CONV ", int[2] pool_kernel, int[2] pool_stride, int[2] pool_padding, " HOW MEMORY
        ") -> Tensor");
  // linear(mean(x, (2, 3)), weight, bias): the layers after a ResNet's stages, for few images; weight (K, C), out (N,
  // K)
  m.def("avg_pool_linear(Tensor x, Tensor weight, Tensor? bias) -> Tensor");
  // act(bn(x) + residual)
  m.def("bn_add_act(Tensor x, " BN ", Tensor? residual, bool relu" MEMORY ") -> Tensor");

  // Calls of the ops above, captured for an x of this shape, strides and dtype (CPU; csrc/cpu/program.h). tensors: the
  // parameters and buffers that they read; none is returned if one has another shape, dtype or strides than then.
  m.def("run_program(Tensor x, Tensor[] tensors, Tensor code) -> Tensor?");
  // The ops that a program may call, in the order of their numbers, separated by ", ".
  m.def("program_ops() -> str");

  // Training. BatchNorm with the batch's own statistics is given as mean and biased var like any other.
  // mean and biased var of each channel over N, H and W: float32, or float64 for float64. No cancellation (a mean of
  // 1e3 with a deviation of 1 keeps its digits); bit-reproducible.
  m.def("bn_stats(Tensor x) -> (Tensor, Tensor)");
  // y = conv(relu(pre(x))), or conv(x) without pre_mean, with its bias, rounded; and bn_stats(y)
  m.def(
      "conv_stats(Tensor x, Tensor? pre_gamma, Tensor? pre_beta, Tensor? pre_mean, Tensor? pre_var, float pre_eps, "
      "Tensor weight, Tensor? bias, int[2] stride, int[2] padding, int[2] dilation, int groups, " HOW
      ") -> (Tensor, Tensor, Tensor)");
  // act(bn(x) + bn'(shortcut)), act(bn(x) + shortcut) where shortcut_mean is absent
  m.def(
      "bn_add_bn_act(Tensor x, " BN
      ", Tensor shortcut, Tensor? shortcut_gamma, Tensor? shortcut_beta, Tensor? shortcut_mean, Tensor? shortcut_var, "
      "float shortcut_eps, bool relu" MEMORY ") -> Tensor");
  // The sums of g and of g * xhat over N, H and W, float32 (float64), with xhat = (x - mean) / sqrt(var + eps) and g =
  // grad where the ReLU was open, else 0. Open: not (out <= 0) if out is given, else not (bn(x) <= 0) if relu, else
  // everywhere; NaN passes, as in torch.
  m.def("bn_act_backward_reduce(Tensor grad, Tensor x, " BN ", Tensor? out, bool relu) -> (Tensor, Tensor)");
  // g and these sums, with out the ReLU's output behind an add: g is also the shortcut's gradient.
  m.def("bn_add_act_backward_reduce(Tensor grad, Tensor x, " BN ", Tensor out" MEMORY ") -> (Tensor, Tensor, Tensor)");
  // act(conv(x) + residual) in training, where the weight changes at every step: by our kernels where packing it for
  // this call pays, else by PyTorch's convolution (CPU).
  m.def(
      "conv_forward(Tensor x, Tensor weight, Tensor? bias, int[2] stride, int[2] padding, int[2] dilation, int groups, "
      "Tensor? residual, bool relu" MEMORY ") -> Tensor");
  // Backward through conv(relu(bn(x))) with stride 1 and one group: the gradient of relu(bn(x)), to which
  // `grad_addend`, another gradient, is added before the one rounding; and bn_act_backward_reduce of it.
  m.def("conv_backward_reduce(Tensor grad, Tensor weight, int[2] padding, int[2] dilation, Tensor x, " BN
        ", Tensor? grad_addend, bool allow_tf32) -> (Tensor, Tensor, Tensor)");
  // The input gradient of a convolution with stride 1 and one group: a convolution with the flipped filter.
  // `grad_addend`, another gradient, is added before the one rounding. padding: at most the filter's extent.
  m.def(
      "conv_backward_input(Tensor grad, Tensor weight, int[2] padding, int[2] dilation, Tensor? grad_addend, bool "
      "allow_tf32" MEMORY ") -> Tensor");
  // The weight gradient of conv(relu(pre(x))), or of conv(x) without pre_mean; only the weight's shape and layout are
  // used (CPU).
  m.def(
      "conv_backward_weight(Tensor grad, Tensor x, Tensor? pre_gamma, Tensor? pre_beta, Tensor? pre_mean, Tensor? "
      "pre_var, float pre_eps, Tensor weight, int[2] stride, int[2] padding, int[2] dilation, int groups) -> Tensor");
  // The gradient of x: gamma / sqrt(var + eps) * (g - sum_g / count - xhat * sum_g_xhat / count); without sums (frozen
  // statistics) gamma / sqrt(var + eps) * g. One pass, one rounding.
  m.def("bn_act_backward(Tensor grad, Tensor x, " BN
        ", Tensor? out, bool relu, Tensor? sum_g, Tensor? sum_g_xhat, float count" MEMORY ") -> Tensor");
  // max_pool2d(relu(bn(x))) and its argmax in uint8: row * window width + column, the first of the largest, NaN larger
  // than any number; 255 where the ReLU is closed.
  m.def("bn_relu_max_pool(Tensor x, " BN ", int[2] pool_kernel, int[2] pool_stride, int[2] pool_padding" MEMORY
        ") -> (Tensor, Tensor)");
  // From that output's gradient to bn(x)'s: the sum over the windows whose argmax an element is. One rounding.
  m.def(
      "bn_relu_max_pool_backward(Tensor grad, Tensor argmax, Tensor x, int[2] pool_kernel, int[2] pool_stride, int[2] "
      "pool_padding" MEMORY ") -> Tensor");

  // Drops the packed copies of these weights and unfreezes them. Safe at any time, from any thread.
  m.def("forget_packed(Tensor[] weights) -> ()");
  // Packed copies of these weights are used without comparing bytes from now on; their versions must not change.
  m.def("freeze_packed(Tensor[] weights) -> ()");
  // Bytes of packed copies.
  m.def("packed_bytes() -> int");
  // Python's part of keep_packed: calls storage_ended(address) when the weight's storage is freed.
  m.def("watch_packed(Tensor weight, int address) -> ()");
  m.def("storage_ended(int address) -> ()");
  // Frees all packed weights and all free blocks of the pool (CPU).
  m.def("release_memory() -> ()");
  // Frees only the free blocks of the pool.
  m.def("release_pool() -> ()");
  // The plan of a convolution on the CPU, or of its gradients, for these shapes of the forward convolution: as text,
  // and as a JSON object (resnet_fused/plans.py). dtype is "float32", "bfloat16", ...; purpose is "inference" or,
  // of training with channels_last tensors, "forward", "input gradient" or "weight gradient".
  m.def(
      "explain_cpu(int[] x_shape, int[] weight_shape, int[2] stride, int[2] padding, int[2] dilation, int groups, str "
      "dtype, str purpose=\"inference\") -> (str, str)");
  // The plan of a convolution on a GPU, as text and as JSON (resnet_fused/plans.py reads it). mode is "plain",
  // "prologue" (bn_relu_conv_bn_act), "projection" or "projection prologue" (conv_bn_proj_act without and with
  // pre_mean), "statistics" or "prologue statistics" (conv_stats likewise), "gradient sums" (conv_backward_reduce;
  // x_shape is the gradient's, weight_shape the flipped filter's, residual means grad_addend); proj_x_shape and
  // proj_stride are read where there is a projection. device is compute capability (80 for 8.0), SMs, and the shared
  // memory in bytes that a block may have and that an SM has.
  m.def(
      "explain_cuda(int[] x_shape, int[] weight_shape, int[2] stride, int[2] padding, int[2] dilation, int groups, str "
      "dtype, str mode, int[] proj_x_shape, int[2] proj_stride, bool residual, bool aligned, bool allow_tf32, int[] "
      "device) -> (str, str)");
  // A line per kernel family: its name, and whether it is verified on that compute capability; and the same as JSON.
  m.def("explain_trust(int capability) -> (str, str)");
  // The plan of basic_block on a GPU, likewise.
  m.def("explain_cuda_block(int[] x_shape, str dtype, bool aligned, bool allow_tf32, int[] device) -> (str, str)");
  // The valid values of RESNET_FUSED_CUDA_ENGINE, separated by ", ".
  m.def("cuda_engines() -> str");
  // Predicted microseconds of conv_bn_act by one engine: cudnn (with fused add and ReLU), torch, sm80..., sm90..., as
  // in RESNET_FUSED_CUDA_ENGINE. constants: those of csrc/cuda/plan/cost_constants.h for this GPU, or replacements
  // (benchmarks.fit_model varies them).
  m.def(
      "predict_cuda(int[] x_shape, int[] weight_shape, int[2] stride, int[2] padding, str dtype, bool residual, int[] "
      "device, str engine, float[] constants) -> float");
}
