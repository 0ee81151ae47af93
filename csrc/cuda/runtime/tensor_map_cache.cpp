// encode_tiled and encode_im2col with a cache: a map depends only on address, shape and box, so an earlier equal one is
// valid even if memory was freed and allocated again in between.
#include <algorithm>
#include <iterator>

#include "cuda/runtime/cache.h"
#include "cuda/runtime/tensor_map.h"

namespace resnet_fused::cuda {

namespace {

enum class Kind : int32_t { kTiled, kIm2col };

struct MapKey {
  TensorShape shape;
  Kind kind;
  Swizzle swizzle;
  int32_t step[kMostTensorRank];
  int32_t box[7];  // a tiled box's extents; an im2col box's corners, channels and pixels
};

// Holds 1024 maps: a network needs several for each of its convolutions. Evicted maps are encoded again.
template <typename Make>
TensorMap cached(const MapKey& key, const Make& make) {
  static ExactCache<MapKey, TensorMap, 256> maps;
  return maps.get(key, make);
}

}  // namespace

TensorMap encode_tiled(const TensorShape& shape, const TiledBox& box) {
  MapKey key{shape, Kind::kTiled, box.swizzle, {}, {}};
  std::copy(std::begin(box.step), std::end(box.step), key.step);
  std::copy(std::begin(box.box), std::end(box.box), key.box);
  return cached(key, [&] { return driver_tiled(shape, box); });
}

TensorMap encode_im2col(const TensorShape& shape, const Im2colBox& box) {
  MapKey key{shape,
             Kind::kIm2col,
             box.swizzle,
             {},
             {box.lower[0], box.lower[1], box.upper[0], box.upper[1], box.channels, box.pixels}};
  std::copy(std::begin(box.step), std::end(box.step), key.step);
  return cached(key, [&] { return driver_im2col(shape, box); });
}

}  // namespace resnet_fused::cuda
