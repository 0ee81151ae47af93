// A program: op calls captured in Python (resnet_fused/chain/program.py) that run as one op.
//
// The code is a list of int64. It begins with the dtype (kDtypes), number of dimensions, sizes and strides of each of
// `tensors`, which are those of the capture. Then a call is the op's number, its arguments in the order of the schema,
// and the number and indices of the values that end with it:
//   Tensor     2 * i: value i (0 is x, i > 0 the result of call i - 1); 2 * i + 1: tensors[i]; -1: none
//   float      the bits of a double
//   int, bool  itself
//   int[]      the length, then the numbers
#pragma once
#include <tuple>
#include <utility>

#include "common/torch_abi.h"

namespace resnet_fused::cpu {

class ProgramReader {
 public:
  ProgramReader(const Tensor& x, const std::vector<Tensor>& tensors, const int64_t* code, int64_t size)
      : values_{x}, tensors_(tensors), at_(code), end_(code + size) {}

  // Reads the head of the code; false if a tensor has another dtype, shape or strides.
  bool tensors_match();
  bool at_end() const { return at_ == end_; }
  int64_t next();
  const Tensor& tensor(int64_t reference) const;
  // Appends the result of a call, and drops the values that end with it.
  void finish_call(Tensor result);
  const Tensor& last() const;
  // Whether a value that has not ended is stored at this address.
  bool holds(const void* data) const;

 private:
  std::vector<OptTensor> values_;
  const std::vector<Tensor>& tensors_;
  const int64_t *at_, *end_;
};

template <typename T>
T read_argument(ProgramReader& r);
template <>
Tensor read_argument<Tensor>(ProgramReader& r);
template <>
OptTensor read_argument<OptTensor>(ProgramReader& r);
template <>
double read_argument<double>(ProgramReader& r);
template <>
int64_t read_argument<int64_t>(ProgramReader& r);
template <>
bool read_argument<bool>(ProgramReader& r);
template <>
Ints read_argument<Ints>(ProgramReader& r);

template <typename... Args>
Tensor call_with_code(Tensor (*f)(Args...), ProgramReader& r) {
  std::tuple<Args...> args{read_argument<Args>(r)...};  // braces: read from left to right
  return std::apply(f, std::move(args));
}

// Calls f with arguments of its own types from the code.
template <auto f>
Tensor replay(ProgramReader& r) {
  return call_with_code(f, r);
}

struct ProgramOp {
  const char* name;
  Tensor (*call)(ProgramReader&);
  bool defers;  // it reads no activation other than by convolutions that may wait (deferred.h)
};

}  // namespace resnet_fused::cpu
