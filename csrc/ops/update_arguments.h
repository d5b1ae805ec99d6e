// Checks of what an update takes beside bags, for the adapters of every device.
#pragma once

#include <cstdint>
#include <vector>

#include "../kernels/random_rounding.h"
#include "../kernels/row_update.h"
#include "bag_arguments.h"

namespace dmt {

// The pooled output's gradient: in the tables' dtype or in the type of sums, made contiguous.
inline Tensor update_grad(const char* op, const Tensor& grad, const BagArguments& bags, ScalarType table_dtype) {
  check_here(op, "grad", grad);
  const ScalarType sums = accumulator(table_dtype);
  check(grad.scalar_type() == table_dtype || grad.scalar_type() == sums, op, "grad of ", dtype_name(table_dtype),
        " tables must be ", dtype_name(table_dtype), sums == table_dtype ? "" : " or float32", ", got ",
        dtype_name(grad.scalar_type()));
  check_pooled_shape(op, grad, bags);
  return contiguous_as(grad, grad.scalar_type());
}

inline Optimizer check_optimizer(const char* op, int64_t optimizer) {
  check(optimizer >= 0 && optimizer <= 2, op, "optimizer must be 0 (sgd), 1 (adagrad) or 2 (rowwise_adagrad), got ",
        optimizer);
  return static_cast<Optimizer>(optimizer);
}

inline void check_states(const char* op, Optimizer optimizer, const TableArguments& tables,
                         const std::vector<Tensor>& states) {
  const size_t expected = optimizer == Optimizer::sgd ? 0 : tables.rows().size();
  check(states.size() == expected, op, "expected ", expected, " states, got ", states.size());
  for (size_t i = 0; i < states.size(); ++i) {
    const Tensor& state = states[i];
    const Element name = {"states", i};
    check_here(op, name, state);
    check(state.scalar_type() == accumulator(tables.dtype()), op, name, " must be ",
          dtype_name(accumulator(tables.dtype())), " for ", dtype_name(tables.dtype()), " tables, got ",
          dtype_name(state.scalar_type()));
    const int64_t rows = tables.rows()[i];
    const int64_t dim = tables.dims()[i];
    if (optimizer == Optimizer::rowwise_adagrad) {
      check(state.dim() == 1 && state.size(0) == rows, op, name, " must have shape [", rows, "], got ",
            shape_name(state));
    } else {
      check(state.dim() == 2 && state.size(0) == rows && state.size(1) == dim, op, name, " must have shape [", rows,
            ", ", dim, "], got ", shape_name(state));
      check(dim <= 1 || state.stride(1) == 1, op, "the columns of ", name,
            " must be adjacent in memory (stride(1) == 1)");
    }
  }
}

// rowwise_adagrad's statistic of whole rows, contiguous; its size is not checked.
inline OptionalTensor checked_row_mean_squares(const char* op, Optimizer optimizer, const OptionalTensor& given) {
  if (!given.has_value()) return std::nullopt;
  check(optimizer == Optimizer::rowwise_adagrad, op, "row_mean_squares belongs to rowwise_adagrad only");
  check_here(op, "row_mean_squares", *given);
  check(given->scalar_type() == ScalarType::Double && given->dim() == 1, op,
        "row_mean_squares must be float64 and have 1 dimension, got ", dtype_name(given->scalar_type()), " of shape ",
        shape_name(*given));
  return contiguous_as(*given, ScalarType::Double);
}

// How each table is rounded.
inline std::vector<TableRounding> table_roundings(const char* op, const TableArguments& tables,
                                                  const OptionalInts& seeds, const OptionalTensor& step,
                                                  const OptionalInts& row_starts, const OptionalInts& column_starts) {
  const size_t count = tables.rows().size();
  check(!seeds.has_value() || seeds->size() == count, op, "expected ", count, " seeds, got ",
        seeds.has_value() ? seeds->size() : 0);
  check(!column_starts.has_value() || column_starts->size() == count, op, "expected ", count, " column_starts, got ",
        column_starts.has_value() ? column_starts->size() : 0);
  check(seeds.has_value() == step.has_value(), op, "seeds and step belong together");
  if (step.has_value()) {
    check_here(op, "step", *step);
    check(step->scalar_type() == ScalarType::Long && step->dim() == 0, op,
          "step must be int64 and have no dimensions, got ", dtype_name(step->scalar_type()), " of shape ",
          shape_name(*step));
  }
  std::vector<TableRounding> roundings(count);
  for (size_t i = 0; seeds.has_value() && i < count; ++i) {
    roundings[i] = {true, static_cast<uint64_t>((*seeds)[i]), row_starts.has_value() ? (*row_starts)[i] : 0,
                    column_starts.has_value() ? (*column_starts)[i] : 0};
  }
  return roundings;
}

}  // namespace dmt
