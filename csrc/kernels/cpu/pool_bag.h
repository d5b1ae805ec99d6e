// One bag pooled into a row of sums, or straight into the output in its storage type. Shared by embedding_bag and
// tower_pool.
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

// What pool_bag asks for once per id, so that rows of later bags are on their way when their turn comes: the address of
// such a row. Nobody reads there; any address will do.
struct NothingAhead {
  static constexpr bool kFetches = false;
  const char* next() { return nullptr; }
};

// `bytes` behind an address that may be any. A pointer may not leave its object, or wrap around; a number may.
inline const char* behind(const char* address, int64_t bytes) {
  return reinterpret_cast<const char*>(reinterpret_cast<uint64_t>(address) + static_cast<uint64_t>(bytes));
}

constexpr int64_t kCacheLine = 64;   // bytes
constexpr int64_t kTileVectors = 8;  // sums kept in registers: half of what AVX2 has

template <int64_t Count>
struct VectorCount {
  static constexpr int64_t kCount = Count;
};

// sums = pooled columns of the bag from column `first` on, in Vectors vectors. They lie side by side, but none starts
// after `last`: where the columns are no multiple of a vector, or fewer, some are summed twice, to the same bits.
template <int64_t Vectors, bool Weighted, class T, class Id, class Out, class Ahead>
int64_t pool_tile(const FeatureRows<T>& rows, int64_t first, int64_t last, const Id* ids, int64_t length,
                  const accumulator_t<T>* weights, Out* sums, Ahead& shared_ahead) {
  using Acc = accumulator_t<T>;
  constexpr int64_t kVectorBytes = kLanes<Acc> * static_cast<int64_t>(sizeof(T));
  constexpr int64_t kStep = kVectorBytes < kCacheLine ? kCacheLine / kVectorBytes : 1;  // vectors, line to line
  const T* const data = rows.data + first;
  const int64_t stride = rows.stride;
  const RowWindow window = rows.window;
  const auto at_most_last = [last](int64_t column) { return column < last ? column : last; };
  const int64_t before_end = at_most_last((Vectors - 2) * kLanes<Acc>);
  const int64_t end = at_most_last((Vectors - 1) * kLanes<Acc>);
  const auto offset = [=](int64_t v) {
    return v + 1 == Vectors ? end : v + 2 == Vectors ? before_end : v * kLanes<Acc>;
  };
  const int64_t first_byte = first * static_cast<int64_t>(sizeof(T));
  Ahead ahead = shared_ahead;  // a copy, for registers
  vector_t<Acc> tile[Vectors] = {};
  int64_t missing = 0;
  for (int64_t p = 0; p < length; ++p) {
    const char* later = ahead.next();
    if (Ahead::kFetches) {
#pragma GCC unroll 8
      for (int64_t v = 0; v < Vectors; v += kStep) __builtin_prefetch(behind(later, first_byte + v * kVectorBytes));
    }
    const int64_t index = window.row(ids[p]);
    if (index < 0) {
      missing += window.is_missing(ids[p]);
      continue;
    }
    const T* row = data + index * stride;
#pragma GCC unroll 8
    for (int64_t v = 0; v < Vectors; ++v) {
      if constexpr (Weighted) {
        tile[v] += weights[p] * load_vector(row + offset(v));
      } else {
        tile[v] += load_vector(row + offset(v));
      }
    }
  }
  shared_ahead = ahead;
  if (rows.is_mean && length > missing) {
    const Acc count = static_cast<Acc>(length - missing);
#pragma GCC unroll 8
    for (int64_t v = 0; v < Vectors; ++v) tile[v] /= count;
  }
#pragma GCC unroll 8
  for (int64_t v = 0; v < Vectors; ++v) store_vector(sums + offset(v), tile[v]);
  return missing;
}

// The same for fewer columns than a vector holds.
template <class T, class Id, class Out, class Ahead>
int64_t pool_scrap(const FeatureRows<T>& rows, int64_t first, int64_t columns, const Id* ids, int64_t length,
                   const accumulator_t<T>* weights, Out* sums, Ahead& ahead) {
  using Acc = accumulator_t<T>;
  Acc scrap[kLanes<Acc>] = {};
  int64_t missing = 0;
  for (int64_t p = 0; p < length; ++p) {
    const char* later = ahead.next();
    if (Ahead::kFetches) __builtin_prefetch(later);
    const int64_t index = rows.window.row(ids[p]);
    if (index < 0) {
      missing += rows.window.is_missing(ids[p]);
      continue;
    }
    const T* row = rows.data + index * rows.stride + first;
    const Acc weight = weights != nullptr ? weights[p] : Acc{1};
    for (int64_t c = 0; c < columns; ++c) scrap[c] += weight * load(row[c]);
  }
  const Acc count = rows.is_mean && length > missing ? static_cast<Acc>(length - missing) : Acc{1};
  for (int64_t c = 0; c < columns; ++c) store(sums + c, scrap[c] / count);
  return missing;
}

// sums[0:columns] = pooled columns [first, first + columns) of the bag. Returns the number of missing ids.
template <class T, class Id, class Out, class Ahead>
int64_t pool_bag(const FeatureRows<T>& rows, int64_t first, int64_t columns, const Id* ids, int64_t length,
                 const accumulator_t<T>* weights, Out* sums, Ahead& ahead) {
  constexpr int64_t lanes = kLanes<accumulator_t<T>>;
  if (columns < lanes) return pool_scrap(rows, first, columns, ids, length, weights, sums, ahead);
  const Ahead at_start = ahead;
  const auto pool_some = [&](int64_t column) {
    const int64_t rest = columns - column;
    const int64_t last = rest - lanes;
    // May start before `column`, where less than a vector is left.
    const int64_t start = last < 0 ? columns - lanes : column;
    const int64_t end = last < 0 ? 0 : last;
    const auto tile = [&](auto vectors) {
      constexpr int64_t kVectors = decltype(vectors)::kCount;
      ahead = at_start;  // every tile fetches its own columns
      return weights != nullptr
                 ? pool_tile<kVectors, true>(rows, first + start, end, ids, length, weights, sums + start, ahead)
                 : pool_tile<kVectors, false>(rows, first + start, end, ids, length, weights, sums + start, ahead);
    };
    switch (rest > 6 * lanes ? 8 : (rest + lanes - 1) / lanes) {
      case 8:
        return tile(VectorCount<8>{});
      case 6:
      case 5:
        return tile(VectorCount<6>{});
      case 4:
        return tile(VectorCount<4>{});
      case 3:
        return tile(VectorCount<3>{});
      case 2:
        return tile(VectorCount<2>{});
      default:
        return tile(VectorCount<1>{});
    }
  };
  const int64_t missing = pool_some(0);
  for (int64_t column = kTileVectors * lanes; column < columns; column += kTileVectors * lanes) pool_some(column);
  return missing;
}

}  // namespace
}  // namespace dmt::cpu
