// Pools bags that follow each other: shared by embedding_bag and tower_pool.
#pragma once

#include "bag_layout.h"

namespace dmt::cuda {

// What a lane sums: `count` columns of a feature's rows from `column` on, at most a pack of them.
struct LaneColumns {
  int64_t column;
  int count;
  bool aligned;
};

// Of `columns` columns from `first` on, the pack of lane `lane`.
template <class T>
DMT_DEVICE LaneColumns lane_columns(const Feature& feature, int64_t first, int64_t columns, int64_t lane) {
  const int64_t begin = lane * kPackSize<T>;
  const int64_t left = columns - begin;
  return {first + begin,
          static_cast<int>(left < 0              ? 0
                           : left < kPackSize<T> ? left
                                                 : kPackSize<T>),
          is_aligned(static_cast<const T*>(feature.table) + first, feature.stride)};
}

// Calls sink(i, sums) for the bags [first_bag, first_bag + count) of one block and feature, for a lane's columns. Rows
// are added in the order of the ids. The next kInFlight of them are on their way meanwhile, across the ends of bags: to
// shared memory, where a thread's rows lie kThreads places apart from `place` on, rather than to registers, of which
// that would take as many. (Rows that are not aligned are read one by one, when their turn comes.)
template <class T, int kInFlight, int kThreads, class Sink>
DMT_DEVICE void pool_run(const Bags& bags, const Feature& feature, int64_t first_bag, int count,
                         const LaneColumns& columns, bool reports, uint4* place, const Sink& sink) {
  constexpr int kSize = kPackSize<T>;
  const T* const table = static_cast<const T*>(feature.table) + columns.column;
  const bool is_copied = columns.aligned && columns.count == kSize;
  const int64_t first = load_offset(bags, first_bag);
  const int64_t last = load_offset(bags, first_bag + count);
  const auto fetch = [&](int64_t p) {
    if (p < last && is_copied) {
      const int64_t row = row_of(bags, feature, load_id(bags, p));
      if (row >= 0) copy_async(place + (p - first) % kInFlight * kThreads, table + row * feature.stride, true);
    }
    commit_copies();
  };
  int64_t end = load_offset(bags, first_bag + 1);
  int64_t counted = 0;
  int bag = 0;
  float sums[kSize] = {};
  for (int u = 0; u < kInFlight - 1; ++u) fetch(first + u);
  for (int64_t p = first;;) {
    if ((p < end && p < last) || (bag + 1 == count && p < last)) {
      fetch(p + kInFlight - 1);  // to where the last row was
      wait_for_copies<kInFlight - 1>();
      const int64_t id = load_id(bags, p);
      const int64_t row = row_of(bags, feature, id);
      counted += row != kMissing;
      if (row >= 0) {
        const Pack<T> pack = is_copied ? Pack<T>{place[(p - first) % kInFlight * kThreads]}
                                       : load_pack(table + row * feature.stride, columns.count, false);
        const float weight = bags.weights != nullptr ? bags.weights[p] : 1.0f;  // 1 * x is x
#pragma unroll
        for (int c = 0; c < kSize; ++c) sums[c] += weight * pack[c];
      } else if (reports && row == kMissing) {
        report_missing(bags, feature, first_bag + bag, id);
      }
      ++p;
      continue;
    }
    if (feature.is_mean && counted > 0) {
#pragma unroll
      for (int c = 0; c < kSize; ++c) sums[c] /= static_cast<float>(counted);
    }
    sink(bag, sums);
    if (++bag == count) break;
#pragma unroll
    for (int c = 0; c < kSize; ++c) sums[c] = 0;
    counted = 0;
    end = load_offset(bags, first_bag + bag + 1);
  }
  wait_for_copies<0>();
}

}  // namespace dmt::cuda
