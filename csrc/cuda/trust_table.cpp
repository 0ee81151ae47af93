#include "cuda/trust.h"

namespace resnet_fused::cuda {

// A row is added with the report that shows it: {KernelFamily::kConvFwd, 90, "2026-12-01", "0123abc",
// "benchmarks/results/h200/verify.json"}. No GPU has run any kernel yet.
const std::vector<Verified>& verified_kernels() {
  static const std::vector<Verified> rows = {};
  return rows;
}

}  // namespace resnet_fused::cuda
