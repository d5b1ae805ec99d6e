// A tile of samples goes through the columns of the weight in slices of kDepth words:
//
//   pooled  the slice of the tile's pooled rows, panels [kDepth, kPanel] with a sample per lane, in the L2 cache
//   block   the slice of kBlockRows rows of the weight, in the L1 cache; read once per tile
//   sums    all C sums of all samples, blocks [kBlockRows, kPanel], in the L2 cache; sums of a block in registers
//
// While a slice is multiplied the rows of the next one are fetched. The weight needs no packing: with a sample per lane
// its elements are broadcast, in the order in which they lie.
#include "tower_pool.h"

#include "multiply_block.h"
#include "pooled_slice.h"
#include "product_words.h"
#include "transpose.h"

namespace dmt::cpu {
namespace {

constexpr int64_t kTileSamples = 256;  // the weight is read once per tile, the sums of a tile fit the L2 cache
constexpr int64_t kStagedRows = 16;    // pooled rows before they are turned into panels

template <class T, class Id, class Words>
struct TowerPool {
  using Acc = accumulator_t<T>;
  using Word = typename Words::Word;
  static constexpr int64_t kSlice = kDepth * Words::kTerms;  // columns
  static constexpr int64_t kWidth = kPanel<Word>;

  const PooledMatrix<T, Id> matrix;
  const TowerModule& module;
  T* out;
  const BagLayout& bags = matrix.bags;

  // pooled = the slice's words of the tile, a panel after the other; lanes behind the last sample hold anything.
  // Returns the missing ids.
  int64_t pool_slice(const Tile& tile, const Slice& slice, Word* pooled) const {
    const int64_t depth = divide_up(slice.columns(), Words::kTerms);
    alignas(kCacheLine) Acc staged[kStagedRows][kSlice] = {};
    int64_t missing = 0;
    for (int64_t first = 0; first < tile.samples; first += kStagedRows) {
      const int64_t last = min(first + kStagedRows, tile.samples);
      missing += matrix.pool(tile, slice, first, last, staged[0], kSlice);
      for (int64_t s = first; s < last; s += kLanes<Word>) {
        Word* panel = pooled + s / kWidth * kDepth * kWidth + s % kWidth;
        for (int64_t d = 0; d < depth; d += kLanes<Word>)
          turn(staged[s - first] + d * Words::kTerms, panel + d * kWidth);
      }
    }
    return missing;
  }

  // A vector of words of each of as many staged rows becomes rows of a panel.
  static void turn(const Acc* staged, Word* panel) {
    vector_t<Word> square[kLanes<Word>];
#pragma GCC unroll 16
    for (int64_t i = 0; i < kLanes<Word>; ++i) square[i] = Words::vector(staged + i * kSlice);
    transpose<Word>(square);
#pragma GCC unroll 16
    for (int64_t i = 0; i < kLanes<Word>; ++i) store_vector(panel + i * kWidth, square[i]);
  }

  // Fetches a portion of a block of the weight.
  void fetch_weight(const Slice& slice, int64_t row, int64_t portion, int64_t portions) const {
    const int64_t rows = min(module.out_width - row, kBlockRows);
    const int64_t last = row + rows * (portion + 1) / portions;
    for (int64_t r = row + rows * portion / portions; r < last; ++r) {
      const T* source = static_cast<const T*>(module.weight) + r * bags.width;
      fetch(source + slice.first, source + slice.last);
    }
  }

  // sums of rows [row, row + Rows) of the weight for all samples. What comes next is fetched on the way: rows of
  // tables, and the block of the weight at row_ahead of slice_ahead.
  template <int64_t Rows>
  void multiply(const Slice& slice, int64_t row, const Word* pooled, int64_t panels, Acc* sums,
                SliceAhead<T, Id>& rows_ahead, const Slice& slice_ahead, int64_t row_ahead) const {
    const int64_t columns = slice.columns();
    const int64_t rows = min(module.out_width - row, Rows);
    Word block[Rows * kDepth];
    for (int64_t r = 0; r < rows; ++r) {
      const T* source = static_cast<const T*>(module.weight) + (row + r) * bags.width + slice.first;
      Words::make(source, columns, block + r * kDepth);
    }
    for (int64_t i = rows * kDepth; i < Rows * kDepth; ++i) block[i] = 0;
    const int64_t depth = divide_up(columns, Words::kTerms);
    for (int64_t p = 0; p < panels; ++p) {
      rows_ahead.fetch_portion();
      fetch_weight(slice_ahead, row_ahead, p, panels);
      multiply_block<Rows>(block, pooled + p * kDepth * kWidth, depth, slice.first == 0,
                           sums + (row * panels + p * Rows) * kWidth);
    }
  }

  // Rounds the sums of rows [row, row + Rows) of the weight into the output.
  template <int64_t Rows>
  void finish(const Tile& tile, int64_t row, int64_t panels, const Acc* sums) const {
    constexpr int64_t lanes = kLanes<Acc>;
    const int64_t C = module.out_width;
    const int64_t rows = min(C - row, Rows);
    const T* bias = static_cast<const T*>(module.bias);
    T* target = out + (bags.block_order[tile.k] * bags.num_samples + tile.first) * C + row;
    for (int64_t s = 0; s < tile.samples; s += lanes, target += lanes * C) {
      const Acc* source = sums + (row * panels + s / kWidth * Rows) * kWidth + s % kWidth;
      const int64_t samples = min(tile.samples - s, lanes);
      for (int64_t first = 0; first < rows; first += lanes) {
        vector_t<Acc> square[lanes] = {};
#pragma GCC unroll 16
        for (int64_t i = 0; i < lanes; ++i) {
          if (first + i >= rows) break;
          square[i] = load_vector(source + (first + i) * kWidth);
          if (bias != nullptr) square[i] += splat<Acc>(load(bias[row + first + i]));
        }
        transpose<Acc>(square);
        for (int64_t i = 0; i < samples; ++i) store_some(target + i * C + first, square[i], rows - first);
      }
    }
  }

