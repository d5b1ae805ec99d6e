// What the gathering warps of tower_pool's kernel for Hopper do: pooled rows, rounded to bfloat16, go to the tiles that
// the products read. A warp makes 16 rows of a tile, 128 columns of them, at a time.
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

template <int kCount>
DMT_DEVICE void store_columns(unsigned char* tile, int row, int column, const float (&values)[kCount], int count) {
  uint32_t pairs[kCount / 2];
#pragma unroll
  for (int i = 0; i < kCount / 2; ++i) pairs[i] = round_pair<BFloat16>(values[2 * i], values[2 * i + 1]);
  if (count == kCount && column % kCount == 0) {
    if constexpr (kCount == 8) {
      *reinterpret_cast<uint4*>(tile + tile_place(row, column)) = make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
    } else {
      *reinterpret_cast<uint2*>(tile + tile_place(row, column)) = make_uint2(pairs[0], pairs[1]);
    }
    return;
  }
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
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
  constexpr int kAll = sizeof(T) == 4 ? 5 : 4;  // lanes of a row of a whole slice: the same with constants
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
  const LaneColumns mine = lane_columns<T>(feature, columns.in_table, columns.count, lane);
  const bool is_copied = mine.aligned && mine.count == kSize;
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

// ---- All that a warp gathers --------------------------------------------------------------------------------------

// The number of a part among all those of a block, and where it goes.
struct Place {
  unsigned number;

  DMT_MEMBER int part() const { return static_cast<int>(number % kParts); }  // of its tile
  DMT_MEMBER unsigned slice() const { return number / kParts; }              // among all those of the block
  DMT_MEMBER int slot() const { return static_cast<int>(slice() % kSlots); }
  DMT_MEMBER unsigned parity() const { return slice() / kSlots & 1; }  // of the slot's use
};

// A warp's pieces, one after another, from one of a part on, or from its first one.
class Pieces {
 public:
  DMT_MEMBER Pieces(const Bags& bags, const Walk& walk, const Place& place, int feature)
      : bags_(bags), walk_(walk), part_(place.part()) {
    const int slice = static_cast<int>(place.slice());
    begin_item(walk.first_item() + slice / walk.slices * walk.stride());
    slice_ = slice % walk.slices;
    first_feature_ = 0;
    while (end_of(first_feature_) <= static_cast<int64_t>(slice_) * kSlice) ++first_feature_;
    begins_ = feature < 0 || feature == first_feature_;
    feature_ = begins_ ? first_feature_ : feature;
  }

  DMT_MEMBER Piece piece() const {
    const int row = part_ * kPartRows + static_cast<int>(threadIdx.x % kPartRows);
    return {slice_,  feature_, samples_ - row, first_bag_ + feature_ * bags_.num_samples + row, item_ < walk_.items(),
            begins_, reports_};
  }

  DMT_MEMBER void advance() {
    const int64_t end = (static_cast<int64_t>(slice_) + 1) * kSlice;
    begins_ = feature_ + 1 == bags_.num_features || bags_.features[feature_ + 1].column >= end;
    if (!begins_) {
      ++feature_;
      return;
    }
    part_ += kGatherers;
    if (part_ >= kParts) {
      part_ -= kParts;
      first_feature_ = feature_;
      if (++slice_ == walk_.slices) {
        slice_ = first_feature_ = 0;
        begin_item(item_ + walk_.stride());
      }
      while (end_of(first_feature_) <= static_cast<int64_t>(slice_) * kSlice) ++first_feature_;
    }
    feature_ = first_feature_;
  }

 private:
  DMT_MEMBER void begin_item(int item) {
    item_ = item;
    const Tile samples = walk_.samples(item, bags_.num_samples);
    samples_ = samples.count;
    first_bag_ = samples.block * bags_.num_features * bags_.num_samples + samples.first;
    reports_ = bags_.errors != nullptr && walk_.chunk(item) == 0;
  }

  DMT_MEMBER int64_t end_of(int feature) const { return bags_.features[feature].column + bags_.features[feature].dim; }

  const Bags& bags_;
  const Walk& walk_;
  int item_;
  int part_;
  int slice_;
  int first_feature_;  // of the slice
  int feature_;
  int samples_;        // of the tile
  int64_t first_bag_;  // of the tile and feature 0
  bool begins_;
  bool reports_;
};

// Gathers for all items of the block. `full` and `empty` are barriers, one a slot: each lane arrives at the first ones
// once for each part of a tile.
template <class T>
class Gatherer {
 public:
  DMT_MEMBER Gatherer(const Bags& bags, const Walk& walk, int warp, unsigned char* slots, uint64_t* full,
                      uint64_t* empty, uint4* ring)
      : bags_(bags),
        walk_(walk),
        slots_(slots),
        full_(full),
        empty_(empty),
        ring_(ring + lane()),
        here_{static_cast<unsigned>(warp)} {}

  DMT_MEMBER void run() {
    for (;;) {
      copy_pieces();
      Pieces pieces(bags_, walk_, here_, feature_);
      const Piece piece = pieces.piece();
      if (!piece.exists) return;
      if (piece.begins) begin_part();
      pool(piece);
      pieces.advance();
      const Piece next = pieces.piece();
      feature_ = next.feature;
      if (next.begins) end_part(piece.slice);
    }
  }

 private:
  DMT_MEMBER static int lane() { return static_cast<int>(threadIdx.x % 32); }

  // As long as no bag has more than one id and all else allows it, rows are their own sums and are copied. While a
  // piece is copied, the next one's ids are on their way, and offsets of the one after it.
  DMT_MEMBER void copy_pieces() {
    Pieces pieces(bags_, walk_, here_, feature_);
    Piece next;
    RowBag next_bag;
    int64_t begin;  // offsets as they are read: to look at them is to wait
    int64_t end;
    const auto ask_for_offsets = [&] {
      const Piece piece = pieces.piece();
      begin = end = 0;
      if (piece.count > 0) {
        begin = bags_.offsets[piece.bag];
        end = bags_.offsets[piece.bag + 1];
      }
    };
    const auto advance = [&] {
      next = pieces.piece();
      begin = clamp_offset(bags_, begin);
      end = clamp_offset(bags_, end);
      next_bag.has_ids = begin < end;
      next_bag.has_more = end - begin > 1;
      if (next_bag.has_ids) next_bag.id = ask_for_id(bags_, begin);
      pieces.advance();
      ask_for_offsets();
    };
    ask_for_offsets();
    advance();
    while (next.exists) {
      const Piece now = next;
      const RowBag bag = next_bag;
      const Feature& feature = bags_.features[now.feature];
      const PieceColumns columns = piece_columns(feature, now.slice);
      feature_ = now.feature;
      const T* const table = static_cast<const T*>(feature.table) + columns.in_table;
      const bool is_copied = bags_.weights == nullptr && columns.in_tile % kPackSize<T> == 0 &&
                             columns.count % kPackSize<T> == 0 && is_aligned(table, feature.stride);
      if (!__all_sync(kAllLanes, is_copied && !bag.has_more)) return;
      advance();
      if (now.begins) begin_part();
      const int64_t id = id_of(bags_, bag.id);
      const int64_t row = bag.has_ids ? row_of(bags_, feature, id) : kElsewhere;
      if (now.reports && row == kMissing && columns.in_table == 0 && lane() < kPartRows) {
        report_missing(bags_, feature, now.bag, id);
      }
      const uint64_t address = row < 0 ? 0 : reinterpret_cast<uint64_t>(table + row * feature.stride);
      copy_piece<T>(columns, address, first_row(), tile());
      has_stored_ |= !std::is_same_v<T, BFloat16>;
      if (next.begins) end_part(now.slice);
    }
    feature_ = -1;
  }

  DMT_MEMBER void pool(const Piece& piece) {
    const Feature& feature = bags_.features[piece.feature];
    const PieceColumns columns = piece_columns(feature, piece.slice);
    const int row = lane() % kPartRows;
    pool_piece<T>(bags_, feature, columns, piece.bag - row, piece.count + row, piece.reports && columns.in_table == 0,
                  first_row(), tile(), ring_);
    has_stored_ = true;
  }

  DMT_MEMBER unsigned char* tile() const { return slots_ + here_.slot() * kSlotBytes; }
  DMT_MEMBER int first_row() const { return here_.part() * kPartRows; }

  DMT_MEMBER void begin_part() {
    wait_for(empty_ + here_.slot(), here_.parity() ^ 1);
    has_stored_ = false;
  }

  DMT_MEMBER void end_part(int slice) {
    clear_rest(slice);
    uint64_t* const full = full_ + here_.slot();
    if (has_stored_) {
      commit_copies();
      wait_for_copies<0>();
      arrive(full);
    } else {
      arrive_after_copies(full);
    }
    here_.number += kGatherers;
  }

  // Zeros where the matrix has no columns. (What rows beyond the samples hold matters to no other row.)
  DMT_MEMBER void clear_rest(int slice) {
    const int64_t width = bags_.width - static_cast<int64_t>(slice) * kSlice;
    if (width >= kSlice) return;
    for (int column = static_cast<int>(width) + lane() / kPartRows; column < kSlice; column += 32 / kPartRows) {
      *reinterpret_cast<uint16_t*>(tile() + tile_place(first_row() + lane() % kPartRows, column)) = 0;
    }
    has_stored_ = true;
  }

  const Bags& bags_;
  const Walk& walk_;
  unsigned char* slots_;
  uint64_t* full_;
  uint64_t* empty_;
  uint4* ring_;
  Place here_;               // what is gathered
  int feature_ = -1;         // of it; -1: the first one
  bool has_stored_ = false;  // some of it, rather than copied all
};

}  // namespace dmt::cuda
