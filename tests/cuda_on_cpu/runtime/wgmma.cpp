#include "runtime/wgmma.h"

#include <algorithm>
#include <cstring>

#include "runtime/report.h"
#include "runtime/shared_memory.h"
#include "runtime/thread.h"
#include "runtime/warp.h"

namespace cuda_on_cpu {

namespace {

constexpr int kDepth = 16, kWarpRows = 16;  // K of an instruction, and rows of a per warp
constexpr uint32_t kPiece = 16;             // bytes that every layout keeps contiguous
constexpr int kPieces = 2;                  // per row
constexpr int kPoison = 0xff;
const char* const kDisagree = "wgmma: warps of a warpgroup disagree";
const char* const kTouched = "wgmma: accumulators touched before the wait";

// Matrix descriptor of a K-major operand (PTX ISA, "Matrix Descriptor Format").
class Descriptor {
 public:
  explicit Descriptor(uint64_t bits) : bits_(bits) {}

  uint32_t start() const { return field(0); }
  uint32_t k_stride() const { return field(16); }
  uint32_t row_stride() const { return field(32); }
  uint32_t width() const {  // of the swizzle, in bytes; 0: none
    constexpr uint32_t kWidths[] = {0, 128, 64, 32};
    return kWidths[bits_ >> 62];
  }
  bool has_base_offset() const { return bits_ >> 49 & 7; }

  // Address of 16-byte piece `piece` of row `row`.
  uint32_t address(uint32_t row, uint32_t piece) const {
    const uint32_t w = width(), of_rows = start() + row / 8 * row_stride();
    if (!w) return of_rows + row % 8 * kPiece + piece * k_stride();
    const uint32_t plain = of_rows + row % 8 * w + piece * kPiece;
    return plain ^ (plain >> 3 & (w - kPiece));
  }

