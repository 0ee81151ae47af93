// Names and sentences of texts. Pure.
#pragma once
#include <iomanip>
#include <sstream>
#include <string>

#include "cuda/kernels/conv.h"

namespace resnet_fused::cuda {

// "plain", "prologue", "projection", "projection prologue", "statistics", "prologue statistics", "gradient sums"
const char* name_of(ConvMode mode);

// Concatenates words and numbers into a message; floating-point numbers get one decimal.
template <typename... Args>
std::string sentence(const Args&... args) {
  std::ostringstream s;
  (s << std::fixed << std::setprecision(1) << ... << args);
  return s.str();
}

}  // namespace resnet_fused::cuda
