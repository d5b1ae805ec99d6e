// What lookups and updates with one id to a bag take on a GPU if they do only a part of what ours do, step by step: how
// far kernels may still go, and what holds them up. Shapes as in bench/gpu/device.py.
//
//   nvcc -O3 -std=c++20 -arch=native bench/gpu/ceilings.cu -o ceilings && ./ceilings
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <numeric>
#include <random>
#include <vector>

namespace {

constexpr int kFeatures = 26;
constexpr int kSamples = 16384;
constexpr int kIds = kFeatures * kSamples;
constexpr int64_t kRows = 1'000'000;  // of a table
constexpr int kThreads = 128;

void check(cudaError_t error) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "%s\n", cudaGetErrorString(error));
  std::exit(1);
}

template <class T>
T* on_device(const std::vector<T>& values) {
  T* there = nullptr;
  check(cudaMalloc(&there, values.size() * sizeof(T)));
  check(cudaMemcpy(there, values.data(), values.size() * sizeof(T), cudaMemcpyDefault));
  return there;
}

template <class T>
T* zeros(int64_t count) {
  T* there = nullptr;
  check(cudaMalloc(&there, count * sizeof(T)));
  check(cudaMemset(there, 0, count * sizeof(T)));
  return there;
}

__global__ void spin() {  // until the host has queued what is timed
  const long long begin = clock64();
  while (clock64() - begin < 400'000) {
  }
}

void report(const char* name, const std::function<void()>& run) {
  cudaEvent_t begin, end;
  check(cudaEventCreate(&begin));
  check(cudaEventCreate(&end));
  std::vector<float> times(27);
  for (float& time : times) {
    spin<<<1, 1>>>();
    check(cudaEventRecord(begin));
    run();
    check(cudaEventRecord(end));
    check(cudaEventSynchronize(end));
    check(cudaEventElapsedTime(&time, begin, end));
  }
  std::sort(times.begin(), times.end());
  std::printf("%-66s %7.1f us\n", name, 1000 * times[times.size() / 2]);
}

// ---- Lookups: rows of kWords 16-byte words, kTogether on their way ------------------------------------------------

struct Table {
  uint4* rows;
  float* states;
  int64_t count;
  int64_t first;
};

enum Lookup { kCopied, kOffsets, kChecked, kShared };  // each with what those before it have

// A group of kWords lanes copies the rows of `run` bags of a feature.
template <int kWords, int kTogether, Lookup kStep, int kBlocks>
__global__ void __launch_bounds__(kThreads, kBlocks)
    copy_rows(const Table* tables, uint4* out, const int64_t* ids, const int64_t* offsets, int run) {
  const int group = (blockIdx.x * kThreads + threadIdx.x) / kWords;
  const int lane = threadIdx.x % kWords;
  const int first = group * run;
  if (first >= kIds) return;
  const int f = first / kSamples;
  const uint4* const rows = tables[f].rows + lane;
  const auto place_of = [&](int bag) -> int64_t {
    int64_t position = bag;
    if (kStep >= kOffsets) {
      position = offsets[bag];
      if (offsets[bag + 1] <= position) return -1;
    }
    const int64_t row = ids[position] - (kStep >= kChecked ? tables[f].first : 0);
    return kStep < kChecked || static_cast<uint64_t>(row) < static_cast<uint64_t>(tables[f].count) ? row * kWords : -1;
  };
  for (int base = 0; base < run; base += kWords) {
    int64_t mine = -1;
    if (kStep == kShared && lane < run - base) mine = place_of(first + base + lane);
    for (int i = 0; i < kWords && i < run - base; i += kTogether) {
      uint4 words[kTogether] = {};
#pragma unroll
      for (int u = 0; u < kTogether; ++u) {
        const int64_t place = kStep == kShared ? __shfl_sync(~0u, mine, i + u, kWords) : place_of(first + base + i + u);
        if (place >= 0) words[u] = __ldg(rows + place);
      }
#pragma unroll
      for (int u = 0; u < kTogether; ++u) {
        const int64_t sample = (first + base + i + u) % kSamples;
        out[(sample * kFeatures + f) * kWords + lane] = words[u];
      }
    }
  }
}

// ---- Updates: a warp a row of 128 floats, in the order of the sorted keys ------------------------------------------

enum Update { kRead, kGradient, kWritten, kStates, kSquares, kHeads };

// key: row, feature (5 bits), sample (14), feature (5).
template <int kTogether, Update kStep, int kBlocks>
__global__ void __launch_bounds__(kThreads, kBlocks)
    update_rows(const Table* tables, const float4* grad, const uint64_t* keys) {
  const int first = (blockIdx.x * kThreads + threadIdx.x) / 32 * kTogether;
  const int lane = threadIdx.x % 32;
  if (first >= kIds) return;
  float4* rows[kTogether];
  float* states[kTogether];
  float4 weights[kTogether] = {};
  float4 sums[kTogether];
  float state[kTogether];
#pragma unroll
  for (int u = 0; u < kTogether; ++u) {
    const uint64_t key = keys[first + u];
    const int64_t f = key & 31;
    const int64_t row = key >> 24;
    rows[u] = reinterpret_cast<float4*>(tables[f].rows) + row * 32 + lane;
    states[u] = tables[f].states + row;
    if (kStep >= kHeads && first + u > 0 && keys[first + u - 1] >> 19 == key >> 19) rows[u] = nullptr;
    sums[u] = {1, 1, 1, 1};
    if (kStep >= kGradient) sums[u] = __ldg(grad + ((key >> 5 & 16383) * kFeatures + f) * 32 + lane);
    if (rows[u] != nullptr) weights[u] = *rows[u];
    state[u] = kStep >= kStates && rows[u] != nullptr ? *states[u] : 1;
  }
#pragma unroll
  for (int u = 0; u < kTogether; ++u) {
    if (rows[u] == nullptr) continue;
    float multiplier = 0.01f;
    if (kStep >= kSquares) {
      const auto square = [](float x) { return static_cast<double>(x) * x; };
      double sum = square(sums[u].x) + square(sums[u].y) + (square(sums[u].z) + square(sums[u].w));
#pragma unroll
      for (int distance = 16; distance > 0; distance /= 2) sum += __shfl_xor_sync(~0u, sum, distance);
      state[u] += static_cast<float>(sum / 128);
      multiplier /= sqrtf(state[u]) + 1e-8f;
    }
    if (kStep >= kStates && lane == 0) *states[u] = state[u];
    weights[u].x -= multiplier * sums[u].x;
    weights[u].y -= multiplier * sums[u].y;
    weights[u].z -= multiplier * sums[u].z;
    weights[u].w -= multiplier * sums[u].w;
    if (kStep >= kWritten || weights[u].x + weights[u].y + weights[u].z + weights[u].w == 12345.0f) {
      *rows[u] = weights[u];  // what is not used would not be read
    }
  }
}

