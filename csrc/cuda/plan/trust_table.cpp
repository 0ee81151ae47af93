#include "cuda/plan/trust.h"

namespace resnet_fused::cuda {

// Add a row only in the commit that adds its report.
const std::vector<Verified>& verified_kernels() {
  static const std::vector<Verified> rows = {
      {KernelFamily::kConvFwd, 90, "2026-11-28", "7714fee", "benchmarks/results/nvidia-h200/verify.json"},
      {KernelFamily::kConvStats, 90, "2026-11-28", "b5e0ed3", "benchmarks/results/nvidia-h200/verify-conv-stats.json"},
      {KernelFamily::kConvGradient, 90, "2026-11-28", "7714fee", "benchmarks/results/nvidia-h200/verify.json"},
      {KernelFamily::kConvSm90, 90, "2026-11-28", "7714fee", "benchmarks/results/nvidia-h200/verify.json"},
      {KernelFamily::kConvSm90Stats, 90, "2026-11-28", "7714fee", "benchmarks/results/nvidia-h200/verify.json"},
      {KernelFamily::kConvRows, 90, "2026-11-28", "7714fee", "benchmarks/results/nvidia-h200/verify.json"},
      {KernelFamily::kBlockFwd, 90, "2026-11-28", "7714fee", "benchmarks/results/nvidia-h200/verify.json"},
      {KernelFamily::kBnAddAct, 90, "2026-11-28", "7714fee", "benchmarks/results/nvidia-h200/verify.json"},
      {KernelFamily::kBnStats, 90, "2026-11-28", "7714fee", "benchmarks/results/nvidia-h200/verify.json"},
      {KernelFamily::kBnBackwardReduce, 90, "2026-11-28", "7714fee", "benchmarks/results/nvidia-h200/verify.json"},
      {KernelFamily::kBnBackward, 90, "2026-11-28", "7714fee", "benchmarks/results/nvidia-h200/verify.json"},
      {KernelFamily::kBnPool, 90, "2026-11-28", "7714fee", "benchmarks/results/nvidia-h200/verify.json"},
      {KernelFamily::kPoolBackward, 90, "2026-11-28", "7714fee", "benchmarks/results/nvidia-h200/verify.json"},
  };
  return rows;
}

}  // namespace resnet_fused::cuda
