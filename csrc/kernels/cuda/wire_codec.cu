#include "wire_codec.h"

#include "wire_row.h"

namespace dmt::cuda {
namespace {

constexpr int kThreads = 256;

// So many lanes share a row.
DMT_BOTH int lanes_for(int64_t columns) {
  int lanes = 1;
  while (lanes < 32 && lanes * kTogether < columns) lanes *= 2;
  return lanes;
}

// values[0 : 4] = those of columns [column, column + 4), and zeros.
template <class T>
DMT_DEVICE void load_values(const T* row, int64_t column, int64_t columns, bool aligned, float (&values)[kTogether]) {
  if constexpr (sizeof(T) == 4) {
    const int64_t left = columns - column;
    const Pack<T> pack = load_pack(row + column, static_cast<int>(left < kTogether ? left : kTogether), aligned);
#pragma unroll
    for (int i = 0; i < kTogether; ++i) values[i] = pack[i];
  } else {
    struct alignas(8) {
      T values[kTogether];
    } half = {};
    if (aligned && column + kTogether <= columns) {
      half = bit_cast<decltype(half)>(__ldg(reinterpret_cast<const uint2*>(row + column)));
    } else {
#pragma unroll
      for (int i = 0; i < kTogether; ++i) {
        if (column + i < columns) half.values[i] = row[column + i];
      }
    }
#pragma unroll
    for (int i = 0; i < kTogether; ++i) values[i] = wire_value(half.values[i]);
  }
}

DMT_DEVICE uint32_t load_word(const uint8_t* source, bool in_words) {
  if (in_words) return *reinterpret_cast<const uint32_t*>(source);
  uint32_t word = 0;
  for (int i = 0; i < 4; ++i) word |= static_cast<uint32_t>(source[i]) << (8 * i);
  return word;
}

template <class T, class Payload>
__global__ void __launch_bounds__(kThreads)
    encode(const WireRows rows, const bool is_random, const StochasticRounding random, uint8_t* message) {
  const int lanes = lanes_for(rows.columns);
  const int lane = static_cast<int>(threadIdx.x) % lanes;
  const unsigned group = lanes == 32 ? kAllLanes : ((1u << lanes) - 1) << (threadIdx.x % 32 / lanes * lanes);
  const int64_t row = blockIdx.x * static_cast<int64_t>(kThreads / lanes) + static_cast<int>(threadIdx.x) / lanes;
  if (row >= rows.rows) return;
  const T* const values = static_cast<const T*>(rows.data) + row * rows.stride;
  const bool aligned = is_aligned(values, rows.stride);
  const int64_t row_bytes = wire_row_bytes(Payload::kFormat, rows.columns);
  const Rounding rounding = {
      is_random, row_key(random.message_key, static_cast<uint64_t>(random.first_row) + static_cast<uint64_t>(row))};
  encode_row<Payload>(
      rows.columns, lane, lanes, group, rounding, message + row * row_bytes, in_words(message, row_bytes),
      [&](int64_t column, float (&some)[kTogether]) { load_values(values, column, rows.columns, aligned, some); });
}

template <class T, class Payload>
__global__ void __launch_bounds__(kThreads)
    decode(const uint8_t* message, const int64_t message_stride, const WireRows rows) {
  constexpr int kElementBytes = static_cast<int>(wire_element_bytes(Payload::kFormat));
  constexpr int kWords = kTogether * kElementBytes / 4;
  constexpr uint32_t kMask = kElementBytes == 4 ? 0xFFFFFFFFu : (1u << (8 * kElementBytes % 32)) - 1u;
  const int lanes = lanes_for(rows.columns);
  const int lane = static_cast<int>(threadIdx.x) % lanes;
  const int64_t row = blockIdx.x * static_cast<int64_t>(kThreads / lanes) + static_cast<int>(threadIdx.x) / lanes;
  if (row >= rows.rows) return;
  const uint8_t* const source = message + row * message_stride;
  const bool words = in_words(message, message_stride);
  const int64_t payload_bytes = wire_payload_bytes(Payload::kFormat, rows.columns);
  T* const values = static_cast<T*>(rows.data) + row * rows.stride;
  float scale = 1;
  if constexpr (wire_has_scale(Payload::kFormat)) scale = float_from_bits(load_word(source + payload_bytes, words));
  for (int64_t column = lane * kTogether; column < rows.columns; column += lanes * kTogether) {
    uint32_t payload[kWords] = {};
#pragma unroll
    for (int i = 0; i < kWords; ++i) {
      const int64_t at = column * kElementBytes + 4 * i;
      if (at < payload_bytes) payload[i] = load_word(source + at, words);
    }
    float some[kTogether];
#pragma unroll
    for (int i = 0; i < kTogether; ++i) {
      some[i] = Payload::load((payload[i * kElementBytes / 4] >> (i * kElementBytes % 4 * 8)) & kMask);
      if constexpr (wire_has_scale(Payload::kFormat)) some[i] *= scale;
    }
    const int64_t left = rows.columns - column;
    store_values(values + column, some, static_cast<int>(left < kTogether ? left : kTogether), is_aligned(values, 0));
  }
}

int64_t blocks_for(const WireRows& rows) { return ceil_div<int64_t>(rows.rows, kThreads / lanes_for(rows.columns)); }

}  // namespace

void wire_encode(const WireRows& rows, WireFormat format, const StochasticRounding* rounding, uint8_t* message,
                 cudaStream_t stream) {
  if (wire_row_bytes(format, rows.columns) == 0) return;
  const StochasticRounding random = rounding != nullptr ? *rounding : StochasticRounding{0, 0};
  with_type(rows.dtype, [&](auto element) {
    with_payload(format, [&](auto payload) {
      launch(encode<decltype(element), decltype(payload)>, blocks_for(rows), kThreads, 0, stream, rows,
             rounding != nullptr, random, message);
    });
  });
}

void wire_decode(const uint8_t* message, int64_t message_stride, WireFormat format, const WireRows& rows,
                 cudaStream_t stream) {
  if (rows.columns == 0) return;
  with_type(rows.dtype, [&](auto element) {
    with_payload(format, [&](auto payload) {
      launch(decode<decltype(element), decltype(payload)>, blocks_for(rows), kThreads, 0, stream, message,
             message_stride, rows);
    });
  });
}

}  // namespace dmt::cuda
