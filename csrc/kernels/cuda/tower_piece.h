// How warps of tower_pool's kernel for Hopper pool rows into the tiles that products read, rounded to bfloat16: 16 rows
// of a tile and 128 columns at a time, feature by feature.
#pragma once

#include <type_traits>

#include "hopper.h"
#include "tower_tile.h"

namespace dmt::cuda {

constexpr int kWideRows = 128;                        // samples of a tile
constexpr int kHalfBytes = kWideRows * kSwizzledRow;  // of a tile: 64 columns
constexpr int kSlotBytes = 2 * kHalfBytes;
constexpr int kSlots = 3;  // for tiles
constexpr int kPartRows = 16;
constexpr int kParts = kWideRows / kPartRows;        // of a tile, one warp's work each
constexpr int kGatherers = 7;                        // warps
constexpr int kStepRows = 4;                         // that a lane adds up between two waits
constexpr int kRingBytes = 2 * kStepRows * 32 * 16;  // rows on their way to a warp that adds them up

// What the blocks work on, one after another: a tile of samples, a chunk of the output's columns and, of these, slices
// of the pooled rows' columns. The blocks of a cluster have neighbouring tiles and the same chunk.
struct Walk {
  int tiles;
  int tiles_per_block;
  int chunks;
  int slices;

  DMT_MEMBER int items() const { return (tiles + kClusterBlocks - 1) / kClusterBlocks * chunks; }
  DMT_MEMBER int first_item() const { return static_cast<int>(blockIdx.x) / kClusterBlocks; }
  DMT_MEMBER int stride() const { return static_cast<int>(gridDim.x) / kClusterBlocks; }
  DMT_MEMBER int chunk(int item) const { return chunks == 1 ? 0 : item % chunks; }
  // Of none where there is no tile.
  DMT_MEMBER Tile samples(int item, int64_t num_samples) const {
    const int tile = (chunks == 1 ? item : item / chunks) * kClusterBlocks + static_cast<int>(cluster_rank());
    if (item >= items() || tile >= tiles) return {};
    const int block = tile / tiles_per_block;
    const int64_t first = static_cast<int64_t>(tile - block * tiles_per_block) * kWideRows;
    const int64_t left = num_samples - first;
    return {block, first, static_cast<int>(left < kWideRows ? left : kWideRows)};
  }
};

// A slot and whether it is used for an even or an odd time.
struct Slot {
  int index = 0;
  unsigned parity = 0;

  DMT_MEMBER void advance(int slots) {
    if (++index == slots) {
      index = 0;
      parity ^= 1;
    }
  }
};

// ---- Tiles --------------------------------------------------------------------------------------------------------

// Where these 8 columns, or one of them, lie in a row of a tile.
DMT_DEVICE int tile_place(int row, int column) {
  return column / 64 * kHalfBytes + swizzled_part(row, column % 64 / 8) + column % 8 * 2;
}

// `count` of 8 columns.
DMT_DEVICE void store_columns(unsigned char* tile, int row, int column, const float (&values)[8], int count) {
  uint32_t pairs[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) pairs[i] = round_pair<BFloat16>(values[2 * i], values[2 * i + 1]);
  if (count == 8 && column % 8 == 0) {
    *reinterpret_cast<uint4*>(tile + tile_place(row, column)) = make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
    return;
  }
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const uint16_t bits = static_cast<uint16_t>(pairs[i / 2] >> (i % 2 * 16));
    if (i < count) *reinterpret_cast<uint16_t*>(tile + tile_place(row, column + i)) = bits;
  }
}

// ---- What a warp gathers ------------------------------------------------------------------------------------------

// An id as it was read: to look at it would be to wait for it.
struct RawId {
  uint32_t low;
  uint32_t high;
};

DMT_DEVICE RawId ask_for_id(const Bags& bags, int64_t position) {
  if (!bags.wide_ids) return {static_cast<const uint32_t*>(bags.ids)[position], 0};
  const uint2 words = static_cast<const uint2*>(bags.ids)[position];
  return {words.x, words.y};
}

DMT_DEVICE int64_t id_of(const Bags& bags, const RawId& raw) {
  return bags.wide_ids ? static_cast<int64_t>(static_cast<uint64_t>(raw.high) << 32 | raw.low)
                       : static_cast<int32_t>(raw.low);
}

