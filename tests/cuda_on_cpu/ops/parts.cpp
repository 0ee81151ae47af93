// Times parts of an op's host work separately, and stress-tests the ExactCache behind two of them.
#include <atomic>
#include <chrono>
#include <thread>

#include "bindings/library.h"
#include "cuda/ops/first_use.h"
#include "cuda/runtime/cache.h"
#include "cuda/runtime/tensor_map.h"
#include "ops/news.h"
#include "ops/timed.h"

namespace cuda_on_cpu::bindings {

namespace {

using namespace resnet_fused::cuda;

template <typename Part>
double time_of(int calls, const Part& part) {
  const auto begin = std::chrono::steady_clock::now();
  for (int i = 0; i < calls; ++i) {
    const auto result = part();
    asm volatile("" ::"m"(result) : "memory");
  }
  return static_cast<double>((std::chrono::steady_clock::now() - begin).count()) / calls;
}

Problem layer(int32_t channels, int32_t size) {
  Problem p;
  p.dtype = Dtype::kBFloat16;
  p.main = {1, size, size, channels, channels, 3, 3, size, size, 1, 1, 1, 1, 1, 1};
  p.residual = true;
  return p;
}

TensorShape activation(const void* base) {
  TensorShape s;
  s.base = base, s.dtype = Dtype::kBFloat16, s.rank = 4;
  const int64_t sizes[] = {64, 56, 56, 1};
  for (int i = 0, stride = 2; i < 4; stride *= static_cast<int>(sizes[i++])) s.size[i] = sizes[i], s.stride[i] = stride;
  return s;
}

// Mean time of each part over `calls` calls, in ns.
Value parts(int calls) {
  const Device h200{90, 132, 232448, 233472};
  const Override sm90 = override_of("sm90");
  const Problem problem = layer(64, 56);
  const TensorShape shape = activation(nullptr);
  Im2colBox box;
  box.lower[0] = box.lower[1] = box.upper[0] = box.upper[1] = -1;
  box.channels = 64, box.pixels = 128, box.swizzle = Swizzle::k128;
  return Value::Dict{
      {"a plan, made", time_of(calls, [&] { return make_plan(problem, h200, {}); })},
      {"a plan of sm90, made", time_of(calls, [&] { return make_plan(problem, h200, sm90); })},
      {"a plan, found", time_of(calls, [&] { return cached_plan(problem, h200, sm90); })},
      {"a plan, found and trusted", time_of(calls, [&] { return plan_now(problem, 0); })},
      {"a tensor map, found", time_of(calls, [&] { return encode_im2col(shape, box); })},
  };
}

// Several threads query one cache for more keys than it holds. Returns the number of wrong answers and of values made.
std::pair<int64_t, int64_t> stress_cache(int threads, int keys, int rounds) {
  struct Key {
    int64_t a, b;
  };
  static ExactCache<Key, int64_t, 8> cache;
  std::atomic<int64_t> wrong{0}, made{0};
  const auto work = [&](int thread) {
    for (int i = 0; i < rounds; ++i) {
      const int64_t a = (i * 7 + thread) % keys;
      const int64_t found = cache.get({a, -a}, [&] { return ++made, a * a + 1; });
      wrong += found != a * a + 1;
    }
  };
  std::vector<std::thread> all;
  for (int t = 0; t < threads; ++t) all.emplace_back(work, t);
  for (std::thread& t : all) t.join();
  return {wrong, made};
}

const Binding bindings[] = {
    {"allocations", &allocations},
    {"nanoseconds_inside", [] { return nanoseconds_inside; }},
    {"parts", &parts},
    {"stress_cache", &stress_cache},
};

}  // namespace

}  // namespace cuda_on_cpu::bindings
