#include "cpu/fork_safe.h"

#include <pthread.h>

#include <vector>

namespace resnet_fused::cpu {

namespace {

struct Registry {
  std::mutex mutex;
  std::vector<ForkSafeMutex*> all;
};

Registry& registry() {
  static auto* it = new Registry;
  return *it;
}

void before_fork() {
  registry().mutex.lock();
  for (ForkSafeMutex* m : registry().all) m->lock();
}

void after_fork() {
  for (ForkSafeMutex* m : registry().all) m->unlock();
  registry().mutex.unlock();
}

}  // namespace

ForkSafeMutex::ForkSafeMutex() {
  static const int registered = pthread_atfork(before_fork, after_fork, after_fork);
  (void)registered;  // on failure (out of memory) it acts as a plain mutex
  std::lock_guard<std::mutex> lock(registry().mutex);
  registry().all.push_back(this);
}

}  // namespace resnet_fused::cpu
