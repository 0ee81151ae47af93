#include "cpu/winograd_gradient.h"

#include "cpu/avx512/micro_kernel.h"
#include "cpu/avx512/winograd_tile.h"

namespace resnet_fused::cpu::avx512 {

namespace {

constexpr int kRows = 8;     // channels of x in registers
constexpr int kVectors = 2;  // registers across those of grad
constexpr int kBlock = kVectors * kLanes;

// Transformed values lie as [point][16 channels][tile of the chunk][16]: a product reads its operands front to back.
// One more vector a point, so that the 16 stores of a tile go to different sets of L1.
inline int64_t point_step(int channels, int chunk) { return static_cast<int64_t>(channels) * chunk + kLanes; }

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

inline int blocks_of(const WinogradGradient& q) { return (q.k + kBlock - 1) / kBlock; }

void input_tile(const WinogradGradient& q, int64_t tile, float* to) {
  const int64_t step = point_step(q.c, q.chunk);
  const float* p[4][4];
  pixels_of(q, tile, p);
  __mmask16 inside[4][4];
  for (int i = 0; i < 4; ++i)
    for (int j = 0; j < 4; ++j) {
      inside[i][j] = p[i][j] ? 0xffff : 0;
      if (!p[i][j]) p[i][j] = q.x;  // a masked load from where no memory is takes hundreds of cycles
    }
  for (int c = 0; c < q.c; c += kLanes, to += static_cast<int64_t>(q.chunk) * kLanes) {
    const auto store = [&](int point, __m512 v) { _mm512_storeu_ps(to + point * step, v); };
    if (!q.scale) {
      transform_tile([&](int i, int j) { return _mm512_maskz_loadu_ps(inside[i][j], p[i][j] + c); }, store);
      continue;
    }
    const __m512 scale = _mm512_loadu_ps(q.scale + c), shift = _mm512_loadu_ps(q.shift + c);
    transform_tile(
        [&](int i, int j) {
          const __m512 v = _mm512_maskz_loadu_ps(inside[i][j], p[i][j] + c);
          // relu(NaN) is NaN: max returns its second operand when either is NaN.
          return _mm512_maskz_max_ps(inside[i][j], _mm512_setzero_ps(), _mm512_fmadd_ps(v, scale, shift));
        },
        store);
  }
}

// A d, for one row or column of two
inline Quad transform_grad(__m512 d0, __m512 d1) {
  return {{d0, _mm512_add_ps(d0, d1), _mm512_sub_ps(d0, d1), _mm512_sub_ps(_mm512_setzero_ps(), d1)}};
}

// Channels from k on, `width` of them
void grad_tile(const WinogradGradient& q, int64_t tile, int k, int width, float* to) {
  const int64_t step = point_step(width, q.chunk);
  const Place at = place_of(q, tile);
  const float* p = q.grad + ((at.image * q.oh + at.y) * q.ow + at.x) * q.k + k;
  const __mmask16 right = at.x + 1 < q.ow ? 0xffff : 0, below = at.y + 1 < q.oh ? 0xffff : 0;
  const int64_t row = static_cast<int64_t>(q.ow) * q.k;
  for (int end = k + width; k < end; k += kLanes, p += kLanes, to += static_cast<int64_t>(q.chunk) * kLanes) {
    const Quad rows[2] = {
        transform_grad(_mm512_loadu_ps(p), _mm512_maskz_loadu_ps(right, p + q.k)),
        transform_grad(_mm512_maskz_loadu_ps(below, p + row), _mm512_maskz_loadu_ps(right & below, p + row + q.k))};
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      const Quad column = transform_grad(rows[0].v[j], rows[1].v[j]);
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) _mm512_storeu_ps(to + (i * 4 + j) * step, column.v[i]);
    }
  }
}

