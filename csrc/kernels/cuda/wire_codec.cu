#include "wire_codec.h"

#include "wire_row.h"

namespace dmt::cuda {
namespace {

constexpr int kThreads = 256;

DMT_DEVICE int64_t row_of_lane(const Lanes& lanes) {
  return blockIdx.x * static_cast<int64_t>(kThreads >> lanes.log) + (static_cast<int>(threadIdx.x) >> lanes.log);
}

DMT_DEVICE Nearest rounding_of_row(const Nearest& rounding, int64_t) { return rounding; }
DMT_DEVICE Stochastic rounding_of_row(const StochasticRounding& random, int64_t row) {
  return {row_key(random.message_key, static_cast<uint64_t>(random.first_row) + static_cast<uint64_t>(row))};
}

template <class T, class Payload, class Rounding>
__global__ void __launch_bounds__(kThreads)
    encode(const WireRows rows, const Lanes lanes, const bool is_in_steps, const Rounding rounding, uint8_t* message) {
  const int64_t row = row_of_lane(lanes);
  if (row >= rows.rows) return;
  const T* const source = static_cast<const T*>(rows.data) + row * rows.stride;
  uint8_t* const target = message + row * wire_row_bytes(Payload::kFormat, rows.columns);
  const auto rounding_here = rounding_of_row(rounding, row);
  if (is_in_steps) {
    encode_row<true, Payload>(source, rows.columns, lanes, rounding_here, target);
  } else {
    encode_row<false, Payload>(source, rows.columns, lanes, rounding_here, target);
  }
}

template <class T, class Payload>
__global__ void __launch_bounds__(kThreads, 4) decode(const uint8_t* message, const int64_t message_stride,
                                                      const WireRows rows, const Lanes lanes, const bool is_in_steps) {
  const int64_t row = row_of_lane(lanes);
  if (row >= rows.rows) return;
  const uint8_t* const source = message + row * message_stride;
  T* const target = static_cast<T*>(rows.data) + row * rows.stride;
  if (is_in_steps) {
    decode_row<true, Payload>(source, rows.columns, lanes, target);
  } else {
    decode_row<false, Payload>(source, rows.columns, lanes, target);
  }
}

int64_t blocks_for(const WireRows& rows, const Lanes& lanes) {
  return ceil_div<int64_t>(rows.rows, kThreads >> lanes.log);
}

}  // namespace

void wire_encode(const WireRows& rows, WireFormat format, const StochasticRounding* rounding, uint8_t* message,
                 cudaStream_t stream) {
  const int64_t row_bytes = wire_row_bytes(format, rows.columns);
  if (row_bytes == 0) return;
  if (format == WireFormat::fp32 && rows.dtype == DType::f32 && rows.stride == rows.columns) {
    return copy_bytes(message, rows.data, rows.rows * row_bytes, stream);
  }
  const Lanes lanes = lanes_for(format, rows.columns);
  const int64_t blocks = blocks_for(rows, lanes);
  with_type(rows.dtype, [&](auto element) {
    with_payload(format, [&](auto payload) {
      using T = decltype(element);
      using Payload = decltype(payload);
      const bool is_in_steps = in_steps<T, Payload>(rows.columns, rows.data,
                                                    rows.stride * static_cast<int64_t>(sizeof(T)), message, row_bytes);
      if (rounding != nullptr) {
        launch(encode<T, Payload, StochasticRounding>, blocks, kThreads, 0, stream, rows, lanes, is_in_steps, *rounding,
               message);
      } else {
        launch(encode<T, Payload, Nearest>, blocks, kThreads, 0, stream, rows, lanes, is_in_steps, Nearest{}, message);
      }
    });
  });
}

void wire_decode(const uint8_t* message, int64_t message_stride, WireFormat format, const WireRows& rows,
                 cudaStream_t stream) {
  if (rows.columns == 0) return;
  const Lanes lanes = lanes_for(format, rows.columns);
  with_type(rows.dtype, [&](auto element) {
    with_payload(format, [&](auto payload) {
      using T = decltype(element);
      using Payload = decltype(payload);
      const bool is_in_steps = in_steps<T, Payload>(
          rows.columns, rows.data, rows.stride * static_cast<int64_t>(sizeof(T)), message, message_stride);
      launch(decode<T, Payload>, blocks_for(rows, lanes), kThreads, 0, stream, message, message_stride, rows, lanes,
             is_in_steps);
    });
  });
}

}  // namespace dmt::cuda
