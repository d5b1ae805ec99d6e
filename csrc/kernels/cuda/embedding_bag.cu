#include "embedding_bag.h"

#include <algorithm>

#include "pool_run.h"

namespace dmt::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kRowsInFlight = 8;  // of each lane: 16 bytes

// A block works on one feature; so many lanes as its columns have packs, at most a warp, share a run of bags.
template <class T>
DMT_BOTH int lanes_for(int64_t dim) {
  int lanes = 1;
  while (lanes < 32 && lanes * kPackSize<T> < dim) lanes *= 2;
  return lanes;
}

// Enough of them that a lane has some rows to ask for at once.
DMT_BOTH int bags_per_run(int64_t num_ids, int64_t num_bags) {
  return num_ids <= 2 * num_bags ? 8 : num_ids <= 8 * num_bags ? 4 : 2;
}

// Where a block works.
struct Place {
  int64_t block;    // k
  int64_t feature;  // f
  int64_t piece;    // of the samples
};

DMT_DEVICE Place place_of_block(const Bags& bags, int64_t blocks_per_source) {
  const unsigned k = blockIdx.x / static_cast<unsigned>(blocks_per_source);
  const int64_t rest = blockIdx.x % static_cast<unsigned>(blocks_per_source);
  int64_t low = 0;
  int64_t high = bags.num_features;  // the last feature that begins at `rest` or before
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    (bags.features[middle].first_block <= rest ? low : high) = middle;
  }
  return {k, low, rest - bags.features[low].first_block};
}

template <class T, class Out>
__global__ void __launch_bounds__(kThreads, 3) pool(const Bags bags, Out* out, int64_t blocks_per_source) {
  __shared__ uint4 fetched[kRowsInFlight * kThreads];
  const Place place = place_of_block(bags, blocks_per_source);
  const Feature feature = bags.features[place.feature];
  const int lanes = lanes_for<T>(feature.dim);
  const int run = bags_per_run(bags.num_ids, bags.num_blocks * bags.num_features * bags.num_samples);
  const int lane = static_cast<int>(threadIdx.x) % lanes;
  const int64_t first = (place.piece * (kThreads / lanes) + static_cast<int>(threadIdx.x) / lanes) * run;
  if (first >= bags.num_samples) return;
  const int count = static_cast<int>(bags.num_samples - first < run ? bags.num_samples - first : run);
  const int64_t first_bag = (place.block * bags.num_features + place.feature) * bags.num_samples + first;
  const int64_t first_row = bags.block_order[place.block] * bags.num_samples + first;
  for (int64_t column = 0; column == 0 || column < feature.dim; column += lanes * kPackSize<T>) {
    const LaneColumns mine = lane_columns<T>(feature, column, feature.dim - column, lane);
    const bool reports = bags.errors != nullptr && lane == 0 && column == 0;
    const auto store = [&](int bag, const float (&sums)[kPackSize<T>]) {
      Out* const target = out + (first_row + bag) * bags.width + feature.column + mine.column;
      store_values(target, sums, mine.count, is_aligned(target, 0));
    };
    pool_run<T, kRowsInFlight, kThreads>(bags, feature, first_bag, count, mine, reports, fetched + threadIdx.x, store);
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
    weights_backward(const Bags bags, const float* grad, float* weight_grads, int64_t blocks_per_source) {
  const Place place = place_of_block(bags, blocks_per_source);
  const Feature feature = bags.features[place.feature];
  const int lanes = lanes_for<T>(feature.dim);
  const int run = bags_per_run(bags.num_ids, bags.num_blocks * bags.num_features * bags.num_samples);
  const int lane = static_cast<int>(threadIdx.x) % lanes;
  const unsigned group = lanes == 32 ? kAllLanes : ((1u << lanes) - 1) << (threadIdx.x % 32 / lanes * lanes);
  const int64_t first = (place.piece * (kThreads / lanes) + static_cast<int>(threadIdx.x) / lanes) * run;
  const T* const table = static_cast<const T*>(feature.table);
  for (int64_t sample = first; sample < first + run && sample < bags.num_samples; ++sample) {
    const int64_t bag = (place.block * bags.num_features + place.feature) * bags.num_samples + sample;
    const float* const source =
        grad + (bags.block_order[place.block] * bags.num_samples + sample) * bags.width + feature.column;
    const int64_t begin = load_offset(bags, bag);
    const int64_t end = load_offset(bags, bag + 1);
    const float count = feature.is_mean ? static_cast<float>(counted_ids(bags, feature, begin, end)) : 1;
    for (int64_t p = begin; p < end; ++p) {
      const int64_t row = row_of(bags, feature, load_id(bags, p));
      if (row < 0) continue;
      float product = 0;
      for (int64_t c = lane; c < feature.dim; c += lanes) {
        product += to_float(table[row * feature.stride + c]) * source[c];
      }
      for (int distance = lanes / 2; distance > 0; distance /= 2) {
        product += __shfl_xor_sync(group, product, distance);
      }
      if (lane == 0) weight_grads[p] = feature.is_mean ? product / count : product;
    }
  }
}

int64_t blocks_per_source(const Bags& bags, int64_t blocks) {
  return bags.num_blocks > 0 ? blocks / bags.num_blocks : 0;
}

}  // namespace

int64_t plan_embedding_bag(const Bags& bags, DType dtype, std::vector<Feature>& features) {
  const int run = bags_per_run(bags.num_ids, bags.num_blocks * bags.num_features * bags.num_samples);
  int64_t blocks = 0;
  with_type(dtype, [&](auto element) {
    for (Feature& feature : features) {
      feature.first_block = blocks;
      blocks += ceil_div<int64_t>(bags.num_samples, kThreads / lanes_for<decltype(element)>(feature.dim) * run);
    }
  });
  return blocks * bags.num_blocks;
}

void embedding_bag(const Bags& bags, DType dtype, void* out, bool out_is_float, int64_t blocks, cudaStream_t stream) {
  with_type(dtype, [&](auto element) {
    using T = decltype(element);
    const int64_t per_source = blocks_per_source(bags, blocks);
    if (out_is_float) {
      launch(pool<T, float>, blocks, kThreads, 0, stream, bags, static_cast<float*>(out), per_source);
    } else {
      launch(pool<T, T>, blocks, kThreads, 0, stream, bags, static_cast<T*>(out), per_source);
    }
  });
}

void embedding_bag_weights_backward(const Bags& bags, DType dtype, const float* grad, float* weight_grads,
                                    int64_t blocks, cudaStream_t stream) {
  with_type(dtype, [&](auto element) {
    launch(weights_backward<decltype(element)>, blocks, kThreads, 0, stream, bags, grad, weight_grads,
           blocks_per_source(bags, blocks));
  });
}

}  // namespace dmt::cuda
