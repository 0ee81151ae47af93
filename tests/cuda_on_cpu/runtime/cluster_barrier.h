// barrier.cluster: every thread of a cluster arrives, then waits for the others.
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
  void thread_exits(Thread& thread);  // later phases do not wait for this thread

 private:
  void end_phase_if_due();

  Cluster* cluster_ = nullptr;
  uint32_t phase_ = 0;
  unsigned arrived_ = 0;            // live threads that have arrived in this phase
  std::vector<uint32_t> arrivals_;  // by thread: number of phases it has arrived in
  std::vector<bool> owes_wait_;     // by thread: arrived, not yet waited
  Past arriving_, passed_;
  std::vector<Thread*> waiting_;
};

}  // namespace cuda_on_cpu
