// bar.warp.sync and shfl.sync.
#include "runtime/instructions.h"
#include "runtime/report.h"
#include "runtime/thread.h"
#include "runtime/warp.h"

namespace cuda_on_cpu {

namespace {

struct Shuffle {
  uint32_t value, from, result;
};

const Collective kSync{"bar.warp.sync", [](Warp& warp, uint32_t lanes, Place) { order_lanes(warp, lanes); }};

const Collective kShuffle{"shfl.sync", [](Warp& warp, uint32_t lanes, Place) {
                            each_lane(lanes, [&](uint32_t lane) {
                              auto& s = warp.argument<Shuffle>(lane);
                              s.result = warp.argument<Shuffle>(lanes >> s.from & 1 ? s.from : lane).value;
                            });
                          }};

uint32_t shuffle(uint32_t lanes, uint32_t value, uint32_t from, Place place) {
  if (!(lanes >> from & 1)) report("shuffle from a lane outside the mask", {place}, "lane ", from);
  Shuffle s{value, from, 0};
  meet(kShuffle, lanes, &s, place);
  return s.result;
}

}  // namespace

void warp_sync(uint32_t lanes) { meet(kSync, lanes, nullptr, CUDA_ON_CPU_CALLER); }

uint32_t shuffle_xor(uint32_t lanes, uint32_t value, uint32_t by) {
  return shuffle(lanes, value, (this_thread().lane ^ by) & 31, CUDA_ON_CPU_CALLER);
}

uint32_t shuffle_index(uint32_t lanes, uint32_t value, uint32_t from) {
  return shuffle(lanes, value, from & 31, CUDA_ON_CPU_CALLER);
}

}  // namespace cuda_on_cpu
