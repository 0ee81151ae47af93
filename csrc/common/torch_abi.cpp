#include "common/torch_abi.h"

#include <algorithm>

namespace resnet_fused {

using torch::headeronly::MemoryFormat;

constexpr Pair kNoPadding{0, 0}, kNoDilation{1, 1};

bool is_dense(const Tensor& x, bool channels_last) {
  constexpr int kNchw[4] = {3, 2, 1, 0}, kNhwc[4] = {1, 3, 2, 0};
  if (x.dim() != 4) return false;
  int64_t expected = 1;
  for (int d : channels_last ? kNhwc : kNchw) {
    if (x.size(d) != 1 && x.stride(d) != expected) return false;
    expected *= x.size(d);
  }
  return true;
}

namespace {
MemoryFormat format(bool channels_last) {
  return channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous;
}
}  // namespace

Tensor aten_convolution(const Tensor& x, const Tensor& weight, const OptTensor& bias, IntView stride, IntView padding,
                        IntView dilation, int64_t groups) {
  std::array<StableIValue, 9> stack{from(x),       from(weight),   from(bias),  from(stride),
                                    from(padding), from(dilation), from(false), from(IntView(kNoPadding)),
                                    from(groups)};
  call_aten("aten::convolution", "", stack);
  return to<Tensor>(stack[0]);
}

Tensor aten_convolution_backward(GradientOf which, const Tensor& grad, const Tensor& x, const Tensor& weight,
                                 IntView stride, IntView padding, IntView dilation, int64_t groups) {
  const bool input = which == GradientOf::kInput;
  const std::array<bool, 3> mask{input, !input, false};
  std::array<StableIValue, 11> stack{from(grad),
                                     from(x),
                                     from(weight),
                                     from(std::nullopt),
                                     from(stride),
                                     from(padding),
                                     from(dilation),
                                     from(false),
                                     from(IntView(kNoPadding)),
                                     from(groups),
                                     from(torch::headeronly::HeaderOnlyArrayRef<bool>(mask))};
  call_aten("aten::convolution_backward", "", stack);
  const Tensor all[] = {to<Tensor>(stack[0]), to<Tensor>(stack[1]), to<Tensor>(stack[2])};  // free undefined ones too
  return all[input ? 0 : 1];
}

Tensor aten_flip(const Tensor& weight) {
  if (weight.size(2) == 1 && weight.size(3) == 1) return weight;
  constexpr Pair kImage{2, 3};
  std::array<StableIValue, 2> stack{from(weight), from(IntView(kImage))};
  call_aten("aten::flip", "", stack);
  return to<Tensor>(stack[0]);
}

Tensor aten_max_pool2d(const Tensor& x, IntView kernel, IntView stride, IntView padding) {
  std::array<StableIValue, 6> stack{from(x),    from(kernel), from(stride), from(padding), from(IntView(kNoDilation)),
                                    from(false)};
  call_aten("aten::max_pool2d_with_indices", "", stack);
  Tensor indices = to<Tensor>(stack[1]);  // takes ownership, so that it is freed
  return to<Tensor>(stack[0]);
}

Tensor aten_to(const Tensor& x, ScalarType dtype) { return torch::stable::to(x, dtype); }

namespace {
struct KnownType {
  int32_t code;
  ScalarType type;
};

const std::array<KnownType, 5>& known_types() {
  static const std::array<KnownType, 5> known{{{aoti_torch_dtype_bfloat16(), ScalarType::BFloat16},
                                               {aoti_torch_dtype_float32(), ScalarType::Float},
                                               {aoti_torch_dtype_float16(), ScalarType::Half},
                                               {aoti_torch_dtype_float64(), ScalarType::Double},
                                               {aoti_torch_dtype_uint8(), ScalarType::Byte}}};
  return known;
}

int32_t code_of(const Tensor& t) {
  int32_t code = -1;
  check_shim(aoti_torch_get_dtype(t.get(), &code), "reading a dtype");
  return code;
}
}  // namespace

ScalarType scalar_type_of(const Tensor& t) {
  const int32_t code = code_of(t);
  for (const KnownType& k : known_types())
    if (k.code == code) return k.type;
  return t.scalar_type();
}

Dtype dtype_of(const Tensor& t) {
  switch (scalar_type_of(t)) {
    case ScalarType::Double:
      return Dtype::kFloat64;
    case ScalarType::Half:
      return Dtype::kFloat16;
    case ScalarType::BFloat16:
      return Dtype::kBFloat16;
    default:
      return Dtype::kFloat32;
  }
}

int64_t span_bytes(const Tensor& t) {
  if (t.numel() == 0) return 0;
  int64_t elements = 1;
  for (int64_t d = 0; d < t.dim(); ++d) elements += (t.size(d) - 1) * t.stride(d);
  return elements * static_cast<int64_t>(t.element_size());
}

Tensor aten_empty(IntView sizes, const Tensor& like, bool channels_last, std::optional<ScalarType> wanted) {
  constexpr int64_t kMost = 4;
  constexpr int kNchw[kMost] = {3, 2, 1, 0}, kNhwc[kMost] = {1, 3, 2, 0};
  const auto dim = static_cast<int64_t>(sizes.size());
  RF_CHECK(dim == kMost || (dim < kMost && !channels_last), "aten_empty: ", dim, " sizes");
  int64_t strides[kMost], next = 1;
  for (int64_t i = 0; i < dim; ++i) {
    const int64_t d = dim < kMost ? dim - 1 - i : channels_last ? kNhwc[i] : kNchw[i];
    strides[d] = next;
    next *= std::max<int64_t>(sizes[d], 1);
  }
  int32_t dtype = code_of(like), device_type = 0, device_index = 0;
  if (wanted)
    for (const KnownType& k : known_types())
      if (k.type == *wanted) dtype = k.code;
  AtenTensorHandle empty = nullptr;
  check_shim(aoti_torch_get_device_type(like.get(), &device_type), "reading a device");
  check_shim(aoti_torch_get_device_index(like.get(), &device_index), "reading a device");
  check_shim(aoti_torch_empty_strided(dim, sizes.data(), strides, dtype, device_type, device_index, &empty),
             "allocating the output");
  return Tensor(empty);
}

Tensor aten_contiguous(const Tensor& x, bool channels_last) {
  if (is_dense(x, channels_last)) return x;
  return torch::stable::contiguous(x, format(channels_last));
}

Tensor in_format(const Tensor& x, bool channels_last) {
  const Tensor y = aten_contiguous(x, channels_last);
  if (y.size(1) != 1) return y;
  const int64_t sizes[4] = {y.size(0), 1, y.size(2), y.size(3)}, area = sizes[2] * sizes[3];
  if (y.stride(1) == (channels_last ? 1 : area)) return y;
  const int64_t strides[4] = {area, channels_last ? 1 : area, sizes[3], 1};
  int64_t offset = 0;
  check_shim(aoti_torch_get_storage_offset(y.get(), &offset), "reading a storage offset");
  AtenTensorHandle same = nullptr;
  check_shim(aoti_torch__reinterpret_tensor(y.get(), 4, sizes, strides, offset, &same), "setting strides");
  return Tensor(same);
}

int64_t aten_version(const Tensor& x) {
  std::array<StableIValue, 1> stack{from(x)};
  call_aten("aten::_version", "", stack);
  return to<int64_t>(stack[0]);
}

bool aten_is_inference(const Tensor& x) {
  std::array<StableIValue, 1> stack{from(x)};
  call_aten("aten::is_inference", "", stack);
  return to<bool>(stack[0]);
}

}  // namespace resnet_fused
