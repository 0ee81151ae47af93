// CPU kernels of the convolution ops, bn_add_act and the memory ops: check, pick an engine, run it.
#include "common/problem.h"
#include "cpu/bn_add_act.h"
#include "cpu/deferred.h"
#include "cpu/engines.h"
#include "cpu/environment.h"
#include "cpu/memory.h"
#include "cpu/packed_cache.h"
#include "cpu/program.h"
#include "cpu/run_conv.h"

namespace resnet_fused::cpu {

namespace {

// Inference.
Tensor run(const Conv& conv, const Residual& residual, bool relu, bool keep_packed, bool internal) {
  return run_conv(conv, Purpose::kInference, residual, relu, keep_packed, internal);
}

Tensor conv_bn_act(Tensor x, Tensor weight, OptTensor bias, OptTensor gamma, OptTensor beta, OptTensor mean,
                   OptTensor var, double eps, Ints stride, Ints padding, Ints dilation, int64_t groups,
                   OptTensor residual, bool relu, bool keep_packed, bool /*allow_tf32*/, bool internal) {
  const Conv conv =
      make_conv("conv_bn_act", x, weight, bias, {gamma, beta, mean, var, eps}, stride, padding, dilation, groups);
  check_residual("conv_bn_act", residual, conv.output_sizes(), conv.x);
  return run(conv, [&](const Tensor*) { return residual; }, relu, keep_packed, internal);
}

Tensor bn_relu_conv_bn_act(Tensor x, OptTensor pre_gamma, OptTensor pre_beta, Tensor pre_mean, Tensor pre_var,
                           double pre_eps, Tensor weight, OptTensor bias, OptTensor gamma, OptTensor beta,
                           OptTensor mean, OptTensor var, double eps, Ints stride, Ints padding, Ints dilation,
                           int64_t groups, OptTensor residual, bool relu, bool keep_packed, bool /*allow_tf32*/,
                           bool internal) {
  constexpr const char* op = "bn_relu_conv_bn_act";
  const Conv conv = make_conv(op, x, weight, bias, {gamma, beta, mean, var, eps}, stride, padding, dilation, groups,
                              {pre_gamma, pre_beta, pre_mean, pre_var, pre_eps});
  check_residual(op, residual, conv.output_sizes(), conv.x);
  return run(without_pre(conv), [&](const Tensor*) { return residual; }, relu, keep_packed, internal);
}

Tensor conv_bn_proj_act(Tensor x, Tensor weight, OptTensor bias, OptTensor gamma, OptTensor beta, OptTensor mean,
                        OptTensor var, double eps, Ints stride, Ints padding, Ints dilation, int64_t groups,
                        Tensor proj_x, Tensor proj_weight, OptTensor proj_bias, OptTensor proj_gamma,
                        OptTensor proj_beta, OptTensor proj_mean, OptTensor proj_var, double proj_eps, Ints proj_stride,
                        OptTensor pre_gamma, OptTensor pre_beta, OptTensor pre_mean, OptTensor pre_var, double pre_eps,
                        bool relu, bool keep_packed, bool /*allow_tf32*/, bool internal) {
  constexpr const char* op = "conv_bn_proj_act";
  const Conv conv = make_conv(op, x, weight, bias, {gamma, beta, mean, var, eps}, stride, padding, dilation, groups);
  Conv projection =
      make_conv(op, proj_x, proj_weight, proj_bias, {proj_gamma, proj_beta, proj_mean, proj_var, proj_eps}, proj_stride,
                {0, 0}, {1, 1}, 1, {pre_gamma, pre_beta, pre_mean, pre_var, pre_eps}, "proj_");
  check_projection(op, conv, projection);
  projection = without_pre(projection);
  const Residual shortcut = [&](const Tensor* out) -> OptTensor {
    if (out && engine_of(projection) == Engine::kDirect &&
        direct_conv(projection, std::nullopt, nullptr, /*relu=*/false, keep_packed, *out))
      return *out;
    return run(projection, no_residual, /*relu=*/false, keep_packed, /*internal=*/true);
  };
  return run(conv, shortcut, relu, keep_packed, internal);
}

Tensor basic_block(Tensor x, Tensor weight1, OptTensor bias1, OptTensor gamma1, OptTensor beta1, OptTensor mean1,
                   OptTensor var1, double eps1, Tensor weight2, OptTensor bias2, OptTensor gamma2, OptTensor beta2,
                   OptTensor mean2, OptTensor var2, double eps2, bool keep_packed, bool /*allow_tf32*/, bool internal) {
  const BasicBlock block = make_basic_block(x, weight1, bias1, {gamma1, beta1, mean1, var1, eps1}, weight2, bias2,
                                            {gamma2, beta2, mean2, var2, eps2});
  const Conv second = block.of_middle(run(block.first, no_residual, /*relu=*/true, keep_packed, /*internal=*/true));
  return run(second, [&](const Tensor*) -> OptTensor { return x; }, /*relu=*/true, keep_packed, internal);
}

Tensor conv_bn_relu_pool(Tensor x, Tensor weight, OptTensor bias, OptTensor gamma, OptTensor beta, OptTensor mean,
                         OptTensor var, double eps, Ints stride, Ints padding, Ints dilation, int64_t groups,
                         Ints pool_kernel, Ints pool_stride, Ints pool_padding, bool keep_packed, bool /*allow_tf32*/,
                         bool internal) {
  constexpr const char* op = "conv_bn_relu_pool";
  const Conv conv = make_conv(op, x, weight, bias, {gamma, beta, mean, var, eps}, stride, padding, dilation, groups);
  const MaxPool pool{pool_kernel, pool_stride, pool_padding};
  check_pool(op, conv.output_sizes(), pool);
  if (engine_of(conv, &pool) == Engine::kDirect) {
    const Ints sizes = pooled_sizes(conv.output_sizes(), pool);
    Tensor out = output_buffer(sizes, conv.x, internal || is_copied(sizes, conv.channels_last));
    if (direct_conv(conv, std::nullopt, &pool, true, keep_packed, out)) return in_format(out, conv.channels_last);
  }
  const Tensor all = run(conv, no_residual, true, keep_packed, /*internal=*/true);
  run_deferred();
  return in_format(aten_max_pool2d(all, pool.kernel, pool.stride, pool.padding), conv.channels_last);
}

Tensor bn_add_act(Tensor x, OptTensor gamma, OptTensor beta, OptTensor mean, OptTensor var, double eps,
                  OptTensor residual, bool relu, bool internal) {
  constexpr const char* op = "bn_add_act";
  check_activation(op, x);
  const BatchNorm bn{gamma, beta, mean, var, eps};
  check_batch_norm(op, bn, x.size(1), x);
  check_residual(op, residual, sizes_of(x), x);
  return normalise(x, bn, residual, relu, internal);
}

}  // namespace

Tensor avg_pool_linear(Tensor x, Tensor weight, OptTensor bias);  // linear_ops.cpp

namespace {

Tensor channels_last(Tensor x) { return aten_contiguous(x, /*channels_last=*/true); }

constexpr ProgramOp kProgramOps[] = {
    {"channels_last", replay<channels_last>, /*defers=*/false},
    {"conv_bn_act", replay<conv_bn_act>, /*defers=*/true},
    {"bn_relu_conv_bn_act", replay<bn_relu_conv_bn_act>, /*defers=*/false},
    {"conv_bn_proj_act", replay<conv_bn_proj_act>, /*defers=*/true},
    {"basic_block", replay<basic_block>, /*defers=*/true},
    {"conv_bn_relu_pool", replay<conv_bn_relu_pool>, /*defers=*/true},
    {"bn_add_act", replay<bn_add_act>, /*defers=*/false},
    {"avg_pool_linear", replay<avg_pool_linear>, /*defers=*/false},
};

std::string program_ops() {
  std::string names;
  for (const ProgramOp& op : kProgramOps) names += (names.empty() ? "" : ", ") + std::string(op.name);
  return names;
}

// Makes the calls. Convolutions are deferred if `defers`.
OptTensor make_calls(const Tensor& x, const std::vector<Tensor>& tensors, const Tensor& code, bool defers) {
  ProgramReader reader(x, tensors, static_cast<const int64_t*>(code.const_data_ptr()), code.numel());
  if (!reader.tensors_match()) return std::nullopt;
  std::optional<Deferred> deferred;
  if (defers) deferred.emplace();
  const auto is_needed = [&](const void* data) { return reader.holds(data); };
  while (!reader.at_end()) {
    const int64_t op = reader.next();
    RF_CHECK(op >= 0 && op < static_cast<int64_t>(std::size(kProgramOps)), "run_program: there is no op ", op,
             "; the code must be that of a resnet_fused Program");
    if (deferred && !kProgramOps[op].defers) deferred->run(is_needed);
    reader.finish_call(kProgramOps[op].call(reader));
  }
  if (deferred) deferred->run(is_needed);
  return reader.last();
}

OptTensor run_program(Tensor x, std::vector<Tensor> tensors, Tensor code) {
  RF_CHECK(code.is_cpu() && scalar_type_of(code) == ScalarType::Long && code.dim() == 1 && code.is_contiguous(),
           "run_program: code is not a contiguous CPU vector of int64; pass that of a resnet_fused Program");
  const ReadsEnvironmentOnce here;
  try {
    return make_calls(x, tensors, code, /*defers=*/true);
  } catch (const CannotDefer&) {
    return make_calls(x, tensors, code, /*defers=*/false);
  }
}

void forget_packed_op(std::vector<Tensor> weights) {
  for (const Tensor& w : weights) forget_packed(w);
}

void freeze_packed_op(std::vector<Tensor> weights) {
  for (const Tensor& w : weights) freeze_packed(w);
}

void release_all() {
  forget_all_packed();
  release_memory();
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(resnet_fused, CPU, m) {
  m.impl("conv_bn_act", TORCH_BOX(&conv_bn_act));
  m.impl("bn_relu_conv_bn_act", TORCH_BOX(&bn_relu_conv_bn_act));
  m.impl("conv_bn_proj_act", TORCH_BOX(&conv_bn_proj_act));
  m.impl("basic_block", TORCH_BOX(&basic_block));
  m.impl("conv_bn_relu_pool", TORCH_BOX(&conv_bn_relu_pool));
  m.impl("bn_add_act", TORCH_BOX(&bn_add_act));
  m.impl("run_program", TORCH_BOX(&run_program));
}

STABLE_TORCH_LIBRARY_IMPL(resnet_fused, CompositeExplicitAutograd, m) {
  m.impl("forget_packed", TORCH_BOX(&forget_packed_op));
  m.impl("freeze_packed", TORCH_BOX(&freeze_packed_op));
  m.impl("storage_ended", TORCH_BOX(&storage_ended));
  m.impl("packed_bytes", TORCH_BOX(&packed_bytes));
  m.impl("program_ops", TORCH_BOX(&program_ops));
  m.impl("release_memory", TORCH_BOX(&release_all));
  m.impl("release_pool", TORCH_BOX(&release_memory));
}

}  // namespace resnet_fused::cpu
