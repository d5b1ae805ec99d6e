// Single elements to and from the payload of a message: the arithmetic of kernels/cpu/wire_row.h, one number at a time.
#pragma once

#include "../wire_format.h"
#include "element.h"

namespace dmt::cuda {

constexpr uint32_t kMagnitude = 0x7FFFFFFFu;
constexpr uint32_t kInfinity = 0x7F800000u;
constexpr uint32_t kNaN = 0x7FC00000u;

DMT_DEVICE float magnitude_of(float value) { return fabsf(value); }

// As the rows of a message are read: every device gives the same bits, NaN too.
DMT_DEVICE float wire_value(float value) { return value; }
DMT_DEVICE float wire_value(BFloat16 value) { return to_float(value); }
DMT_DEVICE float wire_value(Half value) {
  const uint32_t nan = kNaN | static_cast<uint32_t>(value.bits & 0x8000u) << 16 | (value.bits & 0x3FFu) << 13;
  return (value.bits & 0x7FFFu) > 0x7C00u ? float_from_bits(nan) : to_float(value);
}

// How elements are rounded: to nearest, ties to even,
struct Nearest {};

// or up or down at random, by their words.
struct Stochastic {
  uint64_t key;  // row_key()

  DMT_MEMBER uint32_t word(uint32_t column) const { return random_word(key, column); }
};

// ---- Floats of fewer bits: sign, exponent with a bias, mantissa. The value is at most their largest finite one. ----

template <int kMantissaBits, int kBias>
struct ShortFloat {
  static constexpr int kDropped = 23 - kMantissaBits;
  static constexpr uint32_t kRebias = static_cast<uint32_t>(127 - kBias) << kMantissaBits;
  static constexpr uint32_t kLeastNormal = static_cast<uint32_t>(128 - kBias) << 23;  // bits of a float
  static constexpr int kSignShift = 31 - (kMantissaBits + (kMantissaBits == 3 ? 4 : 5));

  static DMT_MEMBER uint32_t to_nearest(float value) {
    // Added to a subnormal, this float moves the subnormal's last place to its own, and the adder rounds.
    constexpr uint32_t kAligner = static_cast<uint32_t>(127 + 24 - kBias - kMantissaBits) << 23;
    const uint32_t bits = bits_from_float(value);
    const uint32_t magnitude = bits & kMagnitude;
    const uint32_t up = ((magnitude >> kDropped) & 1u) + ((1u << (kDropped - 1)) - 1u);
    const uint32_t normal = ((magnitude + up) >> kDropped) - kRebias;
    const uint32_t subnormal = bits_from_float(magnitude_of(value) + float_from_bits(kAligner)) - kAligner;
    return with_sign(bits, magnitude < kLeastNormal ? subnormal : normal);
  }

  static DMT_MEMBER uint32_t at_random(float value, uint32_t word) {
    // A subnormal in fixed point, with as many fractional bits as 32 hold besides.
    constexpr int kFraction = 31 - kMantissaBits;
    constexpr uint32_t kUnit = static_cast<uint32_t>(127 + 30 + kBias) << 23;
    const uint32_t bits = bits_from_float(value);
    const uint32_t magnitude = bits & kMagnitude;
    uint32_t result;
    if (magnitude < kLeastNormal) {
      const uint32_t fixed = static_cast<uint32_t>(static_cast<int32_t>(magnitude_of(value) * float_from_bits(kUnit)));
      result = (fixed + (word >> (32 - kFraction))) >> kFraction;
    } else {
      result = ((magnitude + (word >> (32 - kDropped))) >> kDropped) - kRebias;
    }
    return with_sign(bits, result);
  }

 private:
  static DMT_MEMBER uint32_t with_sign(uint32_t bits, uint32_t result) {
    return result | ((bits & ~kMagnitude) >> kSignShift);
  }
};

// ---- Two floats to nearest in one word or half of it, the first of them below --------------------------------------

// NaN is 0x7FFF.
DMT_DEVICE uint32_t bf16_pair(float a, float b) {
#if defined(__CUDACC__)
  uint32_t pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(b), "f"(a));
  return pair;
#else
  const auto one = [](float value) {
    BFloat16 result;
    from_float(value, result);
    return value == value ? result.bits : 0x7FFFu;
  };
  return one(a) | one(b) << 16;
#endif
}

DMT_DEVICE uint32_t fp16_pair(float a, float b) {
#if defined(__CUDACC__)
  uint32_t pair;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(b), "f"(a));
  return pair;
#else
  return ShortFloat<10, 15>::to_nearest(a) | ShortFloat<10, 15>::to_nearest(b) << 16;
#endif
}

DMT_DEVICE uint32_t fp8_pair(float a, float b) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 890
  uint16_t pair;
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(pair) : "f"(b), "f"(a));
  return pair;
#else
  return ShortFloat<3, 7>::to_nearest(a) | ShortFloat<3, 7>::to_nearest(b) << 8;
#endif
}

// Per format: kFormat; scale() of a row with this maximum, its inverse() where both are normal, and kLeastScale. Of
// values that were divided by the scale already, and are finite then: to_nearest(), a word of them; at_random(), one by
// its word. And load().

struct Fp32Payload {
  static constexpr WireFormat kFormat = WireFormat::fp32;
  static DMT_MEMBER uint32_t to_nearest(const float* values) { return bits_from_float(values[0]); }
  static DMT_MEMBER uint32_t at_random(float value, uint32_t) { return bits_from_float(value); }
  static DMT_MEMBER float load(uint32_t bits) { return float_from_bits(bits); }
};

