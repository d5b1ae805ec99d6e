// Argument checks whose messages name the op, the culprit and what was expected. (The stable ABI's own messages print
// header paths.)
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cstdint>
#include <sstream>
#include <stdexcept>
#include <string>
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

inline std::string dtype_name(ScalarType dtype) {
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

inline std::string shape_name(const Tensor& tensor) {
  std::ostringstream text;
  text << '[';
  for (int64_t i = 0; i < tensor.dim(); ++i) text << (i > 0 ? ", " : "") << tensor.size(i);
  text << ']';
  return text.str();
}

inline void check_cpu(const char* op, const std::string& name, const Tensor& tensor) {
  check(tensor.is_cpu(), op, name, " must be a CPU tensor, as the other arguments are");
}

inline void check_dim(const char* op, const std::string& name, const Tensor& tensor, int64_t dim) {
  check(tensor.dim() == dim, op, name, " must have ", dim, dim == 1 ? " dimension" : " dimensions", ", got shape ",
        shape_name(tensor));
}

inline bool is_floating(ScalarType dtype) {
  return dtype == ScalarType::Double || dtype == ScalarType::Float || dtype == ScalarType::Half ||
         dtype == ScalarType::BFloat16;
}

inline void check_floating(const char* op, const std::string& name, ScalarType dtype) {
  check(is_floating(dtype), op, name, " must be float64, float32, float16 or bfloat16, got ", dtype_name(dtype));
}

// The type in which sums over `dtype` are kept.
inline ScalarType accumulator(ScalarType dtype) {
  return dtype == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

}  // namespace dmt
