#include "../kernels/cuda/embedding_bag.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "device_arguments.h"

namespace dmt {
namespace {

void pool_into(const char* op, const Tensor& out, const TableArguments& rows, const BagArguments& bags,
               const Tensor& ids, Bounds mode, const OnDevice& device) {
  DeviceBags on_device(op, rows, bags, ids, mode == Bounds::error);
  on_device.upload(ids, device.stream());
  cuda::embedding_bag(on_device.layout(), on_device.dtype(), on_device.widest_dim(), out.mutable_data_ptr(),
                      device_dtype(op, "outputs", out.scalar_type()), device.stream());
}

Tensor embedding_bag(const std::vector<Tensor>& tables, const Tensor& ids, const Tensor& offsets,
                     const OptionalTensor& per_sample_weights, const OptionalInts& feature_tables,
                     const OptionalInts& poolings, const OptionalInts& row_starts, const OptionalInts& block_order,
                     int64_t bounds, std::optional<ScalarType> out_dtype, bool /*sparse: the gradient's layout*/) {
  const char* op = "embedding_bag";
  const Bounds mode = check_bounds_mode(op, bounds);
  const OnDevice device(ids);
  const TableArguments rows(op, tables);
  const BagArguments bags(op, rows.rows(), rows.dims(), ScalarType::Float, ids, offsets, per_sample_weights,
                          feature_tables, poolings, row_starts, block_order);
  const ScalarType out_type = out_dtype.value_or(rows.dtype());
  check_floating(op, "out_dtype", out_type);
  device_dtype(op, "outputs", out_type);  // before anything is allocated
  const Tensor out = torch::stable::new_empty(ids, {bags.out_rows(), bags.width()}, out_type);
  pool_into(op, out, rows, bags, ids, mode, device);
  return out;
}

void embedding_bag_(const Tensor& out, const std::vector<Tensor>& tables, const Tensor& ids, const Tensor& offsets,
                    const OptionalTensor& per_sample_weights, const OptionalInts& feature_tables,
                    const OptionalInts& poolings, const OptionalInts& row_starts, const OptionalInts& block_order,
                    int64_t bounds) {
  const char* op = "embedding_bag_";
  const Bounds mode = check_bounds_mode(op, bounds);
  const OnDevice device(ids);
  const TableArguments rows(op, tables);
  const BagArguments bags(op, rows.rows(), rows.dims(), ScalarType::Float, ids, offsets, per_sample_weights,
                          feature_tables, poolings, row_starts, block_order);
  check_here(op, "out", out);
  check(out.scalar_type() == rows.dtype(), op, "out must be ", dtype_name(rows.dtype()), " like the tables, got ",
        dtype_name(out.scalar_type()));
  check(out.is_contiguous() && out.dim() == 2 && out.size(0) == bags.out_rows() && out.size(1) == bags.width(), op,
        "out must be contiguous, of shape [", bags.out_rows(), ", ", bags.width(), "], got ", shape_name(out));
  pool_into(op, out, rows, bags, ids, mode, device);
}

Tensor embedding_bag_weights_backward(const Tensor& grad, const std::vector<Tensor>& tables, const Tensor& ids,
                                      const Tensor& offsets, const OptionalInts& feature_tables,
                                      const OptionalInts& poolings, const OptionalInts& row_starts,
                                      const OptionalInts& block_order) {
  const char* op = "embedding_bag_weights_backward";
  const OnDevice device(ids);
  const TableArguments rows(op, tables);
  const BagArguments bags(op, rows.rows(), rows.dims(), ScalarType::Float, ids, offsets, std::nullopt, feature_tables,
                          poolings, row_starts, block_order);
  const Tensor sums_grad = pooled_grad(op, grad, bags, ScalarType::Float);
  const Tensor weight_grad = torch::stable::new_zeros(sums_grad, {bags.layout().num_ids});
  DeviceBags on_device(op, rows, bags, ids, false);
  on_device.upload(ids, device.stream());
  cuda::embedding_bag_weights_backward(on_device.layout(), on_device.dtype(), on_device.widest_dim(),
                                       static_cast<const float*>(sums_grad.const_data_ptr()),
                                       static_cast<float*>(weight_grad.mutable_data_ptr()), device.stream());
  return weight_grad;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(DMT_LIBRARY, DMT_DISPATCH_KEY, ops) {
  ops.impl("embedding_bag", TORCH_BOX(&embedding_bag));
  ops.impl("embedding_bag_", TORCH_BOX(&embedding_bag_));
  ops.impl("embedding_bag_weights_backward", TORCH_BOX(&embedding_bag_weights_backward));
}

}  // namespace dmt
