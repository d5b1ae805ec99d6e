#include "embedding_update.h"

#include "float_formats.h"

namespace dmt::cpu {
namespace {

// Gradient rows and touched rows lie far apart, and what is done with one depends on all of its gradients: without
// asking ahead, each waits for memory in turn.
constexpr int64_t sources_ahead = 8;
constexpr int64_t rows_ahead = 4;

template <class T>
void prefetch(const T* first, int64_t count) {
  constexpr int64_t line = 64 / static_cast<int64_t>(sizeof(T));
  for (int64_t i = 0; i < count; i += line) __builtin_prefetch(first + i);
}

template <class Weight>
void prefetch_touched(const TableUpdate& table, const RowGroups& groups, int64_t u) {
  if (u >= groups.num_rows) return;
  prefetch(static_cast<const Weight*>(table.table) + groups.rows[u] * table.table_stride, table.dim);
}

// One after the other, in the order of the sources: the bits of a row's gradient depend on nothing else.
template <class Grad, class A>
void sum_sources(const RowGroups& groups, int64_t group, const Grad* grad, int64_t dim, A* __restrict sum) {
  const int64_t last = groups.starts[groups.num_rows];
  for (int64_t d = 0; d < dim; ++d) sum[d] = 0;
  for (int64_t s = groups.starts[group]; s < groups.starts[group + 1]; ++s) {
    if (s + sources_ahead < last) prefetch(grad + groups.sources[s + sources_ahead].offset, dim);
    const Grad* __restrict row = grad + groups.sources[s].offset;
    const A scale = static_cast<A>(groups.sources[s].scale);
    for (int64_t d = 0; d < dim; ++d) sum[d] += scale * load(row[d]);
  }
}

// In eight lanes, whatever the instruction set: its bits are the same for all. Squares pass through a small block so
// that both loops over it are ones that a compiler turns into vector code.
template <class Weight, class A>
double sum_of_squares(const Weight* __restrict row, const A* __restrict g, int64_t dim, A weight_decay) {
  constexpr int64_t num_lanes = 8;
  constexpr int64_t block = 8 * num_lanes;
  typedef double Lanes __attribute__((vector_size(num_lanes * sizeof(double))));
  Lanes sums = {};
  for (int64_t first = 0; first < dim; first += block) {
    const int64_t count = dim - first < block ? dim - first : block;
    double squares[block] = {};
    for (int64_t d = 0; d < count; ++d) {
      squares[d] = rowwise_square<A>(load(row[first + d]), g[first + d], weight_decay);
    }
    for (int64_t d = 0; d < count; d += num_lanes) {
      Lanes lanes;
      __builtin_memcpy(&lanes, squares + d, sizeof(lanes));
      sums += lanes;
    }
  }
  return ((sums[0] + sums[4]) + (sums[2] + sums[6])) + ((sums[1] + sums[5]) + (sums[3] + sums[7]));
}

template <class Weight, class A>
void apply_sgd(Weight* __restrict row, const A* __restrict g, int64_t dim, const OptimizerSettings<A>& settings) {
  for (int64_t d = 0; d < dim; ++d) store(row + d, sgd_weight<A>(load(row[d]), g[d], settings));
}

template <class Weight, class A>
void apply_adagrad(Weight* __restrict row, A* __restrict state, const A* __restrict g, int64_t dim,
                   const OptimizerSettings<A>& settings) {
  for (int64_t d = 0; d < dim; ++d) store(row + d, adagrad_weight<A>(load(row[d]), g[d], state[d], settings));
}

template <class Weight, class A>
void apply_rowwise_adagrad(Weight* __restrict row, A* __restrict state, const A* __restrict g, int64_t dim,
                           double mean_square, const OptimizerSettings<A>& settings) {
  const RowwiseFactors<A> factors = rowwise_factors(static_cast<A>(mean_square), *state, settings);
  for (int64_t d = 0; d < dim; ++d) store(row + d, rowwise_weight<A>(load(row[d]), g[d], factors));
}

template <class Weight, class Grad>
void update_rows(const TableUpdate& table, const RowGroups& groups, int64_t begin, int64_t end, void* scratch) {
  using A = accumulator_t<Weight>;
  const OptimizerSettings<A> settings = {static_cast<A>(table.lr), static_cast<A>(table.eps),
                                         static_cast<A>(table.weight_decay)};
  A* const g = static_cast<A*>(scratch);
  for (int64_t u = begin; u < end; ++u) {
    prefetch_touched<Weight>(table, groups, u + rows_ahead);
    sum_sources(groups, u, static_cast<const Grad*>(table.grad), table.dim, g);
    Weight* const row = static_cast<Weight*>(table.table) + groups.rows[u] * table.table_stride;
    A* const state = static_cast<A*>(table.state) + groups.rows[u] * table.state_stride;
    switch (table.optimizer) {
      case Optimizer::sgd:
        apply_sgd(row, g, table.dim, settings);
        break;
      case Optimizer::adagrad:
        apply_adagrad(row, state, g, table.dim, settings);
        break;
      case Optimizer::rowwise_adagrad: {
        const double mean_square =
            table.row_mean_squares != nullptr
                ? table.row_mean_squares[u]
                : sum_of_squares(row, g, table.dim, settings.weight_decay) / static_cast<double>(table.dim);
        apply_rowwise_adagrad(row, state, g, table.dim, mean_square, settings);
        break;
      }
    }
  }
}

template <class Weight, class Grad>
void square_rows(const TableUpdate& table, const RowGroups& groups, int64_t begin, int64_t end, void* scratch,
                 double* squares) {
  using A = accumulator_t<Weight>;
  A* const g = static_cast<A*>(scratch);
  for (int64_t u = begin; u < end; ++u) {
    prefetch_touched<Weight>(table, groups, u + rows_ahead);
    sum_sources(groups, u, static_cast<const Grad*>(table.grad), table.dim, g);
    const Weight* const row = static_cast<const Weight*>(table.table) + groups.rows[u] * table.table_stride;
    squares[u] = sum_of_squares(row, g, table.dim, static_cast<A>(table.weight_decay));
  }
}

void update(const TableUpdate& table, const RowGroups& groups, int64_t begin, int64_t end, void* scratch) {
  with_type(table.dtype, [&](auto weight) {
    using Weight = decltype(weight);
    if (table.grad_dtype == table.dtype) {
      update_rows<Weight, Weight>(table, groups, begin, end, scratch);
    } else {
      update_rows<Weight, accumulator_t<Weight>>(table, groups, begin, end, scratch);
    }
  });
}

void row_squares(const TableUpdate& table, const RowGroups& groups, int64_t begin, int64_t end, void* scratch,
                 double* squares) {
  with_type(table.dtype, [&](auto weight) {
    using Weight = decltype(weight);
    if (table.grad_dtype == table.dtype) {
      square_rows<Weight, Weight>(table, groups, begin, end, scratch, squares);
    } else {
      square_rows<Weight, accumulator_t<Weight>>(table, groups, begin, end, scratch, squares);
    }
  });
}

}  // namespace

DMT_DEFINE_KERNELS(EmbeddingUpdateKernels, embedding_update_kernels) = {update, row_squares};

}  // namespace dmt::cpu
