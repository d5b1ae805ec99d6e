// What the kernels use of CUDA, and how they are launched. Compiled by g++ instead of nvcc, they run on the CPU, thread
// by thread: simt.h (tests/simt) then stands in for the language and the few intrinsics below.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>

#if defined(__CUDACC__)
#include <cuda_runtime.h>
#define DMT_DEVICE static __device__ __forceinline__
#define DMT_BOTH static __host__ __device__ __forceinline__
#define DMT_MEMBER __device__ __forceinline__
// `name`: the dynamic shared memory of the block.
#define DMT_DYNAMIC_SHARED(name) extern __shared__ __align__(16) unsigned char name[]
#else
#include "simt.h"
#endif

namespace dmt::cuda {

constexpr unsigned kAllLanes = 0xFFFFFFFFu;
constexpr int64_t kSharedBytes = 48 << 10;  // what a block has without asking

#if defined(__CUDACC__)

inline void check_cuda(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // forgets it: the next launch did not fail
  throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(error));
}

// kernel<<<blocks, threads, shared, stream>>>(arguments...), and nothing for no blocks.
template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), int64_t blocks, int threads, int64_t shared, cudaStream_t stream,
            const Arguments&... arguments) {
  if (blocks == 0) return;
  if (blocks > 0x7FFFFFFF) throw std::length_error("too much work for one launch");
  if (shared > kSharedBytes) {
    check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared)),
               "asking for shared memory");
  }
  kernel<<<static_cast<unsigned>(blocks), threads, shared, stream>>>(arguments...);
  check_cuda(cudaGetLastError(), "launching a kernel");
}

inline int attribute_of_device(cudaDeviceAttr attribute) {
  int device = 0;
  int value = 0;
  check_cuda(cudaGetDevice(&device), "asking for the device");
  check_cuda(cudaDeviceGetAttribute(&value, attribute, device), "asking what the device is");
  return value;
}

inline int multiprocessors() { return attribute_of_device(cudaDevAttrMultiProcessorCount); }

// What a block may ask for, less a little that kernels have without asking.
inline int64_t most_shared() { return attribute_of_device(cudaDevAttrMaxSharedMemoryPerBlockOptin) - int64_t{4 << 10}; }

// Memory of the current device that is never given back; null if there is none.
inline void* allocate(int64_t bytes) {
  void* memory = nullptr;
  if (cudaMalloc(&memory, static_cast<size_t>(bytes)) == cudaSuccess) return memory;
  cudaGetLastError();  // forgets it
  return nullptr;
}

// Whether what the stream is given becomes part of a CUDA graph.
inline bool is_captured(cudaStream_t stream) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  check_cuda(cudaStreamIsCapturing(stream, &status), "asking whether a graph is made");
  return status != cudaStreamCaptureStatusNone;
}

inline void fill_bytes(void* target, int value, int64_t bytes, cudaStream_t stream) {
  check_cuda(cudaMemsetAsync(target, value, static_cast<size_t>(bytes), stream), "filling memory");
}

// From the device to the device.
inline void copy_bytes(void* target, const void* source, int64_t bytes, cudaStream_t stream) {
  check_cuda(cudaMemcpyAsync(target, source, static_cast<size_t>(bytes), cudaMemcpyDeviceToDevice, stream), "copying");
}

// Copies to the host, and waits.
inline void download(void* target, const void* source, int64_t bytes, cudaStream_t stream) {
  check_cuda(cudaMemcpyAsync(target, source, static_cast<size_t>(bytes), cudaMemcpyDeviceToHost, stream), "copying");
  check_cuda(cudaStreamSynchronize(stream), "waiting for the device");
}

#endif

template <class Value>
constexpr Value ceil_div(Value a, Value b) {
  return (a + b - 1) / b;
}

// ---- Copies into shared memory that run beside the program --------------------------------------------------------

#if defined(__CUDACC__)

// 16 bytes, or 16 zeros. Both addresses are multiples of 16.
DMT_DEVICE void copy_async(void* shared, const void* global, bool is_there) {
  const unsigned target = static_cast<unsigned>(__cvta_generic_to_shared(shared));
  const int bytes = is_there ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(target), "l"(global), "r"(bytes) : "memory");
}

// The same in a third of the instructions, which no GPU has run yet.
DMT_DEVICE void copy_async_short(void* shared, const void* global, bool is_there) {
  const unsigned target = static_cast<unsigned>(__cvta_generic_to_shared(shared));
  asm volatile(
      "{\n.reg .pred ignored;\nsetp.eq.u32 ignored, %2, 0;\n"
      "cp.async.cg.shared.global [%0], [%1], 16, ignored;\n}" ::"r"(target),
      "l"(global), "r"(static_cast<unsigned>(is_there))
      : "memory");
}

DMT_DEVICE void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Until all but the last `kLeft` groups of this thread's copies are there.
template <int kLeft>
DMT_DEVICE void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kLeft) : "memory");
}

#endif

}  // namespace dmt::cuda
