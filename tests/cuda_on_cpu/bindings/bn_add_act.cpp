// Python bindings of bn_add_act.
#include "bindings/batch_norm.h"
#include "cuda/kernels/kernels.h"

using namespace resnet_fused::cuda;

namespace cuda_on_cpu::bindings {

namespace {

BnAddActParams params_of(const Value& d) {
  BnAddActParams p;
  p.x = pointer_of<const void>(d, "x");
  p.shortcut = pointer_of<const void>(d, "shortcut");
  p.out = pointer_of<void>(d, "out");
  if (d.find("bn")) p.bn = batch_norm_of(d["bn"]);
  if (d.find("shortcut_bn")) p.shortcut_bn = batch_norm_of(d["shortcut_bn"]);
  p.projected = d["projected"].as<bool>();
  p.relu = d["relu"].as<bool>();
  p.shape = bn_shape_of(d);
  return p;
}

// dtype, vector, channels_last, shortcut
Value value_of(const BnAddActVariant& v) {
  return std::tuple(v.dtype, v.vector, v.layout == Layout::kNHWC, v.shortcut);
}

Value run(const std::vector<BufferArg>& buffers, const Value& params, int sm_count, const std::string& schedule,
          uint32_t seed) {
  const BnAddActParams p = params_of(params);
  begin_session(buffers, schedule, seed);
  launch_bn_add_act(p, {nullptr, sm_count});
  return end_session();
}

Value select(const Value& params) { return value_of(select_bn_add_act(params_of(params))); }

Value loop(const Value& params, int vector, int sm_count) {
  const GridStrideLoop w = bn_add_act_loop(bn_shape_of(params), vector, sm_count);
  return Value::Dict{{"all_lanes", w.all_lanes}, {"items", w.items},   {"lanes", w.lanes},   {"slots", w.slots},
                     {"groups", w.groups},       {"splits", w.splits}, {"block", w.block()}, {"grid", w.grid()}};
}

Value compiled() {
  Value::List l;
  for (const BnAddActVariant& v : compiled_bn_add_act()) l.push_back(value_of(v));
  return l;
}

const Binding bindings[] = {
    {"run_bn_add_act", &run},
    {"select_bn_add_act", &select},
    {"bn_add_act_loop", &loop},
    {"compiled_bn_add_act", &compiled},
};

}  // namespace

}  // namespace cuda_on_cpu::bindings
