// barrier.cluster: every thread of a cluster arrives, and later waits for the others.
#pragma once
#include <cstdint>
#include <vector>

#include "runtime/clock.h"
#include "runtime/place.h"

namespace cuda_on_cpu {

class Cluster;
struct Thread;

class ClusterBarrier {
 public:
  void reset(Cluster& cluster);
  void arrive(Thread& thread, Place place);
  void wait(Thread& thread, Place place);
  void thread_exits(Thread& thread);  // it is not waited for

 private:
  void end_phase_if_due();

  Cluster* cluster_ = nullptr;
  uint32_t phase_ = 0;
  unsigned arrived_ = 0;            // in this phase, and not exited since
  std::vector<uint32_t> arrivals_;  // of each thread: phases that it has arrived in
  std::vector<bool> owes_wait_;     // of each thread: it has arrived, and not waited since
  Past arriving_, passed_;
  std::vector<Thread*> waiting_;
};

}  // namespace cuda_on_cpu
