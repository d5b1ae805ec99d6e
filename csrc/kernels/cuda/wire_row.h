// One row of a message, encoded by lanes of a warp from wherever its values are.
#pragma once

#include "wire_element.h"

namespace dmt::cuda {

constexpr int kTogether = 4;  // columns of a lane's step: a whole number of words in every format

DMT_DEVICE void store_word(uint8_t* target, uint32_t word, bool in_words) {
  if (in_words) {
    *reinterpret_cast<uint32_t*>(target) = word;
  } else {
    for (int i = 0; i < 4; ++i) target[i] = static_cast<uint8_t>(word >> (8 * i));
  }
}

// Whether rows of a message, `stride` bytes apart, may be read and written as words.
DMT_DEVICE bool in_words(const void* message, int64_t stride) {
  return reinterpret_cast<uintptr_t>(message) % 4 == 0 && stride % 4 == 0;
}

// `lanes` lanes, those of `mask`, write the row to `target`. load(column, values): values[0 : 4] = those of columns
// [column, column + 4), and zeros.
template <class Payload, class Load>
DMT_DEVICE void encode_row(int64_t columns, int lane, int lanes, unsigned mask, const Rounding& rounding,
                           uint8_t* target, bool words, const Load& load) {
  constexpr int kElementBytes = static_cast<int>(wire_element_bytes(Payload::kFormat));
  constexpr int kWords = kTogether * kElementBytes / 4;  // of a lane's step
  const int64_t payload_bytes = wire_payload_bytes(Payload::kFormat, columns);
  RowScale scale = {1, 1, 1};
  if constexpr (wire_has_scale(Payload::kFormat)) {
    uint32_t maximum = 0;
    for (int64_t column = lane * kTogether; column < columns; column += lanes * kTogether) {
      float some[kTogether];
      load(column, some);
#pragma unroll
      for (int i = 0; i < kTogether; ++i) {
        const uint32_t magnitude = bits_from_float(some[i]) & kMagnitude;
        maximum = magnitude > maximum ? magnitude : maximum;
      }
    }
    for (int distance = lanes / 2; distance > 0; distance /= 2) {
      const uint32_t other = __shfl_xor_sync(mask, maximum, distance);
      maximum = other > maximum ? other : maximum;
    }
    scale = row_scale<Payload>(maximum);
    if (lane == 0) store_word(target + payload_bytes, bits_from_float(scale.scale), words);
  }
  const bool is_number = scale.scale == scale.scale;
  for (int64_t column = lane * kTogether; column < columns; column += lanes * kTogether) {
    float some[kTogether];
    load(column, some);
    uint32_t payload[kWords] = {};
#pragma unroll
    for (int i = 0; i < kTogether; ++i) {
      if (column + i >= columns || !is_number) continue;
      float value = some[i];
      if constexpr (wire_has_scale(Payload::kFormat)) value = value * scale.lift * scale.inverse;
      payload[i * kElementBytes / 4] |= Payload::store(value, rounding, column + i) << (i * kElementBytes % 4 * 8);
    }
#pragma unroll
    for (int i = 0; i < kWords; ++i) {
      const int64_t at = column * kElementBytes + 4 * i;
      if (at < payload_bytes) store_word(target + at, payload[i], words);
    }
  }
}

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

}  // namespace dmt::cuda
