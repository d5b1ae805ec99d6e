#include "../kernels/cpu/embedding_bag.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "bag_arguments.h"
#include "output_pages.h"

namespace dmt {
namespace {

Tensor embedding_bag(const std::vector<Tensor>& tables, const Tensor& ids, const Tensor& offsets,
                     const OptionalTensor& per_sample_weights, const OptionalInts& feature_tables,
                     const OptionalInts& poolings, const OptionalInts& row_starts, const OptionalInts& block_order,
                     int64_t bounds, std::optional<ScalarType> out_dtype, bool /*sparse: the gradient's layout*/) {
  const char* op = "embedding_bag";
  const Bounds mode = check_bounds_mode(op, bounds);
  const TableArguments rows(op, tables);
  const BagArguments bags(op, rows.rows(), rows.dims(), accumulator(rows.dtype()), ids, offsets, per_sample_weights,
                          feature_tables, poolings, row_starts, block_order);
  const ScalarType out_type = out_dtype.value_or(rows.dtype());
  check_floating(op, "out_dtype", out_type);
  check(accumulator(out_type) == accumulator(rows.dtype()), op, "tables of ", dtype_name(rows.dtype()),
        " cannot give out_dtype ", dtype_name(out_type), ": float64 goes with float64 only");
  const Tensor out = torch::stable::empty({bags.out_rows(), bags.width()}, out_type);
  ask_for_huge_pages(out);
  const int64_t missing = cpu::embedding_bag_kernels().pool(bags.layout(), rows.data(), out.mutable_data_ptr(),
                                                            kernel_dtype(out_type), torch_threads());
  if (mode == Bounds::error && missing > 0) check_ids_in_bounds(op, bags.layout());
  return out;
}

// The same into memory that is there. Pages that are new cost as much as what is written into them.
void embedding_bag_(const Tensor& out, const std::vector<Tensor>& tables, const Tensor& ids, const Tensor& offsets,
                    const OptionalTensor& per_sample_weights, const OptionalInts& feature_tables,
                    const OptionalInts& poolings, const OptionalInts& row_starts, const OptionalInts& block_order,
                    int64_t bounds) {
  const char* op = "embedding_bag_";
  const Bounds mode = check_bounds_mode(op, bounds);
  const TableArguments rows(op, tables);
  const BagArguments bags(op, rows.rows(), rows.dims(), accumulator(rows.dtype()), ids, offsets, per_sample_weights,
                          feature_tables, poolings, row_starts, block_order);
  check_cpu(op, "out", out);
  check(out.scalar_type() == rows.dtype(), op, "out must be ", dtype_name(rows.dtype()), " like the tables, got ",
        dtype_name(out.scalar_type()));
  check(out.is_contiguous() && out.dim() == 2 && out.size(0) == bags.out_rows() && out.size(1) == bags.width(), op,
        "out must be contiguous, of shape [", bags.out_rows(), ", ", bags.width(), "], got ", shape_name(out));
  if (mode == Bounds::error) check_ids_in_bounds(op, bags.layout());
  cpu::embedding_bag_kernels().pool(bags.layout(), rows.data(), out.mutable_data_ptr(), kernel_dtype(rows.dtype()),
                                    torch_threads());
}

std::vector<Tensor> embedding_bag_backward(const Tensor& grad, const Tensor& ids, const Tensor& offsets,
                                           const OptionalTensor& per_sample_weights,
                                           const std::vector<int64_t>& table_rows,
                                           const std::vector<int64_t>& table_dims, ScalarType dtype,
                                           const OptionalInts& feature_tables, const OptionalInts& poolings,
                                           const OptionalInts& row_starts, const OptionalInts& block_order) {
  const char* op = "embedding_bag_backward";
  check_floating(op, "dtype", dtype);
  const ScalarType type = accumulator(dtype);
  const BagArguments bags(op, table_rows, table_dims, type, ids, offsets, per_sample_weights, feature_tables, poolings,
                          row_starts, block_order);
  const Tensor sums_grad = pooled_grad(op, grad, bags, type);
  std::vector<Tensor> table_grads;
  std::vector<void*> data;
  for (size_t i = 0; i < table_rows.size(); ++i) {
    table_grads.push_back(torch::stable::new_zeros(sums_grad, {table_rows[i], table_dims[i]}));
    data.push_back(table_grads.back().mutable_data_ptr());
  }
  cpu::embedding_bag_kernels().tables_backward(bags.layout(), sums_grad.const_data_ptr(), type == ScalarType::Double,
                                               data.data(), torch_threads());
  for (Tensor& table_grad : table_grads) table_grad = contiguous_as(table_grad, dtype);
  return table_grads;
}

Tensor embedding_bag_weights_backward(const Tensor& grad, const std::vector<Tensor>& tables, const Tensor& ids,
                                      const Tensor& offsets, const OptionalInts& feature_tables,
                                      const OptionalInts& poolings, const OptionalInts& row_starts,
                                      const OptionalInts& block_order) {
  const char* op = "embedding_bag_weights_backward";
  const TableArguments rows(op, tables);
  const ScalarType type = accumulator(rows.dtype());
  const BagArguments bags(op, rows.rows(), rows.dims(), type, ids, offsets, std::nullopt, feature_tables, poolings,
                          row_starts, block_order);
  const Tensor sums_grad = pooled_grad(op, grad, bags, type);
  const Tensor weight_grad = torch::stable::new_zeros(sums_grad, {bags.layout().num_ids});
  cpu::embedding_bag_kernels().weights_backward(bags.layout(), rows.data(), sums_grad.const_data_ptr(),
                                                weight_grad.mutable_data_ptr(), torch_threads());
  return weight_grad;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(dmt, CPU, ops) {
  ops.impl("embedding_bag", TORCH_BOX(&embedding_bag));
  ops.impl("embedding_bag_", TORCH_BOX(&embedding_bag_));
  ops.impl("embedding_bag_backward", TORCH_BOX(&embedding_bag_backward));
  ops.impl("embedding_bag_weights_backward", TORCH_BOX(&embedding_bag_weights_backward));
}

}  // namespace dmt
