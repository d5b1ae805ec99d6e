// Pooled lookup of many tables, and its gradients. Letters as in bag_layout.h; Acc is double for f64 tables, else
// float.
#pragma once

#include <cstdint>

#include "bag_layout.h"
#include "isa.h"
#include "parallel_for.h"

namespace dmt::cpu {

struct EmbeddingBagKernels {
  // out [K*B, D] of out_dtype = the pooled bags. Returns the number of missing ids.
  int64_t (*pool)(const BagLayout& bags, const TableData& tables, void* out, DType out_dtype,
                  const ParallelFor& threads);

  // table_grads[i] [E_i, D_i] of Acc, zeroed by the caller, += gradient of table i. A row's gradients are added in the
  // order (block, sample, feature, position), whatever the threads. grad [K*B, D] of Acc.
  void (*tables_backward)(const BagLayout& bags, const void* grad, bool is_double, void* const* table_grads,
                          const ParallelFor& threads);

  // weight_grad [N] of Acc, zeroed by the caller = gradient of the per-sample weights. grad [K*B, D] of Acc.
  void (*weights_backward)(const BagLayout& bags, const TableData& tables, const void* grad, void* weight_grad,
                           const ParallelFor& threads);
};

DMT_DECLARE_KERNELS(EmbeddingBagKernels, embedding_bag_kernels)

}  // namespace dmt::cpu
