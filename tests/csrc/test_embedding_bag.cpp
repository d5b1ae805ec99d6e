#include "bags.h"
#include "kernels/cpu/embedding_bag.h"

namespace dmt::testing {
namespace {

using cpu::EmbeddingBagKernels;
using cpu::ParallelFor;

const std::vector<const EmbeddingBagKernels*> kKernels = KERNELS_OF_ISAS(embedding_bag_kernels);

void test_pool(const Bags& bags, const Reading& reading) {
  const Sums expected = pool(bags, reading);
  const DType sums = sums_of(bags.dtype());
  const std::vector<DType> out_types =
      sums == DType::f64 ? std::vector{sums} : std::vector{DType::f32, DType::f16, DType::bf16};
  for (const DType out_type : out_types) {
    Values first;
    for_isas_and_threads(kKernels, [&](const EmbeddingBagKernels& kernels, const ParallelFor& threads) {
      Values out(out_type, bags.out_size());
      const int64_t missing = kernels.pool(bags.layout, bags.data, out.data(), out_type, threads);
      CHECK(missing == static_cast<int64_t>(reading.missing.size()));
      CHECK(expected.are_near(out, sums));
      if (threads.num_threads == 1) first = out.copy();
      CHECK(out == first);
    });
  }
}

void test_tables_backward(const Bags& bags, const Reading& reading, const Values& grad) {
  const DType sums = grad.dtype();
  std::vector<Sums> expected;
  for (const Matrix& table : bags.tables) expected.emplace_back(table.rows * table.dim);
  for (const Contribution& from : reading.contributions) {
    const int64_t dim = bags.tables[from.table].dim;
    for (int64_t c = 0; c < dim; ++c) {
      expected[from.table].add(from.row * dim + c,
                               from.scale() * grad[from.out_row * bags.layout.width + from.column + c]);
    }
  }
  std::vector<Values> first;
  for_isas_and_threads(kKernels, [&](const EmbeddingBagKernels& kernels, const ParallelFor& threads) {
    std::vector<Values> table_grads;
    std::vector<void*> data;
    for (const Matrix& table : bags.tables) {
      table_grads.push_back(std::move(Values(sums, table.rows * table.dim).fill_zero()));
      data.push_back(table_grads.back().data());
    }
    kernels.tables_backward(bags.layout, grad.data(), sums == DType::f64, Buffer(data).data(), threads);
    for (size_t i = 0; i < expected.size(); ++i) CHECK(expected[i].are_near(table_grads[i], sums));
    if (threads.num_threads == 1) {
      first = std::move(table_grads);
    } else {
      CHECK(table_grads == first);
    }
  });
}

void test_weights_backward(const Bags& bags, const Reading& reading, const Values& grad) {
  Sums expected(bags.layout.num_ids);
  for (const Contribution& from : reading.contributions) {
    const Matrix& table = bags.tables[from.table];
    for (int64_t c = 0; c < table.dim; ++c) {
      expected.add(from.position,
                   table(from.row, c) * grad[from.out_row * bags.layout.width + from.column + c] / from.divisor);
    }
  }
  Values first;
  for_isas_and_threads(kKernels, [&](const EmbeddingBagKernels& kernels, const ParallelFor& threads) {
    Values weight_grad(grad.dtype(), bags.layout.num_ids);
    weight_grad.fill_zero();
    kernels.weights_backward(bags.layout, bags.data, grad.data(), weight_grad.data(), threads);
    CHECK(expected.are_near(weight_grad, grad.dtype()));
    if (threads.num_threads == 1) first = weight_grad.copy();
    CHECK(weight_grad == first);
  });
}

}  // namespace

void test_embedding_bag(int64_t number) {
  Random random(number);
  const BagOptions options = {
      .dtype = static_cast<DType>(number % 4), .wide_ids = number / 4 % 2 == 0, .is_large = random.one_in(5)};
  const Bags bags = random_bags(random, options);
  const Reading reading = read(bags);
  Values grad(sums_of(options.dtype), bags.out_size());
  grad.randomize(random);
  test_pool(bags, reading);
  test_tables_backward(bags, reading, grad);
  test_weights_backward(bags, reading, grad);
}

}  // namespace dmt::testing
