// The gradient of the weight is a sum over samples, so here columns of the pooled matrix are what lies in lanes:
//
//   factors  grad^T, packed once: for every tile of samples, blocks [kBlockRows, kDepth]; read once per slice
//   pooled   a tile's pooled rows, as far as they are in the slice, panels [kDepth, kPanel] with a column per lane, in
//            the L2 cache
//   sums     the slice of the weight's gradient, blocks [kBlockRows, kPanel], in the L2 cache
//
// A thread has whole sums, so threads add nothing up: its share is some blocks of a slice, whole slices, and some
// blocks of another. While a tile is multiplied the rows of the next one are fetched, and while a block of factors is,
// the next block.
#include "tower_pool_backward.h"

#include "multiply_block.h"
#include "pooled_slice.h"
#include "product_words.h"
#include "transpose.h"

namespace dmt::cpu {
namespace {

constexpr int64_t kSliceColumns = 256;  // the factors are read once per slice, the sums of a slice fit the L2 cache

constexpr int64_t kStagedRows = 16;  // pooled rows before they are turned into panels

// What is multiplied, and the sizes of the scratch.
template <class Words>
struct Shape {
  using Word = typename Words::Word;
  static constexpr int64_t kWidth = kPanel<Word>;
  static constexpr int64_t kPanels = kSliceColumns / kWidth;
  static constexpr int64_t kBlock = kBlockRows * kDepth;             // words of a block of factors
  static constexpr int64_t kPooled = kDepth * kSliceColumns;         // words of a tile's panels
  static constexpr int64_t kStaged = kStagedRows * kSliceColumns;    // numbers
  static constexpr int64_t kBlockSums = kBlockRows * kSliceColumns;  // of all panels

  Tiles tiles;
  int64_t blocks;
  int64_t slices;

  Shape(const BagLayout& bags, int64_t out_width)
      : tiles(bags, kDepth * Words::kTerms),
        blocks(divide_up(out_width, kBlockRows)),
        slices(divide_up(bags.width, kSliceColumns)) {}

  int64_t factors_size() const { return tiles.count * blocks * kBlock; }
  int64_t thread_size() const { return kPooled + kStaged + blocks * kBlockSums; }
};

template <class T, class Id, class Words>
struct WeightBackward {
  using Acc = accumulator_t<T>;
  using Word = typename Words::Word;
  using Sizes = Shape<Words>;

  const PooledMatrix<T, Id> matrix;
  const BagLayout& bags;
  const TowerGradient& gradient;
  const Sizes shape;
  Word* factors;
  T* out;

  Word* factors_of(int64_t tile, int64_t block) const {
    return factors + (tile * shape.blocks + block) * Sizes::kBlock;
  }

  // Turns a block of grad's columns into rows of factors.
  void pack(int64_t number, int64_t block) const {
    constexpr int64_t lanes = kLanes<Acc>;
    const Tile tile = shape.tiles.at(number);
    const int64_t C = gradient.out_width;
    const int64_t rows = min(C - block * kBlockRows, kBlockRows);
    const Acc* source = static_cast<const Acc*>(gradient.grad) + block * kBlockRows +
                        (bags.block_order[tile.k] * bags.num_samples + tile.first) * C;
    Acc turned[kBlockRows][kDepth * Words::kTerms];
    for (int64_t s = 0; s < tile.samples; s += lanes, source += lanes * C) {
      for (int64_t first = 0; first < kBlockRows; first += lanes) {
        vector_t<Acc> square[lanes] = {};
#pragma GCC unroll 16
        for (int64_t i = 0; i < lanes; ++i) {
          if (s + i < tile.samples) square[i] = load_some(source + i * C + first, rows - first);
        }
        transpose<Acc>(square);
#pragma GCC unroll 16
        for (int64_t i = 0; i < lanes; ++i) {
          if (first + i < kBlockRows) store_vector(turned[first + i] + s, square[i]);
        }
      }
    }
    Word* target = factors_of(number, block);
    for (int64_t r = 0; r < kBlockRows; ++r) Words::make(turned[r], tile.samples, target + r * kDepth);
  }

  // pooled = the tile's words of the slice, a panel after the other.
  void pool(const Tile& tile, const Slice& slice, Acc* staged, Word* pooled) const {
    for (int64_t first = 0; first < tile.samples; first += kStagedRows) {
      const int64_t rows = min(tile.samples - first, kStagedRows);
      matrix.pool(tile, slice, first, first + rows, staged, kSliceColumns);
      if (rows % Words::kTerms != 0) {
        for (int64_t c = 0; c < kSliceColumns; ++c) staged[rows * kSliceColumns + c] = 0;
      }
      for (int64_t c = 0; c < slice.columns(); c += kLanes<Acc>) {
        Word* target =
            pooled + (c / Sizes::kWidth * kDepth + first / Words::kTerms) * Sizes::kWidth + c % Sizes::kWidth;
        for (int64_t r = 0; r < rows; r += Words::kTerms, target += Sizes::kWidth) {
          store_vector(target, Words::vector_across(staged + r * kSliceColumns + c, kSliceColumns));
        }
      }
    }
  }

