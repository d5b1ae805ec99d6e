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

// Stable radix sort of keys[0:count] by their bits [low, high). `counts` holds max_buckets per piece. Returns where the
// sorted keys are: in `keys` or in `other`.
uint64_t* radix_sort(uint64_t* keys, uint64_t* other, int64_t count, int low, int high, int64_t num_pieces,
                     int64_t* counts, const ParallelFor& threads) {
  const int num_passes = (high - low + max_digit_bits - 1) / max_digit_bits;
  if (num_passes == 0) return keys;
  const int digit_bits = (high - low + num_passes - 1) / num_passes;
  const int64_t num_buckets = int64_t{1} << digit_bits;
  const uint64_t mask = static_cast<uint64_t>(num_buckets - 1);
  const Pieces pieces = {count, num_pieces};
  for (int shift = low; shift < high; shift += digit_bits) {
    for_pieces(pieces, threads, [&](int64_t piece, int64_t begin, int64_t end) {
      int64_t* const mine = counts + piece * max_buckets;
      std::fill(mine, mine + num_buckets, 0);
      for (int64_t i = begin; i < end; ++i) ++mine[keys[i] >> shift & mask];
    });
    int64_t position = 0;
    for (int64_t bucket = 0; bucket < num_buckets; ++bucket) {
      for (int64_t piece = 0; piece < num_pieces; ++piece) {
        position += std::exchange(counts[piece * max_buckets + bucket], position);
      }
    }
    for_pieces(pieces, threads, [&](int64_t piece, int64_t begin, int64_t end) {
      int64_t* const mine = counts + piece * max_buckets;
      for (int64_t i = begin; i < end; ++i) other[mine[keys[i] >> shift & mask]++] = keys[i];
    });
    std::swap(keys, other);
  }
  return keys;
}

