#include "embedding_update.h"

#include "vectors.h"

namespace dmt::cpu {
namespace {

// Gradient rows and touched rows lie far apart, and what is done with one depends on all of its gradients: without
// asking ahead, each waits for memory in turn. In contributions.
constexpr int64_t sources_ahead = 16;
constexpr int64_t rows_ahead = 24;
constexpr int64_t block_size = 16;  // contributions that are asked for, and summed, together

// Into the second cache: on their way to the first one, only a few lines at a time leave the memory. GCC removes calls
// to functions that only prefetch: they have no effect that it knows of. Hence inlined by force.
template <class T>
inline __attribute__((always_inline)) void prefetch(const T* first, int64_t count) {
  constexpr int64_t line = 64 / static_cast<int64_t>(sizeof(T));
  constexpr int into_second_cache = 2;
  for (int64_t i = 0; i < count; i += line) __builtin_prefetch(first + i, 0, into_second_cache);
}

template <class Weight, class Grad>
inline __attribute__((always_inline)) void prefetch_ahead(const TableUpdate& table, int64_t begin, int64_t end) {
  using A = accumulator_t<Weight>;
  const Contributions& all = table.contributions;
  const auto within = [&all](int64_t i) { return i < 0 ? 0 : i < all.count ? i : all.count - 1; };
  for (int64_t i = begin; i < end; ++i) {
    prefetch(static_cast<const Grad*>(table.grad) + all.source(within(i + sources_ahead)).offset, table.dim);
    const int64_t row = all.row(within(i + rows_ahead));
    prefetch(static_cast<const Weight*>(table.table) + row * table.table_stride, table.dim);
    if (table.state == nullptr) continue;
    prefetch(static_cast<const A*>(table.state) + row * table.state_stride,
             table.optimizer == Optimizer::adagrad ? table.dim : 1);
  }
}

// Adds contributions [begin, end) to `count` vectors of sums, which stay in registers meanwhile. One contribution after
// the other: the bits of a row's gradient depend on nothing else.
template <int count, class Grad, class A>
void add_vectors(const Contributions& all, int64_t begin, int64_t end, const Grad* grad, A* sum) {
  constexpr int64_t lanes = kLanes<A>;
  vector_t<A> sums[count];
#pragma GCC unroll 8
  for (int v = 0; v < count; ++v) sums[v] = load_vector(sum + v * lanes);
  for (int64_t i = begin; i < end; ++i) {
    const GradientSource source = all.source(i);
    const Grad* const row = grad + source.offset;
    const A scale = static_cast<A>(source.scale);
#pragma GCC unroll 8
    for (int v = 0; v < count; ++v) sums[v] += scale * load_vector(row + v * lanes);
  }
#pragma GCC unroll 8
  for (int v = 0; v < count; ++v) store_vector(sum + v * lanes, sums[v]);
}

// The same for columns [first, last) of `sum`.
template <class Grad, class A>
void add_sources(const Contributions& all, int64_t begin, int64_t end, const Grad* grad, int64_t first, int64_t last,
                 A* sum) {
  constexpr int64_t lanes = kLanes<A>;
  int64_t c = first;
  for (; c + 8 * lanes <= last; c += 8 * lanes) add_vectors<8>(all, begin, end, grad + c, sum + c);
  if (c + 4 * lanes <= last) {
    add_vectors<4>(all, begin, end, grad + c, sum + c);
    c += 4 * lanes;
  }
  for (; c + lanes <= last; c += lanes) add_vectors<1>(all, begin, end, grad + c, sum + c);
  if (c == last) return;
  for (int64_t i = begin; i < end; ++i) {
    const GradientSource source = all.source(i);
    for (int64_t d = c; d < last; ++d) sum[d] += static_cast<A>(source.scale) * load(grad[source.offset + d]);
  }
}

// In 32 lanes, whatever the instruction set, so that its bits are the same for all; in double, where the square of a
// float is exact: the sum then hardly depends on its order, and shards of a row that add up their parts agree with the
// whole row.
template <class Weight, class A>
double sum_of_squares(const Weight* row, const A* g, int64_t dim, A weight_decay) {
  constexpr int64_t block = 32;
  constexpr int64_t lanes = kLanes<double>;
  constexpr int64_t vectors = block / lanes;
  vector_t<double> sums[vectors] = {};
  const auto add = [&](const A* decayed) {
#pragma GCC unroll 16
    for (int64_t v = 0; v < vectors; ++v) {
      const vector_t<double> wide = load_doubles(decayed + v * lanes);
      sums[v] += wide * wide;
    }
  };
  int64_t first = 0;
  if (weight_decay == A(0)) {
    for (; first + block <= dim; first += block) add(g + first);
  }
  for (; first < dim; first += block) {
    const int64_t count = dim - first < block ? dim - first : block;
    A decayed[block] = {};
    for (int64_t d = 0; d < count; ++d) {
      decayed[d] = decayed_gradient(load(row[first + d]), g[first + d], weight_decay);
    }
    add(decayed);
  }
  double all[block];
#pragma GCC unroll 16
  for (int64_t v = 0; v < vectors; ++v) store_vector(all + v * lanes, sums[v]);
  double sum[8];
  for (int64_t l = 0; l < 8; ++l) sum[l] = (all[l] + all[l + 16]) + (all[l + 8] + all[l + 24]);
  return ((sum[0] + sum[4]) + (sum[2] + sum[6])) + ((sum[1] + sum[5]) + (sum[3] + sum[7]));
}

// How weights get their storage type: to nearest, ties to even.
struct ToNearest {
  ToNearest of_row(int64_t) const { return *this; }

