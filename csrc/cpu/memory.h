// Memory of results: the pool.
//
// A fresh 100 MB activation is 25,000 page faults, or their worth in zeroed memory, before the first useful byte: as
// much time as a convolution. glibc returns blocks of that size to the system at every free, so large internal results
// come from a pool. Torch cannot resize a tensor over such memory, so visible results are torch's own allocations, from
// 4 MiB on in huge pages, which take a quarter of the time of small ones.
#pragma once
#include "common/problem.h"

namespace resnet_fused::cpu {

// A new dense tensor of like's dtype. `internal`: only this library sees it, so it may come from the pool.
Tensor output_buffer(IntView sizes, const Tensor& like, bool internal, bool channels_last = true);

// Whether a channels_last tensor of these sizes is copied on its way to that format: if not, it is itself the result.
inline bool is_copied(IntView sizes, bool channels_last) {
  return !channels_last && sizes[1] > 1 && sizes[2] * sizes[3] > 1;
}

// Memory for what does not outlive a call, aligned to 64 bytes: of the same kind where it is large.
class Loan {
 public:
  explicit Loan(size_t bytes);
  ~Loan();
  Loan(const Loan&) = delete;
  Loan& operator=(const Loan&) = delete;
  void* data() const { return data_; }

 private:
  void* data_;
  size_t capacity_;  // 0: not kept
};

// Returns unused memory to the system.
void release_memory();

}  // namespace resnet_fused::cpu
