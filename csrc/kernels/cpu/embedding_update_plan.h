// Which rows of the tables a batch touches, the contributions to each in the one order in which they are summed, and
// how that work is shared out among threads.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "embedding_update.h"
#include "parallel_for.h"

namespace dmt::cpu {

// The contributions to every table's rows. Missing ids, and ids of rows held elsewhere, are left out.
struct SortedBatch {
  std::vector<Contributions> tables;  // borrow from:
  std::unique_ptr<uint64_t[]> keys;
  std::unique_ptr<GradientSource[]> sources;
};

SortedBatch sort_by_row(const BagLayout& bags, bool sums_in_double, const ParallelFor& threads);

// A part of one table's rows that one thread works on.
struct TablePiece {
  int64_t table;
  RowPiece rows;
};

// Cuts all rows into pieces of similar cost, tables in order and rows ascending. A row that would make a piece too
// expensive for one thread is a piece of its own, whose `sum` points to `dim` elements in `sums`: not summed yet.
std::vector<TablePiece> cut_rows(const BagLayout& bags, const SortedBatch& batch, std::vector<double>& sums,
                                 const ParallelFor& threads);

// The number of rows in a piece.
int64_t count_rows(const Contributions& contributions, const RowPiece& piece);

// Calls function(task, worker) for every task in [0, count), each worker (below num_threads) on what comes next. The
// order of the tasks must not matter.
template <class Function>
void for_tasks(int64_t count, const ParallelFor& threads, const Function& function) {
  std::atomic<int64_t> next = 0;
  const int64_t workers = count < threads.num_threads ? count : threads.num_threads;
  parallel_for(threads, 0, workers, 1, [&](int64_t first, int64_t last) {
    for (int64_t worker = first; worker < last; ++worker) {
      for (int64_t task = next++; task < count; task = next++) function(task, worker);
    }
  });
}

}  // namespace dmt::cpu
