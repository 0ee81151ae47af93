// What the ops are registered as with torch, which is all that the op layer and its twin tell apart.
#include "ops/name.h"

#define TEXT_OF(name) #name
#define TEXT(name) TEXT_OF(name)

namespace cuda_on_cpu {

const char* const library_name = TEXT(ON_CPU_LIBRARY);

}  // namespace cuda_on_cpu
