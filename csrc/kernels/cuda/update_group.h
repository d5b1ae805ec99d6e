// The sorted keys of a batch, and groups of lanes that sum the gradients of rows: for the kernels of embedding_update.
#pragma once

#include "embedding_update.h"

namespace dmt::cuda {

constexpr int kThreads = 256;
constexpr int kRowThreads = 128;  // of those kernels that work on rows: blocks end sooner
constexpr int64_t kStretch = 16;  // keys that a group of lanes walks

// The sorted keys and what they stand for.
struct Sorted {
  const uint64_t* keys;
  const float* scales;  // or null: 1
  int64_t count;
  KeyBits bits;
};

struct Work {
  Bags bags;
  Sorted sorted;
  const UpdatedTable* tables;
  int64_t num_tables;
  const void* grad;
  float* partials;  // [count / kRun, sum_width]
  const int64_t* first_ranks;
  RowStatistic statistic;
  const int* accepted;
  Optimizer optimizer;
  OptimizerSettings<float> settings;
  const int64_t* step;  // or null: weights are rounded to nearest
  bool is_by_feature;   // rows are numbered feature by feature
  unsigned parts;       // of the keys, whose stretches take turns
  unsigned stretches_each;
  int sum_width;    // columns of the widest row, rounded up to whole packs
  int group_bytes;  // of shared memory
};

DMT_DEVICE int64_t row_of_key(const Sorted& sorted, uint64_t key) {
  return static_cast<int64_t>(key >> (sorted.bits.sample + sorted.bits.feature));
}

// Of a row's number, what numbers it in its table, if it is numbered by feature.
DMT_DEVICE int64_t local_bits(const KeyBits& bits, int64_t row) {
  return row & static_cast<int64_t>((uint64_t{1} << bits.local) - 1);
}

// Whether a number is a row's, rather than a missing id's.
DMT_DEVICE bool is_row(const KeyBits& bits, int64_t row) { return local_bits(bits, ~row) != 0; }

DMT_DEVICE int64_t row_at(const Sorted& sorted, int64_t i) { return row_of_key(sorted, sorted.keys[i]); }

DMT_DEVICE const Feature& feature_of_key(const Work& work, uint64_t key) {
  return work.bags.features[key & ((uint64_t{1} << work.sorted.bits.feature) - 1)];
}

DMT_DEVICE void prefetch(const void* address) {
#if defined(__CUDACC__)
  asm volatile("prefetch.global.L2 [%0];" ::"l"(address));
#else
  (void)address;
#endif
}

// What a key adds to its row's gradient.
template <class Grad>
struct alignas(16) Contribution {
  const Grad* from;
  float scale;
  int dim;
};

// What a lane reads of a row at once.
template <class T, int kColumns>
struct Columns {
  static_assert(kColumns == kPackSize<T>);
  Pack<T> pack;

  DMT_MEMBER void load(const T* source) { pack = {__ldg(reinterpret_cast<const uint4*>(source))}; }
  DMT_MEMBER float operator[](int i) const { return pack[i]; }
};

template <class T>
struct Columns<T, 1> {
  T value;

  DMT_MEMBER void load(const T* source) { value = *source; }
  DMT_MEMBER float operator[](int) const { return to_float(value); }
};

// How rows are shared out. Lanes take a pack each, or one column if not all rows are whole packs (kIsPacked); and if no
// row is wider than all lanes' packs (kIsNarrow), then nothing more.
template <bool kIsPacked_, bool kIsNarrow_, int kLanes_>
struct Shape {
  static constexpr bool kIsPacked = kIsPacked_;
  static constexpr bool kIsNarrow = kIsNarrow_;
  static constexpr int kLanes = kLanes_;

  template <class T>
  static constexpr int kSize = kIsPacked ? kPackSize<T> : 1;

  // function(c) with the first of kColumns columns, for all that are this lane's.
  template <int kColumns, class Function>
  static DMT_MEMBER void for_columns(int lane, int dim, const Function& function) {
    for (int c = lane * kColumns; c < dim; c += kLanes * kColumns) {
      function(c);
      if (kIsNarrow) break;
    }
  }
};

// Lanes that sum a row's gradient. Every lane makes out what one key stands for, and tells the others in shared memory.
template <class Grad, class Shape>
struct Group {
  static constexpr bool kIsPacked = Shape::kIsPacked;
  static constexpr int kSize = Shape::template kSize<Grad>;
  static constexpr int kLanes = Shape::kLanes;

  const Work& work;
  int lane;
  unsigned mask;
  Contribution<Grad>* window;  // [kLanes], of keys in a row
  float* sums;                 // [sum_width]

  DMT_MEMBER Group(const Work& all, unsigned char* shared) : work(all) {
    lane = static_cast<int>(threadIdx.x % kLanes);
    mask = (kAllLanes >> (32 - kLanes)) << first_lane();
    unsigned char* const mine = shared + static_cast<int>(threadIdx.x) / kLanes * work.group_bytes;
    window = reinterpret_cast<Contribution<Grad>*>(mine);
    sums = reinterpret_cast<float*>(window + kLanes);
  }

