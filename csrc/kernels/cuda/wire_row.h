// One row of a message, encoded or decoded by lanes of a warp.
#pragma once

#include "wire_element.h"

namespace dmt::cuda {

// A row and its message are read and written by steps of a few columns, which are dealt to eight lanes side by side
// until each has kLaneColumns columns; then the next eight lanes come. So a lane's steps are a constant apart.
constexpr int kSideBySide = 8;
constexpr int kLaneColumns = 16;

// Of halves those of a word: a row with a scale is some words, and not two or four times as many.
constexpr int step_columns(WireFormat format) { return format == WireFormat::fp16 ? 2 : 4; }

// The lanes that share a row: 2^log, at most a warp.
struct Lanes {
  int log;

  DMT_MEMBER int count() const { return 1 << log; }
  DMT_MEMBER int self() const { return static_cast<int>(threadIdx.x) & (count() - 1); }
  DMT_MEMBER unsigned mask() const {
    return log == 5 ? kAllLanes : ((1u << count()) - 1) << (static_cast<int>(threadIdx.x) % 32 & ~(count() - 1));
  }
};

DMT_BOTH Lanes lanes_for(WireFormat format, int64_t columns) {
  int log = 0;
  while (log < 5 && (log < 3 ? step_columns(format) : kLaneColumns) << log < columns) ++log;
  return {log};
}

// `kCount` elements that are read and written at once.
template <class E, int kCount>
struct alignas(kCount * sizeof(E)) Step {
  E elements[kCount];
};

template <class T, class Payload>
using RowStep = Step<T, step_columns(Payload::kFormat)>;

template <class Payload>
using MessageStep = Step<uint32_t, step_columns(Payload::kFormat) * wire_element_bytes(Payload::kFormat) / 4>;

// Whether all steps of all rows may be read and written at once. Strides in bytes.
template <class T, class Payload>
DMT_BOTH bool in_steps(int64_t columns, const void* rows, int64_t stride, const void* message, int64_t message_stride) {
  const uint64_t of_rows = reinterpret_cast<uintptr_t>(rows) | static_cast<uint64_t>(stride);
  const uint64_t of_message = reinterpret_cast<uintptr_t>(message) | static_cast<uint64_t>(message_stride);
  return columns % step_columns(Payload::kFormat) == 0 && of_rows % sizeof(RowStep<T, Payload>) == 0 &&
         of_message % sizeof(MessageStep<Payload>) == 0;
}

// Words of messages may be anywhere, other elements are where they belong.
template <class E>
DMT_DEVICE E load_element(const uint8_t* source) {
  if constexpr (sizeof(E) == 4) {
    if (reinterpret_cast<uintptr_t>(source) % 4 != 0) {
      uint32_t word = 0;
      for (int i = 0; i < 4; ++i) word |= static_cast<uint32_t>(source[i]) << (8 * i);
      return bit_cast<E>(word);
    }
  }
  return *reinterpret_cast<const E*>(source);
}

template <class E>
DMT_DEVICE void store_element(E element, uint8_t* target) {
  if constexpr (sizeof(E) == 4) {
    if (reinterpret_cast<uintptr_t>(target) % 4 != 0) {
      for (int i = 0; i < 4; ++i) target[i] = static_cast<uint8_t>(bit_cast<uint32_t>(element) >> (8 * i));
      return;
    }
  }
  *reinterpret_cast<E*>(target) = element;
}

// A lane's elements, of the `left` ones from its first on, and zeros. kInSteps: as in_steps() says.
template <bool kInSteps, class E, int kStep, int kCount>
DMT_DEVICE void load_steps(const uint8_t* source, int left, Step<E, kStep> (&steps)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    constexpr int kApart = kSideBySide * kStep;
    steps[i] = {};
    if constexpr (kInSteps) {
      if (i * kApart < left) steps[i] = *reinterpret_cast<const Step<E, kStep>*>(source + i * kApart * sizeof(E));
    } else {
#pragma unroll
      for (int k = 0; k < kStep; ++k) {
        const int at = i * kApart + k;
        if (at < left) steps[i].elements[k] = load_element<E>(source + at * sizeof(E));
      }
    }
  }
}

