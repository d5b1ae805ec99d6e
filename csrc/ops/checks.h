// Argument checks whose messages name the op, the culprit and what was expected. (The stable ABI's own messages print
// header paths.)
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cstddef>
#include <cstdint>
#include <ostream>
#include <sstream>
#include <stdexcept>
#include <vector>

namespace dmt {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

template <class... Parts>
[[noreturn]] void fail(const char* op, const Parts&... parts) {
  std::ostringstream message;
  message << op << ": ";
  (message << ... << parts);
  throw std::runtime_error(message.str());
}

template <class... Parts>
void check(bool condition, const char* op, const Parts&... parts) {
  if (!condition) fail(op, parts...);
}

inline const char* dtype_name(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Double:
      return "float64";
    case ScalarType::Float:
      return "float32";
    case ScalarType::Half:
      return "float16";
    case ScalarType::BFloat16:
      return "bfloat16";
    case ScalarType::Long:
      return "int64";
    case ScalarType::Int:
      return "int32";
    case ScalarType::Short:
      return "int16";
    case ScalarType::Byte:
      return "uint8";
    case ScalarType::Bool:
      return "bool";
    default:
      return torch::headeronly::toString(dtype);
  }
}

// Parts of messages that cost nothing until they are written.

// An element of a list argument: tables[3].
struct Element {
  const char* list;
  size_t index;

  friend std::ostream& operator<<(std::ostream& out, const Element& element) {
    return out << element.list << '[' << element.index << ']';
  }
};

// A tensor's shape: [2, 3].
struct ShapeName {
  const Tensor& tensor;

  friend std::ostream& operator<<(std::ostream& out, const ShapeName& name) {
    out << '[';
    for (int64_t i = 0; i < name.tensor.dim(); ++i) out << (i > 0 ? ", " : "") << name.tensor.size(i);
    return out << ']';
  }
};

inline ShapeName shape_name(const Tensor& tensor) { return {tensor}; }

// `name`: a string, or an Element.

template <class Name>
void check_cpu(const char* op, const Name& name, const Tensor& tensor) {
  check(tensor.is_cpu(), op, name, " must be a CPU tensor, as the other arguments are");
}

template <class Name>
void check_dim(const char* op, const Name& name, const Tensor& tensor, int64_t dim) {
  check(tensor.dim() == dim, op, name, " must have ", dim, dim == 1 ? " dimension" : " dimensions", ", got shape ",
        shape_name(tensor));
}

inline bool is_floating(ScalarType dtype) {
  return dtype == ScalarType::Double || dtype == ScalarType::Float || dtype == ScalarType::Half ||
         dtype == ScalarType::BFloat16;
}

template <class Name>
void check_floating(const char* op, const Name& name, ScalarType dtype) {
  check(is_floating(dtype), op, name, " must be float64, float32, float16 or bfloat16, got ", dtype_name(dtype));
}

// The type in which sums over `dtype` are kept.
inline ScalarType accumulator(ScalarType dtype) {
  return dtype == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

}  // namespace dmt
