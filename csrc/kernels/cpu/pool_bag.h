// Bags pooled into rows of sums, or straight into the output in its storage type. Shared by embedding_bag and
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

// Bags that follow each other: bag i holds ids[offsets[i] : offsets[i + 1]], and weights, if there are any, like them.
template <class T, class Id>
struct BagRun {
  const Id* ids;
  const accumulator_t<T>* weights;
  const int64_t* offsets;
  int64_t count;
};

// Where their sums go: rows `stride` elements apart.
template <class Out>
struct SumRows {
  Out* data;
  int64_t stride;
  bool streamed;  // past the caches: for rows that begin and end with a line
};

// What pool_bags asks for once per id, so that rows of later bags are on their way when their turn comes: the address
// of such a row. Nobody reads there; any address will do.
struct NothingAhead {
  static constexpr bool kFetches = false;
  const char* next() { return nullptr; }
};

constexpr int64_t kCacheLine = 64;   // bytes
constexpr int64_t kTileVectors = 8;  // sums kept in registers

// As many as AVX2 has: another pass over a bag's ids costs more than the one or two that are left out for a weight or a
// conversion.
constexpr int64_t kWideTileVectors = kRegisterBytes == 32 ? 16 : kTileVectors;

// Fetches bytes [first, end) behind an address that may be any, hence numbers: a pointer may not leave its object, or
// wrap around. Into the second cache: a core waits for twice as many lines there as in the first (AMD Zen 4: 48 and
// 24).
inline void fetch_row(const char* address, int64_t first, int64_t end) {
#pragma GCC unroll 8
  for (int64_t at = first; at < end; at += kCacheLine) {
    __builtin_prefetch(reinterpret_cast<const char*>(reinterpret_cast<uint64_t>(address) + static_cast<uint64_t>(at)),
                       0, 2);
  }
}

template <int64_t Count>
struct VectorCount {
  static constexpr int64_t kCount = Count;
};

// sums = pooled columns of the bags from column `first` on, in Vectors vectors. They lie side by side, but none starts
// after `last`: where the columns are no multiple of a vector, or fewer, some are summed twice, to the same bits.
// `fetched`: bytes of a row ahead to fetch for every id, or 0.
template <int64_t Vectors, bool Weighted, class T, class Id, class Out, class Ahead>
int64_t pool_tile(const FeatureRows<T>& rows, int64_t first, int64_t last, const BagRun<T, Id>& bags,
                  const SumRows<Out>& sums, int64_t fetched, Ahead& shared_ahead) {
  using Acc = accumulator_t<T>;
  constexpr int64_t kTileBytes = Vectors * kLanes<Acc> * static_cast<int64_t>(sizeof(T));
  const T* const data = rows.data + first;
  const int64_t stride = rows.stride;
  const RowWindow window = rows.window;
  const Id* const ids = bags.ids;
  const auto at_most_last = [last](int64_t column) { return column < last ? column : last; };
  const int64_t before_end = at_most_last((Vectors - 2) * kLanes<Acc>);
  const int64_t end = at_most_last((Vectors - 1) * kLanes<Acc>);
  const auto offset = [=](int64_t v) {
    return v + 1 == Vectors ? end : v + 2 == Vectors ? before_end : v * kLanes<Acc>;
  };
  // A copy, for registers. One for many bags: it would wait for all stores before it, if it is made by vectors.
  Ahead ahead = shared_ahead;
  Out* target = sums.data;
  int64_t all_missing = 0;
  int64_t p = bags.offsets[0];
  for (int64_t i = 0; i < bags.count; ++i, target += sums.stride) {
    const int64_t bag_end = bags.offsets[i + 1];
    const int64_t length = bag_end - p;
    vector_t<Acc> tile[Vectors] = {};
    int64_t missing = 0;
    for (; p < bag_end; ++p) {
      if (Ahead::kFetches && fetched > 0) {
        const char* later = ahead.next();
        fetch_row(later, 0, kTileBytes);
        if (fetched > kTileBytes) fetch_row(later, kTileBytes, fetched);
      }
      const int64_t index = window.row(ids[p]);
      if (index < 0) {
        missing += window.is_missing(ids[p]);
        continue;
      }
      const T* row = data + index * stride;
#pragma GCC unroll 16
      for (int64_t v = 0; v < Vectors; ++v) {
        if constexpr (Weighted) {
          tile[v] += bags.weights[p] * load_vector(row + offset(v));
        } else {
          tile[v] += load_vector(row + offset(v));
        }
      }
    }
    if (rows.is_mean && length > missing) {
      const Acc count = static_cast<Acc>(length - missing);
#pragma GCC unroll 16
      for (int64_t v = 0; v < Vectors; ++v) tile[v] /= count;
    }
    if (sums.streamed) {
#pragma GCC unroll 16
      for (int64_t v = 0; v < Vectors; ++v) stream_vector(target + offset(v), tile[v]);
    } else {
#pragma GCC unroll 16
      for (int64_t v = 0; v < Vectors; ++v) store_vector(target + offset(v), tile[v]);
    }
    all_missing += missing;
  }
  shared_ahead = ahead;
  return all_missing;
}

