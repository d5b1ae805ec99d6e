// The pooled lookup.
#pragma once

#include <vector>

#include "bag_layout.h"

namespace dmt::cuda {

// Fills in first_block of the features, which are then to be uploaded, and returns the number of blocks.
int64_t plan_embedding_bag(const Bags& bags, DType dtype, std::vector<Feature>& features);

// out [K*B, D], contiguous, in float32 or in the tables' `dtype`. `blocks`: what the plan returned.
void embedding_bag(const Bags& bags, DType dtype, void* out, bool out_is_float, int64_t blocks, cudaStream_t stream);

// weight_grads[N] = the gradient of each id's weight, for the pooled rows' gradient [K*B, D]. What belongs to no row
// stays.
void embedding_bag_weights_backward(const Bags& bags, DType dtype, const float* grad, float* weight_grads,
                                    int64_t blocks, cudaStream_t stream);

}  // namespace dmt::cuda
