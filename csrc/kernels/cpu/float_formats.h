// Storage types of tables and their conversion to the type sums are kept in, one by one; vectors.h has whole vectors.
// Arithmetic without branches, which any instruction set vectorises if it may not trap, with the same bits on each.
#pragma once

#include <cstdint>

#include "bag_layout.h"

namespace dmt::cpu {
namespace {

struct Half {
  uint16_t bits;
};

struct BFloat16 {
  uint16_t bits;
};

// The type in which sums over T are kept.
template <class T>
struct Accumulator {
  using type = float;
};
template <>
struct Accumulator<double> {
  using type = double;
};
template <class T>
using accumulator_t = typename Accumulator<T>::type;

inline float float_from_bits(uint32_t bits) { return __builtin_bit_cast(float, bits); }
inline uint32_t bits_from_float(float value) { return __builtin_bit_cast(uint32_t, value); }

inline double load(double value) { return value; }
inline float load(float value) { return value; }
inline float load(BFloat16 value) { return float_from_bits(static_cast<uint32_t>(value.bits) << 16); }

// Both ways for halves: M. Dukhan's conversions (FP16 library): scaling by powers of two moves the exponent, and adding
// a magic number lets the float adder round to the half's mantissa.
inline float load(Half value) {
  const uint32_t shifted = static_cast<uint32_t>(value.bits) << 16;
  const uint32_t sign = shifted & 0x80000000u;
  const uint32_t magnitude = shifted + shifted;
  const float normal = float_from_bits((magnitude >> 4) + 0x70000000u) * 0x1.0p-112f;
  const float subnormal = float_from_bits((magnitude >> 17) | 0x3F000000u) - 0.5f;
  return float_from_bits(sign | (magnitude < 0x08000000u ? bits_from_float(subnormal) : bits_from_float(normal)));
}

inline void store(double* target, double value) { *target = value; }
inline void store(float* target, float value) { *target = value; }

// Round to nearest, ties to even.
inline void store(BFloat16* target, float value) {
  const uint32_t bits = bits_from_float(value);
  const uint32_t rounded = (bits + ((bits >> 16) & 1u) + 0x7FFFu) >> 16;
  target->bits = static_cast<uint16_t>((bits & 0x7FFFFFFFu) > 0x7F800000u ? 0x7FC0u : rounded);
}

inline void store(Half* target, float value) {
  const uint32_t bits = bits_from_float(value);
  const uint32_t doubled = bits + bits;
  const uint32_t exponent = doubled & 0xFF000000u;
  const uint32_t bias = exponent < 0x71000000u ? 0x71000000u : exponent;
  float base = (float_from_bits(bits & 0x7FFFFFFFu) * 0x1.0p+112f) * 0x1.0p-110f;
  base = float_from_bits((bias >> 1) + 0x07800000u) + base;
  const uint32_t rounded = bits_from_float(base);
  const uint32_t magnitude = ((rounded >> 13) & 0x7C00u) + (rounded & 0x0FFFu);
  target->bits = static_cast<uint16_t>(((bits & 0x80000000u) >> 16) | (doubled > 0xFF000000u ? 0x7E00u : magnitude));
}

// Calls function(T{}) with the C++ type of `dtype`.
template <class Function>
void with_type(DType dtype, const Function& function) {
  switch (dtype) {
    case DType::f64:
      return function(double{});
    case DType::f32:
      return function(float{});
    case DType::f16:
      return function(Half{});
    case DType::bf16:
      return function(BFloat16{});
  }
}

// Calls function(Id{}) with the C++ type of the ids.
template <class Function>
void with_id_type(const BagLayout& bags, const Function& function) {
  if (bags.wide_ids) {
    function(int64_t{});
  } else {
    function(int32_t{});
  }
}

}  // namespace
}  // namespace dmt::cpu
