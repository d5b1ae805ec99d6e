// Dot products of all pairs of a sample's features, and their gradient.
#pragma once

#include <cstdint>

#include "bag_layout.h"
#include "isa.h"
#include "parallel_for.h"

namespace dmt::cpu {

// F features [N, D] of one dtype: that of sample n begins strides[f] * n elements behind data[f].
struct InteractingFeatures {
  void* const* data;       // [F]
  const int64_t* strides;  // [F]
  int64_t features;        // F
  int64_t samples;         // N
  int64_t dim;             // D
  DType dtype;
  int64_t kept;  // so many features, the first ones, stand before the products themselves

  int64_t pairs() const { return features * (features - 1) / 2; }  // P
  int64_t width() const { return kept * dim + pairs(); }
};

struct DotInteractionKernels {
  // Elements that both need as scratch, of the type of sums (double for f64, else float).
  int64_t (*scratch_size)(const InteractingFeatures& x, const ParallelFor& threads);

  // out [N, width]: the kept features, then the products of features (1, 0), (2, 0), (2, 1), ..., each summed in the
  // order of the columns.
  void (*products)(const InteractingFeatures& x, void* out, void* scratch, const ParallelFor& threads);

  // x_grad: the gradients of x, given that of out; summed over the other features in order.
  void (*gradients)(const InteractingFeatures& x, const void* grad, const InteractingFeatures& x_grad, void* scratch,
                    const ParallelFor& threads);
};

DMT_DECLARE_KERNELS(DotInteractionKernels, dot_interaction_kernels)

}  // namespace dmt::cpu
