// Python interface of the op layer besides torch.ops: sets the emulated GPU and reports what a call's kernels did.
#include "bindings/library.h"
#include "cuda/runtime/kernel_attributes.h"
#include "ops/device.h"
#include "runtime/tensor_map.h"

namespace cuda_on_cpu::bindings {

namespace {

// capability: 90 for 9.0; smem_per_block, smem_per_sm: bytes of shared memory, per block at most and per SM
void set_device_numbers(int32_t capability, int32_t sm_count, int32_t smem_per_block, int32_t smem_per_sm) {
  set_device({capability, sm_count, smem_per_block, smem_per_sm});
}

// Launches one kernel on each device in turn. Returns whether each launch may start early, and the number of queries to
// CUDA.
std::pair<std::vector<bool>, int> overlapping_launches(int ptx, int binary, const std::vector<int>& devices) {
  set_kernel_code(ptx, binary);
  const int before = kernel_code_asked();
  resnet_fused::cuda::GridWaits waits;
  std::vector<bool> overlaps;
  for (const int device : devices) overlaps.push_back(waits.ask(nullptr, device));
  return {overlaps, kernel_code_asked() - before};
}

const Binding bindings[] = {
    {"set_device", &set_device_numbers},
    {"set_engine", &set_engine},
    {"set_check", &set_check},
    {"set_capturing", &set_capturing},
    {"set_verified", &set_verified},
    {"forget_checks", &forget_checks},
    {"overlapping_launches", &overlapping_launches},
    {"tensor_maps_made", &tensor_maps_made},
    {"begin", [](const std::vector<BufferArg>& buffers, const std::string& schedule,
                 uint32_t seed) { begin_session(buffers, schedule, seed); }},
    {"end", &end_session},
};

}  // namespace

}  // namespace cuda_on_cpu::bindings
