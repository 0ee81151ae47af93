#include "runtime/remote.h"

#include "runtime/block.h"
#include "runtime/report.h"

namespace cuda_on_cpu {

namespace {

void report_late(Block& block, Place place) {
  report("cluster: the block may have exited", {place}, "nothing orders this access before the end of block ",
         block.number(), ", to whose shared memory it is");
}

}  // namespace

void RemoteAccesses::note(Block& block, Agent agent, Place place) {
  if (!block.live()) return report_late(block, place);
  const Step step = block.clocks.now(agent);
  for (Access& a : accesses_)
    if (a.agent == agent && a.place == place) {
      a.step = step;  // ordering the latest step orders the earlier ones too
      return;
    }
  accesses_.push_back({agent, step, place});
}

void RemoteAccesses::check(Block& block) {
  for (const Access& a : accesses_) {
    bool known = false;
    for (unsigned i = 0; i < block.size() && !known; ++i)
      known = block.clocks.generic(block.thread(static_cast<Agent>(i)).agent)[a.agent] >= a.step;
    if (!known) report_late(block, a.place);
  }
}

}  // namespace cuda_on_cpu
