// What the gathering warps of tower_pool's kernel for Hopper do: which pieces they make of which tiles, and when.
#pragma once

#include "tower_piece.h"

namespace dmt::cuda {

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

// Gathers for all items of the block. `full` and `empty` are barriers, one a slot: each lane arrives at the first ones
// once for each part of a tile.
class Gatherer {
 public:
  DMT_MEMBER Gatherer(const Bags& bags, const Walk& walk, int warp, unsigned char* slots, uint64_t* full,
                      uint64_t* empty, int64_t* places)
      : bags_(bags),
        walk_(walk),
        slots_(slots),
        full_(full),
        empty_(empty),
        places_(places),
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
      const BFloat16* const table = static_cast<const BFloat16*>(feature.table) + columns.in_table;
      const bool is_copied = bags_.weights == nullptr && columns.in_tile % kPackSize<BFloat16> == 0 &&
                             columns.count % kPackSize<BFloat16> == 0 && is_aligned(table, feature.stride);
      if (!__all_sync(kAllLanes, is_copied && !bag.has_more)) return;
      advance();
      if (now.begins) begin_part();
      const int64_t id = id_of(bags_, bag.id);
      const int64_t row = bag.has_ids ? row_of(bags_, feature, id) : kElsewhere;
      if (now.reports && row == kMissing && columns.in_table == 0) {
        report_missing(bags_, feature, now.bag, id);
      }
      const uint64_t address = row < 0 ? 0 : reinterpret_cast<uint64_t>(table + row * feature.stride);
      copy_piece(columns, address, first_row(), tile());
      if (next.begins) end_part(now.slice);
    }
    feature_ = -1;
  }

  DMT_MEMBER void pool(const Piece& piece) {
    const Feature& feature = bags_.features[piece.feature];
    const PieceColumns columns = piece_columns(feature, piece.slice);
    const int row = lane();
    pool_piece(bags_, feature, columns, piece.bag - row, piece.count + row, piece.reports && columns.in_table == 0,
               first_row(), tile(), places_);
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
    for (int column = static_cast<int>(width); column < kSlice; ++column) {
      *reinterpret_cast<uint16_t*>(tile() + tile_place(first_row() + lane(), column)) = 0;
    }
    has_stored_ = true;
  }

  const Bags& bags_;
  const Walk& walk_;
  unsigned char* slots_;
  uint64_t* full_;
  uint64_t* empty_;
  int64_t* places_;          // the warp's
  Place here_;               // what is gathered
  int feature_ = -1;         // of it; -1: the first one
  bool has_stored_ = false;  // some of it, rather than copied all
};

}  // namespace dmt::cuda
