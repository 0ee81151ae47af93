// Python bindings of the convolution kernels.
#include "bindings/batch_norm.h"
#include "cuda/kernels/kernels.h"

using namespace resnet_fused::cuda;

namespace cuda_on_cpu::bindings {

namespace {

ConvShape shape_of(const Value& d) {
  ConvShape s;
  const std::pair<const char*, int32_t*> fields[] = {{"n", &s.n},
                                                     {"h", &s.h},
                                                     {"w", &s.w},
                                                     {"c", &s.c},
                                                     {"k", &s.k},
                                                     {"r", &s.r},
                                                     {"s", &s.s},
                                                     {"p", &s.p},
                                                     {"q", &s.q},
                                                     {"stride_h", &s.stride_h},
                                                     {"stride_w", &s.stride_w},
                                                     {"pad_h", &s.pad_h},
                                                     {"pad_w", &s.pad_w},
                                                     {"dil_h", &s.dil_h},
                                                     {"dil_w", &s.dil_w}};
  for (const auto& [name, field] : fields) *field = d[name].as<int32_t>();
  return s;
}

ConvOperands operands_of(const Value& d) {
  ConvOperands o;
  o.x = pointer_of<const void>(d, "x");
  o.weight = pointer_of<const void>(d, "weight");
  o.shape = shape_of(d["shape"]);
  if (d.find("pre")) o.pre = batch_norm_of(d["pre"]);
  if (d.find("bn")) o.bn = batch_norm_of(d["bn"]);
  return o;
}

ConvFwdParams params_of(const Value& d) {
  ConvFwdParams p;
  p.main = operands_of(d["main"]);
  if (d.find("projection")) p.projection = operands_of(d["projection"]);
  p.residual = pointer_of<const void>(d, "residual");
  p.pre_bn = pointer_of<const void>(d, "pre_bn");
  p.out = pointer_of<void>(d, "out");
  p.partials = pointer_of<float>(d, "partials");
  p.statistics = pointer_of<float>(d, "statistics");
  p.splits = d["splits"].as<int32_t>();
  if (d.find("sk_units")) p.dp_tiles = d["dp_tiles"].as<int32_t>(), p.sk_units = d["sk_units"].as<int32_t>();
  p.relu = d["relu"].as<bool>();
  return p;
}

using VariantArg = std::tuple<int, int32_t, int32_t, int, int>;  // dtype, tile_m, tile_n, prologue, epilogue

ConvFwdVariant variant_of(const VariantArg& v) {
  const auto& [dtype, tile_m, tile_n, prologue, epilogue] = v;
  return {
      static_cast<Dtype>(dtype), tile_m, tile_n, {static_cast<Prologue>(prologue), static_cast<Epilogue>(epilogue)}};
}

template <void (*launch)(const ConvFwdParams&, const ConvFwdVariant&, const Queue&)>
Value run(const std::vector<BufferArg>& buffers, const Value& params, const VariantArg& variant, int sm_count,
          const std::string& schedule, uint32_t seed) {
  const ConvFwdParams p = params_of(params);
  begin_session(buffers, schedule, seed);
  launch(p, variant_of(variant), {nullptr, sm_count});
  return end_session();
}

template <std::vector<ConvFwdVariant> (*list)()>
std::vector<VariantArg> compiled() {
  std::vector<VariantArg> l;
  for (const ConvFwdVariant& v : list())
    l.emplace_back(static_cast<int>(v.dtype), v.tile_m, v.tile_n, static_cast<int>(v.mode.prologue),
                   static_cast<int>(v.mode.epilogue));
  return l;
}

const Binding bindings[] = {
#define BIND(engine, kernel) \
  {"run_" #kernel, &run<launch_##kernel>}, {"compiled_" #kernel, &compiled<compiled_##kernel>},
    CONV_KERNELS(BIND)
#undef BIND
};

}  // namespace

}  // namespace cuda_on_cpu::bindings
