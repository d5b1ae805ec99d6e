#include "embedding_bag_blocks.h"

#include <algorithm>

#include "pool_run.h"
#include "wire_row.h"

namespace dmt::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kTogether = 4;      // rows of a group on their way
constexpr int64_t kMostRows = 8;  // that a block of threads pools
constexpr int64_t kMaximaBytes = kMostRows * 4;
constexpr int64_t kTileBytes = 70 << 10;  // of them together: three blocks of threads find room

// Elements between rows in shared memory.
template <class T>
DMT_BOTH int64_t tile_stride(int64_t width) {
  return ceil_div<int64_t>(width, kPackSize<T>) * kPackSize<T>;
}

// Before them: their maxima, and where the rows of tables lie, which groups of 2^bits lanes look up.
DMT_BOTH int64_t head_bytes(int bits) {
  const int window = 1 << bits > kLeastWindow ? 1 << bits : kLeastWindow;
  return kMaximaBytes + int64_t{kThreads >> bits} * window * 8;
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

// Rows of a tile, `stride` elements apart.
template <class T>
struct Tile {
  const T* rows;
  int64_t stride;
  int64_t width;
  int count;
};

// target[row] = messages of the tile's rows, `target_stride` bytes apart. The warps share out stretches of columns, for
// the rows' maxima and again for their payloads: so they are as busy with a few wide rows as with many narrow ones.
template <bool kInSteps, class Payload, class T>
DMT_DEVICE void encode_tile(const Tile<T>& tile, unsigned* maxima, uint8_t* target, int64_t target_stride) {
  constexpr int kStretch = 32 * kLaneColumns;
  const Lanes lanes = {5};
  const LaneOfRow<T, Payload, kInSteps> lane(lanes, tile.width);
  const int stretches = tile.width > kStretch ? static_cast<int>(ceil_div<int64_t>(tile.width, kStretch)) : 1;
  const auto for_stretches = [&](const auto& function) {
    for (int i = static_cast<int>(threadIdx.x) / 32; i < tile.count * stretches; i += kThreads / 32) {
      const int row = i / stretches;
      const int begin = (i - row * stretches) * kStretch;
      float values[kLaneColumns];
      lane.load(tile.rows + row * tile.stride, begin, values);
      function(row, begin, values);
    }
  };
  if constexpr (wire_has_scale(Payload::kFormat)) {
    for_stretches([&](int row, int, const float (&values)[kLaneColumns]) {
      const float maximum = largest_magnitude(largest_magnitude(0, values), lanes);
      if (lanes.self() == 0) atomicMax(&maxima[row], bits_from_float(maximum));
    });
    __syncthreads();
  }
  for_stretches([&](int row, int begin, float (&values)[kLaneColumns]) {
    uint8_t* const message = target + row * target_stride;
    RowScale scale = {1, 1, 1};
    if constexpr (wire_has_scale(Payload::kFormat)) {
      scale = row_scale<Payload>(float_from_bits(maxima[row]));
      if (begin == 0 && lanes.self() == 0) {
        store_element(scale.scale, message + wire_payload_bytes(Payload::kFormat, tile.width));
      }
    }
    lane.encode(values, begin, scale, Nearest{}, message);
  });
}

template <class T, class Payload>
__global__ void __launch_bounds__(kThreads, 3)
    pool_blocks(const Bags bags, const PooledBlock* blocks, int64_t rows_together, int64_t pieces, int bits) {
  DMT_DYNAMIC_SHARED(shared);
  unsigned* const maxima = reinterpret_cast<unsigned*>(shared);  // of the rows' magnitudes, as bits
  int64_t* const places = reinterpret_cast<int64_t*>(shared + kMaximaBytes);
  T* const tile = reinterpret_cast<T*>(shared + head_bytes(bits));
  if (threadIdx.x < kMostRows) maxima[threadIdx.x] = 0;
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
      pool_run<T, kTogether>(bags, feature, first_bag, count, mine, group, reports, places_of(group, places), store);
    }
  }
  __syncthreads();

  const PooledBlock block = blocks[bags.block_order[k]];
  uint8_t* const target = block.data + first * block.stride;
  if (!block.is_encoded) {
    for (int row = static_cast<int>(threadIdx.x) / 32; row < count; row += kThreads / 32) {
      copy_row(tile + row * stride, bags.width, reinterpret_cast<T*>(target + row * block.stride));
    }
    return;
  }
  const Tile<T> rows = {tile, stride, bags.width, count};
  if (in_steps<T, Payload>(bags.width, tile, stride * static_cast<int64_t>(sizeof(T)), block.data, block.stride)) {
    encode_tile<true, Payload>(rows, maxima, target, block.stride);
  } else {
    encode_tile<false, Payload>(rows, maxima, target, block.stride);
  }
}

}  // namespace

void embedding_bag_blocks(const Bags& bags, DType dtype, const PooledBlock* blocks, WireFormat format,
                          int64_t widest_dim, cudaStream_t stream) {
  if (bags.num_samples == 0) return;
  with_type(dtype, [&](auto element) {
    using T = decltype(element);
    const int64_t row_bytes = std::max<int64_t>(tile_stride<T>(bags.width) * static_cast<int64_t>(sizeof(T)), 1);
    const int bits = lane_bits<T>(widest_dim);
    if (row_bytes + head_bytes(bits) > most_shared()) {
      throw std::length_error("embedding_bag_blocks_: a row of " + std::to_string(bags.width) + " columns is too wide");
    }
    const int64_t together = std::clamp<int64_t>(kTileBytes / row_bytes, 1, kMostRows);
    const int64_t pieces = ceil_div(bags.num_samples, together);
    with_payload(format, [&](auto payload) {
      launch(pool_blocks<T, decltype(payload)>, bags.num_blocks * pieces, kThreads,
             head_bytes(bits) + together * row_bytes, stream, bags, blocks, together, pieces, bits);
    });
  });
}

}  // namespace dmt::cuda
