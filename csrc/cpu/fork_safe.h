// A mutex that a fork cannot leave locked in the child.
#pragma once
#include <mutex>

namespace resnet_fused::cpu {

// fork() copies only the calling thread and every mutex in its current state, so a mutex held by another thread would
// stay locked in the child. A handler therefore locks all of these before a fork and releases them on both sides.
// Instances are never destroyed, and no thread holds two at once.
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
