// Pools bags that follow each other: shared by embedding_bag and tower_pool.
#pragma once

#include "bag_layout.h"

namespace dmt::cuda {

// 2^bits lanes of a warp that share the columns of a feature, and so the rows that they read.
struct LaneGroup {
  int lane;
  int bits;
  unsigned mask;

  DMT_MEMBER int lanes() const { return 1 << bits; }
};

DMT_DEVICE LaneGroup lane_group(int bits) {
  const int thread = static_cast<int>(threadIdx.x);
  const unsigned lanes = 1u << bits;
  return {thread & static_cast<int>(lanes - 1), bits,
          bits == 5 ? kAllLanes : ((1u << lanes) - 1) << (thread % 32 >> bits << bits)};
}

// As many lanes as these columns have packs, at most a warp.
template <class T>
DMT_BOTH int lane_bits(int64_t columns) {
  const int64_t packs = ceil_div<int64_t>(columns, kPackSize<T>);
  return (packs > 1) + (packs > 2) + (packs > 4) + (packs > 8) + (packs > 16);
}

// What a lane sums: `count` columns of a feature's rows from `column` on, at most a pack of them, perhaps none.
// `whole`: whatever the group's lanes sum are packs, and aligned; a lane that has none may then read what the first one
// reads.
struct LaneColumns {
  int64_t column;
  int count;
  bool whole;
};

// Of `columns` columns from `first` on, the pack of a lane.
template <class T>
DMT_DEVICE LaneColumns lane_columns(const Feature& feature, int64_t first, int64_t columns, const LaneGroup& group) {
  const int64_t begin = group.lane * kPackSize<T>;
  const int64_t left = columns - begin;
  const int count = static_cast<int>(left <= 0 ? 0 : left < kPackSize<T> ? left : kPackSize<T>);
  return {first + (count > 0 ? begin : 0), count,
          columns > 0 && columns % kPackSize<T> == 0 &&
              is_aligned(static_cast<const T*>(feature.table) + first, feature.stride)};
}

constexpr int kLeastWindow = 8;

// Places for the rows of a block's groups.
template <int kThreads>
constexpr int kRowPlaces = kThreads * kLeastWindow;

// Where the row of an id begins, in bytes from the table on; or kElsewhere or kMissing.
template <class T>
DMT_DEVICE int64_t place_of_row(const Bags& bags, const Feature& feature, const RawId& id) {
  const int64_t row = row_of(bags, feature, id_of(bags, id));
  return row >= 0 ? row * feature.stride * static_cast<int64_t>(sizeof(T)) : row;
}

// Reports the id there, which is out of range, with the bag that it is in.
DMT_DEVICE void report_at(const Bags& bags, const Feature& feature, int64_t position, int64_t first_bag, int count) {
  int64_t bag = first_bag;
  while (bag + 1 < first_bag + count && load_offset(bags, bag + 1) <= position) ++bag;
  report_missing(bags, feature, bag, load_id(bags, position));
}

// What pools the bags [first_bag, first_bag + count) of one block and feature, for a lane's columns.
template <class T>
struct PooledRun {
  const Bags& bags;
  const Feature& feature;  // read anew for every window of rows, rather than held in registers
  int64_t first_bag;
  int count;
  LaneColumns columns;
  LaneGroup group;
  bool reports;
  int64_t* places;  // the group's

  // The id of this lane's row in the window that begins at a position, counted from `first`.
  DMT_MEMBER RawId ask_ahead(int64_t first, int base, int last) const {
    return group.lane < last - base ? ask_for_id(bags, first + base + group.lane) : RawId{};
  }

  // Where the rows of the window lie that begins at a position, counted from `first`. `id`: of this lane's row.
  DMT_MEMBER void place_rows(int64_t first, int base, int last, int window, RawId id, int64_t* target) const {
    __syncwarp(group.mask);  // what was there was read
#pragma unroll 1
    for (int i = group.lane; i < window; i += group.lanes()) {
      const int64_t position = first + base + i;
      const bool is_there = i < last - base;
      if (i > group.lane && is_there) id = ask_for_id(bags, position);
      const int64_t place = is_there ? place_of_row<T>(bags, feature, id) : kMissing;
      target[i] = place;
      if (reports && is_there && place == kMissing) report_at(bags, feature, position, first_bag, count);
    }
    __syncwarp(group.mask);
  }

  // A bag's sum becomes its mean, if that is wanted, and the next one's ids are counted from zero.
  template <int kSize>
  DMT_MEMBER void average(float (&sums)[kSize], int& counted) const {
    if (feature.is_mean && counted > 0) {
#pragma unroll
      for (int c = 0; c < kSize; ++c) sums[c] /= static_cast<float>(counted);
    }
    counted = 0;
  }

  // Whether every bag has one id.
  DMT_MEMBER bool has_one_each(int64_t first, int last) const {
    if (last != count) return false;
    bool has = true;
    for (int i = group.lane; i < count; i += group.lanes()) {
      has = has && load_offset(bags, first_bag + i) == first + i;
    }
    return __all_sync(group.mask, has);
  }

