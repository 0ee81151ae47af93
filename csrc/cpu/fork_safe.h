// A mutex that a fork cannot leave locked in the child.
#pragma once
#include <mutex>

namespace resnet_fused::cpu {

// fork() copies one thread and every mutex as it is: one that another thread held would never be released in the
// child. So the thread that forks takes all of these first and releases them on both sides. Instances are never
// destroyed, and none is locked while another one is.
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