template <bool kInSteps, class E, int kStep, int kCount>
DMT_DEVICE void store_steps(const Step<E, kStep> (&steps)[kCount], int left, uint8_t* target) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    constexpr int kApart = kSideBySide * kStep;
    if constexpr (kInSteps) {
      if (i * kApart < left) *reinterpret_cast<Step<E, kStep>*>(target + i * kApart * sizeof(E)) = steps[i];
    } else {
#pragma unroll
      for (int k = 0; k < kStep; ++k) {
        const int at = i * kApart + k;
        if (at < left) store_element(steps[i].elements[k], target + at * sizeof(E));
      }
    }
  }
}

// A word of values that their row's scale has divided.
template <class Payload>
DMT_DEVICE uint32_t word_of(const float* values, const Nearest&, uint32_t) {
  return Payload::to_nearest(values);
}

template <class Payload>
DMT_DEVICE uint32_t word_of(const float* values, const Stochastic& random, uint32_t column) {
  constexpr int kElementBytes = static_cast<int>(wire_element_bytes(Payload::kFormat));
  uint32_t word = 0;
#pragma unroll
  for (int i = 0; i < 4 / kElementBytes; ++i) {
    word |= Payload::at_random(values[i], random.word(column + i)) << (8 * kElementBytes * i);
  }
  return word;
}

// A lane's part of a row of T and its message. `begin`: where of the row's columns those begin that all lanes have.
template <class T, class Payload, bool kInSteps>
struct LaneOfRow {
  static constexpr int kElementBytes = static_cast<int>(wire_element_bytes(Payload::kFormat));
  static constexpr int kPerWord = 4 / kElementBytes;
  static constexpr int kStep = step_columns(Payload::kFormat);
  static constexpr int kSteps = kLaneColumns / kStep;

  int64_t columns;
  int first;     // column of the lane
  int64_t span;  // columns that the lanes have at once

  DMT_MEMBER LaneOfRow(const Lanes& lanes, int64_t all) : columns(all) {
    first = lanes.self() / kSideBySide * (kSideBySide * kLaneColumns) + lanes.self() % kSideBySide * kStep;
    span = static_cast<int64_t>(kLaneColumns) << lanes.log;
  }

  DMT_MEMBER void load(const T* row, int64_t begin, float (&values)[kLaneColumns]) const {
    RowStep<T, Payload> steps[kSteps];
    load_steps<kInSteps>(reinterpret_cast<const uint8_t*>(row + begin + first), left(begin), steps);
#pragma unroll
    for (int i = 0; i < kLaneColumns; ++i) values[i] = wire_value(steps[i / kStep].elements[i % kStep]);
  }

  template <class Rounding>
  DMT_MEMBER void encode(float (&values)[kLaneColumns], int64_t begin, const RowScale& scale, const Rounding& rounding,
                         uint8_t* message) const {
    if constexpr (wire_has_scale(Payload::kFormat)) {
      if (scale.lift != 1) {
#pragma unroll
        for (int i = 0; i < kLaneColumns; ++i) values[i] = scale.lift == 0 ? 0 : values[i] * scale.lift;
      }
#pragma unroll
      for (int i = 0; i < kLaneColumns; ++i) values[i] *= scale.inverse;
    }
    MessageStep<Payload> steps[kSteps];
#pragma unroll
    for (int i = 0; i < kLaneColumns; i += kPerWord) {
      const int column = first + i / kStep * (kSideBySide * kStep) + i % kStep;
      steps[i / kStep].elements[i % kStep / kPerWord] =
          word_of<Payload>(values + i, rounding, static_cast<uint32_t>(begin) + column);
    }
    store_steps<kInSteps>(steps, words_left(begin), message + (begin + first) * kElementBytes);
  }

