// Sample by sample, in the nearest cache:
//
//   x        the features, [F', D'], behind the last feature and the last column zeros up to whole vectors
//   products of all features with some that lie in lanes, vector after vector of these, [F'/kLanes, F', kLanes];
//            in the backward pass the gradients of the products, [F', F'], both ways round
//   line     the pairs as they lie in a row of the output, and room for a vector behind the last
#include "dot_interaction.h"

#include "float_formats.h"
#include "multiply_block.h"
#include "transpose.h"
#include "vectors.h"

namespace dmt::cpu {
namespace {

constexpr int64_t kGrain = 1 << 16;  // multiplications per piece: some microseconds
constexpr int64_t kTile = 4;         // sums at a time, which hides how long an addition takes

template <class T>
void store_columns(T* target, int64_t count, vector_t<accumulator_t<T>> values) {
  using Acc = accumulator_t<T>;
  if (count >= kLanes<Acc>) return store_vector(target, values);
  Acc padded[kLanes<Acc>];
  store_vector(padded, values);
  for (int64_t c = 0; c < count; ++c) store(target + c, padded[c]);
}

template <class T>
vector_t<accumulator_t<T>> load_columns(const T* source, int64_t count) {
  using Acc = accumulator_t<T>;
  if (count >= kLanes<Acc>) return load_vector(source);
  Acc padded[kLanes<Acc>] = {};
  for (int64_t c = 0; c < count; ++c) padded[c] = load(source[c]);
  return load_vector(padded);
}

// Where the product of features i and j < i stands.
inline int64_t pair(int64_t i, int64_t j) { return i * (i - 1) / 2 + j; }

template <class T>
struct Interaction {
  using Acc = accumulator_t<T>;
  using Vector = vector_t<Acc>;
  static constexpr int64_t kSide = kLanes<Acc>;

  static int64_t whole(int64_t count) { return (count + kSide - 1) / kSide * kSide; }

  const InteractingFeatures& x;
  int64_t F = x.features;
  int64_t D = x.dim;
  int64_t pairs = x.pairs();
  int64_t width = x.width();
  int64_t all_features = whole(F) + kTile;  // F': the last tile may begin with the last feature
  int64_t all_columns = whole(D);           // D'

  int64_t thread_size() const { return all_features * (all_columns + whole(F)) + whole(pairs) + kSide; }

  static T* row(const InteractingFeatures& features, int64_t f, int64_t sample) {
    return static_cast<T*>(features.data[f]) + sample * features.strides[f];
  }

  void read_features(int64_t sample, Acc* values) const {
    for (int64_t f = 0; f < F; ++f) {
      const T* const source = row(x, f, sample);
      for (int64_t c = 0; c < D; c += kSide)
        store_vector(values + f * all_columns + c, load_columns(source + c, D - c));
    }
  }

  // sums[i] = or += features i .. i + kTile times the square's, by some columns.
  void multiply(const Acc* values, const Vector* square, bool is_first, Acc* sums) const {
    Vector tile[kTile];
    for (int64_t t = 0; t < kTile; ++t) tile[t] = is_first ? Vector{} : load_vector(sums + t * kSide);
#pragma GCC unroll 16
    for (int64_t c = 0; c < kSide; ++c) {
#pragma GCC unroll 4
      for (int64_t t = 0; t < kTile; ++t) {
        tile[t] = multiply_add(splat(values[t * all_columns + c]), square[c], tile[t]);
      }
    }
    for (int64_t t = 0; t < kTile; ++t) store_vector(sums + t * kSide, tile[t]);
  }

  void products(int64_t sample, T* out, Acc* scratch) const {
    Acc* const values = scratch;
    Acc* const sums = values + all_features * all_columns;
    Acc* const line = sums + all_features * whole(F);
    read_features(sample, values);
    for (int64_t j = 0; j + 1 < F; j += kSide) {
      for (int64_t column = 0; column < D; column += kSide) {
        Vector square[kSide];
        for (int64_t k = 0; k < kSide; ++k) square[k] = load_vector(values + (j + k) * all_columns + column);
        transpose<Acc>(square);
        for (int64_t i = j + 1; i < F; i += kTile) {
          multiply(values + i * all_columns + column, square, column == 0, sums + j * all_features + i * kSide);
        }
      }
    }
    for (int64_t i = 1; i < F; ++i) {  // what stands behind the last pair of a feature is overwritten by the next one
      for (int64_t j = 0; j < i; j += kSide) {
        store_vector(line + pair(i, j), load_vector(sums + j * all_features + i * kSide));
      }
    }
    for (int64_t f = 0; f < x.kept; ++f) __builtin_memcpy(out + f * D, row(x, f, sample), D * sizeof(T));
    T* const target = out + x.kept * D;
    for (int64_t p = 0; p < pairs; p += kSide) store_columns(target + p, pairs - p, load_vector(line + p));
  }

