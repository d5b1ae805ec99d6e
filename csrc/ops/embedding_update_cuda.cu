#include "../kernels/cuda/embedding_update.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "device_arguments.h"
#include "update_arguments.h"

namespace dmt {
namespace {

// `states`: empty for sgd.
void update(const char* op, const std::vector<Tensor>& tables, const std::vector<Tensor>& states, const Tensor& grad,
            const TableArguments& rows, const BagArguments& bags, const Tensor& ids, Bounds mode, Optimizer optimizer,
            const OptimizerSettings<float>& settings, const std::vector<TableRounding>& roundings,
            const OptionalTensor& step, const cuda::RowStatistic& statistic, const OnDevice& device) {
  DeviceBags on_device(op, rows, bags, ids, mode == Bounds::error);
  std::vector<cuda::UpdatedTable> updated;
  int64_t key = 0;
  for (size_t i = 0; i < tables.size(); ++i) {
    updated.push_back({
        .data = tables[i].mutable_data_ptr(),
        .state = states.empty() ? nullptr : static_cast<float*>(states[i].mutable_data_ptr()),
        .stride = tables[i].stride(0),
        .state_stride = states.empty() ? 0 : states[i].stride(0),
        .first_key = key,
        .end_key = key + rows.rows()[i],
        .dim = rows.dims()[i],
        .seed = roundings[i].seed,
        .first_row = roundings[i].first_row,
        .first_column = roundings[i].first_column,
    });
    key = updated.back().end_key;
  }
  const cuda::Gradient gradient = {grad.const_data_ptr(), grad.scalar_type() == ScalarType::Float};
  const bool is_ranked = statistic.mean_squares != nullptr || statistic.squares != nullptr;
  int64_t workspace_bytes = 0;
  cuda::UpdatePlan plan = cuda::plan_update(on_device.layout(), on_device.features(), updated, on_device.dtype(),
                                            gradient, is_ranked, workspace_bytes);
  on_device.upload(ids, device.stream());
  Uploads uploads;
  const void* const tables_there = uploads.put(
      ids, updated.data(), static_cast<int64_t>(updated.size() * sizeof(cuda::UpdatedTable)), device.stream());
  const Tensor workspace = device_bytes(ids, workspace_bytes);
  cuda::place_workspace(plan, workspace.mutable_data_ptr());
  cuda::run_update(on_device.layout(), plan, static_cast<const cuda::UpdatedTable*>(tables_there),
                   static_cast<int64_t>(updated.size()), on_device.dtype(), gradient, optimizer, settings,
                   step.has_value() ? static_cast<const int64_t*>(step->const_data_ptr()) : nullptr, statistic,
                   device.stream());
}

void embedding_update_(const std::vector<Tensor>& tables, const std::vector<Tensor>& states, const Tensor& grad,
                       const Tensor& ids, const Tensor& offsets, const OptionalTensor& per_sample_weights,
                       const OptionalInts& feature_tables, const OptionalInts& poolings, const OptionalInts& row_starts,
                       const OptionalInts& block_order, int64_t bounds, int64_t optimizer, double lr, double eps,
                       double weight_decay, const OptionalTensor& row_mean_squares, const OptionalInts& seeds,
                       const OptionalTensor& step, const OptionalInts& column_starts) {
  const char* op = "embedding_update_";
  const Bounds mode = check_bounds_mode(op, bounds);
  const Optimizer kind = check_optimizer(op, optimizer);
  const OnDevice device(ids);
  const TableArguments rows(op, tables);
  check_states(op, kind, rows, states);
  const BagArguments bags(op, rows.rows(), rows.dims(), ScalarType::Float, ids, offsets, per_sample_weights,
                          feature_tables, poolings, row_starts, block_order);
  const Tensor bag_grad = update_grad(op, grad, bags, rows.dtype());
  const OptionalTensor mean_squares = checked_row_mean_squares(op, kind, row_mean_squares);
  cuda::RowStatistic statistic = {};
  if (mean_squares.has_value()) {
    statistic.mean_squares = static_cast<const double*>(mean_squares->const_data_ptr());
    statistic.count = mean_squares->size(0);
  }
  const OptimizerSettings<float> settings = {static_cast<float>(lr), static_cast<float>(eps),
                                             static_cast<float>(weight_decay)};
  update(op, tables, states, bag_grad, rows, bags, ids, mode, kind, settings,
         table_roundings(op, rows, seeds, step, row_starts, column_starts), step, statistic, device);
}

// Waits for the device, the only op that does: how many rows are touched is known there.
std::vector<Tensor> embedding_row_squares(const std::vector<Tensor>& tables, const Tensor& grad, const Tensor& ids,
                                          const Tensor& offsets, const OptionalTensor& per_sample_weights,
                                          const OptionalInts& feature_tables, const OptionalInts& poolings,
                                          const OptionalInts& row_starts, const OptionalInts& block_order,
                                          double weight_decay) {
  const char* op = "embedding_row_squares";
  const OnDevice device(ids);
  const TableArguments rows(op, tables);
  const BagArguments bags(op, rows.rows(), rows.dims(), ScalarType::Float, ids, offsets, per_sample_weights,
                          feature_tables, poolings, row_starts, block_order);
  const Tensor bag_grad = update_grad(op, grad, bags, rows.dtype());
  const Tensor squares = torch::stable::new_empty(ids, {ids.size(0)}, ScalarType::Double);
  const Tensor ends = torch::stable::new_zeros(ids, {static_cast<int64_t>(tables.size())}, ScalarType::Long);
  const cuda::RowStatistic statistic = {nullptr, 0, static_cast<double*>(squares.mutable_data_ptr()),
                                        static_cast<int64_t*>(ends.mutable_data_ptr())};
  update(op, tables, {}, bag_grad, rows, bags, ids, Bounds::none, Optimizer::sgd,
         {0.0f, 0.0f, static_cast<float>(weight_decay)}, std::vector<TableRounding>(tables.size()), std::nullopt,
         statistic, device);
  std::vector<int64_t> on_host(tables.size());
  cuda::download(on_host.data(), ends.const_data_ptr(), static_cast<int64_t>(on_host.size() * sizeof(int64_t)),
                 device.stream());
  std::vector<Tensor> results;
  int64_t begin = 0;
  for (const int64_t end : on_host) {
    Tensor whole = squares;
    results.push_back(torch::stable::clone(torch::stable::narrow(whole, 0, begin, end - begin)));
    begin = end;
  }
  return results;
}

std::vector<Tensor> embedding_bag_backward(const Tensor& grad, const Tensor& ids, const Tensor& offsets,
                                           const OptionalTensor& per_sample_weights,
                                           const std::vector<int64_t>& table_rows,
                                           const std::vector<int64_t>& table_dims, ScalarType dtype,
                                           const OptionalInts& feature_tables, const OptionalInts& poolings,
                                           const OptionalInts& row_starts, const OptionalInts& block_order) {
  const char* op = "embedding_bag_backward";
  device_dtype(op, "gradients", dtype);
  const OnDevice device(ids);
  const BagArguments bags(op, table_rows, table_dims, ScalarType::Float, ids, offsets, per_sample_weights,
                          feature_tables, poolings, row_starts, block_order);
  const Tensor sums_grad = pooled_grad(op, grad, bags, ScalarType::Float);
  std::vector<Tensor> table_grads;
  for (size_t i = 0; i < table_rows.size(); ++i) {
    table_grads.push_back(torch::stable::new_zeros(sums_grad, {table_rows[i], table_dims[i]}));
  }
  // The update of tables of zeros: 0 - -1 * g.
  const TableArguments rows(op, table_grads);
  update(op, table_grads, {}, sums_grad, rows, bags, ids, Bounds::none, Optimizer::sgd, {-1.0f, 0.0f, 0.0f},
         std::vector<TableRounding>(table_grads.size()), std::nullopt, {}, device);
  for (Tensor& table_grad : table_grads) table_grad = contiguous_as(table_grad, dtype);
  return table_grads;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(DMT_LIBRARY, DMT_DISPATCH_KEY, ops) {
  ops.impl("embedding_update_", TORCH_BOX(&embedding_update_));
  ops.impl("embedding_row_squares", TORCH_BOX(&embedding_row_squares));
  ops.impl("embedding_bag_backward", TORCH_BOX(&embedding_bag_backward));
}

}  // namespace dmt
