#include "embedding_bag.h"

#include "bag_walk.h"
#include "float_formats.h"

namespace dmt::cpu {
namespace {

constexpr int64_t kGrain = 1 << 10;     // ids and bags per part of a gradient: some tens of microseconds
constexpr int64_t kStreamed = 4 << 20;  // bytes of output that find no place in a core's share of the last cache

// Bags [bag, end_bag). Returns the number of missing ids.
template <class T, class Out, class Id>
int64_t pool_range(const BagLayout& bags, const TableData& tables, Out* out, int64_t bag, int64_t end_bag) {
  if (bag == end_bag) return 0;
  constexpr int64_t out_size = static_cast<int64_t>(sizeof(Out));
  const int64_t B = bags.num_samples;
  const bool is_large = bags.num_blocks * B * bags.width * out_size >= kStreamed;
  FeatureWalk walk(bags, bag, end_bag);
  FeatureWalk walk_ahead = walk;
  IdsAhead<T, Id, FeatureWalk> ahead(bags, tables, walk_ahead);
  ahead.fetch_first(kIdsAhead, kBytesAhead);
  int64_t missing = 0;
  for (BagRange range; walk.next(range);) {
    const FeatureRows<T> rows = feature_rows<T>(bags, tables, range.feature);
    // Out row of bag (k, f, b) is block_order[k]*B + b.
    const int64_t block = range.first / B / bags.num_features;
    Out* target = out + (bags.block_order[block] * B + range.first % B) * bags.width + rows.column;
    const bool whole_lines =
        (reinterpret_cast<int64_t>(target) | bags.width * out_size | rows.dim * out_size) % kCacheLine == 0;
    missing += pool_bags(rows, 0, rows.dim, bag_run<T, Id>(bags, range),
                         SumRows<Out>{target, bags.width, is_large && whole_lines}, ahead);
  }
  if (is_large) finish_streams();
  return missing;
}

template <class T, class Out, class Id>
int64_t pool_typed(const BagLayout& bags, const TableData& tables, Out* out, const ParallelFor& threads) {
  const int64_t num_bags = bags.num_blocks * bags.num_features * bags.num_samples;
  const int64_t cost = cost_before(bags, num_bags);
  int64_t missing = 0;
  for_pieces(bags, num_bags, threads, [&](int64_t piece, int64_t pieces, int64_t) {
    const int64_t found = pool_range<T, Out, Id>(bags, tables, out, bag_at_cost(bags, cost * piece / pieces),
                                                 bag_at_cost(bags, cost * (piece + 1) / pieces));
    __atomic_fetch_add(&missing, found, __ATOMIC_RELAXED);
  });
  return missing;
}

// float64 goes with float64 only.
template <class T>
struct OutTypes {
  template <class Function>
  static void with(DType dtype, const Function& function) {
    if (dtype == DType::f32) return function(float{});
    if (dtype == DType::f16) return function(Half{});
    return function(BFloat16{});
  }
};
template <>
struct OutTypes<double> {
  template <class Function>
  static void with(DType, const Function& function) {
    function(double{});
  }
};

int64_t pool(const BagLayout& bags, const TableData& tables, void* out, DType out_dtype, const ParallelFor& threads) {
  int64_t missing = 0;
  with_id_type(bags, [&](auto id) {
    with_type(tables.dtype, [&](auto element) {
      using T = decltype(element);
      OutTypes<T>::with(out_dtype, [&](auto out_element) {
        using Out = decltype(out_element);
        missing = pool_typed<T, Out, decltype(id)>(bags, tables, static_cast<Out*>(out), threads);
      });
    });
  });
  return missing;
}

// Every thread walks all bags in the one order that sums are promised in, and adds to the rows it owns. Rows are dealt
// out by a hash: the hot rows of a skewed table are often neighbours.
inline bool owns_row(int64_t row, int64_t part, int64_t parts) {
  const uint64_t hash = (static_cast<uint64_t>(row) * 0x9E3779B97F4A7C15u) >> 32;
  return static_cast<int64_t>((hash * static_cast<uint64_t>(parts)) >> 32) == part;
}

template <class Acc, class Id>
void tables_backward_part(const BagLayout& bags, int64_t table, const Acc* grad, Acc* table_grad, int64_t part,
                          int64_t parts) {
  const int64_t F = bags.num_features;
  const int64_t B = bags.num_samples;
  const int64_t dim = bags.table_dims[table];
  const RowWindow window = row_window(bags, table);
  const Acc* weights = static_cast<const Acc*>(bags.weights);
  for (int64_t k = 0; k < bags.num_blocks; ++k) {
    for (int64_t b = 0; b < B; ++b) {
      const Acc* grad_row = grad + (bags.block_order[k] * B + b) * bags.width;
      for (int64_t f = 0; f < F; ++f) {
        if (bags.feature_table[f] != table) continue;
        const int64_t first_id = bags.offsets[(k * F + f) * B + b];
        const int64_t length = bags.offsets[(k * F + f) * B + b + 1] - first_id;
        const Id* ids = typed_ids<Id>(bags) + first_id;
        const bool is_mean = bags.feature_is_mean[f];
        const int64_t count = is_mean ? window.count(ids, length) : 1;
        const Acc* source = grad_row + bags.feature_column[f];
        for (int64_t p = 0; p < length; ++p) {
          const int64_t row = window.row(ids[p]);
          if (row < 0 || !owns_row(row, part, parts)) continue;
          const Acc weight = weights != nullptr ? weights[first_id + p] : Acc{1};
          const Acc scale = gradient_scale(weight, is_mean, count);
          Acc* target = table_grad + row * dim;
          for (int64_t c = 0; c < dim; ++c) target[c] += scale * source[c];
        }
      }
    }
  }
}

void tables_backward(const BagLayout& bags, const void* grad, bool is_double, void* const* table_grads,
                     const ParallelFor& threads) {
  const int64_t cost = cost_before(bags, bags.num_blocks * bags.num_features * bags.num_samples);
  const int64_t parts = cost / kGrain + 1 < threads.num_threads ? cost / kGrain + 1 : threads.num_threads;
  parallel_for(threads, 0, parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part) {
      for (int64_t table = 0; table < bags.num_tables; ++table) {
        with_id_type(bags, [&](auto id) {
          using Id = decltype(id);
          if (is_double) {
            tables_backward_part<double, Id>(bags, table, static_cast<const double*>(grad),
                                             static_cast<double*>(table_grads[table]), part, parts);
          } else {
            tables_backward_part<float, Id>(bags, table, static_cast<const float*>(grad),
                                            static_cast<float*>(table_grads[table]), part, parts);
          }
        });
      }
    }
  });
}

