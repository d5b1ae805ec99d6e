#include "../kernels/cpu/embedding_bag_blocks.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

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
  const TableArguments rows(op, tables);
  const BagArguments bags(op, rows.rows(), rows.dims(), accumulator(rows.dtype()), ids, offsets, per_sample_weights,
                          feature_tables, poolings, row_starts, block_order);
  const auto targets = pooled_blocks<cpu::PooledBlock>(op, blocks, bags, rows.dtype(), wire);
  if (mode == Bounds::error) check_ids_in_bounds(op, bags.layout());
  const cpu::EmbeddingBagBlocksKernels& kernels = cpu::embedding_bag_blocks_kernels();
  const cpu::ParallelFor threads = torch_threads();
  const cpu::TableData data = rows.data();
  const Tensor scratch =
      torch::stable::empty({kernels.scratch_size(bags.layout(), data.dtype, threads)}, ScalarType::Byte);
  kernels.pool(bags.layout(), data, targets.data(), wire, scratch.mutable_data_ptr(), threads);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(dmt, CPU, ops) { ops.impl("embedding_bag_blocks_", TORCH_BOX(&embedding_bag_blocks_)); }

}  // namespace dmt
