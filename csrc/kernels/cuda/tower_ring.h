// How warps of tower_pool's kernel for Hopper pool bags of any length, of rows of any dtype: rows come by copies into a
// ring in shared memory, so that few warps have many on their way. Each lane reads only what it has copied.
#pragma once

#include "tower_piece.h"

namespace dmt::cuda {

constexpr int kRingWindow = 8;  // rows of a group that are waited for together
constexpr int kRingRows = 3 * kRingWindow;
constexpr int kRingRowBytes = 32 * 16;  // of all lanes
constexpr int kRingBytes = kRingRows * kRingRowBytes;
constexpr int kRingPlaces = 96;  // of a warp; of four groups of 8 lanes, or fewer of more
static_assert(kRingPlaces >= 4 * kRingRows && kRingPlaces >= 2 * 32 && kRingWindow == 8);  // the least of a group

// Places of a group, which asks for as many ids as it has lanes at once: as many as the ring has rows, and besides so
// many that the next ids' find room.
DMT_DEVICE int ring_places(const LaneGroup& group) {
  return 2 * group.lanes() < kRingRows ? kRingRows : 2 * group.lanes();
}

// What the lanes of a group know of a run before they ask for its rows.
struct BagEnds {
  int64_t first;  // position of the first id
  int last;       // behind the last one; counted from the first, as what follows
  int end;        // of this lane's bag
  RawId id;       // of this lane's row among the first
};

template <class T>
DMT_DEVICE BagEnds bag_ends(const PooledRun<T>& run, const RawOffsets& offsets) {
  const int lanes = run.group.lanes();
  const int64_t first = __shfl_sync(kAllLanes, clamp_offset(run.bags, offsets.begin), 0, lanes);
  const int mine = static_cast<int>(clamp_offset(run.bags, offsets.end) - first);
  const int last = __shfl_sync(kAllLanes, mine, run.count > 0 ? run.count - 1 : 0, lanes);
  BagEnds ends = {first, run.count > 0 ? last : 0, mine, {}};
  ends.id = run.ask_ahead(first, 0, ends.last);
  return ends;
}

// Calls sink(sums) for every bag of a run, in order, whose rows are whole packs; as PooledRun::walk().
template <class T, bool kIsPlain, class Sink>
DMT_DEVICE void pool_by_ring(const PooledRun<T>& run, const BagEnds& ends, unsigned char* ring, const Sink& sink) {
  constexpr int kSize = kPackSize<T>;
  const int lanes = run.group.lanes();
  const int num_places = ring_places(run.group);
  const char* const table =
      reinterpret_cast<const char*>(static_cast<const T*>(run.feature.table) + run.columns.column);
  unsigned char* const mine = ring + threadIdx.x % 32 * 16;
  const auto next_of = [](int i, int step, int size) { return i + step == size ? 0 : i + step; };
  RawId id = ends.id;
  int asked_row = 0;    // of the ring, the first that is asked for next
  int asked_place = 0;  // and its place
  const auto ask = [&](int base) {
    if (base < ends.last) {
      if ((base & (lanes - 1)) == 0) {
        run.place_rows(ends.first, base, ends.last, lanes, id, run.places + asked_place);
        id = run.ask_ahead(ends.first, base + lanes, ends.last);
      }
#pragma unroll
      for (int half = 0; half < kRingWindow; half += 4) {
        int64_t places[4];
#pragma unroll
        for (int u = 0; u < 4; ++u) places[u] = run.places[asked_place + half + u];
#pragma unroll
        for (int u = 0; u < 4; ++u) {
          copy_async_short(mine + (asked_row + half + u) * kRingRowBytes, table + places[u], places[u] >= 0);
        }
      }
    }
    commit_copies();
    asked_row = next_of(asked_row, kRingWindow, kRingRows);
    asked_place = next_of(asked_place, kRingWindow, num_places);
  };
  ask(0);
  ask(kRingWindow);
  int bag = 0;
  int end = __shfl_sync(run.group.mask, ends.end, 0, lanes);
  int counted = 0;
  float sums[kSize] = {};
  const auto finish = [&] {
    if constexpr (!kIsPlain) run.average(sums, counted);
    sink(sums);
#pragma unroll
    for (int c = 0; c < kSize; ++c) sums[c] = 0;
    ++bag;
    end = __shfl_sync(run.group.mask, ends.end, bag, lanes);
  };
  int row = 0;    // of the ring, the first of the window that is added up
  int place = 0;  // and its place
  for (int base = 0; base < ends.last; base += kRingWindow) {
    ask(base + 2 * kRingWindow);
    wait_for_copies<2>();
    const unsigned char* const rows = mine + row * kRingRowBytes;
    const auto add = [&](int u) {
      const Pack<T> pack = {*reinterpret_cast<const uint4*>(rows + u * kRingRowBytes)};  // zeros change no sum
      if constexpr (kIsPlain) {
#pragma unroll
        for (int c = 0; c < kSize; ++c) sums[c] += pack[c];
      } else {
        const int64_t there = run.places[place + u];
        float weight = there >= 0;  // 1 * x is x
        if (there >= 0 && run.bags.weights != nullptr) weight = run.bags.weights[ends.first + base + u];
#pragma unroll
        for (int c = 0; c < kSize; ++c) sums[c] += weight * pack[c];
        counted += there != kMissing;
      }
    };
    int u = 0;
    while (true) {  // up to the end of a bag, or to that of the window
      const int stop = bag + 1 < run.count && end - base < kRingWindow ? end - base : kRingWindow;
#pragma unroll 1
      for (; u + 4 <= stop; u += 4) {
#pragma unroll
        for (int i = 0; i < 4; ++i) add(u + i);
      }
#pragma unroll 1
      for (; u < stop; ++u) add(u);
      if (stop == kRingWindow) break;
      finish();
    }
    row = next_of(row, kRingWindow, kRingRows);
    place = next_of(place, kRingWindow, num_places);
  }
  while (bag < run.count) finish();
}

}  // namespace dmt::cuda
