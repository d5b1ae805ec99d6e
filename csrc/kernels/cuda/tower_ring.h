// How warps of tower_pool's kernel for Hopper pool bags of any length, of rows of any dtype: rows come by copies into a
// ring in shared memory, so that few warps have many on their way. Each lane reads but what it has copied.
#pragma once

#include "tower_piece.h"

namespace dmt::cuda {

constexpr int kWindow = 8;   // rows of a group that are asked for together
constexpr int kWindows = 3;  // in the ring
constexpr int kRingRows = kWindows * kWindow;
constexpr int kRingBytes = kRingRows * 32 * 16;  // of a warp
constexpr int kRingPlaces = kRingRows * 4;       // of a warp: groups of 8 lanes or more

// What the lanes of a group know of a run before they ask for its rows.
struct BagEnds {
  int64_t first;  // position of the first id
  int last;       // behind the last one; counted from the first, as what follows
  int end;        // of this lane's bag
  RawId id;       // of this lane's row in the first window
};

// The ids of a window are asked for by its lanes.
template <class T>
DMT_DEVICE RawId ask_for_window(const PooledRun<T>& run, int64_t first, int base, int last) {
  return run.group.lane < kWindow ? run.ask_ahead(first, base, last) : RawId{};
}

// `begin`, `end`: offsets of this lane's bag, if it is there.
template <class T>
DMT_DEVICE BagEnds bag_ends(const PooledRun<T>& run, int64_t begin, int64_t end) {
  const int lanes = run.group.lanes();
  const int64_t first = __shfl_sync(kAllLanes, clamp_offset(run.bags, begin), 0, lanes);
  const int mine = static_cast<int>(clamp_offset(run.bags, end) - first);
  const int last = __shfl_sync(kAllLanes, mine, run.count > 0 ? run.count - 1 : 0, lanes);
  BagEnds ends = {first, run.count > 0 ? last : 0, mine, {}};
  ends.id = ask_for_window(run, first, 0, ends.last);
  return ends;
}

// Calls sink(sums) for every bag of a run, in order, whose rows are whole packs; as PooledRun::walk().
template <class T, bool kIsPlain, class Sink>
DMT_DEVICE void pool_by_ring(const PooledRun<T>& run, const BagEnds& ends, unsigned char* ring, const Sink& sink) {
  constexpr int kSize = kPackSize<T>;
  const char* const table =
      reinterpret_cast<const char*>(static_cast<const T*>(run.feature.table) + run.columns.column);
  unsigned char* const mine = ring + threadIdx.x % 32 * 16;
  RawId id = ends.id;
  int free = 0;  // the first row of the ring's next window
  const auto ask = [&](int base) {
    if (base < ends.last) {
      int64_t* const places = run.places + free;
      run.place_rows(ends.first, base, ends.last, kWindow, id, places);
      id = ask_for_window(run, ends.first, base + kWindow, ends.last);
#pragma unroll
      for (int first = 0; first < kWindow; first += 4) {
        int64_t some[4];
#pragma unroll
        for (int u = 0; u < 4; ++u) some[u] = places[first + u];
#pragma unroll
        for (int u = 0; u < 4; ++u) {
          copy_to_self_async(mine + (free + first + u) * 512, table + some[u], some[u] >= 0);
        }
      }
    }
    commit_copies();
    free = free + kWindow == kRingRows ? 0 : free + kWindow;
  };
  for (int i = 0; i + 1 < kWindows; ++i) ask(i * kWindow);
  int bag = 0;
  int end = __shfl_sync(run.group.mask, ends.end, 0, run.group.lanes());
  int counted = 0;
  float sums[kSize] = {};
  const auto finish = [&] {
    if constexpr (!kIsPlain) {
      if (run.feature.is_mean && counted > 0) {
#pragma unroll
        for (int c = 0; c < kSize; ++c) sums[c] /= static_cast<float>(counted);
      }
      counted = 0;
    }
    sink(sums);
#pragma unroll
    for (int c = 0; c < kSize; ++c) sums[c] = 0;
    ++bag;
    end = __shfl_sync(run.group.mask, ends.end, bag, run.group.lanes());
  };
  int now = 0;  // the first row of the window that is added up
  for (int base = 0; base < ends.last; base += kWindow) {
    ask(base + (kWindows - 1) * kWindow);
    wait_for_copies<kWindows - 1>();
    const unsigned char* rows = mine + now * 512;
    uint4 next = *reinterpret_cast<const uint4*>(rows);
#pragma unroll 1
    for (int u = 0; u < kWindow; ++u) {
      const Pack<T> pack = {next};  // zeros change no sum
      rows += u + 1 < kWindow ? 512 : 0;
      next = *reinterpret_cast<const uint4*>(rows);
#pragma unroll 1
      while (base + u >= end && bag + 1 < run.count) finish();
      if constexpr (kIsPlain) {
#pragma unroll
        for (int c = 0; c < kSize; ++c) sums[c] += pack[c];
      } else {
        const int64_t place = run.places[now + u];
        float weight = place >= 0;  // 1 * x is x
        if (place >= 0 && run.bags.weights != nullptr) weight = run.bags.weights[ends.first + base + u];
#pragma unroll
        for (int c = 0; c < kSize; ++c) sums[c] += weight * pack[c];
        counted += place != kMissing;
      }
    }
    now = now + kWindow == kRingRows ? 0 : now + kWindow;
  }
  while (bag < run.count) finish();
}

}  // namespace dmt::cuda
