#include "cpu/schedule.h"

#include <algorithm>

namespace resnet_fused::cpu {

namespace {

constexpr int64_t kCacheBytes = 1536 << 10;  // of a 2 MiB L2, for activations
constexpr int64_t kPage = 4096;

// What a step writes, in the order of steps.
struct Value {
  const void* tensor;
  size_t last;  // the last step that reads it
  int stage;    // of that step
  int buffer = -1;
};

// A part of the arena, and the steps between which it is in use.
struct Buffer {
  size_t first, last;
  int64_t bytes, offset = -1;
};

// The lowest offset at which a buffer does not overlap others of its time.
int64_t free_offset(const std::vector<Buffer>& buffers, const Buffer& wanted) {
  int64_t offset = 0;
  for (bool moved = true; moved;) {
    moved = false;
    for (const Buffer& other : buffers) {
      if (other.offset < 0 || other.last < wanted.first || wanted.last < other.first) continue;
      if (other.offset + other.bytes <= offset || offset + wanted.bytes <= other.offset) continue;
      offset = other.offset + other.bytes;
      moved = true;
    }
  }
  return offset;
}

// Bytes from beyond L2 per image if so many go through a step at once: its weights once, and what does not fit.
double traffic(const StepShape& step, int images) {
  const double activations =
      static_cast<double>(step.in_bytes + step.out_bytes);  // the residual's place is the output's
  const double fits = std::min(1.0, kCacheBytes / (images * activations));
  return static_cast<double>(step.weight_bytes) / images + (1 - fits) * activations;
}

}  // namespace

Schedule::Schedule(const std::vector<StepShape>& steps, int images, Order order) {
  make_stages(steps, images, order);
  make_places(steps);
}

void Schedule::make_stages(const std::vector<StepShape>& steps, int images, Order order) {
  std::vector<int> at_once(steps.size());
  int most = images;
  for (size_t i = steps.size(); i-- > 0;) {  // no more than in any later step
    int best = order == Order::kByLayer ? images : 1;
    for (int count = 2; order == Order::kDepthFirst && count < 2 * most; count *= 2)
      if (traffic(steps[i], std::min(count, most)) < traffic(steps[i], best)) best = std::min(count, most);
    at_once[i] = most = best;
  }
  for (size_t i = 0; i < steps.size(); ++i) {
    if (stages_.empty() || stages_.back().at_once != at_once[i]) stages_.push_back({i, i, at_once[i], 0});
    stages_.back().end = i + 1;
  }
}

void Schedule::make_places(const std::vector<StepShape>& steps) {
  const auto stage_of = [&](size_t step) {
    int stage = 0;
    while (stages_[stage].end <= step) ++stage;
    return stage;
  };
  std::vector<Value> values;
  // The number of the last step that wrote this tensor, or -1.
  const auto writer_of = [&](const void* tensor) {
    int i = static_cast<int>(values.size()) - 1;
    while (i >= 0 && (!tensor || values[i].tensor != tensor)) --i;
    return i;
  };
  std::vector<int> input(steps.size()), residual(steps.size());
  for (size_t i = 0; i < steps.size(); ++i) {
    input[i] = writer_of(steps[i].x), residual[i] = writer_of(steps[i].residual);
    for (const int read : {input[i], residual[i]})
      if (read >= 0) values[read].last = i, values[read].stage = stage_of(i);
    values.push_back({steps[i].out, i, stage_of(i)});
  }

  std::vector<Buffer> buffers;
  const auto bytes_of = [&](size_t i) { return steps[i].out_bytes * stages_[values[i].stage].at_once; };
  for (size_t i = 0; i < steps.size(); ++i) {
    Value& v = values[i];
    if (steps[i].is_needed && writer_of(v.tensor) == static_cast<int>(i)) continue;  // others read the last one's
    const int r = residual[i];
    // A step reads each value of its residual before it writes there.
    const bool takes_over = r >= 0 && values[r].buffer >= 0 && values[r].last == i && r != input[i] &&
                            values[r].stage == v.stage && bytes_of(r) == bytes_of(i);
    if (takes_over) {
      v.buffer = values[r].buffer;
    } else {
      v.buffer = static_cast<int>(buffers.size());
      buffers.push_back({i, i, (bytes_of(i) + kPage - 1) / kPage * kPage});
    }
    Buffer& buffer = buffers[v.buffer];
    if (v.stage != stage_of(i)) buffer.first = 0;  // while it waits for more images, earlier stages run again
    buffer.last = v.last;
  }
  for (Buffer& buffer : buffers) {
    buffer.offset = free_offset(buffers, buffer);
    arena_bytes_ = std::max(arena_bytes_, buffer.offset + buffer.bytes);
  }

  const auto place_of = [&](int value, const void* tensor, int64_t bytes) -> Place {
    if (value < 0 || values[value].buffer < 0) return {tensor, -1, bytes, 0};
    return {nullptr, buffers[values[value].buffer].offset, bytes, values[value].stage};
  };
  for (size_t i = 0; i < steps.size(); ++i)
    places_.push_back({place_of(input[i], steps[i].x, input[i] < 0 ? steps[i].in_step : steps[i].in_bytes),
                       place_of(residual[i], steps[i].residual, steps[i].out_bytes),
                       place_of(static_cast<int>(i), steps[i].out, steps[i].out_bytes)});
}

}  // namespace resnet_fused::cpu
