// Digit by digit, from the last one on: every warp counts the digits of its keys; the counts of all warps, in order,
// and of all digits before say where the keys of a digit go.
#include "sort_features.h"

#include "hopper.h"

namespace dmt::cuda {
namespace {

constexpr int kThreads = 512;
constexpr int kWarps = kThreads / 32;
constexpr int kMostBits = 10;  // of a digit
constexpr int kDigits = 1 << kMostBits;
constexpr int kTogether = 4;  // keys of a lane on their way
constexpr int kShared = (kWarps + 1) * kDigits * 4 + kWarps * 4;
static_assert(kDigits == 2 * kThreads);

struct Pass {
  uint64_t* keys;
  float* values;  // or null
  uint64_t* to_keys;
  float* to_values;
  int first_bit;
  int bits;

  DMT_MEMBER int digit_of(uint64_t key) const { return static_cast<int>(key >> first_bit & ((1u << bits) - 1)); }
};

#if defined(DMT_SM90A_CODE)

template <class Value>
DMT_DEVICE void exchange(Value& a, Value& b) {
  const Value old = a;
  a = b;
  b = old;
}

// The keys of a feature, and a warp's share of them.
struct Share {
  int64_t begin;  // of the feature
  int64_t end;
  int64_t first;  // of the warp
  int64_t last;
};

DMT_DEVICE Share share_of_warp(const Bags& bags) {
  const int64_t f = blockIdx.x / kMostClusterBlocks;
  const int64_t begin = load_offset(bags, f * bags.num_samples);
  const int64_t end = load_offset(bags, (f + 1) * bags.num_samples);
  const int64_t size = end > begin ? end - begin : 0;
  const int64_t warps = int64_t{kMostClusterBlocks} * kWarps;
  const int64_t each = ceil_div<int64_t>(size, 32 * warps) * 32;
  const int64_t first = (cluster_rank() * kWarps + threadIdx.x / 32) * each;
  const auto place = [&](int64_t i) { return begin + (i < size ? i : size); };
  return {begin, begin + size, place(first), place(first + each)};
}

// function(key, i) for the warp's keys, in order, 32 at a time; of none (i < 0) where there are no more.
template <class Function>
DMT_DEVICE void for_keys(const Pass& pass, const Share& share, const Function& function) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  for (int64_t first = share.first; first < share.last; first += 32 * kTogether) {
    uint64_t keys[kTogether];
#pragma unroll
    for (int u = 0; u < kTogether; ++u) {
      const int64_t i = first + 32 * u + lane;
      keys[u] = i < share.last ? __ldcg(pass.keys + i) : 0;
    }
#pragma unroll
    for (int u = 0; u < kTogether; ++u) {
      const int64_t i = first + 32 * u + lane;
      function(keys[u], i < share.last ? i : -1);
    }
  }
}

// The sum over all threads before this one, and `sums` [kWarps] is shared memory.
DMT_DEVICE unsigned sum_before(unsigned value, unsigned* sums) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  const int warp = static_cast<int>(threadIdx.x / 32);
  unsigned sum = value;
  for (int distance = 1; distance < 32; distance *= 2) {
    const unsigned other = __shfl_sync(kAllLanes, sum, (lane - distance) & 31);
    if (lane >= distance) sum += other;
  }
  if (lane == 31) sums[warp] = sum;
  __syncthreads();
  unsigned before = sum - value;
  for (int w = 0; w < warp; ++w) before += sums[w];
  return before;
}

// counts [kWarps, kDigits] of the block become where, counted from the feature's first key, the keys of a warp and
// digit begin. `totals` [kDigits]: the block's, which all blocks of the cluster read. A thread has two digits.
DMT_DEVICE void place_digits(uint2* counts, uint2* totals, unsigned* sums) {
  constexpr int kStride = kDigits / 2;
  uint2* const mine = counts + threadIdx.x;
  uint2 total = {};
#pragma unroll
  for (int w = 0; w < kWarps; ++w) {
    total.x += mine[w * kStride].x;
    total.y += mine[w * kStride].y;
  }
  totals[threadIdx.x] = total;
  cluster_sync();
  uint2 others[kMostClusterBlocks];
#pragma unroll
  for (int block = 0; block < kMostClusterBlocks; ++block) {
    others[block] = load_of_block(totals + threadIdx.x, static_cast<unsigned>(block));
  }
  uint2 begin = {};
  uint2 all = {};
#pragma unroll
  for (int block = 0; block < kMostClusterBlocks; ++block) {
    all.x += others[block].x;
    all.y += others[block].y;
    if (block < static_cast<int>(cluster_rank())) begin = all;
  }
  const unsigned before = sum_before(all.x + all.y, sums);
  begin.x += before;
  begin.y += before + all.x;
#pragma unroll
  for (int w = 0; w < kWarps; ++w) {
    const uint2 count = mine[w * kStride];
    mine[w * kStride] = begin;
    begin.x += count.x;
    begin.y += count.y;
  }
  __syncthreads();
}

