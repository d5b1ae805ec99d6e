// Checks of what tower modules take beside bags, for the adapters of every device.
#pragma once

#include <cstdint>
#include <optional>

#include "bag_arguments.h"

namespace dmt {

// Whether factors are rounded to bfloat16 before they are multiplied.
inline bool rounds_products(const char* op, ScalarType dtype, std::optional<ScalarType> product_dtype, bool tf32) {
  const ScalarType sums = accumulator(dtype);
  const ScalarType products = product_dtype.value_or(sums);
  check(products == sums || (products == ScalarType::BFloat16 && sums == ScalarType::Float), op, "product_dtype for ",
        dtype_name(dtype), " tables must be ", dtype_name(sums), sums == ScalarType::Float ? " or bfloat16" : "",
        ", got ", dtype_name(products));
  check(!tf32 || (sums == ScalarType::Float && products == sums), op,
        "tf32 products are those of float32 factors, not ", dtype_name(products));
  return products != sums;
}

// A module's parameters, contiguous and of the tables' dtype.
struct TowerArguments {
  Tensor weight;  // [C, width]
  OptionalTensor bias;

  // Without tables there is no dtype but the weight's, and only the bias is left of the output.
  TowerArguments(const char* op, ScalarType dtype, int64_t width, const Tensor& given_weight,
                 const OptionalTensor& given_bias)
      : weight(checked_weight(op, dtype, width, given_weight)) {
    if (!given_bias.has_value()) return;
    check_here(op, "bias", *given_bias);
    check(given_bias->scalar_type() == dtype, op, "bias must be ", dtype_name(dtype), " as the tables are, got ",
          dtype_name(given_bias->scalar_type()));
    check(given_bias->dim() == 1 && given_bias->size(0) == weight.size(0), op, "bias must be [", weight.size(0),
          "], got ", shape_name(*given_bias));
    bias = contiguous_as(*given_bias, dtype);
  }

 private:
  static Tensor checked_weight(const char* op, ScalarType dtype, int64_t width, const Tensor& weight) {
    check_here(op, "weight", weight);
    check_floating(op, "weight", weight.scalar_type());
    check(weight.scalar_type() == dtype, op, "weight must be ", dtype_name(dtype), " as the tables are, got ",
          dtype_name(weight.scalar_type()));
    check_dim(op, "weight", weight, 2);
    check(weight.size(1) == width, op, "weight must be [C, ", width, "], as wide as the features' dims together, got ",
          shape_name(weight));
    return contiguous_as(weight, dtype);
  }
};

// The gradient [N, C] of what a module sent, and its weight [C, D].
inline void check_gradient_and_weight(const char* op, const Tensor& grad, const Tensor& weight) {
  check_here(op, "grad", grad);
  check_floating(op, "grad", grad.scalar_type());
  check_dim(op, "grad", grad, 2);
  check_here(op, "weight", weight);
  check_floating(op, "weight", weight.scalar_type());
  check(weight.dim() == 2 && weight.size(0) == grad.size(1), op, "weight must be [", grad.size(1),
        ", D], a row per column of grad, got ", shape_name(weight));
}

}  // namespace dmt
