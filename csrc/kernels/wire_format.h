// What an encoded row looks like: what kernels of all devices agree on.
//
// A row of a message is its payload, one element per column; zeros up to a multiple of 4 bytes; and in the scaled
// formats a float, the row's scale. An element decodes to payload * scale.
//
//   fp32  float                  scale  none
//   bf16  bfloat16                      none
//   fp16  half                          the power of two that brings the row's maximum into [2^14, 2^15)
//   fp8   e4m3fn                        the power of two that brings it into (224, 448]
//   int8  two's complement              maximum / 127
//
// The scale of a row of zeros is 1, that of a row with an inf or a NaN is NaN and its payload zeros. No scale is less
// than what lets the least step of the payload decode to 2^-149, the least float.
#pragma once

#include <cstdint>

#include "random_rounding.h"

namespace dmt {

enum class WireFormat : int { fp32 = 0, bf16 = 1, fp16 = 2, fp8 = 3, int8 = 4 };
constexpr int kWireFormats = 5;

namespace {  // internal linkage: this is compiled into objects of several instruction sets

constexpr int64_t wire_element_bytes(WireFormat format) {
  return format == WireFormat::fp32 ? 4 : format == WireFormat::bf16 || format == WireFormat::fp16 ? 2 : 1;
}

constexpr bool wire_has_scale(WireFormat format) { return format != WireFormat::fp32 && format != WireFormat::bf16; }

// Where the scale is: the payload and the zeros behind it.
constexpr int64_t wire_payload_bytes(WireFormat format, int64_t columns) {
  return (columns * wire_element_bytes(format) + 3) / 4 * 4;
}

constexpr int64_t wire_row_bytes(WireFormat format, int64_t columns) {
  return wire_payload_bytes(format, columns) + (wire_has_scale(format) ? 4 : 0);
}

}  // namespace
}  // namespace dmt