 private:
  uint32_t field(int bit) const { return static_cast<uint32_t>(bits_ >> bit & 0x3fff) << 4; }
  uint64_t bits_;
};

// The swizzle permutes by address bits, so the eight rows of a pattern must start at a multiple of its period.
void check_descriptor(const char* operand, uint64_t bits, Place place) {
  const Descriptor d(bits);
  if (d.has_base_offset()) report("wgmma: bad descriptor", {place}, operand, " has a base offset");
  if (!d.width()) return;
  if (d.start() % (8 * d.width()) >= d.width())
    report("wgmma: bad descriptor", {place}, operand, " starts at ", d.start() % (8 * d.width()), " of the ",
           8 * d.width(), " bytes after which its swizzle repeats");
  if (d.row_stride() % (8 * d.width()))
    report("wgmma: bad descriptor", {place}, operand, "'s groups of 8 rows are ", d.row_stride(),
           " bytes apart, no multiple of ", 8 * d.width());
}

float widen(uint16_t bits, Half type) {
  if (type == Half::kF16) {
    _Float16 h;
    std::memcpy(&h, &bits, 2);
    return static_cast<float>(h);
  }
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float f;
  std::memcpy(&f, &wide, 4);
  return f;
}

void widen_words(const uint32_t* words, int count, Half type, float* to) {
  for (int i = 0; i < count; ++i) {
    to[2 * i] = widen(static_cast<uint16_t>(words[i]), type);
    to[2 * i + 1] = widen(static_cast<uint16_t>(words[i] >> 16), type);
  }
}

bool same(const WgmmaOperands& x, const WgmmaOperands& y) {
  return x.type == y.type && x.n == y.n && x.a == y.a && !x.a_words == !y.a_words && x.b == y.b &&
         x.accumulate == y.accumulate;
}

// Lane l holds rows l / 4 and l / 4 + 8, and of every 8 columns l % 4 * 2 and l % 4 * 2 + 1.
int row_of(int lane, int i) { return lane / 4 + (i / 2 % 2) * 8; }
int col_of(int lane, int i) { return i / 4 * 8 + lane % 4 * 2 + i % 2; }

}  // namespace

void Wgmmas::reset(Block& block) {
  block_ = &block;
  warps_.assign(block.warp_count(), {});
  issues_.assign((warps_.size() + 3) / 4, {});
}

void Wgmmas::thread_exits(Thread& thread) {
  const OfWarp& w = of(*thread.warp);
  if (!w.operations.empty())
    report("wgmma: exit before the wait", {w.operations.front().place}, "the warp ends with instructions in flight");
}

void Wgmmas::block_ends(Block& block) {
  for (unsigned i = 0; i < block.warp_count(); ++i) {
    const Warp& warp = block.warps()[i];
    const std::vector<Issue>& issues = issues_[warp.number / 4];
    if (const size_t issued = of(warp).issued; issued < issues.size())
      report(kDisagree, {issues[issued].place}, "warp ", warp.number, " issued ", issued, " instructions, another one ",
             issues.size());
  }
}

void Wgmmas::fence(Warp& warp) { of(warp).fenced = true; }

void Wgmmas::commit(Warp& warp) {
  OfWarp& w = of(warp);
  w.groups.emplace_back();
  if (w.agent >= 0) block_->clocks.release(static_cast<Agent>(w.agent), w.groups.back());
  ++w.committed;
}

void Wgmmas::compare_with_warpgroup(Warp& warp, const WgmmaOperands& operands, Place place) {
  std::vector<Issue>& issues = issues_[warp.number / 4];
  OfWarp& w = of(warp);
  if (w.issued == issues.size()) issues.push_back({place, operands});
  const Issue& first = issues[w.issued++];
  if (!same(first.operands, operands))
    report(kDisagree, {place, first.place}, "instruction ", w.issued, " of warp ", warp.number, " has other operands");
}

void Wgmmas::issue(Warp& warp, Place place) {
  OfWarp& w = of(warp);
  if (block_->size() < (warp.number / 4 + 1) * 128) {
    report("wgmma: no whole warpgroup", {place}, "warp ", warp.number, " of a block of ", block_->size(), " threads");
    return;
  }
  Operation op{warp.argument<WgmmaOperands>(0), w.committed, place, {}, {}, {}};
  each_lane(kAllLanes, [&](uint32_t lane) {
    const auto& mine = warp.argument<WgmmaOperands>(lane);
    if (!same(mine, op.operands)) report("wgmma: lanes disagree", {place}, "lane ", lane, " has other operands");
    op.d[lane] = mine.d;
    op.a_words[lane] = mine.a_words;
    if (mine.a_words) std::memcpy(op.a_values[lane], mine.a_words, sizeof op.a_values[lane]);
  });
  compare_with_warpgroup(warp, op.operands, place);
  if (!op.operands.a_words) check_descriptor("a", op.operands.a, place);
  check_descriptor("b", op.operands.b, place);
  hold(warp, op, place);
  note_operand_reads(warp, op);
  w.operations.push_back(op);
}

// Takes the accumulators from the threads, unless an earlier instruction already holds them.
void Wgmmas::hold(Warp& warp, const Operation& op, Place place) {
  OfWarp& w = of(warp);
  for (Held& h : w.held)
    if (h.d[0] == op.d[0]) {
      if (h.n != op.operands.n) {
        report("wgmma: accumulators of two widths", {place}, h.n, " and ", op.operands.n, " columns");
        block_->give_up();
      }
      return;
    }
  if (!w.fenced)
    report("wgmma: no wgmma.fence", {place}, "registers may have been touched since the start, or the last wait");
  Held held{{}, op.operands.n, {}};
  const size_t each = static_cast<size_t>(op.operands.n) / 2;
  held.values.resize(32 * each);
  each_lane(kAllLanes, [&](uint32_t lane) {
    held.d[lane] = op.d[lane];
    std::memcpy(&held.values[lane * each], op.d[lane], each * sizeof(float));
    std::memset(op.d[lane], kPoison, each * sizeof(float));
    warp.threads[lane].watched.push_back({reinterpret_cast<const char*>(op.d[lane]), each * sizeof(float), kTouched});
  });
  w.held.push_back(std::move(held));
}

void Wgmmas::give_back(Warp& warp, Held& held, Place place) {
  const size_t each = static_cast<size_t>(held.n) / 2, bytes = each * sizeof(float);
  each_lane(kAllLanes, [&](uint32_t lane) {
    const char* begin = reinterpret_cast<const char*>(held.d[lane]);
    if (std::any_of(begin, begin + bytes, [](char c) { return c != static_cast<char>(kPoison); }))
      report(kTouched, {place}, "lane ", lane, " wrote to them");
    std::memcpy(held.d[lane], &held.values[lane * each], bytes);
    auto& watched = warp.threads[lane].watched;
    watched.erase(std::remove_if(watched.begin(), watched.end(), [&](const Watched& x) { return x.begin == begin; }),
                  watched.end());
  });
  of(warp).fenced = false;
}

// Records operand reads on behalf of the warp. They are ordered only after what all of its lanes are ordered after.
void Wgmmas::note_operand_reads(Warp& warp, const Operation& op) {
  OfWarp& w = of(warp);
  Clocks& clocks = block_->clocks;
  clocks.use_async_proxy();
  if (w.agent < 0) {
    w.agent = clocks.add_agent();
    Past before;
    clocks.release(static_cast<Agent>(w.agent), before);  // steps start at 1
  }
  const size_t agents = clocks.agents();
  std::vector<Step> generic(clocks.generic(warp.threads[0].agent), clocks.generic(warp.threads[0].agent) + agents);
  std::vector<Step> async(clocks.async(warp.threads[0].agent), clocks.async(warp.threads[0].agent) + agents);
  for (uint32_t lane = 1; lane < 32; ++lane) {
    const Step *g = clocks.generic(warp.threads[lane].agent), *a = clocks.async(warp.threads[lane].agent);
    for (size_t i = 0; i < agents; ++i) generic[i] = std::min(generic[i], g[i]), async[i] = std::min(async[i], a[i]);
  }
  const auto agent = static_cast<Agent>(w.agent);
  const Actor actor{agent, clocks.now(agent), generic.data(), async.data()};
  const auto note = [&](uint64_t bits, uint32_t first_row, uint32_t rows) {
    const Descriptor d(bits);
    for (uint32_t row = first_row; row < first_row + rows; ++row)
      for (uint32_t piece = 0; piece < kPieces; ++piece) {
        const uint32_t address = d.address(row, piece);
        if (!block_->shared.check("wgmma's operand", address, kPiece, kPiece, op.place)) return;
        block_->shared.read(address, kPiece, actor, op.place, Proxy::kAsync);
      }
  };
  if (!op.operands.a_words) note(op.operands.a, warp.number % 4 * kWarpRows, kWarpRows);
  note(op.operands.b, 0, static_cast<uint32_t>(op.operands.n));
}

void Wgmmas::wait(Warp& warp, uint32_t pending, Place place) {
  OfWarp& w = of(warp);
  const auto ended = [&](const Operation& op) { return op.group + pending < w.committed; };
  while (!w.operations.empty() && ended(w.operations.front())) {
    multiply(warp, w.operations.front());
    w.operations.pop_front();
  }
  for (; w.groups.size() > pending; w.groups.pop_front())
    each_lane(kAllLanes, [&](uint32_t lane) { block_->clocks.acquire(warp.threads[lane].agent, w.groups.front()); });
  const auto free = [&](Held& h) {
    for (const Operation& op : w.operations)
      if (op.d[0] == h.d[0]) return false;
    give_back(warp, h, place);
    return true;
  };
  w.held.erase(std::remove_if(w.held.begin(), w.held.end(), free), w.held.end());
}

// Computes the warp's 16 rows from the operands' current contents. Sums run along K, rounded at each step.
void Wgmmas::multiply(const Warp& warp, const Operation& op) {
  const WgmmaOperands& o = op.operands;
  float a[kWarpRows][kDepth], b[256][kDepth];
  const auto load = [&](uint64_t bits, uint32_t row, float* to) {
    const Descriptor d(bits);
    for (uint32_t piece = 0; piece < kPieces; ++piece) {
      uint32_t words[4];
      const uint32_t at = d.address(row, piece) - kSharedBase;
      if (at + kPiece > block_->shared.bytes())
        std::memset(words, kPoison, sizeof words);  // already reported
      else
        std::memcpy(words, block_->shared.begin() + at, sizeof words);
      widen_words(words, 4, o.type, to + piece * 8);
    }
  };
  if (o.a_words) {
    each_lane(kAllLanes, [&](uint32_t lane) {
      if (std::memcmp(op.a_words[lane], op.a_values[lane], sizeof op.a_values[lane]))
        report("wgmma: registers of a written before the wait", {op.place}, "lane ", lane);
      for (int i = 0; i < 4; ++i)  // as in mma.m16n8k16: rows l / 4 and l / 4 + 8, then the same from column 8 on
        widen_words(&op.a_values[lane][i], 1, o.type, &a[lane / 4 + i % 2 * 8][lane % 4 * 2 + i / 2 * 8]);
    });
  } else {
    for (uint32_t row = 0; row < kWarpRows; ++row) load(o.a, warp.number % 4 * kWarpRows + row, a[row]);
  }
  for (int col = 0; col < o.n; ++col) load(o.b, static_cast<uint32_t>(col), b[col]);

  OfWarp& w = of(warp);
  const auto held = std::find_if(w.held.begin(), w.held.end(), [&](const Held& h) { return h.d[0] == op.d[0]; });
  for (int lane = 0; lane < 32; ++lane)
    for (int i = 0; i < o.n / 2; ++i) {
      float& d = held->values[static_cast<size_t>(lane * (o.n / 2) + i)];
      float sum = o.accumulate ? d : 0.f;
      for (int k = 0; k < kDepth; ++k) sum += a[row_of(lane, i)][k] * b[col_of(lane, i)][k];
      d = sum;
    }
}

// ---- instructions

namespace {

Wgmmas& of(Warp& warp) { return warp.block->module<Wgmmas>(); }

constexpr Collective kFence{"wgmma.fence", [](Warp& warp, uint32_t, Place) { of(warp).fence(warp); }};
constexpr Collective kIssue{"wgmma.mma_async", [](Warp& warp, uint32_t, Place place) { of(warp).issue(warp, place); }};
constexpr Collective kCommit{"wgmma.commit_group", [](Warp& warp, uint32_t, Place) { of(warp).commit(warp); }};
constexpr Collective kWait{"wgmma.wait_group", [](Warp& warp, uint32_t, Place place) {
                             of(warp).wait(warp, *static_cast<uint32_t*>(warp.arguments[0]), place);
                           }};

}  // namespace

void wgmma_fence() { meet(kFence, kAllLanes, nullptr, CUDA_ON_CPU_CALLER); }

void wgmma(const WgmmaOperands& operands) {
  WgmmaOperands mine = operands;
  meet(kIssue, kAllLanes, &mine, CUDA_ON_CPU_CALLER);
}

void wgmma_commit_group() { meet(kCommit, kAllLanes, nullptr, CUDA_ON_CPU_CALLER); }

void wgmma_wait_group(int pending) {
  auto most = static_cast<uint32_t>(pending);
  meet(kWait, kAllLanes, &most, CUDA_ON_CPU_CALLER);
}

}  // namespace cuda_on_cpu
