// Which rows of a table a batch touches, and the contributions to each in the one order in which they are summed.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "embedding_update.h"
#include "parallel_for.h"

namespace dmt::cpu {

// Owns the arrays of a RowGroups.
struct RowGroupsStorage {
  std::vector<int64_t> rows;
  std::vector<int64_t> starts;
  std::vector<GradientSource> sources;

  RowGroups view() const { return {static_cast<int64_t>(rows.size()), rows.data(), starts.data(), sources.data()}; }
};

// Groups the ids of all features of `table` by row. Missing ids, and ids of rows held elsewhere, are left out.
RowGroupsStorage group_by_row(const BagLayout& bags, int64_t table, bool sums_in_double, const ParallelFor& threads);

// A touched row costs its contributions plus a constant for the optimizer: the cost of the rows before rows[u], and the
// first row before which at least `cost` lies.
inline int64_t cost_before(const RowGroups& groups, int64_t u) { return groups.starts[u] + u; }
int64_t row_at_cost(const RowGroups& groups, int64_t cost);

// Calls function(begin, end, scratch) on pieces of equal cost that cover the touched rows, each with `scratch_bytes` of
// its own.
template <class Function>
void for_row_pieces(const RowGroups& groups, const ParallelFor& threads, int64_t scratch_bytes,
                    const Function& function) {
  const int64_t cost = cost_before(groups, groups.num_rows);
  const int64_t pieces = std::clamp<int64_t>(cost / 64, 1, 4 * threads.num_threads);
  std::vector<double> scratch(static_cast<size_t>(pieces * ((scratch_bytes + 7) / 8)));
  parallel_for(threads, 0, pieces, 1, [&](int64_t first, int64_t last) {
    for (int64_t piece = first; piece < last; ++piece) {
      function(row_at_cost(groups, cost * piece / pieces), row_at_cost(groups, cost * (piece + 1) / pieces),
               scratch.data() + piece * ((scratch_bytes + 7) / 8));
    }
  });
}

}  // namespace dmt::cpu
