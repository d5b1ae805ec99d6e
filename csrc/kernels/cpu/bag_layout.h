// Bags of ids over several tables, as every lookup and update kernel reads them.
//
//   K  blocks (source ranks)      F  features            B  samples per block      N  ids
//   E  rows of a table            D_f  dim of feature f  D = sum of D_f            L  ids in a bag
//
// Bags are ordered (block, feature, sample): bag (k*F + f)*B + b holds ids[offsets[bag] : offsets[bag + 1]]. The row of
// the pooled [K*B, D] matrix (or of its gradient) that belongs to (k, b) is block_order[k]*B + b.
//
// What an id means, with `row = id - row_start of its table`:
//   row in [0, E)                      a row
//   otherwise, row_starts given, id>=0 a row that another shard holds: contributes nothing, counts in a mean
//   otherwise                          a missing id: contributes nothing, does not count in a mean
#pragma once

#include <cstdint>

namespace dmt::cpu {

enum class DType { f64, f32, f16, bf16 };

// All pointers are borrowed, and were checked by the adapter: offsets ascend within [0, N], block_order is a
// permutation, feature_table holds indices below num_tables.
struct BagLayout {
  const void* ids;  // [N] int64 if wide_ids, else int32
  bool wide_ids;
  int64_t num_ids;         // N
  const int64_t* offsets;  // [K*F*B + 1]

  int64_t num_blocks;          // K
  int64_t num_features;        // F
  int64_t num_samples;         // B
  const int64_t* block_order;  // [K]

  const int64_t* feature_table;   // [F]
  const int64_t* feature_column;  // [F] first column in the pooled matrix
  const bool* feature_is_mean;    // [F]
  int64_t width;                  // D

  int64_t num_tables;
  const int64_t* table_rows;  // [num_tables]
  const int64_t* table_dims;  // [num_tables]
  const int64_t* row_starts;  // [num_tables], or null: whole tables

  const void* weights;  // [N] per-sample weights in the accumulation type (double for f64 tables, else float), or null
};

// The rows themselves: table i is [table_rows[i], table_dims[i]], its rows `strides[i]` elements apart.
struct TableData {
  void* const* data;       // [num_tables]
  const int64_t* strides;  // [num_tables]
  DType dtype;
};

namespace {

template <class Id>
const Id* typed_ids(const BagLayout& bags) {
  return static_cast<const Id*>(bags.ids);
}

// Which rows of a feature's table are here, and what an id outside them means.
struct RowWindow {
  int64_t start;
  int64_t rows;
  bool is_shard;

  // The local row of `id`, or -1. Unsigned, so that no id, however wild, overflows.
  template <class Id>
  int64_t row(Id id) const {
    const uint64_t local = static_cast<uint64_t>(static_cast<int64_t>(id)) - static_cast<uint64_t>(start);
    return local < static_cast<uint64_t>(rows) ? static_cast<int64_t>(local) : -1;
  }

  // Whether an id for which row() is -1 is missing, rather than held elsewhere.
  template <class Id>
  bool is_missing(Id id) const {
    return !is_shard || id < 0;
  }

  // How many ids of a bag count in its mean.
  template <class Id>
  int64_t count(const Id* ids, int64_t length) const {
    int64_t counted = 0;
    for (int64_t p = 0; p < length; ++p) counted += row(ids[p]) >= 0 || !is_missing(ids[p]);
    return counted;
  }
};

inline RowWindow row_window(const BagLayout& bags, int64_t table) {
  return {bags.row_starts != nullptr ? bags.row_starts[table] : 0, bags.table_rows[table], bags.row_starts != nullptr};
}

// The row gradient of an id is scale * grad[output row, columns of the feature], with
// scale = weight (sum) or weight / count (mean); the weight is 1 without per-sample weights.
template <class Acc>
Acc gradient_scale(Acc weight, bool is_mean, int64_t count) {
  return is_mean ? weight / static_cast<Acc>(count) : weight;
}

// Bags cost roughly their ids plus a constant: cost of the bags before `bag`.
inline int64_t cost_before(const BagLayout& bags, int64_t bag) { return bags.offsets[bag] - bags.offsets[0] + bag; }

// The first bag before which at least `cost` lies: cuts the bags into pieces of equal cost.
inline int64_t bag_at_cost(const BagLayout& bags, int64_t cost) {
  int64_t low = 0;
  int64_t high = bags.num_blocks * bags.num_features * bags.num_samples;
  while (low < high) {
    const int64_t middle = low + (high - low) / 2;
    if (cost_before(bags, middle) < cost) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

}  // namespace
}  // namespace dmt::cpu
