#include "cpu/deferred.h"

#include <algorithm>
#include <atomic>
#include <thread>

#include "common/parallel.h"
#include "cpu/memory.h"
#include "cpu/schedule.h"

namespace resnet_fused::cpu {

namespace {

thread_local Deferred* the_current = nullptr;

int64_t tasks_of(const Work& work) {
  return std::visit([](const auto& w) { return w.tasks(); }, work);
}

bool run(const Work& work, int64_t begin, int64_t end) {
  return std::visit([&](const auto& w) { return w.run(begin, end); }, work);
}

// A convolution of all images, in parts.
struct Layer {
  Work work;
  int64_t parts;
  std::unique_ptr<std::atomic<bool>[]> taken;  // of each part
  std::atomic<int64_t> done{0};
};

// A part that a thread has begun: done at the end, even if it throws, because others wait for it.
struct Part {
  explicit Part(Layer& l) : layer(l) {}
  ~Part() { layer.done.fetch_add(1, std::memory_order_release); }
  Part(const Part&) = delete;
  Part& operator=(const Part&) = delete;
  Layer& layer;
};

// Waits for a part that another thread has begun.
void wait_until(const Layer& layer) {
  constexpr int kSpins = 4000;  // some tens of microseconds: then the other thread may need this processor
  for (int spins = 0; layer.done.load(std::memory_order_acquire) < layer.parts; ++spins) {
    if (spins > kSpins) std::this_thread::yield();
#if defined(__x86_64__)
    else
      __builtin_ia32_pause();
#endif
  }
}

// Runs layers one after the other, each by all threads. A thread takes the same part of each layer, whose input is then
// in its L2, and any part that another has not begun: it waits for parts, never for a thread that does not run.
void run_layers(std::vector<Layer>& layers, int threads) {
  std::atomic<bool> finite{true};
  parallel_for(0, threads, 1, [&](int64_t thread, int64_t) {
    for (Layer& layer : layers) {
      for (int64_t i = 0; i < layer.parts; ++i) {
        const int64_t part = (thread + i) % layer.parts, tasks = tasks_of(layer.work);
        if (layer.taken[part].exchange(true, std::memory_order_relaxed)) continue;
        const Part begun(layer);
        if (!run(layer.work, tasks * part / layer.parts, tasks * (part + 1) / layer.parts)) finite = false;
      }
      wait_until(layer);
    }
  });
  if (!finite) throw CannotDefer{};
}

// Compares packed copies with their weights: all in one parallel loop, where a loop for each would cost 20 us.
void verify(const std::vector<Step>& steps, int threads) {
  const auto is_unverified = [](const Step& step) { return step.unverified.has_value(); };
  if (std::none_of(steps.begin(), steps.end(), is_unverified)) return;
  std::atomic<int64_t> left{static_cast<int64_t>(steps.size())};  // the last weights are the largest
  std::atomic<bool> same{true};
  parallel_for(0, threads, 1, [&](int64_t, int64_t) {
    for (int64_t i = --left; i >= 0; i = --left)
      if (is_unverified(steps[i]) && digest_of(steps[i].weight) != *steps[i].unverified) same = false;
  });
  if (!same) throw CannotDefer{};
}

StepShape shape_of(const Step& step, bool is_needed) {
  const int64_t size = static_cast<int64_t>(step.x.element_size()), images = step.x.size(0);
  return {step.x.const_data_ptr(),        step.residual ? step.residual->const_data_ptr() : nullptr,
          step.out.mutable_data_ptr(),    size * step.x.stride(0),
          size * step.x.numel() / images, size * step.out.numel() / images,
          size * step.weight.numel(),     is_needed};
}

}  // namespace

Deferred::Deferred() { the_current = this; }
Deferred::~Deferred() { the_current = nullptr; }
Deferred* Deferred::current() { return the_current; }

WithoutDeferring::WithoutDeferring() : before_(the_current) { the_current = nullptr; }
WithoutDeferring::~WithoutDeferring() { the_current = before_; }

bool run_now(const Step& step) {
  std::atomic<bool> finite{true};
  parallel_for(0, tasks_of(step.work), 1, [&](int64_t begin, int64_t end) {
    if (!run(step.work, begin, end)) finite = false;
  });
  return finite;
}

void Deferred::add(Step step) {
  if (!steps_.empty() && steps_.front().x.size(0) != step.x.size(0)) run_deferred();
  steps_.push_back(std::move(step));
}

void Deferred::run_steps(const std::vector<bool>& needed) {
  if (steps_.empty()) return;
  const std::vector<Step> steps = std::move(steps_);  // an exception leaves none
  steps_.clear();
  const int threads = static_cast<int>(torch::stable::get_num_threads());
  const int images = static_cast<int>(steps.front().x.size(0));
  verify(steps, threads);
  std::vector<StepShape> shapes;
  bool depth_first = images > 1;
  for (size_t i = 0; i < steps.size(); ++i) {
    shapes.push_back(shape_of(steps[i], needed[i]));
    depth_first = depth_first && std::visit([](const auto& w) { return w.depth_first(); }, steps[i].work);
  }
  // The step's work on some images.
  const auto work_of = [&](const Schedule& schedule, size_t i, char* arena, int first, int count) {
    Work work = steps[i].work;
    std::visit(
        [&](auto& w) {
          w.conv.n = count;
          w.conv.x = schedule.input(i, arena, first);
          w.conv.residual = schedule.residual(i, arena, first);
          w.conv.out = schedule.output(i, arena, first);
        },
        work);
    return work;
  };
  const auto tile = [](Work& work, int threads) {
    std::visit([&](auto& w) { w.tile(threads, /*may_pack=*/false); }, work);
  };

  const int own = depth_first ? images / threads : 0, together = images - own * threads;  // images
  if (own > 0) {
    const Schedule schedule(shapes, own, Schedule::Order::kDepthFirst);
    const Loan arenas(static_cast<size_t>(schedule.arena_bytes()) * static_cast<size_t>(threads));
    parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
      for (int64_t thread = begin; thread < end; ++thread) {
        char* arena = static_cast<char*>(arenas.data()) + thread * schedule.arena_bytes();
        Schedule mine = schedule;  // it counts images
        mine.run(static_cast<int>(thread) * own, own, [&](size_t i, int first, int count) {
          Work work = work_of(mine, i, arena, first, count);
          tile(work, 1);
          cpu::run(work, 0, tasks_of(work));
        });
      }
    });
  }
  if (together > 0) {
    Schedule schedule(shapes, together, Schedule::Order::kByLayer);
    schedule.begin_all(own * threads);
    const Loan arena(static_cast<size_t>(schedule.arena_bytes()));
    std::vector<Layer> layers(steps.size());
    for (size_t i = 0; i < steps.size(); ++i) {
      Layer& layer = layers[i];
      layer.work = work_of(schedule, i, static_cast<char*>(arena.data()), own * threads, together);
      if (own) tile(layer.work, threads);  // else keep the step's tiling: of one image, tasks may pack weights
      layer.parts = std::min<int64_t>(tasks_of(layer.work), threads);
      layer.taken = std::make_unique<std::atomic<bool>[]>(layer.parts);
    }
    run_layers(layers, threads);
  }
}

void run_deferred() {
  if (the_current) the_current->run([](const void*) { return true; });
}

}  // namespace resnet_fused::cpu
