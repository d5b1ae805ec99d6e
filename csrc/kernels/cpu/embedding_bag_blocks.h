// Pooled lookup whose rows are written where they travel from: as they are, or encoded (wire_format.h). Letters as in
// bag_layout.h.
#pragma once

#include <cstdint>

#include "../wire_format.h"
#include "bag_layout.h"
#include "isa.h"
#include "parallel_for.h"

namespace dmt::cpu {

// B rows of the output, `stride` bytes apart.
struct PooledBlock {
  void* data;
  int64_t stride;
  bool encoded;
};

struct EmbeddingBagBlocksKernels {
  // Bytes of scratch that `pool` needs.
  int64_t (*scratch_size)(const BagLayout& bags, DType dtype, const ParallelFor& threads);

  // blocks [K], in the order of the output = the pooled bags, in the tables' dtype or encoded from it.
  void (*pool)(const BagLayout& bags, const TableData& tables, const PooledBlock* blocks, WireFormat format,
               void* scratch, const ParallelFor& threads);
};

DMT_DECLARE_KERNELS(EmbeddingBagBlocksKernels, embedding_bag_blocks_kernels)

}  // namespace dmt::cpu