// sums[8 channels of x][NV * 16 of grad] += the products' sum over `count` tiles. Summed by itself first: the rounding
// error of one running sum grows with its length.
template <int NV>
void multiply(const float* x, const float* grad, int64_t next, int count, bool first, float* sums) {
  __m512 acc[kRows][NV];
#pragma GCC unroll 8
  for (int m = 0; m < kRows; ++m)
#pragma GCC unroll 2
    for (int v = 0; v < NV; ++v) acc[m][v] = _mm512_setzero_ps();
  for (int t = 0; t < count; ++t, x += kLanes, grad += kLanes) {
    __m512 g[NV];
#pragma GCC unroll 2
    for (int v = 0; v < NV; ++v) g[v] = _mm512_loadu_ps(grad + v * next);
#pragma GCC unroll 8
    for (int m = 0; m < kRows; ++m) {
      const __m512 one = _mm512_set1_ps(x[m]);
#pragma GCC unroll 2
      for (int v = 0; v < NV; ++v) acc[m][v] = _mm512_fmadd_ps(one, g[v], acc[m][v]);
    }
  }
#pragma GCC unroll 8
  for (int m = 0; m < kRows; ++m)
#pragma GCC unroll 2
    for (int v = 0; v < NV; ++v) {
      float* to = sums + m * kBlock + v * kLanes;
      _mm512_storeu_ps(to, first ? acc[m][v] : _mm512_add_ps(_mm512_loadu_ps(to), acc[m][v]));
    }
}

// The sums of a part lie as [point][32 channels of grad][channel of x][32].
inline float* sums_of(const WinogradGradient& q, int part, int point, int block) {
  return q.sums + part * q.part_floats + (static_cast<int64_t>(point) * blocks_of(q) + block) * q.c * kBlock;
}

// Adds the products of `count` transformed tiles, the first of the part or not, to the sums of blocks b0 ... b1.
void multiply_chunk(const WinogradGradient& q, const float* inputs, const float* grads, int part, int count, bool first,
                    int b0, int b1, int width) {
  const int64_t next = static_cast<int64_t>(q.chunk) * kLanes;
  for (int point = 0; point < kPoints; ++point, inputs += point_step(q.c, q.chunk), grads += point_step(width, q.chunk))
    for (int b = b0; b < b1; ++b) {
      const float* grad = grads + (b - b0) * kVectors * next;
      float* sums = sums_of(q, part, point, b);
      const auto run = (b + 1) * kBlock <= q.k ? multiply<kVectors> : multiply<1>;
      for (int c = 0; c < q.c; c += kRows)
        for (int t = 0; t < count; t += q.run)
          run(inputs + c / kLanes * next + c % kLanes + t * kLanes, grad + t * kLanes, next,
              static_cast<int>(smaller(q.run, count - t)), first && t == 0, sums + c * kBlock);
    }
}

thread_local Scratch scratch;

void run_task(const WinogradGradient& q, int64_t task) {
  const int part = static_cast<int>(task / q.groups), group = static_cast<int>(task % q.groups);
  const int b0 = blocks_of(q) * group / q.groups, b1 = blocks_of(q) * (group + 1) / q.groups;
  const int width = static_cast<int>(smaller(q.k, b1 * kBlock)) - b0 * kBlock;
  const int64_t begin = q.tiles * part / q.parts, end = q.tiles * (part + 1) / q.parts;
  const int64_t input_floats = kPoints * point_step(q.c, q.chunk);
  float* inputs =
      static_cast<float*>(scratch.get((input_floats + kPoints * point_step(width, q.chunk)) * sizeof(float)));
  float* grads = inputs + input_floats;
  for (int64_t first = begin; first < end; first += q.chunk) {
    const int count = static_cast<int>(smaller(q.chunk, end - first));
    for (int t = 0; t < count; ++t) {
      input_tile(q, first + t, inputs + t * kLanes);
      grad_tile(q, first + t, b0 * kBlock, width, grads + t * kLanes);
    }
    multiply_chunk(q, inputs, grads, part, count, first == begin, b0, b1, width);
  }
}

// A point's sums over all parts, 16 channels of grad from lane `at` of a block on
inline __m512 total(const WinogradGradient& q, int point, int block, int64_t at) {
  __m512 v = _mm512_loadu_ps(sums_of(q, 0, point, block) + at);
  for (int part = 1; part < q.parts; ++part) v = _mm512_add_ps(v, _mm512_loadu_ps(sums_of(q, part, point, block) + at));
  return v;
}

