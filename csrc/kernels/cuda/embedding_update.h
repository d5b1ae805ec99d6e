// The optimizer step of the rows that a batch touched.
//
// 1. Every id becomes a key: its row among those of all tables, and where its gradient lies. 2. The keys are sorted,
// all together or those of each feature. 3. The gradients of a row that has many are summed in runs of kRun, each by a
// group of lanes, except the last run. 4. Groups walk stretches of the sorted keys, sum each row that begins there, and
// apply the optimizer.
//
// Where rows have numbers, in the order of the keys (their statistic comes from outside, or goes there), the rows that
// begin in each stretch are counted between 2. and 3.
//
// A row's gradient is the sum of its contributions one by one in the order (block, sample, feature, position); if it
// has more than kRun of them: of the sums of all whole runs but the last, in order, and of what is left, one by one. So
// it depends on nothing but these contributions.
#pragma once

#include <vector>

#include "../random_rounding.h"
#include "../row_update.h"
#include "bag_layout.h"
#include "radix_sort.h"

namespace dmt::cuda {

constexpr int64_t kRun = 128;

// A table and its optimizer state. Strides in elements.
struct alignas(16) UpdatedTable {
  void* data;
  float* state;  // or null
  int64_t stride;
  int64_t state_stride;
  int64_t first_key;  // how many rows the tables before this one have
  int64_t end_key;    // and with this one
  int64_t dim;
  uint64_t seed;  // and the place in the whole table: as in TableRounding
  int64_t first_row;
  int64_t first_column;
};

// How the bits of a key are used: a row's number, sample (of all blocks), feature. Rows are numbered table by table,
// and all bits of the number are `local`; or the number is the feature and below it, `local` bits wide, that of the row
// in its table. A missing id's has all local bits set.
struct KeyBits {
  int sample;
  int feature;
  int local;
  int begin_bit;  // they are sorted by the bits from here on
  int end_bit;
};

struct Gradient {
  const void* data;  // [K*B, D]
  bool is_float;     // or in the tables' dtype
};

struct UpdatePlan {
  KeyBits bits;
  bool is_by_feature;  // rows are numbered, and keys sorted, feature by feature
  bool has_scales;
  int64_t num_rows;
  int64_t parts;        // of the sorted keys, whose stretches take turns
  int64_t widest;       // dim
  int64_t grad_size;    // bytes of an element
  bool is_packed;       // all rows are whole packs
  bool is_narrow;       // and none is wider than all lanes' packs
  int lanes;            // of a group
  SortBuffers buffers;  // places in the workspace; keys[0] right behind `accepted`
  void* scratch;
  int64_t scratch_bytes;
  float* partials;
  int64_t* first_ranks;  // of the rows that begin in each stretch of keys, and behind it the number of all
  int* accepted;         // zero: an id is out of range, and nothing is to be written
};

// The statistic of row-wise Adagrad over whole rows, one for every row that the batch touches, tables in order and rows
// ascending.
struct RowStatistic {
  const double* mean_squares;  // given [count], or null: of the columns that are here
  int64_t count;               // rows beyond get NaN
  double* squares;             // wanted [num_ids], or null: then nothing is updated
  int64_t* table_ends;         // and wanted: for each table, the rows of it and of those before
};

// Sizes from shapes alone. `is_ranked`: there is a statistic. `workspace_bytes` becomes what run_update needs; its
// address goes into place_workspace.
UpdatePlan plan_update(const Bags& bags, const std::vector<Feature>& features, const std::vector<UpdatedTable>& tables,
                       DType dtype, const Gradient& grad, bool is_ranked, int64_t& workspace_bytes);
void place_workspace(UpdatePlan& plan, void* workspace);

// `tables` and `step`: on the device. `step`: 16-bit weights are rounded at random; null: to nearest.
void run_update(const Bags& bags, const UpdatePlan& plan, const UpdatedTable* tables, int64_t num_tables, DType dtype,
                const Gradient& grad, Optimizer optimizer, const OptimizerSettings<float>& settings,
                const int64_t* step, const RowStatistic& statistic, cudaStream_t stream);

}  // namespace dmt::cuda
