// ld.shared and st.shared.
#include <cstring>

#include "runtime/block.h"
#include "runtime/instructions.h"

namespace cuda_on_cpu {

unsigned char* shared_memory() { return this_thread().block->shared.begin(); }

uint32_t shared_address(const void* pointer) { return this_thread().block->shared.address_of(pointer); }

void load_shared(void* to, uint32_t address, size_t bytes) {
  const Place place = CUDA_ON_CPU_CALLER;
  Thread& me = this_thread();
  SharedMemory& shared = me.block->shared;
  std::memset(to, 0xff, bytes);
  if (!shared.check("load", address, bytes, bytes, place)) return;
  shared.read(address, bytes, actor_of(me), place);
  std::memcpy(to, shared.at(address), bytes);
}

void store_shared(uint32_t address, const void* from, size_t bytes) {
  const Place place = CUDA_ON_CPU_CALLER;
  Thread& me = this_thread();
  SharedMemory& shared = me.block->shared;
  if (!shared.check("store", address, bytes, bytes, place)) return;
  shared.write(address, bytes, actor_of(me), place);
  std::memcpy(shared.at(address), from, bytes);
}

}  // namespace cuda_on_cpu
