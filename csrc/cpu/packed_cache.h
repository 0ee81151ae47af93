// Cache of weights packed in a kernel's own layout.
//
// A packed copy is used only while the digest of the weight's bytes, computed on every call, is unchanged. So edits by
// any means (`.data`, numpy, another process, a fused optimiser) and reused addresses are safe. The cache holds no
// tensor: a weight can be freed, resized or swapped as if it had no copy, and its copies are dropped with its storage
// (watched by resnet_fused/ops.py). The cache keeps at most four copies per weight, and beyond
// RESNET_FUSED_CPU_PACKED_MB evicts the least recently used.
//
// A frozen weight is not digested: its owner has promised not to change it. Its version and a sample of its bytes are
// compared; the sample detects another weight at the same address.
#pragma once
#include <array>
#include <functional>
#include <memory>

#include "common/torch_abi.h"
#include "cpu/digest.h"
#include "cpu/memory.h"

namespace resnet_fused::cpu {

// The layout of a copy: one of these, plus the numbers that it depends on.
enum PackedKind : int64_t { kPackedDirect = 1, kPackedOneDnn, kPackedWinograd, kPackedGrouped };
using PackedLayout = std::array<int64_t, 12>;

struct Packed {
  virtual ~Packed() = default;
  int64_t bytes = 0;
};

// 64-byte aligned memory; a Loan if the copy is not kept.
struct PackedBuffer final : Packed {
  PackedBuffer(int64_t size, bool keep);
  ~PackedBuffer() override;
  PackedBuffer(const PackedBuffer&) = delete;
  PackedBuffer& operator=(const PackedBuffer&) = delete;
  void* data = nullptr;
  std::unique_ptr<Loan> loan;
  // Engines that multiply zero padding are exact only if every weight is finite.
  bool finite = true;
};

// The packed copy of this weight in this layout: the cached one if current, else the result of make(kept), cached if
// `keep` and the limit is not 0. Thread-safe. current(packed) may reject a cached copy for other reasons. frozen:
// weight_is_frozen(weight), if known. unverified: if given, a cached copy of a weight that is not frozen is returned
// without comparing; the caller must compare its digest, returned there, with digest_of(weight) before using the copy.
// Throws if a frozen weight's version has changed.
std::shared_ptr<const Packed> packed_weight(const Tensor& weight, const PackedLayout& layout, bool keep,
                                            const std::function<std::shared_ptr<const Packed>(bool kept)>& make,
                                            const std::function<bool(const Packed&)>& current = nullptr,
                                            std::optional<bool> frozen = {},
                                            std::optional<Digest>* unverified = nullptr);

// No lock is held while copies are destroyed or torch is called: a destructor may re-enter the cache.
void forget_packed(const Tensor& weight);
void forget_all_packed();
void storage_ended(int64_t address);  // called when a storage watched through watch_packed ends
void freeze_packed(const Tensor& weight);
// Whether the weight is frozen and unchanged since. Throws if its version and its contents have changed.
bool weight_is_frozen(const Tensor& weight);
int64_t packed_bytes();

}  // namespace resnet_fused::cpu
