// Orders in which a lookup goes through its bags, and the rows that it will come to, fetched in that order.
#pragma once

#include <cstdint>

#include "parallel_for.h"
#include "pool_bag.h"

namespace dmt::cpu {
namespace {

// Bags that follow each other and read one feature's table.
struct BagRange {
  int64_t first;  // bag
  int64_t count;
  int64_t feature;
};

template <class T, class Id>
BagRun<T, Id> bag_run(const BagLayout& bags, const BagRange& range) {
  return {typed_ids<Id>(bags), static_cast<const accumulator_t<T>*>(bags.weights), bags.offsets + range.first,
          range.count};
}

// A walk's next(range) gives the next range, or false at its end.

// Bags [bag, end) in their order: all samples of a feature, then the next feature.
class FeatureWalk {
 public:
  FeatureWalk(const BagLayout& bags, int64_t bag, int64_t end)
      : samples_(bags.num_samples), features_(bags.num_features), bag_(bag), end_(end) {}

  bool next(BagRange& range) {
    if (bag_ == end_) return false;
    const int64_t group = bag_ / samples_;  // = k*F + f
    const int64_t group_end = (group + 1) * samples_;
    range = {bag_, (group_end < end_ ? group_end : end_) - bag_, group % features_};
    bag_ += range.count;
    return true;
  }

 private:
  int64_t samples_;
  int64_t features_;
  int64_t bag_;
  int64_t end_;
};

// Rows [row, end) of the blocks as they come, some samples at a time: all features of these, then the next samples.
class SampleWalk {
 public:
  SampleWalk(const BagLayout& bags, int64_t samples_at_once, int64_t row, int64_t end)
      : samples_(bags.num_samples), features_(bags.num_features), at_once_(samples_at_once), row_(row), end_(end) {}

  bool next(BagRange& range) {
    if (feature_ == features_) {
      row_ += count();
      feature_ = 0;
    }
    if (row_ == end_) return false;
    range = {(row_ / samples_ * features_ + feature_) * samples_ + row_ % samples_, count(), feature_};
    ++feature_;
    return true;
  }

 private:
  // Samples from row_ on: of one block.
  int64_t count() const {
    int64_t count = samples_ - row_ % samples_;
    if (count > at_once_) count = at_once_;
    return count < end_ - row_ ? count : end_ - row_;
  }

  int64_t samples_;
  int64_t features_;
  int64_t at_once_;
  int64_t row_;
  int64_t end_;
  int64_t feature_ = 0;
};

// The rows of ids some way ahead in the stream of ids, across the ends of bags and tables.
template <class T, class Id, class Walk>
class IdsAhead {
 public:
  static constexpr bool kFetches = true;

  // Of a walk that has at least one range, and that is at its end afterwards. Not a copy of it: pool_bags copies what
  // is here for every range.
  IdsAhead(const BagLayout& bags, const TableData& tables, Walk& walk) : bags_(&bags), tables_(&tables), walk_(&walk) {}

  // The first rows of all, some bytes of each.
  void fetch_first(int64_t rows, int64_t bytes) {
    for (int64_t i = 0; i < rows; ++i) fetch_row(next(), 0, bytes);
  }

  // The address of the next row, unchecked.
  const char* next() {
    if (id_ == range_end_ && !next_range()) return reinterpret_cast<const char*>(rows_);
    return reinterpret_cast<const char*>(rows_ + static_cast<uint64_t>(static_cast<int64_t>(*id_++)) * row_bytes_);
  }

 private:
  __attribute__((noinline)) bool next_range() {
    BagRange range;
    do {
      if (!walk_->next(range)) return false;
      id_ = typed_ids<Id>(*bags_) + bags_->offsets[range.first];
      range_end_ = typed_ids<Id>(*bags_) + bags_->offsets[range.first + range.count];
    } while (id_ == range_end_);
    const FeatureRows<T> rows = feature_rows<T>(*bags_, *tables_, range.feature);
    row_bytes_ = static_cast<uint64_t>(rows.stride) * sizeof(T);
    rows_ = reinterpret_cast<uint64_t>(rows.data) - static_cast<uint64_t>(rows.window.start) * row_bytes_;
    return true;
  }

  const BagLayout* bags_;
  const TableData* tables_;
  Walk* walk_;
  const Id* id_ = nullptr;
  const Id* range_end_ = nullptr;
  uint64_t rows_ = 0;
  uint64_t row_bytes_ = 0;
};

constexpr int64_t kPieceGrain = 1 << 10;  // ids and bags per piece: some tens of microseconds
constexpr int64_t kPiecesPerThread = 16;  // taken one by one: rows differ in width, and threads in speed
constexpr int64_t kIdsAhead = 64;         // rows on their way, or in the second cache
constexpr int64_t kBytesAhead = 512;      // of each of a piece's first rows

// Calls function(piece, pieces, part) for as many pieces as the bags are worth, at most `most`. No two calls that run
// at once have the same part, which is below the number of threads.
template <class Function>
void for_pieces(const BagLayout& bags, int64_t most, const ParallelFor& threads, const Function& function) {
  const int64_t cost = cost_before(bags, bags.num_blocks * bags.num_features * bags.num_samples);
  int64_t pieces = threads.num_threads * kPiecesPerThread;
  if (pieces > cost / kPieceGrain + 1) pieces = cost / kPieceGrain + 1;
  if (pieces > most) pieces = most;
  int64_t taken = 0;
  parallel_for(threads, 0, pieces < threads.num_threads ? pieces : threads.num_threads, 1, [&](int64_t part, int64_t) {
    for (int64_t i; (i = __atomic_fetch_add(&taken, 1, __ATOMIC_RELAXED)) < pieces;) function(i, pieces, part);
  });
}

}  // namespace
}  // namespace dmt::cpu
