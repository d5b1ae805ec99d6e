#include "bags.h"
#include "kernels/cpu/tower_pool_backward.h"

namespace dmt::testing {
namespace {

using cpu::ParallelFor;
using cpu::TowerPoolBackwardKernels;

const std::vector<const TowerPoolBackwardKernels*> kKernels = KERNELS_OF_ISAS_AND_BF16(tower_pool_backward_kernels);

}  // namespace

void test_tower_pool_backward(int64_t number) {
  Random random(number);
  const BagOptions options = {
      .dtype = static_cast<DType>(number % 4), .wide_ids = number / 4 % 2 == 0, .is_large = random.one_in(5)};
  const Bags bags = random_bags(random, options);
  if (bags.out_rows() == 0) return;
  const int64_t D = bags.layout.width;
  const int64_t C = random.pick<int64_t>({0, 1, 2, 3, 5, 6, 7, 8, 13, 14, 15, 22, 29});
  const DType sums = sums_of(options.dtype);
  Values grad(sums, bags.out_rows() * C);
  grad.randomize(random);

  // grad^T [C, K*B] @ pooled [K*B, D]
  const Sums pooled = pool(bags, read(bags));
  std::vector<double> expected(C * D);
  std::vector<double> magnitude(C * D);
  for (int64_t n = 0; n < bags.out_rows(); ++n) {
    for (int64_t c = 0; c < C; ++c) {
      const double factor = grad[n * C + c];
      for (int64_t d = 0; d < D; ++d) {
        expected[c * D + d] += factor * pooled.value[n * D + d];
        magnitude[c * D + d] += std::abs(factor) * pooled.magnitude[n * D + d];
      }
    }
  }

  for (const bool bfloat16_products : {false, true}) {
    if (bfloat16_products && sums == DType::f64) continue;
    Values first;
    for_isas_and_threads(kKernels, [&](const TowerPoolBackwardKernels& kernels, const ParallelFor& threads) {
      const cpu::TowerGradient gradient = {grad.data(), C, bfloat16_products};
      const Values scratch(sums, kernels.scratch_size(bags.layout, gradient, options.dtype, threads), true);
      const Values out(options.dtype, C * D);
      kernels.weight(bags.layout, bags.data, gradient, out.data(), scratch.data(), threads);
      for (int64_t i = 0; i < out.size(); ++i) {
        // Two factors, each rounded once to bfloat16.
        const double error =
            sum_error(sums, magnitude[i]) + (bfloat16_products ? 2.02 * rounding(DType::bf16) * magnitude[i] : 0);
        CHECK(is_near(out[i], expected[i], options.dtype, error));
      }
      if (threads.num_threads == 1) first = out.copy();
      CHECK(out == first);
    });
  }
}

}  // namespace dmt::testing