// The same for fewer columns than a vector holds.
template <class T, class Id, class Out, class Ahead>
int64_t pool_scrap(const FeatureRows<T>& rows, int64_t first, int64_t columns, const BagRun<T, Id>& bags,
                   const SumRows<Out>& sums, int64_t fetched, Ahead& ahead) {
  using Acc = accumulator_t<T>;
  int64_t all_missing = 0;
  for (int64_t i = 0; i < bags.count; ++i) {
    Acc scrap[kLanes<Acc>] = {};
    int64_t missing = 0;
    for (int64_t p = bags.offsets[i]; p < bags.offsets[i + 1]; ++p) {
      if (Ahead::kFetches) fetch_row(ahead.next(), 0, fetched);
      const int64_t index = rows.window.row(bags.ids[p]);
      if (index < 0) {
        missing += rows.window.is_missing(bags.ids[p]);
        continue;
      }
      const T* row = rows.data + index * rows.stride + first;
      const Acc weight = bags.weights != nullptr ? bags.weights[p] : Acc{1};
      for (int64_t c = 0; c < columns; ++c) scrap[c] += weight * load(row[c]);
    }
    const int64_t counted = bags.offsets[i + 1] - bags.offsets[i] - missing;
    const Acc count = rows.is_mean && counted > 0 ? static_cast<Acc>(counted) : Acc{1};
    for (int64_t c = 0; c < columns; ++c) store(sums.data + i * sums.stride + c, scrap[c] / count);
    all_missing += missing;
  }
  return all_missing;
}

// sums = pooled columns [first, first + columns) of the bags. Returns the number of missing ids.
template <class T, class Id, class Out, class Ahead>
int64_t pool_bags(const FeatureRows<T>& rows, int64_t first, int64_t columns, const BagRun<T, Id>& bags,
                  const SumRows<Out>& sums, Ahead& ahead) {
  constexpr int64_t lanes = kLanes<accumulator_t<T>>;
  const int64_t row_bytes = columns * static_cast<int64_t>(sizeof(T));
  const auto tile_vectors = [](int64_t rest) {
    return rest > (kWideTileVectors - 2) * lanes ? kWideTileVectors : kTileVectors;
  };
  if (columns < lanes) return pool_scrap(rows, first, columns, bags, sums, row_bytes, ahead);
  const auto pool_some = [&](int64_t column, const BagRun<T, Id>& some, Out* target, int64_t fetched) {
    const int64_t rest = columns - column;
    const int64_t last = rest - lanes;
    // May start before `column`, where less than a vector is left.
    const int64_t start = last < 0 ? columns - lanes : column;
    const int64_t end = last < 0 ? 0 : last;
    const auto tile = [&](auto vectors) {
      constexpr int64_t kVectors = decltype(vectors)::kCount;
      const SumRows<Out> there = {target + start, sums.stride, sums.streamed};
      return some.weights != nullptr
                 ? pool_tile<kVectors, true>(rows, first + start, end, some, there, fetched, ahead)
                 : pool_tile<kVectors, false>(rows, first + start, end, some, there, fetched, ahead);
    };
    if constexpr (kWideTileVectors > kTileVectors) {
      if (tile_vectors(rest) == kWideTileVectors) return tile(VectorCount<kWideTileVectors>{});
    }
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
  if (columns <= tile_vectors(columns) * lanes) return pool_some(0, bags, sums.data, row_bytes);
  int64_t missing = 0;  // wider rows bag by bag, so that all of a row is read while it is in the caches
  for (int64_t i = 0; i < bags.count; ++i) {
    const BagRun<T, Id> bag = {bags.ids, bags.weights, bags.offsets + i, 1};
    Out* const target = sums.data + i * sums.stride;
    missing += pool_some(0, bag, target, row_bytes);
    for (int64_t column = 0; (column += tile_vectors(columns - column) * lanes) < columns;) {
      pool_some(column, bag, target, 0);
    }
  }
  return missing;
}

// The same for one bag.
template <class T, class Id, class Out, class Ahead>
int64_t pool_bag(const FeatureRows<T>& rows, int64_t first, int64_t columns, const Id* ids, int64_t length,
                 const accumulator_t<T>* weights, Out* sums, Ahead& ahead) {
  const int64_t offsets[] = {0, length};
  return pool_bags(rows, first, columns, BagRun<T, Id>{ids, weights, offsets, 1}, SumRows<Out>{sums, 0, false}, ahead);
}

}  // namespace
}  // namespace dmt::cpu
