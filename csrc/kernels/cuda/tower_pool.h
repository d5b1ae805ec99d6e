// The pooled lookup fused with a linear tower module, and the products of its backward pass. Tiles of pooled rows are
// made in shared memory, slice by slice of their columns, and multiplied there: they are never written to memory.
#pragma once

#include "bag_layout.h"

namespace dmt::cuda {

// What factors are before they are multiplied; sums are float always. In float, a sum runs over the factors in order.
enum class Products : int { f32, tf32, bf16 };

// [rows, columns] with strides in elements, in the tables' dtype.
struct Matrix {
  const void* data;
  int64_t rows;
  int64_t columns;
  int64_t row_stride;
  int64_t column_stride;
};

// Bytes that `weight` [C, D] takes as `scratch` below.
int64_t packed_bytes(const Matrix& weight, Products products);

// out [K*B, C] = the pooled rows [K*B, D] @ weight.T + bias, in the tables' `dtype`. bias: [C] of that dtype, or null.
void tower_pool(const Bags& bags, DType dtype, const Matrix& weight, const void* bias, Products products, void* scratch,
                void* out, cudaStream_t stream);

// Whether the kernel for Hopper GPUs takes these: rows of bfloat16 that are packs, as many ids as bags; or any, for 256
// columns of the output at most, where the environment says DMT_TOWER_POOL_RING=1.
bool is_for_hopper(const Bags& bags, DType dtype, const Matrix& weight, Products products);

// out [rows, columns] = sums + bias, in `dtype`; bias: [columns] of that dtype, or null. `out` may be `sums`.
void add_bias(const float* sums, int64_t rows, int64_t columns, const void* bias, DType dtype, void* out,
              cudaStream_t stream);

// out [rows, D] = grad [rows, C] @ weight_t.T, float; weight_t: [D, C], of `dtype`, hence the weight with its strides
// exchanged.
void tower_pool_pooled_backward(const float* grad, int64_t rows, const Matrix& weight_t, DType dtype, Products products,
                                void* scratch, float* out, cudaStream_t stream);

// Bytes of `scratch` below.
int64_t weight_backward_bytes(const Bags& bags, int64_t out_width);

// out [C, D] = grad [K*B, C].T @ the pooled rows, in the tables' dtype. Samples are summed piece by piece, the pieces
// in order.
void tower_pool_weight_backward(const Bags& bags, DType dtype, const float* grad, int64_t out_width, Products products,
                                void* scratch, void* out, cudaStream_t stream);

}  // namespace dmt::cuda
