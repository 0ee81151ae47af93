#include "cuda/runtime/device.h"

#include <cstdlib>
#include <string>
#include <vector>

#include "common/torch_abi.h"
#include "cuda/plan/override.h"
#include "cuda/plan/trust.h"
#include "cuda/runtime/kernel_attributes.h"

namespace resnet_fused::cuda {

namespace {

int attribute(cudaDeviceAttr which, int device, const char* what) {
  int value = 0;
  check(cudaDeviceGetAttribute(&value, which, device), what);
  return value;
}

// RESNET_FUSED_CUDA_OVERLAP=0 turns overlap off, to compare or to see whether overlap causes an error.
bool overlap_wanted() {
  static const char* const text = std::getenv("RESNET_FUSED_CUDA_OVERLAP");
  static const bool wanted = !text || std::string(text) != "0";
  return wanted;
}

std::vector<Device> read_devices() {
  int count = 0;
  check(cudaGetDeviceCount(&count), "counting the GPUs");
  std::vector<Device> devices;
  for (int i = 0; i < count; ++i)
    devices.push_back({10 * attribute(cudaDevAttrComputeCapabilityMajor, i, "reading the compute capability") +
                           attribute(cudaDevAttrComputeCapabilityMinor, i, "reading the compute capability"),
                       attribute(cudaDevAttrMultiProcessorCount, i, "reading the number of SMs"),
                       attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, i, "reading a block's shared memory"),
                       attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor, i, "reading an SM's shared memory"),
                       new KernelStates});  // never freed
  return devices;
}

}  // namespace

// cudart is linked statically, so that the wheel works with any torch. Its errors are therefore ours to report.
void check(cudaError_t error, const char* what) {
  RF_CHECK(error == cudaSuccess, what, " failed: ", cudaGetErrorString(error), " (", cudaGetErrorName(error), ")");
}

const Device& device_numbers(int device) {
  static const std::vector<Device> devices = read_devices();
  return devices.at(device);
}

const Override& chosen_override() {
  static const Override choice = override_of(std::getenv("RESNET_FUSED_CUDA_ENGINE"));
  return choice;
}

CheckMode chosen_check() {
  static const CheckMode mode = check_mode(std::getenv("RESNET_FUSED_CUDA_CHECK"));
  return mode;
}

bool is_capturing(int device) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  // The query fails for the legacy stream while another stream is being captured. Nothing may run there either.
  const bool answered = cudaStreamIsCapturing(current_queue(device).stream, &status) == cudaSuccess;
  if (!answered) cudaGetLastError();
  return !answered || status != cudaStreamCaptureStatusNone;
}

KernelCode code_of(const void* kernel) {
  cudaFuncAttributes attributes;
  check(cudaFuncGetAttributes(&attributes, kernel), "reading what a kernel was compiled for");
  return {attributes.ptxVersion, attributes.binaryVersion};
}

int current_device() {
  int device = 0;
  check(cudaGetDevice(&device), "reading the current CUDA device");
  return device;
}

void allow_shared_memory(const void* kernel, int bytes) {
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes),
        "asking for dynamic shared memory");
}

Queue current_queue(int device) {
  void* stream = nullptr;
  check_shim(aoti_torch_get_current_cuda_stream(device, &stream), "reading the current CUDA stream");
  const Device& numbers = device_numbers(device);
  return {static_cast<CUstream_st*>(stream), numbers.sm_count, numbers.arch >= kOverlappingArch && overlap_wanted(),
          device};
}

}  // namespace resnet_fused::cuda
