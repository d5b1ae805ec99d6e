// What an encoded row looks like, and the random words that round it: what kernels of all devices agree on.
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

// ---- Stochastic rounding -------------------------------------------------------------------------------------------
//
// An element with magnitude m, in units of the payload's last place there, becomes floor(m + u): u in [0, 1) is made of
// the leading bits of the element's random word, a hash of (seed, step, row, column).

// The finalizer of splitmix64.
constexpr uint64_t mix_bits(uint64_t x) {
  x += 0x9E3779B97F4A7C15u;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
  return x ^ (x >> 31);
}

constexpr uint64_t message_key(uint64_t seed, uint64_t step) { return mix_bits(mix_bits(seed) + step); }

constexpr uint64_t row_key(uint64_t message_key, uint64_t row) { return mix_bits(message_key + row); }

// C. Wellons' 32-bit hash of the column, with half of the row's key before each of its halves. Word: uint32_t, or a
// vector of them.
template <class Word>
constexpr Word random_word(uint64_t row_key, Word column) {
  Word x = column + static_cast<uint32_t>(row_key);
  x = (x ^ (x >> 16)) * 0x21F0AAADu;
  x ^= static_cast<uint32_t>(row_key >> 32);
  x = (x ^ (x >> 15)) * 0xD35A2D97u;
  return x ^ (x >> 15);
}

}  // namespace
}  // namespace dmt
