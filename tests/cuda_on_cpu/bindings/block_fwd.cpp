// Python bindings of sm90/block_fwd.
#include "bindings/batch_norm.h"
#include "cuda/kernels/kernels.h"

using namespace resnet_fused::cuda;

namespace cuda_on_cpu::bindings {

namespace {

using VariantArg = std::pair<int, int32_t>;  // dtype, channels

BlockFwdParams params_of(const Value& d) {
  BlockFwdParams p;
  p.x = pointer_of<const void>(d, "x");
  p.out = pointer_of<void>(d, "out");
  const char *const weights[] = {"weight1", "weight2"}, *const norms[] = {"bn1", "bn2"};
  for (int i = 0; i < 2; ++i) {
    p.weight[i] = pointer_of<const void>(d, weights[i]);
    p.bn[i] = batch_norm_of(d[norms[i]]);
  }
  p.n = d["n"].as<int32_t>();
  p.h = d["h"].as<int32_t>();
  p.w = d["w"].as<int32_t>();
  return p;
}

Value run(const std::vector<BufferArg>& buffers, const Value& params, const VariantArg& variant, int sm_count,
          const std::string& schedule, uint32_t seed) {
  const BlockFwdParams p = params_of(params);
  begin_session(buffers, schedule, seed);
  launch_block_fwd(p, {static_cast<Dtype>(variant.first), variant.second}, {nullptr, sm_count});
  return end_session();
}

std::vector<VariantArg> compiled() {
  std::vector<VariantArg> l;
  for (const BlockFwdVariant& v : compiled_block_fwd()) l.emplace_back(static_cast<int>(v.dtype), v.channels);
  return l;
}

// rows, columns, tiles down, tiles across
std::tuple<int, int, int, int> tiling(int32_t channels, int32_t h, int32_t w) {
  for (const BlockFwdShape& s : kBlockFwdShapes)
    if (s.channels == channels) {
      const BlockFwdTiling t = block_fwd_tiling(s, h, w);
      return {t.rows, t.columns, t.tiles_h, t.tiles_w};
    }
  throw std::invalid_argument("no kernel of so many channels");
}

const Binding bindings[] = {
    {"run_block_fwd", &run},
    {"compiled_block_fwd", &compiled},
    {"tiling_of_block_fwd", &tiling},
};

}  // namespace

}  // namespace cuda_on_cpu::bindings
