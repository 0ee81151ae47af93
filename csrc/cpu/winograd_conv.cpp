#include "cpu/winograd.h"

#include "common/parallel.h"
#include "cpu/deferred.h"
#include "cpu/engines.h"
#include "cpu/packed_cache.h"
#include "cpu/scale_shift.h"
#include "cpu/simd/kernels.h"

namespace resnet_fused::cpu {

bool winograd_conv(const Conv& conv, const OptTensor& residual, bool relu, bool keep_packed, const Tensor& out) {
  const bool defers = Deferred::current() && conv.channels_last && is_dense(conv.x, /*channels_last=*/true);
  if (!defers) run_deferred();
  auto bn = scale_shift<float>(conv.bn, conv.bias, conv.k);
  if (!bn.bias_folds) return false;
  const Tensor x = aten_contiguous(conv.x, /*channels_last=*/true);

  const Dtype dtype = dtype_of(x);
  const Isa isa = isa_of(dtype, cpu_features());
  const WinogradKernels& kernels = kernels_of(dtype, isa).winograd;
  WinogradConv q{};
  q.x = x.const_data_ptr();
  q.scale = bn.scale.data(), q.shift = bn.shift.data();
  q.residual = residual ? residual->const_data_ptr() : nullptr;
  q.out = out.mutable_data_ptr();
  set_sizes(q, conv);
  q.relu = relu;
  kernels.tile(q, static_cast<int>(torch::stable::get_num_threads()));

  std::optional<Digest> unverified;
  auto packed = packed_weight(
      conv.weight, {kPackedWinograd, static_cast<int64_t>(isa)}, keep_packed,
      [&](bool kept) -> std::shared_ptr<const Packed> {
        const FilterView filter = filter_of(conv);
        const int64_t blocks = (q.k + kernels.block - 1) / kernels.block;
        auto buffer =
            std::make_shared<PackedBuffer>(sizeof(float) * kernels.points * q.c * blocks * kernels.block, kept);
        parallel_for(0, blocks, 1, [&](int64_t begin, int64_t end) {
          kernels.pack(static_cast<float*>(buffer->data), filter.data, filter.strides, q.c, q.k, begin, end);
        });
        return buffer;
      },
      nullptr, {}, defers ? &unverified : nullptr);
  q.packed = static_cast<const float*>(static_cast<const PackedBuffer&>(*packed).data);
  Step step{WinogradWork{q, &kernels},
            std::move(bn.scale),
            std::move(bn.shift),
            std::move(packed),
            conv.weight,
            unverified,
            x,
            out,
            residual};
  if (!defers) return run_now(step);
  Deferred::current()->add(std::move(step));
  return true;
}

}  // namespace resnet_fused::cpu
