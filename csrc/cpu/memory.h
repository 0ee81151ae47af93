// Memory for results: the pool.
//
// A fresh 100 MB activation costs 25,000 page faults, or the equivalent zeroing, before the first useful byte: as much
// time as a convolution. glibc returns blocks of that size to the system on every free, so large internal results come
// from a pool, in huge pages. torch cannot resize a tensor over such memory, so visible results are torch's own
// allocations. They stay in small pages: malloc returns them, and on one virtual machine the next touch of a huge page
// took milliseconds.
#pragma once
#include "common/problem.h"

namespace resnet_fused::cpu {

// A new dense tensor with like's dtype. `internal`: only this library sees it, so it may come from the pool.
Tensor output_buffer(IntView sizes, const Tensor& like, bool internal, bool channels_last = true);

// Whether converting a tensor of these sizes to channels_last copies it; if not, the conversion returns the tensor
// itself.
inline bool is_copied(IntView sizes, bool channels_last) {
  return !channels_last && sizes[1] > 1 && sizes[2] * sizes[3] > 1;
}

// Scratch memory for one call, aligned to 64 bytes; large blocks come from the pool.
class Loan {
 public:
  explicit Loan(size_t bytes);
  ~Loan();
  Loan(const Loan&) = delete;
  Loan& operator=(const Loan&) = delete;
  void* data() const { return data_; }

 private:
  void* data_;
  size_t capacity_;  // 0: not from the pool
};

// Returns unused memory to the system.
void release_memory();

}  // namespace resnet_fused::cpu
