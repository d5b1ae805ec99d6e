// What an update makes of a row and the sum of its gradients.
#pragma once

#include "update_group.h"

namespace dmt::cuda {

// In 32 chains, by column, which are then added up as pairs: the order of the CPU's kernel, and as there in double.
// `value(c)`: of column c.
template <class Grad, class Shape, class Value>
DMT_DEVICE double sum_of_squares(const Group<Grad, Shape>& group, int dim, const Value& value) {
  constexpr int kLanes = Shape::kLanes;
  const auto chain = [&](int first) {
    double sum = 0;
    const auto add = [&](int c) {
      const double here = static_cast<double>(c < dim ? value(c) : 0.0f);
      sum += here * here;
    };
    if constexpr (Shape::kIsNarrow) {
#pragma unroll
      for (int c = 0; c < kLanes * Group<Grad, Shape>::kSize; c += 32) add(first + c);
    } else {
      for (int c = first; c < dim; c += 32) add(c);
    }
    return sum;
  };
  double sum = chain(group.lane);
  if (kLanes == 16) sum += chain(group.lane + 16);
  if (kLanes == 8) sum = (sum + chain(group.lane + 16)) + (chain(group.lane + 8) + chain(group.lane + 24));
#pragma unroll
  for (int distance = kLanes / 2; distance > 0; distance /= 2) sum += __shfl_xor_sync(group.mask, sum, distance);
  return sum;
}

template <class Grad, class Shape, class T>
DMT_DEVICE double squares_of_row(const Group<Grad, Shape>& group, const T* weights, int dim) {
  const float decay = group.work.settings.weight_decay;
  if (decay == 0.0f) return sum_of_squares(group, dim, [&](int c) { return group.sums[c]; });
  return sum_of_squares(group, dim,
                        [&](int c) { return decayed_gradient(to_float(weights[c]), group.sums[c], decay); });
}

// sum / dim: powers of two have an inverse.
DMT_DEVICE double mean_of(double sum, int dim) {
  if (__popc(static_cast<unsigned>(dim)) != 1) return sum / dim;
  return sum * bit_cast<double>(static_cast<uint64_t>(1023 - __popc(static_cast<unsigned>(dim) - 1)) << 52);
}

// Weights of 16 bits, rounded by their place in the whole table.
struct AtRandom {
  uint64_t row;  // row_key()
  uint32_t first_column;

  DMT_MEMBER uint32_t word(int i) const { return random_word(row, first_column + static_cast<uint32_t>(i)); }
  DMT_MEMBER void operator()(int i, float value, BFloat16& to) const { to.bits = bfloat16_at_random(value, word(i)); }
  DMT_MEMBER void operator()(int i, float value, Half& to) const { to.bits = half_at_random(value, word(i)); }
};

// Where a row is.
template <class T>
struct alignas(16) Target {
  T* weights;
  float* state;
};

// `values`: the weights that the lane begins with; `state`: that of row-wise Adagrad. `rank`: of the row, if rows have
// numbers.
template <class Shape, class T, class Grad, int kSize>
DMT_DEVICE void apply(const Group<Grad, Shape>& group, const Target<T>& target, int dim, float (&values)[kSize],
                      float state, int64_t rank, const AtRandom& at_random) {
  const Work& work = group.work;
  const OptimizerSettings<float>& settings = work.settings;
  const RowStatistic& statistic = work.statistic;
  double squares = 0;
  if (statistic.squares != nullptr || (work.optimizer == Optimizer::rowwise_adagrad && !statistic.mean_squares)) {
    squares = squares_of_row(group, target.weights, dim);
  }
  if (statistic.squares != nullptr) {
    if (group.lane == 0) statistic.squares[rank] = squares;
    return;
  }
  RowwiseFactors<float> factors = {};
  if (work.optimizer == Optimizer::rowwise_adagrad) {
    const double mean_square = statistic.mean_squares == nullptr ? mean_of(squares, dim)
                               : rank < statistic.count          ? statistic.mean_squares[rank]
                                                                 : nan("");
    factors = rowwise_factors(static_cast<float>(mean_square), state, settings);
    if (group.lane == 0) *target.state = state;
  }
  Shape::template for_columns<kSize>(group.lane, dim, [&](int c) {
    constexpr bool kIsPacked = Shape::kIsPacked;
    if (!Shape::kIsNarrow && c >= Shape::kLanes * kSize) load_values(target.weights + c, values, kSize, kIsPacked);
    float sums[kSize];
    load_values(group.sums + c, sums, kSize, kIsPacked);
    if (work.optimizer == Optimizer::adagrad) {
      float states[kSize];
      load_values(target.state + c, states, kSize, kIsPacked);
#pragma unroll
      for (int i = 0; i < kSize; ++i) values[i] = adagrad_weight(values[i], sums[i], states[i], settings);
      store_values(target.state + c, states, kSize, kIsPacked);
    } else {
#pragma unroll
      for (int i = 0; i < kSize; ++i) {
        values[i] = work.optimizer == Optimizer::sgd ? sgd_weight(values[i], sums[i], settings)
                                                     : rowwise_weight(values[i], sums[i], factors);
      }
    }
    if constexpr (sizeof(T) == 2) {
      if (work.step != nullptr) {
        const AtRandom here = {at_random.row, at_random.first_column + static_cast<uint32_t>(c)};
        store_values(target.weights + c, values, kSize, kIsPacked, here);
        return;
      }
    }
    store_values(target.weights + c, values, kSize, kIsPacked);
  });
}

}  // namespace dmt::cuda
