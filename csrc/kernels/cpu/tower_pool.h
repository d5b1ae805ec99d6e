// Pooled lookup multiplied by a linear tower module, without the pooled matrix ever existing.
#pragma once

#include <cstdint>

#include "bag_layout.h"
#include "isa.h"
#include "parallel_for.h"

namespace dmt::cpu {

// The factors: weight [C, D], bias [C] or null, out [K*B, C], all of the tables' type.
struct TowerModule {
  const void* weight;
  const void* bias;
  int64_t out_width;       // C
  bool bfloat16_products;  // pooled rows and weight are rounded to bfloat16 before they are multiplied
};

struct TowerPoolKernels {
  // Elements of Acc that `pool` needs as scratch, aligned to 64 bytes.
  int64_t (*scratch_size)(const BagLayout& bags, const TowerModule& module, DType dtype, const ParallelFor& threads);

  // out [K*B, C] = pooled [K*B, D] @ weight^T [D, C] + bias [C]. Sums are kept in Acc (double for f64 tables, else
  // float), in the order of the columns of weight, and rounded once. Returns the number of missing ids.
  int64_t (*pool)(const BagLayout& bags, const TableData& tables, const TowerModule& module, void* out, void* scratch,
                  const ParallelFor& threads);
};

DMT_DECLARE_BF16_KERNELS(TowerPoolKernels, tower_pool_kernels)

}  // namespace dmt::cpu
