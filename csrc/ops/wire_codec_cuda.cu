#include "../kernels/cuda/wire_codec.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "device_arguments.h"
#include "wire_arguments.h"

namespace dmt {
namespace {

cuda::WireRows rows_of(const Tensor& tensor) {
  return {
      .data = const_cast<void*>(tensor.const_data_ptr()),
      .dtype = device_dtype("wire_encode", "rows", tensor.scalar_type()),
      .rows = tensor.size(0),
      .columns = tensor.size(1),
      .stride = tensor.stride(0),
  };
}

// float64 is rounded to float32 first.
Tensor as_rows(const Tensor& tensor) {
  return with_adjacent_columns(tensor.scalar_type() == ScalarType::Double ? torch::stable::to(tensor, ScalarType::Float)
                                                                          : tensor);
}

cuda::StochasticRounding rounding_of(std::optional<int64_t> seed, int64_t step, int64_t first_row) {
  return {message_key(static_cast<uint64_t>(seed.value_or(0)), static_cast<uint64_t>(step)), first_row};
}

Tensor wire_encode(const Tensor& input, int64_t format, std::optional<int64_t> seed, int64_t step, int64_t first_row) {
  const char* op = "wire_encode";
  const WireFormat wire = check_format(op, format);
  const OnDevice device(input);
  check_here(op, "input", input);
  check_dim(op, "input", input, 2);
  check_floating(op, "input", input.scalar_type());
  const Tensor source = as_rows(input);
  const cuda::WireRows rows = rows_of(source);
  const Tensor message =
      torch::stable::new_empty(input, {rows.rows, wire_row_bytes(wire, rows.columns)}, ScalarType::Byte);
  const cuda::StochasticRounding rounding = rounding_of(seed, step, first_row);
  cuda::wire_encode(rows, wire, seed.has_value() ? &rounding : nullptr,
                    static_cast<uint8_t*>(message.mutable_data_ptr()), device.stream());
  return message;
}

Tensor wire_decode(const Tensor& message, int64_t dim, int64_t format, std::optional<ScalarType> dtype) {
  const char* op = "wire_decode";
  const WireFormat wire = check_format(op, format);
  const ScalarType out_type = dtype.value_or(ScalarType::Float);
  check_floating(op, "dtype", out_type);
  const OnDevice device(message);
  check_encoded_rows(op, message, dim, wire);
  const Tensor source = with_adjacent_columns(message);
  const Tensor out = torch::stable::new_empty(message, {source.size(0), dim},
                                              out_type == ScalarType::Double ? ScalarType::Float : out_type);
  cuda::wire_decode(static_cast<const uint8_t*>(source.const_data_ptr()), source.stride(0), wire, rows_of(out),
                    device.stream());
  return out_type == ScalarType::Double ? torch::stable::to(out, out_type) : out;
}

void wire_encode_blocks_(Tensor message, std::vector<Tensor> blocks, int64_t format, std::optional<int64_t> seed,
                         int64_t step, int64_t first_row) {
  const char* op = "wire_encode_blocks_";
  const WireFormat wire = check_format(op, format);
  const OnDevice device(message);
  check_blocks(op, blocks, message, wire);
  uint8_t* bytes = static_cast<uint8_t*>(message.mutable_data_ptr());
  cuda::StochasticRounding rounding = rounding_of(seed, step, first_row);
  for (const Tensor& block : blocks) {
    const Tensor source = as_rows(block);
    const cuda::WireRows rows = rows_of(source);
    cuda::wire_encode(rows, wire, seed.has_value() ? &rounding : nullptr, bytes, device.stream());
    bytes += rows.rows * wire_row_bytes(wire, rows.columns);
    rounding.first_row += rows.rows;
  }
}

void wire_decode_blocks_(std::vector<Tensor> blocks, Tensor message, int64_t format) {
  const char* op = "wire_decode_blocks_";
  const WireFormat wire = check_format(op, format);
  const OnDevice device(message);
  check_blocks(op, blocks, message, wire);
  const uint8_t* bytes = static_cast<const uint8_t*>(message.const_data_ptr());
  for (Tensor& block : blocks) {
    const int64_t row_bytes = wire_row_bytes(wire, block.size(1));
    if (block.scalar_type() == ScalarType::Double) {
      const Tensor rows = torch::stable::new_empty(block, {block.size(0), block.size(1)}, ScalarType::Float);
      cuda::wire_decode(bytes, row_bytes, wire, rows_of(rows), device.stream());
      torch::stable::copy_(block, rows);
    } else {
      cuda::wire_decode(bytes, row_bytes, wire, rows_of(block), device.stream());
    }
    bytes += block.size(0) * row_bytes;
  }
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(DMT_LIBRARY, DMT_DISPATCH_KEY, ops) {
  ops.impl("wire_encode", TORCH_BOX(&wire_encode));
  ops.impl("wire_decode", TORCH_BOX(&wire_decode));
  ops.impl("wire_encode_blocks_", TORCH_BOX(&wire_encode_blocks_));
  ops.impl("wire_decode_blocks_", TORCH_BOX(&wire_decode_blocks_));
}

}  // namespace dmt
