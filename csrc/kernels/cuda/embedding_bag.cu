#include "embedding_bag.h"

#include <algorithm>

#include "pool_run.h"

namespace dmt::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kTogether = 8;  // rows of a group on their way

// So many bags for a group that it rarely waits for their first offset and id; but enough groups for a large device.
int bags_per_run(int64_t num_ids, int64_t num_bags) {
  const int64_t wanted = num_ids <= 2 * num_bags ? 16 : num_ids <= 8 * num_bags ? 8 : 12;
  return static_cast<int>(std::clamp<int64_t>(num_bags / (128 * multiprocessors()), 1, wanted));
}

// How bags are shared out: groups take `run` bags of a feature each, blocks of threads one of `pieces` of its samples.
// (Where features differ in width, the narrow ones' last pieces are empty.)
struct Shares {
  int run;
  unsigned pieces;
};

// The bags of a group: [first, first + count) of block k and feature f.
struct Run {
  int64_t k;
  int64_t f;
  int64_t first;
  int count;
};

DMT_DEVICE Run run_of_group(const Bags& bags, const Shares& shares, const LaneGroup& group, unsigned place) {
  const unsigned rest = place / shares.pieces;
  const unsigned features = static_cast<unsigned>(bags.num_features);
  const int64_t first =
      ((place % shares.pieces) * static_cast<int64_t>(kThreads >> group.bits) + (threadIdx.x >> group.bits)) *
      shares.run;
  const int64_t left = bags.num_samples - first;
  return {rest / features, rest % features, first, static_cast<int>(left < shares.run ? left : shares.run)};
}

DMT_DEVICE int64_t feature_of_block(const Bags& bags, const Shares& shares) {
  return blockIdx.x / shares.pieces % static_cast<unsigned>(bags.num_features);
}

template <class T, class Out>
__global__ void __launch_bounds__(kThreads, 5) pool(const Bags bags, Out* out, const Shares shares) {
  __shared__ int64_t places[kRowPlaces<kThreads>];
  const Feature& feature = bags.features[feature_of_block(bags, shares)];
  const LaneGroup group = lane_group(lane_bits<T>(feature.dim));
  const Run run = run_of_group(bags, shares, group, blockIdx.x);
  if (run.count <= 0) return;
  const int64_t first_bag = (run.k * bags.num_features + run.f) * bags.num_samples + run.first;
  const int64_t first_row = bags.block_order[run.k] * bags.num_samples + run.first;
  for (int64_t column = 0; column == 0 || column < feature.dim; column += group.lanes() * kPackSize<T>) {
    const LaneColumns mine = lane_columns<T>(feature, column, feature.dim - column, group);
    Out* target = out + first_row * bags.width + feature.column + mine.column;
    constexpr int kBytes = kPackSize<T> * static_cast<int>(sizeof(Out)) < 16 ? 8 : 16;  // that are stored at once
    const bool aligned = reinterpret_cast<uintptr_t>(target) % kBytes == 0 &&
                         bags.width * static_cast<int64_t>(sizeof(Out)) % kBytes == 0;
    const bool reports = bags.errors != nullptr && column == 0;
    pool_run<T, kTogether>(bags, feature, first_bag, run.count, mine, group, reports, places_of(group, places),
                           [=, &bags](const float (&sums)[kPackSize<T>]) mutable {
                             store_values(target, sums, mine.count, aligned);
                             target += bags.width;
                           });
  }
}

// How many ids of a bag count in its mean.
DMT_DEVICE int64_t counted_ids(const Bags& bags, const Feature& feature, int64_t begin, int64_t end) {
  int64_t counted = 0;
  for (int64_t p = begin; p < end; ++p) counted += row_of(bags, feature, load_id(bags, p)) != kMissing;
  return counted;
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    weights_backward(const Bags bags, const float* grad, float* weight_grads, const Shares shares) {
  const Feature& feature = bags.features[feature_of_block(bags, shares)];
  const LaneGroup group = lane_group(lane_bits<T>(feature.dim));
  const Run run = run_of_group(bags, shares, group, blockIdx.x);
  const T* const table = static_cast<const T*>(feature.table);
  for (int64_t sample = run.first; sample < run.first + run.count; ++sample) {
    const int64_t bag = (run.k * bags.num_features + run.f) * bags.num_samples + sample;
    const float* const source =
        grad + (bags.block_order[run.k] * bags.num_samples + sample) * bags.width + feature.column;
    const int64_t begin = load_offset(bags, bag);
    const int64_t end = load_offset(bags, bag + 1);
    const float count = feature.is_mean ? static_cast<float>(counted_ids(bags, feature, begin, end)) : 1;
    for (int64_t p = begin; p < end; ++p) {
      const int64_t row = row_of(bags, feature, load_id(bags, p));
      if (row < 0) continue;
      float product = 0;
      for (int64_t c = group.lane; c < feature.dim; c += group.lanes()) {
        product += to_float(table[row * feature.stride + c]) * source[c];
      }
      for (int distance = group.lanes() / 2; distance > 0; distance /= 2) {
        product += __shfl_xor_sync(group.mask, product, distance);
      }
      if (group.lane == 0) weight_grads[p] = feature.is_mean ? product / count : product;
    }
  }
}

// Of threads; 0 where there is nothing to do.
template <class T>
int64_t share_out(const Bags& bags, int64_t widest_dim, Shares& shares) {
  const int64_t num_bags = bags.num_blocks * bags.num_features * bags.num_samples;
  shares.run = bags_per_run(bags.num_ids, num_bags);
  const int64_t groups = kThreads >> lane_bits<T>(widest_dim);
  const int64_t pieces = ceil_div<int64_t>(bags.num_samples, groups * shares.run);
  shares.pieces = static_cast<unsigned>(std::min<int64_t>(pieces, UINT32_MAX));  // more are too many to launch anyway
  return pieces * bags.num_features * bags.num_blocks;
}

}  // namespace

void embedding_bag(const Bags& bags, DType dtype, int64_t widest_dim, void* out, DType out_dtype, cudaStream_t stream) {
  with_type(dtype, [&](auto element) {
    using T = decltype(element);
    Shares shares = {};
    const int64_t blocks = share_out<T>(bags, widest_dim, shares);
    with_type(out_dtype, [&](auto out_element) {
      using Out = decltype(out_element);
      launch(pool<T, Out>, blocks, kThreads, 0, stream, bags, static_cast<Out*>(out), shares);
    });
  });
}

void embedding_bag_weights_backward(const Bags& bags, DType dtype, int64_t widest_dim, const float* grad,
                                    float* weight_grads, cudaStream_t stream) {
  with_type(dtype, [&](auto element) {
    using T = decltype(element);
    Shares shares = {};
    const int64_t blocks = share_out<T>(bags, widest_dim, shares);
    launch(weights_backward<T>, blocks, kThreads, 0, stream, bags, grad, weight_grads, shares);
  });
}

}  // namespace dmt::cuda
