#include "bags.h"
#include "kernels/cpu/embedding_update_plan.h"

namespace dmt::testing {
namespace {

using cpu::EmbeddingUpdateKernels;
using cpu::ParallelFor;

// ---- What an update should do ---------------------------------------------------------------------------------------

// A result, and how far off it may be. An error of 0: not at all, the number was not touched.
struct Number {
  double value;
  double error = 0;

  bool is(double actual, DType dtype) const {
    if (std::isnan(value)) return std::isnan(actual);  // of nobody
    return error == 0 ? actual == value : is_near(actual, value, dtype, error);
  }
};

bool are(const std::vector<Number>& expected, const Values& actual) {
  for (int64_t i = 0; i < actual.size(); ++i) {
    if (!expected[i].is(actual[i], actual.dtype())) return false;
  }
  return true;
}

std::vector<Number> untouched(const Values& values) {
  std::vector<Number> numbers;
  for (int64_t i = 0; i < values.size(); ++i) numbers.push_back({values[i]});
  return numbers;
}

struct Expected {
  std::vector<Number> weights;  // of the matrix's memory
  std::vector<Number> states;
  std::vector<Number> squares;  // of the touched rows
};

// rowwise_adagrad's statistic, where it comes from outside. Any number will do.
double mean_square(int64_t row) { return 0.25 + 0.125 * static_cast<double>(row % 5); }

void update_row(const Matrix& table, const Matrix& state, int64_t row, const Sums& gradient,
                const cpu::TableUpdate& settings, bool has_mean_squares, Expected& expected) {
  const DType sums = sums_of(table.memory.dtype());
  const auto decayed = [&](int64_t c) { return gradient.value[c] + settings.weight_decay * table(row, c); };
  const auto magnitude = [&](int64_t c) { return gradient.magnitude[c] + std::abs(decayed(c)); };
  Sums squares(1);
  double spread = 0;
  for (int64_t c = 0; c < table.dim; ++c) {
    squares.add(0, decayed(c) * decayed(c));
    spread += magnitude(c) * magnitude(c);
  }
  expected.squares.push_back({squares.value[0], sum_error(sums, spread)});

  const double dim = static_cast<double>(table.dim);  // 0: the mean of nothing is NaN
  const double added = has_mean_squares ? mean_square(row) : squares.value[0] / dim;
  const double added_spread = has_mean_squares ? 0 : spread / dim;
  if (settings.optimizer == Optimizer::rowwise_adagrad) {
    expected.states[state.index(row, 0)] = {state(row, 0) + added, sum_error(sums, state(row, 0) + added_spread)};
  }
  for (int64_t c = 0; c < table.dim; ++c) {
    double step = settings.lr;
    double step_spread = 0;  // of the squares that the step depends on
    if (settings.optimizer == Optimizer::rowwise_adagrad) {
      step /= std::sqrt(state(row, 0) + added) + settings.eps;
      step_spread = added_spread;
    } else if (settings.optimizer == Optimizer::adagrad) {
      const double sum = state(row, c) + decayed(c) * decayed(c);
      step /= std::sqrt(sum) + settings.eps;
      step_spread = magnitude(c) * magnitude(c);
      expected.states[state.index(row, c)] = {sum, sum_error(sums, state(row, c) + step_spread)};
    }
    const double terms = std::abs(table(row, c)) + step * magnitude(c) * (1 + step_spread);
    expected.weights[table.index(row, c)] = {table(row, c) - step * decayed(c), sum_error(sums, terms)};
  }
}

Expected update(const Matrix& table, const Matrix& state, const std::vector<Contribution>& contributions,
                const Values& grad, int64_t width, const cpu::TableUpdate& settings, bool has_mean_squares) {
  Expected expected = {untouched(table.memory), untouched(state.memory), {}};
  for (size_t i = 0; i < contributions.size();) {
    const int64_t row = contributions[i].row;
    Sums gradient(table.dim);
    for (; i < contributions.size() && contributions[i].row == row; ++i) {
      const Contribution& from = contributions[i];
      for (int64_t c = 0; c < table.dim; ++c) {
        gradient.add(c, from.scale() * grad[from.out_row * width + from.column + c]);
      }
    }
    update_row(table, state, row, gradient, settings, has_mean_squares, expected);
  }
  return expected;
}

// ---- What it does ---------------------------------------------------------------------------------------------------

// The batch in pieces, as the adapter works on it.
class Batch {
 public:
  Batch(const EmbeddingUpdateKernels& kernels, const Bags& bags, std::vector<cpu::TableUpdate> tables,
        const ParallelFor& threads)
      : kernels_(kernels),
        threads_(threads),
        tables_(std::move(tables)),
        sorted_(cpu::sort_by_row(bags.layout, bags.dtype() == DType::f64, threads)),
        pieces_(cpu::cut_rows(bags.layout, sorted_, sums_, threads)) {
    for (size_t t = 0; t < tables_.size(); ++t) tables_[t].contributions = sorted_.tables[t];
    for (const auto& [index, piece] : pieces_) {
      if (piece.sum == nullptr) continue;
      const cpu::TableUpdate& table = tables_[index];
      const int64_t cuts[] = {0, table.dim / 3, table.dim};
      cpu::for_tasks(2, threads_, [&, &rows = piece](int64_t i, int64_t) {
        kernels_.sum_columns(table, rows, cuts[i], cuts[i + 1], const_cast<void*>(rows.sum));
      });
    }
  }

