// A kernel that gives a wrong result: what a GPU may do to a kernel that the emulator finds right.
#pragma once
#include <string>

namespace cuda_on_cpu {

// From now on one value of this kernel's result is wrong: "conv_fwd", "conv_sm90", "bn_add_act", "bn_stats"; "": none.
void set_fault(const std::string& kernel);

}  // namespace cuda_on_cpu
