#include "embedding_bag_blocks.h"

#include <algorithm>

#include "pool_run.h"
#include "wire_row.h"

namespace dmt::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kTogether = 4;  // rows of a group on their way
constexpr int64_t kPlacesBytes = kRowPlaces<kThreads> * 8;
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
    pool_blocks(const Bags bags, const PooledBlock* blocks, int64_t rows_together, int64_t pieces, int bits) {
  DMT_DYNAMIC_SHARED(shared);
  int64_t* const places = reinterpret_cast<int64_t*>(shared);
  T* const tile = reinterpret_cast<T*>(shared + kPlacesBytes);
  const int64_t stride = tile_stride<T>(bags.width);
  const int64_t k = blockIdx.x / static_cast<unsigned>(pieces);
  const int64_t first = blockIdx.x % static_cast<unsigned>(pieces) * rows_together;
  const int64_t left = bags.num_samples - first;
  const int count = static_cast<int>(left < rows_together ? left : rows_together);

  // Some lanes pool a feature of all these samples.
  const LaneGroup group = lane_group(bits);
  for (int64_t f = static_cast<int>(threadIdx.x) >> bits; f < bags.num_features; f += kThreads >> bits) {
    const Feature& feature = bags.features[f];
    const int64_t first_bag = (k * bags.num_features + f) * bags.num_samples + first;
    for (int64_t column = 0; column == 0 || column < feature.dim; column += group.lanes() * kPackSize<T>) {
      const LaneColumns mine = lane_columns<T>(feature, column, feature.dim - column, group);
      const bool reports = bags.errors != nullptr && column == 0;
      T* target = tile + feature.column + mine.column;
      const auto store = [=](const float (&sums)[kPackSize<T>]) mutable {
        store_values(target, sums, mine.count, is_aligned(target, 0));
        target += stride;
      };
      if (bags.weights != nullptr) {
        pool_run<T, kTogether, true>(bags, feature, first_bag, count, mine, group, reports, places, store);
      } else {
        pool_run<T, kTogether, false>(bags, feature, first_bag, count, mine, group, reports, places, store);
      }
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
    const auto load = [&](int64_t column, float (&some)[kTogether]) {
#pragma unroll
      for (int i = 0; i < kTogether; ++i) some[i] = column + i < bags.width ? wire_value(values[column + i]) : 0.0f;
    };
    encode_row<Payload>(bags.width, static_cast<int>(threadIdx.x) % 32, 32, kAllLanes, Rounding{false, 0}, target,
                        in_words(block.data, block.stride), load);
  }
}

}  // namespace

void embedding_bag_blocks(const Bags& bags, DType dtype, const PooledBlock* blocks, WireFormat format,
                          int64_t widest_dim, cudaStream_t stream) {
  if (bags.num_samples == 0) return;
  with_type(dtype, [&](auto element) {
    using T = decltype(element);
    const int64_t row_bytes = std::max<int64_t>(tile_stride<T>(bags.width) * static_cast<int64_t>(sizeof(T)), 1);
    if (row_bytes + kPlacesBytes > kMostShared) {
      throw std::length_error("embedding_bag_blocks_: a row of " + std::to_string(bags.width) + " columns is too wide");
    }
    const int64_t together = std::clamp<int64_t>(kTileBytes / row_bytes, 1, kMostRows);
    const int64_t pieces = ceil_div(bags.num_samples, together);
    with_payload(format, [&](auto payload) {
      launch(pool_blocks<T, decltype(payload)>, bags.num_blocks * pieces, kThreads, kPlacesBytes + together * row_bytes,
             stream, bags, blocks, together, pieces, lane_bits<T>(widest_dim));
    });
  });
}

}  // namespace dmt::cuda
