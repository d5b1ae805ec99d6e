// The numbers of rows among those that a batch touches: how many begin in each stretch of the sorted keys, added up.
#pragma once

#include "update_group.h"

namespace dmt::cuda {
namespace {

// The first of [low, high) whose row is at least `row`, or high.
DMT_DEVICE int64_t find_row(const Sorted& sorted, int64_t row, int64_t low, int64_t high) {
  while (low < high) {
    const int64_t middle = low + (high - low) / 2;
    if (row_at(sorted, middle) < row) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

// Whether a row begins at key i.
DMT_DEVICE bool is_first(const Sorted& sorted, int64_t i) {
  const int64_t row = row_at(sorted, i);
  return is_row(sorted.bits, row) && (i == 0 || row_at(sorted, i - 1) != row);
}

// counts[stretch] = the rows that begin there.
__global__ void __launch_bounds__(kThreads) count_rows(const Sorted sorted, int64_t* counts) {
  const int64_t stretch = blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x;
  const int64_t begin = stretch * kStretch;
  if (begin >= sorted.count) return;
  int64_t count = 0;
  for (int64_t i = begin; i < begin + kStretch && i < sorted.count; ++i) count += is_first(sorted, i);
  counts[stretch] = count;
}

// One block: counts become the sums of those before, and behind them comes the sum of all.
__global__ void __launch_bounds__(kThreads) add_counts(int64_t* counts, int64_t size) {
  __shared__ int64_t sums[kThreads];
  const int thread = static_cast<int>(threadIdx.x);
  const int64_t each = ceil_div<int64_t>(size, kThreads);
  const int64_t begin = thread * each < size ? thread * each : size;
  const int64_t end = begin + each < size ? begin + each : size;
  int64_t sum = 0;
  for (int64_t i = begin; i < end; ++i) sum += counts[i];
  sums[thread] = sum;
  for (int distance = 1; distance < kThreads; distance *= 2) {
    __syncthreads();
    const int64_t before = thread >= distance ? sums[thread - distance] : 0;
    __syncthreads();
    sums[thread] += before;
  }
  int64_t next = sums[thread] - sum;
  for (int64_t i = begin; i < end; ++i) {
    const int64_t count = counts[i];
    counts[i] = next;
    next += count;
  }
  if (thread == kThreads - 1) counts[size] = next;
}

__global__ void __launch_bounds__(kThreads) end_tables(const Work work) {
  const int64_t table = blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x;
  if (table >= work.num_tables) return;
  const int64_t end = find_row(work.sorted, work.tables[table].end_key, 0, work.sorted.count);
  int64_t rank = work.first_ranks[end / kStretch];
  for (int64_t i = end / kStretch * kStretch; i < end; ++i) rank += is_first(work.sorted, i);
  work.statistic.table_ends[table] = rank;
}

}  // namespace
}  // namespace dmt::cuda
