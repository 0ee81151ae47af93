// Instantiates the kernels of one element type: taking a launcher's address compiles its kernel.
#pragma once
#include <algorithm>
#include <utility>

#include "cuda/kernels/sm90/conv_sm90.cuh"
#include "cuda/kernels/sm90/nhwc_tensor.h"
#include "cuda/kernels/tables.h"
#include "cuda/runtime/launch.h"

namespace resnet_fused::cuda {

// im2col map of x: a step loads 64 channels of one tap for each pixel of a tile.
inline TensorMap map_of_pixels(const ConvOperands& o, Dtype dtype, int32_t pixels) {
  const ConvShape& q = o.shape;
  Im2colBox box;
  box.lower[0] = -q.pad_w, box.lower[1] = -q.pad_h;
  box.upper[0] = q.pad_w - q.dil_w * (q.s - 1), box.upper[1] = q.pad_h - q.dil_h * (q.r - 1);
  box.channels = kConvSm90Depth, box.pixels = pixels;
  box.step[1] = q.stride_w, box.step[2] = q.stride_h;
  box.swizzle = Swizzle::k128;
  return encode_im2col(nhwc_tensor(o.x, dtype, q.n, q.h, q.w, q.c), box);
}

// A row-major matrix of rows x columns, moved in boxes of box_rows x 64.
inline TensorMap map_of_rows(const void* base, Dtype dtype, int64_t rows, int64_t columns, int32_t box_rows) {
  TensorShape m;
  m.base = base, m.dtype = dtype, m.rank = 2;
  m.size[0] = columns, m.size[1] = rows;
  m.stride[1] = columns * size_of(dtype);
  TiledBox box;
  box.box[0] = kConvSm90Depth, box.box[1] = box_rows;
  box.swizzle = Swizzle::k128;
  return encode_tiled(m, box);
}

inline TensorMap map_of_weight(const ConvOperands& o, Dtype dtype, int32_t channels) {
  const ConvShape& q = o.shape;
  return map_of_rows(o.weight, dtype, q.k, static_cast<int64_t>(q.r) * q.s * q.c, channels);
}

template <typename Config>
void launch_conv_sm90_variant(const ConvFwdParams& p, const Queue& queue) {
  constexpr Dtype kDtype = Config::kDtype;
  const ConvShape& shape = p.main.shape;
  const ConvShape& activated = Config::kProjectionHasPrologue ? p.projection.shape : shape;
  const int64_t pixels = static_cast<int64_t>(shape.n) * shape.p * shape.q;
  ConvSm90Maps maps;
  maps.x = map_of_pixels(p.main, kDtype, Config::kPixels);
  maps.weight = map_of_weight(p.main, kDtype, Config::kChannels);
  if constexpr (Config::kProjects) {
    maps.projection_x = map_of_pixels(p.projection, kDtype, Config::kPixels);
    maps.projection_weight = map_of_weight(p.projection, kDtype, Config::kChannels);
  }
  maps.out = map_of_rows(p.out, kDtype, pixels, shape.k, Config::kColumns);
  if (p.residual) maps.residual = map_of_rows(p.residual, kDtype, pixels, shape.k, Config::kColumns);
  const int64_t tiles = conv_sm90_tiles(Config::kTile, shape);
  const int64_t items = p.sk_units ? int64_t{p.dp_tiles} + p.sk_units : tiles;
  const auto grid = static_cast<unsigned>(std::min<int64_t>(items, queue.sm_count));  // one CTA per SM
  const int32_t smem = conv_sm90_smem(Config::kTile, Config::kMode, activated.c);
  LAUNCH_DEPENDENT(conv_sm90_kernel<Config>, dim3(grid), dim3(Config::kThreads), smem, queue, p, maps);
}

template <Dtype kDtype, int kTile, Prologue kPrologue, Epilogue kEpilogue>
void add_conv_sm90(ConvTable& all) {
  constexpr ConvSm90Tile kShape = kConvSm90Tiles[kTile];
  constexpr ConvFwdVariant kVariant{kDtype, kShape.pixels, kShape.channels, {kPrologue, kEpilogue}};
  if constexpr (conv_sm90_takes(kShape, kVariant.mode) && COMPILES(kVariant))
    all.push_back({kVariant, &launch_conv_sm90_variant<ConvSm90Config<kDtype, kTile, kPrologue, kEpilogue>>});
}

template <Dtype kDtype, Prologue kPrologue, Epilogue kEpilogue, int... kTile>
void add_conv_sm90_tiles(ConvTable& all, std::integer_sequence<int, kTile...>) {
  (add_conv_sm90<kDtype, kTile, kPrologue, kEpilogue>(all), ...);
}

// Every tile with these epilogues, with and without the prologue, that conv_sm90_takes.
template <Dtype kDtype, Epilogue... kEpilogue>
ConvTable compile_conv_sm90() {
  constexpr std::make_integer_sequence<int, sizeof(kConvSm90Tiles) / sizeof(kConvSm90Tiles[0])> kTiles;
  ConvTable all;
  (add_conv_sm90_tiles<kDtype, Prologue::kNone, kEpilogue>(all, kTiles), ...);
  (add_conv_sm90_tiles<kDtype, Prologue::kBnRelu, kEpilogue>(all, kTiles), ...);
  return all;
}

}  // namespace resnet_fused::cuda
