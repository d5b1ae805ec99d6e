#include "bags.h"
#include "kernels/cpu/tower_pool.h"

namespace dmt::testing {
namespace {

using cpu::ParallelFor;
using cpu::TowerPoolKernels;

const std::vector<const TowerPoolKernels*> kKernels = KERNELS_OF_ISAS_AND_BF16(tower_pool_kernels);

// pooled [rows, width] @ weight^T [width, out_width]
std::vector<double> multiply(const std::vector<double>& pooled, const std::vector<double>& weight, int64_t rows,
                             int64_t width, int64_t out_width) {
  std::vector<double> product(rows * out_width);
  for (int64_t n = 0; n < rows; ++n) {
    for (int64_t c = 0; c < out_width; ++c) {
      double sum = 0;
      for (int64_t d = 0; d < width; ++d) sum += pooled[n * width + d] * weight[c * width + d];
      product[n * out_width + c] = sum;
    }
  }
  return product;
}

std::vector<double> numbers(const Values& values) {
  std::vector<double> list;
  for (int64_t i = 0; i < values.size(); ++i) list.push_back(values[i]);
  return list;
}

std::vector<double> magnitudes(std::vector<double> list) {
  for (double& value : list) value = std::abs(value);
  return list;
}

}  // namespace

void test_tower_pool(int64_t number) {
  Random random(number);
  const BagOptions options = {
      .dtype = static_cast<DType>(number % 4), .wide_ids = number / 4 % 2 == 0, .is_large = random.one_in(5)};
  const Bags bags = random_bags(random, options);
  const Reading reading = read(bags);
  const int64_t D = bags.layout.width;
  const int64_t C = random.pick<int64_t>({0, 1, 2, 3, 5, 6, 7, 8, 13, 14, 15, 22, 29});
  Values weight(options.dtype, C * D);
  weight.randomize(random);
  Values bias(options.dtype, random.one_in(2) ? C : 0);
  bias.randomize(random);

  const Sums pooled = pool(bags, reading);
  const std::vector<double> factors = numbers(weight);
  const std::vector<double> expected = multiply(pooled.value, factors, bags.out_rows(), D, C);
  const std::vector<double> magnitude = multiply(pooled.magnitude, magnitudes(factors), bags.out_rows(), D, C);

  const DType sums = sums_of(options.dtype);
  for (const bool bfloat16_products : {false, true}) {
    if (bfloat16_products && sums == DType::f64) continue;
    Values first;
    for_isas_and_threads(kKernels, [&](const TowerPoolKernels& kernels, const ParallelFor& threads) {
      const cpu::TowerModule module = {weight.data(), bias.data(), C, bfloat16_products};
      const Values scratch(sums, kernels.scratch_size(bags.layout, module, options.dtype, threads), true);
      const Values out(options.dtype, bags.out_rows() * C);
      const int64_t missing = kernels.pool(bags.layout, bags.data, module, out.data(), scratch.data(), threads);
      CHECK(missing == static_cast<int64_t>(reading.missing.size()));
      for (int64_t i = 0; i < out.size(); ++i) {
        const double shift = bias.size() > 0 ? bias[i % C] : 0;
        // Two factors, each rounded once to bfloat16.
        const double error = sum_error(sums, magnitude[i] + std::abs(shift)) +
                             (bfloat16_products ? 2.02 * rounding(DType::bf16) * magnitude[i] : 0);
        CHECK(is_near(out[i], expected[i] + shift, options.dtype, error));
      }
      if (threads.num_threads == 1) first = out.copy();
      CHECK(out == first);
    });
  }
}

}  // namespace dmt::testing