  // Blocks [first, last) of a slice.
  void run(const Slice& slice, int64_t first, int64_t last, Acc* scratch) const {
    Acc* staged = scratch;
    Word* pooled = reinterpret_cast<Word*>(staged + Sizes::kStaged);
    Acc* sums = staged + Sizes::kStaged + Sizes::kPooled;
    const int64_t panels = divide_up(slice.columns(), Sizes::kWidth);
    for (int64_t i = 0; i < shape.tiles.count; ++i) {
      const bool is_last = i + 1 == shape.tiles.count;
      const Tile tile = shape.tiles.at(i);
      const int64_t ahead = is_last ? 0 : i + 1;
      const Slice slice_ahead = is_last ? slice_at(bags, slice.last, kSliceColumns) : slice;
      SliceAhead<T, Id> rows_ahead(matrix, shape.tiles.at(ahead), slice_ahead, (last - first) * panels);
      pool(tile, slice, staged, pooled);
      const int64_t depth = divide_up(tile.samples, Words::kTerms);
      for (int64_t block = first; block < last; ++block) {
        const Word* factor = factors_of(i, block);
        const Word* factor_ahead = block + 1 < last ? factor + Sizes::kBlock : factors_of(ahead, first);
        Acc* target = sums + (block - first) * Sizes::kBlockSums;
        for (int64_t p = 0; p < panels; ++p) {
          rows_ahead.fetch_portion();
          fetch(factor_ahead + Sizes::kBlock * p / panels, factor_ahead + Sizes::kBlock * (p + 1) / panels);
          multiply_block<kBlockRows>(factor, pooled + p * kDepth * Sizes::kWidth, depth, i == 0,
                                     target + p * kBlockRows * Sizes::kWidth);
        }
        if (is_last) {
          store_block(target, min(gradient.out_width - block * kBlockRows, kBlockRows), slice.columns(),
                      out + block * kBlockRows * bags.width + slice.first, bags.width);
        }
      }
    }
  }
};

template <class T, class Id, class Words>
void weight_typed(const BagLayout& bags, const TableData& tables, const TowerGradient& gradient, T* out,
                  accumulator_t<T>* scratch, const ParallelFor& threads) {
  using Job = WeightBackward<T, Id, Words>;
  const Shape<Words> shape(bags, gradient.out_width);
  const int64_t parts = threads.num_threads;
  accumulator_t<T>* own = scratch + shape.factors_size();
  const Job job{{bags, tables}, bags, gradient, shape, reinterpret_cast<typename Words::Word*>(scratch), out};
  parallel_for(threads, 0, shape.tiles.count * shape.blocks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) job.pack(i / shape.blocks, i % shape.blocks);
  });
  const int64_t count = shape.slices * shape.blocks;
  parallel_for(threads, 0, parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part) {
      const int64_t last = count * (part + 1) / parts;
      for (int64_t i = count * part / parts, next = i; i < last; i = next) {
        const int64_t slice = i / shape.blocks;
        next = min((slice + 1) * shape.blocks, last);
        job.run(slice_at(bags, slice * kSliceColumns, kSliceColumns), i - slice * shape.blocks,
                next - slice * shape.blocks, own + part * shape.thread_size());
      }
    }
  });
}

template <class Words>
int64_t size_for(const BagLayout& bags, int64_t out_width, int64_t num_threads) {
  const Shape<Words> shape(bags, out_width);
  return shape.factors_size() + num_threads * shape.thread_size();
}

int64_t scratch_size(const BagLayout& bags, const TowerGradient& gradient, DType dtype, const ParallelFor& threads) {
  const int64_t C = gradient.out_width;
  if (dtype == DType::f64) return size_for<Plain<double>>(bags, C, threads.num_threads);
  return gradient.bfloat16_products ? size_for<Rounded>(bags, C, threads.num_threads)
                                    : size_for<Plain<float>>(bags, C, threads.num_threads);
}

void weight(const BagLayout& bags, const TableData& tables, const TowerGradient& gradient, void* out, void* scratch,
            const ParallelFor& threads) {
  with_id_type(bags, [&](auto id) {
    with_type(tables.dtype, [&](auto element) {
      using T = decltype(element);
      using Acc = accumulator_t<T>;
      T* const target = static_cast<T*>(out);
      Acc* const space = static_cast<Acc*>(scratch);
      if constexpr (sizeof(Acc) == sizeof(float)) {
        if (gradient.bfloat16_products) {
          return weight_typed<T, decltype(id), Rounded>(bags, tables, gradient, target, space, threads);
        }
      }
      weight_typed<T, decltype(id), Plain<Acc>>(bags, tables, gradient, target, space, threads);
    });
  });
}

}  // namespace

DMT_DEFINE_KERNELS(TowerPoolBackwardKernels, tower_pool_backward_kernels) = {scratch_size, weight};

}  // namespace dmt::cpu
