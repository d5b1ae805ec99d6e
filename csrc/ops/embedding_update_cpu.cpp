#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <utility>

#include "../kernels/cpu/embedding_update_plan.h"
#include "update_arguments.h"

namespace dmt {
namespace {

// The batch's contributions to the rows of all tables, in pieces that are worked on in any order.
class RowPieces {
 public:
  RowPieces(const TableArguments& tables, const BagArguments& bags, const Tensor& grad, double weight_decay)
      : threads_(torch_threads()),
        batch_(cpu::sort_by_row(bags.layout(), tables.dtype() == ScalarType::Double, threads_)),
        pieces_(cpu::cut_rows(bags.layout(), batch_, sums_, threads_)) {
    const cpu::TableData data = tables.data();
    const void* const grad_data = grad.const_data_ptr();
    const cpu::DType grad_dtype = kernel_dtype(grad.scalar_type());
    tables_.reserve(batch_.tables.size());
    for (size_t i = 0; i < batch_.tables.size(); ++i) {
      tables_.push_back({
          .table = data.data[i],
          .table_stride = data.strides[i],
          .dim = tables.dims()[i],
          .dtype = data.dtype,
          .state = nullptr,
          .state_stride = 0,
          .grad = grad_data,
          .grad_dtype = grad_dtype,
          .optimizer = Optimizer::sgd,
          .lr = 0,
          .eps = 0,
          .weight_decay = weight_decay,
          .rounding = {},
          .step = 0,
          .contributions = batch_.tables[i],
      });
      widest_ = std::max(widest_, tables.dims()[i]);
    }
  }
  RowPieces(const RowPieces&) = delete;
  RowPieces& operator=(const RowPieces&) = delete;

  std::vector<cpu::TableUpdate>& tables() { return tables_; }

  const std::vector<cpu::TablePiece>& pieces() const { return pieces_; }

  // The touched rows of each piece.
  std::vector<int64_t> count_rows() const {
    std::vector<int64_t> counts(pieces_.size());
    cpu::for_tasks(static_cast<int64_t>(pieces_.size()), threads_, [&](int64_t i, int64_t) {
      counts[i] = cpu::count_rows(batch_.tables[pieces_[i].table], pieces_[i].rows);
    });
    return counts;
  }

  // Calls function(table, rows, index of the piece, scratch) for all pieces.
  template <class Function>
  void run(const Function& function) {
    sum_expensive_rows();
    const int64_t size = cpu::kRowsTogether * widest_;
    std::vector<double> scratch(static_cast<size_t>(threads_.num_threads * size));
    cpu::for_tasks(static_cast<int64_t>(pieces_.size()), threads_, [&](int64_t i, int64_t worker) {
      function(tables_[pieces_[i].table], pieces_[i].rows, i, scratch.data() + worker * size);
    });
  }

 private:
  // All threads together, each some of the columns.
  void sum_expensive_rows() {
    constexpr int64_t columns = 16;
    struct Task {
      const cpu::TablePiece* piece;
      int64_t first_column;
    };
    std::vector<Task> tasks;
    for (const cpu::TablePiece& piece : pieces_) {
      if (piece.rows.sum == nullptr) continue;
      for (int64_t c = 0; c < tables_[piece.table].dim; c += columns) tasks.push_back({&piece, c});
    }
    cpu::for_tasks(static_cast<int64_t>(tasks.size()), threads_, [&](int64_t i, int64_t) {
      const auto& [piece, first] = tasks[i];
      const cpu::TableUpdate& table = tables_[piece->table];
      cpu::embedding_update_kernels().sum_columns(table, piece->rows, first, std::min(first + columns, table.dim),
                                                  const_cast<void*>(piece->rows.sum));
    });
  }

