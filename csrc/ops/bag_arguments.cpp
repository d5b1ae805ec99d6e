#include "bag_arguments.h"

#include <torch/csrc/stable/ops.h>

namespace dmt {
namespace {

Tensor integer_vector(const char* op, const char* name, const Tensor& tensor) {
  check_here(op, name, tensor);
  check_dim(op, name, tensor, 1);
  return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}

std::vector<int64_t> identity(int64_t count) {
  std::vector<int64_t> values(count);
  for (int64_t i = 0; i < count; ++i) values[i] = i;
  return values;
}

std::vector<int64_t> check_block_order(const char* op, const OptionalInts& block_order) {
  if (!block_order.has_value()) return {0};
  const int64_t blocks = static_cast<int64_t>(block_order->size());
  check(blocks > 0, op, "block_order must name at least one block");
  std::vector<bool> seen(blocks, false);
  for (const int64_t target : *block_order) {
    check(target >= 0 && target < blocks && !seen[target], op, "block_order must be a permutation of 0..", blocks - 1,
          ", got ", target, " twice or out of range");
    seen[target] = true;
  }
  return *block_order;
}

}  // namespace

cpu::DType kernel_dtype(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Double:
      return cpu::DType::f64;
    case ScalarType::Half:
      return cpu::DType::f16;
    case ScalarType::BFloat16:
      return cpu::DType::bf16;
    default:
      return cpu::DType::f32;
  }
}

Tensor contiguous_as(const Tensor& tensor, ScalarType dtype) {
  const Tensor typed = tensor.scalar_type() == dtype ? tensor : torch::stable::to(tensor, dtype);
  return typed.is_contiguous() ? typed : torch::stable::contiguous(typed);
}

TableArguments::TableArguments(const char* op, const std::vector<Tensor>& tables) {
  rows_.reserve(tables.size());
  dims_.reserve(tables.size());
  strides_.reserve(tables.size());
  data_.reserve(tables.size());
  for (size_t i = 0; i < tables.size(); ++i) {
    const Tensor& table = tables[i];
    const Element name = {"tables", i};
    check_here(op, name, table);
    check_dim(op, name, table, 2);
    const ScalarType dtype = table.scalar_type();
    if (i == 0) dtype_ = dtype;
    check_floating(op, name, dtype);
    check(dtype == dtype_, op, "all tables must have one dtype, but tables[0] is ", dtype_name(dtype_), " and ", name,
          " is ", dtype_name(dtype));
    const int64_t dim = table.size(1);
    check(dim <= 1 || table.stride(1) == 1, op, "the columns of ", name,
          " must be adjacent in memory (stride(1) == 1)");
    rows_.push_back(table.size(0));
    dims_.push_back(dim);
    strides_.push_back(table.stride(0));
    data_.push_back(const_cast<void*>(table.const_data_ptr()));
  }
}

