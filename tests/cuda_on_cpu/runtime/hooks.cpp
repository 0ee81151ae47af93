// Checks plain C++ loads and stores in kernels. Kernels are compiled with -fsanitize=thread, so g++ calls a hook before
// each access, and with -fsanitize=alignment, so it calls a handler for a pointer misaligned for its type (g++ may
// split a uint4 access that a GPU makes as one). No sanitizer runtime is linked.
#include "runtime/block.h"
#include "runtime/global_memory.h"
#include "runtime/report.h"

namespace cuda_on_cpu {

namespace {

enum class Kind { kLoad, kStore };

// Registers live on the fiber's stack, including those that an asynchronous instruction owns.
void check_registers(const char* address, size_t bytes, Place place) {
  if (!on_fiber()) return;
  for (const Watched& w : this_thread().watched)
    if (address < w.begin + w.bytes && w.begin < address + bytes) report(w.hazard, {place});
}

bool access_shared(Thread& me, const void* address, size_t bytes, size_t alignment, Kind kind, Place place) {
  SharedMemory& shared = me.block->shared;
  const uint32_t at = shared.address_of(address);
  if (!shared.check(kind == Kind::kLoad ? "load" : "store", at, bytes, alignment, place)) return false;
  if (kind == Kind::kLoad)
    shared.read(at, bytes, actor_of(me), place);
  else
    shared.write(at, bytes, actor_of(me), place);
  return true;
}

bool access_global(Thread& me, void* address, size_t bytes, size_t alignment, Kind kind, Place place) {
  const char* a = static_cast<const char*>(address);
  const bool constant = a >= image.begin && a < image.end;
  if (constant && kind == Kind::kLoad) return true;
  if (stacks.slot(address) < Stacks::kSlots) {
    report("access to another thread's registers", {place});
    return false;
  }
  return kind == Kind::kLoad ? global_memory.load(me, address, bytes, alignment, Load::kPlain, place)
                             : global_memory.store(me, address, bytes, alignment, place);
}

void access(void* address, size_t bytes, size_t alignment, Kind kind, const void* return_address) {
  const auto a = reinterpret_cast<uintptr_t>(address), here = reinterpret_cast<uintptr_t>(__builtin_frame_address(0));
  const Place place = place_of(return_address);
  if ((a ^ here) < kStackBytes) return check_registers(static_cast<const char*>(address), bytes, place);
  if (!on_fiber()) return;
  Thread& me = this_thread();
  const bool done = me.block->shared.owns(address) ? access_shared(me, address, bytes, alignment, kind, place)
                                                   : access_global(me, address, bytes, alignment, kind, place);
  // The hook cannot prevent the access that follows it, so the launch ends here.
  if (!done) me.block->give_up();
}

// Data that g++ passes to the alignment handler, in libubsan's layout.
struct PointerCheck {
  const char* file;
  uint32_t line, column;
  const void* type;
  unsigned char log_alignment;
};

void access_misaligned(const PointerCheck& check, const void* pointer, const void* return_address) {
  if (!on_fiber()) return;
  Thread& me = this_thread();
  const Place place = place_of(return_address);
  const uint32_t alignment = 1u << check.log_alignment;
  if (me.block->shared.owns(pointer))
    report("shared memory misaligned", {place}, "plain access at offset ",
           static_cast<const unsigned char*>(pointer) - me.block->shared.begin(), ", which is no multiple of ",
           alignment);
  else
    report("global memory misaligned", {place}, "plain access at an address that is no multiple of ", alignment);
}

}  // namespace

}  // namespace cuda_on_cpu

using cuda_on_cpu::access;
using cuda_on_cpu::Kind;

#define HOOKS(bytes)                                                                                            \
  void __tsan_read##bytes(void* a) { access(a, bytes, bytes, Kind::kLoad, __builtin_return_address(0)); }       \
  void __tsan_write##bytes(void* a) { access(a, bytes, bytes, Kind::kStore, __builtin_return_address(0)); }     \
  void __tsan_unaligned_read##bytes(void* a) { access(a, bytes, 1, Kind::kLoad, __builtin_return_address(0)); } \
  void __tsan_unaligned_write##bytes(void* a) { access(a, bytes, 1, Kind::kStore, __builtin_return_address(0)); }

extern "C" {
HOOKS(1)
HOOKS(2)
HOOKS(4)
HOOKS(8)
HOOKS(16)
void __tsan_read_range(void* a, unsigned long n) { access(a, n, 1, Kind::kLoad, __builtin_return_address(0)); }
void __tsan_write_range(void* a, unsigned long n) { access(a, n, 1, Kind::kStore, __builtin_return_address(0)); }
void __tsan_init() {}
void __ubsan_handle_type_mismatch_v1(cuda_on_cpu::PointerCheck* check, uintptr_t pointer) {
  cuda_on_cpu::access_misaligned(*check, reinterpret_cast<const void*>(pointer), __builtin_return_address(0));
}
}
