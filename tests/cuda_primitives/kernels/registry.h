// Every primitive that was linked.
#pragma once
#include <string>
#include <vector>

#include "call.h"

namespace cuda_primitives {

// Throws std::out_of_range if there is none of that name.
void launch(const std::string& name, const Call& call);
std::vector<std::string> names();

}  // namespace cuda_primitives
