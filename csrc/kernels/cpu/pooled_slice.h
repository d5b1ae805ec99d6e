// Pieces of the pooled matrix, a tile of its rows by a slice of its columns: what the kernels fused with a lookup work
// on, one after the other, while the table rows of the next piece are fetched.
#pragma once

#include <cstdint>

#include "pool_bag.h"

namespace dmt::cpu {
namespace {

constexpr int64_t kPrefetchedIds = 512;  // of a slice's feature, at most: rows that wait in the L2 cache

inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t max(int64_t a, int64_t b) { return a > b ? a : b; }

// Into the caches. GCC takes a function that only prefetches for one without effect and deletes calls of it, and of its
// callers; the empty statement is the effect that it sees.
template <class T>
void fetch(const T* first, const T* last) {
  __asm__ volatile("");
  for (; first < last; first += kCacheLine / sizeof(T)) __builtin_prefetch(first, 0, 3);
}

// Samples [first, first + samples) of block k.
struct Tile {
  int64_t k;
  int64_t first;
  int64_t samples;
};

// All samples in tiles of at most `samples`, none of which holds samples of two blocks.
struct Tiles {
  int64_t samples;
  int64_t num_samples;  // B
  int64_t per_block;
  int64_t count;

  Tiles(const BagLayout& bags, int64_t samples)
      : samples(samples),
        num_samples(bags.num_samples),
        per_block(divide_up(bags.num_samples, samples)),
        count(bags.num_blocks * per_block) {}

  Tile at(int64_t i) const {
    const int64_t first = i % per_block * samples;
    return {i / per_block, first, min(samples, num_samples - first)};
  }
};

// Columns [first, last) of the pooled matrix. The last slice also holds the features without columns.
struct Slice {
  int64_t first;
  int64_t last;
  bool is_last;

  bool holds(int64_t column) const { return column >= first && (column < last || is_last); }
  int64_t columns() const { return last - first; }
};

// The slice of at most `columns` that begins at `first`.
inline Slice slice_at(const BagLayout& bags, int64_t first, int64_t columns) {
  const int64_t last = min(first + columns, bags.width);
  return {first, last, last == bags.width};
}

template <class T, class Id>
struct PooledMatrix {
  using Acc = accumulator_t<T>;

  const BagLayout& bags;
  const TableData& tables;

  // Calls function(feature, its first column in the slice, end, offsets of the tile's bags) for the slice's features.
  template <class Function>
  void for_features(const Tile& tile, const Slice& slice, const Function& function) const {
    for (int64_t f = 0; f < bags.num_features; ++f) {
      const FeatureRows<T> rows = feature_rows<T>(bags, tables, f);
      const int64_t begin = max(slice.first - rows.column, 0);
      const int64_t end = min(slice.last - rows.column, rows.dim);
      if (begin < end || slice.holds(rows.column)) {
        function(rows, begin, max(begin, end),
                 bags.offsets + (tile.k * bags.num_features + f) * bags.num_samples + tile.first);
      }
    }
  }

  // The slice's columns of samples [first, last) of the tile, in rows `stride` apart. Returns the missing ids, each
  // counted in one slice.
  int64_t pool(const Tile& tile, const Slice& slice, int64_t first, int64_t last, Acc* pooled, int64_t stride) const {
    const Id* ids = typed_ids<Id>(bags);
    const Acc* weights = static_cast<const Acc*>(bags.weights);
    NothingAhead nothing;  // the rows have been fetched
    int64_t missing = 0;
    for_features(tile, slice, [&](const FeatureRows<T>& rows, int64_t begin, int64_t end, const int64_t* offsets) {
      Acc* sums = pooled + rows.column + begin - slice.first;
      for (int64_t s = first; s < last; ++s, sums += stride) {
        const Acc* bag_weights = weights != nullptr ? weights + offsets[s] : nullptr;
        const int64_t here = pool_bag(rows, begin, end - begin, ids + offsets[s], offsets[s + 1] - offsets[s],
                                      bag_weights, sums, nothing);
        missing += slice.holds(rows.column) ? here : 0;
      }
    });
    return missing;
  }
};

// The table rows that `pool` will read for a piece, fetched a few at a time before its turn. The first lines of the
// next few rows are asked for together: each may have to wait for its page's address, and so they wait together.
template <class T, class Id>
class SliceAhead {
 public:
  // All of them are on their way after `portions` calls of fetch_portion.
  SliceAhead(const PooledMatrix<T, Id>& matrix, const Tile& tile, const Slice& slice, int64_t portions)
      : matrix_(matrix), tile_(tile), slice_(slice) {
    int64_t rows = 0;
    for (int64_t f = 0; f < matrix.bags.num_features; ++f) rows += enter(f);
    portion_ = divide_up(rows, portions);
    left_ = enter(0);
  }

  void fetch_portion() {
    for (int64_t i = 0; i < portion_; ++i) {
      if (next_ == queued_) queue();
      if (next_ == queued_) return;
      fetch(queue_[next_].first, queue_[next_].last);
      ++next_;
    }
  }

 private:
  struct Row {
    const T* first;
    const T* last;
  };

  void queue() {
    next_ = queued_ = 0;
    while (queued_ < kQueue) {
      if (left_ == 0) {
        if (feature_ + 1 >= matrix_.bags.num_features) return;
        left_ = enter(feature_ + 1);
        continue;
      }
      --left_;
      const int64_t row = rows_.window.row(*ids_++);
      if (row < 0) continue;
      const T* source = rows_.data + row * rows_.stride;
      queue_[queued_] = {source + begin_, source + end_};
      fetch(queue_[queued_].first, queue_[queued_].first + 1);
      ++queued_;
    }
  }

  // Goes to the first of a feature's rows in the slice. Returns how many there are to fetch.
  int64_t enter(int64_t feature) {
    const BagLayout& bags = matrix_.bags;
    feature_ = feature;
    if (feature >= bags.num_features) return 0;
    rows_ = feature_rows<T>(bags, matrix_.tables, feature);
    begin_ = max(slice_.first - rows_.column, 0);
    end_ = min(slice_.last - rows_.column, rows_.dim);
    if (begin_ >= end_) return 0;
    const int64_t* offsets = bags.offsets + (tile_.k * bags.num_features + feature) * bags.num_samples + tile_.first;
    ids_ = typed_ids<Id>(bags) + offsets[0];
    return min(offsets[tile_.samples] - offsets[0], kPrefetchedIds);
  }

  static constexpr int64_t kQueue = 8;

  const PooledMatrix<T, Id>& matrix_;
  const Tile tile_;
  const Slice slice_;
  int64_t portion_;
  // What is not queued yet: `left_` ids of a feature, and all of later ones.
  int64_t feature_;
  FeatureRows<T> rows_;
  int64_t begin_;
  int64_t end_;
  const Id* ids_;
  int64_t left_;
  Row queue_[kQueue];
  int64_t next_ = 0;
  int64_t queued_ = 0;
};

}  // namespace
}  // namespace dmt::cpu
