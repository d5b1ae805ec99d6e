#include "check_ids.h"

namespace dmt::cuda {
namespace {

constexpr int kThreads = 256;

DMT_DEVICE bool is_missing(const Bags& bags, int64_t bag, int64_t position) {
  const Feature& feature = bags.features[bag / bags.num_samples % bags.num_features];
  return row_of(bags, feature, load_id(bags, position)) == kMissing;
}

__global__ void __launch_bounds__(kThreads) start(MissingIds* missing) {
  if (threadIdx.x == 0) *missing = {0, -1, -1, -1, -1};
}

// `lanes` threads share a bag. What is least of missing->block, as a number without sign, is the first bag that has
// one.
__global__ void __launch_bounds__(kThreads) find_bag(const Bags bags, int lanes, MissingIds* missing) {
  const int64_t thread = blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x;
  const int64_t bag = thread / lanes;
  if (bag >= bags.num_blocks * bags.num_features * bags.num_samples) return;
  unsigned long long count = 0;
  const int64_t end = load_offset(bags, bag + 1);
  for (int64_t p = load_offset(bags, bag) + thread % lanes; p < end; p += lanes) count += is_missing(bags, bag, p);
  if (count == 0) return;
  atomicAdd(&missing->count, count);
  atomicMin(reinterpret_cast<unsigned long long*>(&missing->block), static_cast<unsigned long long>(bag));
}

__global__ void __launch_bounds__(kThreads) find_position(const Bags bags, MissingIds* missing) {
  if (threadIdx.x != 0 || missing->count == 0) return;
  const int64_t bag = missing->block;
  const int64_t begin = load_offset(bags, bag);
  const int64_t end = load_offset(bags, bag + 1);
  int64_t p = begin;
  while (p < end && !is_missing(bags, bag, p)) ++p;
  const int64_t group = bag / bags.num_samples;
  *missing = {missing->count, group / bags.num_features, group % bags.num_features, bag % bags.num_samples, p - begin};
}

}  // namespace

void check_ids(const Bags& bags, MissingIds* missing, cudaStream_t stream) {
  launch(start, 1, kThreads, 0, stream, missing);
  const int64_t num_bags = bags.num_blocks * bags.num_features * bags.num_samples;
  if (num_bags == 0 || bags.num_ids == 0) return;
  int lanes = 1;
  while (lanes < 32 && lanes * num_bags < bags.num_ids) lanes *= 2;
  launch(find_bag, ceil_div<int64_t>(num_bags * lanes, kThreads), kThreads, 0, stream, bags, lanes, missing);
  launch(find_position, 1, kThreads, 0, stream, bags, missing);
}

}  // namespace dmt::cuda
