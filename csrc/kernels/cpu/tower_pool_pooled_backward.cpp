// Columns of the weight lie in lanes, as it lies:
//
//   panels   a slice of the weight, for every kDepth words of C panels [kDepth, kPanel], in the L2 cache
//   factors  kBlockRows rows of grad, kDepth words of each, in the L1 cache
//   sums     of these rows and the slice, panel after panel, in the L1 cache
//
// A thread's share is some blocks of a slice, whole slices, and some blocks of another.
#include "tower_pool_pooled_backward.h"

#include "multiply_block.h"
#include "pooled_slice.h"
#include "product_words.h"

namespace dmt::cpu {
namespace {

constexpr int64_t kSliceColumns = 256;  // factors are made once per slice, its panels fit the L2 cache

template <class T, class Words>
struct PooledBackward {
  using Acc = accumulator_t<T>;
  using Word = typename Words::Word;
  static constexpr int64_t kWidth = kPanel<Word>;
  static constexpr int64_t kTerms = kDepth * Words::kTerms;          // of C, multiplied at a time
  static constexpr int64_t kChunk = kDepth * kSliceColumns;          // words of all panels
  static constexpr int64_t kSums = kBlockRows * kSliceColumns;       // numbers
  static constexpr int64_t kFactors = kBlockRows * kDepth;           // words
  static constexpr int64_t kStaged = Words::kTerms * kSliceColumns;  // numbers

  const TowerPooledGradient& gradient;
  const int64_t C = gradient.out_width;
  const int64_t chunks = max(divide_up(C, kTerms), 1);
  const int64_t blocks = divide_up(gradient.num_rows, kBlockRows);
  const int64_t slices = divide_up(gradient.width, kSliceColumns);

  int64_t thread_size() const { return kStaged + kSums + kFactors + chunks * kChunk; }

  // panels = the words of `columns` columns of the weight from `first` on.
  void pack(int64_t first, int64_t columns, Acc* staged, Word* panels) const {
    const T* source = static_cast<const T*>(gradient.weight) + first;
    for (int64_t c = 0; c < C; c += Words::kTerms) {
      for (int64_t i = 0; i < Words::kTerms; ++i, source += gradient.stride) {
        for (int64_t j = 0; j < columns; ++j) staged[i * kSliceColumns + j] = c + i < C ? load(source[j]) : 0;
      }
      Word* target = panels + c / kTerms * kChunk + c % kTerms / Words::kTerms * kWidth;
      for (int64_t j = 0; j < columns; j += kLanes<Acc>) {
        store_vector(target + j / kWidth * kDepth * kWidth + j % kWidth,
                     Words::vector_across(staged + j, kSliceColumns));
      }
    }
  }

  const Acc* factor_source(int64_t row, int64_t chunk) const {
    return static_cast<const Acc*>(gradient.grad) + row * C + chunk * kTerms;
  }

  // Fetches a portion of the chunk of factors after this one.
  void fetch_ahead(int64_t row, int64_t chunk, int64_t portion, int64_t portions) const {
    row += ++chunk < chunks ? 0 : kBlockRows;
    chunk %= chunks;
    const int64_t rows = max(min(gradient.num_rows - row, kBlockRows), 0);
    for (int64_t r = rows * portion / portions; r < rows * (portion + 1) / portions; ++r) {
      const Acc* source = factor_source(row + r, chunk);
      fetch(source, source + min(C - chunk * kTerms, kTerms));
    }
  }

  // sums = those of rows [row, row + rows). The next factors are fetched on the way.
  void multiply(int64_t row, int64_t rows, int64_t num_panels, const Word* panels, Word* factors, Acc* sums) const {
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      const int64_t terms = min(C - chunk * kTerms, kTerms);
      for (int64_t r = 0; r < rows; ++r) Words::make(factor_source(row + r, chunk), terms, factors + r * kDepth);
      for (int64_t p = 0; p < num_panels; ++p) {
        fetch_ahead(row, chunk, p, num_panels);
        multiply_block<kBlockRows>(factors, panels + chunk * kChunk + p * kDepth * kWidth,
                                   divide_up(terms, Words::kTerms), chunk == 0, sums + p * kBlockRows * kWidth);
      }
    }
  }

  // Blocks [begin, end) of a slice.
  void run(int64_t slice, int64_t begin, int64_t end, Acc* out, Acc* staged) const {
    Acc* sums = staged + kStaged;
    Word* factors = reinterpret_cast<Word*>(sums + kSums);
    Word* panels = factors + kFactors;
    const int64_t first = slice * kSliceColumns;
    const int64_t columns = min(gradient.width - first, kSliceColumns);
    pack(first, columns, staged, panels);
    for (int64_t i = 0; i < kFactors; ++i) factors[i] = 0;  // rows behind the last are multiplied, too
    for (int64_t row = begin * kBlockRows; row < min(end * kBlockRows, gradient.num_rows); row += kBlockRows) {
      const int64_t rows = min(gradient.num_rows - row, kBlockRows);
      multiply(row, rows, divide_up(columns, kWidth), panels, factors, sums);
      store_block(sums, rows, columns, out + row * gradient.width + first, gradient.width);
    }
  }
};

template <class T, class Words>
void pooled_typed(const TowerPooledGradient& gradient, void* out, void* scratch, const ParallelFor& threads) {
  using Job = PooledBackward<T, Words>;
  using Acc = accumulator_t<T>;
  const Job job{gradient};
  const int64_t parts = threads.num_threads;
  const int64_t count = job.slices * job.blocks;
  parallel_for(threads, 0, parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part) {
      Acc* own = static_cast<Acc*>(scratch) + part * job.thread_size();
      const int64_t last = count * (part + 1) / parts;
      for (int64_t i = count * part / parts, next = i; i < last; i = next) {
        const int64_t slice = i / job.blocks;
        next = min((slice + 1) * job.blocks, last);
        job.run(slice, i - slice * job.blocks, next - slice * job.blocks, static_cast<Acc*>(out), own);
      }
    }
  });
}

template <class Function>
void with_product(const TowerPooledGradient& gradient, const Function& function) {
  with_type(gradient.dtype, [&](auto element) {
    using T = decltype(element);
    using Acc = accumulator_t<T>;
    if constexpr (sizeof(Acc) == sizeof(float)) {
      if (gradient.bfloat16_products) return function(element, Rounded{});
    }
    function(element, Plain<Acc>{});
  });
}

int64_t scratch_size(const TowerPooledGradient& gradient, const ParallelFor& threads) {
  int64_t size = 0;
  with_product(gradient, [&](auto element, auto words) {
    size = threads.num_threads * PooledBackward<decltype(element), decltype(words)>{gradient}.thread_size();
  });
  return size;
}

void pooled(const TowerPooledGradient& gradient, void* out, void* scratch, const ParallelFor& threads) {
  with_product(gradient, [&](auto element, auto words) {
    pooled_typed<decltype(element), decltype(words)>(gradient, out, scratch, threads);
  });
}

}  // namespace

DMT_DEFINE_KERNELS(TowerPoolPooledBackwardKernels, tower_pool_pooled_backward_kernels) = {scratch_size, pooled};

}  // namespace dmt::cpu
