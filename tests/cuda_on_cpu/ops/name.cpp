// The namespace in which ops are registered with torch. Each of the two op layers compiles this file with its own name.
#include "ops/name.h"

#define TEXT_OF(name) #name
#define TEXT(name) TEXT_OF(name)

namespace cuda_on_cpu {

const char* const library_name = TEXT(ON_CPU_LIBRARY);

}  // namespace cuda_on_cpu
