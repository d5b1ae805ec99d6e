#include "tower_pool.h"

#include <algorithm>

#include "tower_pool_hopper.h"
#include "tower_sums.h"

namespace dmt::cuda {
namespace {

constexpr int kThreads = kTileThreads;

// ---- rows @ weight.T ----------------------------------------------------------------------------------------------

// What the rows are: pooled bags, or a matrix of floats.
template <class T>
struct PooledRows {
  using Out = T;
  Bags bags;

  DMT_MEMBER int64_t num_samples() const { return bags.num_samples; }
  DMT_MEMBER int64_t row_of(const Tile& tile) const {
    return bags.block_order[tile.block] * bags.num_samples + tile.first;
  }
  template <class E>
  DMT_MEMBER void fill(const Tile& tile, int64_t begin, bool reports, E* target, int64_t* places) const {
    pool_tile<T>(bags, tile, begin, reports && bags.errors != nullptr, target, places);
  }
};

struct MatrixRows {
  using Out = float;
  const float* data;
  int64_t rows;
  int64_t width;

  DMT_MEMBER int64_t num_samples() const { return rows; }
  DMT_MEMBER int64_t row_of(const Tile& tile) const { return tile.first; }
  template <class E>
  DMT_MEMBER void fill(const Tile& tile, int64_t begin, bool, E* target, int64_t*) const {
    copy_tile(data, tile.first, tile.count, begin, width, target);
  }
};

// packed [all rows, depth] = the matrix, and zeros.
template <class T, class E>
__global__ void __launch_bounds__(kThreads) pack_weight(const Matrix matrix, int64_t rows, int64_t depth, E* packed) {
  const int64_t i = blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x;
  if (i >= rows * depth) return;
  const int64_t row = i / depth;
  const int64_t column = i % depth;
  E value = {};
  if (row < matrix.rows && column < matrix.columns) {
    const int64_t at = row * matrix.row_stride + column * matrix.column_stride;
    from_float(to_float(static_cast<const T*>(matrix.data)[at]), value);
  }
  packed[i] = value;
}

// A block makes kTileRows x kColumns of the output. While it multiplies by some factors of the weight, the next ones
// are on their way; so are the first of a slice while its rows are pooled.
template <class Rows, class E, int kColumns>
__global__ void __launch_bounds__(kThreads, kIsExact<E> ? 1 : 2)
    multiply_rows(const Rows rows, const E* weight, int64_t depth, const typename Rows::Out* bias,
                  typename Rows::Out* out, int64_t out_width, unsigned chunks) {
  DMT_DYNAMIC_SHARED(shared);
  E* const tile = reinterpret_cast<E*>(shared);
  unsigned char* const factors = shared + kTileBytes<E>;
  int64_t* const places = reinterpret_cast<int64_t*>(factors + 2 * kColumns * kFactorStride);
  const unsigned chunk = blockIdx.x % chunks;  // neighbours pool the same rows: the second finds them in the cache
  const Tile samples = tile_at(blockIdx.x / chunks, rows.num_samples());
  const E* const columns = weight + static_cast<int64_t>(chunk) * kColumns * depth;
  const auto fetch_factors = [&](int64_t first) {
    if (first < depth) {
      unsigned char* const target = factors + first / kDepth<E> % 2 * kColumns * kFactorStride;
      for (int i = static_cast<int>(threadIdx.x); i < kColumns * (kFactorBytes / 16); i += kThreads) {
        const int column = i / (kFactorBytes / 16);
        const int part = i % (kFactorBytes / 16);
        copy_async(target + column * kFactorStride + part * 16, columns + column * depth + first + part * kPackSize<E>,
                   true);
      }
    }
    commit_copies();
  };
  typename SumsOf<E, kColumns>::type sums;
  fetch_factors(0);
  for (int64_t slice = 0; slice < depth; slice += kSlice) {
    __syncthreads();  // the last slice's tile is not needed any more
    rows.fill(samples, slice, chunk == 0, tile, places);
    for (int k = 0; k < kSlice; k += kDepth<E>) {
      wait_for_copies<0>();
      __syncthreads();  // everybody's factors and rows are there, and the other place for factors is free
      fetch_factors(slice + k + kDepth<E>);
      sums.add(tile, k, factors + (slice + k) / kDepth<E> % 2 * kColumns * kFactorStride);
    }
  }
  const int64_t first_row = rows.row_of(samples);
  sums.for_each([&](int row, int column, float sum) {
    const int64_t c = static_cast<int64_t>(chunk) * kColumns + column;
    if (row >= samples.count || c >= out_width) return;
    from_float(bias != nullptr ? sum + to_float(bias[c]) : sum, out[(first_row + row) * out_width + c]);
  });
}

int columns_of(int64_t out_width) { return out_width <= 128 ? 128 : 256; }
int64_t padded_width(int64_t out_width) {
  return ceil_div<int64_t>(out_width, columns_of(out_width)) * columns_of(out_width);
}
int64_t padded_depth(int64_t depth) { return ceil_div<int64_t>(depth, kSlice) * kSlice; }

template <int kColumns, class E, class T, class Rows>
void multiply(const Rows& rows, int64_t tiles, const Matrix& weight, const void* bias, void* scratch, void* out,
              cudaStream_t stream) {
  using Out = typename Rows::Out;
  const int64_t width = padded_width(weight.rows);
  const int64_t depth = padded_depth(weight.columns);
  E* const packed = static_cast<E*>(scratch);
  launch(pack_weight<T, E>, ceil_div<int64_t>(width * depth, kThreads), kThreads, 0, stream, weight, width, depth,
         packed);
  const int64_t chunks = width / kColumns;
  launch(multiply_rows<Rows, E, kColumns>, tiles * chunks, kThreads,
         kTileBytes<E> + 2 * kColumns * kFactorStride + kPlacesBytes, stream, rows, packed, depth,
         static_cast<const Out*>(bias), static_cast<Out*>(out), weight.rows, static_cast<unsigned>(chunks));
}

// Calls function(E{}) with what factors are.
template <class Function>
void with_products(Products products, const Function& function) {
  switch (products) {
    case Products::f32:
      return function(float{});
    case Products::tf32:
      return function(TensorFloat32{});
    case Products::bf16:
      return function(BFloat16{});
  }
}

template <class T, class Rows>
void multiply_as(Products products, const Rows& rows, int64_t tiles, const Matrix& weight, const void* bias,
                 void* scratch, void* out, cudaStream_t stream) {
  if (weight.rows == 0) return;
  with_products(products, [&](auto factor) {
    using E = decltype(factor);
    if (columns_of(weight.rows) == 128) {
      multiply<128, E, T>(rows, tiles, weight, bias, scratch, out, stream);
    } else {
      multiply<256, E, T>(rows, tiles, weight, bias, scratch, out, stream);
    }
  });
}

// ---- grad.T @ pooled rows -----------------------------------------------------------------------------------------

constexpr int kBlocks = 264;  // enough for any GPU; not the GPU's number, so that sums are the same on all

// How the work is cut: into `splits` pieces of the tiles of samples, slices of D and chunks of 128 of C.
struct Cut {
  int64_t tiles;
  int64_t splits;
  int64_t slices;
  int64_t chunks;

