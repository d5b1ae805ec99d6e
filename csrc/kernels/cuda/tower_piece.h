// How warps of tower_pool's kernel for Hopper pool rows of bfloat16 into the tiles that products read: 32 rows of a
// tile and 128 columns at a time, feature by feature.
#pragma once

#include "hopper.h"
#include "tower_tile.h"

namespace dmt::cuda {

constexpr int kWideRows = 128;                        // samples of a tile
constexpr int kHalfBytes = kWideRows * kSwizzledRow;  // of a tile: 64 columns
constexpr int kSlotBytes = 2 * kHalfBytes;
constexpr int kSlots = 3;                      // for tiles
constexpr int kPartRows = 32;                  // one a lane
constexpr int kParts = kWideRows / kPartRows;  // of a tile, one warp's work each
constexpr int kGatherers = 7;                  // warps
constexpr int kPlacesOfWarp = 32;              // of groups of 8 or 16 lanes, a window each

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

// Of a part of a tile, the columns that a feature has in a slice. Lane l has the bag of row l of the part.
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

// The tile's rows become rows of the feature, whose addresses the lanes have, or zeros where that is null. 1 << bits
// lanes have a row.
DMT_DEVICE void copy_rows(const PieceColumns& columns, uint64_t address, int first_row, unsigned char* tile,
                          const int bits) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  const int column = (lane & ((1 << bits) - 1)) * kPackSize<BFloat16>;
  const int at = columns.in_tile + column;
  const int part = at / 8 % 8;
  const int rows = 32 >> bits;  // at once
  tile += at / 64 * kHalfBytes + first_row * kSwizzledRow;
#pragma unroll
  for (int first = 0; first < kPartRows; first += rows) {
    const int row = first | lane >> bits;
    const uint64_t from = __shfl_sync(kAllLanes, address, row);
    if (column < columns.count) {
      copy_async(tile + swizzled_part(row, part), reinterpret_cast<const BFloat16*>(from) + column, from != 0);
    }
  }
}

DMT_DEVICE void copy_piece(const PieceColumns& columns, uint64_t address, int first_row, unsigned char* tile) {
  constexpr int kAll = 4;  // 16 lanes, of a row of a whole slice: the same with constants
  int bits = 1;
  while ((kPackSize<BFloat16> << bits) < columns.count) ++bits;
  if (bits == kAll) {
    copy_rows(columns, address, first_row, tile, kAll);
  } else {
    copy_rows(columns, address, first_row, tile, bits);
  }
}

// Groups of lanes pool bags that follow each other: `count` of the part are there, from `bag` on. `places`: the warp's.
DMT_DEVICE void pool_piece(const Bags& bags, const Feature& feature, const PieceColumns& columns, int64_t bag,
                           int count, bool reports, int first_row, unsigned char* tile, int64_t* places) {
  constexpr int kSize = kPackSize<BFloat16>;
  const LaneGroup group = lane_group(columns.count <= 8 * kSize ? 3 : 4);
  static_assert(kLeastWindow <= 8 && kPlacesOfWarp == 32);
  const int run = group.lanes();
  const int first = static_cast<int>(threadIdx.x % 32 >> group.bits) * run;
  const int bags_here = count - first < run ? count - first : run;
  const LaneColumns mine = lane_columns<BFloat16>(feature, columns.in_table, columns.count, group);
  const PooledRun<BFloat16> pooled = {
      bags, feature, bag + first, bags_here,
      mine, group,   reports,     places + (threadIdx.x % 32 >> group.bits) * static_cast<unsigned>(window_of(group))};
  int row = first_row + first;
  const auto store = [&](const float (&sums)[kSize]) {
    store_columns(tile, row++, columns.in_tile + group.lane * kSize, sums, mine.count);
  };
  // More rows at once, or another path for bags without weights, cost registers that copies have not.
  if (bags_here > 0 && mine.whole) {
    pooled.walk<2, true, false>(window_of(group), store);
  } else if (bags_here > 0) {
    pooled.walk<1, false, false>(window_of(group), store);
  }
  __syncwarp();
}

}  // namespace dmt::cuda
