#include "cpu/digest.h"

#include <algorithm>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace resnet_fused::cpu {

namespace {

constexpr int kLanes = 8, kStripe = kLanes * 8;  // bytes per step
constexpr int kStripesOfBlock = 16;              // between two scrambles of the accumulators
constexpr int64_t kChunk = 256 << 10;            // bytes per task

// Arbitrary numbers: digits of pi.
constexpr uint64_t kStart[kLanes] = {0x243f6a8885a308d3, 0x13198a2e03707345, 0xa4093822299f31d1, 0x082efa98ec4e6c89,
                                     0x452821e638d01377, 0xbe5466cf34e90c6d, 0xc0ac29b7c97c50dd, 0x3f84d5b5b5470917};
constexpr uint64_t kPrime = 0x9e3779b1;

// A stripe's key depends on its position in the block, so swapped stripes change the digest; the scramble after each
// block does the same for blocks. 16 + 8 words: stripe s uses words s to s + 7.
struct Keys {
  uint64_t word[kStripesOfBlock + kLanes];
  constexpr Keys() : word() {
    uint64_t x = 0x9216d5d98979fb1b;
    for (uint64_t& w : word) {  // splitmix64 (Steele, Lea and Flood 2014)
      x += 0x9e3779b97f4a7c15;
      uint64_t z = x;
      z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
      z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
      w = z ^ (z >> 31);
    }
  }
};
constexpr Keys kKeys;

void add_stripes(Digest& acc, const unsigned char* p, int64_t stripes) {
  for (int64_t s = 0; s < stripes; ++s, p += kStripe) {
    uint64_t d[kLanes];
    std::memcpy(d, p, kStripe);
    const uint64_t* key = kKeys.word + s % kStripesOfBlock;
    for (int i = 0; i < kLanes; ++i) {
      const uint64_t k = d[i] ^ key[i];
      acc[i] += (k & 0xffffffff) * (k >> 32);
      acc[i ^ 1] += d[i];
    }
    if (s % kStripesOfBlock == kStripesOfBlock - 1)
      for (int i = 0; i < kLanes; ++i) acc[i] = (acc[i] ^ (acc[i] >> 47) ^ key[i]) * kPrime;
  }
}

#if defined(__x86_64__)
// The AVX2 version, bit-identical.
__attribute__((target("avx2"))) void add_stripes_avx2(Digest& out, const unsigned char* p, int64_t stripes) {
  __m256i acc[2], prime = _mm256_set1_epi64x(kPrime);
  for (int i = 0; i < 2; ++i) acc[i] = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(&out[4 * i]));
  for (int64_t s = 0; s < stripes; ++s, p += kStripe) {
    const uint64_t* key = kKeys.word + s % kStripesOfBlock;
    _mm_prefetch(reinterpret_cast<const char*>(p + 1024), _MM_HINT_T0);
    for (int i = 0; i < 2; ++i) {
      const __m256i d = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p) + i);
      const __m256i k = _mm256_xor_si256(d, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(key + 4 * i)));
      const __m256i product = _mm256_mul_epu32(k, _mm256_srli_epi64(k, 32));
      acc[i] = _mm256_add_epi64(acc[i], _mm256_add_epi64(product, _mm256_shuffle_epi32(d, 0x4e)));
    }
    if (s % kStripesOfBlock == kStripesOfBlock - 1)
      for (int i = 0; i < 2; ++i) {
        const __m256i k = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(key + 4 * i));
        const __m256i a = _mm256_xor_si256(_mm256_xor_si256(acc[i], _mm256_srli_epi64(acc[i], 47)), k);
        const __m256i high = _mm256_slli_epi64(_mm256_mul_epu32(_mm256_srli_epi64(a, 32), prime), 32);
        acc[i] = _mm256_add_epi64(_mm256_mul_epu32(a, prime), high);
      }
  }
  for (int i = 0; i < 2; ++i) _mm256_storeu_si256(reinterpret_cast<__m256i*>(&out[4 * i]), acc[i]);
}
#endif

Digest digest_of_bytes(const unsigned char* p, int64_t bytes) {
  Digest acc;
  std::memcpy(acc.data(), kStart, sizeof(kStart));
  auto add = add_stripes;
#if defined(__x86_64__)
  static const bool avx2 = __builtin_cpu_supports("avx2");
  if (avx2) add = add_stripes_avx2;
#endif
  add(acc, p, bytes / kStripe);
  if (const int64_t rest = bytes % kStripe) {
    unsigned char last[kStripe] = {};
    std::memcpy(last, p + bytes - rest, rest);
    add(acc, last, 1);
  }
  return acc;
}

}  // namespace

Digest digest_of(const Tensor& t) {
  const auto* p = static_cast<const unsigned char*>(t.const_data_ptr());
  const int64_t bytes = span_bytes(t), chunks = (bytes + kChunk - 1) / kChunk;
  if (chunks <= 1) return digest_of_bytes(p, bytes);
  std::vector<Digest> parts(chunks);
  torch::stable::parallel_for(0, chunks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      parts[i] = digest_of_bytes(p + i * kChunk, std::min(kChunk, bytes - i * kChunk));
  });
  return digest_of_bytes(reinterpret_cast<const unsigned char*>(parts.data()), chunks * kStripe);
}

Digest sample_of(const Tensor& t) {
  constexpr int64_t kEnd = 4 << 10;
  const auto* p = static_cast<const unsigned char*>(t.const_data_ptr());
  const int64_t bytes = span_bytes(t), end = std::min(bytes, kEnd);
  const std::array<Digest, 2> ends{digest_of_bytes(p, end), digest_of_bytes(p + bytes - end, end)};
  return digest_of_bytes(reinterpret_cast<const unsigned char*>(ends.data()), sizeof(ends));
}

}  // namespace resnet_fused::cpu
