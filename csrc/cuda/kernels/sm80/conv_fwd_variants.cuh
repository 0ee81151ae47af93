// Explicit instantiations for one element type: taking a launcher's address compiles its kernel.
#pragma once
#include <utility>

#include "cuda/kernels/sm80/conv_fwd.cuh"
#include "cuda/kernels/tables.h"
#include "cuda/runtime/launch.h"

namespace resnet_fused::cuda {

template <typename Config>
void launch_conv_fwd_variant(const ConvFwdParams& p, const Queue& queue) {
  const auto ceil_div = [](int32_t a, int32_t b) { return (a + b - 1) / b; };
  const ConvShape& shape = p.main.shape;
  const ConvShape& activated = Config::kProjectionHasPrologue ? p.projection.shape : shape;
  const int32_t tiles = ceil_div(shape.n * shape.p * shape.q, Config::kM) * ceil_div(shape.k, Config::kN);
  const int32_t slices = p.splits == 1 ? 1 : conv_fwd_slices(Config::kMode, p.splits);
  const int32_t smem = conv_fwd_smem(Config::kTile, Config::kMode, activated.c);
  LAUNCH_DEPENDENT(conv_fwd_kernel<Config>, dim3(tiles, slices), dim3(Config::kThreads), smem, queue, p);
}

template <Dtype kDtype, int kTile, Prologue kPrologue, Epilogue kEpilogue>
void add_conv_fwd(ConvTable& all) {
  constexpr ConvFwdVariant kVariant{kDtype, kConvFwdTiles[kTile].m, kConvFwdTiles[kTile].n, {kPrologue, kEpilogue}};
  if constexpr (COMPILES(kVariant))
    all.push_back({kVariant, &launch_conv_fwd_variant<ConvFwdConfig<kDtype, kTile, kPrologue, kEpilogue>>});
}

template <Dtype kDtype, Prologue kPrologue, Epilogue kEpilogue, int... kTile>
void add_conv_fwd_tiles(ConvTable& all, std::integer_sequence<int, kTile...>) {
  (add_conv_fwd<kDtype, kTile, kPrologue, kEpilogue>(all), ...);
}

constexpr std::make_integer_sequence<int, sizeof(kConvFwdTiles) / sizeof(kConvFwdTiles[0])> kConvFwdTileNumbers;

// Every tile with these epilogues, with and without the prologue.
template <Dtype kDtype, Epilogue... kEpilogue>
ConvTable compile_conv_fwd() {
  ConvTable all;
  (add_conv_fwd_tiles<kDtype, Prologue::kNone, kEpilogue>(all, kConvFwdTileNumbers), ...);
  (add_conv_fwd_tiles<kDtype, Prologue::kBnRelu, kEpilogue>(all, kConvFwdTileNumbers), ...);
  return all;
}

// A gradient has no prologue.
template <Dtype kDtype>
ConvTable compile_conv_gradient() {
  ConvTable all;
  add_conv_fwd_tiles<kDtype, Prologue::kNone, Epilogue::kGradientSums>(all, kConvFwdTileNumbers);
  return all;
}

}  // namespace resnet_fused::cuda
