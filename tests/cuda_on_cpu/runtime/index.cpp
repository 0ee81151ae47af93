// threadIdx, blockIdx, blockDim and gridDim.
#include "runtime/block.h"

namespace cuda_on_cpu {

Index thread_index() { return this_thread().index; }
Index block_index() { return this_thread().block->index(); }
dim3 block_size() { return this_thread().block->launch().block; }
dim3 grid_size() { return this_thread().block->launch().grid; }

}  // namespace cuda_on_cpu
