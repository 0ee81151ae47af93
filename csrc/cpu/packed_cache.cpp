#include "cpu/packed_cache.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <unordered_map>

#include "cpu/direct.h"
#include "cpu/dispatch.h"

namespace resnet_fused::cpu {

namespace {

constexpr int64_t kUntracked = -1;  // the version of an inference tensor, which has none
constexpr int64_t kUnknown = -2;    // not asked yet
constexpr int kSamples = 32;

int64_t element_size(const Tensor& t) {
  return dispatch(t.scalar_type(), [](auto zero) -> int64_t { return sizeof(zero); });
}

// Elements spread evenly over the storage that the weight spans, as raw bits.
std::array<uint64_t, kSamples> samples_of(const Tensor& weight) {
  std::array<uint64_t, kSamples> out{};
  const int64_t size = element_size(weight);
  int64_t span = 1;
  for (int64_t d = 0; d < weight.dim(); ++d) span += (weight.size(d) - 1) * weight.stride(d);
  const char* p = static_cast<const char*>(weight.const_data_ptr());
  for (int i = 0; i < kSamples; ++i) std::memcpy(&out[i], p + (span - 1) * i / (kSamples - 1) * size, size);
  return out;
}

int64_t version_of(const Tensor& t) { return aten_is_inference(t) ? kUntracked : aten_version(t); }

struct Entry {
  Tensor weight;  // keeps the storage alive, so that its address stays its own
  PackedLayout layout;
  Ints sizes, strides;
  int64_t version;
  std::array<uint64_t, kSamples> samples;
  std::shared_ptr<const Packed> packed;

  bool is_for(const Tensor& w, const PackedLayout& l) const {
    return layout == l && weight.scalar_type() == w.scalar_type() &&
           std::equal(sizes.begin(), sizes.end(), w.sizes().begin(), w.sizes().end()) &&
           std::equal(strides.begin(), strides.end(), w.strides().begin(), w.strides().end());
  }
  static Ints sizes_of(const Tensor& w) { return Ints(w.sizes().begin(), w.sizes().end()); }
  static Ints strides_of(const Tensor& w) { return Ints(w.strides().begin(), w.strides().end()); }
};

std::mutex mutex;
// By address; a weight has one entry a layout, which is one or two.
std::unordered_multimap<const void*, Entry>& entries() {
  // never destroyed: at exit, threads and torch's own statics may outlive ours
  static auto* map = new std::unordered_multimap<const void*, Entry>;
  return *map;
}

}  // namespace

PackedBuffer::PackedBuffer(int64_t size, bool keep) {
  if (!keep) {
    loan = std::make_unique<Loan>(static_cast<size_t>(size));
    data = loan->data();
  } else if (posix_memalign(&data, 64, static_cast<size_t>(size > 0 ? size : 64))) {
    no_memory(static_cast<size_t>(size));
  }
  bytes = size;
}

PackedBuffer::~PackedBuffer() {
  if (!loan) std::free(data);
}

std::shared_ptr<const Packed> packed_weight(const Tensor& weight, const PackedLayout& layout, bool keep,
                                            const std::function<std::shared_ptr<const Packed>()>& make,
                                            const std::function<bool(const Packed&)>& current) {
  if (!keep) return make();
  const void* address = weight.const_data_ptr();
  int64_t version = kUnknown;
  const auto samples = samples_of(weight);
  {
    std::lock_guard<std::mutex> lock(mutex);
    auto [it, end] = entries().equal_range(address);
    for (; it != end; ++it) {
      const Entry& e = it->second;
      if (!e.is_for(weight, layout) || e.samples != samples) continue;
      if (version == kUnknown) version = version_of(weight);
      if (e.version == version && (!current || current(*e.packed))) return e.packed;
    }
  }
  if (version == kUnknown) version = version_of(weight);
  // Made outside the lock: two threads may both pack, and the later one's copy stays.
  auto packed = make();
  std::lock_guard<std::mutex> lock(mutex);
  auto [it, end] = entries().equal_range(address);
  while (it != end) it = it->second.is_for(weight, layout) ? entries().erase(it) : std::next(it);
  entries().emplace(
      address, Entry{weight, layout, Entry::sizes_of(weight), Entry::strides_of(weight), version, samples, packed});
  return packed;
}

void forget_packed(const Tensor& weight) {
  std::lock_guard<std::mutex> lock(mutex);
  entries().erase(weight.const_data_ptr());
}

int64_t packed_bytes() {
  std::lock_guard<std::mutex> lock(mutex);
  int64_t bytes = 0;
  for (const auto& [address, entry] : entries()) bytes += entry.packed->bytes;
  return bytes;
}

}  // namespace resnet_fused::cpu
