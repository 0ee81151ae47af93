#include "runtime/fiber.h"

#include <sys/mman.h>

#include <new>

// Returns with a jump instead of ret: all lanes of a warp resume at the same address, which the indirect branch
// predictor learns.
#if defined(__x86_64__)
asm(R"(
.text
.hidden cuda_on_cpu_switch
.globl cuda_on_cpu_switch
.type cuda_on_cpu_switch, @function
cuda_on_cpu_switch:
  push %rbp
  push %rbx
  push %r12
  push %r13
  push %r14
  push %r15
  mov %rsp, (%rdi)
  mov %rsi, %rsp
  pop %r15
  pop %r14
  pop %r13
  pop %r12
  pop %rbx
  pop %rbp
  pop %rcx
  jmp *%rcx
.size cuda_on_cpu_switch, . - cuda_on_cpu_switch
)");
#elif defined(__aarch64__)
asm(R"(
.text
.hidden cuda_on_cpu_switch
.globl cuda_on_cpu_switch
.type cuda_on_cpu_switch, %function
cuda_on_cpu_switch:
  sub sp, sp, #160
  stp x19, x20, [sp, #0]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x2, sp
  str x2, [x0]
  mov sp, x1
  ldp x19, x20, [sp, #0]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #160
  br x30
.size cuda_on_cpu_switch, . - cuda_on_cpu_switch
)");
#else
#error "cuda_on_cpu_switch has no version for this processor"
#endif

namespace cuda_on_cpu {

Stacks stacks;

namespace {

constexpr size_t kBytes = Stacks::kSlots * kStackBytes;

#if defined(__x86_64__)
constexpr size_t kSavedWords = 7, kEntryWord = 6;  // six registers, then the resume address
constexpr size_t kTopWords = 1;                    // at entry, the return address lies just below a 16-byte boundary
#else
constexpr size_t kSavedWords = 20, kEntryWord = 11;
constexpr size_t kTopWords = 2;
#endif

}  // namespace

void Stacks::open(unsigned worker, unsigned threads) {
  if (!begin_) {
    const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    void* memory = mmap(nullptr, kBytes + kStackBytes, PROT_NONE, flags, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    const uintptr_t aligned = (reinterpret_cast<uintptr_t>(memory) + kStackBytes - 1) / kStackBytes * kStackBytes;
    begin_ = reinterpret_cast<char*>(aligned);
  }
  if (threads <= opened_[worker]) return;
  char* first = begin_ + static_cast<size_t>(worker) * kWorkerThreads * kStackBytes;
  if (mprotect(first, threads * kStackBytes, PROT_READ | PROT_WRITE) != 0) throw std::bad_alloc();
  opened_[worker] = threads;
}

void* Stacks::start(unsigned worker, unsigned thread, void (*entry)()) const {
  // Each stack starts at a different offset within its slot; equal offsets would collide in the same cache sets.
  const size_t shift = thread * 17 % 256 * 64;
  char* slot = begin_ + (static_cast<size_t>(worker) * kWorkerThreads + thread) * kStackBytes;
  auto top = reinterpret_cast<uintptr_t*>(slot + kStackBytes - shift) - kTopWords;
  *top = 0;  // return address of entry, which never returns
  uintptr_t* saved = top - kSavedWords;
  for (size_t i = 0; i < kSavedWords; ++i) saved[i] = 0;
  saved[kEntryWord] = reinterpret_cast<uintptr_t>(entry);
  return saved;
}

}  // namespace cuda_on_cpu
