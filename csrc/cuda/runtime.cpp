#include "cuda/runtime.h"

#include "common/torch_abi.h"

namespace resnet_fused::cuda {

// cudart is linked statically, so that the wheel fits any torch: its errors are ours to report, not torch's.
void check(cudaError_t error, const char* what) {
  RF_CHECK(error == cudaSuccess, what, " failed: ", cudaGetErrorString(error), " (", cudaGetErrorName(error), ")");
}

Queue current_queue(int device) {
  void* stream = nullptr;
  check_shim(aoti_torch_get_current_cuda_stream(device, &stream), "reading the current CUDA stream");
  int sm_count = 0;
  check(cudaDeviceGetAttribute(&sm_count, cudaDevAttrMultiProcessorCount, device), "reading the number of SMs");
  return {static_cast<CUstream_st*>(stream), sm_count};
}

}  // namespace resnet_fused::cuda