BagArguments::BagArguments(const char* op, const std::vector<int64_t>& table_rows,
                           const std::vector<int64_t>& table_dims, ScalarType accumulator, const Tensor& ids,
                           const Tensor& offsets, const OptionalTensor& weights, const OptionalInts& feature_tables,
                           const OptionalInts& poolings, const OptionalInts& row_starts,
                           const OptionalInts& block_order)
    : ids_(integer_vector(op, "ids", ids)),
      offsets_(integer_vector(op, "offsets", offsets)),
      table_rows_(table_rows),
      table_dims_(table_dims),
      block_order_(check_block_order(op, block_order)) {
  const int64_t num_tables = static_cast<int64_t>(table_rows.size());
  check(table_dims.size() == table_rows.size(), op, "got the rows of ", table_rows.size(), " tables, but the dims of ",
        table_dims.size());
  const ScalarType id_type = ids.scalar_type();
  check(id_type == ScalarType::Long || id_type == ScalarType::Int, op, "ids must be int32 or int64, got ",
        dtype_name(id_type));
  check(offsets.scalar_type() == ScalarType::Long, op, "offsets must be int64, got ",
        dtype_name(offsets.scalar_type()));

  const int64_t width = read_features(op, feature_tables, poolings);
  if (row_starts.has_value()) read_row_starts(op, *row_starts);

  const int64_t num_ids = ids_.size(0);
  const int64_t num_features = static_cast<int64_t>(feature_table_.size());
  const int64_t num_blocks = static_cast<int64_t>(block_order_.size());
  const int64_t num_bags = offsets_.size(0) - 1;
  const int64_t groups = num_blocks * num_features;
  check(num_bags >= 0, op, "offsets must hold one entry more than there are bags, got none");
  check(groups > 0 ? num_bags % groups == 0 : num_bags == 0, op, "offsets has ", num_bags + 1, " entries; ", num_blocks,
        " blocks of ", num_features, " features need ", groups, "*B + 1");
  const int64_t* offset_data = static_cast<const int64_t*>(offsets_.const_data_ptr());
  check_offsets(op, offset_data, num_bags, num_ids);

  if (weights.has_value()) {
    check_here(op, "per_sample_weights", *weights);
    check_floating(op, "per_sample_weights", weights->scalar_type());
    check(weights->dim() == 1 && weights->size(0) == num_ids, op, "per_sample_weights must have the shape of ids, [",
          num_ids, "], got ", shape_name(*weights));
    weights_ = contiguous_as(*weights, accumulator);
  }

  layout_ = {
      .ids = ids_.const_data_ptr(),
      .wide_ids = id_type == ScalarType::Long,
      .num_ids = num_ids,
      .offsets = offset_data,
      .num_blocks = num_blocks,
      .num_features = num_features,
      .num_samples = groups > 0 ? num_bags / groups : 0,
      .block_order = block_order_.data(),
      .feature_table = feature_table_.data(),
      .feature_column = feature_column_.data(),
      .feature_is_mean = feature_is_mean_.get(),
      .width = width,
      .num_tables = num_tables,
      .table_rows = table_rows_.data(),
      .table_dims = table_dims_.data(),
      .row_starts = row_starts.has_value() ? row_starts_.data() : nullptr,
      .weights = weights_.has_value() ? weights_->const_data_ptr() : nullptr,
  };
}

int64_t BagArguments::read_features(const char* op, const OptionalInts& feature_tables, const OptionalInts& poolings) {
  const int64_t num_tables = static_cast<int64_t>(table_dims_.size());
  feature_table_ = feature_tables.has_value() ? *feature_tables : identity(num_tables);
  const int64_t num_features = static_cast<int64_t>(feature_table_.size());
  check(!poolings.has_value() || static_cast<int64_t>(poolings->size()) == num_features, op, "got ", num_features,
        " features, but ", poolings.has_value() ? poolings->size() : 0, " poolings");
  feature_column_.reserve(num_features);
  feature_is_mean_ = std::make_unique<bool[]>(num_features);
  int64_t width = 0;
  for (int64_t f = 0; f < num_features; ++f) {
    const int64_t table = feature_table_[f];
    check(table >= 0 && table < num_tables, op, "feature_tables[", f, "] is ", table, ", but there are ", num_tables,
          " tables");
    const int64_t pooling = poolings.has_value() ? (*poolings)[f] : 0;
    check(pooling == 0 || pooling == 1, op, "poolings[", f, "] must be 0 (sum) or 1 (mean), got ", pooling);
    feature_column_.push_back(width);
    feature_is_mean_[f] = pooling == 1;
    width += table_dims_[table];
  }
  return width;
}

void BagArguments::read_row_starts(const char* op, const std::vector<int64_t>& row_starts) {
  row_starts_ = row_starts;
  check(row_starts_.size() == table_rows_.size(), op, "got ", table_rows_.size(), " tables, but ", row_starts_.size(),
        " row_starts");
  for (size_t i = 0; i < row_starts_.size(); ++i) {
    check(row_starts_[i] >= 0, op, "row_starts[", i, "] is ", row_starts_[i], ", must not be negative");
  }
}

void check_pooled_shape(const char* op, const Tensor& grad, const BagArguments& bags) {
  check(grad.dim() == 2 && grad.size(0) == bags.out_rows() && grad.size(1) == bags.width(), op,
        "grad must have the shape of the pooled output, [", bags.out_rows(), ", ", bags.width(), "], got ",
        shape_name(grad));
}

Tensor pooled_grad(const char* op, const Tensor& grad, const BagArguments& bags, ScalarType type) {
  check_here(op, "grad", grad);
  check_floating(op, "grad", grad.scalar_type());
  check_pooled_shape(op, grad, bags);
  return contiguous_as(grad, type);
}

Bounds check_bounds_mode(const char* op, int64_t bounds) {
  check(bounds >= 0 && bounds <= 2, op, "bounds must be 0 (error), 1 (warn) or 2 (none), got ", bounds);
  return static_cast<Bounds>(bounds);
}

}  // namespace dmt
