// explain_cpu: the plan for this processor as text.
#include <algorithm>

#include "common/geometry.h"
#include "cpu/plan.h"

namespace resnet_fused::cpu {

namespace {

constexpr const char* kOp = "explain_cpu";

Element element_of(const std::string& dtype) {
  if (dtype == "float32") return Element::kFloat32;
  if (dtype == "bfloat16") return Element::kBFloat16;
  if (dtype == "float16") return Element::kFloat16;
  if (dtype == "float64") return Element::kFloat64;
  fail(kOp, ": dtype is ", dtype, "; float32, bfloat16, float16 or float64 expected");
}

void check_sizes(const char* what, const Ints& sizes) {
  RF_CHECK(sizes.size() == 4 && *std::min_element(sizes.begin(), sizes.end()) >= 0, kOp, ": ", what, " is ",
           resnet_fused::to_string(sizes), "; four sizes of at least 0 expected");
}

std::string explain_cpu(Ints x, Ints weight, Ints stride, Ints padding, Ints dilation, int64_t groups,
                        std::string dtype) {
  check_sizes("x_shape", x);
  check_sizes("weight_shape", weight);
  const Element element = element_of(dtype);
  const Geometry g = check_geometry(kOp, x, weight, stride, padding, dilation, groups);
  const ConvShape shape{x[0],         x[1],          x[2],          x[3],        weight[0],   weight[2],
                        weight[3],    g.out[0],      g.out[1],      g.stride[0], g.stride[1], g.padding[0],
                        g.padding[1], g.dilation[0], g.dilation[1], groups,      element};
  return to_string(make_plan(shape, cpu_features()));
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(resnet_fused, CompositeExplicitAutograd, m) {
  m.impl("explain_cpu", TORCH_BOX(&explain_cpu));
}

}  // namespace resnet_fused::cpu