  // As walk() where every bag has one id: rows are their own sums.
  template <int kTogether, class Sink>
  DMT_MEMBER void copy(int64_t first, int window, Sink& sink) const {
    constexpr int kSize = kPackSize<T>;
    const char* const table = reinterpret_cast<const char*>(static_cast<const T*>(feature.table) + columns.column);
    RawId next = ask_ahead(first, 0, count);
    for (int base = 0; base < count; base += window) {
      place_rows(first, base, count, window, next, places);
      next = ask_ahead(first, base + window, count);
#pragma unroll 1
      for (int begin = 0; begin < window && begin < count - base; begin += kTogether) {
        uint4 rows[kTogether];
#pragma unroll
        for (int u = 0; u < kTogether; ++u) {
          const int64_t place = places[begin + u];
          rows[u] = {};
          if (place >= 0) rows[u] = load_pack(reinterpret_cast<const T*>(table + place), kSize, true).words;
        }
#pragma unroll
        for (int u = 0; u < kTogether; ++u) {
          if (begin + u >= count - base) break;
          const Pack<T> pack = {rows[u]};
          float sums[kSize];
#pragma unroll
          for (int c = 0; c < kSize; ++c) sums[c] = 0.0f + pack[c];  // no negative zeros, as in walk()
          sink(sums);
        }
      }
    }
  }

  // Calls sink(sums) for every bag, in order. Rows are added in the order of the ids, kTogether at a time, across the
  // ends of bags. kIsPlain: they are neither weighted nor averaged.
  template <int kTogether, bool kIsWhole, bool kIsPlain, class Sink>
  DMT_MEMBER void walk(int window, Sink& sink) const {
    constexpr int kSize = kPackSize<T>;
    const int64_t first = load_offset(bags, first_bag);
    const int last = static_cast<int>(load_offset(bags, first_bag + count) - first);
    if constexpr (kIsWhole && kIsPlain) {
      if (has_one_each(first, last)) return copy<kTogether>(first, window, sink);
    }
    const char* const table = reinterpret_cast<const char*>(static_cast<const T*>(feature.table) + columns.column);
    // Where bags end; not clamped, since no row is read for it. The next one is there before it is wanted.
    const int64_t* const ends = bags.offsets + first_bag + 1;
    const auto end_of = [&](int bag) { return bag < count ? static_cast<int>(ends[bag] - first) : 0; };
    int bag = 0;
    int end = end_of(0);
    int next_end = end_of(1);
    int counted = 0;
    float sums[kSize] = {};
    const auto finish = [&] {
      if constexpr (!kIsPlain) average(sums, counted);
      sink(sums);
#pragma unroll
      for (int c = 0; c < kSize; ++c) sums[c] = 0;
      ++bag;
      end = next_end;
      next_end = end_of(bag + 1);
    };
    RawId next = ask_ahead(first, 0, last);
    for (int base = 0; base < last; base += window) {
      place_rows(first, base, last, window, next, places);
      next = ask_ahead(first, base + window, last);
#pragma unroll 1
      for (int begin = 0; begin < window && begin < last - base; begin += kTogether) {
        uint4 rows[kTogether];
        float weights[kTogether];
#pragma unroll
        for (int u = 0; u < kTogether; ++u) {
          const int64_t place = places[begin + u];
          rows[u] = {};
          weights[u] = 0;
          if (place >= 0) {
            const T* const row = reinterpret_cast<const T*>(table + place);
            rows[u] = load_pack(row, kIsWhole ? kSize : columns.count, kIsWhole).words;
            if constexpr (!kIsPlain) {
              weights[u] = bags.weights != nullptr ? bags.weights[first + base + begin + u] : 1.0f;  // 1 * x is x
            }
          }
        }
#pragma unroll
        for (int u = 0; u < kTogether; ++u) {
#pragma unroll 1
          while (base + begin + u >= end && bag + 1 < count) finish();
          const Pack<T> pack = {rows[u]};  // zeros change no sum
#pragma unroll
          for (int c = 0; c < kSize; ++c) sums[c] += kIsPlain ? pack[c] : weights[u] * pack[c];
          if constexpr (!kIsPlain) counted += places[begin + u] != kMissing;
        }
      }
    }
    while (bag < count) finish();
  }
};

// How many rows a group looks up together.
DMT_DEVICE int window_of(const LaneGroup& group) { return group.lanes() < kLeastWindow ? kLeastWindow : group.lanes(); }

// Of those of a block's groups, the places of this one.
DMT_DEVICE int64_t* places_of(const LaneGroup& group, int64_t* places) {
  return places + (threadIdx.x >> group.bits) * static_cast<unsigned>(window_of(group));
}

// Calls sink(sums) for the bags [first_bag, first_bag + count) of one block and feature, in order, for a lane's
// columns. All lanes of the group call it; they look up together where a window of rows lies, in `places`, which are
// the group's. `kTogether` rows are on their way at once, or half as many that are weighted or averaged.
template <class T, int kTogether, class Sink>
DMT_DEVICE void pool_run(const Bags& bags, const Feature& feature, int64_t first_bag, int count,
                         const LaneColumns& columns, const LaneGroup& group, bool reports, int64_t* places, Sink sink) {
  const int window = window_of(group);
  const PooledRun<T> run = {bags, feature, first_bag, count, columns, group, reports, places};
  if (!columns.whole) {
    run.template walk<1, false, false>(window, sink);
  } else if (bags.weights != nullptr || feature.is_mean) {
    run.template walk<kTogether / 2, true, false>(window, sink);
  } else {
    run.template walk<kTogether, true, true>(window, sink);
  }
}

}  // namespace dmt::cuda