// Of a part of a tile, the columns that a feature has in a slice. Lanes l and l + 16 have the bag of row l of the part.
struct Piece {
  int slice;
  int feature;
  int count;    // of rows, from this lane's on
  int64_t bag;  // there, if there are any
  bool exists;
  bool begins;  // its part
  bool reports;
};

// What a lane knows of its bag.
struct RowBag {
  bool has_ids;
  bool has_more;  // than one
  RawId id;       // the first
};

// The columns of a feature that a slice has.
struct PieceColumns {
  int64_t in_table;
  int in_tile;
  int count;
};

DMT_DEVICE PieceColumns piece_columns(const Feature& feature, int slice) {
  const int64_t begin = static_cast<int64_t>(slice) * kSlice;
  const int64_t from = feature.column < begin ? begin : feature.column;
  const int64_t to = feature.column + feature.dim < begin + kSlice ? feature.column + feature.dim : begin + kSlice;
  return {from - feature.column, static_cast<int>(from - begin), static_cast<int>(to - from)};
}

constexpr int kRowsAtOnce = 4;  // that a lane has in registers

// The tile's rows become rows of the feature, whose addresses lanes 0 to 15 have, or zeros where that is null. 1 <<
// bits lanes have a row.
template <class T>
DMT_DEVICE void copy_rows(const PieceColumns& columns, uint64_t address, int first_row, unsigned char* tile,
                          const int bits) {
  constexpr int kSize = kPackSize<T>;
  const int lane = static_cast<int>(threadIdx.x % 32);
  const int column = (lane & ((1 << bits) - 1)) * kSize;
  const int at = columns.in_tile + column;
  const bool is_mine = column < columns.count;
  const int rows = 32 >> bits;  // at once
  const int row = lane >> bits;
  const auto address_of = [&](int r) { return __shfl_sync(kAllLanes, address, r % kPartRows); };
  if constexpr (std::is_same_v<T, BFloat16>) {
    const int part = at / 8 % 8;
    tile += at / 64 * kHalfBytes + first_row * kSwizzledRow;
#pragma unroll
    for (int first = 0; first < kPartRows; first += rows) {
      const uint64_t from = address_of(first + row);
      if (is_mine) {
        copy_async(tile + swizzled_part(first | row, part), reinterpret_cast<const T*>(from) + column, from != 0);
      }
    }
  } else {
#pragma unroll
    for (int first = 0; first < kPartRows; first += kRowsAtOnce * rows) {
      Pack<T> packs[kRowsAtOnce];
#pragma unroll
      for (int i = 0; i < kRowsAtOnce; ++i) {
        const uint64_t from = address_of(first + i * rows + row);
        packs[i] = load_pack(reinterpret_cast<const T*>(from) + column, from != 0 && is_mine ? kSize : 0, true);
      }
#pragma unroll
      for (int i = 0; i < kRowsAtOnce; ++i) {
        const int r = first + i * rows + row;
        float values[kSize];
#pragma unroll
        for (int c = 0; c < kSize; ++c) values[c] = packs[i][c];
        store_columns(tile, first_row + r, at, values, is_mine && r < kPartRows ? kSize : 0);
      }
    }
  }
}

template <class T>
DMT_DEVICE void copy_piece(const PieceColumns& columns, uint64_t address, int first_row, unsigned char* tile) {
  constexpr int kAll = 4;  // 16 lanes, of a row of a whole slice: the same with constants
  int bits = 1;
  while ((kPackSize<T> << bits) < columns.count) ++bits;
  if (bits == kAll) {
    copy_rows<T>(columns, address, first_row, tile, kAll);
  } else {
    copy_rows<T>(columns, address, first_row, tile, bits);
  }
}

