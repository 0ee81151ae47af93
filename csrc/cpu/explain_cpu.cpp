// explain_cpu: the plan for this processor as text and as fields.
#include <algorithm>
#include <tuple>

#include "common/fields.h"
#include "common/geometry.h"
#include "cpu/plan.h"

namespace resnet_fused::cpu {

namespace {

constexpr const char* kOp = "explain_cpu";

void check_sizes(const char* what, const Ints& sizes) {
  RF_CHECK(sizes.size() == 4 && *std::min_element(sizes.begin(), sizes.end()) >= 0, kOp, ": ", what, " is ",
           resnet_fused::to_string(sizes), "; four sizes of at least 0 expected");
}

Purpose purpose_of(const std::string& name) {
  for (const Purpose purpose :
       {Purpose::kInference, Purpose::kForward, Purpose::kInputGradient, Purpose::kWeightGradient})
    if (name == name_of(purpose)) return purpose;
  fail(kOp, ": purpose is ", name, "; inference, forward, input gradient or weight gradient expected");
}

std::string fields_of(const Plan& plan) {
  Fields fields;
  fields.add("kernel", name_of(plan.engine)).add("purpose", name_of(plan.purpose));
  if (plan.engine <= Engine::kDirect) fields.add("isa", name_of(plan.isa));
  if (plan.purpose != Purpose::kInference)
    fields.add("in_float32", static_cast<int64_t>(plan.in_float32)).add("flips", static_cast<int64_t>(plan.flips));
  std::vector<Fields> rejected;
  for (const Rejected& each : plan.rejected)
    rejected.push_back(Fields().add("kernel", each.engine).add("reason", each.reason));
  return fields.add("rejected", rejected).json();
}

std::tuple<std::string, std::string> explain_cpu(Ints x, Ints weight, Ints stride, Ints padding, Ints dilation,
                                                 int64_t groups, std::string dtype, std::string purpose) {
  check_sizes("x_shape", x);
  check_sizes("weight_shape", weight);
  const Geometry g = check_geometry(kOp, x, weight, stride, padding, dilation, groups);
  const ConvShape shape{x[0],
                        x[1],
                        x[2],
                        x[3],
                        weight[0],
                        weight[2],
                        weight[3],
                        g.out[0],
                        g.out[1],
                        g.stride[0],
                        g.stride[1],
                        g.padding[0],
                        g.padding[1],
                        g.dilation[0],
                        g.dilation[1],
                        groups,
                        dtype_named(kOp, dtype),
                        purpose_of(purpose)};
  const Plan plan = make_plan(shape, cpu_features());
  return {to_string(plan), fields_of(plan)};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(resnet_fused, CompositeExplicitAutograd, m) {
  m.impl("explain_cpu", TORCH_BOX(&explain_cpu));
}

}  // namespace resnet_fused::cpu
