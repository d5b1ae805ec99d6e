// What the gathering warps of tower_pool's kernel for Hopper do: which pieces they make of which tiles, and when.
#pragma once

#include "tower_ring.h"

namespace dmt::cuda {

// The number of a part among all those of a block, and where it goes: kSlots tiles have room.
template <unsigned kSlots>
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
  template <unsigned kSlots>
  DMT_MEMBER Pieces(const Bags& bags, const Walk& walk, const Place<kSlots>& place, int feature)
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
    const int row = part_ * kPartRows + static_cast<int>(threadIdx.x % 32);
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
    static_assert(kGatherers >= kParts);  // the next part is of a later slice
    first_feature_ = feature_;
    for (part_ += kGatherers; part_ >= kParts; part_ -= kParts) {
      if (++slice_ == walk_.slices) {
        slice_ = first_feature_ = 0;
        begin_item(item_ + walk_.stride());
      }
    }
    while (end_of(first_feature_) <= static_cast<int64_t>(slice_) * kSlice) ++first_feature_;
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

// What a warp gathers into: tiles in slots, and barriers, one a slot. Each lane arrives at `full` once for each part of
// a tile.
struct TileSlots {
  unsigned char* tiles;
  uint64_t* full;
  uint64_t* empty;
};

// Of a warp, the part that it makes.
template <unsigned kSlots>
class Part {
 public:
  DMT_MEMBER Part(const Bags& bags, const TileSlots& shared, int warp)
      : bags_(bags), shared_(shared), place_{static_cast<unsigned>(warp)} {}

  DMT_MEMBER const Place<kSlots>& place() const { return place_; }
  DMT_MEMBER unsigned char* tile() const { return shared_.tiles + place_.slot() * kSlotBytes; }
  DMT_MEMBER int first_row() const { return place_.part() * kPartRows; }

  // Before something is written there.
  DMT_MEMBER void wait() {
    if (is_free_) return;
    wait_for(shared_.empty + place_.slot(), place_.parity() ^ 1);
    is_free_ = true;
  }

  // `has_stored`: some of it was stored, rather than all copied.
  DMT_MEMBER void end(int slice, bool has_stored) {
    wait();
    has_stored |= clear_rest(slice);
    uint64_t* const full = shared_.full + place_.slot();
    if (has_stored) {
      commit_copies();
      wait_for_copies<0>();
      arrive(full);
    } else {
      arrive_after_copies(full);
    }
    place_.number += kGatherers;
    is_free_ = false;
  }

 private:
  // Zeros where the matrix has no columns. (What rows beyond the samples hold matters to no other row.)
  DMT_MEMBER bool clear_rest(int slice) const {
    const int64_t width = bags_.width - static_cast<int64_t>(slice) * kSlice;
    if (width >= kSlice) return false;
    for (int column = static_cast<int>(width); column < kSlice; ++column) {
      const int row = first_row() + static_cast<int>(threadIdx.x % 32);
      *reinterpret_cast<uint16_t*>(tile() + tile_place(row, column)) = 0;
    }
    return true;
  }

  const Bags& bags_;
  const TileSlots shared_;
  Place<kSlots> place_;
  bool is_free_ = false;  // the slot
};

// Gathers rows of bfloat16 for all items of the block where nearly all bags have one id: rows, which are packs
// (Bags::are_packs) and have no weights, are copied into tiles.
template <unsigned kSlots>
class Copier {
 public:
  DMT_MEMBER Copier(const Bags& bags, const Walk& walk, const TileSlots& shared, int warp, int64_t* places)
      : bags_(bags), walk_(walk), part_(bags, shared, warp), places_(places) {}

  DMT_MEMBER void run() {
    for (;;) {
      copy_pieces();
      Pieces pieces(bags_, walk_, part_.place(), feature_);
      const Piece piece = pieces.piece();
      if (!piece.exists) return;
      part_.wait();
      pool(piece);
      pieces.advance();
      const Piece next = pieces.piece();
      feature_ = next.feature;
      if (next.begins) end_part(piece.slice);
    }
  }

