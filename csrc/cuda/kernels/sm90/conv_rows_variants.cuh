// Instantiates the kernels of one element type: taking a launcher's address compiles its kernel.
#pragma once
#include <algorithm>
#include <utility>

#include "cuda/kernels/sm90/conv_rows.cuh"
#include "cuda/kernels/sm90/nhwc_tensor.h"
#include "cuda/kernels/tables.h"
#include "cuda/runtime/launch.h"

namespace resnet_fused::cuda {

// Boxes of `rows` x `columns` pixels of one image. Pixels outside the image are loaded as zeros and not stored.
inline TensorMap map_of_image_rows(const void* base, Dtype dtype, const ConvShape& q, int32_t rows, int32_t columns) {
  TiledBox box;
  box.box[0] = kConvRowsChannels, box.box[1] = columns, box.box[2] = rows;
  box.swizzle = Swizzle::k128;
  return encode_tiled(nhwc_tensor(base, dtype, q.n, q.h, q.w, kConvRowsChannels), box);
}

// The filter (KRSC): a row per output channel. A box is one tap of all output channels.
inline TensorMap map_of_filter(const void* base, Dtype dtype) {
  constexpr int32_t kTaps = kConvRowsTaps * kConvRowsTaps;
  TensorShape filter;
  filter.base = base, filter.dtype = dtype, filter.rank = 2;
  filter.size[0] = kTaps * kConvRowsChannels, filter.size[1] = kConvRowsChannels;
  filter.stride[1] = kTaps * kConvRowsRowBytes;
  TiledBox box;
  box.box[0] = kConvRowsChannels, box.box[1] = kConvRowsChannels;
  box.swizzle = Swizzle::k128;
  return encode_tiled(filter, box);
}

template <typename Config>
void launch_conv_rows_variant(const ConvFwdParams& p, const Queue& queue) {
  constexpr Dtype kDtype = Config::kDtype;
  constexpr int32_t kRows = Config::kRows, kColumns = Config::kTileColumns;
  const ConvShape& shape = p.main.shape;
  ConvRowsMaps maps;
  maps.x = map_of_image_rows(p.main.x, kDtype, shape, kRows + kConvRowsTaps - 1, kColumns);
  maps.filter = map_of_filter(p.main.weight, kDtype);
  maps.out = map_of_image_rows(p.out, kDtype, shape, kRows, kColumns);
  if (p.residual) maps.residual = map_of_image_rows(p.residual, kDtype, shape, kRows, kColumns);
  const int64_t tiles = conv_rows_tiles(Config::kTile, shape);
  const auto grid = static_cast<unsigned>(std::min<int64_t>(tiles, queue.sm_count));  // one CTA per SM
  LAUNCH_DEPENDENT(conv_rows_kernel<Config>, dim3(grid), dim3(kConvRowsThreads), conv_rows_smem(Config::kTile), queue,
                   p, maps);
}

template <Dtype kDtype, int kTile>
void add_conv_rows(ConvTable& all) {
  constexpr ConvRowsTile kShape = kConvRowsTiles[kTile];
  constexpr ConvFwdVariant kVariant{kDtype, kShape.rows, kShape.columns, ConvMode{}};
  if constexpr (COMPILES(kVariant)) all.push_back({kVariant, &launch_conv_rows_variant<ConvRowsConfig<kDtype, kTile>>});
}

template <Dtype kDtype, int... kTile>
ConvTable compile_conv_rows(std::integer_sequence<int, kTile...>) {
  ConvTable all;
  (add_conv_rows<kDtype, kTile>(all), ...);
  return all;
}

template <Dtype kDtype>
ConvTable compile_all_conv_rows() {
  constexpr int kTiles = sizeof(kConvRowsTiles) / sizeof(kConvRowsTiles[0]);
  return compile_conv_rows<kDtype>(std::make_integer_sequence<int, kTiles>());
}

}  // namespace resnet_fused::cuda
