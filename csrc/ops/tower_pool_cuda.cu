#include "../kernels/cuda/tower_pool.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <array>

#include "../kernels/cuda/embedding_bag.h"
#include "device_arguments.h"
#include "tower_arguments.h"

namespace dmt {
namespace {

cuda::Products products_of(const char* op, ScalarType dtype, std::optional<ScalarType> product_dtype, bool tf32) {
  if (rounds_products(op, dtype, product_dtype, tf32)) return cuda::Products::bf16;
  return tf32 ? cuda::Products::tf32 : cuda::Products::f32;
}

cuda::Matrix matrix_of(const Tensor& tensor) {
  return {tensor.const_data_ptr(), tensor.size(0), tensor.size(1), tensor.stride(0), tensor.stride(1)};
}

// Where the two launches more are made up for, by count. (ops/kept_rows.py has the same number.)
constexpr int64_t kLeastLibraryRows = 4096;

// Whether a product is so large that torch's, of factors in memory, is worth what it costs to write them there first:
// measured at 65,536 rows (docs/gpu.md).
bool is_for_library(cuda::Products products, int64_t rows, int64_t columns, int64_t depth) {
  return products == cuda::Products::bf16 && rows >= kLeastLibraryRows && columns > 0 && depth > 0;
}

// a @ b of bfloat16 factors, summed in float: as float, or as bfloat16 where the sums are short enough that nobody adds
// them up from pieces that were rounded. (torch.autocast heeds torch's other product.)
Tensor product(const char* op, const Tensor& a, const Tensor& b, ScalarType dtype) {
  using torch::stable::detail::from;
#if defined(__CUDACC__)
  std::array<StableIValue, 3> stack = {from(a), from(b), from(dtype)};
  const auto error = torch_call_dispatcher("aten::mm", "dtype", stack.data(), TORCH_ABI_VERSION);
#else  // that product is for GPUs alone
  std::array<StableIValue, 2> stack = {from(torch::stable::to(a, ScalarType::Float)),
                                       from(torch::stable::to(b, ScalarType::Float))};
  const auto error = torch_call_dispatcher("aten::mm", "", stack.data(), TORCH_ABI_VERSION);
#endif
  check(error == 0, op, "torch's product of matrices failed");
  return contiguous_as(torch::stable::detail::to<Tensor>(stack[0]), dtype);
}

Tensor pooled_rows(const DeviceBags& bags, int64_t rows, int64_t width, const Tensor& like, cudaStream_t stream) {
  const Tensor pooled = torch::stable::new_empty(like, {rows, width}, ScalarType::BFloat16);
  cuda::embedding_bag(bags.layout(), bags.dtype(), bags.widest_dim(), pooled.mutable_data_ptr(), cuda::DType::bf16,
                      stream);
  return pooled;
}

Tensor tower_pool(const std::vector<Tensor>& tables, const Tensor& ids, const Tensor& offsets, const Tensor& weight,
                  const OptionalTensor& bias, const OptionalTensor& per_sample_weights,
                  const OptionalInts& feature_tables, const OptionalInts& poolings, const OptionalInts& row_starts,
                  const OptionalInts& block_order, int64_t bounds, bool /*sparse: the gradient's layout*/,
                  std::optional<ScalarType> product_dtype, bool tf32) {
  const char* op = "tower_pool";
  const Bounds mode = check_bounds_mode(op, bounds);
  const OnDevice device(ids);
  const TableArguments rows(op, tables);
  const BagArguments bags(op, rows.rows(), rows.dims(), ScalarType::Float, ids, offsets, per_sample_weights,
                          feature_tables, poolings, row_starts, block_order);
  const ScalarType dtype = tables.empty() ? weight.scalar_type() : rows.dtype();
  const TowerArguments tower(op, dtype, bags.width(), weight, bias);
  const cuda::Products products = products_of(op, dtype, product_dtype, tf32);
  DeviceBags on_device(op, rows, bags, ids, mode == Bounds::error);
  on_device.upload(ids, device.stream());
  const cuda::Matrix factors = matrix_of(tower.weight);
  if (is_for_library(products, bags.out_rows(), factors.rows, bags.width()) &&
      !cuda::is_for_hopper(on_device.layout(), on_device.dtype(), factors, products)) {
    const Tensor pooled = pooled_rows(on_device, bags.out_rows(), bags.width(), ids, device.stream());
    const Tensor transposed = torch::stable::transpose(contiguous_as(tower.weight, ScalarType::BFloat16), 0, 1);
    const bool is_whole = !tower.bias.has_value() && dtype != ScalarType::Half;
    const Tensor sums = product(op, pooled, transposed, is_whole ? dtype : ScalarType::Float);
    if (is_whole) return sums;
    const Tensor out = dtype == ScalarType::Float ? sums : torch::stable::new_empty(sums, sums.sizes(), dtype);
    cuda::add_bias(static_cast<const float*>(sums.const_data_ptr()), bags.out_rows(), factors.rows,
                   tower.bias.has_value() ? tower.bias->const_data_ptr() : nullptr, on_device.dtype(),
                   out.mutable_data_ptr(), device.stream());
    return out;
  }
  const Tensor scratch = device_bytes(ids, cuda::packed_bytes(factors, products));
  const Tensor out = torch::stable::new_empty(ids, {bags.out_rows(), factors.rows}, dtype);
  cuda::tower_pool(on_device.layout(), device_dtype(op, "tables", dtype), factors,
                   tower.bias.has_value() ? tower.bias->const_data_ptr() : nullptr, products,
                   scratch.mutable_data_ptr(), out.mutable_data_ptr(), device.stream());
  return out;
}

Tensor tower_pool_weight_backward(const Tensor& grad, const std::vector<Tensor>& tables, const Tensor& ids,
                                  const Tensor& offsets, const OptionalTensor& per_sample_weights,
                                  const OptionalInts& feature_tables, const OptionalInts& poolings,
                                  const OptionalInts& row_starts, const OptionalInts& block_order,
                                  std::optional<ScalarType> product_dtype, bool tf32) {
  const char* op = "tower_pool_weight_backward";
  const OnDevice device(ids);
  const TableArguments rows(op, tables);
  check_floating(op, "grad", grad.scalar_type());
  const ScalarType dtype = tables.empty() ? grad.scalar_type() : rows.dtype();
  const BagArguments bags(op, rows.rows(), rows.dims(), ScalarType::Float, ids, offsets, per_sample_weights,
                          feature_tables, poolings, row_starts, block_order);
  check_here(op, "grad", grad);
  check(grad.dim() == 2 && grad.size(0) == bags.out_rows(), op, "grad must be [", bags.out_rows(),
        ", C], a row per row of the output, got ", shape_name(grad));
  const cuda::Products products = products_of(op, dtype, product_dtype, tf32);
  DeviceBags on_device(op, rows, bags, ids, false);
  on_device.upload(ids, device.stream());
  if (is_for_library(products, bags.out_rows(), grad.size(1), bags.width())) {
    const Tensor transposed = torch::stable::transpose(contiguous_as(grad, ScalarType::BFloat16), 0, 1);
    const Tensor pooled = pooled_rows(on_device, bags.out_rows(), bags.width(), ids, device.stream());
    return contiguous_as(product(op, transposed, pooled, ScalarType::Float), dtype);
  }
  const Tensor sums_grad = contiguous_as(grad, ScalarType::Float);
  const Tensor scratch = device_bytes(ids, cuda::weight_backward_bytes(on_device.layout(), grad.size(1)));
  const Tensor out = torch::stable::new_empty(ids, {grad.size(1), bags.width()}, dtype);
  cuda::tower_pool_weight_backward(on_device.layout(), device_dtype(op, "tables", dtype),
                                   static_cast<const float*>(sums_grad.const_data_ptr()), grad.size(1), products,
                                   scratch.mutable_data_ptr(), out.mutable_data_ptr(), device.stream());
  return out;
}

Tensor tower_pool_pooled_backward(const Tensor& grad, const Tensor& weight, std::optional<ScalarType> product_dtype,
                                  bool tf32) {
  const char* op = "tower_pool_pooled_backward";
  const OnDevice device(grad);
  check_gradient_and_weight(op, grad, weight);
  const cuda::Products products = products_of(op, weight.scalar_type(), product_dtype, tf32);
  if (is_for_library(products, grad.size(0), weight.size(1), weight.size(0))) {
    return product(op, contiguous_as(grad, ScalarType::BFloat16), contiguous_as(weight, ScalarType::BFloat16),
                   ScalarType::Float);
  }
  const Tensor sums_grad = contiguous_as(grad, ScalarType::Float);
  const cuda::Matrix transposed = {weight.const_data_ptr(), weight.size(1), weight.size(0), weight.stride(1),
                                   weight.stride(0)};
  const Tensor scratch = device_bytes(grad, cuda::packed_bytes(transposed, products));
  const Tensor out = torch::stable::new_empty(grad, {grad.size(0), weight.size(1)}, ScalarType::Float);
  cuda::tower_pool_pooled_backward(static_cast<const float*>(sums_grad.const_data_ptr()), grad.size(0), transposed,
                                   device_dtype(op, "weights", weight.scalar_type()), products,
                                   scratch.mutable_data_ptr(), static_cast<float*>(out.mutable_data_ptr()),
                                   device.stream());
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(DMT_LIBRARY, DMT_DISPATCH_KEY, ops) {
  ops.impl("tower_pool", TORCH_BOX(&tower_pool));
  ops.impl("tower_pool_weight_backward", TORCH_BOX(&tower_pool_weight_backward));
  ops.impl("tower_pool_pooled_backward", TORCH_BOX(&tower_pool_pooled_backward));
}

}  // namespace dmt
