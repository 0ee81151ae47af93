#include "runtime/cluster_barrier.h"

#include "runtime/cluster.h"
#include "runtime/instructions_cluster.h"
#include "runtime/report.h"
#include "runtime/thread.h"

namespace cuda_on_cpu {

void ClusterBarrier::reset(Cluster& cluster) {
  cluster_ = &cluster;
  phase_ = arrived_ = 0;
  arrivals_.assign(cluster.threads().size(), 0);
  owes_wait_.assign(cluster.threads().size(), false);
  arriving_.clear();
  passed_.clear();
  waiting_.clear();
}

void ClusterBarrier::arrive(Thread& thread, Place place) {
  if (owes_wait_[thread.agent]) {
    report("barrier.cluster: arrived twice", {place}, "without a wait in between");
    return;
  }
  owes_wait_[thread.agent] = true;
  ++arrivals_[thread.agent];
  ++arrived_;
  cluster_->clocks.release(thread.agent, arriving_);
  end_phase_if_due();
}

void ClusterBarrier::wait(Thread& thread, Place place) {
  if (!owes_wait_[thread.agent]) {
    report("barrier.cluster: wait without an arrival", {place});
    return;
  }
  owes_wait_[thread.agent] = false;
  if (phase_ >= arrivals_[thread.agent]) {
    cluster_->clocks.acquire(thread.agent, passed_);
    return;
  }
  waiting_.push_back(&thread);
  cluster_->park({"barrier.cluster", -1, place});
}

void ClusterBarrier::thread_exits(Thread& thread) {
  if (arrivals_[thread.agent] > phase_) --arrived_;
  end_phase_if_due();
}

void ClusterBarrier::end_phase_if_due() {
  if (!arrived_ || arrived_ != cluster_->live()) return;
  passed_ = arriving_;
  ++phase_;
  arrived_ = 0;
  for (Thread* t : waiting_) {
    cluster_->clocks.acquire(t->agent, passed_);
    cluster_->wake(*t);
  }
  waiting_.clear();
}

// ---- instructions

void cluster_arrive() {
  Thread& me = this_thread();
  me.cluster->barrier.arrive(me, CUDA_ON_CPU_CALLER);
  me.cluster->yield();
}

void cluster_wait() {
  Thread& me = this_thread();
  me.cluster->barrier.wait(me, CUDA_ON_CPU_CALLER);
  me.cluster->yield();
}

}  // namespace cuda_on_cpu
