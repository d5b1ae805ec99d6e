#include "../kernels/cpu/tower_pool.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "../kernels/cpu/tower_pool_backward.h"
#include "../kernels/cpu/tower_pool_pooled_backward.h"
#include "output_pages.h"
#include "tower_arguments.h"

namespace dmt {
namespace {

Tensor tower_pool(const std::vector<Tensor>& tables, const Tensor& ids, const Tensor& offsets, const Tensor& weight,
                  const OptionalTensor& bias, const OptionalTensor& per_sample_weights,
                  const OptionalInts& feature_tables, const OptionalInts& poolings, const OptionalInts& row_starts,
                  const OptionalInts& block_order, int64_t bounds, bool /*sparse: the gradient's layout*/,
                  std::optional<ScalarType> product_dtype, bool tf32) {
  const char* op = "tower_pool";
  const Bounds mode = check_bounds_mode(op, bounds);
  const TableArguments rows(op, tables);
  const BagArguments bags(op, rows.rows(), rows.dims(), accumulator(rows.dtype()), ids, offsets, per_sample_weights,
                          feature_tables, poolings, row_starts, block_order);
  const ScalarType dtype = tables.empty() ? weight.scalar_type() : rows.dtype();
  const TowerArguments tower(op, dtype, bags.width(), weight, bias);
  const int64_t out_width = tower.weight.size(0);
  const ScalarType sums = accumulator(dtype);
  const bool bfloat16_products = rounds_products(op, dtype, product_dtype, tf32);

  const cpu::ParallelFor threads = torch_threads();
  const cpu::TowerPoolKernels& kernels = cpu::tower_pool_kernels();
  cpu::TableData data = rows.data();
  data.dtype = kernel_dtype(dtype);
  const cpu::TowerModule module = {
      .weight = tower.weight.const_data_ptr(),
      .bias = tower.bias.has_value() ? tower.bias->const_data_ptr() : nullptr,
      .out_width = out_width,
      .bfloat16_products = bfloat16_products,
  };
  const Tensor out = torch::stable::empty({bags.out_rows(), out_width}, dtype);
  ask_for_huge_pages(out);
  const int64_t scratch_size = kernels.scratch_size(bags.layout(), module, data.dtype, threads);
  const Tensor scratch = torch::stable::empty({scratch_size}, sums);
  const int64_t missing =
      kernels.pool(bags.layout(), data, module, out.mutable_data_ptr(), scratch.mutable_data_ptr(), threads);
  if (mode == Bounds::error && missing > 0) check_ids_in_bounds(op, bags.layout());
  return out;
}

Tensor tower_pool_weight_backward(const Tensor& grad, const std::vector<Tensor>& tables, const Tensor& ids,
                                  const Tensor& offsets, const OptionalTensor& per_sample_weights,
                                  const OptionalInts& feature_tables, const OptionalInts& poolings,
                                  const OptionalInts& row_starts, const OptionalInts& block_order,
                                  std::optional<ScalarType> product_dtype, bool tf32) {
  const char* op = "tower_pool_weight_backward";
  const TableArguments rows(op, tables);
  check_floating(op, "grad", grad.scalar_type());
  const ScalarType dtype = tables.empty() ? grad.scalar_type() : rows.dtype();
  const ScalarType sums = accumulator(dtype);
  const BagArguments bags(op, rows.rows(), rows.dims(), sums, ids, offsets, per_sample_weights, feature_tables,
                          poolings, row_starts, block_order);
  check_cpu(op, "grad", grad);
  check(grad.dim() == 2 && grad.size(0) == bags.out_rows(), op, "grad must be [", bags.out_rows(),
        ", C], a row per row of the output, got ", shape_name(grad));
  const Tensor dense_grad = contiguous_as(grad, sums);
  const cpu::TowerGradient gradient = {
      .grad = dense_grad.const_data_ptr(),
      .out_width = grad.size(1),
      .bfloat16_products = rounds_products(op, dtype, product_dtype, tf32),
  };
  if (bags.out_rows() == 0) return torch::stable::new_zeros(grad, {grad.size(1), bags.width()}, dtype);

  const cpu::ParallelFor threads = torch_threads();
  const cpu::TowerPoolBackwardKernels& kernels = cpu::tower_pool_backward_kernels();
  cpu::TableData data = rows.data();
  data.dtype = kernel_dtype(dtype);
  const Tensor out = torch::stable::empty({grad.size(1), bags.width()}, dtype);
  ask_for_huge_pages(out);
  const Tensor scratch =
      torch::stable::empty({kernels.scratch_size(bags.layout(), gradient, data.dtype, threads)}, sums);
  ask_for_huge_pages(scratch);
  kernels.weight(bags.layout(), data, gradient, out.mutable_data_ptr(), scratch.mutable_data_ptr(), threads);
  return out;
}

Tensor tower_pool_pooled_backward(const Tensor& grad, const Tensor& weight, std::optional<ScalarType> product_dtype,
                                  bool tf32) {
  const char* op = "tower_pool_pooled_backward";
  check_gradient_and_weight(op, grad, weight);
  const ScalarType sums = accumulator(weight.scalar_type());
  const Tensor dense_grad = contiguous_as(grad, sums);
  const Tensor rows = weight.stride(1) == 1 ? weight : torch::stable::contiguous(weight);
  const cpu::TowerPooledGradient gradient = {
      .grad = dense_grad.const_data_ptr(),
      .num_rows = grad.size(0),
      .out_width = grad.size(1),
      .weight = rows.const_data_ptr(),
      .stride = rows.stride(0),
      .width = weight.size(1),
      .dtype = kernel_dtype(weight.scalar_type()),
      .bfloat16_products = rounds_products(op, weight.scalar_type(), product_dtype, tf32),
  };
  const cpu::ParallelFor threads = torch_threads();
  const cpu::TowerPoolPooledBackwardKernels& kernels = cpu::tower_pool_pooled_backward_kernels();
  const Tensor out = torch::stable::empty({grad.size(0), weight.size(1)}, sums);
  ask_for_huge_pages(out);
  const Tensor scratch = torch::stable::empty({kernels.scratch_size(gradient, threads)}, sums);
  kernels.pooled(gradient, out.mutable_data_ptr(), scratch.mutable_data_ptr(), threads);
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(dmt, CPU, ops) {
  ops.impl("tower_pool", TORCH_BOX(&tower_pool));
  ops.impl("tower_pool_weight_backward", TORCH_BOX(&tower_pool_weight_backward));
  ops.impl("tower_pool_pooled_backward", TORCH_BOX(&tower_pool_pooled_backward));
}

}  // namespace dmt
