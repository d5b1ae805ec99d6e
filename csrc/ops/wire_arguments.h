// Checks of rows and messages, for the adapters of every device.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <cstdint>
#include <vector>

#include "../kernels/wire_format.h"
#include "bag_arguments.h"

namespace dmt {

constexpr const char* kFormatNames[kWireFormats] = {"fp32", "bf16", "fp16", "fp8", "int8"};

inline WireFormat check_format(const char* op, int64_t format) {
  check(format >= 0 && format < kWireFormats, op,
        "format must be 0 (fp32), 1 (bf16), 2 (fp16), 3 (fp8) or 4 (int8), got ", format);
  return static_cast<WireFormat>(format);
}

// With adjacent columns; rows may be further apart.
inline Tensor with_adjacent_columns(const Tensor& tensor) {
  return tensor.size(1) <= 1 || tensor.stride(1) == 1 ? tensor : torch::stable::contiguous(tensor);
}

inline void check_bytes(const char* op, const Tensor& message) {
  check_here(op, "message", message);
  check(message.scalar_type() == ScalarType::Byte, op, "message must be uint8, got ",
        dtype_name(message.scalar_type()));
}

// A message of rows of `dim` columns.
inline void check_encoded_rows(const char* op, const Tensor& message, int64_t dim, WireFormat format) {
  check(dim >= 0, op, "dim must not be negative, got ", dim);
  check_bytes(op, message);
  const int64_t row_bytes = wire_row_bytes(format, dim);
  check(message.dim() == 2 && message.size(1) == row_bytes, op, "message must be [N, ", row_bytes, "] for ", dim, " ",
        kFormatNames[static_cast<int>(format)], " columns, got ", shape_name(message));
}

// Blocks that a kernel reads or writes where they are, and a message of the size that they have in it.
inline void check_blocks(const char* op, const std::vector<Tensor>& blocks, const Tensor& message, WireFormat format) {
  int64_t size = 0;
  for (size_t i = 0; i < blocks.size(); ++i) {
    const Element block{"blocks", i};
    check_here(op, block, blocks[i]);
    check_dim(op, block, blocks[i], 2);
    check_floating(op, block, blocks[i].scalar_type());
    check(blocks[i].size(1) <= 1 || blocks[i].stride(1) == 1, op, block, " must have adjacent columns");
    size += blocks[i].size(0) * wire_row_bytes(format, blocks[i].size(1));
  }
  check_bytes(op, message);
  check(message.dim() == 1 && message.size(0) == size && (size <= 1 || message.stride(0) == 1), op, "message must be [",
        size, "], adjacent in memory, for these blocks, got ", shape_name(message));
}

// Rows in the tables' dtype, or, of bytes, a message.
inline void check_pooled_block(const char* op, const Element& name, const Tensor& block, int64_t rows, int64_t width,
                               ScalarType dtype, WireFormat format) {
  check_here(op, name, block);
  const bool is_encoded = block.scalar_type() == ScalarType::Byte;
  check(is_encoded || block.scalar_type() == dtype, op, name, " must be ", dtype_name(dtype),
        " like the tables, or uint8, got ", dtype_name(block.scalar_type()));
  const int64_t columns = is_encoded ? wire_row_bytes(format, width) : width;
  check(block.dim() == 2 && block.size(0) == rows && block.size(1) == columns, op, name, " must be [", rows, ", ",
        columns, "], got ", shape_name(block));
  check(columns <= 1 || block.stride(1) == 1, op, name, " must have adjacent columns");
}

// Where the rows of each block of bags go, in the order of the output: several lie side by side in a block of rows.
template <class PooledBlock>
std::vector<PooledBlock> pooled_blocks(const char* op, const std::vector<Tensor>& blocks, const BagArguments& bags,
                                       ScalarType dtype, WireFormat format) {
  const int64_t count = static_cast<int64_t>(blocks.size());
  const int64_t num_blocks = bags.layout().num_blocks;
  check(count > 0 && num_blocks % count == 0, op, "the ", num_blocks, " blocks of bags do not make ", count,
        " equal blocks of rows");
  const int64_t merged = num_blocks / count;
  std::vector<PooledBlock> targets;
  targets.reserve(static_cast<size_t>(num_blocks));
  for (size_t i = 0; i < blocks.size(); ++i) {
    const Tensor& block = blocks[i];
    check_pooled_block(op, {"blocks", i}, block, merged * bags.layout().num_samples, bags.width(), dtype, format);
    const int64_t stride = block.stride(0) * static_cast<int64_t>(block.element_size());
    uint8_t* data = static_cast<uint8_t*>(block.mutable_data_ptr());
    for (int64_t k = 0; k < merged; ++k) {
      targets.push_back(PooledBlock{data, stride, block.scalar_type() == ScalarType::Byte});
      data += bags.layout().num_samples * stride;
    }
  }
  return targets;
}

}  // namespace dmt
