// A mutex that a fork cannot leave locked in the child.
#pragma once
#include <mutex>

namespace resnet_fused::cpu {

// fork() copies one thread and every mutex in its current state, so a mutex held by another thread would stay locked in
// the child. The forking thread therefore locks all of these first and releases them on both sides. Instances are never
// destroyed, and no two are locked at once.
class ForkSafeMutex {
 public:
  ForkSafeMutex();
  ForkSafeMutex(const ForkSafeMutex&) = delete;
  ForkSafeMutex& operator=(const ForkSafeMutex&) = delete;
  void lock() { mutex_.lock(); }
  void unlock() { mutex_.unlock(); }

 private:
  std::mutex mutex_;
};

}  // namespace resnet_fused::cpu