  static DMT_MEMBER unsigned first_lane() { return threadIdx.x % 32 / kLanes * kLanes; }
  DMT_MEMBER void sync() const { __syncwarp(mask); }
  DMT_MEMBER unsigned ballot(bool vote) const { return __ballot_sync(mask, vote) >> first_lane(); }
  template <class Value>
  DMT_MEMBER Value shuffle(Value value, int from) const {
    return __shfl_sync(mask, value, from, kLanes);
  }

  template <class Function>
  DMT_MEMBER void for_columns(int dim, const Function& function) const {
    Shape::template for_columns<kSize>(lane, dim, function);
  }

  // All ones, which belong to no row, behind the last.
  DMT_MEMBER uint64_t key_at(int64_t i) const { return i < work.sorted.count ? work.sorted.keys[i] : ~uint64_t{0}; }

  // The first of [low, high) whose row is at least `row`, or high. Every lane looks at the first key of a piece.
  DMT_MEMBER int64_t first_of_row(int64_t row, int64_t low, int64_t high) const {
    while (low < high) {
      const int64_t piece = ceil_div<int64_t>(high - low, kLanes);
      const int64_t i = low + lane * piece;
      const int before = __popc(ballot(i < high && row_at(work.sorted, i) < row));
      if (before == 0) break;
      high = before * piece < high - low ? low + before * piece : high;
      low += (before - 1) * piece + 1;
    }
    return low;
  }

  // window[lane] = what the key, that of contribution i, stands for.
  DMT_MEMBER void decode(int64_t i, uint64_t key) const {
    const Bags& bags = work.bags;
    const KeyBits& bits = work.sorted.bits;
    const Feature& feature = feature_of_key(work, key);
    int64_t sample = static_cast<int64_t>(key >> bits.feature & ((uint64_t{1} << bits.sample) - 1));
    if (bags.num_blocks > 1) {
      const unsigned samples = static_cast<unsigned>(bags.num_samples);
      const unsigned k = static_cast<unsigned>(sample) / samples;
      sample = bags.block_order[k] * bags.num_samples + static_cast<unsigned>(sample) % samples;
    }
    window[lane] = {static_cast<const Grad*>(work.grad) + sample * bags.width + feature.column,
                    work.sorted.scales != nullptr ? work.sorted.scales[i] : 1.0f, feature.dim};
  }

  // sums += the contributions [first, end) of the window, in order; or from zero on. kTogether are on their way at
  // once.
  template <int kTogether>
  DMT_MEMBER void add(int first, int end, int dim, bool from_zero) const {
    for_columns(dim, [&](int c) {
      float sum[kSize] = {};
      if (!from_zero) load_values(sums + c, sum, kSize, kIsPacked);
      int i = first;
      for (; i + kTogether <= end; i += kTogether) add_some<kTogether>(i, c, sum);
#pragma unroll 1
      for (; i < end; ++i) add_some<1>(i, c, sum);
      store_values(sums + c, sum, kSize, kIsPacked);
    });
  }

  template <int kCount>
  DMT_MEMBER void add_some(int first, int c, float (&sum)[kSize]) const {
    Columns<Grad, kSize> values[kCount];
#pragma unroll
    for (int u = 0; u < kCount; ++u) values[u].load(window[first + u].from + c);
#pragma unroll
    for (int u = 0; u < kCount; ++u) {
      const float scale = window[first + u].scale;
#pragma unroll
      for (int j = 0; j < kSize; ++j) sum[j] += scale * values[u][j];
    }
  }

  // The same; and if the window ends there, of the contributions [next, end) behind it, as far as they are the row's.
  template <int kTogether>
  DMT_MEMBER void add_row(int first, int last, int64_t next, int64_t end, int64_t row, int dim, bool from_zero) const {
    while (true) {
      const bool goes_on = last == kLanes && next < end;
      const int64_t i = next + lane;
      const uint64_t key = goes_on ? key_at(i) : 0;
      add<kTogether>(first, last, dim, from_zero);
      if (!goes_on) return;
      const bool is_there = i < end && row_of_key(work.sorted, key) == row;
      first = 0;
      const unsigned all = ballot(is_there);
      last = __popc(all & ~(all + 1));  // those in front: of offsets that do not ascend, some may lie apart
      next += kLanes;
      from_zero = false;
      sync();  // all have read what the window held
      if (is_there) decode(i, key);
      sync();
    }
  }

  // sums = the sums of `runs` runs, in order, in the columns that this lane adds to.
  DMT_MEMBER void add_partials(const float* partials, int64_t runs, int dim) const {
    constexpr int kTogether = 4;
    for_columns(dim, [&](int c) {
      const float* next = partials + c;
      float sum[kSize] = {};
      for (int64_t run = 0; run < runs; run += kTogether, next += kTogether * work.sum_width) {
        float some[kTogether][kSize];
#pragma unroll
        for (int u = 0; u < kTogether; ++u) {
          if (run + u < runs) load_values(next + u * work.sum_width, some[u], kSize, kIsPacked);
        }
#pragma unroll
        for (int u = 0; u < kTogether; ++u) {
          if (run + u >= runs) continue;
#pragma unroll
          for (int j = 0; j < kSize; ++j) sum[j] += some[u][j];
        }
      }
      store_values(sums + c, sum, kSize, kIsPacked);
    });
  }
};

}  // namespace dmt::cuda
