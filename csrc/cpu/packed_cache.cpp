#include "cpu/packed_cache.h"

#include <algorithm>
#include <cstdlib>
#include <list>
#include <mutex>
#include <unordered_map>
#include <unordered_set>

#include "common/problem.h"
#include "cpu/deferred.h"
#include "cpu/direct.h"
#include "cpu/environment.h"
#include "cpu/fork_safe.h"

namespace resnet_fused::cpu {

namespace {

constexpr int64_t kUntracked = -1;  // stands for the version of an inference tensor, which has none
constexpr int64_t kDefaultLimit = int64_t{4} << 30;

int64_t limit_bytes() { return mebibytes_from_environment("RESNET_FUSED_CPU_PACKED_MB").value_or(kDefaultLimit); }
// oneDNN's layout depends on image and batch size, so a weight keeps copies for the last few.
constexpr size_t kMostCopiesOfAWeight = 4;

int64_t version_of(const Tensor& t) { return aten_is_inference(t) ? kUntracked : aten_version(t); }

// Identifies a weight and layout by everything except the weight's bytes.
struct Key {
  const void* address;
  PackedLayout layout;
  ScalarType dtype;
  Ints sizes, strides;

  Key(const Tensor& w, const PackedLayout& l)
      : address(w.const_data_ptr()),
        layout(l),
        dtype(scalar_type_of(w)),
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
// A frozen weight's state when freeze was called.
struct Frozen {
  int64_t version;
  Digest sample, digest;
};

using Entries = std::list<Entry>;  // most recently used first

class Cache {
 public:
  // The cached copy and the digest of the weight that it was made from, or empty.
  std::optional<std::pair<std::shared_ptr<const Packed>, Digest>> find(const Key& key) {
    std::lock_guard<ForkSafeMutex> lock(mutex_);
    const auto it = place_of(key);
    if (it == by_address_.end()) return std::nullopt;
    entries_.splice(entries_.begin(), entries_, it->second);
    return std::pair(it->second->packed, it->second->digest);
  }

  // Does nothing if the weight was frozen or thawed since it was digested.
  void insert(const Key& key, const Digest& digest, std::shared_ptr<const Packed> packed, bool frozen) {
    const int64_t limit = limit_bytes();
    Entries gone;  // destroyed after the lock is released, here and below
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

  // True for the first call with this address since its last unwatch().
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
  std::unordered_map<const void*, Frozen> frozen_;  // also by address
  std::unordered_set<const void*> watched_;         // storages whose end will be reported
  int64_t bytes_ = 0;
};

// Never destroyed: at exit, threads and torch's own statics may outlive ours. Constructed at load: a fork could
// interrupt construction on the first call.
Cache& cache = *new Cache;

// Registers a Python weak reference to the weight's storage through the dispatcher: the stable ABI has none. Without
// Python nothing reports the storage's end, and only the size limit bounds the cache.
void watch(const Tensor& weight) {
  const void* address = weight.const_data_ptr();
  if (!cache.is_new_watch(address)) return;
  const WithoutDeferring here;
  std::array<StableIValue, 2> stack{from(weight), from(reinterpret_cast<int64_t>(address))};
  if (torch_call_dispatcher("resnet_fused::watch_packed", "", stack.data(), TORCH_ABI_VERSION) != AOTI_TORCH_SUCCESS)
    cache.unwatch(address);
}

// Not worth it for a few elements of a large storage: the digest covers all bytes between them.
bool worth_keeping(const Tensor& weight) {
  return weight.numel() > 0 && span_bytes(weight) <= 2 * weight.numel() * static_cast<int64_t>(weight.element_size());
}

}  // namespace

bool weight_is_frozen(const Tensor& weight) {
  const void* address = weight.const_data_ptr();
  const std::optional<Frozen> frozen = cache.frozen(address);
  if (!frozen) return false;
  const int64_t version = version_of(weight);
  if (version != frozen->version) {
    // The version of a view with its own counter, such as weight.data, proves nothing, so compare the contents.
    RF_CHECK(digest_of(weight) == frozen->digest, "a frozen weight of shape ", to_string(weight.sizes()),
             " has changed: its version is ", version, " and was ", frozen->version,
             " when resnet_fused.freeze was called; call resnet_fused.unfreeze(model), or ",
             "resnet_fused.freeze(model) again");
    return false;
  }
  if (sample_of(weight) == frozen->sample) return true;
  // Another weight at the same address: the frozen one's memory was freed while its storage lives on.
  cache.thaw(address);
  return false;
}

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
                                            const std::function<std::shared_ptr<const Packed>(bool)>& make,
                                            const std::function<bool(const Packed&)>& current,
                                            std::optional<bool> is_frozen, std::optional<Digest>* unverified) {
  if (!keep || !worth_keeping(weight) || limit_bytes() == 0) return make(false);
  const Key key(weight, layout);
  const bool frozen = is_frozen ? *is_frozen : weight_is_frozen(weight);
  const auto kept = cache.find(key);
  if (kept && (frozen || unverified) && (!current || current(*kept->first))) {
    if (!frozen) *unverified = kept->second;
    return kept->first;
  }
  const Digest digest = digest_of(weight);
  if (kept && kept->second == digest && (!current || current(*kept->first))) return kept->first;
  auto packed = make(true);
  // Edited during packing by another thread or process: usable for this call, but its digest is unknown, so not cached.
  if (digest_of(weight) != digest) return packed;
  // If two threads pack the same weight, the later copy stays.
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
  cache.forget(weight.const_data_ptr());  // the cached copy was not compared since the last edit
  cache.freeze(weight.const_data_ptr(), {version_of(weight), sample_of(weight), digest_of(weight)});
}

int64_t packed_bytes() { return cache.bytes(); }

}  // namespace resnet_fused::cpu
