// Fault injection: makes a kernel return a wrong result, as it might on a GPU although the emulator finds it right.
#pragma once
#include <string>

namespace cuda_on_cpu {

// Corrupts one value of this kernel's result from now on: "conv_fwd", "conv_sm90", "bn_add_act", "bn_stats"; "": none.
void set_fault(const std::string& kernel);

}  // namespace cuda_on_cpu
