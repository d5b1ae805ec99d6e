// One bag pooled into a row of sums. Shared by embedding_bag and tower_pool.
#pragma once

#include <cstdint>

#include "bag_layout.h"
#include "float_formats.h"

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

// sums[0:columns] = pooled columns [first, first + columns) of the bag. Returns the number of missing ids.
template <class T, class Acc, class Id>
int64_t pool_bag(const FeatureRows<T>& rows, int64_t first, int64_t columns, const Id* ids, int64_t length,
                 const Acc* weights, Acc* sums) {
  for (int64_t c = 0; c < columns; ++c) sums[c] = 0;
  int64_t missing = 0;
  for (int64_t p = 0; p < length; ++p) {
    const int64_t row = rows.window.row(ids[p]);
    if (row < 0) {
      missing += rows.window.is_missing(ids[p]);
      continue;
    }
    const T* source = rows.data + row * rows.stride + first;
    if (weights != nullptr) {
      const Acc weight = weights[p];
      for (int64_t c = 0; c < columns; ++c) sums[c] += weight * load(source[c]);
    } else {
      for (int64_t c = 0; c < columns; ++c) sums[c] += load(source[c]);
    }
  }
  if (rows.is_mean && length > missing) {
    const Acc count = static_cast<Acc>(length - missing);
    for (int64_t c = 0; c < columns; ++c) sums[c] /= count;
  }
  return missing;
}

}  // namespace
}  // namespace dmt::cpu
