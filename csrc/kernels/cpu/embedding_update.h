// Sums the gradients of the rows that a batch touches and applies the optimizer to them.
#pragma once

#include <cstdint>

#include "../row_update.h"
#include "bag_layout.h"
#include "isa.h"

namespace dmt::cpu {

// One id's contribution to its row's gradient: scale * grad[offset : offset + dim].
struct GradientSource {
  int64_t offset;  // elements from the start of the gradient
  double scale;    // holds a float for tables that sum in float
};

// The touched rows of one table and where their gradients come from. U = touched rows, n = contributions.
struct RowGroups {
  int64_t num_rows;               // U
  const int64_t* rows;            // [U] ascending
  const int64_t* starts;          // [U + 1] contributions of rows[u] are sources[starts[u] : starts[u + 1]]
  const GradientSource* sources;  // [n] in the order (block, sample, feature, position) within a row
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

  const double*
      row_mean_squares;  // [U] rowwise_adagrad's statistic of the whole rows, or null: the table holds whole rows
};

// Both work on rows[begin : end] with `scratch` for the sum of one row: `dim` elements of up to 8 bytes.
struct EmbeddingUpdateKernels {
  void (*update)(const TableUpdate& table, const RowGroups& groups, int64_t begin, int64_t end, void* scratch);

  // squares[u] = sum over the table's columns of (gradient + weight_decay * weight)^2
  void (*row_squares)(const TableUpdate& table, const RowGroups& groups, int64_t begin, int64_t end, void* scratch,
                      double* squares);
};

DMT_DECLARE_KERNELS(EmbeddingUpdateKernels, embedding_update_kernels)

}  // namespace dmt::cpu
