// Packs filters for the direct convolution (DirectKernels::pack): channel blocks, each [R][values of a kernel row /
// kPack][vectors][kPack / kPair][kLanes][kPair], with zeros for missing channels. Training packs at every step, so
// dense filters are transposed in registers, kLanes filters by kLanes values at a time, and adjacent ones, as those of
// an input gradient, are loaded kLanes filters at a time.
#pragma once
#include "cpu/simd/direct_layout.h"

namespace resnet_fused::cpu::simd::direct {
namespace {

// The filters of one vector of output channels.
template <typename A>
struct Filters {
  const typename A::Elem* from;
  int64_t step;  // elements from a filter to the next
  int count;     // that exist, at most kLanes
  int c, r, s;
};

// A vector's place in a channel block.
template <typename A>
class Place {
 public:
  using Operand = typename A::Operand;
  // Channels that one instruction multiplies and adds in a lane.
  static constexpr int kPair = A::kPack < 2 ? A::kPack : 2;
  static constexpr int kStep = A::V::kLanes * A::kPack;  // operands of a vector in a step

  Place(Operand* block, int vectors, int vector) : to_(block + vector * kStep), stride_(int64_t{vectors} * kStep) {}

  // Where value v of a filter, or its pair, begins; v counts from the first kernel row on.
  Operand* of(int64_t v) const { return to_ + v / A::kPack * stride_ + v % A::kPack / kPair * (A::V::kLanes * kPair); }
  // From a value, or pair, to the next of kLanes that begin at a multiple of kLanes.
  int64_t step() const { return A::kPack <= kPair ? stride_ : A::V::kLanes * kPair; }

