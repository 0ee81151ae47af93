// In which order images pass through the steps of a chain, and where intermediate results live. Plain numbers and
// pointers: needs no library.
//
// Neighbouring steps that take the same number of images at once are a stage. A stage runs on that many images, after
// the stage before it has run on each part of them: depth first.
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

namespace resnet_fused::cpu {

// What a step reads and writes; the pointers also tell which step's result it reads.
struct StepShape {
  const void *x, *residual;
  void* out;
  int64_t in_step;              // bytes from an image of x to the next
  int64_t in_bytes, out_bytes;  // of an image
  int64_t weight_bytes;
  bool is_needed;  // the result is read by others, too
};

class Schedule {
 public:
  // Depth first, or layer by layer: all images at once. `images`: how many go through all steps.
  enum class Order { kDepthFirst, kByLayer };
  Schedule(const std::vector<StepShape>& steps, int images, Order order);

  int64_t arena_bytes() const { return arena_bytes_; }

  // Where a step finds the images from `first` on. Valid inside run_step, or after begin_all.
  const void* input(size_t step, char* arena, int first) const { return place(places_[step].in, arena, first); }
  const void* residual(size_t step, char* arena, int first) const {
    return place(places_[step].residual, arena, first);
  }
  void* output(size_t step, char* arena, int first) const {
    return const_cast<void*>(place(places_[step].out, arena, first));
  }

  // Runs all steps on images [first, first + count) with run_step(step, first image, count).
  template <typename RunStep>
  void run(int first, int count, const RunStep& run_step) {
    run_stage(static_cast<int>(stages_.size()) - 1, first, first + count, run_step);
  }

  // Instead of run(): all images at once, from `first` on.
  void begin_all(int first) {
    for (Stage& stage : stages_) stage.first_image = first;
  }

 private:
  struct Stage {
    size_t begin, end;  // steps
    int at_once;        // images
    int first_image;    // of those that it runs on
  };
  // A tensor outside, or an arena's part for as many images as its last reader's stage takes at once.
  struct Place {
    const void* tensor = nullptr;
    int64_t offset = -1;  // in the arena; without either there is none
    int64_t image_bytes = 0;
    int stage = 0;
  };
  struct Places {
    Place in, residual, out;
  };

  const void* place(const Place& p, char* arena, int first) const {
    if (p.tensor) return static_cast<const char*>(p.tensor) + first * p.image_bytes;
    if (p.offset < 0) return nullptr;
    return arena + p.offset + (first - stages_[p.stage].first_image) * p.image_bytes;
  }

  template <typename RunStep>
  void run_stage(int number, int begin, int end, const RunStep& run_step) {
    Stage& stage = stages_[number];
    for (int first = begin; first < end; first += stage.at_once) {
      const int last = first + stage.at_once < end ? first + stage.at_once : end;
      stage.first_image = first;
      if (number > 0) run_stage(number - 1, first, last, run_step);
      for (size_t step = stage.begin; step < stage.end; ++step) run_step(step, first, last - first);
    }
  }

  void make_stages(const std::vector<StepShape>& steps, int images, Order order);
  void make_places(const std::vector<StepShape>& steps);

  std::vector<Stage> stages_;
  std::vector<Places> places_;
  int64_t arena_bytes_ = 0;
};

}  // namespace resnet_fused::cpu
