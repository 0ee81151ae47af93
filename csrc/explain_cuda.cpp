// explain_cuda: the plan for a GPU as text and fields. predict_cuda: the cost model's time of one kernel, with any
// constants. Both are in the library that loads everywhere, so they work without a GPU.
#include <algorithm>
#include <cstdlib>
#include <limits>

#include "common/problem.h"
#include "cuda/plan/cost_model.h"
#include "cuda/plan/explain.h"
#include "cuda/plan/plan.h"
#include "cuda/plan/words.h"

namespace resnet_fused::cuda {

namespace {

constexpr const char* kOp = "explain_cuda";
constexpr const char* kPredict = "predict_cuda";

// A mode from its name.
ConvMode mode_named(const std::string& name) {
  std::string names;
  for (const Epilogue epilogue :
       {Epilogue::kAffine, Epilogue::kProjection, Epilogue::kMoments, Epilogue::kGradientSums})
    for (const Prologue prologue : {Prologue::kNone, Prologue::kBnRelu}) {
      const ConvMode mode{prologue, epilogue};
      if (has_prologue(mode) && has_gradient_sums(mode)) continue;  // no kernel has both
      if (name == name_of(mode)) return mode;
      names += (names.empty() ? "" : ", ") + std::string(name_of(mode));
    }
  fail(kOp, ": mode is ", name, "; one of ", names, " expected");
}

void check_sizes(const char* what, const Ints& sizes, size_t count, int64_t least) {
  bool right = sizes.size() == count;
  for (int64_t s : sizes) right = right && s >= least && s <= std::numeric_limits<int32_t>::max();
  RF_CHECK(right, kOp, ": ", what, " is ", resnet_fused::to_string(sizes), "; ", count, " integers from ", least,
           " to 2147483647 expected");
}

// Checks that 64 bits count the bytes a plan may move; the plan reports what exceeds 32 bits.
void check_shape(const char* what, const Ints& sizes, int64_t least) {
  check_sizes(what, sizes, 4, least);
  int64_t bytes = 256;  // of an element in all the tensors that count: at most eight of each shape, in float64
  for (int64_t s : sizes)
    RF_CHECK(!__builtin_mul_overflow(bytes, std::max<int64_t>(s, 1), &bytes), kOp, ": ", what, " is ",
             resnet_fused::to_string(sizes), ", more bytes than 64 bits count; smaller sizes expected");
}

ConvShape shape_of(const Ints& x, const Ints& weight, const Ints& stride, const Ints& padding, const Ints& dilation) {
  const int64_t p = conv_out(x[2], weight[2], stride[0], padding[0], dilation[0]);
  const int64_t q = conv_out(x[3], weight[3], stride[1], padding[1], dilation[1]);
  RF_CHECK(p >= 1 && q >= 1 && p <= std::numeric_limits<int32_t>::max() && q <= std::numeric_limits<int32_t>::max(),
           kOp, ": x is ", resnet_fused::to_string(x), ", weight ", resnet_fused::to_string(weight), ", padding ",
           resnet_fused::to_string(padding), " and dilation ", resnet_fused::to_string(dilation),
           "; a kernel that fits into its padded input, and an output of 32-bit sizes, expected");
  check_shape("the output", {x[0], weight[0], p, q}, 0);
  const auto i = [](int64_t v) { return static_cast<int32_t>(v); };
  return {i(x[0]), i(x[2]),      i(x[3]),      i(x[1]),       i(weight[0]),  i(weight[2]),   i(weight[3]),  i(p),
          i(q),    i(stride[0]), i(stride[1]), i(padding[0]), i(padding[1]), i(dilation[0]), i(dilation[1])};
}

using Explained = std::tuple<std::string, std::string>;  // text and fields

Device device_of(const Ints& numbers) {
  const auto i = [&](int at) { return static_cast<int32_t>(numbers[at]); };
  return {i(0), i(1), i(2), i(3)};
}

// The plan for this device and environment, and why the other kernels lost.
Explained explained(const Problem& problem, const Ints& numbers) {
  const Device device = device_of(numbers);
  std::vector<Rejected> rejected;
  const Plan plan = make_plan(problem, device, override_of(std::getenv("RESNET_FUSED_CUDA_ENGINE")), &rejected);
  return {to_text(problem, device, plan, rejected), to_fields(problem, device, plan, rejected).json()};
}

Explained explain_cuda(Ints x, Ints weight, Ints stride, Ints padding, Ints dilation, int64_t groups, std::string dtype,
                       std::string mode, Ints proj_x, Ints proj_stride, bool residual, bool aligned, bool allow_tf32,
                       Ints device) {
  check_shape("x_shape", x, 0);
  check_shape("weight_shape", weight, 1);
  check_sizes("stride", stride, 2, 1);
  check_sizes("padding", padding, 2, 0);
  check_sizes("dilation", dilation, 2, 1);
  check_sizes("device", device, 4, 1);
  RF_CHECK(groups >= 1 && weight[1] * groups == x[1] && weight[0] % groups == 0, kOp, ": x_shape is ",
           resnet_fused::to_string(x), ", weight_shape ", resnet_fused::to_string(weight), " and groups ", groups,
           "; weight_shape must be (K, C / groups, R, S) with K divisible by groups");
  Problem problem;
  problem.dtype = dtype_named(kOp, dtype);
  problem.mode = mode_named(mode);
  problem.main = shape_of(x, weight, stride, padding, dilation);
  problem.groups = groups;
  problem.residual = residual;
  problem.aligned = aligned;
  problem.allow_tf32 = allow_tf32;
  if (has_projection(problem.mode)) {
    check_shape("proj_x_shape", proj_x, 0);
    check_sizes("proj_stride", proj_stride, 2, 1);
    problem.projection = shape_of(proj_x, {weight[0], proj_x[1], 1, 1}, proj_stride, {0, 0}, {1, 1});
    RF_CHECK(proj_x[0] == x[0] && problem.projection.p == problem.main.p && problem.projection.q == problem.main.q, kOp,
             ": the projection gives ", proj_x[0], " x ", problem.projection.p, "x", problem.projection.q,
             " but the convolution gives ", x[0], " x ", problem.main.p, "x", problem.main.q,
             "; they are added, so they must agree");
  }
  return explained(problem, device);
}

Explained explain_cuda_block(Ints x, std::string dtype, bool aligned, bool allow_tf32, Ints device) {
  check_shape("x_shape", x, 0);
  check_sizes("device", device, 4, 1);
  Problem problem;
  problem.task = Task::kBasicBlock;
  problem.dtype = dtype_named(kOp, dtype);
  problem.main = shape_of(x, {x[1], x[1], 3, 3}, {1, 1}, {1, 1}, {1, 1});
  problem.aligned = aligned;
  problem.allow_tf32 = allow_tf32;
  return explained(problem, device);
}

// A row of kFamilies from its numbers, in the order of the struct's members.
Family family_from(const std::vector<double>& v) {
  RF_CHECK(v.size() == 10, kPredict, ": constants has ", v.size(),
           " numbers; the 10 of cost_constants.h's Family, from ", "launch to l2_size, or none expected");
  return {0, "", v[0], v[1], v[2], v[3], v[4], v[5], v[6], v[7], v[8], v[9]};
}

// Time in us of the fastest kernel that the engine name allows.
double time_of(const Model& model, const Problem& p, const Override& override) {
  double fastest = kNever;
  for (const Planner* planner : planners()) {
    if (planner->task != Task::kConv || !is_named(override, *planner)) continue;
    for (const Candidate& c : priced_candidates(*planner, p, model, override))
      fastest = std::min(fastest, c.microseconds);
  }
  return fastest;
}

double predict_cuda(Ints x, Ints weight, Ints stride, Ints padding, std::string dtype, bool residual, Ints device,
                    std::string engine, std::vector<double> constants) {
  check_shape("x_shape", x, 1);
  check_shape("weight_shape", weight, 1);
  check_sizes("stride", stride, 2, 1);
  check_sizes("padding", padding, 2, 0);
  check_sizes("device", device, 4, 1);
  Problem problem;
  problem.dtype = dtype_named(kOp, dtype);
  problem.main = shape_of(x, weight, stride, padding, {1, 1});
  problem.residual = residual;
  const Device gpu = device_of(device);
  const Family family = constants.empty() ? family_of(gpu.arch) : family_from(constants);
  const Model model(gpu, problem.dtype, family);
  const int64_t added = residual ? outputs(problem.main) * size_of(problem.dtype) : 0;
  const double us = engine == "cudnn" ? torch_convolution(model, problem.main, added) / 1e3
                                      : time_of(model, problem, override_of(engine.c_str()));
  RF_CHECK(us < kNever, kPredict, ": no kernel of engine ", engine, " takes a convolution of x_shape ",
           resnet_fused::to_string(x), " and weight_shape ", resnet_fused::to_string(weight),
           "; cudnn, torch, or a kernel of sm80 or sm90 that takes it expected");
  return us;
}

Explained explain_trust(int64_t capability) {
  RF_CHECK(capability >= 0 && capability <= std::numeric_limits<int32_t>::max(), "explain_trust: capability is ",
           capability, "; 10 * major + minor expected, 90 for an H100");
  const auto arch = static_cast<int32_t>(capability);
  std::string lines;
  std::vector<Fields> families;
  for (int32_t i = 0; i < kKernelFamilies; ++i) {
    const auto family = static_cast<KernelFamily>(i);
    const std::string words = verified_words(family, arch);
    const Verified* row = verified_on(family, arch);
    lines += (i ? "\n" : "") + std::string(name_of(family)) + ": " + words;
    families.push_back(Fields().add("name", name_of(family)).add("report", row ? row->report : "").add("words", words));
  }
  return {lines, Fields().add("families", families).json()};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(resnet_fused, CompositeExplicitAutograd, m) {
  m.impl("explain_cuda", TORCH_BOX(&explain_cuda));
  m.impl("explain_cuda_block", TORCH_BOX(&explain_cuda_block));
  m.impl("cuda_engines", TORCH_BOX(&engine_names));
  m.impl("predict_cuda", TORCH_BOX(&predict_cuda));
  m.impl("explain_trust", TORCH_BOX(&explain_trust));
}

}  // namespace resnet_fused::cuda
