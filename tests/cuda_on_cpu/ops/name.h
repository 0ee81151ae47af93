#pragma once

namespace cuda_on_cpu {

extern const char* const library_name;  // a constant: there before any registration

}  // namespace cuda_on_cpu
