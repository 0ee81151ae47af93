// Weights in a kernel's own order, kept between calls.
//
// A packed copy is used only while the digest of the weight's bytes, taken on every call, is unchanged. So edits by any
// means
// (`.data`, numpy, another process, a fused optimiser) and reused addresses are safe. The cache holds no tensor: a
// weight can be freed, resized or swapped as if there were no copy, and its copies go when its storage does
// (resnet_fused/ops.py watches). What is left is bounded: of one weight the last four copies are kept, and beyond
// RESNET_FUSED_CPU_PACKED_MB those used least recently go first.
//
// A frozen weight's digest is not taken: its owner has promised not to change it. Its version is compared, and a sample
// of its bytes, by which another weight at its address is told from it.
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
// current(packed) may refuse a copy for reasons of its own. Throws where a frozen weight's version has moved.
std::shared_ptr<const Packed> packed_weight(const Tensor& weight, const PackedLayout& layout, bool keep,
                                            const std::function<std::shared_ptr<const Packed>()>& make,
                                            const std::function<bool(const Packed&)>& current = nullptr);

// No lock is held while copies are destroyed or torch is called: a destructor may come back here.
void forget_packed(const Tensor& weight);
void forget_all_packed();
void storage_ended(int64_t address);  // what watch_packed is to report
void freeze_packed(const Tensor& weight);
int64_t packed_bytes();

}  // namespace resnet_fused::cpu
