// The gradient of a tower module's weight, without the pooled matrix ever existing.
#pragma once

#include <cstdint>

#include "bag_layout.h"
#include "isa.h"
#include "parallel_for.h"

namespace dmt::cpu {

// The factor beside the pooled rows: grad [K*B, C], contiguous, in Acc (double for f64 tables, else float).
struct TowerGradient {
  const void* grad;
  int64_t out_width;       // C
  bool bfloat16_products;  // pooled rows and grad are rounded to bfloat16 before they are multiplied
};

struct TowerPoolBackwardKernels {
  // Elements of Acc that `weight` needs as scratch, aligned to 64 bytes.
  int64_t (*scratch_size)(const BagLayout& bags, const TowerGradient& gradient, DType dtype,
                          const ParallelFor& threads);

  // out [C, D] = grad^T [C, K*B] @ pooled [K*B, D], of the tables' type. Sums are kept in Acc, in the order of blocks
  // and samples, and rounded once. Missing ids are passed over. There is at least one sample.
  void (*weight)(const BagLayout& bags, const TableData& tables, const TowerGradient& gradient, void* out,
                 void* scratch, const ParallelFor& threads);
};

DMT_DECLARE_BF16_KERNELS(TowerPoolBackwardKernels, tower_pool_backward_kernels)

}  // namespace dmt::cpu