  DMT_MEMBER int64_t first_tile(int64_t split) const { return tiles * split / splits; }
};

Cut cut_of(const Bags& bags, int64_t out_width) {
  Cut cut = {};
  cut.tiles = bags.num_blocks * tiles_per_block(bags.num_samples);
  cut.slices = ceil_div<int64_t>(bags.width, kSlice);
  cut.chunks = ceil_div<int64_t>(out_width, 128);
  const int64_t wanted = ceil_div<int64_t>(kBlocks, std::max<int64_t>(cut.slices * cut.chunks, 1));
  cut.splits = std::max<int64_t>(std::min(wanted, cut.tiles), 1);
  return cut;
}

// partials [splits, chunks * 128, slices * kSlice]
template <class T, class E>
__global__ void __launch_bounds__(kThreads, 2)
    sum_products(const Bags bags, const float* grad, int64_t out_width, const Cut cut, float* partials) {
  DMT_DYNAMIC_SHARED(shared);
  E* const pooled = reinterpret_cast<E*>(shared);
  E* const grads = reinterpret_cast<E*>(shared + kTileBytes<E>);
  int64_t* const places = reinterpret_cast<int64_t*>(shared + 2 * kTileBytes<E>);
  const int64_t chunk = blockIdx.x % static_cast<unsigned>(cut.chunks);
  const int64_t slice = blockIdx.x / static_cast<unsigned>(cut.chunks) % static_cast<unsigned>(cut.slices);
  const int64_t split = blockIdx.x / static_cast<unsigned>(cut.chunks) / static_cast<unsigned>(cut.slices);
  typename OuterSumsOf<E>::type sums;
  for (int64_t index = cut.first_tile(split); index < cut.first_tile(split + 1); ++index) {
    const Tile samples = tile_at(index, bags.num_samples);
    __syncthreads();  // the last tiles are not needed any more
    const int64_t row = bags.block_order[samples.block] * bags.num_samples + samples.first;
    copy_tile(grad, row, samples.count, chunk * 128, out_width, grads);
    pool_tile<T>(bags, samples, slice * kSlice, false, pooled, places);
    __syncthreads();
    sums.add(grads, pooled);
  }
  const int64_t depth = cut.slices * kSlice;
  float* const partial = partials + (split * cut.chunks + chunk) * 128 * depth + slice * kSlice;
  sums.for_each([&](int row, int column, float sum) { partial[row * depth + column] = sum; });
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    add_biases(const float* sums, int64_t size, int64_t columns, const T* bias, T* out) {
  const int64_t i = (blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x) * 4;
  const int64_t left = size - i;
  if (left <= 0) return;
  const int count = static_cast<int>(left < 4 ? left : 4);
  float values[4] = {};
  load_values(sums + i, values, count, true);
  int64_t column = i % columns;
  for (int c = 0; bias != nullptr && c < count; ++c) {
    values[c] += to_float(bias[column]);
    if (++column == columns) column = 0;
  }
  store_values(out + i, values, count, true);
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    add_splits(const float* partials, const Cut cut, int64_t out_width, int64_t width, T* out) {
  const int64_t i = blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x;
  if (i >= out_width * width) return;
  const int64_t depth = cut.slices * kSlice;
  const float* next = partials + i / width * depth + i % width;
  float sum = 0;
  for (int64_t split = 0; split < cut.splits; ++split, next += cut.chunks * 128 * depth) sum += *next;
  from_float(sum, out[i]);
}

}  // namespace

int64_t packed_bytes(const Matrix& weight, Products products) {
  return padded_width(weight.rows) * padded_depth(weight.columns) * (products == Products::bf16 ? 2 : 4);
}

void tower_pool(const Bags& bags, DType dtype, const Matrix& weight, const void* bias, Products products, void* scratch,
                void* out, cudaStream_t stream) {
  if (is_for_hopper(bags, dtype, weight, products))
    return tower_pool_hopper(bags, dtype, weight, bias, scratch, out, stream);
  const int64_t tiles = bags.num_blocks * tiles_per_block(bags.num_samples);
  with_type(dtype, [&](auto element) {
    using T = decltype(element);
    multiply_as<T>(products, PooledRows<T>{bags}, tiles, weight, bias, scratch, out, stream);
  });
}

void add_bias(const float* sums, int64_t rows, int64_t columns, const void* bias, DType dtype, void* out,
              cudaStream_t stream) {
  const int64_t size = rows * columns;
  with_type(dtype, [&](auto element) {
    using T = decltype(element);
    launch(add_biases<T>, ceil_div<int64_t>(size, kThreads * 4), kThreads, 0, stream, sums, size, columns,
           static_cast<const T*>(bias), static_cast<T*>(out));
  });
}

void tower_pool_pooled_backward(const float* grad, int64_t rows, const Matrix& weight_t, DType dtype, Products products,
                                void* scratch, float* out, cudaStream_t stream) {
  with_type(dtype, [&](auto element) {
    multiply_as<decltype(element)>(products, MatrixRows{grad, rows, weight_t.columns}, tiles_per_block(rows), weight_t,
                                   nullptr, scratch, out, stream);
  });
}

int64_t weight_backward_bytes(const Bags& bags, int64_t out_width) {
  const Cut cut = cut_of(bags, out_width);
  return cut.splits * cut.chunks * 128 * cut.slices * kSlice * 4;
}

void tower_pool_weight_backward(const Bags& bags, DType dtype, const float* grad, int64_t out_width, Products products,
                                void* scratch, void* out, cudaStream_t stream) {
  const Cut cut = cut_of(bags, out_width);
  float* const partials = static_cast<float*>(scratch);
  with_type(dtype, [&](auto element) {
    using T = decltype(element);
    with_products(products, [&](auto factor) {
      using E = decltype(factor);
      launch(sum_products<T, E>, cut.splits * cut.slices * cut.chunks, kThreads, 2 * kTileBytes<E> + kPlacesBytes,
             stream, bags, grad, out_width, cut, partials);
    });
    launch(add_splits<T>, ceil_div<int64_t>(out_width * bags.width, kThreads), kThreads, 0, stream, partials, cut,
           out_width, bags.width, static_cast<T*>(out));
  });
}

}  // namespace dmt::cuda
