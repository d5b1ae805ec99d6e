// The sorted keys of a batch, and groups of lanes that sum the gradients of rows: for the kernels of embedding_update.
#pragma once

#include "embedding_update.h"

namespace dmt::cuda {

constexpr int kThreads = 256;
constexpr int64_t kStretch = 64;  // keys that a group of lanes walks
constexpr int kInFlight = 4;      // gradient rows on their way

// The sorted keys and what they stand for.
struct Sorted {
  const uint64_t* keys;
  const float* scales;  // or null: 1
  int64_t count;
  int64_t num_rows;  // keys of this row or later stand for nothing
  KeyBits bits;
};

struct Work {
  Bags bags;
  Sorted sorted;
  const UpdatedTable* tables;
  int64_t num_tables;
  const void* grad;
  float* partials;  // [count / kRun, widest]
  const int64_t* first_ranks;
  RowStatistic statistic;
  int64_t widest;
  const int* refused;
  Optimizer optimizer;
  OptimizerSettings<float> settings;
  const int64_t* step;  // or null: weights are rounded to nearest
  int lanes;
  int group_bytes;  // of shared memory
};

DMT_DEVICE int64_t row_at(const Sorted& sorted, int64_t i) {
  return static_cast<int64_t>(sorted.keys[i] >> (sorted.bits.sample + sorted.bits.feature));
}

// The first of [low, high) whose row is at least `row`, or high.
DMT_DEVICE int64_t first_of_row(const Sorted& sorted, int64_t row, int64_t low, int64_t high) {
  while (low < high) {
    const int64_t middle = low + (high - low) / 2;
    if (row_at(sorted, middle) < row) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

DMT_DEVICE const UpdatedTable& table_of_row(const Work& work, int64_t row) {
  int64_t low = 0;
  int64_t high = work.num_tables;
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    (work.tables[middle].first_key <= row ? low : high) = middle;
  }
  return work.tables[low];
}

DMT_DEVICE void prefetch(const void* address) {
#if defined(__CUDACC__)
  asm volatile("prefetch.global.L2 [%0];" ::"l"(address));
#else
  (void)address;
#endif
}

// Lanes that sum a row's gradient in shared memory, and what of it is theirs there.
template <class Grad>
struct Group {
  const Work& work;
  int lane;
  unsigned mask;
  float* sums;    // [widest, rounded up to whole packs]
  uint4* copies;  // [kInFlight, widest in packs]
  int64_t packs;

  DMT_MEMBER Group(const Work& all, unsigned char* shared) : work(all) {
    lane = static_cast<int>(threadIdx.x) % work.lanes;
    mask = work.lanes == 32 ? kAllLanes : ((1u << work.lanes) - 1) << (threadIdx.x % 32 / work.lanes * work.lanes);
    packs = ceil_div<int64_t>(work.widest, kPackSize<Grad>);
    unsigned char* const mine = shared + static_cast<int>(threadIdx.x) / work.lanes * work.group_bytes;
    copies = reinterpret_cast<uint4*>(mine);
    sums = reinterpret_cast<float*>(mine + kInFlight * packs * 16);
  }

  // Where the gradient of contribution i lies.
  DMT_MEMBER const Grad* source(int64_t i) const {
    const Bags& bags = work.bags;
    const KeyBits& bits = work.sorted.bits;
    const uint64_t key = work.sorted.keys[i];
    const int64_t f = static_cast<int64_t>(key & ((uint64_t{1} << bits.feature) - 1));
    int64_t row = static_cast<int64_t>(key >> bits.feature & ((uint64_t{1} << bits.sample) - 1));
    if (bags.num_blocks > 1) {
      const unsigned samples = static_cast<unsigned>(bags.num_samples);
      const unsigned k = static_cast<unsigned>(row) / samples;
      row = bags.block_order[k] * bags.num_samples + static_cast<unsigned>(row) % samples;
    }
    return static_cast<const Grad*>(work.grad) + row * bags.width + bags.features[f].column;
  }

  DMT_MEMBER static bool is_copied(const Grad* from, int64_t dim) {
    return is_aligned(from, 0) && dim % kPackSize<Grad> == 0;
  }

  // Starts to copy the gradient of contribution i < end.
  DMT_MEMBER void fetch(int64_t i, int64_t end, int64_t dim) const {
    if (i < end) {
      const Grad* const from = source(i);
      if (is_copied(from, dim)) {
        for (int64_t pack = lane; pack * kPackSize<Grad> < dim; pack += work.lanes) {
          copy_async(copies + i % kInFlight * packs + pack, from + pack * kPackSize<Grad>, true);
        }
      }
    }
    commit_copies();
  }

  DMT_MEMBER void fetch_first(int64_t i, int64_t end, int64_t dim) const {
    wait_for_copies<0>();
    for (int u = 0; u < kInFlight - 1; ++u) fetch(i + u, end, dim);
  }

  // Adds contribution i, and fetches one that follows, if it is before `end`.
  DMT_MEMBER void add(int64_t i, int64_t end, int64_t dim) const {
    constexpr int kSize = kPackSize<Grad>;
    fetch(i + kInFlight - 1, end, dim);
    wait_for_copies<kInFlight - 1>();
    const Grad* const from = source(i);
    const bool copied = is_copied(from, dim);
    const float scale = work.sorted.scales != nullptr ? work.sorted.scales[i] : 1.0f;
    for (int64_t pack = lane; pack * kSize < dim; pack += work.lanes) {
      const int64_t left = dim - pack * kSize;
      const Pack<Grad> values =
          copied ? Pack<Grad>{copies[i % kInFlight * packs + pack]}
                 : load_pack(from + pack * kSize, static_cast<int>(left < kSize ? left : kSize), false);
      float* const sum = sums + pack * kSize;
#pragma unroll
      for (int c = 0; c < kSize; ++c) sum[c] += scale * values[c];
    }
  }

  DMT_MEMBER void clear(int64_t dim) const {
    constexpr int kSize = kPackSize<Grad>;
    for (int64_t pack = lane; pack * kSize < dim; pack += work.lanes) {
#pragma unroll
      for (int c = 0; c < kSize; ++c) sums[pack * kSize + c] = 0;
    }
  }

  // sums += the sums of `runs` runs, in order, in the columns that this lane adds to.
  DMT_MEMBER void add_partials(const float* partials, int64_t runs, int64_t dim) const {
    constexpr int kSize = kPackSize<Grad>;
    constexpr int kTogether = 8;  // that are on their way at once
    for (int64_t pack = lane; pack * kSize < dim; pack += work.lanes) {
      for (int c = 0; c < kSize && pack * kSize + c < dim; ++c) {
        const float* next = partials + pack * kSize + c;
        float sum = sums[pack * kSize + c];
        for (int64_t run = 0; run < runs; run += kTogether, next += kTogether * work.widest) {
          float some[kTogether];
#pragma unroll
          for (int u = 0; u < kTogether; ++u) some[u] = run + u < runs ? next[u * work.widest] : 0.0f;
#pragma unroll
          for (int u = 0; u < kTogether; ++u) {
            if (run + u < runs) sum += some[u];
          }
        }
        sums[pack * kSize + c] = sum;
      }
    }
  }
};

}  // namespace dmt::cuda
