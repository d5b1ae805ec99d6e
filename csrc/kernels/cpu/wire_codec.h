// Rows to and from the messages that carry them between ranks. wire_format.h has the layout of a row.
#pragma once

#include <cstdint>

#include "../wire_format.h"
#include "bag_layout.h"
#include "isa.h"
#include "parallel_for.h"

namespace dmt::cpu {

// Rows [N, D] of any storage type, `stride` elements apart.
struct WireRows {
  void* data;
  DType dtype;
  int64_t rows;     // N
  int64_t columns;  // D
  int64_t stride;
};

struct StochasticRounding {
  int64_t seed;
  int64_t step;
  int64_t first_row;  // what row 0 is called
};

struct WireCodecKernels {
  // message [N, wire_row_bytes] = the rows, rounded to nearest without `rounding`.
  void (*encode)(const WireRows& rows, WireFormat format, const StochasticRounding* rounding, uint8_t* message,
                 const ParallelFor& threads);

  // The rows = message, whose rows are `message_stride` bytes apart.
  void (*decode)(const uint8_t* message, int64_t message_stride, WireFormat format, const WireRows& rows,
                 const ParallelFor& threads);
};

DMT_DECLARE_KERNELS(WireCodecKernels, wire_codec_kernels)

}  // namespace dmt::cpu