  DMT_MEMBER void decode(const uint8_t* message, int64_t begin, float scale, T* row) const {
    constexpr uint32_t kMask = 0xFFFFFFFFu >> (32 - 8 * kElementBytes);
    MessageStep<Payload> words[kSteps];
    RowStep<T, Payload> steps[kSteps];
    load_steps<kInSteps>(message + (begin + first) * kElementBytes, words_left(begin), words);
#pragma unroll
    for (int i = 0; i < kLaneColumns; ++i) {
      const uint32_t word = words[i / kStep].elements[i % kStep / kPerWord];
      float value = Payload::load((word >> (i % kPerWord * 8 * kElementBytes)) & kMask);
      if constexpr (wire_has_scale(Payload::kFormat)) value *= scale;
      from_float(value, steps[i / kStep].elements[i % kStep]);
    }
    store_steps<kInSteps>(steps, left(begin), reinterpret_cast<uint8_t*>(row + begin + first));
  }

 private:
  // How many columns, and words, are left for the lane: as many as matter.
  DMT_MEMBER int left(int64_t begin) const {
    const int64_t rest = columns - begin - first;
    return static_cast<int>(rest < kSideBySide * kLaneColumns ? rest : kSideBySide * kLaneColumns);
  }
  DMT_MEMBER int words_left(int64_t begin) const { return (left(begin) + kPerWord - 1) / kPerWord; }
};

// The largest magnitude of `maximum` and the values; of what all lanes have.
template <int kCount>
DMT_DEVICE float largest_magnitude(float maximum, const float (&values)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) maximum = larger_magnitude(maximum, values[i]);
  return maximum;
}

DMT_DEVICE float largest_magnitude(float maximum, const Lanes& lanes) {
  for (int distance = 1; distance < lanes.count(); distance *= 2) {
    maximum = larger_magnitude(maximum, __shfl_xor_sync(lanes.mask(), maximum, distance));
  }
  return maximum;
}

// message = the row of `columns` columns, by the lanes that share it. Rounding: Nearest, or the row's Stochastic.
template <bool kInSteps, class Payload, class T, class Rounding>
DMT_DEVICE void encode_row(const T* row, int64_t columns, const Lanes& lanes, const Rounding& rounding,
                           uint8_t* message) {
  const LaneOfRow<T, Payload, kInSteps> lane(lanes, columns);
  float values[kLaneColumns];
  RowScale scale = {1, 1, 1};
  if constexpr (wire_has_scale(Payload::kFormat)) {
    float maximum = 0;
    for (int64_t begin = (columns - 1) & -lane.span; begin >= 0; begin -= lane.span) {  // the first ones stay
      lane.load(row, begin, values);
      maximum = largest_magnitude(maximum, values);
    }
    scale = row_scale<Payload>(largest_magnitude(maximum, lanes));
    if (lanes.self() == 0) store_element(scale.scale, message + wire_payload_bytes(Payload::kFormat, columns));
  } else {
    lane.load(row, 0, values);
  }
  for (int64_t begin = 0; begin < columns;) {
    lane.encode(values, begin, scale, rounding, message);
    begin += lane.span;
    if (begin < columns) lane.load(row, begin, values);
  }
}

// The other way.
template <bool kInSteps, class Payload, class T>
DMT_DEVICE void decode_row(const uint8_t* message, int64_t columns, const Lanes& lanes, T* row) {
  const LaneOfRow<T, Payload, kInSteps> lane(lanes, columns);
  float scale = 1;
  if constexpr (wire_has_scale(Payload::kFormat)) {
    scale = load_element<float>(message + wire_payload_bytes(Payload::kFormat, columns));
  }
  for (int64_t begin = 0; begin < columns; begin += lane.span) lane.decode(message, begin, scale, row);
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
