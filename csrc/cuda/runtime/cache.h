// A bounded, thread-safe, allocation-free cache with exact keys.
#pragma once
#include <cstdint>
#include <cstring>
#include <mutex>
#include <type_traits>

namespace resnet_fused::cuda {

// Set-associative, kSets * kWays entries; a full set evicts its oldest entry. Keys are compared bytewise, so they must
// have no padding and a size that is a multiple of 8.
template <typename Key, typename Value, int kSets, int kWays = 4>
class ExactCache {
  static_assert(std::has_unique_object_representations_v<Key> && sizeof(Key) % 8 == 0);
  static_assert(std::is_trivially_copyable_v<Value>);

 public:
  // Returns the cached value of key, or caches what make() returns. Two threads may make the same value.
  template <typename Make>
  Value get(const Key& key, const Make& make) {
    Set& set = sets_[hash(key) % kSets];
    {
      const std::lock_guard<std::mutex> lock(set.mutex);
      for (int i = 0; i < set.used; ++i)
        if (!std::memcmp(&set.entries[i].key, &key, sizeof key)) return set.entries[i].value;
    }
    const Value value = make();
    const std::lock_guard<std::mutex> lock(set.mutex);
    set.entries[set.next] = {key, value};
    set.next = (set.next + 1) % kWays;
    if (set.used < kWays) ++set.used;
    return value;
  }

 private:
  struct Entry {
    Key key;
    Value value;
  };
  struct Set {
    std::mutex mutex;
    int used = 0, next = 0;
    Entry entries[kWays];
  };

  static uint64_t hash(const Key& key) {
    uint64_t words[sizeof(Key) / 8], h = 0;
    std::memcpy(words, &key, sizeof key);
    for (const uint64_t w : words) {
      h = (h ^ w) * 0x9e3779b97f4a7c15u;
      h ^= h >> 32;
    }
    return h;
  }

  Set sets_[kSets];
};

}  // namespace resnet_fused::cuda
