// Tiles of pooled rows in shared memory, for the kernels of tower_pool.
#pragma once

#include "pool_run.h"

namespace dmt::cuda {

constexpr int kTileThreads = 256;
constexpr int kTileRows = 64;   // samples
constexpr int kSlice = 128;     // columns
constexpr int kBagsPerRun = 4;  // that one group of lanes pools in a row
constexpr int kTileRowsTogether = 4;

// Elements between the rows of a tile: 16 bytes more than a slice, so that eight rows lie in different banks.
template <class E>
constexpr int kTileStride = kSlice + kPackSize<E>;

template <class E>
constexpr int kTileBytes = kTileRows * kTileStride<E> * static_cast<int>(sizeof(E));

constexpr int kPlacesBytes = kRowPlaces<kTileThreads> * 8;  // where rows lie

// The samples [first, first + count) of one block.
struct Tile {
  int64_t block;
  int64_t first;
  int count;
};

DMT_BOTH int64_t tiles_per_block(int64_t num_samples) { return ceil_div<int64_t>(num_samples, kTileRows); }

DMT_DEVICE Tile tile_at(int64_t index, int64_t num_samples) {
  const int64_t per_block = tiles_per_block(num_samples);
  const int64_t first = index % per_block * kTileRows;
  const int64_t left = num_samples - first;
  return {index / per_block, first, static_cast<int>(left < kTileRows ? left : kTileRows)};
}

// Zeros where the tile has no sample, or the matrix no column: the first `width` columns of `rows` rows stay.
template <class E>
DMT_DEVICE void clear_rest(E* tile, int rows, int64_t width) {
  if (rows == kTileRows && width >= kSlice) return;
  for (int i = static_cast<int>(threadIdx.x); i < kTileRows * kSlice; i += kTileThreads) {
    if (i / kSlice >= rows || i % kSlice >= width) tile[i / kSlice * kTileStride<E> + i % kSlice] = E{};
  }
}

// tile = columns [begin, begin + kSlice) of the pooled rows of these samples. All threads of the block call it.
template <class T, class E>
DMT_DEVICE void pool_tile(const Bags& bags, const Tile& samples, int64_t begin, bool reports, E* tile,
                          int64_t* places) {
  constexpr int kRuns = kTileRows / kBagsPerRun;
  const int64_t width = bags.width - begin;
  const int64_t end = begin + (width < kSlice ? width : kSlice);
  clear_rest(tile, samples.count, width);

  // The features with some of these columns, and the most columns that one of them has here.
  int64_t low = 0;
  int64_t high = bags.num_features;
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    (bags.features[middle].column <= begin ? low : high) = middle;
  }
  int64_t last = low;
  int64_t widest = 1;
  for (; last < bags.num_features && bags.features[last].column < end; ++last) {
    const int64_t from = bags.features[last].column < begin ? begin : bags.features[last].column;
    const int64_t to = bags.features[last].column + bags.features[last].dim;
    const int64_t columns = (to < end ? to : end) - from;
    widest = columns > widest ? columns : widest;
  }
  const LaneGroup group = lane_group(lane_bits<T>(widest));
  const int groups = kTileThreads >> group.bits;
  for (int64_t task = static_cast<int>(threadIdx.x) >> group.bits; task < (last - low) * kRuns; task += groups) {
    const int first = static_cast<int>(task % kRuns) * kBagsPerRun;
    if (first >= samples.count) continue;
    const int64_t f = low + task / kRuns;
    const Feature& feature = bags.features[f];
    const int64_t from = feature.column < begin ? begin : feature.column;
    const int64_t to = feature.column + feature.dim < end ? feature.column + feature.dim : end;
    const LaneColumns mine = lane_columns<T>(feature, from - feature.column, to - from, group);
    const int64_t bag = (samples.block * bags.num_features + f) * bags.num_samples + samples.first + first;
    const int count = samples.count - first < kBagsPerRun ? samples.count - first : kBagsPerRun;
    E* target = tile + first * kTileStride<E> + (from - begin) + group.lane * kPackSize<T>;
    const auto store = [=](const float (&sums)[kPackSize<T>]) mutable {
      constexpr int kBytes = kPackSize<T> * static_cast<int>(sizeof(E)) < 16 ? 8 : 16;
      store_values(target, sums, mine.count, reinterpret_cast<uintptr_t>(target) % kBytes == 0);
      target += kTileStride<E>;
    };
    const bool reporting = reports && from == feature.column;
    pool_run<T, kTileRowsTogether>(bags, feature, bag, count, mine, group, reporting, places_of(group, places), store);
  }
}

// tile = columns [begin, begin + kSlice) of rows [first, first + count) of a matrix of floats, `width` wide.
template <class E>
DMT_DEVICE void copy_tile(const float* matrix, int64_t first, int count, int64_t begin, int64_t width, E* tile) {
  clear_rest(tile, count, width - begin);
  const int64_t columns = width - begin < kSlice ? width - begin : kSlice;
  const bool aligned = is_aligned(matrix, width);
  for (int i = static_cast<int>(threadIdx.x); i < count * (kSlice / 4); i += kTileThreads) {
    const int row = i / (kSlice / 4);
    const int column = i % (kSlice / 4) * 4;
    const int64_t left = columns - column;
    if (left <= 0) continue;
    const int some = static_cast<int>(left < 4 ? left : 4);
    float values[4] = {};
    load_values(matrix + (first + row) * width + begin + column, values, some, aligned);
    store_values(tile + row * kTileStride<E> + column, values, some, true);
  }
}

}  // namespace dmt::cuda
