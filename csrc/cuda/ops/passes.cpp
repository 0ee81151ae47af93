#include "cuda/ops/passes.h"

#include "cuda/ops/first_use.h"
#include "cuda/runtime/device.h"

namespace resnet_fused::cuda {

BnShape bn_shape_of(const Tensor& x, bool channels_last) {
  return {dtype_of(x), channels_last ? Layout::kNHWC : Layout::kNCHW, narrow(x.size(0)), narrow(x.size(1)),
          narrow(x.size(2) * x.size(3))};
}

void add_act_into(const Tensor& out, const Tensor& x, const Vectors& bn, const OptTensor& shortcut,
                  const Vectors* shortcut_bn, bool relu, bool channels_last) {
  if (out.numel() == 0) return;
  OptTensor dense;
  if (shortcut) dense = aten_contiguous(*shortcut, channels_last);

  BnAddActParams p;
  p.x = x.const_data_ptr();
  p.shortcut = dense ? dense->const_data_ptr() : nullptr;
  p.out = out.mutable_data_ptr();
  p.bn = bn.pointers();
  if (shortcut_bn) p.shortcut_bn = shortcut_bn->pointers();
  p.projected = shortcut_bn != nullptr;
  p.relu = relu;
  p.shape = bn_shape_of(x, channels_last);
  const int device = x.get_device_index();
  launch_checked(p, current_queue(device), device);
}

Tensor normalise(const Tensor& x, const BatchNorm& bn, const OptTensor& residual, bool relu, bool channels_last) {
  const Tensor out = aten_empty(x.sizes(), x, channels_last);
  add_act_into(out, aten_contiguous(x, channels_last), Vectors(bn, std::nullopt, x), residual, nullptr, relu,
               channels_last);
  return out;
}

Tensor relu_max_pool(const Tensor& x, const Vectors& bn, const MaxPool& pool, const OptTensor& argmax) {
  const Tensor out = aten_empty(pooled_sizes(x.sizes(), pool), x, /*channels_last=*/true);
  BnPoolParams p;
  p.x = x.const_data_ptr();
  p.bn = bn.pointers();
  p.shape = pool_shape_of(x, out.sizes(), pool);
  p.out = out.mutable_data_ptr();
  p.argmax = argmax ? argmax->mutable_data_ptr() : nullptr;
  const int device = x.get_device_index();
  launch_checked(p, current_queue(device), device);
  return out;
}

PoolShape pool_shape_of(const Tensor& x, IntView pooled, const MaxPool& pool) {
  const auto axis = [&](int i) -> PoolAxis {
    return {narrow(x.size(2 + i)), narrow(pooled[2 + i]), narrow(pool.kernel[i]), narrow(pool.stride[i]),
            narrow(pool.padding[i])};
  };
  return {dtype_of(x), narrow(x.size(0)), narrow(x.size(1)), axis(0), axis(1)};
}

Tensor channel_sums(const Tensor& x, int64_t channels) {
  const bool is_double = x.scalar_type() == ScalarType::Double;
  return torch::stable::empty({channels}, is_double ? ScalarType::Double : ScalarType::Float, std::nullopt, x.device());
}

Tensor workspace_of(int64_t bytes, const Tensor& like) {
  return torch::stable::empty({bytes}, ScalarType::Byte, std::nullopt, like.device());
}

std::tuple<Tensor, Tensor> batch_moments(const Tensor& x, bool channels_last) {
  const Tensor mean = channel_sums(x, x.size(1)), var = channel_sums(x, x.size(1));
  const int device = x.get_device_index();
  const Queue queue = current_queue(device);
  BnStatsParams p;
  p.x = x.const_data_ptr();
  p.shape = bn_shape_of(x, channels_last);
  const Tensor workspace = workspace_of(bn_stats_workspace(p, queue.sm_count), x);
  p.workspace = workspace.mutable_data_ptr();
  p.mean = mean.mutable_data_ptr(), p.var = var.mutable_data_ptr();
  launch_checked(p, queue, device);
  return {mean, var};
}

std::tuple<Tensor, Tensor> gradient_sums(const Gradient& from, const OptTensor& masked_grad) {
  const Tensor sum_g = channel_sums(from.x, from.x.size(1)), sum_g_xhat = channel_sums(from.x, from.x.size(1));
  const int device = from.x.get_device_index();
  const Queue queue = current_queue(device);
  BnBackwardReduceParams p;
  p.from = from.pointers();
  if (masked_grad) p.masked_grad = masked_grad->mutable_data_ptr();
  const Tensor workspace = workspace_of(bn_backward_reduce_workspace(p, queue.sm_count), from.x);
  p.workspace = workspace.mutable_data_ptr();
  p.sum_g = sum_g.mutable_data_ptr(), p.sum_g_xhat = sum_g_xhat.mutable_data_ptr();
  launch_checked(p, queue, device);
  return {sum_g, sum_g_xhat};
}

}  // namespace resnet_fused::cuda
