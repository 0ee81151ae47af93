// Launches that a GPU refuses.
#include "check.h"
#include "cuda/runtime/launch.h"

namespace cuda_on_cpu::checks {
namespace {

__global__ void plain(const Check c) { write_output(c); }  // expect anywhere: invalid launch

CHECK_LAUNCHED(empty_grid, if (c.bug) LAUNCH(plain, 0, kThreads, 0, 0, c);
               else LAUNCH(plain, kBlocks, kThreads, 0, 0, c));
CHECK_LAUNCHED(block_too_large, if (c.bug) LAUNCH(plain, 1, 1025, 0, 0, c);
               else LAUNCH(plain, kBlocks, kThreads, 0, 0, c));
CHECK_LAUNCHED(too_much_shared_memory, LAUNCH(plain, kBlocks, kThreads, c.bug ? 228 << 10 : 227 << 10, 0, c));
CHECK_LAUNCHED(half_a_cluster, LAUNCH_CLUSTER(plain, c.bug ? 4 : 2, kBlocks, kThreads, 0, 0, c));

}  // namespace
}  // namespace cuda_on_cpu::checks
