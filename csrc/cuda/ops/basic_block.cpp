// basic_block on CUDA: one launch if the plan chooses it, else two convolutions.
#include <torch/csrc/stable/accelerator.h>

#include "cuda/kernels/kernels.h"
#include "cuda/ops/conv.h"
#include "cuda/ops/first_use.h"
#include "cuda/ops/operands.h"
#include "cuda/runtime/device.h"

namespace resnet_fused::cuda {

namespace {

Problem problem_of(const BasicBlock& block, bool allow_tf32) {
  const Conv &first = block.first, &second = block.second;
  Problem p;
  p.task = Task::kBasicBlock;
  p.dtype = dtype_of(first.x);
  p.main = shape_of(first);
  p.aligned = is_aligned(first.x) && is_aligned(first.weight) && is_aligned(second.weight);
  p.allow_tf32 = allow_tf32;
  return p;
}

Tensor run_in_one_launch(const BasicBlock& block) {
  const Conv& first = block.first;
  const Operands convs[] = {Operands(first), Operands(block.second)};
  const Tensor out = aten_empty(first.output_sizes(), first.x, /*channels_last=*/true);
  BlockFwdParams p;
  for (int i = 0; i < 2; ++i) {
    const ConvOperands o = convs[i].pointers();
    if (i == 0) p.x = o.x;
    p.weight[i] = o.weight;
    p.bn[i] = o.bn;
  }
  p.out = out.mutable_data_ptr();
  const ConvShape shape = shape_of(first);
  p.n = shape.n, p.h = shape.h, p.w = shape.w;
  launch_block_fwd(p, {dtype_of(first.x), shape.c}, current_queue(first.x.get_device_index()));
  return out;
}

Tensor run_in_two_launches(const BasicBlock& block, bool allow_tf32) {
  const Tensor middle = run_conv({block.first, Epilogue::kAffine, nullptr, nullptr, /*relu=*/true, allow_tf32}).out;
  const Conv second = block.of_middle(aten_contiguous(middle, block.first.channels_last));
  return run_conv({second, Epilogue::kAffine, nullptr, &block.first.x, /*relu=*/true, allow_tf32}).out;
}

Tensor basic_block(const Tensor& x, const Tensor& weight1, const OptTensor& bias1, const OptTensor& gamma1,
                   const OptTensor& beta1, const OptTensor& mean1, const OptTensor& var1, double eps1,
                   const Tensor& weight2, const OptTensor& bias2, const OptTensor& gamma2, const OptTensor& beta2,
                   const OptTensor& mean2, const OptTensor& var2, double eps2,
                   bool /*keep_packed: CUDA packs no weights*/, bool allow_tf32,
                   bool /*internal: torch pools CUDA memory*/) {
  const BasicBlock block = make_basic_block(x, weight1, bias1, {gamma1, beta1, mean1, var1, eps1}, weight2, bias2,
                                            {gamma2, beta2, mean2, var2, eps2});
  const int device = x.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  const bool one_launch = plan_now(problem_of(block, allow_tf32), device).engine == Engine::kSm90Block;
  const Tensor out = one_launch ? run_in_one_launch(block) : run_in_two_launches(block, allow_tf32);
  return in_format(out, block.first.channels_last || block.second.channels_last);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(resnet_fused, CUDA, m) { IMPL_CHECKED(m, basic_block); }

}  // namespace resnet_fused::cuda