// One table's share of the batch.
struct TableIds {
  std::vector<int64_t> features;
  int64_t count = 0;  // ids
  uint64_t* keys;     // [count]
  uint64_t* other;    // [count]
  GradientSource* sources;
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

// The keys and sources of the ids in samples [begin, end), in canonical order. A source is a bag, or with per-sample
// weights an id. What has no row here gets the key of the row behind the last one.
template <class Id, class A>
void list_contributions(const BagLayout& bags, const RowWindow& window, const TableIds& table, int64_t begin,
                        int64_t end) {
  const Id* const ids = typed_ids<Id>(bags);
  const A* const weights = static_cast<const A*>(bags.weights);
  uint64_t* key = table.keys + ids_before(bags, table, begin);
  uint64_t source = static_cast<uint64_t>(weights != nullptr ? key - table.keys
                                                             : begin * static_cast<int64_t>(table.features.size()));
  for (int64_t sample = begin; sample < end; ++sample) {
    const int64_t k = sample / bags.num_samples;
    const int64_t b = sample % bags.num_samples;
    for (const int64_t f : table.features) {
      const int64_t bag = (k * bags.num_features + f) * bags.num_samples + b;
      const int64_t first = bags.offsets[bag];
      const int64_t last = bags.offsets[bag + 1];
      const bool is_mean = bags.feature_is_mean[f];
      const int64_t count = is_mean ? window.count(ids + first, last - first) : 1;
      const int64_t offset = (bags.block_order[k] * bags.num_samples + b) * bags.width + bags.feature_column[f];
      const auto put_source = [&](A weight) {
        table.sources[source] = {offset, static_cast<double>(gradient_scale(weight, is_mean, count))};
      };
      if (weights == nullptr) put_source(A(1));
      for (int64_t p = first; p < last; ++p) {
        const int64_t row = window.row(ids[p]);
        if (weights != nullptr) put_source(weights[p]);
        *key++ = static_cast<uint64_t>(row < 0 ? window.rows : row) << table.source_bits | source;
        if (weights != nullptr) ++source;
      }
      if (weights == nullptr) ++source;
    }
  }
}

template <class Id, class A>
Contributions sort_table(const BagLayout& bags, int64_t index, const TableIds& table, int64_t num_pieces,
                         int64_t* counts, const ParallelFor& threads) {
  const RowWindow window = row_window(bags, index);
  for_pieces({bags.num_blocks * bags.num_samples, num_pieces}, threads,
             [&](int64_t, int64_t begin, int64_t end) { list_contributions<Id, A>(bags, window, table, begin, end); });
  const uint64_t* const sorted = radix_sort(table.keys, table.other, table.count, table.source_bits,
                                            table.source_bits + table.row_bits, num_pieces, counts, threads);
  const uint64_t behind_the_last = static_cast<uint64_t>(window.rows) << table.source_bits;
  return {sorted, std::lower_bound(sorted, sorted + table.count, behind_the_last) - sorted, table.source_bits,
          table.sources};
}

template <class Id, class A>
SortedBatch sort_tables(const BagLayout& bags, const ParallelFor& threads) {
  const int64_t num_bags = bags.num_blocks * bags.num_features * bags.num_samples;
  if (bags.offsets[0] == bags.offsets[num_bags]) {
    return {std::vector<Contributions>(static_cast<size_t>(bags.num_tables)), nullptr, nullptr};
  }
  std::vector<TableIds> tables(static_cast<size_t>(bags.num_tables));
  for (int64_t f = 0; f < bags.num_features; ++f) {
    TableIds& table = tables[static_cast<size_t>(bags.feature_table[f])];
    table.features.push_back(f);
    for (int64_t k = 0; k < bags.num_blocks; ++k) {
      const int64_t* const first = bags.offsets + (k * bags.num_features + f) * bags.num_samples;
      table.count += first[bags.num_samples] - first[0];
    }
  }
  const auto num_sources = [&](const TableIds& table) {
    const int64_t own_bags = bags.num_blocks * bags.num_samples * static_cast<int64_t>(table.features.size());
    return bags.weights != nullptr ? table.count : own_bags;
  };
  int64_t num_ids = 0;
  int64_t all_sources = 0;
  for (const TableIds& table : tables) {
    num_ids += table.count;
    all_sources += num_sources(table);
  }
  SortedBatch batch = {std::vector<Contributions>(tables.size()),
                       std::make_unique_for_overwrite<uint64_t[]>(static_cast<size_t>(2 * num_ids)),
                       std::make_unique_for_overwrite<GradientSource[]>(static_cast<size_t>(all_sources))};
  uint64_t* keys = batch.keys.get();
  GradientSource* sources = batch.sources.get();
  for (size_t i = 0; i < tables.size(); ++i) {
    TableIds& table = tables[i];
    table.keys = keys;
    table.other = keys + table.count;
    table.sources = sources;
    table.source_bits = std::bit_width(static_cast<uint64_t>(num_sources(table)));
    table.row_bits = std::bit_width(static_cast<uint64_t>(bags.table_rows[i]));
    if (table.source_bits + table.row_bits > 64) {
      throw std::length_error("embedding_update_: too many rows and ids for one sort key");
    }
    keys += 2 * table.count;
    sources += num_sources(table);
  }

  // A table with more than its share of the ids is sorted by all threads, the others by one thread each.
  const int64_t share = std::max(num_ids / (2 * threads.num_threads), min_ids_per_thread);
  const auto sort = [&](int64_t i, int64_t pieces, int64_t* counts, const ParallelFor& by) {
    batch.tables[i] = sort_table<Id, A>(bags, i, tables[i], pieces, counts, by);
  };
  std::vector<int64_t> counts(static_cast<size_t>(threads.num_threads * max_buckets));
  std::vector<int64_t> small;
  for (int64_t i = 0; i < bags.num_tables; ++i) {
    const int64_t count = tables[i].count;
    if (count == 0) continue;
    if (count <= share) {
      small.push_back(i);
    } else {
      sort(i, std::min(count / min_ids_per_thread, threads.num_threads), counts.data(), threads);
    }
  }
  const ParallelFor alone = {
      [](int64_t begin, int64_t end, int64_t, ParallelFor::Body body, void* context) { body(begin, end, context); }, 1};
  for_tasks(static_cast<int64_t>(small.size()), threads,
            [&](int64_t task, int64_t worker) { sort(small[task], 1, counts.data() + worker * max_buckets, alone); });
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
