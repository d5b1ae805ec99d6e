// Single elements to and from the payload of a message: the arithmetic of kernels/cpu/wire_row.h, one number at a time.
#pragma once

#include "../wire_format.h"
#include "element.h"

namespace dmt::cuda {

constexpr uint32_t kMagnitude = 0x7FFFFFFFu;
constexpr uint32_t kInfinity = 0x7F800000u;
constexpr uint32_t kNaN = 0x7FC00000u;

DMT_DEVICE float magnitude_of(float value) { return float_from_bits(bits_from_float(value) & kMagnitude); }

// As the rows of a message are read: every device gives the same bits, NaN too.
DMT_DEVICE float wire_value(float value) { return value; }
DMT_DEVICE float wire_value(BFloat16 value) { return to_float(value); }
DMT_DEVICE float wire_value(Half value) {
  const uint32_t nan = kNaN | static_cast<uint32_t>(value.bits & 0x8000u) << 16 | (value.bits & 0x3FFu) << 13;
  return (value.bits & 0x7FFFu) > 0x7C00u ? float_from_bits(nan) : to_float(value);
}

// How an element is rounded: to nearest, ties to even, or up or down at random by its word.
struct Rounding {
  bool is_random;
  uint64_t key;  // row_key()

  DMT_MEMBER uint32_t bits(int64_t column, int count) const {
    return random_word(key, static_cast<uint32_t>(column)) >> (32 - count);
  }
};

// A float of fewer bits: sign, exponent with a bias, mantissa. The value is at most its largest finite one.
template <int kMantissaBits, int kBias>
DMT_DEVICE uint32_t short_float(float value, const Rounding& rounding, int64_t column) {
  constexpr int kDropped = 23 - kMantissaBits;
  constexpr uint32_t kRebias = static_cast<uint32_t>(127 - kBias) << kMantissaBits;
  constexpr uint32_t kLeastNormal = static_cast<uint32_t>(128 - kBias) << 23;  // bits of a float
  constexpr int kSignShift = 31 - (kMantissaBits + (kMantissaBits == 3 ? 4 : 5));
  const uint32_t bits = bits_from_float(value);
  const uint32_t magnitude = bits & kMagnitude;
  uint32_t result;
  if (rounding.is_random) {
    // A subnormal in fixed point, with as many fractional bits as 32 hold besides.
    constexpr int kFraction = 31 - kMantissaBits;
    constexpr uint32_t kUnit = static_cast<uint32_t>(127 + 30 + kBias) << 23;
    const uint32_t word = rounding.bits(column, 32);
    if (magnitude < kLeastNormal) {
      const uint32_t fixed = static_cast<uint32_t>(static_cast<int32_t>(magnitude_of(value) * float_from_bits(kUnit)));
      result = (fixed + (word >> (32 - kFraction))) >> kFraction;
    } else {
      result = ((magnitude + (word >> (32 - kDropped))) >> kDropped) - kRebias;
    }
  } else if (magnitude < kLeastNormal) {
    // Added to a subnormal, this float moves the subnormal's last place to its own, and the adder rounds.
    constexpr uint32_t kAligner = static_cast<uint32_t>(127 + 24 - kBias - kMantissaBits) << 23;
    result = bits_from_float(magnitude_of(value) + float_from_bits(kAligner)) - kAligner;
  } else {
    const uint32_t up = ((magnitude >> kDropped) & 1u) + ((1u << (kDropped - 1)) - 1u);
    result = ((magnitude + up) >> kDropped) - kRebias;
  }
  return result | ((bits & ~kMagnitude) >> kSignShift);
}

// Per format: kFormat; scale() of a row with this maximum and kLeastScale; store() of a finite value that was divided
// by the scale already; load().

struct Fp32Payload {
  static constexpr WireFormat kFormat = WireFormat::fp32;
  static DMT_MEMBER uint32_t store(float value, const Rounding&, int64_t) { return bits_from_float(value); }
  static DMT_MEMBER float load(uint32_t bits) { return float_from_bits(bits); }
};

struct Bf16Payload {
  static constexpr WireFormat kFormat = WireFormat::bf16;
  static DMT_MEMBER uint32_t store(float value, const Rounding& rounding, int64_t column) {
    const uint32_t bits = bits_from_float(value);
    if ((bits & kMagnitude) > kInfinity) return kNaN >> 16;
    return (bits + (rounding.is_random ? rounding.bits(column, 16) : ((bits >> 16) & 1u) + 0x7FFFu)) >> 16;
  }
  static DMT_MEMBER float load(uint32_t bits) { return float_from_bits(bits << 16); }
};

// Scales that are powers of two lose nothing, neither on the way out nor back.
DMT_DEVICE float power_of_two(uint32_t biased_exponent) { return float_from_bits(biased_exponent << 23); }

struct Fp16Payload {
  static constexpr WireFormat kFormat = WireFormat::fp16;
  static constexpr float kLeastScale = 0x1p-125f;  // least step 2^-24
  static DMT_MEMBER float scale(float maximum) { return power_of_two((bits_from_float(maximum) >> 23) - 14); }
  static DMT_MEMBER uint32_t store(float value, const Rounding& rounding, int64_t column) {
    return short_float<10, 15>(value, rounding, column);
  }
  static DMT_MEMBER float load(uint32_t bits) { return wire_value(Half{static_cast<uint16_t>(bits)}); }
};

struct Fp8Payload {
  static constexpr WireFormat kFormat = WireFormat::fp8;
  static constexpr float kLeastScale = 0x1p-140f;  // least step 2^-9
  // 448 has the mantissa 0x600000: what is above it is carried into the next exponent.
  static DMT_MEMBER float scale(float maximum) {
    return power_of_two(((bits_from_float(maximum) + 0x1FFFFFu) >> 23) - 8);
  }
  static DMT_MEMBER uint32_t store(float value, const Rounding& rounding, int64_t column) {
    return short_float<3, 7>(value, rounding, column);
  }
  static DMT_MEMBER float load(uint32_t bits) {
    const uint32_t magnitude = bits & 0x7Fu;
    const uint32_t sign = (bits & 0x80u) << 24;
    if (magnitude == 0x7Fu) return float_from_bits(kNaN | sign);
    if (magnitude >= 8u) return float_from_bits(((magnitude << 20) + (120u << 23)) | sign);
    return float_from_bits(bits_from_float(static_cast<float>(magnitude) * 0x1p-9f) | sign);
  }
};

struct Int8Payload {
  static constexpr WireFormat kFormat = WireFormat::int8;
  static constexpr float kLeastScale = 0x1p-149f;  // least step 1
  static DMT_MEMBER float scale(float maximum) { return maximum / 127.0f; }
  static DMT_MEMBER uint32_t store(float value, const Rounding& rounding, int64_t column) {
    // The adder rounds to integers, and leaves them in the last byte as two's complements.
    if (!rounding.is_random) return bits_from_float(value + 0x1.8p23f) & 0xFFu;
    const float magnitude = magnitude_of(value);
    const float clamped = magnitude > 127.0f ? 127.0f : magnitude;  // a rounding error above it
    const uint32_t fixed = static_cast<uint32_t>(static_cast<int32_t>(clamped * 0x1p24f));
    const uint32_t count = (fixed + rounding.bits(column, 24)) >> 24;
    return (bits_from_float(value) >> 31 ? 0u - count : count) & 0xFFu;
  }
  static DMT_MEMBER float load(uint32_t bits) {
    return static_cast<float>(static_cast<int32_t>(static_cast<int8_t>(bits)));
  }
};

// Values are multiplied by `lift`, then by `inverse`.
struct RowScale {
  float scale;
  float lift;     // keeps what follows among the normal floats when all of the row is close to the least of them
  float inverse;  // 1 / (scale * lift)
};

// `maximum`: of the magnitudes, as bits. So ordered, inf is above all numbers, and NaN above inf.
template <class Payload>
DMT_DEVICE RowScale row_scale(uint32_t maximum) {
  if (maximum == 0) return {1, 1, 1};
  if (maximum >= kInfinity) return {float_from_bits(kNaN), 1, 1};
  const bool is_small = maximum < 0x21800000u;  // 2^-60
  const float lift = is_small ? 0x1p64f : 1.0f;
  const float lifted = Payload::scale(float_from_bits(maximum) * lift);
  float scale = lifted * (is_small ? 0x1p-64f : 1.0f);
  if (scale < Payload::kLeastScale) scale = Payload::kLeastScale;
  if (scale * lift < lifted) scale = float_from_bits(bits_from_float(scale) + 1);  // was rounded down
  return {scale, lift, 1.0f / (scale * lift)};
}

}  // namespace dmt::cuda
