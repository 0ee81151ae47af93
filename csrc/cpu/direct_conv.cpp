#include "cpu/direct.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>

#include "common/parallel.h"
#include "cpu/deferred.h"
#include "cpu/engines.h"
#include "cpu/packed_cache.h"
#include "cpu/scale_shift.h"
#include "cpu/simd/kernels.h"

namespace resnet_fused::cpu {

namespace {

// The packed copy of the weight, or null if a value is not finite; pack(to) returns that, too.
template <typename Pack>
std::shared_ptr<const Packed> packed_copy(const Tensor& weight, const PackedLayout& layout, bool keep_packed,
                                          int64_t bytes, const Pack& pack, std::optional<bool> frozen = {},
                                          std::optional<Digest>* unverified = nullptr) {
  const auto make = [&](bool kept) -> std::shared_ptr<const Packed> {
    auto buffer = std::make_shared<PackedBuffer>(bytes, kept);
    buffer->finite = pack(buffer->data);
    return buffer;
  };
  const auto is_finite = [](const Packed& p) { return static_cast<const PackedBuffer&>(p).finite; };
  std::function<bool(const Packed&)> current;
  if (unverified) current = is_finite;  // one that is not is an answer only if it is verified
  auto packed = packed_weight(weight, layout, keep_packed, make, current, frozen, unverified);
  return is_finite(*packed) ? packed : nullptr;
}

const void* data_of(const std::shared_ptr<const Packed>& packed) {
  return static_cast<const PackedBuffer&>(*packed).data;
}

bool grouped_conv(DirectConv& q, const Tensor& weight, Isa isa, const GroupedKernels& kernels, int threads,
                  bool keep_packed) {
  const GroupedTiling t = kernels.tile(q, threads);
  const auto packed = packed_copy(weight, {kPackedGrouped, static_cast<int64_t>(isa), t.vectors, q.groups}, keep_packed,
                                  kernels.packed_bytes(q, t),
                                  [&](void* to) { return kernels.pack(q, t, q.weight, q.weight_strides, to); });
  if (!packed) return false;
  q.packed = data_of(packed);
  parallel_for(0, t.tasks, 1, [&](int64_t begin, int64_t end) { kernels.run(q, t, begin, end); });
  return true;
}

}  // namespace

int64_t l2_bytes() {
  static const int64_t bytes = [] {
#if defined(_SC_LEVEL2_CACHE_SIZE)
    if (const long known = sysconf(_SC_LEVEL2_CACHE_SIZE); known > 0) return static_cast<int64_t>(known);
#endif
    return int64_t{1} << 20;
  }();
  return bytes;
}

bool direct_conv(const Conv& conv, const OptTensor& residual, const MaxPool* pool, bool relu, bool keep_packed,
                 const Tensor& out) {
  if (out.numel() == 0) return true;
  const Dtype dtype = dtype_of(conv.x);
  const Isa isa = isa_of(dtype, cpu_features());
  const VectorKernels& all = kernels_of(dtype, isa);
  const DirectKernels& kernels = all.direct;
  const bool defers = Deferred::current() && conv.groups == 1 && conv.channels_last;
  if (!defers) run_deferred();
  auto bn = scale_shift<float>(conv.bn, conv.bias, conv.k);
  if (!bn.bias_folds) return false;
  bn.scale.resize(conv.k + 2 * kernels.lanes);  // the kernels read whole registers, AMX pairs of them
  bn.shift.resize(bn.scale.size());

  DirectConv q{};
  q.x = conv.x.const_data_ptr();
  q.xn = conv.x.stride(0), q.xc = conv.x.stride(1), q.xh = conv.x.stride(2), q.xw = conv.x.stride(3);
  q.scale = bn.scale.data(), q.shift = bn.shift.data();
  q.residual = residual ? residual->const_data_ptr() : nullptr;
  q.out = out.mutable_data_ptr();
  set_geometry(q, conv);
  q.groups = narrow(conv.groups);
  const FilterView filter = filter_of(conv);
  q.weight = filter.data;
  std::copy(std::begin(filter.strides), std::end(filter.strides), q.weight_strides);
  q.relu = relu;
  if (pool) {
    q.pool_r = narrow(pool->kernel[0]), q.pool_s = narrow(pool->kernel[1]);
    q.pool_stride_h = narrow(pool->stride[0]), q.pool_stride_w = narrow(pool->stride[1]);
    q.pool_pad_h = narrow(pool->padding[0]), q.pool_pad_w = narrow(pool->padding[1]);
    q.ph = narrow(out.size(2)), q.pw = narrow(out.size(3));
  }

  const int threads = static_cast<int>(torch::stable::get_num_threads());
  if (q.groups > 1) return grouped_conv(q, conv.weight, isa, all.grouped, threads, keep_packed);
  DirectTiling t = kernels.tile(q, threads, /*may_pack=*/true);
  std::optional<bool> frozen;
  if (t.packs && keep_packed) frozen = weight_is_frozen(conv.weight);
  if (frozen.value_or(false)) t = kernels.tile(q, threads, /*may_pack=*/false);
  std::shared_ptr<const Packed> packed;
  std::optional<Digest> unverified;
  if (!t.packs) {
    const auto pack = [&](void* to) {
      std::atomic<bool> finite{true};
      const int64_t block = int64_t{t.vectors} * kernels.lanes;
      parallel_for(0, (q.k + block - 1) / block, 1, [&](int64_t begin, int64_t end) {
        const int k0 = narrow(begin * block), k1 = narrow(std::min<int64_t>(q.k, end * block));
        if (!kernels.pack(to, q.weight, q.weight_strides, q.c, q.k, q.r, q.s, t.vectors, k0, k1, 0)) finite = false;
      });
      return finite.load();
    };
    packed = packed_copy(conv.weight, {kPackedDirect, static_cast<int64_t>(isa), t.vectors}, keep_packed,
                         kernels.packed_bytes(q.c, q.k, q.r, q.s), pack, frozen, defers ? &unverified : nullptr);
    if (!packed) return false;
    q.packed = data_of(packed);
  }
  Step step{DirectWork{q, t, &kernels},
            std::move(bn.scale),
            std::move(bn.shift),
            std::move(packed),
            conv.weight,
            unverified,
            conv.x,
            out,
            residual};
  if (!defers) return run_now(step);
  Deferred::current()->add(std::move(step));
  return true;
}

}  // namespace resnet_fused::cpu
