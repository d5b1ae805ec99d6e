#include "wire_codec.h"

#include "float_formats.h"
#include "wire_row.h"

namespace dmt::cpu {
namespace {

constexpr int64_t kGrainColumns = 1 << 14;  // per piece: some microseconds

// Calls function(row) for all rows.
template <class Function>
void for_rows(const WireRows& rows, const ParallelFor& threads, const Function& function) {
  const int64_t grain = rows.columns < kGrainColumns ? kGrainColumns / (rows.columns + 1) + 1 : 1;
  parallel_for(threads, 0, rows.rows, grain, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) function(row);
  });
}

void encode(const WireRows& rows, WireFormat format, const StochasticRounding* rounding, uint8_t* message,
            const ParallelFor& threads) {
  const int64_t row_bytes = wire_row_bytes(format, rows.columns);
  if (row_bytes == 0) return;  // a row without columns still has a scale, if the format has any
  with_type(rows.dtype, [&](auto element) {
    using T = decltype(element);
    const T* values = static_cast<const T*>(rows.data);
    with_payload(format, [&](auto payload) {
      using Payload = decltype(payload);
      if (rounding == nullptr) {
        return for_rows(rows, threads, [&](int64_t row) {
          encode_row<Payload>(values + row * rows.stride, rows.columns, Nearest{}, message + row * row_bytes);
        });
      }
      const uint64_t key = message_key(static_cast<uint64_t>(rounding->seed), static_cast<uint64_t>(rounding->step));
      const uint64_t first = static_cast<uint64_t>(rounding->first_row);
      for_rows(rows, threads, [&](int64_t row) {
        const Stochastic random{row_key(key, first + static_cast<uint64_t>(row))};
        encode_row<Payload>(values + row * rows.stride, rows.columns, random, message + row * row_bytes);
      });
    });
  });
}

void decode(const uint8_t* message, int64_t message_stride, WireFormat format, const WireRows& rows,
            const ParallelFor& threads) {
  if (rows.columns == 0) return;
  with_type(rows.dtype, [&](auto element) {
    using T = decltype(element);
    T* values = static_cast<T*>(rows.data);
    with_payload(format, [&](auto payload) {
      using Payload = decltype(payload);
      for_rows(rows, threads, [&](int64_t row) {
        decode_row<Payload>(message + row * message_stride, rows.columns, values + row * rows.stride);
      });
    });
  });
}

}  // namespace

DMT_DEFINE_KERNELS(WireCodecKernels, wire_codec_kernels) = {encode, decode};

}  // namespace dmt::cpu
