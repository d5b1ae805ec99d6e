// tower_pool's kernel for Hopper.
#pragma once

#include "tower_pool.h"

namespace dmt::cuda {

// tower_pool where is_for_hopper(); its scratch is of packed_bytes(), too.
void tower_pool_hopper(const Bags& bags, DType dtype, const Matrix& weight, const void* bias, void* scratch, void* out,
                       cudaStream_t stream);

}  // namespace dmt::cuda
