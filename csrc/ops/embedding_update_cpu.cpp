#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <string>
#include <utility>

#include "../kernels/cpu/embedding_update_plan.h"
#include "bag_arguments.h"

namespace dmt {
namespace {

// The pooled output's gradient: in the tables' dtype or in the type of sums, made contiguous.
Tensor pooled_grad(const char* op, const Tensor& grad, const BagArguments& bags, ScalarType table_dtype) {
  check_cpu(op, "grad", grad);
  const ScalarType sums = accumulator(table_dtype);
  check(grad.scalar_type() == table_dtype || grad.scalar_type() == sums, op, "grad of ", dtype_name(table_dtype),
        " tables must be ", dtype_name(table_dtype), sums == table_dtype ? "" : " or float32", ", got ",
        dtype_name(grad.scalar_type()));
  check(grad.dim() == 2 && grad.size(0) == bags.out_rows() && grad.size(1) == bags.width(), op,
        "grad must have the shape of the pooled output, [", bags.out_rows(), ", ", bags.width(), "], got ",
        shape_name(grad));
  return contiguous_as(grad, grad.scalar_type());
}

Optimizer check_optimizer(const char* op, int64_t optimizer) {
  check(optimizer >= 0 && optimizer <= 2, op, "optimizer must be 0 (sgd), 1 (adagrad) or 2 (rowwise_adagrad), got ",
        optimizer);
  return static_cast<Optimizer>(optimizer);
}

void check_states(const char* op, Optimizer optimizer, const TableArguments& tables,
                  const std::vector<Tensor>& states) {
  const size_t expected = optimizer == Optimizer::sgd ? 0 : tables.rows().size();
  check(states.size() == expected, op, "expected ", expected, " states, got ", states.size());
  for (size_t i = 0; i < states.size(); ++i) {
    const Tensor& state = states[i];
    const std::string name = "states[" + std::to_string(i) + "]";
    check_cpu(op, name, state);
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

// Table i, without what only some of the callers read.
cpu::TableUpdate table_update(const TableArguments& tables, size_t i, const Tensor& grad, double weight_decay) {
  const cpu::TableData data = tables.data();
  return {
      .table = data.data[i],
      .table_stride = data.strides[i],
      .dim = tables.dims()[i],
      .dtype = data.dtype,
      .state = nullptr,
      .state_stride = 0,
      .grad = grad.const_data_ptr(),
      .grad_dtype = kernel_dtype(grad.scalar_type()),
      .optimizer = Optimizer::sgd,
      .lr = 0,
      .eps = 0,
      .weight_decay = weight_decay,
      .row_mean_squares = nullptr,
  };
}

int64_t scratch_bytes(const cpu::TableUpdate& table) { return table.dim * static_cast<int64_t>(sizeof(double)); }

void embedding_update_(const std::vector<Tensor>& tables, const std::vector<Tensor>& states, const Tensor& grad,
                       const Tensor& ids, const Tensor& offsets, const OptionalTensor& per_sample_weights,
                       const OptionalInts& feature_tables, const OptionalInts& poolings, const OptionalInts& row_starts,
                       const OptionalInts& block_order, int64_t bounds, int64_t optimizer, double lr, double eps,
                       double weight_decay, const OptionalTensor& row_mean_squares) {
  const char* op = "embedding_update_";
  const Bounds mode = check_bounds_mode(op, bounds);
  const Optimizer kind = check_optimizer(op, optimizer);
  const TableArguments rows(op, tables);
  check_states(op, kind, rows, states);
  const BagArguments bags(op, rows.rows(), rows.dims(), accumulator(rows.dtype()), ids, offsets, per_sample_weights,
                          feature_tables, poolings, row_starts, block_order);
  const Tensor bag_grad = pooled_grad(op, grad, bags, rows.dtype());
  if (row_mean_squares.has_value()) {
    check(kind == Optimizer::rowwise_adagrad, op, "row_mean_squares belongs to rowwise_adagrad only");
    check_cpu(op, "row_mean_squares", *row_mean_squares);
    check(row_mean_squares->scalar_type() == ScalarType::Double && row_mean_squares->dim() == 1, op,
          "row_mean_squares must be float64 and have 1 dimension, got ", dtype_name(row_mean_squares->scalar_type()),
          " of shape ", shape_name(*row_mean_squares));
  }
  if (mode == Bounds::error) check_ids_in_bounds(op, bags.layout());

  const cpu::ParallelFor threads = torch_threads();
  const auto group = [&](size_t i) {
    return cpu::group_by_row(bags.layout(), static_cast<int64_t>(i), rows.dtype() == ScalarType::Double, threads);
  };
  // A statistic from outside has to fit the rows of all tables before the first one is written; otherwise the groups of
  // one table at a time are enough.
  OptionalTensor statistic;
  std::vector<cpu::RowGroupsStorage> all_groups;
  if (row_mean_squares.has_value()) {
    statistic = contiguous_as(*row_mean_squares, ScalarType::Double);
    int64_t touched = 0;
    for (size_t i = 0; i < tables.size(); ++i) touched += all_groups.emplace_back(group(i)).view().num_rows;
    check(statistic->size(0) == touched, op, "row_mean_squares has ", statistic->size(0),
          " entries, but the batch touches ", touched, " rows");
  }

  const double* mean_squares =
      statistic.has_value() ? static_cast<const double*>(statistic->const_data_ptr()) : nullptr;
  for (size_t i = 0; i < tables.size(); ++i) {
    const cpu::RowGroupsStorage storage = all_groups.empty() ? group(i) : std::move(all_groups[i]);
    const cpu::RowGroups groups = storage.view();
    cpu::TableUpdate table = table_update(rows, i, bag_grad, weight_decay);
    table.table = tables[i].mutable_data_ptr();
    table.state = states.empty() ? nullptr : states[i].mutable_data_ptr();
    table.state_stride = states.empty() ? 0 : states[i].stride(0);
    table.optimizer = kind;
    table.lr = lr;
    table.eps = eps;
    table.row_mean_squares = mean_squares;
    cpu::for_row_pieces(groups, threads, scratch_bytes(table), [&](int64_t begin, int64_t end, void* scratch) {
      cpu::embedding_update_kernels().update(table, groups, begin, end, scratch);
    });
    if (mean_squares != nullptr) mean_squares += groups.num_rows;
  }
}

std::vector<Tensor> embedding_row_squares(const std::vector<Tensor>& tables, const Tensor& grad, const Tensor& ids,
                                          const Tensor& offsets, const OptionalTensor& per_sample_weights,
                                          const OptionalInts& feature_tables, const OptionalInts& poolings,
                                          const OptionalInts& row_starts, const OptionalInts& block_order,
                                          double weight_decay) {
  const char* op = "embedding_row_squares";
  const TableArguments rows(op, tables);
  const BagArguments bags(op, rows.rows(), rows.dims(), accumulator(rows.dtype()), ids, offsets, per_sample_weights,
                          feature_tables, poolings, row_starts, block_order);
  const Tensor bag_grad = pooled_grad(op, grad, bags, rows.dtype());
  const cpu::ParallelFor threads = torch_threads();

  std::vector<Tensor> squares;
  for (size_t i = 0; i < tables.size(); ++i) {
    const cpu::RowGroupsStorage storage =
        cpu::group_by_row(bags.layout(), static_cast<int64_t>(i), rows.dtype() == ScalarType::Double, threads);
    const cpu::RowGroups groups = storage.view();
    const cpu::TableUpdate table = table_update(rows, i, bag_grad, weight_decay);
    squares.push_back(torch::stable::empty({groups.num_rows}, ScalarType::Double));
    double* const sums = static_cast<double*>(squares.back().mutable_data_ptr());
    cpu::for_row_pieces(groups, threads, scratch_bytes(table), [&](int64_t begin, int64_t end, void* scratch) {
      cpu::embedding_update_kernels().row_squares(table, groups, begin, end, scratch, sums);
    });
  }
  return squares;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(dmt, CPU, ops) {
  ops.impl("embedding_update_", TORCH_BOX(&embedding_update_));
  ops.impl("embedding_row_squares", TORCH_BOX(&embedding_row_squares));
}

}  // namespace dmt
