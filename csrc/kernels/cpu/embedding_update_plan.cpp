#include "embedding_update_plan.h"

#include <algorithm>
#include <bit>
#include <stdexcept>

#include "float_formats.h"

namespace dmt::cpu {
namespace {

constexpr int64_t min_piece = 1 << 14;  // contributions: less is not worth a thread
constexpr int max_digit_bits = 11;      // 2048 buckets: their counters stay in the L1 cache

// [0, total) cut into `count` equal pieces.
struct Pieces {
  int64_t total;
  int64_t count;

  int64_t begin(int64_t piece) const { return total * piece / count; }
};

Pieces cut(int64_t total, const ParallelFor& threads) {
  return {total, std::clamp<int64_t>(total / min_piece, 1, threads.num_threads)};
}

template <class Function>
void for_pieces(const Pieces& pieces, const ParallelFor& threads, const Function& function) {
  parallel_for(threads, 0, pieces.count, 1, [&](int64_t first, int64_t last) {
    for (int64_t piece = first; piece < last; ++piece) function(piece, pieces.begin(piece), pieces.begin(piece + 1));
  });
}

// Turns counts into the positions at which each piece starts to write; returns the total.
int64_t exclusive_sum(std::vector<int64_t>& counts) {
  int64_t total = 0;
  for (int64_t& count : counts) {
    const int64_t here = count;
    count = total;
    total += here;
  }
  return total;
}

// Visits the bags of a table's features in samples [begin, end) of the flattened (block, sample), in canonical order:
// visit(block, sample, feature, first position, end position).
template <class Visit>
void visit_bags(const BagLayout& bags, const std::vector<int64_t>& features, int64_t begin, int64_t end,
                const Visit& visit) {
  for (int64_t flat = begin; flat < end; ++flat) {
    const int64_t k = flat / bags.num_samples;
    const int64_t b = flat % bags.num_samples;
    for (const int64_t f : features) {
      const int64_t bag = (k * bags.num_features + f) * bags.num_samples + b;
      visit(k, b, f, bags.offsets[bag], bags.offsets[bag + 1]);
    }
  }
}

// Stable radix sort of `keys` by their bits [low, high).
void radix_sort(std::vector<uint64_t>& keys, int low, int high, const ParallelFor& threads) {
  const int64_t num_passes = (high - low + max_digit_bits - 1) / max_digit_bits;
  if (num_passes == 0) return;
  const int digit_bits = static_cast<int>((high - low + num_passes - 1) / num_passes);
  const int64_t num_buckets = int64_t{1} << digit_bits;
  const uint64_t mask = static_cast<uint64_t>(num_buckets - 1);
  const Pieces pieces = cut(static_cast<int64_t>(keys.size()), threads);

  std::vector<uint64_t> sorted(keys.size());
  std::vector<int64_t> counts(static_cast<size_t>(num_buckets * pieces.count));  // [bucket, piece], then positions
  for (int shift = low; shift < high; shift += digit_bits) {
    const auto position = [&](uint64_t key, int64_t piece) -> int64_t& {
      return counts[static_cast<size_t>(static_cast<int64_t>(key >> shift & mask) * pieces.count + piece)];
    };
    std::fill(counts.begin(), counts.end(), 0);
    for_pieces(pieces, threads, [&](int64_t piece, int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) ++position(keys[i], piece);
    });
    exclusive_sum(counts);
    for_pieces(pieces, threads, [&](int64_t piece, int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) sorted[position(keys[i], piece)++] = keys[i];
    });
    keys.swap(sorted);
  }
}

