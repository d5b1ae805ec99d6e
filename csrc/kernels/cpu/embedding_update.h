// Sums the gradients of the rows that a batch touches and applies the optimizer to them.
#pragma once

#include <cstdint>

#include "../random_rounding.h"
#include "../row_update.h"
#include "bag_layout.h"
#include "isa.h"

namespace dmt::cpu {

// Where an id's contribution to its row's gradient comes from: scale * grad[offset : offset + dim].
struct GradientSource {
  int64_t offset;  // elements from the start of the gradient
  double scale;    // holds a float for tables that sum in float
};

// All contributions to the rows of one table, one key each: the row in the high bits, the index of its source in the
// low ones. Ascending by row; the contributions to one row in the order (block, sample, feature, position).
struct Contributions {
  const uint64_t* keys;  // [count]
  int64_t count;
  int source_bits;
  const GradientSource* sources;  // null: the low bits are the offset, and all scales are 1

  int64_t row(int64_t i) const { return static_cast<int64_t>(keys[i] >> source_bits); }
  GradientSource source(int64_t i) const {
    const uint64_t low = keys[i] & ((uint64_t{1} << source_bits) - 1);
    return sources != nullptr ? sources[low] : GradientSource{static_cast<int64_t>(low), 1};
  }
};

// One table and what its update reads. Strides are in elements between rows; columns are contiguous.
struct TableUpdate {
  void* table;
  int64_t table_stride;
  int64_t dim;
  DType dtype;

  void* state;  // sgd: null; adagrad: like the table; rowwise_adagrad: one element a row. float, or double for f64
  int64_t state_stride;

  const void* grad;  // in the table's dtype, or in f32
  DType grad_dtype;

  Optimizer optimizer;
  double lr;
  double eps;
  double weight_decay;

  TableRounding rounding;  // of 16-bit weights
  uint64_t step;

  Contributions contributions;
};

// Contributions [begin, end) of one table: all those to one or more rows.
struct RowPiece {
  int64_t begin;
  int64_t end;
  const void* sum;  // the gradient of the piece's only row, or null: not summed yet
};

constexpr int64_t kRowsTogether = 8;

// `scratch` holds kRowsTogether * dim elements of up to 8 bytes.
struct EmbeddingUpdateKernels {
  // mean_squares: one per row of the piece, rowwise_adagrad's statistic of the whole rows; null: the table holds whole
  // rows.
  void (*update)(const TableUpdate& table, const RowPiece& piece, const double* mean_squares, void* scratch);

  // squares: one per row of the piece, the sum over the table's columns of (gradient + weight_decay * weight)^2
  void (*row_squares)(const TableUpdate& table, const RowPiece& piece, double* squares, void* scratch);

  // sum[first_column : last_column] = the gradient of the piece's only row in these columns
  void (*sum_columns)(const TableUpdate& table, const RowPiece& piece, int64_t first_column, int64_t last_column,
                      void* sum);
};

DMT_DECLARE_KERNELS(EmbeddingUpdateKernels, embedding_update_kernels)

}  // namespace dmt::cpu
