#include "cuda/plan/cost_model.h"

#include <algorithm>
#include <iterator>

#include "cuda/kernels/bn/reduction.h"

namespace resnet_fused::cuda {

namespace {

constexpr int64_t kMiB = 1 << 20;

}  // namespace

int64_t inputs(const ConvShape& q) {
  const int64_t rows = std::min<int64_t>(q.h, int64_t{q.p} * q.r), columns = std::min<int64_t>(q.w, int64_t{q.q} * q.s);
  return q.n * rows * columns * q.c;
}

int64_t compulsory_bytes(const Problem& p) {
  const int64_t tensors = 1 + p.residual + has_gradient_sums(p.mode);
  int64_t elements = inputs(p.main) + weights(p.main, p.groups) + outputs(p.main) * tensors;
  if (has_projection(p.mode)) elements += inputs(p.projection) + weights(p.projection, 1);
  return elements * size_of(p.dtype);
}

int64_t prologue_elements(const Problem& p) {
  if (!has_prologue(p.mode)) return 0;
  return inputs(has_projection(p.mode) ? p.projection : p.main);
}

int32_t prologue_channels(const Problem& p, const Device& device) {
  return std::min(has_projection(p.mode) ? p.projection.c : p.main.c, device.smem_per_block);
}

const Family& family_of(int32_t arch) {
  return *std::find_if(std::begin(kFamilies), std::end(kFamilies) - 1,
                       [&](const Family& f) { return arch >= f.oldest; });
}

Model::Model(const Device& device, Dtype dtype) : Model(device, dtype, family_of(device.arch)) {}
Model::Model(const Device& device, Dtype dtype, const Family& family) : device(device), family(family), dtype(dtype) {}

double Model::dram() const { return family.dram * device.sm_count; }
double Model::l2() const { return family.l2 * family.clock * device.sm_count; }

double Model::pass(int64_t bytes) const {
  return family.launch + bytes / (2 * bytes <= kMiB * family.l2_size ? l2() : dram());
}

double Model::finish(int64_t partial_bytes) const { return family.launch + 2 * partial_bytes / l2(); }

double Model::finish_parts(const Problem& p, int64_t part) const {
  if (!leaves_parts(p.mode)) return 0;
  const int64_t values = values_of(has_moments(p.mode) ? Parts::kMoments : Parts::kSums);
  return finish(values * ceil_div(pixels(p.main), part) * p.main.k * 4);
}

}  // namespace resnet_fused::cuda
