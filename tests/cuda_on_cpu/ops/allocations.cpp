// Registers an op's allocations as buffers of the emulator's session, so that kernels may touch them and no other
// memory. The linker's --wrap routes the op layer's calls of torch's dispatcher through here.
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/c/shim.h>

#include <cstring>

#include "runtime/session.h"

extern "C" AOTITorchError __real_torch_call_dispatcher(const char* op, const char* overload, StableIValue* stack,
                                                       uint64_t version);
extern "C" AOTITorchError __wrap_torch_call_dispatcher(const char* op, const char* overload, StableIValue* stack,
                                                       uint64_t version);

extern "C" AOTITorchError __real_aoti_torch_empty_strided(int64_t dim, const int64_t* sizes, const int64_t* strides,
                                                          int32_t dtype, int32_t device_type, int32_t device_index,
                                                          AtenTensorHandle* tensor);
extern "C" AOTITorchError __wrap_aoti_torch_empty_strided(int64_t dim, const int64_t* sizes, const int64_t* strides,
                                                          int32_t dtype, int32_t device_type, int32_t device_index,
                                                          AtenTensorHandle* tensor);

namespace cuda_on_cpu {

namespace {

// Ops that may return new memory. `contiguous` and `to` may also return their input, which is already registered.
constexpr const char* kAllocating[] = {"aten::empty",       "aten::contiguous",           "aten::to",
                                       "aten::convolution", "aten::convolution_backward", "aten::flip"};

size_t element_size_of(AtenTensorHandle tensor) {
  int32_t dtype = 0;
  aoti_torch_get_dtype(tensor, &dtype);
  return aoti_torch_dtype_element_size(dtype);
}

size_t bytes_of(AtenTensorHandle tensor) {
  int64_t dim = 0, *sizes = nullptr, *strides = nullptr;
  aoti_torch_get_dim(tensor, &dim);
  aoti_torch_get_sizes(tensor, &sizes);
  aoti_torch_get_strides(tensor, &strides);
  int64_t last = 0;
  for (int64_t i = 0; i < dim; ++i) {
    if (sizes[i] == 0) return 0;
    last += (sizes[i] - 1) * strides[i];
  }
  return static_cast<size_t>(last + 1) * element_size_of(tensor);
}

void note(const char* op, AtenTensorHandle tensor) {
  void* data = nullptr;
  int64_t dim = 0;
  aoti_torch_get_data_ptr(tensor, &data);
  aoti_torch_get_dim(tensor, &dim);
  const bool fresh = !std::strcmp(op, "aten::empty");
  // Activations are written completely; vectors and partial sums may be allocated larger than what is written.
  const BufferKind kind = !fresh ? BufferKind::kWorking : dim == 4 ? BufferKind::kOutput : BufferKind::kScratch;
  add_buffer({op, static_cast<char*>(data), bytes_of(tensor), kind,
              kind != BufferKind::kScratch && element_size_of(tensor) == 1 ? size_t{1} : size_t{2}});
}

}  // namespace

}  // namespace cuda_on_cpu

AOTITorchError __wrap_torch_call_dispatcher(const char* op, const char* overload, StableIValue* stack,
                                            uint64_t version) {
  const AOTITorchError error = __real_torch_call_dispatcher(op, overload, stack, version);
  for (const char* known : cuda_on_cpu::kAllocating)
    if (error == AOTI_TORCH_SUCCESS && !std::strcmp(op, known))
      cuda_on_cpu::note(op, reinterpret_cast<AtenTensorHandle>(stack[0]));
  return error;
}

AOTITorchError __wrap_aoti_torch_empty_strided(int64_t dim, const int64_t* sizes, const int64_t* strides, int32_t dtype,
                                               int32_t device_type, int32_t device_index, AtenTensorHandle* tensor) {
  const AOTITorchError error =
      __real_aoti_torch_empty_strided(dim, sizes, strides, dtype, device_type, device_index, tensor);
  if (error == AOTI_TORCH_SUCCESS) cuda_on_cpu::note("aten::empty", *tensor);
  return error;
}
