#include "common/problem.h"

#include <algorithm>

namespace resnet_fused {

void check_allocated(const char* op, const char* prefix, const char* name, const Tensor& t) {
  int64_t stored = 0;
  check_shim(aoti_torch_get_storage_size(t.get(), &stored), "reading the size of a storage");
  const int64_t wanted = t.numel() ? t.storage_offset() * static_cast<int64_t>(t.element_size()) + span_bytes(t) : 0;
  RF_CHECK(stored >= wanted, op, ": ", prefix, name, " of shape ", to_string(t.sizes()), " needs ", wanted,
           " bytes but its storage has ", stored,
           "; its memory was freed (untyped_storage().resize_), give it back first");
}

namespace {

bool equal(IntView a, IntView b) { return std::equal(a.begin(), a.end(), b.begin(), b.end()); }

std::string device_name(const Tensor& t) { return t.is_cpu() ? "cpu" : "cuda:" + std::to_string(t.get_device_index()); }

void check_same_device(const char* op, const char* prefix, const char* name, const Tensor& t, const Tensor& x,
                       const char* name_of_x = "x") {
  check_allocated(op, prefix, name, t);
  RF_CHECK(t.is_cpu() == x.is_cpu() && (t.is_cpu() || t.get_device_index() == x.get_device_index()), op, ": ", prefix,
           name, " is on ", device_name(t), " but ", name_of_x, " is on ", device_name(x), "; move both to one device");
}

void check_floating(const char* op, const char* prefix, const char* name, ScalarType t) {
  RF_CHECK(t == ScalarType::Float || t == ScalarType::Half || t == ScalarType::BFloat16 || t == ScalarType::Double, op,
           ": ", prefix, name, " has dtype ", torch::headeronly::toString(t),
           "; float32, float16, bfloat16 or float64 expected");
}

void check_vector(const char* op, const char* prefix, const char* name, const OptTensor& v, int64_t channels,
                  const Tensor& x) {
  if (!v) return;
  RF_CHECK(v->dim() == 1 && v->size(0) == channels, op, ": ", prefix, name, " has shape ", to_string(v->sizes()), "; [",
           channels, "] expected, one value a channel");
  check_floating(op, prefix, name, scalar_type_of(*v));
  check_same_device(op, prefix, name, *v, x);
}

// A tensor of x's dtype and device.
void check_operand(const char* op, const char* name, const Tensor& t, const Tensor& x, const char* name_of_x = "x") {
  RF_CHECK(scalar_type_of(t) == scalar_type_of(x), op, ": ", name, " has dtype ",
           torch::headeronly::toString(t.scalar_type()), " but ", name_of_x, " has ",
           torch::headeronly::toString(x.scalar_type()), "; cast one of them");
  check_same_device(op, "", name, t, x, name_of_x);
}

// A tensor with the output's sizes and x's dtype and device.
void check_output_like(const char* op, const char* name, const Tensor& t, IntView sizes, const Tensor& x) {
  RF_CHECK(equal(t.sizes(), sizes), op, ": ", name, " has shape ", to_string(t.sizes()), "; ", to_string(sizes),
           " expected, the shape of the output");
  check_operand(op, name, t, x);
}

}  // namespace

bool suggests_channels_last(const Tensor& x) {
  if (x.dim() != 4 || x.stride(1) == 0) return false;
  int64_t least = 0;
  for (int d : {1, 3, 2, 0}) {
    if (x.size(d) == 0 || x.stride(d) < least) return false;
    // N111 and N11W tensors match both formats; torch calls them contiguous
    if (d == 0 && least == x.stride(1)) return false;
    least = x.stride(d);
    if (x.size(d) > 1) least *= x.size(d);
  }
  return true;
}

void check_activation(const char* op, const Tensor& x, const char* name) {
  RF_CHECK(x.dim() == 4, op, ": ", name, " has shape ", to_string(x.sizes()), "; (N, C, H, W) expected");
  check_floating(op, "", name, scalar_type_of(x));
  check_allocated(op, "", name, x);
  check_32bit_indexing(op, name, x.sizes());
}

void check_batch_norm(const char* op, const BatchNorm& bn, int64_t channels, const Tensor& x, const char* prefix) {
  RF_CHECK(bn.mean.has_value() == bn.var.has_value(), op, ": ", prefix, bn.mean ? "mean" : "var", " without ", prefix,
           bn.mean ? "var" : "mean", "; give both running statistics, or neither for no BatchNorm");
  RF_CHECK(bn.present() || (!bn.gamma && !bn.beta), op, ": ", prefix, "gamma or ", prefix, "beta without ", prefix,
           "mean and ", prefix, "var; give the running statistics too");
  RF_CHECK(bn.eps >= 0, op, ": ", prefix, "eps is ", bn.eps, "; at least 0 expected");
  check_vector(op, prefix, "gamma", bn.gamma, channels, x);
  check_vector(op, prefix, "beta", bn.beta, channels, x);
  check_vector(op, prefix, "mean", bn.mean, channels, x);
  check_vector(op, prefix, "var", bn.var, channels, x);
}

void check_like(const char* op, const char* name, const Tensor& t, const Tensor& x) {
  RF_CHECK(equal(t.sizes(), x.sizes()), op, ": ", name, " has shape ", to_string(t.sizes()), " but x has ",
           to_string(x.sizes()), "; the same shape expected");
  check_operand(op, name, t, x);
}

void check_gradient(const char* op, const Tensor& grad, const Tensor& x, const BatchNorm& bn, const OptTensor& out) {
  check_activation(op, x);
  check_like(op, "grad", grad, x);
  if (out) check_like(op, "out", *out, x);
  RF_CHECK(bn.present(), op, ": mean and var are absent; give what the forward pass normalised with");
  check_batch_norm(op, bn, x.size(1), x);
}

void check_sums(const char* op, const OptTensor& sum_g, const OptTensor& sum_g_xhat, double count, const Tensor& x) {
  RF_CHECK(sum_g.has_value() == sum_g_xhat.has_value(), op, ": ", sum_g ? "sum_g" : "sum_g_xhat", " without ",
           sum_g ? "sum_g_xhat" : "sum_g", "; give both, or neither where the statistics are frozen");
  check_vector(op, "", "sum_g", sum_g, x.size(1), x);
  check_vector(op, "", "sum_g_xhat", sum_g_xhat, x.size(1), x);
  RF_CHECK(!sum_g || count > 0 || x.numel() == 0, op, ": count is ", count,
           "; the number of elements that sum_g and sum_g_xhat were taken over expected, above 0");
}

void check_output_gradient(const char* op, const Tensor& grad, const Conv& forward) {
  const Tensor& x = forward.x;
  RF_CHECK(equal(grad.sizes(), forward.output_sizes()), op, ": grad has shape ", to_string(grad.sizes()), "; ",
           to_string(forward.output_sizes()), " expected, the shape of the output");
  RF_CHECK(scalar_type_of(grad) == scalar_type_of(x), op, ": grad has dtype ",
           torch::headeronly::toString(grad.scalar_type()), " but x has ", torch::headeronly::toString(x.scalar_type()),
           "; cast one of them");
  check_same_device(op, "", "grad", grad, x);
}

void check_conv_gradient(const char* op, const Tensor& grad, const Conv& forward, const BatchNorm& bn,
                         const OptTensor& grad_addend) {
  const Tensor& x = forward.x;
  check_output_gradient(op, grad, forward);
  RF_CHECK(bn.present(), op, ": mean and var are absent; give what the forward pass normalised with");
  check_batch_norm(op, bn, x.size(1), x);
  if (grad_addend) check_like(op, "grad_addend", *grad_addend, x);
}

void check_residual(const char* op, const OptTensor& residual, IntView sizes, const Tensor& x) {
  if (residual) check_output_like(op, "residual", *residual, sizes, x);
}

Conv make_conv(const char* op, Tensor x, Tensor weight, OptTensor bias, BatchNorm bn, IntView stride, IntView padding,
               IntView dilation, int64_t groups, BatchNorm pre, const char* prefix) {
  check_activation(op, x);
  RF_CHECK(weight.dim() == 4, op, ": ", prefix, "weight has shape ", to_string(weight.sizes()),
           "; (K, C / groups, R, S) expected");
  RF_CHECK(scalar_type_of(weight) == scalar_type_of(x), op, ": ", prefix, "weight has dtype ",
           torch::headeronly::toString(weight.scalar_type()), " but x has ",
           torch::headeronly::toString(x.scalar_type()), "; cast one of them");
  check_same_device(op, prefix, "weight", weight, x);
  const Geometry geometry = check_geometry(op, x.sizes(), weight.sizes(), stride, padding, dilation, groups);
  const int64_t n = x.size(0), c = x.size(1), h = x.size(2), w = x.size(3);
  const int64_t k = weight.size(0), r = weight.size(2), s = weight.size(3);
  if (bias) {
    check_vector(op, prefix, "bias", bias, k, x);
  }
  check_batch_norm(op, bn, k, x, prefix);
  check_batch_norm(op, pre, c, x, "pre_");

  Conv conv{std::move(x),
            std::move(weight),
            std::move(bias),
            std::move(bn),
            std::move(pre),
            geometry.stride,
            geometry.padding,
            geometry.dilation,
            groups,
            n,
            c,
            h,
            w,
            k,
            r,
            s,
            geometry.out[0],
            geometry.out[1],
            false};
  conv.channels_last = suggests_channels_last(conv.x) || suggests_channels_last(conv.weight);
  return conv;
}

Conv make_input_gradient(const char* op, Tensor grad, Tensor weight, IntView padding, IntView dilation,
                         const OptTensor& grad_addend) {
  check_activation(op, grad, "grad");
  RF_CHECK(weight.dim() == 4, op, ": weight has shape ", to_string(weight.sizes()), "; (K, C, R, S) expected");
  check_operand(op, "weight", weight, grad, "grad");
  RF_CHECK(weight.size(0) == grad.size(1), op, ": weight of shape ", to_string(weight.sizes()), " makes ",
           weight.size(0), " channels but grad of shape ", to_string(grad.sizes()), " has ", grad.size(1),
           "; the gradient of the convolution's output expected");
  const Pair flipped = flipped_padding(op, grad.sizes(), weight.sizes(), padding, dilation);
  const bool channels_last = suggests_channels_last(grad) || suggests_channels_last(weight);
  Conv conv = make_conv(op, std::move(grad), torch::stable::transpose(weight, 0, 1), {}, {}, {1, 1}, flipped, dilation,
                        /*groups=*/1);
  conv.channels_last = channels_last;
  conv.flipped = true;
  if (grad_addend) {
    RF_CHECK(equal(grad_addend->sizes(), conv.output_sizes()), op, ": grad_addend has shape ",
             to_string(grad_addend->sizes()), "; ", to_string(conv.output_sizes()),
             " expected, the shape of the input gradient");
    check_operand(op, "grad_addend", *grad_addend, conv.x, "grad");
  }
  return conv;
}

Conv with_weight(Conv conv) {
  if (conv.flipped) conv.weight = aten_contiguous(aten_flip(conv.weight), /*channels_last=*/true);
  conv.flipped = false;
  return conv;
}

namespace {

constexpr const char* kSecondOfBlock = "basic_block, second convolution";

Conv conv_of_block(const char* op, Tensor x, Tensor weight, OptTensor bias, BatchNorm bn) {
  check_activation(op, x);
  const int64_t c = x.size(1);
  const IntView sizes = weight.sizes();
  RF_CHECK(sizes.size() == 4 && sizes[0] == c && sizes[1] == c && sizes[2] == 3 && sizes[3] == 3, op,
           ": weight has shape ", to_string(sizes), "; [", c, ", ", c, ", 3, 3] expected, which keeps x's shape");
  return make_conv(op, std::move(x), std::move(weight), std::move(bias), std::move(bn), {1, 1}, {1, 1}, {1, 1}, 1);
}

}  // namespace

BasicBlock make_basic_block(Tensor x, Tensor weight1, OptTensor bias1, BatchNorm bn1, Tensor weight2, OptTensor bias2,
                            BatchNorm bn2) {
  return {conv_of_block("basic_block, first convolution", x, std::move(weight1), std::move(bias1), std::move(bn1)),
          conv_of_block(kSecondOfBlock, x, std::move(weight2), std::move(bias2), std::move(bn2))};
}

Conv BasicBlock::of_middle(Tensor middle) const {
  return conv_of_block(kSecondOfBlock, std::move(middle), second.weight, second.bias, second.bn);
}

void check_projection(const char* op, const Conv& conv, const Conv& projection) {
  RF_CHECK(projection.r == 1 && projection.s == 1 && projection.groups == 1, op, ": proj_weight has shape ",
           to_string(projection.weight.sizes()), "; a 1x1 projection (K, C, 1, 1) expected");
  RF_CHECK(projection.output_sizes() == conv.output_sizes(), op, ": the projection gives ",
           to_string(projection.output_sizes()), " but the convolution gives ", to_string(conv.output_sizes()),
           "; they are added, so they must agree");
  RF_CHECK(scalar_type_of(projection.x) == scalar_type_of(conv.x), op, ": proj_x has dtype ",
           torch::headeronly::toString(projection.x.scalar_type()), " but x has ",
           torch::headeronly::toString(conv.x.scalar_type()), "; cast one of them");
  check_same_device(op, "", "proj_x", projection.x, conv.x);
}

namespace {

// The argmax is stored as a byte; 255 means that the ReLU was closed.
void check_numbered_pool(const char* op, const Tensor& x, const MaxPool& pool) {
  check_pool(op, x.sizes(), pool);
  const int64_t elements = pool.kernel[0] * pool.kernel[1];
  RF_CHECK(elements <= 255, op, ": pool_kernel ", to_string(pool.kernel), " has ", elements,
           " elements; at most 255 expected");
}

}  // namespace

void check_pooled(const char* op, const Tensor& x, const BatchNorm& bn, const MaxPool& pool) {
  check_activation(op, x);
  check_numbered_pool(op, x, pool);
  RF_CHECK(bn.present(), op, ": mean and var are absent; give what x is normalised with");
  check_batch_norm(op, bn, x.size(1), x);
}

void check_pooled_gradient(const char* op, const Tensor& grad, const Tensor& argmax, const Tensor& x,
                           const MaxPool& pool) {
  check_activation(op, x);
  check_numbered_pool(op, x, pool);
  const Ints sizes = pooled_sizes(x.sizes(), pool);
  check_output_like(op, "grad", grad, sizes, x);
  RF_CHECK(equal(argmax.sizes(), sizes) && scalar_type_of(argmax) == ScalarType::Byte, op, ": argmax has shape ",
           to_string(argmax.sizes()), " and dtype ", torch::headeronly::toString(argmax.scalar_type()), "; ",
           to_string(sizes), " in Byte expected, as bn_relu_max_pool returned it");
  check_same_device(op, "", "argmax", argmax, x);
}

void check_pooled_linear(const char* op, const Tensor& x, const Tensor& weight, const OptTensor& bias) {
  check_activation(op, x);
  const int64_t c = x.size(1);
  RF_CHECK(c > 0 && x.size(2) > 0 && x.size(3) > 0, op, ": x has shape ", to_string(x.sizes()),
           "; at least one channel and one pixel expected");
  RF_CHECK(weight.dim() == 2 && weight.size(1) == c, op, ": weight has shape ", to_string(weight.sizes()), "; (K, ", c,
           ") expected, one column a channel of x");
  check_operand(op, "weight", weight, x);
  if (!bias) return;
  check_vector(op, "", "bias", bias, weight.size(0), x);
  check_operand(op, "bias", *bias, x);
}

}  // namespace resnet_fused