 private:
  Operand* to_;
  int64_t stride_;
};

// Filters of any strides, one value at a time. Returns false if a value is not finite.
template <typename A>
bool pack_values(const Filters<A>& f, const int64_t strides[4], const Place<A>& place) {
  using Operand = typename A::Operand;
  constexpr int kPair = Place<A>::kPair;
  const int values = row_values<A>(f.c, f.s), per_tap = patches<A>(f.c, f.s) ? f.c : values / f.s;
  bool finite = true;
  for (int i = 0; i < f.r; ++i)
    for (int value = 0; value < values; ++value) {
      const int tap = value / per_tap, ch = value % per_tap;
      Operand* to = place.of(int64_t{i} * values + value) + value % kPair;
      for (int kk = 0; kk < A::V::kLanes; ++kk, to += kPair) {
        const bool exists = kk < f.count && tap < f.s && ch < f.c;
        const auto v =
            exists ? f.from[kk * f.step + ch * strides[1] + i * strides[2] + tap * strides[3]] : typename A::Elem(0);
        finite &= __builtin_isfinite(A::value(v)) != 0;
        *to = operand<A>(v);
      }
    }
  return finite;
}

// Loads a register from value e on of every filter with load(pointer), and transposes them.
template <typename A, typename Load>
inline __attribute__((always_inline)) void transposed(const Filters<A>& f, int64_t e, const Load& load,
                                                      typename A::V::Reg (&rows)[A::V::kLanes]) {
  using V = typename A::V;
  const auto* from = f.from + e;
  const auto read = [&](int i) {
    const auto* p = from + i * f.step;
    rows[i] = load(p);
    if constexpr (V::kLinesAhead > 0) __builtin_prefetch(p + V::kLinesAhead * kCacheLine / sizeof *p);
  };
  if (f.count == V::kLanes) {
#pragma GCC unroll 16
    for (int i = 0; i < V::kLanes; ++i) read(i);
  } else {
#pragma GCC unroll 16
    for (int i = 0; i < V::kLanes; ++i) {
      rows[i] = V::zero();
      if (i < f.count) read(i);
    }
  }
  V::transpose(rows);
}

// Dense filters whose values are operands of their own (kPack == 1).
template <typename A>
bool pack_singles(const Filters<A>& f, bool channels_inner, const Place<A>& place) {
  using V = typename A::V;
  const int taps = f.r * f.s;
  const int64_t values = int64_t{taps} * f.c;
  typename V::Flags bad = V::no_flags();
  int64_t channel = 0, tap = 0;  // of the next value, if taps are inner
  for (int64_t e = 0; e < values; e += V::kLanes) {
    const int count = values - e < V::kLanes ? static_cast<int>(values - e) : V::kLanes;
    typename V::Reg rows[V::kLanes];
    transposed<A>(
        f, e,
        [&](const typename A::Elem* p) {
          const typename V::Reg v = A::load(p, V::first(count));
          bad |= V::not_finite(v);
          return v;
        },
        rows);
    for (int j = 0; j < count; ++j) {
      V::store(place.of(channels_inner ? e + j : tap * f.c + channel), rows[j]);
      if (++tap == taps) tap = 0, ++channel;
    }
  }
  return !V::any(bad);
}

// Packs `count` pairs of channels, at most kLanes, from pair `at` on, of filters whose channels are adjacent. `largest`
// collects the bits of magnitudes.
template <typename A>
inline __attribute__((always_inline)) void pack_some_pairs(const Filters<A>& f, const Place<A>& place, int64_t at,
                                                           int count, typename A::V::Reg& largest) {
  using V = typename A::V;
  typename V::Reg rows[V::kLanes];
  const auto load = [&](const uint16_t* p) {
    const auto v = A::load_pairs(p, V::first(count));
    largest = A::larger_pairs(largest, v);
    return v;
  };
  transposed<A>(f, 2 * at, load, rows);
  auto* to = place.of(2 * at);
  for (int i = 0; i < count; ++i, to += place.step()) A::store_pairs(to, rows[i]);
}

// Dense filters whose values are multiplied in pairs of channels; C is even.
template <typename A>
bool pack_pairs(const Filters<A>& f, bool channels_inner, const Place<A>& place) {
  using V = typename A::V;
  const int taps = f.r * f.s;
  typename V::Reg rows[V::kLanes], largest = V::zero();  // bits of magnitudes
  if (channels_inner) {
    const int64_t pairs = int64_t{taps} * f.c / 2;
    for (int64_t at = 0; at < pairs; at += V::kLanes) {
      const int count = pairs - at < V::kLanes ? static_cast<int>(pairs - at) : V::kLanes;
      pack_some_pairs<A>(f, place, at, count, largest);
    }
    return A::pairs_are_finite(largest);
  }
  // A tap's values for two channels are `taps` apart.
  for (int c = 0; c < f.c; c += 2)
    for (int tap = 0; tap < taps; tap += V::kLanes) {
      const int count = taps - tap < V::kLanes ? taps - tap : V::kLanes;
      const auto load = [&](const uint16_t* p) {
        const auto v = A::load_pairs(p, p + taps, V::first(count));
        largest = A::larger_pairs(largest, v);
        return v;
      };
      transposed<A>(f, int64_t{c} * taps + tap, load, rows);
      for (int i = 0; i < count; ++i) A::store_pairs(place.of(int64_t{tap + i} * f.c + c), rows[i]);
    }
  return A::pairs_are_finite(largest);
}

// Adjacent filters (step == 1): a value, or pair, of kLanes filters is one load. C is even if values are in pairs.
template <typename A>
bool pack_adjacent(const Filters<A>& f, const int64_t strides[4], const Place<A>& place) {
  using V = typename A::V;
  constexpr int kPair = Place<A>::kPair;
  const int values = row_values<A>(f.c, f.s), per_tap = patches<A>(f.c, f.s) ? f.c : values / f.s;
  const typename V::Mask exist = V::first(f.count);
  typename V::Flags bad = V::no_flags();
  typename V::Reg largest = V::zero();  // bits of magnitudes
  for (int i = 0; i < f.r; ++i)
    for (int value = 0, tap = 0; value < values; ++tap)
      for (int ch = 0; ch < per_tap && value < values; ch += kPair, value += kPair) {
        auto* to = place.of(int64_t{i} * values + value);
        const auto* from = f.from + ch * strides[1] + i * strides[2] + tap * strides[3];
        typename V::Reg v = V::zero();
        if (tap < f.s && ch < f.c) {
          if constexpr (kPair == 1) {
            v = A::load(from, exist);
            bad |= V::not_finite(v);
          } else {
            v = A::load_pairs(from, from + strides[1], exist);
            largest = A::larger_pairs(largest, v);
          }
        }
        if constexpr (kPair == 1)
          V::store(to, v);
        else
          A::store_pairs(to, v);
      }
  if constexpr (kPair == 1)
    return !V::any(bad);
  else
    return A::pairs_are_finite(largest);
}

// Whether each filter is one run of memory; `channels_inner`: its channels are adjacent, else its taps are.
inline bool is_dense(const int64_t strides[4], int c, int r, int s, bool& channels_inner) {
  channels_inner = (strides[1] == 1 || c == 1) && (r * s == 1 || (strides[3] == c && strides[2] == int64_t{s} * c));
  return channels_inner || (strides[1] == int64_t{r} * s && (strides[3] == 1 || s == 1) && (strides[2] == s || r == 1));
}

// Packs filters [k0, k1), whole channel blocks of (K, C, R, S) with any strides; `packed` begins with filter `first`.
// Returns false if a value is not finite.
template <typename A>
bool pack(void* packed, const void* weight, const int64_t strides[4], int c, int k, int r, int s, int vectors, int k0,
          int k1, int first) {
  using V = typename A::V;
  const int64_t reduction = int64_t{r} * row_values<A>(c, s);
  bool channels_inner;
  const bool dense = is_dense(strides, c, r, s, channels_inner) && c % A::kPack == 0;
  const bool adjacent = strides[0] == 1 && c % Place<A>::kPair == 0;
  bool finite = true;
  for (int at = k0; at < k1;) {
    const int nv = block_vectors<V>(k, at, vectors);
    auto* block = static_cast<typename A::Operand*>(packed) + (at - first) * reduction;
    for (int v = 0; v < nv; ++v, at += V::kLanes) {
      const auto* from = static_cast<const typename A::Elem*>(weight) + at * strides[0];
      const Filters<A> f{from, strides[0], k - at < V::kLanes ? k - at : V::kLanes, c, r, s};
      const Place<A> place(block, nv, v);
      if (adjacent)
        finite &= pack_adjacent<A>(f, strides, place);
      else if (!dense)
        finite &= pack_values<A>(f, strides, place);
      else if constexpr (A::kPack == 1)
        finite &= pack_singles<A>(f, channels_inner, place);
      else
        finite &= pack_pairs<A>(f, channels_inner, place);
    }
  }
  return finite;
}

}  // namespace
}  // namespace resnet_fused::cpu::simd::direct
