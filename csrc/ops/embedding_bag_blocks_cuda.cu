#include "../kernels/cuda/embedding_bag_blocks.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>

#include "device_arguments.h"
#include "wire_arguments.h"

namespace dmt {
namespace {

void embedding_bag_blocks_(std::vector<Tensor> blocks, const std::vector<Tensor>& tables, const Tensor& ids,
                           const Tensor& offsets, const OptionalTensor& per_sample_weights,
                           const OptionalInts& feature_tables, const OptionalInts& poolings,
                           const OptionalInts& row_starts, const OptionalInts& block_order, int64_t bounds,
                           int64_t format) {
  const char* op = "embedding_bag_blocks_";
  const Bounds mode = check_bounds_mode(op, bounds);
  const WireFormat wire = check_format(op, format);
  const OnDevice device(ids);
  const TableArguments rows(op, tables);
  const BagArguments bags(op, rows.rows(), rows.dims(), ScalarType::Float, ids, offsets, per_sample_weights,
                          feature_tables, poolings, row_starts, block_order);
  const auto targets = pooled_blocks<cuda::PooledBlock>(op, blocks, bags, rows.dtype(), wire);
  DeviceBags on_device(op, rows, bags, ids, mode == Bounds::error);
  on_device.upload(ids, device.stream());
  Uploads uploads;
  const void* const blocks_there = uploads.put(
      ids, targets.data(), static_cast<int64_t>(targets.size() * sizeof(cuda::PooledBlock)), device.stream());
  cuda::embedding_bag_blocks(on_device.layout(), on_device.dtype(), static_cast<const cuda::PooledBlock*>(blocks_there),
                             wire, on_device.widest_dim(), device.stream());
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(DMT_LIBRARY, DMT_DISPATCH_KEY, ops) {
  ops.impl("embedding_bag_blocks_", TORCH_BOX(&embedding_bag_blocks_));
}

}  // namespace dmt
