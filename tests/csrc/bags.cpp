#include "bags.h"

#include <algorithm>
#include <limits>

namespace dmt::testing {
namespace {

constexpr int64_t kFarAway = int64_t{1} << 40;

int64_t random_dim(Random& random, bool is_large) {
  if (random.one_in(12)) return 0;
  if (random.one_in(4)) return random.pick<int64_t>({64, 130, is_large ? 65 : 1030});
  return random.between(1, 40);
}

// Ids of one case: of all rows or mostly of a few, with or without what is no row here.
struct IdSource {
  bool wide_ids;
  bool is_skewed;
  bool is_wild;

  int64_t next(Random& random, int64_t start, int64_t rows) const {
    const int64_t lowest = wide_ids ? std::numeric_limits<int64_t>::min() : std::numeric_limits<int32_t>::min();
    const int64_t highest = wide_ids ? std::numeric_limits<int64_t>::max() : std::numeric_limits<int32_t>::max();
    // Other shards' rows, rows behind the table, and nonsense.
    if (is_wild && random.one_in(5)) return random.pick<int64_t>({-1, lowest, highest, start - 1, start + rows});
    if (rows == 0) return -1;
    const int64_t few = std::min<int64_t>(rows, 2);
    return std::min(start + random.below(is_skewed && !random.one_in(8) ? few : rows), highest);
  }
};

// Up to `longest` ids a bag, or fewer, and perhaps one long bag.
std::vector<int64_t> random_lengths(Random& random, int64_t count, int64_t longest) {
  const int64_t most = random.pick<int64_t>({0, 1, longest, longest});
  std::vector<int64_t> lengths;
  for (int64_t i = 0; i < count; ++i) lengths.push_back(random.between(0, most));
  if (count > 0 && random.one_in(4)) lengths[random.below(count)] = random.between(100, 1500);
  return lengths;
}

}  // namespace

Bags random_bags(Random& random, const BagOptions& options) {
  Bags bags;
  const int64_t num_tables = random.between(1, 3);
  const bool is_shard = random.one_in(3);
  std::vector<int64_t> rows, dims, starts, strides;
  std::vector<void*> data;
  for (int64_t i = 0; i < num_tables; ++i) {
    dims.push_back(random_dim(random, options.is_large));
    rows.push_back(random.pick<int64_t>(options.has_tables ? std::vector<int64_t>{0, 1, 2, 7, 40, 200}
                                                           : std::vector<int64_t>{1, 300, 1 << 20, kFarAway}));
    starts.push_back(is_shard ? random.pick<int64_t>({0, 5, options.wide_ids ? kFarAway : 5}) : 0);
    Matrix table = random_matrix(random, options.dtype, options.has_tables ? rows.back() : 0, dims.back(),
                                 [&](Values& memory, int64_t index) { memory.randomize(index, random); });
    strides.push_back(table.stride);
    data.push_back(table.data());
    bags.tables.push_back(std::move(table));
  }

  const int64_t K = random.between(1, 3);
  const int64_t F = random.one_in(12) ? 0 : random.between(1, 4);
  const int64_t B =
      F == 0 ? 0
             : random.pick<int64_t>(options.is_large ? std::vector<int64_t>{40, options.has_tables ? 300 : 1000}
                                                     : std::vector<int64_t>{0, 1, 2, 5, 19});
  std::vector<int64_t> feature_table, feature_column;
  int64_t width = 0;
  bags.feature_is_mean = Buffer<bool>(F);
  for (int64_t f = 0; f < F; ++f) {
    feature_table.push_back(random.below(num_tables));
    feature_column.push_back(width);
    bags.feature_is_mean[f] = random.one_in(2);
    width += dims[feature_table.back()];
  }

  // Some ids may lie before the first bag and behind the last one.
  std::vector<int64_t> offsets = {random.between(0, 2)};
  for (const int64_t length : random_lengths(random, K * F * B, options.has_tables ? 6 : 40)) {
    offsets.push_back(offsets.back() + length);
  }
  const int64_t num_ids = offsets.back() + random.between(0, 2);
  bags.ids = Buffer<unsigned char>(num_ids * (options.wide_ids ? 8 : 4));
  const IdSource source = {options.wide_ids, random.one_in(3), random.one_in(2)};
  for (int64_t bag = 0; bag < K * F * B; ++bag) {
    const int64_t table = feature_table[bag / B % F];
    for (int64_t i = offsets[bag]; i < offsets[bag + 1]; ++i) {
      const int64_t id = source.next(random, starts[table], rows[table]);
      if (options.wide_ids) {
        std::memcpy(bags.ids.data() + i * 8, &id, 8);
      } else {
        const int32_t narrow = static_cast<int32_t>(id);
        std::memcpy(bags.ids.data() + i * 4, &narrow, 4);
      }
    }
  }
  if (random.one_in(2)) bags.weights = std::move(Values(sums_of(options.dtype), num_ids).randomize(random));

  bags.offsets = Buffer(offsets);
  bags.block_order = Buffer(random.permutation(K));
  bags.feature_table = Buffer(feature_table);
  bags.feature_column = Buffer(feature_column);
  bags.table_rows = Buffer(rows);
  bags.table_dims = Buffer(dims);
  bags.table_data = Buffer(data);
  bags.table_strides = Buffer(strides);
  if (is_shard) bags.row_starts = Buffer(starts);
  bags.layout = {
      .ids = bags.ids.data(),
      .wide_ids = options.wide_ids,
      .num_ids = num_ids,
      .offsets = bags.offsets.data(),
      .num_blocks = K,
      .num_features = F,
      .num_samples = B,
      .block_order = bags.block_order.data(),
      .feature_table = bags.feature_table.data(),
      .feature_column = bags.feature_column.data(),
      .feature_is_mean = bags.feature_is_mean.data(),
      .width = width,
      .num_tables = num_tables,
      .table_rows = bags.table_rows.data(),
      .table_dims = bags.table_dims.data(),
      .row_starts = bags.row_starts.data(),
      .weights = bags.weights.data(),
  };
  bags.data = {bags.table_data.data(), bags.table_strides.data(), options.dtype};
  return bags;
}

int64_t Bags::id(int64_t position) const {
  if (layout.wide_ids) return static_cast<const int64_t*>(layout.ids)[position];
  return static_cast<const int32_t*>(layout.ids)[position];
}

Reading read(const Bags& bags) {
  const cpu::BagLayout& all = bags.layout;
  Reading reading;
  for (int64_t k = 0; k < all.num_blocks; ++k) {
    for (int64_t b = 0; b < all.num_samples; ++b) {
      for (int64_t f = 0; f < all.num_features; ++f) {
        const int64_t bag = (k * all.num_features + f) * all.num_samples + b;
        const int64_t table = all.feature_table[f];
        const int64_t start = all.row_starts != nullptr ? all.row_starts[table] : 0;
        const int64_t first = all.offsets[bag];
        const size_t first_contribution = reading.contributions.size();
        int64_t counted = all.offsets[bag + 1] - first;
        for (int64_t i = first; i < all.offsets[bag + 1]; ++i) {
          const int64_t id = bags.id(i);
          if (id >= start && id - start < all.table_rows[table]) {
            reading.contributions.push_back({table, id - start, all.block_order[k] * all.num_samples + b,
                                             all.feature_column[f], i, bags.weights.size() > 0 ? bags.weights[i] : 1,
                                             1});
          } else if (id < 0 || all.row_starts == nullptr) {
            reading.missing.push_back({bag, i - first});
            --counted;
          }
        }
        if (!all.feature_is_mean[f]) continue;
        for (size_t i = first_contribution; i < reading.contributions.size(); ++i) {
          reading.contributions[i].divisor = static_cast<double>(counted);
        }
      }
    }
  }
  std::stable_sort(reading.missing.begin(), reading.missing.end(),
                   [](const MissingId& a, const MissingId& b) { return a.bag < b.bag; });
  return reading;
}

std::vector<Contribution> Reading::of_table(int64_t table) const {
  std::vector<Contribution> found;
  for (const Contribution& from : contributions) {
    if (from.table == table) found.push_back(from);
  }
  std::stable_sort(found.begin(), found.end(), [](const auto& a, const auto& b) { return a.row < b.row; });
  return found;
}

Sums pool(const Bags& bags, const Reading& reading) {
  Sums pooled(bags.out_size());
  for (const Contribution& from : reading.contributions) {
    const Matrix& table = bags.tables[from.table];
    for (int64_t c = 0; c < table.dim; ++c) {
      pooled.add(from.out_row * bags.layout.width + from.column + c, from.scale() * table(from.row, c));
    }
  }
  return pooled;
}

}  // namespace dmt::testing
