// stmatrix: stores four 8x8 matrices of 16-bit elements from a warp's registers to rows in shared memory.
#include <cstring>

#include "runtime/block.h"
#include "runtime/instructions_sm90.h"
#include "runtime/thread.h"
#include "runtime/warp.h"

namespace cuda_on_cpu {

namespace {

constexpr uint32_t kRowBytes = 16;

struct Store {
  uint32_t row;
  const uint32_t* words;
  bool transposed;
};

// Lane l's word i holds elements (l / 4, l % 4 * 2) and (l / 4, l % 4 * 2 + 1) of matrix i, or of its transpose with
// .trans.
void store(Warp& warp, uint32_t lanes, Place place) {
  uint16_t rows[32][8];
  each_lane(lanes, [&](uint32_t lane) {
    const auto& mine = warp.argument<Store>(lane);
    for (uint32_t i = 0; i < 4; ++i)
      for (uint32_t half = 0; half < 2; ++half) {
        const uint32_t r = lane / 4, c = lane % 4 * 2 + half;
        const auto value = static_cast<uint16_t>(mine.words[i] >> half * 16);
        (mine.transposed ? rows[i * 8 + c][r] : rows[i * 8 + r][c]) = value;
      }
  });
  SharedMemory& shared = warp.block->shared;
  each_lane(lanes, [&](uint32_t lane) {
    const uint32_t row = warp.argument<Store>(lane).row;
    if (!shared.check("stmatrix", row, kRowBytes, kRowBytes, place)) return;
    shared.write(row, kRowBytes, actor_of(warp.threads[lane]), place);
    std::memcpy(shared.at(row), rows[lane], kRowBytes);
  });
}

constexpr Collective kStore{"stmatrix", store};

}  // namespace

void stmatrix_x4(uint32_t row, const uint32_t* words, bool transposed) {
  Store mine{row, words, transposed};
  meet(kStore, kAllLanes, &mine, CUDA_ON_CPU_CALLER);
}

}  // namespace cuda_on_cpu