  cpu::ParallelFor threads_;
  cpu::SortedBatch batch_;
  std::vector<double> sums_;
  std::vector<cpu::TablePiece> pieces_;
  std::vector<cpu::TableUpdate> tables_;
  int64_t widest_ = 1;
};

void embedding_update_(const std::vector<Tensor>& tables, const std::vector<Tensor>& states, const Tensor& grad,
                       const Tensor& ids, const Tensor& offsets, const OptionalTensor& per_sample_weights,
                       const OptionalInts& feature_tables, const OptionalInts& poolings, const OptionalInts& row_starts,
                       const OptionalInts& block_order, int64_t bounds, int64_t optimizer, double lr, double eps,
                       double weight_decay, const OptionalTensor& row_mean_squares, const OptionalInts& seeds,
                       const OptionalTensor& step, const OptionalInts& column_starts) {
  const char* op = "embedding_update_";
  const Bounds mode = check_bounds_mode(op, bounds);
  const Optimizer kind = check_optimizer(op, optimizer);
  const TableArguments rows(op, tables);
  check_states(op, kind, rows, states);
  const BagArguments bags(op, rows.rows(), rows.dims(), accumulator(rows.dtype()), ids, offsets, per_sample_weights,
                          feature_tables, poolings, row_starts, block_order);
  const Tensor bag_grad = update_grad(op, grad, bags, rows.dtype());
  const std::vector<TableRounding> roundings = table_roundings(op, rows, seeds, step, row_starts, column_starts);
  // Has to fit the rows of all tables before the first one is written.
  const OptionalTensor statistic = checked_row_mean_squares(op, kind, row_mean_squares);
  if (mode == Bounds::error) check_ids_in_bounds(op, bags.layout());

  RowPieces pieces(rows, bags, bag_grad, weight_decay);
  std::vector<const double*> mean_squares(pieces.pieces().size());
  if (statistic.has_value()) {
    const double* const first = static_cast<const double*>(statistic->const_data_ptr());
    const double* next = first;
    const std::vector<int64_t> counts = pieces.count_rows();
    for (size_t i = 0; i < counts.size(); ++i) mean_squares[i] = std::exchange(next, next + counts[i]);
    check(statistic->size(0) == next - first, op, "row_mean_squares has ", statistic->size(0),
          " entries, but the batch touches ", next - first, " rows");
  }
  if (pieces.pieces().empty()) return;

  for (size_t i = 0; i < tables.size(); ++i) {
    cpu::TableUpdate& table = pieces.tables()[i];
    table.table = tables[i].mutable_data_ptr();
    table.state = states.empty() ? nullptr : states[i].mutable_data_ptr();
    table.state_stride = states.empty() ? 0 : states[i].stride(0);
    table.optimizer = kind;
    table.lr = lr;
    table.eps = eps;
    table.rounding = roundings[i];
    table.step = step.has_value() ? *static_cast<const uint64_t*>(step->const_data_ptr()) : 0;
  }
  pieces.run([&](const cpu::TableUpdate& table, const cpu::RowPiece& piece, int64_t index, void* scratch) {
    cpu::embedding_update_kernels().update(table, piece, mean_squares[index], scratch);
  });
}

std::vector<Tensor> embedding_row_squares(const std::vector<Tensor>& tables, const Tensor& grad, const Tensor& ids,
                                          const Tensor& offsets, const OptionalTensor& per_sample_weights,
                                          const OptionalInts& feature_tables, const OptionalInts& poolings,
                                          const OptionalInts& row_starts, const OptionalInts& block_order,
                                          double weight_decay) {
  const char* op = "embedding_row_squares";
  const TableArguments rows(op, tables);
  const BagArguments bags(op, rows.rows(), rows.dims(), accumulator(rows.dtype()), ids, offsets, per_sample_weights,
                          feature_tables, poolings, row_starts, block_order);
  const Tensor bag_grad = update_grad(op, grad, bags, rows.dtype());

  RowPieces pieces(rows, bags, bag_grad, weight_decay);
  const std::vector<int64_t> counts = pieces.count_rows();
  std::vector<int64_t> touched(tables.size());
  for (size_t i = 0; i < counts.size(); ++i) touched[pieces.pieces()[i].table] += counts[i];
  std::vector<Tensor> squares;
  std::vector<double*> next;
  for (const int64_t count : touched) {
    squares.push_back(torch::stable::empty({count}, ScalarType::Double));
    next.push_back(static_cast<double*>(squares.back().mutable_data_ptr()));
  }
  std::vector<double*> sums;
  for (size_t i = 0; i < counts.size(); ++i) {
    double*& position = next[pieces.pieces()[i].table];
    sums.push_back(std::exchange(position, position + counts[i]));
  }
  pieces.run([&](const cpu::TableUpdate& table, const cpu::RowPiece& piece, int64_t index, void* scratch) {
    cpu::embedding_update_kernels().row_squares(table, piece, sums[index], scratch);
  });
  return squares;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(dmt, CPU, ops) {
  ops.impl("embedding_update_", TORCH_BOX(&embedding_update_));
  ops.impl("embedding_row_squares", TORCH_BOX(&embedding_row_squares));
}

}  // namespace dmt