template <class Id, class A>
RowGroupsStorage group(const BagLayout& bags, int64_t table, const ParallelFor& threads) {
  const RowWindow window = row_window(bags, table);
  std::vector<int64_t> features;
  for (int64_t f = 0; f < bags.num_features; ++f) {
    if (bags.feature_table[f] == table) features.push_back(f);
  }

  // Contributions in canonical order: the sort key (row, index of the contribution) and the source.
  const Id* const ids = typed_ids<Id>(bags);
  const Pieces samples = {bags.num_blocks * bags.num_samples,
                          std::clamp<int64_t>(bags.num_ids / min_piece, 1, threads.num_threads)};
  std::vector<int64_t> first(static_cast<size_t>(samples.count));
  for_pieces(samples, threads, [&](int64_t piece, int64_t begin, int64_t end) {
    int64_t count = 0;
    visit_bags(bags, features, begin, end, [&](int64_t, int64_t, int64_t, int64_t bag_begin, int64_t bag_end) {
      for (int64_t p = bag_begin; p < bag_end; ++p) count += window.row(ids[p]) >= 0;
    });
    first[piece] = count;
  });
  const int64_t n = exclusive_sum(first);
  const int index_bits = std::bit_width(static_cast<uint64_t>(n));
  const int row_bits = n > 0 ? std::bit_width(static_cast<uint64_t>(window.rows - 1)) : 0;
  if (index_bits + row_bits > 64) throw std::length_error("embedding_update_: too many rows and ids for one sort key");

  const A* const weights = static_cast<const A*>(bags.weights);
  std::vector<uint64_t> keys(static_cast<size_t>(n));
  std::vector<GradientSource> unsorted(static_cast<size_t>(n));
  for_pieces(samples, threads, [&](int64_t piece, int64_t begin, int64_t end) {
    int64_t i = first[piece];
    visit_bags(bags, features, begin, end, [&](int64_t k, int64_t b, int64_t f, int64_t bag_begin, int64_t bag_end) {
      const bool is_mean = bags.feature_is_mean[f];
      const int64_t count = is_mean ? window.count(ids + bag_begin, bag_end - bag_begin) : 1;
      const int64_t offset = (bags.block_order[k] * bags.num_samples + b) * bags.width + bags.feature_column[f];
      for (int64_t p = bag_begin; p < bag_end; ++p) {
        const int64_t row = window.row(ids[p]);
        if (row < 0) continue;
        const A weight = weights != nullptr ? weights[p] : A(1);
        keys[i] = static_cast<uint64_t>(row) << index_bits | static_cast<uint64_t>(i);
        unsorted[i] = {offset, static_cast<double>(gradient_scale(weight, is_mean, count))};
        ++i;
      }
    });
  });
  radix_sort(keys, index_bits, index_bits + row_bits, threads);

  // One group per run of equal rows.
  const auto row_of = [&](int64_t i) { return static_cast<int64_t>(keys[i] >> index_bits); };
  const auto starts_group = [&](int64_t i) { return i == 0 || row_of(i) != row_of(i - 1); };
  const uint64_t index_mask = (uint64_t{1} << index_bits) - 1;
  const Pieces runs = cut(n, threads);
  first.assign(static_cast<size_t>(runs.count), 0);
  for_pieces(runs, threads, [&](int64_t piece, int64_t begin, int64_t end) {
    int64_t count = 0;
    for (int64_t i = begin; i < end; ++i) count += starts_group(i);
    first[piece] = count;
  });
  const int64_t num_rows = exclusive_sum(first);

  RowGroupsStorage groups;
  groups.rows.resize(static_cast<size_t>(num_rows));
  groups.starts.resize(static_cast<size_t>(num_rows + 1));
  groups.sources.resize(static_cast<size_t>(n));
  groups.starts[num_rows] = n;
  for_pieces(runs, threads, [&](int64_t piece, int64_t begin, int64_t end) {
    int64_t u = first[piece];
    for (int64_t i = begin; i < end; ++i) {
      groups.sources[i] = unsorted[keys[i] & index_mask];
      if (!starts_group(i)) continue;
      groups.rows[u] = row_of(i);
      groups.starts[u] = i;
      ++u;
    }
  });
  return groups;
}

}  // namespace

RowGroupsStorage group_by_row(const BagLayout& bags, int64_t table, bool sums_in_double, const ParallelFor& threads) {
  RowGroupsStorage groups;
  with_id_type(bags, [&](auto id) {
    using Id = decltype(id);
    groups = sums_in_double ? group<Id, double>(bags, table, threads) : group<Id, float>(bags, table, threads);
  });
  return groups;
}

int64_t row_at_cost(const RowGroups& groups, int64_t cost) {
  int64_t low = 0;
  int64_t high = groups.num_rows;
  while (low < high) {
    const int64_t middle = low + (high - low) / 2;
    if (cost_before(groups, middle) < cost) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

}  // namespace dmt::cpu
