// A stable sort of keys, with or without values, by some of their bits.
#pragma once

#include <cstdint>

#include "device.h"

#if defined(__CUDACC__)
#include <cub/device/device_radix_sort.cuh>
#endif

namespace dmt::cuda {

// Two places each, of which the first is full before the sort, and `first` says which is after it.
struct SortBuffers {
  uint64_t* keys[2];
  float* values[2];  // or null
  int64_t count;
};

#if defined(__CUDACC__)

// Sorts, and returns which place is full. Without `scratch`, only sets its size, for which shapes suffice.
inline int radix_sort(const SortBuffers& buffers, int begin_bit, int end_bit, void* scratch, int64_t& scratch_bytes,
                      cudaStream_t stream) {
  cub::DoubleBuffer<uint64_t> keys(buffers.keys[0], buffers.keys[1]);
  size_t bytes = static_cast<size_t>(scratch_bytes);
  if (buffers.values[0] != nullptr) {
    cub::DoubleBuffer<float> values(buffers.values[0], buffers.values[1]);
    check_cuda(cub::DeviceRadixSort::SortPairs(scratch, bytes, keys, values, buffers.count, begin_bit, end_bit, stream),
               "sorting ids");
  } else {
    check_cuda(cub::DeviceRadixSort::SortKeys(scratch, bytes, keys, buffers.count, begin_bit, end_bit, stream),
               "sorting ids");
  }
  scratch_bytes = static_cast<int64_t>(bytes);
  return keys.selector;
}

#endif

}  // namespace dmt::cuda
