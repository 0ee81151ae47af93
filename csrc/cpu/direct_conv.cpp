#include "cpu/direct.h"

#include "common/parallel.h"
#include "cpu/engines.h"
#include "cpu/finite.h"
#include "cpu/packed_cache.h"
#include "cpu/scale_shift.h"

namespace resnet_fused::cpu {

#if defined(__x86_64__)

bool direct_conv(const Conv& conv, const OptTensor& residual, const Pool* pool, bool relu, bool keep_packed,
                 const Tensor& out) {
  if (out.numel() == 0) return true;
  const bool bf16 = conv.x.scalar_type() == ScalarType::BFloat16;
  auto bn = scale_shift<float>(conv.bn, conv.bias, conv.k);
  if (!bn.bias_folds) return false;
  // the kernel reads whole registers
  bn.scale.resize((conv.k + kLanes - 1) / kLanes * kLanes);
  bn.shift.resize(bn.scale.size());

  DirectConv q{};
  q.x = conv.x.const_data_ptr();
  q.xn = conv.x.stride(0), q.xc = conv.x.stride(1), q.xh = conv.x.stride(2), q.xw = conv.x.stride(3);
  q.scale = bn.scale.data(), q.shift = bn.shift.data();
  q.residual = residual ? residual->const_data_ptr() : nullptr;
  q.out = out.mutable_data_ptr();
  q.n = narrow(conv.n), q.c = narrow(conv.c), q.h = narrow(conv.h), q.w = narrow(conv.w);
  q.k = narrow(conv.k), q.r = narrow(conv.r), q.s = narrow(conv.s), q.oh = narrow(conv.oh), q.ow = narrow(conv.ow);
  q.stride_h = narrow(conv.stride[0]), q.stride_w = narrow(conv.stride[1]);
  q.pad_h = narrow(conv.padding[0]), q.pad_w = narrow(conv.padding[1]);
  q.dil_h = narrow(conv.dilation[0]), q.dil_w = narrow(conv.dilation[1]);
  q.relu = relu;
  if (pool) {
    q.pool_r = narrow(pool->kernel[0]), q.pool_s = narrow(pool->kernel[1]);
    q.pool_stride_h = narrow(pool->stride[0]), q.pool_stride_w = narrow(pool->stride[1]);
    q.pool_pad_h = narrow(pool->padding[0]), q.pool_pad_w = narrow(pool->padding[1]);
    q.ph = narrow(out.size(2)), q.pw = narrow(out.size(3));
  }

  const int threads = static_cast<int>(torch::stable::get_num_threads());
  const DirectTiling t = bf16 ? avx512::direct_tiling_bf16(q, threads) : avx512::direct_tiling_fp32(q, threads);
  const auto packed =
      packed_weight(conv.weight, {kPackedDirect, t.vectors}, keep_packed, [&]() -> std::shared_ptr<const Packed> {
        const int64_t elements = bf16 ? avx512::direct_packed_elements_bf16(q.c, q.k, q.r, q.s)
                                      : avx512::direct_packed_elements_fp32(q.c, q.k, q.r, q.s);
        auto buffer = std::make_shared<PackedBuffer>(elements * (bf16 ? 2 : 4), keep_packed);
        const Tensor& w = conv.weight;
        const int64_t strides[4] = {w.stride(0), w.stride(1), w.stride(2), w.stride(3)};
        if (bf16)
          avx512::direct_pack_bf16(static_cast<uint16_t*>(buffer->data),
                                   static_cast<const uint16_t*>(w.const_data_ptr()), strides, q.c, q.k, q.r, q.s,
                                   t.vectors);
        else
          avx512::direct_pack_fp32(static_cast<float*>(buffer->data), static_cast<const float*>(w.const_data_ptr()),
                                   strides, q.c, q.k, q.r, q.s, t.vectors);
        buffer->finite = all_finite(buffer->data, elements, bf16);
        return buffer;
      });
  const auto& buffer = static_cast<const PackedBuffer&>(*packed);
  if (!buffer.finite) return false;
  q.packed = buffer.data;
  parallel_for(0, t.tasks, 1, [&](int64_t begin, int64_t end) {
    if (bf16)
      avx512::direct_run_bf16(q, t, begin, end);
    else
      avx512::direct_run_fp32(q, t, begin, end);
  });
  return true;
}

#else

bool direct_conv(const Conv&, const OptTensor&, const Pool*, bool, bool, const Tensor&) {
  throw std::logic_error("the plan picked an x86 engine on another processor");
}

#endif

}  // namespace resnet_fused::cpu
