#include "runtime/warp.h"

#include "runtime/block.h"
#include "runtime/report.h"

namespace cuda_on_cpu {

namespace {

[[noreturn]] void fail(Block& block, const char* hazard, const Where& where, const std::string& detail) {
  report(hazard, where, detail);
  block.give_up();
}

std::string mask(uint32_t lanes) {
  std::ostringstream s;
  s << "0x" << std::hex << lanes;
  return s.str();
}

// The meeting that the running lane joins, created if there is none for these lanes.
Meeting& join_meeting(Warp& warp, const Collective& what, uint32_t lanes, Place place) {
  for (Meeting& m : warp.meetings) {
    if (!(m.lanes & lanes)) continue;
    if (m.what != &what || m.lanes != lanes)
      fail(*warp.block, "warp instruction reached divergently", {place, m.place},
           std::string(what.name) + " of lanes " + mask(lanes) + ", while others of them wait at " + m.what->name +
               " of lanes " + mask(m.lanes));
    if (m.place != place)
      report("warp instruction reached divergently", {place, m.place, true}, what.name, " in two places at once");
    return m;
  }
  if (lanes & ~warp.live)
    fail(*warp.block, "mask names a lane that has exited", {place},
         std::string(what.name) + " of lanes " + mask(lanes) + ", of which " + mask(warp.live) + " have not exited");
  warp.meetings.push_back({&what, lanes, 0, place});
  return warp.meetings.back();
}

}  // namespace

void meet(const Collective& what, uint32_t lanes, void* argument, Place place) {
  Thread& me = this_thread();
  Warp& warp = *me.warp;
  const uint32_t bit = 1u << me.lane;
  if (!(lanes & bit))
    fail(*warp.block, "lane is not in its own mask", {place}, std::string(what.name) + " of lanes " + mask(lanes));
  Meeting& meeting = join_meeting(warp, what, lanes, place);
  warp.arguments[me.lane] = argument;
  meeting.arrived |= bit;
  if (meeting.arrived != lanes) return warp.block->park({what.name, -1, place});
  meeting = warp.meetings.back();
  warp.meetings.pop_back();
  ++warp.block->counters.collectives;
  what.act(warp, lanes, place);
  each_lane(lanes & ~bit, [&](uint32_t lane) { warp.block->wake(warp.threads[lane]); });
  warp.block->yield();
}

void order_lanes(Warp& warp, uint32_t lanes) {
  Clocks& clocks = warp.block->clocks;
  static thread_local Past past;
  past.clear();
  each_lane(lanes, [&](uint32_t lane) { clocks.release(warp.threads[lane].agent, past); });
  each_lane(lanes, [&](uint32_t lane) { clocks.acquire(warp.threads[lane].agent, past); });
}

}  // namespace cuda_on_cpu