// G^T u, for one row or column of four
struct Triple {
  __m512 v[3];
};
inline Triple transform_sums(__m512 u0, __m512 u1, __m512 u2, __m512 u3) {
  const __m512 half = _mm512_set1_ps(.5f);
  const __m512 even = _mm512_mul_ps(half, _mm512_add_ps(u1, u2)), odd = _mm512_mul_ps(half, _mm512_sub_ps(u1, u2));
  return {{_mm512_add_ps(u0, even), odd, _mm512_add_ps(even, u3)}};
}

}  // namespace

void winograd_gradient_tile(WinogradGradient& q, int threads) {
  q.tiles_h = (q.oh + 1) / 2;
  q.tiles_w = (q.ow + 1) / 2;
  q.tiles = static_cast<int64_t>(q.n) * q.tiles_h * q.tiles_w;
  q.part_floats = static_cast<int64_t>(kPoints) * blocks_of(q) * q.c * kBlock;
  // Parts, runs and chunks say in which order is summed. They go by the shape alone, so that every number of threads
  // gives the same bits. A part has to be worth writing its sums and reading them again.
  constexpr int64_t kSumBytes = 16 << 20, kMostParts = 16, kTilesOfPart = 768;
  const int64_t fit = kSumBytes / (q.part_floats * static_cast<int64_t>(sizeof(float)));
  const int64_t worth = smaller(smaller(fit, kMostParts), q.tiles / kTilesOfPart);
  for (q.parts = 1; 2 * q.parts <= worth;) q.parts *= 2;
  const int64_t of_part = (q.tiles + q.parts - 1) / q.parts;
  q.run = of_part < 1024 ? 32 : 64;
  // What a chunk's products read stays in L2, unless that takes so few tiles that the sums are what is read.
  constexpr int64_t kBytes = 512 << 10, kLeast = 64;
  const int64_t most = kBytes / (kPoints * static_cast<int64_t>(sizeof(float)) * (q.c + q.k));
  q.chunk = static_cast<int>(smaller(of_part, most < kLeast ? kLeast : most / kLeast * kLeast));
  // Each group transforms the inputs again: only as many as it takes to keep all threads busy.
  q.groups = 1;
  while (q.parts * q.groups < 4 * threads && q.parts * q.groups % threads && q.groups < blocks_of(q)) ++q.groups;
  q.tasks = static_cast<int64_t>(q.parts) * q.groups;
}

void winograd_gradient_sum(const WinogradGradient& q, int64_t begin, int64_t end) {
  for (int64_t task = begin; task < end; ++task) run_task(q, task);
}

bool winograd_gradient_finish(const WinogradGradient& q, float* weight, const int64_t strides[4], int64_t begin,
                              int64_t end) {
  __mmask16 bad = 0;
  for (int k = 0; k < q.k; k += kLanes)
    for (int64_t c = begin; c < end; ++c) {
      const int block = k / kBlock;
      const int64_t at = c * kBlock + k % kBlock;
      Triple half[4];  // G^T u, one column each
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j)
        half[j] = transform_sums(total(q, j, block, at), total(q, 4 + j, block, at), total(q, 8 + j, block, at),
                                 total(q, 12 + j, block, at));
      alignas(64) float of_taps[3][3][kLanes];
#pragma GCC unroll 3
      for (int i = 0; i < 3; ++i) {
        const Triple row = transform_sums(half[0].v[i], half[1].v[i], half[2].v[i], half[3].v[i]);
#pragma GCC unroll 3
        for (int j = 0; j < 3; ++j) {
          _mm512_store_ps(of_taps[i][j], row.v[j]);
          bad |= _mm512_fpclass_ps_mask(row.v[j], 0x99);  // quiet and signalling NaN, +Inf, -Inf
        }
      }
      for (int lane = 0; lane < kLanes; ++lane)
        for (int i = 0; i < 3; ++i)
          for (int j = 0; j < 3; ++j)
            weight[(k + lane) * strides[0] + c * strides[1] + i * strides[2] + j * strides[3]] = of_taps[i][j][lane];
    }
  return bad == 0;
}

}  // namespace resnet_fused::cpu::avx512
