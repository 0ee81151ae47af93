#include "cpu/memory.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>

#include "cpu/direct.h"
#include "cpu/environment.h"
#include "cpu/fork_safe.h"

#if defined(__GLIBC__)
#include <malloc.h>
#endif
#if defined(__linux__)
#include <sys/mman.h>
#endif

// Available from torch 2.11; null in 2.10, where torch allocates every result.
extern "C" __attribute__((weak)) AOTITorchError
torch_from_blob(void* data, int64_t ndim, const int64_t* sizes, const int64_t* strides, int64_t storage_offset,
                int32_t dtype, int32_t device_type, int32_t device_index, AtenTensorHandle* out, int32_t layout,
                const uint8_t* metadata, int64_t metadata_size, void (*deleter)(void* data, void* ctx), void* ctx);

namespace resnet_fused::cpu {

namespace {

constexpr size_t kHugePage = 2 << 20;
constexpr size_t kLeast = 128 << 10;  // smaller blocks come from the heap, which keeps them

// A failure costs only speed.
void prefer_huge_pages([[maybe_unused]] void* data, [[maybe_unused]] size_t bytes) {
#if defined(__linux__)
  const uintptr_t begin = reinterpret_cast<uintptr_t>(data);
  const uintptr_t first = (begin + kHugePage - 1) / kHugePage * kHugePage,
                  end = (begin + bytes) / kHugePage * kHugePage;
  if (end > first) (void)madvise(reinterpret_cast<void*>(first), end - first, MADV_HUGEPAGE);
#endif
}

struct Block {
  void* data;
  size_t capacity;
};

// Free blocks, the most recently freed last.
class Pool {
 public:
  // Returns the smallest block that fits and is at most twice as large, else a new one.
  Block take(size_t bytes) {
    {
      std::lock_guard<ForkSafeMutex> lock(mutex_);
      auto best = free_.end();
      for (auto it = free_.begin(); it != free_.end(); ++it)
        if (it->capacity >= bytes && it->capacity <= 2 * bytes &&
            (best == free_.end() || it->capacity <= best->capacity))
          best = it;
      if (best != free_.end()) {
        const Block block = *best;
        free_.erase(best);
        kept_ -= block.capacity;
        use(block.capacity);
        return block;
      }
    }
    const size_t page = bytes < kHugePage ? kLeast : kHugePage;
    Block block{nullptr, (bytes + page - 1) / page * page};
    if (posix_memalign(&block.data, page < kHugePage ? 64 : page, block.capacity)) no_memory(bytes);
    prefer_huge_pages(block.data, block.capacity);
    std::lock_guard<ForkSafeMutex> lock(mutex_);
    use(block.capacity);
    return block;
  }

  void give_back(Block block) {
    std::lock_guard<ForkSafeMutex> lock(mutex_);
    free_.push_back(block);
    kept_ += block.capacity;
    used_ -= block.capacity;
    trim();
  }

  void release() {
    std::lock_guard<ForkSafeMutex> lock(mutex_);
    while (!free_.empty()) drop_oldest();
    most_ = used_;
  }

  bool takes(size_t bytes) {
    if (bytes < kLeast) return false;
    if (!configured_.load(std::memory_order_acquire)) configure();
    return limit_ > 0;
  }

 private:
  // Read on first use: an exception at load time could not be caught.
  void configure() {
    const auto asked = mebibytes_from_environment("RESNET_FUSED_CPU_POOL_MB");
    std::lock_guard<ForkSafeMutex> lock(mutex_);
    if (configured_) return;
    fixed_ = asked.has_value();
    limit_ = asked.value_or(limit_);
    configured_.store(true, std::memory_order_release);
  }

  void use(size_t bytes) {
    used_ += bytes;
    most_ = std::max(most_, used_);
    trim();
  }

  // A training step frees nearly all of its results before the next one begins, so free blocks may take up to
  // (peak - current) + limit.
  void trim() {
    const size_t may = fixed_ ? limit_ : limit_ + most_ - used_;
    while (kept_ > may) drop_oldest();
  }

  void drop_oldest() {
    kept_ -= free_.front().capacity;
    std::free(free_.front().data);
    free_.erase(free_.begin());
  }

  ForkSafeMutex mutex_;
  std::vector<Block> free_;
  size_t kept_ = 0, used_ = 0, most_ = 0;  // bytes: free, in use, peak in use
  std::atomic<bool> configured_{false};
  bool fixed_ = false;        // RESNET_FUSED_CPU_POOL_MB is set
  size_t limit_ = 384 << 20;  // bytes
};

// Never destroyed: tensors may outlive static destructors. Constructed at load: a fork could interrupt construction on
// the first call.
Pool& pool = *new Pool;

void give_back(void* data, void* capacity) { pool.give_back({data, reinterpret_cast<size_t>(capacity)}); }

}  // namespace

void no_memory(size_t bytes) {
  fail("resnet_fused: could not allocate ", bytes,
       " bytes for a result or a thread's workspace; try a smaller batch or ",
       "image, or torch.ops.resnet_fused.release_memory()");
}

Tensor output_buffer(IntView sizes, const Tensor& like, bool internal, bool channels_last) {
  const int64_t c = sizes[1], h = sizes[2], w = sizes[3];
  const size_t bytes = sizes[0] * c * h * w * like.element_size();
  if (!pool.takes(bytes) || !internal || !torch_from_blob)  // report an invalid limit in every case
    return aten_empty(sizes, like, channels_last);
  const Block block = pool.take(bytes);
  const int64_t nhwc[4] = {c * h * w, 1, w * c, c}, nchw[4] = {c * h * w, h * w, w, 1};
  AtenTensorHandle out = nullptr;
  const AOTITorchError code = torch_from_blob(block.data, 4, sizes.data(), channels_last ? nhwc : nchw, 0,
                                              to<int32_t>(from(scalar_type_of(like))), aoti_torch_device_type_cpu(),
                                              /*device_index=*/-1, &out, aoti_torch_layout_strided(), nullptr, 0,
                                              give_back, reinterpret_cast<void*>(block.capacity));
  if (code != AOTI_TORCH_SUCCESS) pool.give_back(block);
  check_shim(code, "a tensor over pooled memory");
  return Tensor(out);
}

Loan::Loan(size_t bytes) {
  if (pool.takes(bytes)) {
    const Block block = pool.take(bytes);
    data_ = block.data, capacity_ = block.capacity;
    return;
  }
  capacity_ = 0;
  if (posix_memalign(&data_, 64, std::max<size_t>(bytes, 64))) no_memory(bytes);
}

Loan::~Loan() {
  if (capacity_)
    pool.give_back({data_, capacity_});
  else
    std::free(data_);
}

void release_memory() {
  pool.release();
#if defined(__GLIBC__)
  malloc_trim(0);  // a freed block that came from the heap, not from the system, stays there until trimmed
#endif
}

}  // namespace resnet_fused::cpu
