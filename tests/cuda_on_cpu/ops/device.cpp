#include "ops/device.h"

#include <stdexcept>

#include "cuda/runtime/device.h"
#include "cuda/runtime/kernel_attributes.h"

namespace cuda_on_cpu {

namespace {

using namespace resnet_fused::cuda;

KernelStates states;
Device device{80, 108, 166912, 167936, &states};
Override override;
CheckMode check = CheckMode::kNever;  // tests of the first-use check change it
bool capturing = false;
std::vector<Verified> verified;
KernelCode code;
int code_asked = 0;

}  // namespace

void set_device(const Device& wanted) {
  device = wanted;
  device.states = &states;
}

void set_engine(const std::string& text) { override = override_of(text.c_str()); }
void set_check(const std::string& text) { check = check_mode(text.c_str()); }
void set_capturing(bool now) { capturing = now; }

void set_verified(const std::vector<std::pair<std::string, int32_t>>& rows) {
  verified.clear();
  for (const auto& [name, arch] : rows) {
    int32_t family = 0;
    while (family < kKernelFamilies && name != name_of(static_cast<KernelFamily>(family))) ++family;
    if (family == kKernelFamilies) throw std::invalid_argument("no family is called " + name);
    verified.push_back({static_cast<KernelFamily>(family), arch, "2026-12-01", "0123abc", "results/verify.json"});
  }
  forget_checks();  // invalidates cached plans
}

void forget_checks() { states.forget(); }
void set_kernel_code(int ptx, int binary) { code = {ptx, binary}; }
int kernel_code_asked() { return code_asked; }

}  // namespace cuda_on_cpu

namespace resnet_fused::cuda {

const Device& device_numbers(int) { return cuda_on_cpu::device; }
const Override& chosen_override() { return cuda_on_cpu::override; }
CheckMode chosen_check() { return cuda_on_cpu::check; }
bool is_capturing(int) { return cuda_on_cpu::capturing; }
const std::vector<Verified>& verified_kernels() { return cuda_on_cpu::verified; }
KernelCode code_of(const void*) {
  ++cuda_on_cpu::code_asked;
  return cuda_on_cpu::code;
}
int current_device() { return 0; }
void allow_shared_memory(const void*, int) {}
Queue current_queue(int) { return {nullptr, cuda_on_cpu::device.sm_count}; }

}  // namespace resnet_fused::cuda
