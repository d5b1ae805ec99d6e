#include "../kernels/cpu/wire_codec.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <optional>

#include "output_pages.h"
#include "wire_arguments.h"

namespace dmt {
namespace {

cpu::WireRows rows_of(const Tensor& tensor) {
  return {
      .data = const_cast<void*>(tensor.const_data_ptr()),
      .dtype = kernel_dtype(tensor.scalar_type()),
      .rows = tensor.size(0),
      .columns = tensor.size(1),
      .stride = tensor.stride(0),
  };
}

Tensor wire_encode(const Tensor& input, int64_t format, std::optional<int64_t> seed, int64_t step, int64_t first_row) {
  const char* op = "wire_encode";
  const WireFormat wire = check_format(op, format);
  check_cpu(op, "input", input);
  check_dim(op, "input", input, 2);
  check_floating(op, "input", input.scalar_type());
  const Tensor source = with_adjacent_columns(input);
  const cpu::WireRows rows = rows_of(source);
  const Tensor message = torch::stable::empty({rows.rows, wire_row_bytes(wire, rows.columns)}, ScalarType::Byte);
  ask_for_huge_pages(message);
  const cpu::StochasticRounding rounding = {seed.value_or(0), step, first_row};
  cpu::wire_codec_kernels().encode(rows, wire, seed.has_value() ? &rounding : nullptr,
                                   static_cast<uint8_t*>(message.mutable_data_ptr()), torch_threads());
  return message;
}

Tensor wire_decode(const Tensor& message, int64_t dim, int64_t format, std::optional<ScalarType> dtype) {
  const char* op = "wire_decode";
  const WireFormat wire = check_format(op, format);
  const ScalarType out_type = dtype.value_or(ScalarType::Float);
  check_floating(op, "dtype", out_type);
  check_encoded_rows(op, message, dim, wire);
  const Tensor source = with_adjacent_columns(message);
  const Tensor out = torch::stable::empty({source.size(0), dim}, out_type);
  ask_for_huge_pages(out);
  cpu::wire_codec_kernels().decode(static_cast<const uint8_t*>(source.const_data_ptr()), source.stride(0), wire,
                                   rows_of(out), torch_threads());
  return out;
}

void wire_encode_blocks_(Tensor message, std::vector<Tensor> blocks, int64_t format, std::optional<int64_t> seed,
                         int64_t step, int64_t first_row) {
  const char* op = "wire_encode_blocks_";
  const WireFormat wire = check_format(op, format);
  check_blocks(op, blocks, message, wire);
  uint8_t* bytes = static_cast<uint8_t*>(message.mutable_data_ptr());
  cpu::StochasticRounding rounding = {seed.value_or(0), step, first_row};
  for (const Tensor& block : blocks) {
    const cpu::WireRows rows = rows_of(block);
    cpu::wire_codec_kernels().encode(rows, wire, seed.has_value() ? &rounding : nullptr, bytes, torch_threads());
    bytes += rows.rows * wire_row_bytes(wire, rows.columns);
    rounding.first_row += rows.rows;
  }
}

void wire_decode_blocks_(std::vector<Tensor> blocks, Tensor message, int64_t format) {
  const char* op = "wire_decode_blocks_";
  const WireFormat wire = check_format(op, format);
  check_blocks(op, blocks, message, wire);
  const uint8_t* bytes = static_cast<const uint8_t*>(message.const_data_ptr());
  for (const Tensor& block : blocks) {
    const cpu::WireRows rows = rows_of(block);
    const int64_t row_bytes = wire_row_bytes(wire, rows.columns);
    cpu::wire_codec_kernels().decode(bytes, row_bytes, wire, rows, torch_threads());
    bytes += rows.rows * row_bytes;
  }
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(dmt, CPU, ops) {
  ops.impl("wire_encode", TORCH_BOX(&wire_encode));
  ops.impl("wire_decode", TORCH_BOX(&wire_decode));
  ops.impl("wire_encode_blocks_", TORCH_BOX(&wire_encode_blocks_));
  ops.impl("wire_decode_blocks_", TORCH_BOX(&wire_decode_blocks_));
}

}  // namespace dmt
