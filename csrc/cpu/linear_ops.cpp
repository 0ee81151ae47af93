// linear(mean(x, (2, 3)), weight, bias): check, convert to NHWC, run.
#include "common/parallel.h"
#include "common/problem.h"
#include "cpu/engines.h"
#include "cpu/memory.h"
#include "cpu/simd/kernels.h"

namespace resnet_fused::cpu {

namespace {

constexpr int64_t kGrain = 65536;  // minimum elements per thread

// What eager calls, for float64 and processors without AVX2.
Tensor composed(const Tensor& x, const Tensor& weight, const OptTensor& bias) {
  constexpr Pair kOne{1, 1};
  std::array<StableIValue, 2> pool{from(x), from(kOne)};
  call_aten("aten::adaptive_avg_pool2d", "", pool);
  std::array<StableIValue, 3> linear{from(torch::stable::flatten(to<Tensor>(pool[0]), 1)), from(weight), from(bias)};
  call_aten("aten::linear", "", linear);
  return to<Tensor>(linear[0]);
}

}  // namespace

Tensor avg_pool_linear(Tensor x, Tensor weight, OptTensor bias) {
  check_pooled_linear("avg_pool_linear", x, weight, bias);
  const Dtype dtype = dtype_of(x);
  const Isa isa = isa_of(dtype, cpu_features());
  if (isa == Isa::kNone || !own_kernels_allowed()) return composed(x, weight, bias);

  const LinearKernels& kernels = kernels_of(dtype, isa).linear;
  const Tensor out = aten_empty({x.size(0), weight.size(0)}, x, /*channels_last=*/false);
  if (out.numel() == 0) return out;
  const Tensor dense = aten_contiguous(x, /*channels_last=*/true);
  if (weight.size(1) > 1 && weight.stride(1) != 1) weight = torch::stable::contiguous(weight);
  if (bias) bias = torch::stable::contiguous(*bias);

  PooledLinear q{};
  q.n = x.size(0), q.c = x.size(1), q.k = weight.size(0), q.pixels = x.size(2) * x.size(3);
  q.mean_row = (q.c + kernels.lanes - 1) / kernels.lanes * kernels.lanes;
  const Loan mean(static_cast<size_t>(q.n * q.mean_row) * sizeof(float));
  q.x = dense.const_data_ptr();
  q.weight = weight.const_data_ptr();
  q.weight_row = weight.stride(0);
  q.bias = bias ? bias->const_data_ptr() : nullptr;
  q.mean = static_cast<float*>(mean.data());
  q.out = out.mutable_data_ptr();

  const auto run = [&](int64_t tasks, int64_t elements, const auto& kernel) {
    parallel_for(0, tasks, std::max<int64_t>(1, kGrain / std::max<int64_t>(1, elements)),
                 [&](int64_t begin, int64_t end) { kernel(q, begin, end); });
  };
  run(q.n * ((q.c + kernels.channels - 1) / kernels.channels), kernels.channels * q.pixels, kernels.mean);
  run((q.k + kernels.rows - 1) / kernels.rows, kernels.rows * q.c * q.n, kernels.multiply);
  return out;
}

STABLE_TORCH_LIBRARY_IMPL(resnet_fused, CPU, m) { m.impl("avg_pool_linear", TORCH_BOX(&avg_pool_linear)); }

}  // namespace resnet_fused::cpu