  // sums[v] = the sums over all j but i of the gradient of (i, j) times vectors of feature j.
  template <int64_t Vectors>
  void add_up(int64_t i, const Acc* factors, const Acc* values, Vector* sums) const {
    for (int64_t v = 0; v < Vectors; ++v) sums[v] = Vector{};
    const auto add = [&](int64_t begin, int64_t end) {
      for (int64_t j = begin; j < end; ++j) {
        const Vector factor = splat(factors[j]);
#pragma GCC unroll 4
        for (int64_t v = 0; v < Vectors; ++v) {
          sums[v] = multiply_add(factor, load_vector(values + j * all_columns + v * kSide), sums[v]);
        }
      }
    };
    add(0, i);
    add(i + 1, F);
  }

  void gradients(int64_t sample, const T* grad, const InteractingFeatures& x_grad, Acc* scratch) const {
    Acc* const values = scratch;
    Acc* const factors = values + all_features * all_columns;
    read_features(sample, values);
    for (int64_t i = 1; i < F; ++i) {
      const T* const source = grad + x.kept * D + pair(i, 0);
      for (int64_t j = 0; j < i; ++j) factors[i * F + j] = factors[j * F + i] = load(source[j]);
    }
    for (int64_t i = 0; i < F; ++i) {
      T* const target = row(x_grad, i, sample);
      const auto store_sums = [&](int64_t column, const Vector* sums, int64_t count) {
        for (int64_t v = 0; v < count; ++v, column += kSide) {
          Vector sum = sums[v];
          if (i < x.kept) sum += load_columns(grad + i * D + column, D - column);
          store_columns(target + column, D - column, sum);
        }
      };
      int64_t column = 0;
      Vector sums[kTile];
      for (; column + kTile * kSide <= all_columns; column += kTile * kSide) {
        add_up<kTile>(i, factors + i * F, values + column, sums);
        store_sums(column, sums, kTile);
      }
      for (; column < all_columns; column += kSide) {
        add_up<1>(i, factors + i * F, values + column, sums);
        store_sums(column, sums, 1);
      }
    }
  }
};

// Calls run(sample, scratch) for all samples; scratch holds zeros at first.
template <class T, class Run>
void for_samples(const Interaction<T>& job, void* scratch, const ParallelFor& threads, const Run& run) {
  const int64_t samples = job.x.samples;
  const int64_t most_parts = samples * job.pairs * job.D / kGrain + 1;
  const int64_t parts = threads.num_threads < most_parts ? threads.num_threads : most_parts;
  parallel_for(threads, 0, parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part) {
      auto* const own = static_cast<accumulator_t<T>*>(scratch) + part * job.thread_size();
      for (int64_t i = 0; i < job.thread_size(); ++i) own[i] = 0;
      for (int64_t n = samples * part / parts; n < samples * (part + 1) / parts; ++n) run(n, own);
    }
  });
}

int64_t scratch_size(const InteractingFeatures& x, const ParallelFor& threads) {
  int64_t size = 0;
  with_type(x.dtype,
            [&](auto element) { size = threads.num_threads * Interaction<decltype(element)>{x}.thread_size(); });
  return size;
}

void products(const InteractingFeatures& x, void* out, void* scratch, const ParallelFor& threads) {
  with_type(x.dtype, [&](auto element) {
    using T = decltype(element);
    const Interaction<T> job{x};
    for_samples(job, scratch, threads,
                [&](int64_t n, auto* own) { job.products(n, static_cast<T*>(out) + n * job.width, own); });
  });
}

void gradients(const InteractingFeatures& x, const void* grad, const InteractingFeatures& x_grad, void* scratch,
               const ParallelFor& threads) {
  with_type(x.dtype, [&](auto element) {
    using T = decltype(element);
    const Interaction<T> job{x};
    for_samples(job, scratch, threads, [&](int64_t n, auto* own) {
      job.gradients(n, static_cast<const T*>(grad) + n * job.width, x_grad, own);
    });
  });
}

}  // namespace

DMT_DEFINE_KERNELS(DotInteractionKernels, dot_interaction_kernels) = {scratch_size, products, gradients};

}  // namespace dmt::cpu