template <int kWords, int kTogether, Lookup kStep, int kBlocks>
void report_lookup(const char* name, const Table* tables, uint4* out, const int64_t* ids, const int64_t* offsets,
                   int run) {
  char line[80];
  std::snprintf(line, sizeof line, "%d bytes, %s, %d at once, runs of %d, %d blocks", kWords * 16, name, kTogether, run,
                kBlocks);
  const unsigned blocks = (kIds / run * kWords + kThreads - 1) / kThreads;
  report(line,
         [=] { copy_rows<kWords, kTogether, kStep, kBlocks><<<blocks, kThreads>>>(tables, out, ids, offsets, run); });
  check(cudaDeviceSynchronize());
}

template <int kTogether, Update kStep, int kBlocks>
void report_update(const char* name, const Table* tables, const float4* grad, const uint64_t* keys) {
  char line[80];
  std::snprintf(line, sizeof line, "%s, %d at once, %d blocks", name, kTogether, kBlocks);
  const unsigned blocks = (kIds / kTogether * 32 + kThreads - 1) / kThreads;
  report(line, [=] { update_rows<kTogether, kStep, kBlocks><<<blocks, kThreads>>>(tables, grad, keys); });
  check(cudaDeviceSynchronize());
}

}  // namespace

int main() {
  std::mt19937 random(1);
  std::vector<int64_t> ids(kIds);
  for (int64_t& id : ids) id = random() % kRows;
  std::vector<int64_t> offsets(kIds + 1);
  std::iota(offsets.begin(), offsets.end(), 0);
  const int64_t* const ids_there = on_device(ids);
  const int64_t* const offsets_there = on_device(offsets);
  uint4* const out = zeros<uint4>(int64_t{kIds} * 32);
  uint4* const rows = zeros<uint4>(kFeatures * kRows * 32);
  float* const states = zeros<float>(kFeatures * kRows);
  const auto tables = [&](int words) {
    std::vector<Table> all;
    for (int64_t f = 0; f < kFeatures; ++f) {
      all.push_back({rows + f * kRows * words, states + f * kRows, kRows, 0});
    }
    return on_device(all);
  };

  const Table* const narrow = tables(16);
  report_lookup<16, 8, kCopied, 8>("rows copied", narrow, out, ids_there, offsets_there, 16);
  report_lookup<16, 8, kOffsets, 8>("bags looked at", narrow, out, ids_there, offsets_there, 16);
  report_lookup<16, 8, kChecked, 8>("ids checked", narrow, out, ids_there, offsets_there, 16);
  report_lookup<16, 8, kShared, 8>("shared by lanes", narrow, out, ids_there, offsets_there, 16);
  report_lookup<16, 8, kShared, 5>("shared by lanes", narrow, out, ids_there, offsets_there, 16);
  report_lookup<16, 4, kChecked, 12>("ids checked", narrow, out, ids_there, offsets_there, 4);
  report_lookup<16, 2, kChecked, 16>("ids checked", narrow, out, ids_there, offsets_there, 2);
  const Table* const wide = tables(32);
  report_lookup<32, 8, kCopied, 8>("rows copied", wide, out, ids_there, offsets_there, 16);
  report_lookup<32, 8, kShared, 8>("shared by lanes", wide, out, ids_there, offsets_there, 16);
  report_lookup<32, 4, kChecked, 12>("ids checked", wide, out, ids_there, offsets_there, 4);

  std::vector<uint64_t> keys;
  for (uint64_t i = 0; i < kIds; ++i) {
    const uint64_t f = i / kSamples;
    keys.push_back(static_cast<uint64_t>(ids[i]) << 24 | f << 19 | i % kSamples << 5 | f);
  }
  std::sort(keys.begin(), keys.end());
  const uint64_t* const keys_there = on_device(keys);
  const float4* const grad = reinterpret_cast<const float4*>(out);
  report_update<2, kRead, 8>("rows read", wide, grad, keys_there);
  report_update<2, kGradient, 8>("rows and gradients read", wide, grad, keys_there);
  report_update<2, kWritten, 8>("and rows written", wide, grad, keys_there);
  report_update<2, kStates, 8>("and states", wide, grad, keys_there);
  report_update<2, kSquares, 8>("and squares", wide, grad, keys_there);
  report_update<2, kHeads, 8>("and keys compared", wide, grad, keys_there);
  report_update<1, kHeads, 16>("and keys compared", wide, grad, keys_there);
  report_update<4, kHeads, 6>("and keys compared", wide, grad, keys_there);
  return 0;
}
