// Concatenates words and numbers into a message; floating-point numbers get one decimal.
#pragma once
#include <iomanip>
#include <sstream>
#include <string>

namespace resnet_fused::cuda {

template <typename... Args>
std::string sentence(const Args&... args) {
  std::ostringstream s;
  (s << std::fixed << std::setprecision(1) << ... << args);
  return s.str();
}

}  // namespace resnet_fused::cuda
