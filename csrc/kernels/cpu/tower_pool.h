// Pooled lookup multiplied by a linear tower module, without the pooled matrix ever existing.
#pragma once

#include <cstdint>

#include "bag_layout.h"
#include "isa.h"
#include "parallel_for.h"

namespace dmt::cpu {

struct TowerPoolKernels {
  // Elements of Acc that `pool` needs as scratch.
  int64_t (*scratch_size)(const BagLayout& bags, int64_t out_width, const ParallelFor& threads);

  // out [K*B, C] = pooled [K*B, D] @ weight^T [D, C] + bias [C], C = out_width; weight [C, D], bias (or null) and out
  // are of the tables' type. Sums are kept in Acc (double for f64 tables, else float), in the order of the columns of
  // weight, and rounded once. Returns the number of missing ids.
  int64_t (*pool)(const BagLayout& bags, const TableData& tables, const void* weight, const void* bias,
                  int64_t out_width, void* out, void* scratch, const ParallelFor& threads);
};

DMT_DECLARE_KERNELS(TowerPoolKernels, tower_pool_kernels)

}  // namespace dmt::cpu
