#include "runtime/session.h"

#include <algorithm>
#include <memory>
#include <numeric>
#include <random>
#include <thread>

#include "runtime/block.h"
#include "runtime/global_memory.h"

namespace cuda_on_cpu {

namespace {

constexpr uint64_t kMostBlocks = 1 << 24;
constexpr uint32_t kMostLaunches = 255;
constexpr unsigned kMostClusterBlocks = 8;  // the portable maximum cluster size

Options options;
uint32_t launches = 0;
Counters counters;
std::vector<std::string> launched;
bool given_up = false;
std::unique_ptr<Cluster> workers[kMostWorkers];

unsigned worker_count(uint64_t clusters) {
  const unsigned wanted = options.workers ? options.workers : std::max(1u, std::thread::hardware_concurrency());
  return static_cast<unsigned>(std::min<uint64_t>({wanted, clusters, kMostWorkers}));
}

std::vector<uint32_t> order_of_clusters(uint64_t count) {
  std::vector<uint32_t> order(count);
  std::iota(order.begin(), order.end(), 0);
  if (options.schedule == Schedule::kRotate) std::reverse(order.begin(), order.end());
  if (options.schedule == Schedule::kRandom) {
    std::minstd_rand generator(options.seed);
    for (size_t i = count; i > 1; --i) std::swap(order[i - 1], order[generator() % i]);
  }
  return order;
}

// Reports launches that a GPU would refuse or that exceed the emulator's limits; false if there is one.
bool can_launch(const Launch& launch) {
  const auto volume = [](dim3 d) { return static_cast<uint64_t>(d.x) * d.y * d.z; };
  const uint64_t blocks = volume(launch.grid), threads = volume(launch.block);
  const size_t before = findings.size();
  if (blocks == 0 || launch.grid.y > 65535 || launch.grid.z > 65535)
    report("invalid launch", {}, "grid ", launch.grid.x, " x ", launch.grid.y, " x ", launch.grid.z);
  if (blocks > kMostBlocks) report("invalid launch", {}, blocks, " blocks are more than the emulator can tell apart");
  if (threads == 0 || threads > kMostThreads) report("invalid launch", {}, threads, " threads a block");
  if (launch.shared_bytes > kMostSharedBytes)
    report("invalid launch", {}, launch.shared_bytes, " bytes of shared memory a block");
  if (launch.cluster < 1 || launch.cluster > kMostClusterBlocks || launch.grid.x % launch.cluster)
    report("invalid launch", {}, "clusters of ", launch.cluster, " blocks in a grid ", launch.grid.x, " wide");
  if (launch.cluster * threads > kWorkerThreads)
    report("invalid launch", {}, "clusters of ", launch.cluster * threads, " threads are more than the emulator takes");
  if (launch.number > kMostLaunches) report("invalid launch", {}, "too many launches for one session of the emulator");
  return findings.size() == before;
}

}  // namespace

Image image;

void Counters::add(const Counters& o) {
  bytes_loaded += o.bytes_loaded;
  bytes_stored += o.bytes_stored;
  wide_accesses += o.wide_accesses;
  bytes_copied += o.bytes_copied;
  collectives += o.collectives;
}

void begin(const Image& of_library, std::vector<Buffer> buffers, const Options& wanted) {
  image = of_library;
  options = wanted;
  launches = 0;
  counters = {};
  launched.clear();
  given_up = false;
  findings.clear();
  global_memory.reset(std::move(buffers));
}

void add_buffer(Buffer buffer) {
  if (!given_up) global_memory.add(std::move(buffer));
}

Report end() {
  if (!given_up) global_memory.report_unwritten();
  Report r;
  r.findings = findings.take();
  r.counters = counters;
  r.launched = std::move(launched);
  r.given_up = given_up;
  global_memory.reset({});
  return r;
}

void run_grid(const How& how, dim3 grid, dim3 block, size_t shared_bytes, void (*kernel)(void*), void* closure) {
  launched.emplace_back(how.kernel);
  const Launch launch{grid,   block,   how.cluster, shared_bytes,     how.kernel,  how.dependent,
                      kernel, closure, ++launches,  options.schedule, options.seed};
  if (given_up) return;
  if (!can_launch(launch)) {
    given_up = true;
    return;
  }
  const std::vector<uint32_t> order = order_of_clusters(static_cast<uint64_t>(grid.x) * grid.y * grid.z / how.cluster);
  const unsigned count = worker_count(order.size());
  std::atomic<size_t> next{0};
  // The others run even if one has given up: which of them have already run depends on the workers' timing.
  const auto work = [&](unsigned worker) {
    Cluster& runner = *workers[worker];
    for (size_t i; (i = next++) < order.size();) runner.run(launch, order[i]);
  };
  for (unsigned i = 0; i < count; ++i) {
    if (!workers[i]) workers[i] = std::make_unique<Cluster>(i);
    stacks.open(i, block.x * block.y * block.z * how.cluster);
    workers[i]->counters = {};
  }
  std::vector<std::thread> threads;
  for (unsigned i = 1; i < count; ++i) threads.emplace_back(work, i);
  work(0);
  for (std::thread& t : threads) t.join();
  for (unsigned i = 0; i < count; ++i) counters.add(workers[i]->counters);
  given_up |= launch.given_up;
}

}  // namespace cuda_on_cpu