 private:
  // As long as no bag has more than one id, rows are their own sums and are copied. While a piece is copied, the next
  // one's ids are on their way, and offsets of the one after it.
  DMT_MEMBER void copy_pieces() {
    Pieces pieces(bags_, walk_, part_.place(), feature_);
    Piece next;
    RowBag next_bag;
    RawOffsets offsets = ask_for_offsets(bags_, pieces.piece());  // of the next piece
    const auto advance = [&] {
      next = pieces.piece();
      const int64_t begin = clamp_offset(bags_, offsets.begin);
      const int64_t end = clamp_offset(bags_, offsets.end);
      next_bag.has_ids = begin < end;
      next_bag.has_more = end - begin > 1;
      if (next_bag.has_ids) next_bag.id = ask_for_id(bags_, begin);
      pieces.advance();
      offsets = ask_for_offsets(bags_, pieces.piece());
    };
    advance();
    while (next.exists) {
      const Piece now = next;
      const RowBag bag = next_bag;
      const Feature& feature = bags_.features[now.feature];
      const PieceColumns columns = piece_columns(feature, now.slice);
      feature_ = now.feature;
      const BFloat16* const table = static_cast<const BFloat16*>(feature.table) + columns.in_table;
      if (!__all_sync(kAllLanes, !bag.has_more)) return;
      advance();
      part_.wait();
      const int64_t id = id_of(bags_, bag.id);
      const int64_t row = bag.has_ids ? row_of(bags_, feature, id) : kElsewhere;
      if (now.reports && row == kMissing && columns.in_table == 0) {
        report_missing(bags_, feature, now.bag, id);
      }
      const uint64_t address = row < 0 ? 0 : reinterpret_cast<uint64_t>(table + row * feature.stride);
      copy_piece(columns, address, part_.first_row(), part_.tile());
      if (next.begins) end_part(now.slice);
    }
    feature_ = -1;
  }

  DMT_MEMBER void pool(const Piece& piece) {
    const Feature& feature = bags_.features[piece.feature];
    const PieceColumns columns = piece_columns(feature, piece.slice);
    const int row = static_cast<int>(threadIdx.x % 32);
    const auto run = run_of<BFloat16>(bags_, feature, columns, piece.bag - row, piece.count + row,
                                      piece.reports && columns.in_table == 0, places_, window_of);
    auto store = into_tile(run, columns, part_.first_row(), part_.tile());
    // More rows at once, or another path for sums, cost registers that a warp which gathers has not.
    if (run.count > 0 && run.columns.whole) {
      run.template walk<2, true, false>(window_of(run.group), store);
    } else if (run.count > 0) {  // a feature of no columns, whose ids are looked at nevertheless
      run.template walk<1, false, false>(window_of(run.group), store);
    }
    __syncwarp();
    has_stored_ = true;
  }

  DMT_MEMBER void end_part(int slice) {
    part_.end(slice, has_stored_);
    has_stored_ = false;
  }

  const Bags& bags_;
  const Walk& walk_;
  Part<kSlots> part_;
  int64_t* places_;          // the warp's
  int feature_ = -1;         // of the part; -1: the first one
  bool has_stored_ = false;  // some of the part
};

// Gathers rows of any dtype and pools them, for all items of the block, by way of a ring. While a piece is pooled, the
// next one's first ids are on their way, and offsets of the one after it.
template <class T, unsigned kSlots>
class Pooler {
 public:
  DMT_MEMBER Pooler(const Bags& bags, const Walk& walk, const TileSlots& shared, int warp, int64_t* places,
                    unsigned char* ring)
      : bags_(bags), walk_(walk), part_(bags, shared, warp), places_(places), ring_(ring) {}

  DMT_MEMBER void run() {
    Pieces pieces(bags_, walk_, part_.place(), -1);
    Piece next;
    BagEnds next_ends;
    RawOffsets offsets = ask_for_offsets(bags_, pieces.piece());  // of the next piece
    const auto advance = [&] {
      next = pieces.piece();
      const PooledRun<T> run = run_of_piece(next);
      next_ends = bag_ends(run, offsets);
      pieces.advance();
      offsets = ask_for_offsets(bags_, pieces.piece());
    };
    advance();
    while (next.exists) {
      const Piece now = next;
      const BagEnds ends = next_ends;
      advance();
      pool(now, ends);
      if (next.begins) part_.end(now.slice, true);
    }
  }

 private:
  DMT_MEMBER PooledRun<T> run_of_piece(const Piece& piece) const {
    const Feature& feature = bags_.features[piece.feature];
    const PieceColumns columns = piece_columns(feature, piece.slice);
    const int row = static_cast<int>(threadIdx.x % 32);
    return run_of<T>(bags_, feature, columns, piece.bag - row, piece.count + row,
                     piece.reports && columns.in_table == 0, places_, ring_places);
  }

  DMT_MEMBER void pool(const Piece& piece, const BagEnds& ends) {
    const PooledRun<T> run = run_of_piece(piece);
    const PieceColumns columns = piece_columns(run.feature, piece.slice);
    auto store_there = into_tile(run, columns, part_.first_row(), part_.tile());
    const auto store = [&](const float (&sums)[kPackSize<T>]) {
      part_.wait();  // not before rows are on their way
      store_there(sums);
    };
    if (run.count > 0 && !run.columns.whole) {
      run.template walk<1, false, false>(window_of(run.group), store);
    } else if (run.count > 0 && (bags_.weights != nullptr || run.feature.is_mean)) {
      pool_by_ring<T, false>(run, ends, ring_, store);
    } else if (run.count > 0) {
      pool_by_ring<T, true>(run, ends, ring_, store);
    }
    __syncwarp();
  }

  const Bags& bags_;
  const Walk& walk_;
  Part<kSlots> part_;
  int64_t* places_;  // the warp's
  unsigned char* ring_;
};

}  // namespace dmt::cuda
