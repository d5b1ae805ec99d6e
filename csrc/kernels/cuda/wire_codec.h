// Rows to and from the messages that carry them between ranks; wire_format.h has the layout of a row. The bits are
// those of the CPU's kernels.
#pragma once

#include "../wire_format.h"
#include "element.h"

namespace dmt::cuda {

// Rows [N, D], `stride` elements apart.
struct WireRows {
  void* data;
  DType dtype;
  int64_t rows;
  int64_t columns;
  int64_t stride;
};

struct StochasticRounding {
  uint64_t message_key;
  int64_t first_row;  // what row 0 is called
};

// message [N, wire_row_bytes] = the rows, to nearest without `rounding`.
void wire_encode(const WireRows& rows, WireFormat format, const StochasticRounding* rounding, uint8_t* message,
                 cudaStream_t stream);

// The rows = message, whose rows are `message_stride` bytes apart.
void wire_decode(const uint8_t* message, int64_t message_stride, WireFormat format, const WireRows& rows,
                 cudaStream_t stream);

}  // namespace dmt::cuda