DMT_DEVICE void sort_digit(const Pass& pass, const Share& share, unsigned* shared) {
  unsigned* const totals = shared + kWarps * kDigits;
  unsigned* const mine = shared + threadIdx.x / 32 * kDigits;
  const int lane = static_cast<int>(threadIdx.x % 32);
#pragma unroll
  for (int digit = 4 * lane; digit < kDigits; digit += 128) *reinterpret_cast<uint4*>(mine + digit) = uint4{};
  __syncwarp();
  for_keys(pass, share, [&](uint64_t key, int64_t i) {
    if (i >= 0) atomicAdd(mine + pass.digit_of(key), 1u);
  });
  __syncthreads();
  place_digits(reinterpret_cast<uint2*>(shared), reinterpret_cast<uint2*>(totals), totals + kDigits);
  for_keys(pass, share, [&](uint64_t key, int64_t i) {
    const int digit = i >= 0 ? pass.digit_of(key) : kDigits;
    const unsigned alike = __match_any_sync(kAllLanes, digit);
    const unsigned before = alike & ((1u << lane) - 1);
    __syncwarp();  // the last keys are placed
    const unsigned begin = i >= 0 ? mine[digit] : 0;
    __syncwarp();
    if (i < 0) return;
    if (before == 0) mine[digit] = begin + static_cast<unsigned>(__popc(alike));
    const int64_t to = share.begin + begin + __popc(before);
    // Of offsets that do not ascend, another cluster may have changed these keys since they were counted.
    if (to >= share.end) return;
    pass.to_keys[to] = key;
    if (pass.values != nullptr) pass.to_values[to] = __ldcg(pass.values + i);
  });
  cluster_sync();
}

#endif

__global__ void __launch_bounds__(kThreads, 2)
    sort_digits(const Bags bags, const SortBuffers buffers, int begin_bit, int bits_each, int bits) {
#if defined(DMT_SM90A_CODE)
  DMT_DYNAMIC_SHARED(memory);
  wait_for_last_kernel();
  const Share share = share_of_warp(bags);
  Pass pass = {buffers.keys[0], buffers.values[0], buffers.keys[1], buffers.values[1], begin_bit, bits_each};
  const int end_bit = begin_bit + bits;
  for (; pass.first_bit < end_bit; pass.first_bit += bits_each) {
    if (end_bit - pass.first_bit < bits_each) pass.bits = end_bit - pass.first_bit;
    sort_digit(pass, share, reinterpret_cast<unsigned*>(memory));
    exchange(pass.keys, pass.to_keys);
    exchange(pass.values, pass.to_values);
  }
#else
  __trap();
#endif
}

}  // namespace

bool is_for_clusters(const Bags& bags) {
  // A feature has one cluster, however many ids it has, and a block clears and scans all counts, however few. (How ids
  // are shared out the host does not know.) Measured with 26 features of 16,384 ids.
  return bags.num_blocks == 1 && bags.num_features <= 128 && bags.num_samples <= 1 << 15 &&
         bags.num_ids <= 2 * bags.num_features * bags.num_samples && is_hopper();
}

int sort_features(const Bags& bags, const SortBuffers& buffers, int begin_bit, int bits, cudaStream_t stream) {
  const int passes = ceil_div(bits, kMostBits);
  launch_clusters(sort_digits, kMostClusterBlocks, bags.num_features * kMostClusterBlocks, kThreads, kShared, stream,
                  bags, buffers, begin_bit, passes > 0 ? ceil_div(bits, passes) : 0, bits);
  return passes % 2;
}

}  // namespace dmt::cuda
