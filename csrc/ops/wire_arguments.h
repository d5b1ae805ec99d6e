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

}  // namespace dmt
