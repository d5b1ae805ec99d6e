// Random bags of ids over several tables, and a plain reading of what they mean (kernels/cpu/bag_layout.h).
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/cpu/bag_layout.h"
#include "testing.h"
#include "values.h"

namespace dmt::testing {

// Numbers [rows, dim]. Rows may lie apart, the numbers between them are NaN and belong to nobody.
struct Matrix {
  int64_t rows;
  int64_t dim;
  int64_t stride;
  int64_t first;  // where row 0 starts in:
  Values memory;

  void* data() const { return memory.at(first); }
  int64_t index(int64_t row, int64_t column) const { return first + row * stride + column; }
  double operator()(int64_t row, int64_t column) const { return memory[index(row, column)]; }
  Matrix copy() const { return {rows, dim, stride, first, memory.copy()}; }
};

// Calls set(memory, index) for all its numbers.
template <class Set>
Matrix random_matrix(Random& random, DType dtype, int64_t rows, int64_t dim, const Set& set) {
  if (rows == 0 || dim == 0) return {rows, dim, dim > 0 ? dim : 1, 0, Values(dtype)};  // as torch has it
  const int64_t gap = random.one_in(3) ? random.between(1, 5) : 0;
  const int64_t first = random.between(0, gap);
  Matrix matrix = {rows, dim, dim + gap, first, Values(dtype, first + (rows - 1) * (dim + gap) + dim)};
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < dim; ++c) set(matrix.memory, matrix.index(r, c));
  }
  return matrix;
}

struct BagOptions {
  DType dtype;
  bool wide_ids;
  bool is_large = false;   // many ids, so that all threads get some
  bool has_tables = true;  // without, they may have more rows than any memory holds
};

// Owns all that a BagLayout points to.
struct Bags {
  std::vector<Matrix> tables;
  Buffer<unsigned char> ids;
  Buffer<int64_t> offsets;
  Buffer<int64_t> block_order;
  Buffer<int64_t> feature_table;
  Buffer<int64_t> feature_column;
  Buffer<bool> feature_is_mean;
  Buffer<int64_t> table_rows;
  Buffer<int64_t> table_dims;
  Buffer<int64_t> row_starts;
  Values weights;
  Buffer<void*> table_data;
  Buffer<int64_t> table_strides;
  cpu::BagLayout layout;
  cpu::TableData data;

  DType dtype() const { return data.dtype; }
  int64_t num_bags() const { return layout.num_blocks * layout.num_features * layout.num_samples; }
  int64_t out_rows() const { return layout.num_blocks * layout.num_samples; }  // K*B
  int64_t out_size() const { return out_rows() * layout.width; }
  int64_t id(int64_t position) const;
};

Bags random_bags(Random& random, const BagOptions& options);

// An id that names a row that is here: its row of table `table` is worth weight / divisor in row `out_row` of the
// pooled matrix, from column `column` on.
struct Contribution {
  int64_t table;
  int64_t row;
  int64_t out_row;
  int64_t column;
  int64_t position;  // of the id
  double weight;
  double divisor;

  double scale() const { return weight / divisor; }
};

struct MissingId {
  int64_t bag;
  int64_t position;  // in its bag
};

struct Reading {
  std::vector<Contribution> contributions;  // in the order (block, sample, feature, position)
  std::vector<MissingId> missing;           // in the order of the bags

  // The contributions to a table, by row.
  std::vector<Contribution> of_table(int64_t table) const;
};

Reading read(const Bags& bags);

// [K*B, D]
Sums pool(const Bags& bags, const Reading& reading);

}  // namespace dmt::testing
