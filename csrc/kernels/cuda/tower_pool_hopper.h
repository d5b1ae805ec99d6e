// tower_pool's kernel for Hopper.
#pragma once

#include "tower_pool.h"

namespace dmt::cuda {

// tower_pool where is_for_hopper(); its scratch is of packed_bytes(), too.
void tower_pool_hopper(const Bags& bags, DType dtype, const Matrix& weight, const void* bias, void* scratch, void* out,
                       cudaStream_t stream);

// The same for tower_pool_pooled_backward: rows of the gradient are looked up in order.
void tower_pool_pooled_backward_hopper(const float* grad, int64_t rows, const Matrix& weight_t, DType dtype,
                                       void* scratch, float* out, cudaStream_t stream);

}  // namespace dmt::cuda
