// Weights in a kernel's own order, kept between calls.
//
// A copy belongs to one storage at one version. It holds a reference to that storage, so its address cannot come back
// with other values in it; Tensor._version tells of in-place updates; and because edits through `.data` or numpy pass
// the version by, a few dozen elements spread over the weight are compared as well.
#pragma once
#include <array>
#include <functional>
#include <memory>

#include "common/torch_abi.h"
#include "cpu/memory.h"

namespace resnet_fused::cpu {

// What the copy was made for: one of these, and the numbers that its order depends on.
enum PackedKind : int64_t { kPackedDirect = 1, kPackedOneDnn, kPackedWinograd };
using PackedLayout = std::array<int64_t, 12>;

struct Packed {
  virtual ~Packed() = default;
  int64_t bytes = 0;
};

// 64-byte aligned memory, of what is lent to calls where the copy is not kept.
struct PackedBuffer final : Packed {
  PackedBuffer(int64_t size, bool keep);
  ~PackedBuffer() override;
  PackedBuffer(const PackedBuffer&) = delete;
  PackedBuffer& operator=(const PackedBuffer&) = delete;
  void* data = nullptr;
  std::unique_ptr<Loan> loan;
  // Engines that pad with zeros multiply them: only right while every weight is finite.
  bool finite = true;
};

// The copy for this weight and layout: the kept one if it is current, else make()'s, kept if `keep`. Any thread.
// current(packed) may refuse a copy for reasons of its own.
std::shared_ptr<const Packed> packed_weight(const Tensor& weight, const PackedLayout& layout, bool keep,
                                            const std::function<std::shared_ptr<const Packed>()>& make,
                                            const std::function<bool(const Packed&)>& current = nullptr);

void forget_packed(const Tensor& weight);
int64_t packed_bytes();

}  // namespace resnet_fused::cpu
