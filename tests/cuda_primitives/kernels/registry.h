// All linked primitives.
#pragma once
#include <string>
#include <vector>

#include "call.h"

namespace cuda_primitives {

// Throws std::out_of_range if the name is unknown.
void launch(const std::string& name, const Call& call);
std::vector<std::string> names();

}  // namespace cuda_primitives
