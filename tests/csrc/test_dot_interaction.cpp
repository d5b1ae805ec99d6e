#include <cmath>

#include "bags.h"
#include "kernels/cpu/dot_interaction.h"

namespace dmt::testing {
namespace {

using cpu::DotInteractionKernels;
using cpu::InteractingFeatures;
using cpu::ParallelFor;

const std::vector<const DotInteractionKernels*> kKernels = KERNELS_OF_ISAS(dot_interaction_kernels);

// Every feature in memory of its own.
struct Features {
  std::vector<Matrix> matrices;
  Buffer<void*> data;
  Buffer<int64_t> strides;

  explicit Features(std::vector<Matrix> given)
      : matrices(std::move(given)),
        data(static_cast<int64_t>(matrices.size())),
        strides(static_cast<int64_t>(matrices.size())) {
    for (size_t f = 0; f < matrices.size(); ++f) {
      data[static_cast<int64_t>(f)] = matrices[f].data();
      strides[static_cast<int64_t>(f)] = matrices[f].stride;
    }
  }

  InteractingFeatures view(DType dtype, int64_t samples, int64_t dim, int64_t kept) const {
    return {data.data(), strides.data(), data.size(), samples, dim, dtype, kept};
  }
};

}  // namespace

void test_dot_interaction(int64_t number) {
  Random random(number);
  const DType dtype = static_cast<DType>(number % 4);
  const DType sums = sums_of(dtype);
  const int64_t F = random.pick<int64_t>({0, 1, 2, 3, 5, 8, 15, 16, 17, 18, 33});
  const int64_t N = random.pick<int64_t>({0, 1, 2, 5, 40});
  const int64_t D = random.pick<int64_t>({1, 2, 3, 7, 8, 15, 16, 17, 33, 64, 70});
  const int64_t kept = random.between(0, F < 3 ? F : 3);
  std::vector<Matrix> matrices;
  for (int64_t f = 0; f < F; ++f) {
    matrices.push_back(
        random_matrix(random, dtype, N, D, [&](Values& memory, int64_t i) { memory.randomize(i, random); }));
  }
  const Features x(std::move(matrices));
  const InteractingFeatures view = x.view(dtype, N, D, kept);
  const int64_t width = view.width();
  Values grad(dtype, N * width);
  grad.randomize(random);

  Sums expected(N * width);
  Sums expected_grad(N * F * D);
  for (int64_t n = 0; n < N; ++n) {
    for (int64_t c = 0; c < kept * D; ++c) {
      expected.add(n * width + c, x.matrices[c / D](n, c % D));
      expected_grad.add(n * F * D + c, grad[n * width + c]);
    }
    int64_t column = n * width + kept * D;
    for (int64_t i = 0; i < F; ++i) {
      for (int64_t j = 0; j < i; ++j, ++column) {
        for (int64_t d = 0; d < D; ++d) {
          expected.add(column, x.matrices[i](n, d) * x.matrices[j](n, d));
          expected_grad.add((n * F + i) * D + d, grad[column] * x.matrices[j](n, d));
          expected_grad.add((n * F + j) * D + d, grad[column] * x.matrices[i](n, d));
        }
      }
    }
  }

  Values first;
  std::vector<Values> first_grads;
  for_isas_and_threads(kKernels, [&](const DotInteractionKernels& kernels, const ParallelFor& threads) {
    const Values out(dtype, N * width);
    kernels.products(view, out.data(), Values(sums, kernels.scratch_size(view, threads)).data(), threads);
    CHECK(expected.are_near(out, sums));
    std::vector<Matrix> grads;
    for (const Matrix& matrix : x.matrices) {
      grads.push_back({N, D, matrix.stride, matrix.first, Values(dtype, matrix.memory.size())});
    }
    const Features x_grad(std::move(grads));
    kernels.gradients(view, grad.data(), x_grad.view(dtype, N, D, kept),
                      Values(sums, kernels.scratch_size(view, threads)).data(), threads);
    if (threads.num_threads == 1) {
      first = out.copy();
      first_grads.clear();
      for (const Matrix& matrix : x_grad.matrices) first_grads.push_back(matrix.memory.copy());
    }
    CHECK(out == first);
    for (int64_t f = 0; f < F; ++f) {
      CHECK(x_grad.matrices[f].memory == first_grads[f]);  // and nothing between the rows was written
      for (int64_t n = 0; n < N; ++n) {
        for (int64_t d = 0; d < D; ++d) {
          const int64_t i = (n * F + f) * D + d;
          CHECK(is_near(x_grad.matrices[f](n, d), expected_grad.value[i], dtype,
                        sum_error(sums, expected_grad.magnitude[i])));
        }
      }
    }
  });
}

}  // namespace dmt::testing
