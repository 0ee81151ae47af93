#include "cpu/packed_cache.h"

#include <algorithm>
#include <cstdlib>
#include <list>
#include <mutex>
#include <unordered_map>
#include <unordered_set>

#include "common/problem.h"
#include "cpu/digest.h"
#include "cpu/direct.h"
#include "cpu/environment.h"
#include "cpu/fork_safe.h"

namespace resnet_fused::cpu {

namespace {

constexpr int64_t kUntracked = -1;  // the version of an inference tensor, which has none
constexpr int64_t kDefaultLimit = int64_t{4} << 30;
// oneDNN's order depends on the size of the image and the batch: a weight that meets many keeps the last few.
constexpr size_t kMostCopiesOfAWeight = 4;

int64_t version_of(const Tensor& t) { return aten_is_inference(t) ? kUntracked : aten_version(t); }

// Everything but its bytes that says which weight a copy is of.
struct Key {
  const void* address;
  PackedLayout layout;
  ScalarType dtype;
  Ints sizes, strides;

  Key(const Tensor& w, const PackedLayout& l)
      : address(w.const_data_ptr()),
        layout(l),
        dtype(w.scalar_type()),
        sizes(w.sizes().begin(), w.sizes().end()),
        strides(w.strides().begin(), w.strides().end()) {}
  bool operator==(const Key& o) const {
    return address == o.address && layout == o.layout && dtype == o.dtype && sizes == o.sizes && strides == o.strides;
  }
};

struct Entry {
  Key key;
  Digest digest;
  std::shared_ptr<const Packed> packed;
};
// A frozen weight: its state when its owner promised not to change it.
struct Frozen {
  int64_t version;
  Digest sample, digest;
};

using Entries = std::list<Entry>;  // the one used last at the front

class Cache {
 public:
  // The copy and the digest that it was made of, or nothing.
  std::optional<std::pair<std::shared_ptr<const Packed>, Digest>> find(const Key& key) {
    std::lock_guard<ForkSafeMutex> lock(mutex_);
    const auto it = place_of(key);
    if (it == by_address_.end()) return std::nullopt;
    entries_.splice(entries_.begin(), entries_, it->second);
    return std::pair(it->second->packed, it->second->digest);
  }

  // Not of a weight that was frozen or thawed since its bytes were looked at.
  void insert(const Key& key, const Digest& digest, std::shared_ptr<const Packed> packed, bool frozen) {
    const int64_t limit = mebibytes_from_environment("RESNET_FUSED_CPU_PACKED_MB").value_or(kDefaultLimit);
    Entries gone;  // destroyed after the lock is released, as everywhere here
    std::lock_guard<ForkSafeMutex> lock(mutex_);
    if (const auto it = place_of(key); it != by_address_.end()) remove(it, gone);
    if (packed->bytes > limit || frozen_.count(key.address) != frozen) return;
    Entries fresh;
    fresh.push_front({key, digest, std::move(packed)});
    by_address_.emplace(key.address, fresh.begin());
    bytes_ += fresh.front().packed->bytes;
    entries_.splice(entries_.begin(), fresh);
    if (by_address_.count(key.address) > kMostCopiesOfAWeight) {
      const auto oldest = std::find_if(entries_.rbegin(), entries_.rend(),
                                       [&](const Entry& e) { return e.key.address == key.address; });
      remove(place_of(oldest->key), gone);
    }
    while (bytes_ > limit) remove(place_of(entries_.back().key), gone);
  }

  void forget(const void* address) {
    Entries gone;
    std::lock_guard<ForkSafeMutex> lock(mutex_);
    frozen_.erase(address);
    for (auto it = by_address_.find(address); it != by_address_.end(); it = by_address_.find(address)) remove(it, gone);
  }

  // True for the first to ask since the last unwatch().
  bool is_new_watch(const void* address) {
    std::lock_guard<ForkSafeMutex> lock(mutex_);
    return watched_.insert(address).second;
  }

  void unwatch(const void* address) {
    std::lock_guard<ForkSafeMutex> lock(mutex_);
    watched_.erase(address);
  }

  void forget_all() {
    Entries gone;
    std::lock_guard<ForkSafeMutex> lock(mutex_);
    by_address_.clear();
    gone.swap(entries_);
    bytes_ = 0;
  }

  void freeze(const void* address, const Frozen& frozen) {
    std::lock_guard<ForkSafeMutex> lock(mutex_);
    frozen_[address] = frozen;
  }

  void thaw(const void* address) {
    std::lock_guard<ForkSafeMutex> lock(mutex_);
    frozen_.erase(address);
  }

  std::optional<Frozen> frozen(const void* address) {
    std::lock_guard<ForkSafeMutex> lock(mutex_);
    const auto it = frozen_.find(address);
    if (it == frozen_.end()) return std::nullopt;
    return it->second;
  }

