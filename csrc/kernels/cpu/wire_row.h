// One row of a message, for whoever just computed it or is about to read it: encode_row and decode_row work on a row
// that is in the nearest cache, so that a kernel that produces or consumes rows needs no pass over memory for them.
#pragma once

#include <cstdint>

#include "../wire_format.h"
#include "float_formats.h"
#include "vectors.h"

namespace dmt::cpu {
namespace {

using Floats = vector_t<float>;
typedef int32_t Integers __attribute__((vector_size(kRegisterBytes)));

constexpr int64_t kWireLanes = kLanes<float>;
constexpr uint32_t kMagnitude = 0x7FFFFFFFu;
constexpr uint32_t kInfinity = 0x7F800000u;

inline WordBits bits_of(Floats values) { return __builtin_bit_cast(WordBits, values); }
inline Floats magnitude_of(Floats values) { return __builtin_bit_cast(Floats, bits_of(values) & kMagnitude); }
inline WordBits to_words(Floats values) {
  return __builtin_bit_cast(WordBits, __builtin_convertvector(values, Integers));
}

// ---- Rounding ------------------------------------------------------------------------------------------------------

inline WordBits lane_numbers() {
  constexpr uint32_t numbers[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  WordBits lanes;
  __builtin_memcpy(&lanes, numbers, sizeof(lanes));
  return lanes;
}

// To nearest, ties to even.
struct Nearest {};

// Up or down at random (wire_format.h says how).
struct Stochastic {
  uint64_t key;  // row_key()

  // `count` random bits for each column from `column` on.
  template <int count>
  WordBits bits(int64_t column) const {
    return random_word(key, lane_numbers() + static_cast<uint32_t>(column)) >> (32 - count);
  }
};

// ---- Formats: a vector of floats to and from payload ---------------------------------------------------------------
//
// store(payload, values, rounding, column): `values` are those of `column` and the following ones. In the scaled
// formats they are finite and divided by the row's scale already.

struct Fp32Payload {
  static constexpr WireFormat kFormat = WireFormat::fp32;

  template <class Rounding>
  static void store(uint8_t* payload, Floats values, const Rounding&, int64_t) {
    __builtin_memcpy(payload, &values, sizeof(values));
  }

  static Floats load(const uint8_t* payload) { return load_vector(reinterpret_cast<const float*>(payload)); }
};

struct Bf16Payload {
  static constexpr WireFormat kFormat = WireFormat::bf16;

  static void store(uint8_t* payload, Floats values, const Nearest&, int64_t) {
    store_floats(reinterpret_cast<BFloat16*>(payload), values);
  }

  static void store(uint8_t* payload, Floats values, const Stochastic& random, int64_t column) {
    const WordBits bits = bits_of(values);
    const WordBits rounded = (bits + random.bits<16>(column)) >> 16;
    store_shorts(payload, (bits & kMagnitude) > kInfinity ? WordBits{} + 0x7FC0u : rounded);
  }

  static Floats load(const uint8_t* payload) { return load_vector(reinterpret_cast<const BFloat16*>(payload)); }
};

// A float of fewer bits, as words: sign, exponent with a bias, mantissa. Values are at most its largest finite one.
template <int kMantissaBits, int kBias>
struct ShortFloat {
  static constexpr int kDropped = 23 - kMantissaBits;
  static constexpr uint32_t kRebias = static_cast<uint32_t>(127 - kBias) << kMantissaBits;
  static constexpr uint32_t kLeastNormal = static_cast<uint32_t>(128 - kBias) << 23;  // bits of a float
  static constexpr int kSignShift = 31 - (kMantissaBits + (kMantissaBits == 3 ? 4 : 5));

  static WordBits with_sign(WordBits bits, WordBits normal, WordBits subnormal) {
    const WordBits magnitude = (bits & kMagnitude) < kLeastNormal ? subnormal : normal;
    return magnitude | ((bits & ~kMagnitude) >> kSignShift);
  }

  static WordBits rounded(Floats values, const Nearest&, int64_t) {
    // Added to a subnormal, this float moves the subnormal's last place to its own, and the adder rounds.
    constexpr uint32_t kAligner = static_cast<uint32_t>(127 + 24 - kBias - kMantissaBits) << 23;
    const WordBits bits = bits_of(values);
    const WordBits magnitude = bits & kMagnitude;
    const WordBits up = ((magnitude >> kDropped) & 1u) + ((1u << (kDropped - 1)) - 1u);
    const WordBits subnormal = bits_of(magnitude_of(values) + float_from_bits(kAligner)) - kAligner;
    return with_sign(bits, ((magnitude + up) >> kDropped) - kRebias, subnormal);
  }

  static WordBits rounded(Floats values, const Stochastic& random, int64_t column) {
    // A subnormal in fixed point, with as many fractional bits as 32 hold besides.
    constexpr int kFraction = 31 - kMantissaBits;
    constexpr uint32_t kUnit = static_cast<uint32_t>(127 + 30 + kBias) << 23;
    const WordBits bits = bits_of(values);
    const WordBits word = random.bits<32>(column);
    const WordBits normal = (((bits & kMagnitude) + (word >> (32 - kDropped))) >> kDropped) - kRebias;
    const WordBits fixed = to_words(magnitude_of(values) * float_from_bits(kUnit));
    return with_sign(bits, normal, (fixed + (word >> (32 - kFraction))) >> kFraction);
  }
};

// Scales that are powers of two lose nothing, neither on the way out nor back.
inline float power_of_two(uint32_t biased_exponent) { return float_from_bits(biased_exponent << 23); }

struct Fp16Payload {
  static constexpr WireFormat kFormat = WireFormat::fp16;
  static constexpr float kLeastScale = 0x1p-125f;  // least step 2^-24

  static float scale(float maximum) { return power_of_two((bits_from_float(maximum) >> 23) - 14); }

  static void store(uint8_t* payload, Floats values, const Nearest& nearest, int64_t column) {
#if defined(__F16C__)
    (void)nearest, (void)column;
    store_floats(reinterpret_cast<Half*>(payload), values);
#else
    store_shorts(payload, ShortFloat<10, 15>::rounded(values, nearest, column));
#endif
  }

  static void store(uint8_t* payload, Floats values, const Stochastic& random, int64_t column) {
    store_shorts(payload, ShortFloat<10, 15>::rounded(values, random, column));
  }

  static Floats load(const uint8_t* payload) { return load_vector(reinterpret_cast<const Half*>(payload)); }
};

struct Fp8Payload {
  static constexpr WireFormat kFormat = WireFormat::fp8;
  static constexpr float kLeastScale = 0x1p-140f;  // least step 2^-9

  // 448 has the mantissa 0x600000: what is above it is carried into the next exponent.
  static float scale(float maximum) { return power_of_two(((bits_from_float(maximum) + 0x1FFFFFu) >> 23) - 8); }

  template <class Rounding>
  static void store(uint8_t* payload, Floats values, const Rounding& rounding, int64_t column) {
    store_bytes(payload, ShortFloat<3, 7>::rounded(values, rounding, column));
  }

  static Floats load(const uint8_t* payload) {
    const WordBits words = load_bytes(payload);
    const WordBits magnitude = words & 0x7Fu;
    const Integers count = __builtin_bit_cast(Integers, magnitude);
    const WordBits subnormal = bits_of(__builtin_convertvector(count, Floats) * 0x1p-9f);
    const WordBits normal = (magnitude << 20) + (120u << 23);
    const WordBits finite = magnitude < 8u ? subnormal : normal;
    const WordBits bits = magnitude == 0x7Fu ? WordBits{} + 0x7FC00000u : finite;
    return __builtin_bit_cast(Floats, bits | ((words & 0x80u) << 24));
  }
};

struct Int8Payload {
  static constexpr WireFormat kFormat = WireFormat::int8;
  static constexpr float kLeastScale = 0x1p-149f;  // least step 1

  static float scale(float maximum) { return maximum / 127.0f; }

  static void store(uint8_t* payload, Floats values, const Nearest&, int64_t) {
    // The adder rounds to integers, and leaves them in the last byte as two's complements.
    store_bytes(payload, bits_of(values + 0x1.8p23f) & 0xFFu);
  }

  static void store(uint8_t* payload, Floats values, const Stochastic& random, int64_t column) {
    const Floats magnitude = magnitude_of(values);
    const Floats clamped = magnitude > 127.0f ? Floats{} + 127.0f : magnitude;  // a rounding error above it
    const WordBits count = (to_words(clamped * 0x1p24f) + random.bits<24>(column)) >> 24;
    const WordBits negative = WordBits{} - (bits_of(values) >> 31);
    store_bytes(payload, ((count ^ negative) - negative) & 0xFFu);
  }

  static Floats load(const uint8_t* payload) {
    const Integers integers = __builtin_bit_cast(Integers, load_bytes(payload) << 24) >> 24;
    return __builtin_convertvector(integers, Floats);
  }
};

// Calls function(Payload{}) for the format.
template <class Function>
void with_payload(WireFormat format, const Function& function) {
  switch (format) {
    case WireFormat::fp32:
      return function(Fp32Payload{});
    case WireFormat::bf16:
      return function(Bf16Payload{});
    case WireFormat::fp16:
      return function(Fp16Payload{});
    case WireFormat::fp8:
      return function(Fp8Payload{});
    case WireFormat::int8:
      return function(Int8Payload{});
  }
}

// ---- Rows ----------------------------------------------------------------------------------------------------------

// Calls function(column) for vectors that cover the columns: the last one overlaps where they are no multiple of it.
template <class Function>
void for_vectors(int64_t columns, const Function& function) {
  int64_t column = 0;
  for (; column + kWireLanes <= columns; column += kWireLanes) function(column);
  if (column < columns) function(columns - kWireLanes);
}

// A loop over the lanes would go through memory.
inline int32_t largest_lane(Integers values) {
#if defined(__clang__)
  return __builtin_reduce_max(values);
#else
#pragma GCC unroll 4
  for (uint32_t distance = kWireLanes / 2; distance > 0; distance /= 2) {
    const Integers others = __builtin_shuffle(values, __builtin_bit_cast(Integers, lane_numbers() ^ distance));
    values = values > others ? values : others;
  }
  return values[0];
#endif
}

// The largest magnitude of at least a vector of columns, as bits: so ordered, inf is above all numbers, and NaN above
// inf.
template <class T>
uint32_t row_maximum(const T* values, int64_t columns) {
  Integers maximum = {};
  for_vectors(columns, [&](int64_t column) {
    const Integers magnitude = __builtin_bit_cast(Integers, magnitude_of(load_floats(values + column)));
    maximum = magnitude > maximum ? magnitude : maximum;
  });
  return static_cast<uint32_t>(largest_lane(maximum));
}

// Values are multiplied by `lift`, then by `inverse`.
struct RowScale {
  float scale;
  float lift;     // keeps what follows among the normal floats when all of the row is close to the least of them
  float inverse;  // 1 / (scale * lift)
};

template <class Payload>
RowScale row_scale(uint32_t maximum) {
  if (maximum == 0) return {1, 1, 1};
  if (maximum >= kInfinity) return {float_from_bits(0x7FC00000u), 1, 1};
  const bool is_small = maximum < bits_from_float(0x1p-60f);
  const float lift = is_small ? 0x1p64f : 1.0f;
  const float lifted = Payload::scale(float_from_bits(maximum) * lift);
  float scale = lifted * (is_small ? 0x1p-64f : 1.0f);
  if (scale < Payload::kLeastScale) scale = Payload::kLeastScale;
  if (scale * lift < lifted) scale = float_from_bits(bits_from_float(scale) + 1);  // was rounded down
  return {scale, lift, 1.0f / (scale * lift)};
}

template <class Payload, class T, class Rounding>
void encode_columns(const T* values, int64_t columns, const RowScale& row, const Rounding& rounding, uint8_t* payload) {
  for_vectors(columns, [&](int64_t column) {
    Floats numbers = load_floats(values + column);
    if constexpr (wire_has_scale(Payload::kFormat)) numbers = numbers * row.lift * row.inverse;
    Payload::store(payload + column * wire_element_bytes(Payload::kFormat), numbers, rounding, column);
  });
}

// message[0 : wire_row_bytes] = the row. Rounding: Nearest, or the row's Stochastic.
template <class Payload, class T, class Rounding>
void encode_row(const T* values, int64_t columns, const Rounding& rounding, uint8_t* message) {
  constexpr WireFormat format = Payload::kFormat;
  if (columns < kWireLanes) {  // as part of a vector
    T padded[kWireLanes] = {};
    uint8_t whole[wire_row_bytes(format, kWireLanes)] = {};
    for (int64_t c = 0; c < columns; ++c) padded[c] = values[c];
    encode_row<Payload>(padded, kWireLanes, rounding, whole);
    const int64_t used = wire_payload_bytes(format, columns);
    __builtin_memcpy(message, whole, used);  // zeros are encoded as zeros
    if (wire_has_scale(format)) __builtin_memcpy(message + used, whole + wire_payload_bytes(format, kWireLanes), 4);
    return;
  }
  RowScale row = {1, 1, 1};
  const int64_t used = columns * wire_element_bytes(format);
  const int64_t payload_bytes = wire_payload_bytes(format, columns);
  if constexpr (wire_has_scale(format)) {
    row = row_scale<Payload>(row_maximum(values, columns));
    __builtin_memcpy(message + payload_bytes, &row.scale, 4);
  }
  if (row.scale != row.scale) {
    __builtin_memset(message, 0, used);
  } else {
    encode_columns<Payload>(values, columns, row, rounding, message);
  }
  for (int64_t byte = used; byte < payload_bytes; ++byte) message[byte] = 0;
}

template <class Payload, class T>
void decode_row(const uint8_t* message, int64_t columns, T* values) {
  constexpr WireFormat format = Payload::kFormat;
  if (columns < kWireLanes) {
    T padded[kWireLanes];
    uint8_t whole[wire_row_bytes(format, kWireLanes)] = {};
    const int64_t used = wire_payload_bytes(format, columns);
    __builtin_memcpy(whole, message, used);
    if (wire_has_scale(format)) __builtin_memcpy(whole + wire_payload_bytes(format, kWireLanes), message + used, 4);
    decode_row<Payload>(whole, kWireLanes, padded);
    for (int64_t c = 0; c < columns; ++c) values[c] = padded[c];
    return;
  }
  float scale = 1;
  if constexpr (wire_has_scale(format)) __builtin_memcpy(&scale, message + wire_payload_bytes(format, columns), 4);
  for_vectors(columns, [&](int64_t column) {
    Floats numbers = Payload::load(message + column * wire_element_bytes(format));
    if constexpr (wire_has_scale(format)) numbers *= scale;
    store_floats(values + column, numbers);
  });
}

}  // namespace
}  // namespace dmt::cpu
