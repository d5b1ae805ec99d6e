// One bag pooled into a row of sums, or straight into the output. Shared by embedding_bag and tower_pool.
#pragma once

#include <cstdint>

#include "bag_layout.h"
#include "float_formats.h"
#include "vectors.h"

namespace dmt::cpu {
namespace {

// One feature's table, seen from a kernel.
template <class T>
struct FeatureRows {
  const T* data;
  int64_t stride;
  int64_t dim;
  int64_t column;
  bool is_mean;
  RowWindow window;
};

template <class T>
FeatureRows<T> feature_rows(const BagLayout& bags, const TableData& tables, int64_t feature) {
  const int64_t table = bags.feature_table[feature];
  return {static_cast<const T*>(tables.data[table]),
          tables.strides[table],
          bags.table_dims[table],
          bags.feature_column[feature],
          bags.feature_is_mean[feature],
          row_window(bags, table)};
}

// What pool_bag calls once per id, so that rows of later bags are on their way when their turn comes.
struct NothingAhead {
  void step() {}
};

constexpr int64_t kTileVectors = 8;  // sums kept in registers: half of what AVX2 has

// Calls add(row, weight) for the rows of a bag. Returns the number of missing ids.
template <class T, class Id, class Ahead, class Add>
int64_t for_rows(const FeatureRows<T>& rows, const Id* ids, int64_t length, const accumulator_t<T>* weights,
                 Ahead& ahead, const Add& add) {
  int64_t missing = 0;
  for (int64_t p = 0; p < length; ++p) {
    ahead.step();
    const int64_t row = rows.window.row(ids[p]);
    if (row >= 0) {
      add(rows.data + row * rows.stride, weights != nullptr ? weights[p] : accumulator_t<T>{1});
    } else {
      missing += rows.window.is_missing(ids[p]);
    }
  }
  return missing;
}

// sums = pooled columns of the bag from column `first` on, in Vectors vectors. They lie side by side, but none starts
// after `last`: where the columns are no multiple of a vector, or fewer, some are summed twice, to the same bits.
template <int64_t Vectors, class T, class Id, class Ahead>
int64_t pool_tile(const FeatureRows<T>& rows, int64_t first, int64_t last, const Id* ids, int64_t length,
                  const accumulator_t<T>* weights, accumulator_t<T>* sums, Ahead& ahead) {
  using Acc = accumulator_t<T>;
  const auto offset = [last](int64_t v) {
    const int64_t side_by_side = v * kLanes<Acc>;
    return v + 2 >= Vectors && side_by_side > last ? last : side_by_side;
  };
  vector_t<Acc> tile[Vectors] = {};
  const int64_t missing = for_rows(rows, ids, length, weights, ahead, [&](const T* row, Acc weight) {
    for (int64_t v = 0; v < Vectors; ++v) tile[v] += weight * load_vector(row + first + offset(v));
  });
  if (rows.is_mean && length > missing) {
    const Acc count = static_cast<Acc>(length - missing);
    for (int64_t v = 0; v < Vectors; ++v) tile[v] /= count;
  }
  for (int64_t v = 0; v < Vectors; ++v) store_vector(sums + offset(v), tile[v]);
  return missing;
}

// The same for fewer columns than a vector holds.
template <class T, class Id, class Ahead>
int64_t pool_scrap(const FeatureRows<T>& rows, int64_t first, int64_t columns, const Id* ids, int64_t length,
                   const accumulator_t<T>* weights, accumulator_t<T>* sums, Ahead& ahead) {
  using Acc = accumulator_t<T>;
  for (int64_t c = 0; c < columns; ++c) sums[c] = 0;
  const int64_t missing = for_rows(rows, ids, length, weights, ahead, [&](const T* row, Acc weight) {
    for (int64_t c = 0; c < columns; ++c) sums[c] += weight * load(row[first + c]);
  });
  if (rows.is_mean && length > missing) {
    const Acc count = static_cast<Acc>(length - missing);
    for (int64_t c = 0; c < columns; ++c) sums[c] /= count;
  }
  return missing;
}

// sums[0:columns] = pooled columns [first, first + columns) of the bag. Returns the number of missing ids.
template <class T, class Id, class Ahead>
int64_t pool_bag(const FeatureRows<T>& rows, int64_t first, int64_t columns, const Id* ids, int64_t length,
                 const accumulator_t<T>* weights, accumulator_t<T>* sums, Ahead& ahead) {
  constexpr int64_t lanes = kLanes<accumulator_t<T>>;
  if (columns < lanes) return pool_scrap(rows, first, columns, ids, length, weights, sums, ahead);
  const auto pool_some = [&](int64_t column, auto& some_ahead) {
    const int64_t rest = columns - column;
    const int64_t last = rest - lanes;
    // May start before `column`, where less than a vector is left.
    const int64_t start = last < 0 ? columns - lanes : column;
    const int64_t end = last < 0 ? 0 : last;
    const auto tile = [&](auto pool) {
      return pool(rows, first + start, end, ids, length, weights, sums + start, some_ahead);
    };
    switch (rest > 6 * lanes ? 8 : (rest + lanes - 1) / lanes) {
      case 8:
        return tile([](auto&&... all) { return pool_tile<8>(all...); });
      case 6:
      case 5:
        return tile([](auto&&... all) { return pool_tile<6>(all...); });
      case 4:
        return tile([](auto&&... all) { return pool_tile<4>(all...); });
      case 3:
        return tile([](auto&&... all) { return pool_tile<3>(all...); });
      case 2:
        return tile([](auto&&... all) { return pool_tile<2>(all...); });
      default:
        return tile([](auto&&... all) { return pool_tile<1>(all...); });
    }
  };
  const int64_t missing = pool_some(0, ahead);
  NothingAhead nothing;
  for (int64_t column = kTileVectors * lanes; column < columns; column += kTileVectors * lanes) {
    pool_some(column, nothing);
  }
  return missing;
}

template <class T, class Id>
int64_t pool_bag(const FeatureRows<T>& rows, int64_t first, int64_t columns, const Id* ids, int64_t length,
                 const accumulator_t<T>* weights, accumulator_t<T>* sums) {
  NothingAhead nothing;
  return pool_bag(rows, first, columns, ids, length, weights, sums, nothing);
}

}  // namespace
}  // namespace dmt::cpu