  int64_t bytes() {
    std::lock_guard<ForkSafeMutex> lock(mutex_);
    return bytes_;
  }

 private:
  using ByAddress = std::unordered_multimap<const void*, Entries::iterator>;

  ByAddress::iterator place_of(const Key& key) {
    auto [it, end] = by_address_.equal_range(key.address);
    it = std::find_if(it, end, [&](const auto& place) { return place.second->key == key; });
    return it == end ? by_address_.end() : it;
  }

  void remove(ByAddress::iterator place, Entries& gone) {
    bytes_ -= place->second->packed->bytes;
    gone.splice(gone.end(), entries_, place->second);
    by_address_.erase(place);
  }

  ForkSafeMutex mutex_;
  Entries entries_;
  ByAddress by_address_;                            // a weight has at most kMostCopiesOfAWeight
  std::unordered_map<const void*, Frozen> frozen_;  // by address, too
  std::unordered_set<const void*> watched_;         // whose storage's end will be reported
  int64_t bytes_ = 0;
};

// Never destroyed: at exit, threads and torch's own statics may outlive ours. Made at load, not at the first call,
// which a fork could interrupt.
Cache& cache = *new Cache;

// Asks Python to report the end of the weight's storage, through the dispatcher: the stable ABI has no weak reference.
// Without Python there is no such report; then only the limit bounds the cache.
void watch(const Tensor& weight) {
  const void* address = weight.const_data_ptr();
  if (!cache.is_new_watch(address)) return;
  std::array<StableIValue, 2> stack{from(weight), from(reinterpret_cast<int64_t>(address))};
  if (torch_call_dispatcher("resnet_fused::watch_packed", "", stack.data(), TORCH_ABI_VERSION) != AOTI_TORCH_SUCCESS)
    cache.unwatch(address);
}

// For a few elements of a large storage, digesting everything between them does not pay.
bool worth_keeping(const Tensor& weight) {
  return weight.numel() > 0 && span_bytes(weight) <= 2 * weight.numel() * static_cast<int64_t>(weight.element_size());
}

// Whether the weight is to be taken for what it was when it was frozen. Throws where it is seen to be another one.
bool is_frozen(const Tensor& weight) {
  const void* address = weight.const_data_ptr();
  const std::optional<Frozen> frozen = cache.frozen(address);
  if (!frozen) return false;
  const int64_t version = version_of(weight);
  if (version != frozen->version) {
    // Of a view that counts for itself, such as weight.data, a version says nothing.
    RF_CHECK(digest_of(weight) == frozen->digest, "a frozen weight of shape ", to_string(weight.sizes()),
             " has changed: its version is ", version, " and was ", frozen->version,
             " when resnet_fused.freeze was called; call resnet_fused.unfreeze(model), or ",
             "resnet_fused.freeze(model) again");
    return false;
  }
  if (sample_of(weight) == frozen->sample) return true;
  // Another weight, at the address of one whose memory was freed while its storage lives on.
  cache.thaw(address);
  return false;
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
  if (!keep || !worth_keeping(weight)) return make();
  const Key key(weight, layout);
  const bool frozen = is_frozen(weight);
  const auto kept = cache.find(key);
  if (kept && frozen && (!current || current(*kept->first))) return kept->first;
  const Digest digest = digest_of(weight);
  if (kept && kept->second == digest && (!current || current(*kept->first))) return kept->first;
  auto packed = make();
  // Edited meanwhile, by another thread or process: right for this call as anything else is, but of unknown bytes.
  if (digest_of(weight) != digest) return packed;
  // Two threads may both have packed; the later one's copy stays.
  watch(weight);
  cache.insert(key, digest, packed, frozen);
  return packed;
}

void forget_packed(const Tensor& weight) { cache.forget(weight.const_data_ptr()); }
void forget_all_packed() { cache.forget_all(); }

void storage_ended(int64_t address) {
  const void* p = reinterpret_cast<const void*>(address);
  cache.unwatch(p);
  cache.forget(p);
}

void freeze_packed(const Tensor& weight) {
  RF_CHECK(weight.is_cpu(), "freeze_packed: a weight of shape ", to_string(weight.sizes()),
           " is not on the CPU, where weights are packed; leave it out");
  check_allocated("freeze_packed", "", "a weight", weight);
  watch(weight);
  cache.forget(weight.const_data_ptr());  // its copy was not compared since the last edit
  cache.freeze(weight.const_data_ptr(), {version_of(weight), sample_of(weight), digest_of(weight)});
}

int64_t packed_bytes() { return cache.bytes(); }

}  // namespace resnet_fused::cpu
