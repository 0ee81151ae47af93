// ld.global and st.global.
#include <cstring>

#include "runtime/block.h"
#include "runtime/global_memory.h"
#include "runtime/instructions.h"

namespace cuda_on_cpu {

void load_global(void* to, const void* address, size_t bytes, Load kind) {
  Thread& me = this_thread();
  std::memset(to, 0xff, bytes);
  if (!global_memory.load(me, address, bytes, bytes, kind, CUDA_ON_CPU_CALLER)) return;
  std::memcpy(to, address, bytes);
  me.block->counters.wide_accesses += bytes == 16;
}

void store_global(void* address, const void* from, size_t bytes) {
  Thread& me = this_thread();
  if (!global_memory.store(me, address, bytes, bytes, CUDA_ON_CPU_CALLER)) return;
  std::memcpy(address, from, bytes);
  me.block->counters.wide_accesses += bytes == 16;
}

}  // namespace cuda_on_cpu
