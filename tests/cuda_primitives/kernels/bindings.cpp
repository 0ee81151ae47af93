// Python bindings of the primitives on the emulator.
#include "bindings/library.h"
#include "registry.h"

namespace cuda_on_cpu::bindings {

namespace {

// Buffers are in the order of Call::buffers.
Value run(const std::string& name, const std::vector<BufferArg>& buffers, const std::vector<int64_t>& numbers,
          const std::string& schedule, uint32_t seed) {
  std::vector<void*> addresses;
  for (const BufferArg& b : buffers) addresses.push_back(reinterpret_cast<void*>(std::get<1>(b)));
  begin_session(buffers, schedule, seed);
  cuda_primitives::launch(name, {addresses.data(), numbers.data()});
  return end_session();
}

const Binding bindings[] = {
    {"run", &run},
    {"names", &cuda_primitives::names},
};

}  // namespace

}  // namespace cuda_on_cpu::bindings