  // By table.
  std::vector<std::vector<double>> squares() {
    std::vector<Buffer<double>> squares(pieces_.size());
    run([&](const cpu::TableUpdate& table, const cpu::RowPiece& piece, int64_t i, void* scratch) {
      squares[i] = Buffer<double>(cpu::count_rows(table.contributions, piece));
      kernels_.row_squares(table, piece, squares[i].data(), scratch);
    });
    std::vector<std::vector<double>> lists(tables_.size());
    for (size_t i = 0; i < pieces_.size(); ++i) {
      std::vector<double>& list = lists[pieces_[i].table];
      list.insert(list.end(), squares[i].data(), squares[i].data() + squares[i].size());
    }
    return lists;
  }

  void update(bool has_mean_squares) {
    run([&](const cpu::TableUpdate& table, const cpu::RowPiece& piece, int64_t, void* scratch) {
      if (!has_mean_squares) return kernels_.update(table, piece, nullptr, scratch);
      std::vector<double> list;
      for (int64_t i = piece.begin; i < piece.end; ++i) {
        const int64_t row = table.contributions.row(i);
        if (i == piece.begin || row != table.contributions.row(i - 1)) list.push_back(mean_square(row));
      }
      kernels_.update(table, piece, Buffer(list).data(), scratch);
    });
  }

 private:
  template <class Function>
  void run(const Function& function) {
    cpu::for_tasks(static_cast<int64_t>(pieces_.size()), threads_, [&](int64_t i, int64_t) {
      const cpu::TableUpdate& table = tables_[pieces_[i].table];
      function(table, pieces_[i].rows, i, Buffer<double>(cpu::kRowsTogether * table.dim).data());
    });
  }

  const EmbeddingUpdateKernels& kernels_;
  ParallelFor threads_;
  std::vector<cpu::TableUpdate> tables_;
  cpu::SortedBatch sorted_;
  std::vector<double> sums_;
  std::vector<cpu::TablePiece> pieces_;
};

Matrix random_state(Random& random, Optimizer optimizer, const Matrix& table) {
  const int64_t rows = optimizer == Optimizer::sgd ? 0 : table.rows;
  const int64_t dim = optimizer == Optimizer::rowwise_adagrad ? 1 : table.dim;
  return random_matrix(random, sums_of(table.memory.dtype()), rows, dim,
                       [&](Values& memory, int64_t index) { memory.set(index, 1 + random.uniform() / 2); });
}

}  // namespace

void test_embedding_update(int64_t number) {
  Random random(number);
  const DType dtype = static_cast<DType>(number % 4);
  const Bags bags =
      random_bags(random, {.dtype = dtype, .wide_ids = number / 4 % 2 == 0, .is_large = random.one_in(5)});
  const Reading reading = read(bags);
  Values grad(random.pick<DType>({dtype, sums_of(dtype)}), bags.out_size());
  grad.randomize(random);
  const bool has_mean_squares = random.one_in(2);
  cpu::TableUpdate settings = {};
  settings.optimizer = random.pick<Optimizer>({Optimizer::sgd, Optimizer::adagrad, Optimizer::rowwise_adagrad});
  settings.dtype = dtype;
  settings.grad = grad.data();
  settings.grad_dtype = grad.dtype();
  settings.lr = 0.1;
  settings.eps = 1e-6;
  settings.weight_decay = random.pick<double>({0, 0.01});

  std::vector<Matrix> states;
  std::vector<Expected> expected;
  for (const Matrix& table : bags.tables) {
    states.push_back(random_state(random, settings.optimizer, table));
    expected.push_back(update(table, states.back(), reading.of_table(static_cast<int64_t>(expected.size())), grad,
                              bags.layout.width, settings, has_mean_squares));
  }

  std::vector<Values> first;
  const std::vector<const EmbeddingUpdateKernels*> kernels_of_isas = KERNELS_OF_ISAS(embedding_update_kernels);
  for_isas_and_threads(kernels_of_isas, [&](const EmbeddingUpdateKernels& kernels, const ParallelFor& threads) {
    std::vector<Matrix> new_tables;
    std::vector<Matrix> new_states;
    std::vector<cpu::TableUpdate> tables;
    for (size_t t = 0; t < bags.tables.size(); ++t) {
      const Matrix& table = new_tables.emplace_back(bags.tables[t].copy());
      const Matrix& state = new_states.emplace_back(states[t].copy());
      settings.table = table.data();
      settings.table_stride = table.stride;
      settings.dim = table.dim;
      settings.state = state.data();
      settings.state_stride = state.data() != nullptr ? state.stride : 0;
      tables.push_back(settings);
    }
    Batch batch(kernels, bags, tables, threads);
    const std::vector<std::vector<double>> squares = batch.squares();
    batch.update(has_mean_squares);
    std::vector<Values> results;
    for (size_t t = 0; t < tables.size(); ++t) {
      CHECK(are(expected[t].weights, new_tables[t].memory));
      CHECK(are(expected[t].states, new_states[t].memory));
      CHECK(squares[t].size() == expected[t].squares.size());
      for (size_t i = 0; i < squares[t].size(); ++i) CHECK(expected[t].squares[i].is(squares[t][i], DType::f64));
      results.push_back(std::move(new_tables[t].memory));
      results.push_back(std::move(new_states[t].memory));
    }
    if (threads.num_threads == 1) {
      first = std::move(results);
    } else {
      CHECK(results == first);
    }
  });
}

}  // namespace dmt::testing