// Rows are added in the order of the ids, by groups of lanes, each of which pools bags that follow each other: `count`
// of them are there, from `bag` on. The next rows are on their way meanwhile, to where a lane's lie 32 places apart.
template <class T>
DMT_DEVICE void pool_piece(const Bags& bags, const Feature& feature, const PieceColumns& columns, int64_t bag,
                           int count, bool reports, int first_row, unsigned char* tile, uint4* ring) {
  constexpr int kSize = kPackSize<T>;
  int lanes = kStepRows;
  while (lanes * kSize < columns.count) lanes *= 2;
  const int lane = static_cast<int>(threadIdx.x) & (lanes - 1);
  const int run = kPartRows * lanes / 32;
  const int first = static_cast<int>(threadIdx.x % 32) / lanes * run;
  const int bags_here = count - first < 0 ? 0 : count - first < run ? count - first : run;
  const LaneGroup group = lane_group(lanes == 4 ? 2 : lanes == 8 ? 3 : 4);
  const LaneColumns mine = lane_columns<T>(feature, columns.in_table, columns.count, group);
  const bool is_copied = mine.whole && mine.count == kSize;
  const T* const source = static_cast<const T*>(feature.table) + mine.column;
  bag += first;
  first_row += first;

  int64_t last = 0;
  int64_t end = 0;  // of the bag that is pooled
  int64_t asked = 0;
  if (bags_here > 0) {
    asked = load_offset(bags, bag);
    end = load_offset(bags, bag + 1);
    last = load_offset(bags, bag + bags_here);
  }
  const int lane_of_step = lane % kStepRows;
  const int64_t stride = feature.stride;
  asked += lane_of_step;
  RawId id = {};
  if (asked < last) id = ask_for_id(bags, asked);
  unsigned known = 0;  // of the rows on their way: which there are, and which are not missing
  const auto fetch = [&](int half) {
    const int64_t row = asked < last ? row_of(bags, feature, id_of(bags, id)) : kElsewhere;
    if (reports && lane < kStepRows && row == kMissing) {
      int64_t at = bag;
      while (load_offset(bags, at + 1) <= asked) ++at;
      report_missing(bags, feature, at, id_of(bags, id));
    }
    const int quad = static_cast<int>(threadIdx.x % 32 / kStepRows * kStepRows);
    const unsigned are_there = __ballot_sync(kAllLanes, row >= 0) >> quad & 15u;
    const unsigned are_counted = __ballot_sync(kAllLanes, row != kMissing) >> quad & 15u;
    known = (known & ~(255u << half * 8)) | (are_there | are_counted << 4) << half * 8;
#pragma unroll
    for (int u = 0; u < kStepRows; ++u) {
      const int64_t from = __shfl_sync(kAllLanes, row, u, kStepRows);
      if (from >= 0 && is_copied) copy_async(ring + (half * kStepRows + u) * 32, source + from * stride, true);
    }
    commit_copies();
    asked += kStepRows;
    if (asked < last) id = ask_for_id(bags, asked);
  };

  float sums[kSize] = {};
  int counted = 0;
  int pooled = 0;
  const auto finish = [&] {
    if (feature.is_mean && counted > 0) {
#pragma unroll
      for (int c = 0; c < kSize; ++c) sums[c] /= static_cast<float>(counted);
    }
    store_columns(tile, first_row + pooled, columns.in_tile + lane * kSize, sums, mine.count);
#pragma unroll
    for (int c = 0; c < kSize; ++c) sums[c] = 0;
    counted = 0;
    if (++pooled < bags_here) end = load_offset(bags, bag + pooled + 1);
  };
  fetch(0);
  fetch(1);
  for (int half = 0;; half ^= 1) {
    const int64_t position = asked - lane_of_step - 2 * kStepRows;  // of the first row that is on its way
    if (!__any_sync(kAllLanes, position < last)) break;
    wait_for_copies<1>();
    const unsigned here = known >> half * 8;
#pragma unroll 1  // `finish` is long
    for (int u = 0; u < kStepRows; ++u) {
      if (position + u >= last) break;
      while (position + u >= end && pooled + 1 < bags_here) finish();
      counted += here >> (4 + u) & 1u;
      if (here >> u & 1u) {
        const Pack<T> pack = is_copied ? Pack<T>{ring[(half * kStepRows + u) * 32]}
                                       : load_pack(source + row_of(bags, feature, load_id(bags, position + u)) * stride,
                                                   mine.count, false);
        const float weight = bags.weights != nullptr ? bags.weights[position + u] : 1.0f;  // 1 * x is x
#pragma unroll
        for (int c = 0; c < kSize; ++c) sums[c] += weight * pack[c];
      }
    }
    __syncwarp();
    fetch(half);
  }
  wait_for_copies<0>();
#pragma unroll 1
  while (pooled < bags_here) finish();
}

}  // namespace dmt::cuda