template <class T, class Id>
void weights_backward_typed(const BagLayout& bags, const TableData& tables, const accumulator_t<T>* grad,
                            accumulator_t<T>* weight_grad, const ParallelFor& threads) {
  using Acc = accumulator_t<T>;
  const int64_t F = bags.num_features;
  const int64_t B = bags.num_samples;
  const Id* ids = typed_ids<Id>(bags);
  parallel_for(threads, 0, cost_before(bags, bags.num_blocks * F * B), kGrain, [&](int64_t begin, int64_t end) {
    const int64_t end_bag = bag_at_cost(bags, end);
    for (int64_t bag = bag_at_cost(bags, begin); bag < end_bag; ++bag) {
      const int64_t group = bag / B;
      const FeatureRows<T> rows = feature_rows<T>(bags, tables, group % F);
      const Acc* source = grad + (bags.block_order[group / F] * B + bag % B) * bags.width + rows.column;
      const int64_t first_id = bags.offsets[bag];
      const int64_t length = bags.offsets[bag + 1] - first_id;
      const int64_t count = rows.is_mean ? rows.window.count(ids + first_id, length) : 1;
      for (int64_t p = 0; p < length; ++p) {
        const int64_t row = rows.window.row(ids[first_id + p]);
        if (row < 0) continue;
        const T* values = rows.data + row * rows.stride;
        Acc product = 0;
        for (int64_t c = 0; c < rows.dim; ++c) product += load(values[c]) * source[c];
        weight_grad[first_id + p] = gradient_scale(product, rows.is_mean, count);
      }
    }
  });
}

void weights_backward(const BagLayout& bags, const TableData& tables, const void* grad, void* weight_grad,
                      const ParallelFor& threads) {
  with_id_type(bags, [&](auto id) {
    with_type(tables.dtype, [&](auto element) {
      using T = decltype(element);
      weights_backward_typed<T, decltype(id)>(bags, tables, static_cast<const accumulator_t<T>*>(grad),
                                              static_cast<accumulator_t<T>*>(weight_grad), threads);
    });
  });
}

}  // namespace

DMT_DEFINE_KERNELS(EmbeddingBagKernels, embedding_bag_kernels) = {pool, tables_backward, weights_backward};

}  // namespace dmt::cpu
