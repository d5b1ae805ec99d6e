#include "embedding_update_plan.h"

#include <algorithm>
#include <bit>
#include <stdexcept>
#include <utility>

#include "float_formats.h"

namespace dmt::cpu {
namespace {

constexpr int64_t min_ids_per_thread = 1 << 14;  // when one table's ids are sorted: less is not worth a thread
constexpr int64_t min_piece_cost = 1 << 14;      // when rows are updated; in elements of the gradient
constexpr int64_t pieces_per_thread = 16;        // what is left when the first thread runs out of work
constexpr int max_digit_bits = 11;               // 2048 buckets: their counters stay in the L1 cache
constexpr int64_t max_buckets = int64_t{1} << max_digit_bits;

// [0, total) cut into `count` equal pieces.
struct Pieces {
  int64_t total;
  int64_t count;

  int64_t begin(int64_t piece) const { return total * piece / count; }
};

template <class Function>
void for_pieces(const Pieces& pieces, const ParallelFor& threads, const Function& function) {
  parallel_for(threads, 0, pieces.count, 1, [&](int64_t first, int64_t last) {
    for (int64_t piece = first; piece < last; ++piece) function(piece, pieces.begin(piece), pieces.begin(piece + 1));
  });
}

// How the bits of a row are cut into digits.
struct Digits {
  int count;
  int bits;  // of each, the last may have fewer
};

Digits digits_of(int row_bits) {
  const int count = (row_bits + max_digit_bits - 1) / max_digit_bits;
  return {count, count == 0 ? 0 : (row_bits + count - 1) / count};
}

// Stable radix sort of `from[0:count]` by the digits above bit `low`. Every digit moves the keys to the other place:
// with an odd number of digits they end in `to`. `counts` holds max_buckets per piece.
void radix_sort(uint64_t* from, uint64_t* to, int64_t count, int low, const Digits& digits, int64_t num_pieces,
                int64_t* counts, const ParallelFor& threads) {
  const int64_t num_buckets = int64_t{1} << digits.bits;
  const uint64_t mask = static_cast<uint64_t>(num_buckets - 1);
  const Pieces pieces = {count, num_pieces};
  for (int digit = 0; digit < digits.count; ++digit) {
    const int shift = low + digit * digits.bits;
    for_pieces(pieces, threads, [&](int64_t piece, int64_t begin, int64_t end) {
      int64_t* const mine = counts + piece * max_buckets;
      std::fill(mine, mine + num_buckets, 0);
      for (int64_t i = begin; i < end; ++i) ++mine[from[i] >> shift & mask];
    });
    int64_t position = 0;
    for (int64_t bucket = 0; bucket < num_buckets; ++bucket) {
      for (int64_t piece = 0; piece < num_pieces; ++piece) {
        position += std::exchange(counts[piece * max_buckets + bucket], position);
      }
    }
    for_pieces(pieces, threads, [&](int64_t piece, int64_t begin, int64_t end) {
      int64_t* const mine = counts + piece * max_buckets;
      for (int64_t i = begin; i < end; ++i) to[mine[from[i] >> shift & mask]++] = from[i];
    });
    std::swap(from, to);
  }
}

// One table's share of the batch.
struct TableIds {
  std::vector<int64_t> features;
  int64_t count = 0;                  // ids
  uint64_t* keys = nullptr;           // [count]
  GradientSource* sources = nullptr;  // [num_sources], or null: keys hold offsets
  int64_t num_sources = 0;
  int source_bits = 0;
  int row_bits = 0;
};

// Samples are those of the flattened (block, sample). How many ids of the table come before `sample`.
int64_t ids_before(const BagLayout& bags, const TableIds& table, int64_t sample) {
  const int64_t k = sample / bags.num_samples;
  int64_t count = 0;
  for (int64_t block = 0; block <= k; ++block) {
    const int64_t samples = block < k ? bags.num_samples : sample % bags.num_samples;
    for (const int64_t f : table.features) {
      if (samples == 0) continue;
      const int64_t bag = (block * bags.num_features + f) * bags.num_samples;
      count += bags.offsets[bag + samples] - bags.offsets[bag];
    }
  }
  return count;
}

// The ids of the table's bags in samples [begin, end), in canonical order, as keys; and where there are any, their
// sources: a source is a bag, or with per-sample weights an id. What has no row here gets the key of the row behind the
// last one.
template <class Id, class A>
void list_contributions(const BagLayout& bags, const RowWindow& window, const TableIds& table, uint64_t* keys,
                        int64_t begin, int64_t end) {
  const Id* const ids = typed_ids<Id>(bags);
  const A* const weights = static_cast<const A*>(bags.weights);
  uint64_t* key = keys + ids_before(bags, table, begin);
  const auto put_key = [&](int64_t p, uint64_t source) {
    const int64_t row = window.row(ids[p]);
    *key++ = static_cast<uint64_t>(row < 0 ? window.rows : row) << table.source_bits | source;
  };
  uint64_t source =
      static_cast<uint64_t>(weights != nullptr ? key - keys : begin * static_cast<int64_t>(table.features.size()));
  int64_t k = begin / bags.num_samples;
  int64_t b = begin % bags.num_samples;
  for (int64_t sample = begin; sample < end; ++sample) {
    for (const int64_t f : table.features) {
      const int64_t bag = (k * bags.num_features + f) * bags.num_samples + b;
      const int64_t first = bags.offsets[bag];
      const int64_t last = bags.offsets[bag + 1];
      const int64_t offset = (bags.block_order[k] * bags.num_samples + b) * bags.width + bags.feature_column[f];
      if (table.sources == nullptr) {
        for (int64_t p = first; p < last; ++p) put_key(p, static_cast<uint64_t>(offset));
        continue;
      }
      const bool is_mean = bags.feature_is_mean[f];
      const int64_t count = is_mean ? window.count(ids + first, last - first) : 1;
      const auto put_source = [&](A weight) {
        table.sources[source] = {offset, static_cast<double>(gradient_scale(weight, is_mean, count))};
      };
      if (weights == nullptr) put_source(A(1));
      for (int64_t p = first; p < last; ++p) {
        if (weights != nullptr) put_source(weights[p]);
        put_key(p, source);
        if (weights != nullptr) ++source;
      }
      if (weights == nullptr) ++source;
    }
    if (++b == bags.num_samples) {
      b = 0;
      ++k;
    }
  }
}

// `other` is room for as many keys as the table has.
template <class Id, class A>
Contributions sort_table(const BagLayout& bags, int64_t index, const TableIds& table, uint64_t* other,
                         int64_t num_pieces, int64_t* counts, const ParallelFor& threads) {
  const RowWindow window = row_window(bags, index);
  const Digits digits = digits_of(table.row_bits);
  uint64_t* const unsorted = digits.count % 2 == 0 ? table.keys : other;
  for_pieces({bags.num_blocks * bags.num_samples, num_pieces}, threads, [&](int64_t, int64_t begin, int64_t end) {
    list_contributions<Id, A>(bags, window, table, unsorted, begin, end);
  });
  radix_sort(unsorted, unsorted == other ? table.keys : other, table.count, table.source_bits, digits, num_pieces,
             counts, threads);
  const uint64_t behind_the_last = static_cast<uint64_t>(window.rows) << table.source_bits;
  return {table.keys, std::lower_bound(table.keys, table.keys + table.count, behind_the_last) - table.keys,
          table.source_bits, table.sources};
}

// What each table has of the batch, and how its keys are made up; no memory for them yet.
std::vector<TableIds> list_tables(const BagLayout& bags) {
  std::vector<TableIds> tables(static_cast<size_t>(bags.num_tables));
  std::vector<bool> have_scales(tables.size(), bags.weights != nullptr);
  for (int64_t f = 0; f < bags.num_features; ++f) {
    const size_t t = static_cast<size_t>(bags.feature_table[f]);
    tables[t].features.push_back(f);
    for (int64_t k = 0; k < bags.num_blocks; ++k) {
      const int64_t* const first = bags.offsets + (k * bags.num_features + f) * bags.num_samples;
      tables[t].count += first[bags.num_samples] - first[0];
    }
    if (bags.feature_is_mean[f]) have_scales[t] = true;
  }
  const int64_t out_rows = bags.num_blocks * bags.num_samples;
  for (size_t t = 0; t < tables.size(); ++t) {
    TableIds& table = tables[t];
    table.row_bits = std::bit_width(static_cast<uint64_t>(bags.table_rows[t]));
    table.source_bits = std::bit_width(static_cast<uint64_t>(out_rows * bags.width));
    if (!have_scales[t] && table.source_bits + table.row_bits <= 64) continue;
    table.num_sources = bags.weights != nullptr ? table.count : out_rows * static_cast<int64_t>(table.features.size());
    table.source_bits = std::bit_width(static_cast<uint64_t>(table.num_sources));
    if (table.source_bits + table.row_bits > 64) {
      throw std::length_error("embedding_update_: too many rows and ids for one sort key");
    }
  }
  return tables;
}

template <class Id, class A>
SortedBatch sort_tables(const BagLayout& bags, const ParallelFor& threads) {
  std::vector<TableIds> tables = list_tables(bags);
  int64_t num_ids = 0;
  int64_t num_sources = 0;
  for (const TableIds& table : tables) {
    num_ids += table.count;
    num_sources += table.num_sources;
  }
  SortedBatch batch = {std::vector<Contributions>(tables.size()),
                       std::make_unique_for_overwrite<uint64_t[]>(static_cast<size_t>(num_ids)),
                       std::make_unique_for_overwrite<GradientSource[]>(static_cast<size_t>(num_sources))};
  // A table with more than its share of the ids is sorted by all threads, the others by one thread each.
  const int64_t share = std::max(num_ids / (2 * threads.num_threads), min_ids_per_thread);
  std::vector<int64_t> small;
  std::vector<int64_t> large;
  int64_t most_of_small = 0;
  int64_t most_of_large = 0;
  uint64_t* keys = batch.keys.get();
  GradientSource* sources = batch.sources.get();
  for (int64_t i = 0; i < bags.num_tables; ++i) {
    TableIds& table = tables[i];
    if (table.count == 0) continue;
    table.keys = std::exchange(keys, keys + table.count);
    if (table.num_sources > 0) table.sources = std::exchange(sources, sources + table.num_sources);
    const bool is_small = table.count <= share;
    (is_small ? small : large).push_back(i);
    int64_t& most = is_small ? most_of_small : most_of_large;
    most = std::max(most, table.count);
  }

  const int64_t room = std::max(threads.num_threads * most_of_small, most_of_large);
  const auto other = std::make_unique_for_overwrite<uint64_t[]>(static_cast<size_t>(room));
  const auto counts = std::make_unique_for_overwrite<int64_t[]>(static_cast<size_t>(threads.num_threads * max_buckets));
  for (const int64_t i : large) {
    const int64_t pieces = std::min(tables[i].count / min_ids_per_thread, threads.num_threads);
    batch.tables[i] = sort_table<Id, A>(bags, i, tables[i], other.get(), pieces, counts.get(), threads);
  }
  const ParallelFor alone = {
      [](int64_t begin, int64_t end, int64_t, ParallelFor::Body body, void* context) { body(begin, end, context); }, 1};
  for_tasks(static_cast<int64_t>(small.size()), threads, [&](int64_t task, int64_t worker) {
    const int64_t i = small[task];
    batch.tables[i] = sort_table<Id, A>(bags, i, tables[i], other.get() + worker * most_of_small, 1,
                                        counts.get() + worker * max_buckets, alone);
  });
  return batch;
}

}  // namespace

SortedBatch sort_by_row(const BagLayout& bags, bool sums_in_double, const ParallelFor& threads) {
  SortedBatch batch;
  with_id_type(bags, [&](auto id) {
    using Id = decltype(id);
    batch = sums_in_double ? sort_tables<Id, double>(bags, threads) : sort_tables<Id, float>(bags, threads);
  });
  return batch;
}

std::vector<TablePiece> cut_rows(const BagLayout& bags, const SortedBatch& batch, std::vector<double>& sums,
                                 const ParallelFor& threads) {
  const auto dim = [&](size_t table) { return std::max<int64_t>(bags.table_dims[table], 1); };
  int64_t cost = 0;
  for (size_t t = 0; t < batch.tables.size(); ++t) cost += batch.tables[t].count * dim(t);
  const int64_t piece_cost = std::max(cost / (pieces_per_thread * threads.num_threads), min_piece_cost);

  std::vector<TablePiece> pieces;
  std::vector<std::pair<size_t, int64_t>> unsummed;  // piece and where in `sums`
  int64_t num_sums = 0;
  for (size_t t = 0; t < batch.tables.size(); ++t) {
    const Contributions& all = batch.tables[t];
    const int64_t length = std::max<int64_t>(piece_cost / dim(t), 1);
    const auto first_of_row = [&](int64_t row) {
      return std::lower_bound(all.keys, all.keys + all.count, static_cast<uint64_t>(row) << all.source_bits) - all.keys;
    };
    const auto put = [&](int64_t begin, int64_t end) {
      if (begin < end) pieces.push_back({static_cast<int64_t>(t), {begin, end, nullptr}});
    };
    for (int64_t begin = 0; begin < all.count;) {
      if (all.count - begin <= length) {
        put(begin, all.count);
        break;
      }
      const int64_t row = all.row(begin + length - 1);
      const int64_t row_begin = first_of_row(row);
      const int64_t row_end = first_of_row(row + 1);
      if (row_end - row_begin <= length || threads.num_threads == 1) {
        put(begin, row_end);
      } else {
        put(begin, row_begin);
        put(row_begin, row_end);
        unsummed.emplace_back(pieces.size() - 1, num_sums);
        num_sums += dim(t);
      }
      begin = row_end;
    }
  }
  sums.resize(static_cast<size_t>(num_sums));
  for (const auto& [piece, first] : unsummed) pieces[piece].rows.sum = sums.data() + first;
  return pieces;
}

int64_t count_rows(const Contributions& contributions, const RowPiece& piece) {
  int64_t count = 1;
  for (int64_t i = piece.begin + 1; i < piece.end; ++i) count += contributions.row(i) != contributions.row(i - 1);
  return count;
}

}  // namespace dmt::cpu
