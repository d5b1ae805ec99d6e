// The pooled lookup.
#pragma once

#include "bag_layout.h"

namespace dmt::cuda {

// out [K*B, D], contiguous. `widest_dim`: of the features.
void embedding_bag(const Bags& bags, DType dtype, int64_t widest_dim, void* out, DType out_dtype, cudaStream_t stream);

// weight_grads[N] = the gradient of each id's weight, for the pooled rows' gradient [K*B, D]. What belongs to no row
// stays.
void embedding_bag_weights_backward(const Bags& bags, DType dtype, int64_t widest_dim, const float* grad,
                                    float* weight_grads, cudaStream_t stream);

}  // namespace dmt::cuda
