#include "cpu/program.h"

#include <algorithm>
#include <cstring>
#include <iterator>

namespace resnet_fused::cpu {

constexpr ScalarType kDtypes[] = {ScalarType::Float, ScalarType::Double, ScalarType::BFloat16, ScalarType::Half};

bool ProgramReader::tensors_match() {
  bool match = true;
  for (const Tensor& t : tensors_) {
    const int64_t dtype = next(), dim = next();
    match = match && dtype >= 0 && dtype < static_cast<int64_t>(std::size(kDtypes)) && t.dim() == dim &&
            scalar_type_of(t) == kDtypes[dtype];
    for (int64_t d = 0; d < 2 * dim; ++d) {  // sizes, then strides
      const int64_t expected = next();
      match = match && (d < dim ? t.size(d) : t.stride(d - dim)) == expected;
    }
  }
  return match;
}

int64_t ProgramReader::next() {
  RF_CHECK(at_ != end_, "run_program: the code ends inside a call; it must be that of a resnet_fused Program");
  return *at_++;
}

const Tensor& ProgramReader::last() const {
  RF_CHECK(values_.back(), "run_program: the code ends its own result; it must be that of a resnet_fused Program");
  return *values_.back();
}

bool ProgramReader::holds(const void* data) const {
  return std::any_of(values_.begin(), values_.end(),
                     [&](const OptTensor& value) { return value && value->const_data_ptr() == data; });
}

const Tensor& ProgramReader::tensor(int64_t reference) const {
  const size_t i = static_cast<size_t>(reference) / 2, count = reference % 2 ? tensors_.size() : values_.size();
  RF_CHECK(reference >= 0 && i < count && (reference % 2 || values_[i]), "run_program: the code refers to ",
           reference % 2 ? "tensor " : "value ", i,
           ", which does not exist; it must be that of a resnet_fused Program");
  return reference % 2 ? tensors_[i] : *values_[i];
}

void ProgramReader::finish_call(Tensor result) {
  values_.emplace_back(std::move(result));
  for (int64_t ended = next(); ended > 0; --ended) {
    const auto i = static_cast<size_t>(next());
    if (i < values_.size()) values_[i].reset();
  }
}

template <>
Tensor read_argument<Tensor>(ProgramReader& r) {
  return r.tensor(r.next());
}

template <>
OptTensor read_argument<OptTensor>(ProgramReader& r) {
  const int64_t reference = r.next();
  return reference == -1 ? OptTensor() : OptTensor(r.tensor(reference));
}

template <>
double read_argument<double>(ProgramReader& r) {
  const int64_t bits = r.next();
  double value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

template <>
int64_t read_argument<int64_t>(ProgramReader& r) {
  return r.next();
}

template <>
bool read_argument<bool>(ProgramReader& r) {
  return r.next() != 0;
}

template <>
Ints read_argument<Ints>(ProgramReader& r) {
  Ints values;
  for (int64_t left = r.next(); left > 0; --left) values.push_back(r.next());
  return values;
}

}  // namespace resnet_fused::cpu