  template <class Weight, class A>
  void store(Weight* row, int64_t d, A value) const {
    cpu::store(row + d, value);
  }
};

// Or at random, by the place in the whole table.
struct AtRandom {
  uint64_t key;  // of the table, then of the row
  uint64_t first_row;
  uint32_t first_column;

  AtRandom of_row(int64_t row) const {
    return {row_key(key, first_row + static_cast<uint64_t>(row)), first_row, first_column};
  }

  uint32_t word(int64_t d) const { return random_word(key, first_column + static_cast<uint32_t>(d)); }
  void store(BFloat16* row, int64_t d, float value) const { row[d].bits = bfloat16_at_random(value, word(d)); }
  void store(Half* row, int64_t d, float value) const { row[d].bits = half_at_random(value, word(d)); }
};

template <class Weight, class A, class Rounding>
void apply_sgd(Weight* __restrict row, const A* __restrict g, int64_t dim, const OptimizerSettings<A>& settings,
               const Rounding& row_rounding) {
  const Rounding rounding = row_rounding;
  for (int64_t d = 0; d < dim; ++d) rounding.store(row, d, sgd_weight<A>(load(row[d]), g[d], settings));
}

template <class Weight, class A, class Rounding>
void apply_adagrad(Weight* __restrict row, A* __restrict state, const A* __restrict g, int64_t dim,
                   const OptimizerSettings<A>& settings, const Rounding& row_rounding) {
  const Rounding rounding = row_rounding;
  for (int64_t d = 0; d < dim; ++d) {
    rounding.store(row, d, adagrad_weight<A>(load(row[d]), g[d], state[d], settings));
  }
}

template <class Weight, class A, class Rounding>
void apply_rowwise_adagrad(Weight* __restrict row, const A* __restrict g, int64_t dim, const RowwiseFactors<A>& factors,
                           const Rounding& row_rounding) {
  const RowwiseFactors<A> all = factors;
  const Rounding rounding = row_rounding;
  for (int64_t d = 0; d < dim; ++d) rounding.store(row, d, rowwise_weight<A>(load(row[d]), g[d], all));
}

// Some rows and the gradient of each.
template <class A>
struct RowGradients {
  int64_t rows[kRowsTogether];
  const A* sums[kRowsTogether];
  int64_t count;
};

// Calls function(rows and gradients) for the rows of the piece, some at a time: what one row waits for, a square root
// or a cache, others fill.
template <class Weight, class Grad, class Function>
void for_rows(const TableUpdate& table, const RowPiece& piece, void* scratch, const Function& function) {
  using A = accumulator_t<Weight>;
  const Contributions& all = table.contributions;
  RowGradients<A> some = {};
  if (piece.sum != nullptr) {
    some.rows[0] = all.row(piece.begin);
    some.sums[0] = static_cast<const A*>(piece.sum);
    some.count = 1;
    return function(some);
  }
  const Grad* const grad = static_cast<const Grad*>(table.grad);
  prefetch_ahead<Weight, Grad>(table, piece.begin - rows_ahead, piece.begin);  // the first rows, all at once
  for (int64_t begin = piece.begin; begin < piece.end;) {
    A* sum = static_cast<A*>(scratch);
    for (some.count = 0; some.count < kRowsTogether && begin < piece.end; ++some.count, sum += table.dim) {
      const int64_t row = all.row(begin);
      some.rows[some.count] = row;
      some.sums[some.count] = sum;
      const bool is_alone = begin + 1 == piece.end || all.row(begin + 1) != row;
      if constexpr (sizeof(Grad) == sizeof(A)) {
        const GradientSource source = all.source(begin);
        if (is_alone && source.scale == 1) {  // as most rows of a large table: the gradient is read where it lies
          prefetch_ahead<Weight, Grad>(table, begin, begin + 1);
          some.sums[some.count] = grad + source.offset;
          ++begin;
          continue;
        }
      }
      for (int64_t d = 0; d < table.dim; ++d) sum[d] = 0;
      do {
        int64_t end = begin + 1;
        while (end < piece.end && end < begin + block_size && all.row(end) == row) ++end;
        prefetch_ahead<Weight, Grad>(table, begin, end);
        add_sources(all, begin, end, grad, 0, table.dim, sum);
        begin = end;
      } while (begin < piece.end && all.row(begin) == row);
    }
    function(some);
  }
}

template <class Weight, class Grad, class Rounding>
void update_rows(const TableUpdate& table, const RowPiece& piece, const double* mean_squares, void* scratch,
                 const Rounding& rounding) {
  using A = accumulator_t<Weight>;
  const OptimizerSettings<A> settings = {static_cast<A>(table.lr), static_cast<A>(table.eps),
                                         static_cast<A>(table.weight_decay)};
  const auto weights = [&](int64_t row) { return static_cast<Weight*>(table.table) + row * table.table_stride; };
  const auto state = [&](int64_t row) { return static_cast<A*>(table.state) + row * table.state_stride; };
  for_rows<Weight, Grad>(table, piece, scratch, [&](const RowGradients<A>& some) {
    switch (table.optimizer) {
      case Optimizer::sgd:
        for (int64_t i = 0; i < some.count; ++i) {
          const int64_t row = some.rows[i];
          apply_sgd(weights(row), some.sums[i], table.dim, settings, rounding.of_row(row));
        }
        return;
      case Optimizer::adagrad:
        for (int64_t i = 0; i < some.count; ++i) {
          const int64_t row = some.rows[i];
          apply_adagrad(weights(row), state(row), some.sums[i], table.dim, settings, rounding.of_row(row));
        }
        return;
      case Optimizer::rowwise_adagrad: {
        RowwiseFactors<A> factors[kRowsTogether];
        for (int64_t i = 0; i < some.count; ++i) {
          const int64_t row = some.rows[i];
          const double mean_square =
              mean_squares != nullptr ? *mean_squares++
                                      : sum_of_squares(weights(row), some.sums[i], table.dim, settings.weight_decay) /
                                            static_cast<double>(table.dim);
          factors[i] = rowwise_factors(static_cast<A>(mean_square), *state(row), settings);
        }
        for (int64_t i = 0; i < some.count; ++i) {
          const int64_t row = some.rows[i];
          apply_rowwise_adagrad(weights(row), some.sums[i], table.dim, factors[i], rounding.of_row(row));
        }
      }
    }
  });
}

template <class Weight, class Grad>
void square_rows(const TableUpdate& table, const RowPiece& piece, double* squares, void* scratch) {
  using A = accumulator_t<Weight>;
  for_rows<Weight, Grad>(table, piece, scratch, [&](const RowGradients<A>& some) {
    for (int64_t i = 0; i < some.count; ++i) {
      const Weight* const weights = static_cast<const Weight*>(table.table) + some.rows[i] * table.table_stride;
      *squares++ = sum_of_squares(weights, some.sums[i], table.dim, static_cast<A>(table.weight_decay));
    }
  });
}

// Calls function(Weight{}, Grad{}) with the types of the table and of the gradient.
template <class Function>
void with_types(const TableUpdate& table, const Function& function) {
  with_type(table.dtype, [&](auto weight) {
    if (table.grad_dtype == table.dtype) {
      function(weight, weight);
    } else {
      function(weight, accumulator_t<decltype(weight)>{});
    }
  });
}

void update(const TableUpdate& table, const RowPiece& piece, const double* mean_squares, void* scratch) {
  with_types(table, [&](auto weight, auto grad) {
    using Weight = decltype(weight);
    using Grad = decltype(grad);
    if constexpr (sizeof(Weight) == 2) {
      if (table.rounding.is_random) {
        const AtRandom rounding = {message_key(table.rounding.seed, table.step),
                                   static_cast<uint64_t>(table.rounding.first_row),
                                   static_cast<uint32_t>(table.rounding.first_column)};
        return update_rows<Weight, Grad>(table, piece, mean_squares, scratch, rounding);
      }
    }
    update_rows<Weight, Grad>(table, piece, mean_squares, scratch, ToNearest{});
  });
}

void row_squares(const TableUpdate& table, const RowPiece& piece, double* squares, void* scratch) {
  with_types(table, [&](auto weight, auto grad) {
    square_rows<decltype(weight), decltype(grad)>(table, piece, squares, scratch);
  });
}

void sum_columns(const TableUpdate& table, const RowPiece& piece, int64_t first_column, int64_t last_column,
                 void* sum) {
  with_types(table, [&](auto weight, auto grad) {
    using A = accumulator_t<decltype(weight)>;
    A* const sums = static_cast<A*>(sum);
    for (int64_t c = first_column; c < last_column; ++c) sums[c] = 0;
    for (int64_t begin = piece.begin; begin < piece.end; begin += block_size) {
      const int64_t end = begin + block_size < piece.end ? begin + block_size : piece.end;
      add_sources(table.contributions, begin, end, static_cast<const decltype(grad)*>(table.grad), first_column,
                  last_column, sums);
    }
  });
}

}  // namespace

DMT_DEFINE_KERNELS(EmbeddingUpdateKernels, embedding_update_kernels) = {update, row_squares, sum_columns};

}  // namespace dmt::cpu
