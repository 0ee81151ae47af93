// Where to launch a kernel: a stream and its device.
#pragma once

struct CUstream_st;  // *CUstream_st is CUDA's cudaStream_t

namespace resnet_fused::cuda {

struct Queue {
  CUstream_st* stream;
  int sm_count;           // of the device that owns the stream
  bool overlaps = false;  // LAUNCH_DEPENDENT may start a kernel while the previous one ends: from sm_90 on
  int device = 0;
};

}  // namespace resnet_fused::cuda
