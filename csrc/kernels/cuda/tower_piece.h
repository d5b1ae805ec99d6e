// How warps of tower_pool's kernel for Hopper make the tiles that products read, of bfloat16: 32 rows of a tile and 128
// columns at a time, feature by feature.
#pragma once

#include "hopper.h"
#include "tower_tile.h"

namespace dmt::cuda {

constexpr int kWideRows = 128;                        // samples of a tile
constexpr int kHalfBytes = kWideRows * kSwizzledRow;  // of a tile: 64 columns
constexpr int kSlotBytes = 2 * kHalfBytes;
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

// `count` of 4 or 8 columns.
template <int kSize>
DMT_DEVICE void store_columns(unsigned char* tile, int row, int column, const float (&values)[kSize], int count) {
  uint32_t pairs[kSize / 2];
#pragma unroll
  for (int i = 0; i < kSize / 2; ++i) pairs[i] = round_pair<BFloat16>(values[2 * i], values[2 * i + 1]);
  if (count == kSize && column % kSize == 0) {
    unsigned char* const to = tile + tile_place(row, column);
    if constexpr (kSize == 4) {
      *reinterpret_cast<uint2*>(to) = make_uint2(pairs[0], pairs[1]);
    } else {
      *reinterpret_cast<uint4*>(to) = make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
    }
    return;
  }
#pragma unroll
  for (int i = 0; i < kSize; ++i) {
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

// The offsets of this lane's bag as they are read: to look at them is to wait.
struct RawOffsets {
  int64_t begin;
  int64_t end;
};

DMT_DEVICE RawOffsets ask_for_offsets(const Bags& bags, const Piece& piece) {
  if (piece.count <= 0) return {};
  return {bags.offsets[piece.bag], bags.offsets[piece.bag + 1]};
}

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

// The bags that this lane's group pools one after another: as many as it has lanes, which have a row's columns. `count`
// of the part are there, from `bag` on. `places`: the warp's, of which a group has places_each(group).
template <class T, class PlacesEach>
DMT_DEVICE PooledRun<T> run_of(const Bags& bags, const Feature& feature, const PieceColumns& columns, int64_t bag,
                               int count, bool reports, int64_t* places, const PlacesEach& places_each) {
  const int bits = lane_bits<T>(columns.count);
  const LaneGroup group = lane_group(bits < 3 ? 3 : bits);
  const int lanes = group.lanes();
  const int index = static_cast<int>(threadIdx.x % 32 >> group.bits);
  const int left = count - index * lanes;
  return {bags,
          feature,
          bag + index * lanes,
          left < lanes ? left : lanes,
          lane_columns<T>(feature, columns.in_table, columns.count, group),
          group,
          reports,
          places + index * places_each(group)};
}

// Sums of a run's bags, in order, become its rows of the tile.
template <class T>
DMT_DEVICE auto into_tile(const PooledRun<T>& run, const PieceColumns& columns, int first_row, unsigned char* tile) {
  int row = first_row + static_cast<int>(threadIdx.x % 32 >> run.group.bits << run.group.bits);
  const int column = columns.in_tile + run.group.lane * kPackSize<T>;
  return [=, count = run.columns.count](const float (&sums)[kPackSize<T>]) mutable {
    store_columns(tile, row++, column, sums, count);
  };
}

}  // namespace dmt::cuda
