// Explicit instantiations for one element type: taking a launcher's address compiles its kernel.
#pragma once
#include <utility>

#include "cuda/kernels/sm80/conv_fwd.cuh"
#include "cuda/kernels/sm80/conv_fwd_kernels.h"
#include "cuda/runtime/launch.h"

namespace resnet_fused::cuda {

template <typename Config>
void launch_conv_fwd_variant(const ConvFwdParams& p, const Queue& queue) {
  const auto ceil_div = [](int32_t a, int32_t b) { return (a + b - 1) / b; };
  const ConvShape& shape = p.main.shape;
  const ConvShape& prepared = Config::kMode == ConvFwdMode::kProjectionPrologue ? p.projection.shape : shape;
  const int32_t tiles = ceil_div(shape.n * shape.p * shape.q, Config::kM) * ceil_div(shape.k, Config::kN);
  const int32_t slices = p.splits == 1 ? 1 : conv_fwd_slices(Config::kMode, p.splits);
  const int32_t smem = conv_fwd_smem(Config::kTile, Config::kMode, prepared.c);
  LAUNCH_DEPENDENT(conv_fwd_kernel<Config>, dim3(tiles, slices), dim3(Config::kThreads), smem, queue, p);
}

template <Dtype kDtype, int kTile, ConvFwdMode kMode>
void add_conv_fwd(ConvFwdTable& all) {
  constexpr ConvFwdVariant kVariant{kDtype, kConvFwdTiles[kTile].m, kConvFwdTiles[kTile].n, kMode};
  if constexpr (COMPILES(kVariant))
    all.push_back({kVariant, &launch_conv_fwd_variant<ConvFwdConfig<kDtype, kTile, kMode>>});
}

template <Dtype kDtype, ConvFwdMode kMode, int... kTile>
void add_conv_fwd_tiles(ConvFwdTable& all, std::integer_sequence<int, kTile...>) {
  (add_conv_fwd<kDtype, kTile, kMode>(all), ...);
}

// Every tile in each of these modes.
template <Dtype kDtype, ConvFwdMode... kMode>
ConvFwdTable compile_all_conv_fwd() {
  constexpr int kTiles = sizeof(kConvFwdTiles) / sizeof(kConvFwdTiles[0]);
  ConvFwdTable all;
  (add_conv_fwd_tiles<kDtype, kMode>(all, std::make_integer_sequence<int, kTiles>()), ...);
  return all;
}

template <Dtype kDtype>
ConvFwdTable compile_inference() {
  return compile_all_conv_fwd<kDtype, ConvFwdMode::kPlain, ConvFwdMode::kPrologue, ConvFwdMode::kProjection,
                              ConvFwdMode::kProjectionPrologue>();
}

template <Dtype kDtype>
ConvFwdTable compile_training() {
  return compile_all_conv_fwd<kDtype, ConvFwdMode::kStatistics, ConvFwdMode::kPrologueStatistics>();
}

template <Dtype kDtype>
ConvFwdTable compile_gradient() {
  return compile_all_conv_fwd<kDtype, ConvFwdMode::kGradientSums>();
}

}  // namespace resnet_fused::cuda
