// The pooled lookup into blocks of rows, as they are or as messages (wire_format.h): rows are pooled and encoded in
// shared memory, and written once.
#pragma once

#include "../wire_format.h"
#include "bag_layout.h"

namespace dmt::cuda {

// B rows of the output, `stride` bytes apart.
struct alignas(16) PooledBlock {
  uint8_t* data;
  int64_t stride;
  int64_t is_encoded;  // or of the tables' dtype
  int64_t unused = 0;
};

// blocks [K], in the order of the output, on the device. Encoded to nearest, from the tables' `dtype`. `widest_dim`: of
// all features.
void embedding_bag_blocks(const Bags& bags, DType dtype, const PooledBlock* blocks, WireFormat format,
                          int64_t widest_dim, cudaStream_t stream);

}  // namespace dmt::cuda
