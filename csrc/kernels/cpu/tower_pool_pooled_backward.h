// The gradient of the pooled rows that a tower module multiplied.
#pragma once

#include <cstdint>

#include "bag_layout.h"
#include "isa.h"
#include "parallel_for.h"

namespace dmt::cpu {

// The factors: grad [N, C], contiguous, in Acc (double for f64 weights, else float); weight [C, D], some columns of a
// module's, its rows `stride` apart.
struct TowerPooledGradient {
  const void* grad;
  int64_t num_rows;   // N
  int64_t out_width;  // C
  const void* weight;
  int64_t stride;
  int64_t width;           // D
  DType dtype;             // of the weight
  bool bfloat16_products;  // grad and weight are rounded to bfloat16 before they are multiplied
};

struct TowerPoolPooledBackwardKernels {
  // Elements of Acc that `pooled` needs as scratch, aligned to 64 bytes.
  int64_t (*scratch_size)(const TowerPooledGradient& gradient, const ParallelFor& threads);

  // out [N, D] = grad [N, C] @ weight [C, D], in Acc, every sum in the order of C.
  void (*pooled)(const TowerPooledGradient& gradient, void* out, void* scratch, const ParallelFor& threads);
};

DMT_DECLARE_BF16_KERNELS(TowerPoolPooledBackwardKernels, tower_pool_pooled_backward_kernels)

}  // namespace dmt::cpu
