#include <cmath>

#include "bags.h"
#include "kernels/cpu/tower_pool_pooled_backward.h"

namespace dmt::testing {
namespace {

using cpu::ParallelFor;
using cpu::TowerPoolPooledBackwardKernels;

const std::vector<const TowerPoolPooledBackwardKernels*> kKernels =
    KERNELS_OF_ISAS_AND_BF16(tower_pool_pooled_backward_kernels);

}  // namespace

void test_tower_pool_pooled_backward(int64_t number) {
  Random random(number);
  const DType dtype = static_cast<DType>(number % 4);
  const DType sums = sums_of(dtype);
  const int64_t N = random.pick<int64_t>({0, 1, 5, 6, 14, 15, 43});
  const int64_t C = random.pick<int64_t>({0, 1, 2, 3, 13, 127, 128, 131, 255, 257, 300});
  const int64_t D = random.pick<int64_t>({0, 1, 3, 4, 8, 15, 16, 17, 33, 64, 255, 256, 257, 300});
  const int64_t stride = D + random.below(3);
  Values grad(sums, N * C);
  grad.randomize(random);
  Values weight(dtype, C * stride);
  weight.randomize(random);

  Sums expected(N * D);
  for (int64_t n = 0; n < N; ++n) {
    for (int64_t c = 0; c < C; ++c) {
      const double factor = grad[n * C + c];
      for (int64_t d = 0; d < D; ++d) {
        expected.value[n * D + d] += factor * weight[c * stride + d];
        expected.magnitude[n * D + d] += std::abs(factor * weight[c * stride + d]);
      }
    }
  }

  for (const bool bfloat16_products : {false, true}) {
    if (bfloat16_products && sums == DType::f64) continue;
    Values first;
    for_isas_and_threads(kKernels, [&](const TowerPoolPooledBackwardKernels& kernels, const ParallelFor& threads) {
      const cpu::TowerPooledGradient gradient = {grad.data(), N, C, weight.data(), stride, D, dtype, bfloat16_products};
      const Values scratch(sums, kernels.scratch_size(gradient, threads), true);
      const Values out(sums, N * D);
      kernels.pooled(gradient, out.data(), scratch.data(), threads);
      for (int64_t i = 0; i < out.size(); ++i) {
        // Two factors, each rounded once to bfloat16.
        const double magnitude = expected.magnitude[i];
        const double error =
            sum_error(sums, magnitude) + (bfloat16_products ? 2.02 * rounding(DType::bf16) * magnitude : 0);
        CHECK(is_near(out[i], expected.value[i], sums, error));
      }
      if (threads.num_threads == 1) first = out.copy();
      CHECK(out == first);
    });
  }
}

}  // namespace dmt::testing
