// The epilogue of a training convolution: bias, one rounding, and the moments of the stored values.
#pragma once
#include "cuda/device/ptx/sync.cuh"
#include "cuda/kernels/bn/moments.cuh"
#include "cuda/kernels/bn/parts.cuh"
#include "cuda/kernels/sm90/epilogue.cuh"

namespace resnet_fused::cuda {

// The sum over the four lanes that share a row of the product.
__device__ __forceinline__ float sum_quad(float v) {
#pragma unroll
  for (uint32_t by = 1; by < 4; by *= 2) v += ptx::mov_f32_b32(ptx::shfl_bfly(~0u, ptx::mov_b32_f32(v), by));
  return v;
}

// Moments of a thread's two channels over its quarter of the warp group's pixels. Sixteen values are summed in float32,
// those sums in float64: longer float32 sums lose too many digits.
template <typename Config>
struct RowMoments {
  static constexpr int kPieces = Config::kColumns / 8;  // of eight pixels, two per thread
  static constexpr int kRun = 8;                        // pieces per float32 sum
  using Data = Chunk<Config::kDtype, 8>;
  using Affine = RowAffine<Config::kDtype>;
  static_assert(kPieces % kRun == 0);

  float center[2], run_sum[2] = {}, run_squares[2] = {};
  double sum[2] = {}, squares[2] = {};
  int32_t count, left;  // pixels of the part; pixels from the thread's first one to the part's end

  // The center is the median of the part's first, middle and last stored value, or the first value of a ragged last
  // part.
  __device__ __forceinline__ RowMoments(const typename Config::Sum& product, const Affine& bias, int32_t pixels_left)
      : count(pixels_left < Config::kColumns ? pixels_left : Config::kColumns),
        left(count - static_cast<int32_t>(threadIdx.x % 4 * 2)) {
    constexpr int kFrom[] = {0, kPieces / 2, kPieces - 1};
    float v[8] = {};
#pragma unroll
    for (int i = 0; i < 6; ++i) v[i] = bias.apply(product[kFrom[i / 2] * 4 + i % 2 * 2], i % 2);
    Data stored;
    Data::pack(stored.words, v);
    const bool whole = count == Config::kColumns;
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      const float first = stored.get(row);
      const float c = center_of(first, whole ? stored.get(2 + row) : first, whole ? stored.get(4 + row) : first);
      center[row] = ptx::mov_f32_b32(ptx::shfl_idx(~0u, ptx::mov_b32_f32(c), threadIdx.x % 32 / 4 * 4));
    }
  }

  // Adds the stored values of pieces j and j + 1.
  __device__ __forceinline__ void add(const Data& stored, int j) {
#pragma unroll
    for (int e = 0; e < 8; ++e) {
      const int row = e / 2 % 2;
      if ((j + e / 4) * 8 + e % 2 < left) add_distance(run_sum[row], run_squares[row], stored.get(e), center[row]);
    }
    if ((j + 2) % kRun) return;
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      sum[row] += run_sum[row], squares[row] += run_squares[row];
      run_sum[row] = run_squares[row] = 0;
    }
  }

  // `channel` is that of the thread's first row. The four lanes of a row first move their sums to the common mean,
  // where they are small enough for float32; then three lanes store one number each.
  __device__ __forceinline__ void store(float* statistics, int32_t part, int32_t channel, int32_t channels) {
    const uint32_t which = threadIdx.x % 4;
    const int32_t own = left <= 0 ? 0 : left / 8 * 2 + (left % 8 < 2 ? left % 8 : 2);
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      const float by = sum_quad(static_cast<float>(sum[row])) * ptx::rcp_rn(static_cast<float>(count));
      const float mean = center[row] + by;
      if (is_finite(mean)) {
        move_center(sum[row], squares[row], own, static_cast<double>(mean) - center[row]);
        center[row] = mean;
      }
      const float distances = sum_quad(static_cast<float>(sum[row]));
      const float all = sum_quad(static_cast<float>(squares[row]));
      const int32_t at = channel + row * 8;
      const float number = which == 0 ? center[row] : which == 1 ? distances : all;
      if (which < 3 && at < channels)
        ptx::st_global_f32(statistics + value_at<Parts::kMoments>(part, which, channels, at), number);
    }
  }
};

// `finish` with only a bias. `moments` accumulates the stored values.
template <typename Config>
__device__ __forceinline__ void store_pre_bn(const typename Config::Sum& product, const RowAffine<Config::kDtype>& bias,
                                             RowMoments<Config>& moments, uint32_t out) {
  const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4;
#pragma unroll
  for (int j = 0; j < Config::kColumns / 8; j += 2) {
    float v[8];
#pragma unroll
    for (int e = 0; e < 8; ++e) v[e] = bias.apply(product[j * 4 + e], e / 2 % 2);
    typename RowMoments<Config>::Data stored;
    RowMoments<Config>::Data::pack(stored.words, v);
    ptx::stmatrix_x4_trans(out + swizzled((j + lane / 16) * 8 + lane % 8, warp * 2 + lane / 8 % 2), stored.words);
    moments.add(stored, j);
  }
}

// y + bias, rounded, and the moments of the stored values. They need complete sums, so all tiles are data-parallel.
template <typename Config>
struct MomentsEpilogue {
  static constexpr bool kStreamK = false;
  using Sum = typename Config::Sum;
  using Affine = RowAffine<Config::kDtype>;

  template <typename HandOver>
  __device__ __forceinline__ void operator()(const Sum& sum, const Sum&, const Affine& bias, const Affine&,
                                             const ConvFwdParams& p, const StagedPart& part,
                                             const HandOver& hand_over) const {
    const ConvShape& shape = p.main.shape;
    const int32_t left = shape.n * shape.p * shape.q - part.pixel;
    RowMoments<Config> moments(sum, bias, left);
    store_pre_bn<Config>(sum, bias, moments, part.memory);
    hand_over();
    if (left > 0) moments.store(p.statistics, part.pixel / Config::kColumns, part.channel, shape.k);
  }
};

}  // namespace resnet_fused::cuda