  // Returns the missing ids. The first slice of `next` is fetched on the way.
  int64_t run(const Tile& tile, const Tile& next, Word* pooled, Acc* sums) const {
    constexpr int64_t half = (kBlockRows + 1) / 2;
    const int64_t C = module.out_width;
    const int64_t panels = divide_up(tile.samples, kWidth);
    const int64_t blocks = divide_up(C, kBlockRows);
    int64_t missing = 0;
    int64_t first = 0;
    do {
      const Slice slice = slice_at(bags, first, kSlice);
      missing += pool_slice(tile, slice, pooled);
      const Slice slice_ahead = slice_at(bags, slice.is_last ? 0 : slice.last, kSlice);
      SliceAhead<T, Id> rows_ahead(matrix, slice.is_last ? next : tile, slice_ahead, max(blocks * panels, 1));
      for (int64_t row = 0; row < C; row += kBlockRows) {
        const bool is_last = row + kBlockRows >= C;
        const Slice& weight_ahead = is_last ? slice_ahead : slice;
        const int64_t row_ahead = is_last ? 0 : row + kBlockRows;
        if (C - row > half) {
          multiply<kBlockRows>(slice, row, pooled, panels, sums, rows_ahead, weight_ahead, row_ahead);
          if (slice.is_last) finish<kBlockRows>(tile, row, panels, sums);
        } else {
          multiply<half>(slice, row, pooled, panels, sums, rows_ahead, weight_ahead, row_ahead);
          if (slice.is_last) finish<half>(tile, row, panels, sums);
        }
      }
      first = slice.last;
    } while (first < bags.width);
    return missing;
  }
};

// How the output's rows are cut: fewer per tile when there are more threads than tiles. No result depends on it.
struct Tiling {
  int64_t samples;  // of a tile
  int64_t sums;     // elements of a thread's sums
  int64_t pooled;   // words of a thread's pooled slice

  int64_t thread_size() const { return sums + pooled; }
};

template <class Word>
Tiling tiling(const BagLayout& bags, int64_t out_width, const ParallelFor& threads) {
  const int64_t share = divide_up(bags.num_blocks * bags.num_samples, threads.num_threads);
  const int64_t samples = min(kTileSamples, divide_up(max(share, 1), kPanel<Word>) * kPanel<Word>);
  const int64_t width = divide_up(out_width, kBlockRows) * kBlockRows;
  return {samples, width * samples, kDepth * samples};
}

int64_t scratch_size(const BagLayout& bags, const TowerModule& module, DType dtype, const ParallelFor& threads) {
  const Tiling tiles = dtype == DType::f64 ? tiling<double>(bags, module.out_width, threads)
                                           : tiling<float>(bags, module.out_width, threads);
  return threads.num_threads * tiles.thread_size();
}

template <class T, class Id, class Words>
int64_t pool_typed(const BagLayout& bags, const TableData& tables, const TowerModule& module, T* out,
                   accumulator_t<T>* scratch, const ParallelFor& threads) {
  using Job = TowerPool<T, Id, Words>;
  using Word = typename Words::Word;
  const Job job{{bags, tables}, module, out};
  const Tiling sizes = tiling<Word>(bags, module.out_width, threads);
  const Tiles tiles(bags, sizes.samples);
  const int64_t parts = min(tiles.count, threads.num_threads);  // a thread without a tile is not worth waking

  int64_t missing = 0;
  parallel_for(threads, 0, parts, 1, [&](int64_t begin, int64_t end) {
    int64_t found = 0;
    for (int64_t part = begin; part < end; ++part) {
      accumulator_t<T>* sums = scratch + part * sizes.thread_size();
      Word* pooled = reinterpret_cast<Word*>(sums + sizes.sums);
      const int64_t last = tiles.count * (part + 1) / parts;
      for (int64_t i = tiles.count * part / parts; i < last; ++i) {
        found += job.run(tiles.at(i), i + 1 < last ? tiles.at(i + 1) : Tile{}, pooled, sums);
      }
    }
    __atomic_fetch_add(&missing, found, __ATOMIC_RELAXED);
  });
  return missing;
}

int64_t pool(const BagLayout& bags, const TableData& tables, const TowerModule& module, void* out, void* scratch,
             const ParallelFor& threads) {
  int64_t missing = 0;
  with_id_type(bags, [&](auto id) {
    with_type(tables.dtype, [&](auto element) {
      using T = decltype(element);
      using Acc = accumulator_t<T>;
      T* const target = static_cast<T*>(out);
      Acc* const space = static_cast<Acc*>(scratch);
      if constexpr (sizeof(Acc) == sizeof(float)) {
        if (module.bfloat16_products) {
          missing = pool_typed<T, decltype(id), Rounded>(bags, tables, module, target, space, threads);
          return;
        }
      }
      missing = pool_typed<T, decltype(id), Plain<Acc>>(bags, tables, module, target, space, threads);
    });
  });
  return missing;
}

}  // namespace

DMT_DEFINE_KERNELS(TowerPoolKernels, tower_pool_kernels) = {scratch_size, pool};

}  // namespace dmt::cpu
