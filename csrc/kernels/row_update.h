// Optimizer arithmetic of embedding rows, shared by the CPU and CUDA kernels.
//
// A is the type of the arithmetic and of the optimizer state: float for f32, f16 and bf16 tables, double for f64
// tables. w is a weight, g the summed gradient of the row that holds it. The formulas are those of FBGEMM's
// EXACT_SGD, EXACT_ADAGRAD and EXACT_ROWWISE_ADAGRAD with L2 weight decay.
//
// Everything is `static inline` so that an object compiled for one instruction set shares no symbol with another.
#pragma once

#include <math.h>

#if defined(__CUDACC__)
#define DMT_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define DMT_HOST_DEVICE inline __attribute__((always_inline))
#endif

namespace dmt {

enum class Optimizer : int { sgd = 0, adagrad = 1, rowwise_adagrad = 2 };

template <typename A>
struct OptimizerSettings {
  A lr;
  A eps;
  A weight_decay;
};

static DMT_HOST_DEVICE float square_root(float x) { return sqrtf(x); }

static DMT_HOST_DEVICE double square_root(double x) { return sqrt(x); }

/// The gradient with L2 decay. Without decay the weight is not read into it: 0 * inf would be NaN.
template <typename A>
static DMT_HOST_DEVICE A decayed_gradient(A w, A g, A weight_decay) {
  return weight_decay == A(0) ? g : g + weight_decay * w;
}

template <typename A>
static DMT_HOST_DEVICE A sgd_weight(A w, A g, const OptimizerSettings<A>& settings) {
  return w - settings.lr * decayed_gradient(w, g, settings.weight_decay);
}

/// Adds to one element's state and returns its new weight.
template <typename A>
static DMT_HOST_DEVICE A adagrad_weight(A w, A g, A& state, const OptimizerSettings<A>& settings) {
  const A decayed = decayed_gradient(w, g, settings.weight_decay);
  state += decayed * decayed;
  return w - settings.lr * decayed / (square_root(state) + settings.eps);
}

/// What row-wise Adagrad applies to every element of one row.
template <typename A>
struct RowwiseFactors {
  A multiplier;
  A correction;
};

/// Adds the mean of the row's squares to its state.
template <typename A>
static DMT_HOST_DEVICE RowwiseFactors<A> rowwise_factors(A mean_square, A& state,
                                                         const OptimizerSettings<A>& settings) {
  state += mean_square;
  const A multiplier = settings.lr / (square_root(state) + settings.eps);
  return {multiplier, A(1) - multiplier * settings.weight_decay};
}

template <typename A>
static DMT_HOST_DEVICE A rowwise_weight(A w, A g, const RowwiseFactors<A>& factors) {
  return factors.correction * w - factors.multiplier * g;
}

}  // namespace dmt
