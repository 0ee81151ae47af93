#include "cuda/kernels/sm90/conv_sm90_finish.cuh"

#include "cuda/kernels/kernels.h"
#include "cuda/runtime/launch.h"

namespace resnet_fused::cuda {

namespace {

ConvSm90Layout layout_of(const ConvFwdVariant& variant, const ConvShape& shape) {
  const ConvSm90Tile tile{variant.tile_m, variant.tile_n, 0};
  ConvSm90Layout l;
  l.pixels = tile.pixels, l.channels = tile.channels;
  l.columns = conv_sm90_columns(tile, variant.mode);
  l.pixel_stride = l.columns == tile.pixels ? 0 : l.columns;
  l.channel_stride = l.columns == tile.pixels ? 64 : 0;
  l.tiles_k = (shape.k + tile.channels - 1) / tile.channels;
  l.blocks = tile.pixels * tile.channels / (kConvSm90FinishPixels * 64);
  return l;
}

template <Dtype kDtype, bool kProjects>
void launch(const ConvFwdParams& p, const ConvFwdVariant& variant, const Queue& queue) {
  using Config = ConvSm90FinishConfig<kDtype, kProjects>;
  const ConvSm90Layout layout = layout_of(variant, p.main.shape);
  const int64_t sk_tiles = conv_sm90_tiles({variant.tile_m, variant.tile_n, 0}, p.main.shape) - p.dp_tiles;
  LAUNCH_DEPENDENT(conv_sm90_finish_kernel<Config>, dim3(static_cast<unsigned>(sk_tiles * layout.blocks)),
                   dim3(Config::kThreads), Config::kSmem, queue, p, layout);
}

template <Dtype kDtype>
void launch(const ConvFwdParams& p, const ConvFwdVariant& variant, const Queue& queue) {
  has_projection(variant.mode) ? launch<kDtype, true>(p, variant, queue) : launch<kDtype, false>(p, variant, queue);
}

}  // namespace

void launch_conv_sm90_finish(const ConvFwdParams& params, const ConvFwdVariant& variant, const Queue& queue) {
  if (variant.dtype == Dtype::kFloat16)
    launch<Dtype::kFloat16>(params, variant, queue);
  else
    launch<Dtype::kBFloat16>(params, variant, queue);
}

}  // namespace resnet_fused::cuda
