#include "cuda/runtime/tensor_map.h"

#include <cuda.h>
#include <cudaTypedefs.h>

#include <cstring>
#include <stdexcept>
#include <string>

#include "cuda/runtime/device.h"

namespace resnet_fused::cuda {

namespace {

// A driver function, looked up at run time so that nothing outside the toolkit is linked.
template <typename Function>
Function driver_function(const char* name) {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found;
  check(cudaGetDriverEntryPointByVersion(name, &function, 12000, cudaEnableDefault, &found), name);
  if (found != cudaDriverEntryPointSuccess) throw std::runtime_error(std::string("the driver has no ") + name);
  return reinterpret_cast<Function>(function);
}

CUtensorMapDataType type_of(Dtype dtype) {
  constexpr CUtensorMapDataType kTypes[] = {CU_TENSOR_MAP_DATA_TYPE_FLOAT32, CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
                                            CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, CU_TENSOR_MAP_DATA_TYPE_FLOAT64};
  return kTypes[static_cast<int>(dtype)];
}

CUtensorMapSwizzle swizzle_of(Swizzle swizzle) {
  return swizzle == Swizzle::k128  ? CU_TENSOR_MAP_SWIZZLE_128B
         : swizzle == Swizzle::k64 ? CU_TENSOR_MAP_SWIZZLE_64B
         : swizzle == Swizzle::k32 ? CU_TENSOR_MAP_SWIZZLE_32B
                                   : CU_TENSOR_MAP_SWIZZLE_NONE;
}

// Extents in the driver's form: unsigned, and without the innermost stride.
struct Extents {
  explicit Extents(const TensorShape& shape, const int32_t* steps) {
    for (int i = 0; i < kMostTensorRank; ++i) {
      size[i] = static_cast<cuuint64_t>(shape.size[i]);
      if (i) stride[i - 1] = static_cast<cuuint64_t>(shape.stride[i]);
      step[i] = static_cast<cuuint32_t>(steps[i]);
    }
  }
  cuuint64_t size[kMostTensorRank], stride[kMostTensorRank - 1];
  cuuint32_t step[kMostTensorRank];
};

TensorMap finish(CUresult result, const CUtensorMap& map, const char* what) {
  static_assert(sizeof(TensorMap) == sizeof(CUtensorMap) && alignof(TensorMap) >= alignof(CUtensorMap));
  if (result != CUDA_SUCCESS)
    throw std::runtime_error(std::string(what) + " refuses the map: CUresult " + std::to_string(result));
  TensorMap opaque;
  std::memcpy(&opaque, &map, sizeof opaque);
  return opaque;
}

}  // namespace

TensorMap driver_tiled(const TensorShape& shape, const TiledBox& box) {
  static const auto encode = driver_function<PFN_cuTensorMapEncodeTiled_v12000>("cuTensorMapEncodeTiled");
  const Extents e(shape, box.step);
  cuuint32_t extent[kMostTensorRank];
  for (int i = 0; i < kMostTensorRank; ++i) extent[i] = static_cast<cuuint32_t>(box.box[i]);
  CUtensorMap map;
  const CUresult result =
      encode(&map, type_of(shape.dtype), static_cast<cuuint32_t>(shape.rank), const_cast<void*>(shape.base), e.size,
             e.stride, extent, e.step, CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle_of(box.swizzle),
             CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return finish(result, map, "cuTensorMapEncodeTiled");
}

TensorMap driver_im2col(const TensorShape& shape, const Im2colBox& box) {
  static const auto encode = driver_function<PFN_cuTensorMapEncodeIm2col_v12000>("cuTensorMapEncodeIm2col");
  const Extents e(shape, box.step);
  CUtensorMap map;
  const CUresult result =
      encode(&map, type_of(shape.dtype), static_cast<cuuint32_t>(shape.rank), const_cast<void*>(shape.base), e.size,
             e.stride, box.lower, box.upper, static_cast<cuuint32_t>(box.channels), static_cast<cuuint32_t>(box.pixels),
             e.step, CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle_of(box.swizzle), CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
             CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return finish(result, map, "cuTensorMapEncodeIm2col");
}

}  // namespace resnet_fused::cuda
