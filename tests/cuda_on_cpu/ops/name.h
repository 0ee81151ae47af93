#pragma once

namespace cuda_on_cpu {

extern const char* const library_name;  // constant-initialised, so it is valid before any registration

}  // namespace cuda_on_cpu
