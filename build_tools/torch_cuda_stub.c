// Stands in for libtorch_cuda.so while linking _C_cuda beside a CPU-only torch; never loaded, never shipped.
// The functions of the stable ABI that live in the real one and that csrc/cuda may call.
#define STUB(name) \
  int name(void) { return 0; }

STUB(aoti_torch_create_cuda_guard)
STUB(aoti_torch_delete_cuda_guard)
STUB(aoti_torch_cuda_guard_set_index)
STUB(aoti_torch_create_cuda_stream_guard)
STUB(aoti_torch_delete_cuda_stream_guard)
STUB(aoti_torch_get_current_cuda_stream)
STUB(torch_c10_cuda_check_msg)
STUB(torch_c10_cuda_free_error_msg)
