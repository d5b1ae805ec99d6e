#include "../kernels/cpu/embedding_bag_blocks.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "wire_arguments.h"

namespace dmt {
namespace {

// Rows in the tables' dtype, or, of bytes, a message.
void check_block(const char* op, const Element& name, const Tensor& block, int64_t rows, int64_t width,
                 ScalarType dtype, WireFormat format) {
  check_cpu(op, name, block);
  const bool is_encoded = block.scalar_type() == ScalarType::Byte;
  check(is_encoded || block.scalar_type() == dtype, op, name, " must be ", dtype_name(dtype),
        " like the tables, or uint8, got ", dtype_name(block.scalar_type()));
  const int64_t columns = is_encoded ? wire_row_bytes(format, width) : width;
  check(block.dim() == 2 && block.size(0) == rows && block.size(1) == columns, op, name, " must be [", rows, ", ",
        columns, "], got ", shape_name(block));
  check(columns <= 1 || block.stride(1) == 1, op, name, " must have adjacent columns");
}

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
  const int64_t count = static_cast<int64_t>(blocks.size());
  const int64_t num_blocks = bags.layout().num_blocks;
  check(count > 0 && num_blocks % count == 0, op, "the ", num_blocks, " blocks of bags do not make ", count,
        " equal blocks of rows");
  const int64_t merged = num_blocks / count;  // blocks of bags, side by side in a block of rows
  std::vector<cpu::PooledBlock> targets;
  targets.reserve(num_blocks);
  for (size_t i = 0; i < blocks.size(); ++i) {
    const Tensor& block = blocks[i];
    check_block(op, {"blocks", i}, block, merged * bags.layout().num_samples, bags.width(), rows.dtype(), wire);
    const int64_t stride = block.stride(0) * static_cast<int64_t>(block.element_size());
    uint8_t* data = static_cast<uint8_t*>(block.mutable_data_ptr());
    for (int64_t k = 0; k < merged; ++k) {
      targets.push_back({data, stride, block.scalar_type() == ScalarType::Byte});
      data += bags.layout().num_samples * stride;
    }
  }
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