struct Bf16Payload {
  static constexpr WireFormat kFormat = WireFormat::bf16;
  static DMT_MEMBER uint32_t to_nearest(const float* values) {
    uint32_t pair = bf16_pair(values[0], values[1]);
    if (values[0] != values[0]) pair = (pair & 0xFFFF0000u) | kNaN >> 16;
    if (values[1] != values[1]) pair = (pair & 0xFFFFu) | kNaN;
    return pair;
  }
  static DMT_MEMBER uint32_t at_random(float value, uint32_t word) { return bfloat16_at_random(value, word); }
  static DMT_MEMBER float load(uint32_t bits) { return float_from_bits(bits << 16); }
};

// Scales that are powers of two lose nothing, neither on the way out nor back.
DMT_DEVICE float power_of_two(uint32_t biased_exponent) { return float_from_bits(biased_exponent << 23); }
DMT_DEVICE float inverse_power(float power) { return float_from_bits((254u << 23) - bits_from_float(power)); }

struct Fp16Payload {
  static constexpr WireFormat kFormat = WireFormat::fp16;
  static constexpr float kLeastScale = 0x1p-125f;  // least step 2^-24
  static DMT_MEMBER float scale(float maximum) { return power_of_two((bits_from_float(maximum) >> 23) - 14); }
  static DMT_MEMBER float inverse(float scale) { return inverse_power(scale); }
  static DMT_MEMBER uint32_t to_nearest(const float* values) { return fp16_pair(values[0], values[1]); }
  static DMT_MEMBER uint32_t at_random(float value, uint32_t word) {
    return ShortFloat<10, 15>::at_random(value, word);
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
  static DMT_MEMBER float inverse(float scale) { return inverse_power(scale); }
  static DMT_MEMBER uint32_t to_nearest(const float* values) {
    return fp8_pair(values[0], values[1]) | fp8_pair(values[2], values[3]) << 16;
  }
  static DMT_MEMBER uint32_t at_random(float value, uint32_t word) { return ShortFloat<3, 7>::at_random(value, word); }
  static DMT_MEMBER float load(uint32_t bits) {
    const uint32_t magnitude = bits & 0x7Fu;
    const float value = float_from_bits(magnitude << 20) * 0x1p120f;  // subnormals become normal
    return float_from_bits((magnitude == 0x7Fu ? kNaN : bits_from_float(value)) | (bits & 0x80u) << 24);
  }
};

struct Int8Payload {
  static constexpr WireFormat kFormat = WireFormat::int8;
  static constexpr float kLeastScale = 0x1p-149f;  // least step 1
  // maximum / 127, as rounded as by a division: of all mantissas, and far from the ends of exponents.
  static DMT_MEMBER float scale(float maximum) {
    constexpr float kInverse = 1.0f / 127.0f;
    const float quotient = maximum * kInverse;
    return fmaf(fmaf(-127.0f, quotient, maximum), kInverse, quotient);
  }
  static DMT_MEMBER float inverse(float scale) { return 1.0f / scale; }
  static DMT_MEMBER uint32_t to_nearest(const float* values) {
    // The adder rounds to integers, and leaves them in the last byte as two's complements.
    uint32_t bits[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) bits[i] = bits_from_float(values[i] + 0x1.8p23f);
    const uint32_t low = (bits[0] & 0xFFu) | (bits[1] & 0xFFu) << 8;
    return low | (bits[2] & 0xFFu) << 16 | bits[3] << 24;
  }
  static DMT_MEMBER uint32_t at_random(float value, uint32_t word) {
    const float magnitude = magnitude_of(value);
    const float clamped = magnitude > 127.0f ? 127.0f : magnitude;  // a rounding error above it
    const uint32_t fixed = static_cast<uint32_t>(static_cast<int32_t>(clamped * 0x1p24f));
    const uint32_t count = (fixed + (word >> 8)) >> 24;
    return (bits_from_float(value) >> 31 ? 0u - count : count) & 0xFFu;
  }
  static DMT_MEMBER float load(uint32_t bits) {
    return static_cast<float>(static_cast<int32_t>(static_cast<int8_t>(bits)));
  }
};

// ---- Scales of rows -------------------------------------------------------------------------------------------------

// Of NaN too, which is above inf as this is above all numbers.
DMT_DEVICE float larger_magnitude(float maximum, float value) {
#if defined(__CUDACC__)
  float result;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(result) : "f"(maximum), "f"(magnitude_of(value)));
  return result;
#else
  const float magnitude = magnitude_of(value);
  return bits_from_float(magnitude) > bits_from_float(maximum) ? magnitude : maximum;
#endif
}

// Values are multiplied by `lift`, then by `inverse`.
struct RowScale {
  float scale;
  float lift;     // keeps what follows among the normal floats when all of the row is close to the least of them
  float inverse;  // 1 / (scale * lift)
};

// Of a row with this largest magnitude. What is not finite gives NaN, and a lift of 0: all of the row becomes 0.
template <class Payload>
DMT_DEVICE RowScale row_scale(float maximum) {
  constexpr uint32_t kSmall = 0x21800000u;  // 2^-60
  const uint32_t bits = bits_from_float(maximum);
  if (bits - kSmall < kInfinity - kSmall) {  // as almost all rows
    const float scale = Payload::scale(maximum);
    return {scale, 1, Payload::inverse(scale)};
  }
  if (bits == 0) return {1, 1, 1};
  if (bits >= kInfinity) return {float_from_bits(kNaN), 0, 1};
  const float lift = 0x1p64f;
  const float lifted = Payload::scale(maximum * lift);
  float scale = lifted * 0x1p-64f;
  if (scale < Payload::kLeastScale) scale = Payload::kLeastScale;
  if (scale * lift < lifted) scale = float_from_bits(bits_from_float(scale) + 1);  // was rounded down
  return {scale, lift, Payload::inverse(scale * lift)};
}

}  // namespace dmt::cuda
