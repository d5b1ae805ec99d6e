#include "embedding_bag_blocks.h"

#include <algorithm>

#include "pool_run.h"
#include "wire_row.h"

namespace dmt::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kRowsInFlight = 4;  // of each lane: 16 bytes
constexpr int64_t kFetchedBytes = kRowsInFlight * kThreads * 16;
constexpr int64_t kMostRows = 8;          // that a block of threads pools
constexpr int64_t kTileBytes = 80 << 10;  // of them together: two blocks of threads find room
constexpr int64_t kMostShared = 200 << 10;

// Elements between rows in shared memory.
template <class T>
DMT_BOTH int64_t tile_stride(int64_t width) {
  return ceil_div<int64_t>(width, kPackSize<T>) * kPackSize<T>;
}

template <class T>
DMT_DEVICE void copy_row(const T* row, int64_t width, T* target) {
  constexpr int kSize = kPackSize<T>;
  const bool aligned = is_aligned(target, 0);
  for (int64_t column = threadIdx.x % 32 * kSize; column < width; column += 32 * kSize) {
    if (aligned && column + kSize <= width) {
      *reinterpret_cast<uint4*>(target + column) = *reinterpret_cast<const uint4*>(row + column);
    } else {
      for (int64_t c = column; c < column + kSize && c < width; ++c) target[c] = row[c];
    }
  }
}

template <class T, class Payload>
__global__ void __launch_bounds__(kThreads, 2)
    pool_blocks(const Bags bags, const PooledBlock* blocks, int64_t rows_together, int64_t pieces, int widest_lanes) {
  DMT_DYNAMIC_SHARED(shared);
  uint4* const fetched = reinterpret_cast<uint4*>(shared);
  T* const tile = reinterpret_cast<T*>(shared + kFetchedBytes);
  const int64_t stride = tile_stride<T>(bags.width);
  const int64_t k = blockIdx.x / static_cast<unsigned>(pieces);
  const int64_t first = blockIdx.x % static_cast<unsigned>(pieces) * rows_together;
  const int64_t left = bags.num_samples - first;
  const int count = static_cast<int>(left < rows_together ? left : rows_together);

  // Some lanes pool a feature of all these samples.
  const int lanes = widest_lanes;
  const int lane = static_cast<int>(threadIdx.x) % lanes;
  for (int64_t f = static_cast<int>(threadIdx.x) / lanes; f < bags.num_features; f += kThreads / lanes) {
    const Feature feature = bags.features[f];
    const int64_t first_bag = (k * bags.num_features + f) * bags.num_samples + first;
    for (int64_t column = 0; column == 0 || column < feature.dim; column += lanes * kPackSize<T>) {
      const LaneColumns mine = lane_columns<T>(feature, column, feature.dim - column, lane);
      const bool reports = bags.errors != nullptr && lane == 0 && column == 0;
      if (mine.count == 0 && !reports) continue;
      const auto store = [&](int bag, const float (&sums)[kPackSize<T>]) {
        T* const target = tile + bag * stride + feature.column + mine.column;
        store_values(target, sums, mine.count, is_aligned(target, 0));
      };
      pool_run<T, kRowsInFlight, kThreads>(bags, feature, first_bag, count, mine, reports, fetched + threadIdx.x,
                                           store);
    }
  }
  __syncthreads();

  const PooledBlock block = blocks[bags.block_order[k]];
  for (int row = static_cast<int>(threadIdx.x) / 32; row < count; row += kThreads / 32) {
    const T* const values = tile + row * stride;
    uint8_t* const target = block.data + (first + row) * block.stride;
    if (!block.is_encoded) {
      copy_row(values, bags.width, reinterpret_cast<T*>(target));
      continue;
    }
    const bool is_in_steps =
        in_steps<T, Payload>(bags.width, tile, stride * static_cast<int64_t>(sizeof(T)), block.data, block.stride);
    if (is_in_steps) {
      encode_row<true, Payload>(values, bags.width, Lanes{5}, Nearest{}, target);
    } else {
      encode_row<false, Payload>(values, bags.width, Lanes{5}, Nearest{}, target);
    }
  }
}

}  // namespace

void embedding_bag_blocks(const Bags& bags, DType dtype, const PooledBlock* blocks, WireFormat format,
                          int64_t widest_dim, cudaStream_t stream) {
  if (bags.num_samples == 0) return;
  with_type(dtype, [&](auto element) {
    using T = decltype(element);
    int lanes = 1;
    while (lanes < 32 && lanes * kPackSize<T> < widest_dim) lanes *= 2;
    const int64_t row_bytes = std::max<int64_t>(tile_stride<T>(bags.width) * static_cast<int64_t>(sizeof(T)), 1);
    if (row_bytes + kFetchedBytes > kMostShared) {
      throw std::length_error("embedding_bag_blocks_: a row of " + std::to_string(bags.width) + " columns is too wide");
    }
    const int64_t together = std::clamp<int64_t>(kTileBytes / row_bytes, 1, kMostRows);
    const int64_t pieces = ceil_div(bags.num_samples, together);
    with_payload(format, [&](auto payload) {
      launch(pool_blocks<T, decltype(payload)>, bags.num_blocks * pieces, kThreads,
             kFetchedBytes + together * row_bytes, stream, bags, blocks, together, pieces, lanes);
    });
  });
}

}  // namespace dmt::cuda
