// From torch arguments to the raw layouts of kernels/cpu/bag_layout.h: checks everything, owns what the layouts borrow.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "../kernels/cpu/bag_layout.h"
#include "../kernels/cpu/parallel_for.h"
#include "checks.h"

namespace dmt {

using OptionalTensor = std::optional<Tensor>;
using OptionalInts = std::optional<std::vector<int64_t>>;

enum class Bounds { error, warn, none };

// What the library of each device says for itself: its device, and whether offsets ascend within [0, ids] (where the
// host cannot look, kernels see to it).
extern const char* const kHere;
bool is_here(const Tensor& tensor);
void check_offsets(const char* op, const int64_t* offsets, int64_t bags, int64_t ids);

template <class Name>
void check_here(const char* op, const Name& name, const Tensor& tensor) {
  check(is_here(tensor), op, name, " must be a ", kHere, " tensor, as the other arguments are");
}

// torch's own threads.
cpu::ParallelFor torch_threads();

cpu::DType kernel_dtype(ScalarType dtype);

// Contiguous and of `dtype`; `tensor` itself when it already is.
Tensor contiguous_as(const Tensor& tensor, ScalarType dtype);

// Tables [E_i, D_i] of one dtype, columns adjacent (rows may be further apart: a column slice of a table is a table).
class TableArguments {
 public:
  TableArguments(const char* op, const std::vector<Tensor>& tables);
  TableArguments(const TableArguments&) = delete;
  TableArguments& operator=(const TableArguments&) = delete;

  ScalarType dtype() const { return dtype_; }
  const std::vector<int64_t>& rows() const { return rows_; }
  const std::vector<int64_t>& dims() const { return dims_; }
  cpu::TableData data() const { return {data_.data(), strides_.data(), kernel_dtype(dtype_)}; }

 private:
  ScalarType dtype_ = ScalarType::Float;
  std::vector<int64_t> rows_;
  std::vector<int64_t> dims_;
  std::vector<int64_t> strides_;
  std::vector<void*> data_;
};

// The bags. Offsets are checked here, ids are not (kernels skip what is out of range; see check_bounds).
class BagArguments {
 public:
  // table_rows and table_dims: one each per table. `accumulator`: float64 or float32, what weights are converted to.
  BagArguments(const char* op, const std::vector<int64_t>& table_rows, const std::vector<int64_t>& table_dims,
               ScalarType accumulator, const Tensor& ids, const Tensor& offsets, const OptionalTensor& weights,
               const OptionalInts& feature_tables, const OptionalInts& poolings, const OptionalInts& row_starts,
               const OptionalInts& block_order);
  BagArguments(const BagArguments&) = delete;
  BagArguments& operator=(const BagArguments&) = delete;

  const cpu::BagLayout& layout() const { return layout_; }
  int64_t out_rows() const { return layout_.num_blocks * layout_.num_samples; }  // K*B
  int64_t width() const { return layout_.width; }                                // D

 private:
  int64_t read_features(const char* op, const OptionalInts& feature_tables, const OptionalInts& poolings);  // the width
  void read_row_starts(const char* op, const std::vector<int64_t>& row_starts);

  Tensor ids_;
  Tensor offsets_;
  OptionalTensor weights_;
  std::vector<int64_t> table_rows_;
  std::vector<int64_t> table_dims_;
  std::vector<int64_t> row_starts_;
  std::vector<int64_t> block_order_;
  std::vector<int64_t> feature_table_;
  std::vector<int64_t> feature_column_;
  std::unique_ptr<bool[]> feature_is_mean_;
  cpu::BagLayout layout_;
};

// A gradient of the pooled output has its shape.
void check_pooled_shape(const char* op, const Tensor& grad, const BagArguments& bags);

// It as kernels read it: contiguous, of `type`.
Tensor pooled_grad(const char* op, const Tensor& grad, const BagArguments& bags, ScalarType type);

Bounds check_bounds_mode(const char* op, int64_t bounds);

// Raises, naming the first id that mode `error` refuses: any missing id (see bag_layout.h). Passes over all ids; a
// lookup that has counted the missing ids on its way calls it only when there are any.
void check_ids_in_bounds(const char* op, const cpu::BagLayout& bags);

}  // namespace dmt
