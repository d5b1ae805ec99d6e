// Stochastic rounding, the same on every device: the random words, and tables' 16-bit weights rounded by them.
//
// An element with magnitude m, in units of the last place that it has after rounding, becomes floor(m + u): u in [0, 1)
// is made of the leading bits of the element's random word, a hash of (seed, step, row, column).
//
// Everything has internal linkage: this is compiled into objects of several instruction sets.
#pragma once

#include <cstdint>

namespace dmt {
namespace {

// The finalizer of splitmix64.
constexpr uint64_t mix_bits(uint64_t x) {
  x += 0x9E3779B97F4A7C15u;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
  return x ^ (x >> 31);
}

// Of a message, or of a table in one step.
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

// ---- Weights of tables: any float, without a scale ----------------------------------------------------------------

constexpr uint32_t float_bits(float value) { return __builtin_bit_cast(uint32_t, value); }

// What is above the largest finite number becomes that or inf, in proportion. NaN stays NaN.
constexpr uint16_t bfloat16_at_random(float value, uint32_t word) {
  const uint32_t bits = float_bits(value);
  const uint32_t rounded = (bits + (word >> 16)) >> 16;
  return static_cast<uint16_t>((bits & 0x7FFFFFFFu) > 0x7F800000u ? 0x7FC0u : rounded);
}

// The same of halves, where 2^16 follows on the largest finite number.
constexpr uint16_t half_at_random(float value, uint32_t word) {
  constexpr uint32_t kLeastNormal = 0x38800000u;  // 2^-14
  constexpr uint32_t kOverflow = 0x47800000u;     // 2^16
  const uint32_t magnitude = float_bits(value) & 0x7FFFFFFFu;
  // In the format's mantissa of 10 bits; subnormals in fixed point with 21 bits behind the last place.
  const uint32_t normal = ((magnitude + (word >> 19)) >> 13) - (112u << 10);
  const bool is_small = magnitude < kLeastNormal;
  const float small = is_small ? __builtin_bit_cast(float, magnitude) * 0x1p45f : 0.0f;
  const uint32_t subnormal = (static_cast<uint32_t>(static_cast<int32_t>(small)) + (word >> 11)) >> 21;
  const uint32_t special = magnitude > 0x7F800000u ? 0x7E00u : 0x7C00u;
  const uint32_t rounded = magnitude >= kOverflow ? special : is_small ? subnormal : normal;
  return static_cast<uint16_t>(rounded | (float_bits(value) >> 16 & 0x8000u));
}

}  // namespace

// How a table's rows are rounded to 16 bits.
struct TableRounding {
  bool is_random;        // or to nearest
  uint64_t seed;         // of the table, whatever part of it is here
  int64_t first_row;     // of the whole table, that is row 0 here
  int64_t first_column;  // and column 0
};

}  // namespace dmt
