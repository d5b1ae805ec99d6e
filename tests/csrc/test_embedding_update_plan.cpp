#include <set>

#include "bags.h"
#include "kernels/cpu/embedding_update_plan.h"

namespace dmt::testing {
namespace {

void check_sorted(const Bags& bags, const Reading& reading, const cpu::SortedBatch& batch) {
  CHECK(batch.tables.size() == bags.tables.size());
  for (size_t t = 0; t < batch.tables.size(); ++t) {
    const cpu::Contributions& actual = batch.tables[t];
    const std::vector<Contribution> expected = reading.of_table(t);
    CHECK(actual.count == static_cast<int64_t>(expected.size()));
    for (int64_t i = 0; i < actual.count; ++i) {
      const Contribution& from = expected[i];
      CHECK(actual.row(i) == from.row);
      CHECK(actual.source(i).offset == from.out_row * bags.layout.width + from.column);
      CHECK(is_near(actual.source(i).scale, from.scale(), sums_of(bags.dtype()), 0));
    }
  }
}

// Pieces hold whole rows, all of them, in order; those with a sum hold one row and have a place in `sums` of their own.
void check_pieces(const Bags& bags, const cpu::SortedBatch& batch, const std::vector<cpu::TablePiece>& pieces,
                  const std::vector<double>& sums) {
  std::vector<int64_t> ends(batch.tables.size());
  const double* free_sums = sums.data();
  int64_t last_table = 0;
  for (const auto& [table, piece] : pieces) {
    CHECK(last_table <= table);
    last_table = table;
    const cpu::Contributions& all = batch.tables[table];
    CHECK(piece.begin == ends[table] && piece.begin < piece.end && piece.end <= all.count);
    CHECK(piece.begin == 0 || all.row(piece.begin - 1) != all.row(piece.begin));
    ends[table] = piece.end;
    std::set<int64_t> rows;
    for (int64_t i = piece.begin; i < piece.end; ++i) rows.insert(all.row(i));
    CHECK(cpu::count_rows(all, piece) == static_cast<int64_t>(rows.size()));
    if (piece.sum == nullptr) continue;
    const double* const sum = static_cast<const double*>(piece.sum);
    CHECK(rows.size() == 1 && sum >= free_sums);
    free_sums = sum + bags.layout.table_dims[table];
    CHECK(free_sums <= sums.data() + sums.size());
  }
  for (size_t t = 0; t < ends.size(); ++t) CHECK(ends[t] == batch.tables[t].count);
}

}  // namespace

void test_embedding_update_plan(int64_t number) {
  Random random(number);
  const BagOptions options = {.dtype = static_cast<DType>(number % 4),
                              .wide_ids = number / 4 % 2 == 0,
                              .is_large = random.one_in(3),
                              .has_tables = false};
  const Bags bags = random_bags(random, options);
  const Reading reading = read(bags);
  for (int64_t count = 1; count <= kMostThreads; ++count) {
    running_on = " (threads: " + std::to_string(count) + ")";
    const cpu::SortedBatch batch = cpu::sort_by_row(bags.layout, options.dtype == DType::f64, threads(count));
    check_sorted(bags, reading, batch);
    std::vector<double> sums;
    const std::vector<cpu::TablePiece> pieces = cpu::cut_rows(bags.layout, batch, sums, threads(count));
    check_pieces(bags, batch, pieces, sums);
    running_on.clear();
  }
}

}  // namespace dmt::testing
