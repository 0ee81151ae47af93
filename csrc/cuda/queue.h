// Where a kernel is launched.
#pragma once

struct CUstream_st;  // *CUstream_st is CUDA's cudaStream_t

namespace resnet_fused::cuda {

struct Queue {
  CUstream_st* stream;
  int sm_count;  // of the device that owns the stream
};

}  // namespace resnet_fused::cuda
