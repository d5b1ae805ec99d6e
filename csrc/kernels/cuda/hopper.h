// What the kernels use of Hopper: barriers in shared memory, copies and products that run beside the program. Only code
// for sm_90a may use it (and g++, as device.h says).
#pragma once

#include "device.h"

#if !defined(__CUDACC__)
#include "simt_hopper.h"
#endif

#if defined(__CUDA_ARCH_FEAT_SM90_ALL) || !defined(__CUDACC__)
#define DMT_SM90A_CODE
#endif

namespace dmt::cuda {

// A tile in shared memory has 64 elements of 16 bits, 128 bytes, a row. Its parts of 16 bytes are exchanged so that the
// same part of eight rows lies in different banks.
constexpr int kSwizzledRow = 128;

DMT_BOTH int swizzled_part(int row, int part) { return row * kSwizzledRow + (part ^ row % 8) * 16; }

#if defined(__CUDACC__)

constexpr int kClusterBlocks = 2;      // of tower_pool's clusters
constexpr int kMostClusterBlocks = 8;  // that any Hopper GPU has room for

// Whether the current device is one, and this was compiled for it.
inline bool is_hopper() {
#if defined(DMT_SM90A)
  return attribute_of_device(cudaDevAttrComputeCapabilityMajor) == 9;
#else
  return false;
#endif
}

// kernel<<<...>>>(arguments...) in clusters of `together` blocks. It may begin before the last kernel of the stream has
// ended, whose results are there after wait_for_last_kernel().
template <class... Parameters, class... Arguments>
void launch_clusters(void (*kernel)(Parameters...), int together, int64_t blocks, int threads, int64_t shared,
                     cudaStream_t stream, const Arguments&... arguments) {
  if (blocks == 0) return;
  if (blocks > 0x7FFFFFFF) throw std::length_error("too much work for one launch");
  check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared)),
             "asking for shared memory");
  cudaLaunchAttribute attributes[2] = {};
  attributes[0].id = cudaLaunchAttributeClusterDimension;
  attributes[0].val.clusterDim.x = static_cast<unsigned>(together);
  attributes[0].val.clusterDim.y = attributes[0].val.clusterDim.z = 1;
  attributes[1].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[1].val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = static_cast<size_t>(shared);
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = 2;
  check_cuda(cudaLaunchKernelEx(&config, kernel, arguments...), "launching a kernel");
}

DMT_DEVICE void wait_for_last_kernel() { asm volatile("griddepcontrol.wait;" ::: "memory"); }

// Of each thread of a warpgroup, whose warps all say so; `kOld` of them it has had.
template <int kOld, int kRegisters>
DMT_DEVICE void set_registers() {
  if constexpr (kRegisters > kOld) {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
  } else {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
  }
}

DMT_DEVICE unsigned shared_address(const void* shared) {
  return static_cast<unsigned>(__cvta_generic_to_shared(shared));
}

// ---- Barriers: a phase ends with the last of its arrivals and of its expected bytes --------------------------------

DMT_DEVICE void init_barrier(uint64_t* barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals) : "memory");
}

DMT_DEVICE void publish_barriers() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }

DMT_DEVICE void arrive(uint64_t* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}

// When all copies are there (copy_async) that this thread has begun.
DMT_DEVICE void arrive_after_copies(uint64_t* barrier) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(shared_address(barrier)) : "memory");
}

DMT_DEVICE void arrive_expecting(uint64_t* barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
               : "memory");
}

// At the barrier that lies in the same place of block `rank` of the cluster.
DMT_DEVICE void arrive_at(uint64_t* barrier, unsigned rank) {
  asm volatile(
      "{\n.reg .b32 remote;\n"
      "mapa.shared::cluster.u32 remote, %0, %1;\n"
      "mbarrier.arrive.shared::cluster.b64 _, [remote];\n}" ::"r"(shared_address(barrier)),
      "r"(rank)
      : "memory");
}

DMT_DEVICE bool has_ended(uint64_t* barrier, unsigned parity) {
  unsigned ended;
  asm volatile(
      "{\n.reg .pred p;\n"
      "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
      "selp.u32 %0, 1, 0, p;\n}"
      : "=r"(ended)
      : "r"(shared_address(barrier)), "r"(parity)
      : "memory");
  return ended != 0;
}

// Until the phase of this parity has ended. (The phase before the first one has parity 1.)
DMT_DEVICE void wait_for(uint64_t* barrier, unsigned parity) {
  while (!has_ended(barrier, parity)) {
  }
}

DMT_DEVICE void cluster_sync() {
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}

DMT_DEVICE unsigned cluster_rank() {
  unsigned rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}

// What lies in the same place of the shared memory of block `rank` of the cluster.
DMT_DEVICE uint2 load_of_block(const uint2* shared, unsigned rank) {
  uint2 value;
  asm volatile(
      "{\n.reg .b32 remote;\n"
      "mapa.shared::cluster.u32 remote, %2, %3;\n"
      "ld.shared::cluster.v2.u32 {%0, %1}, [remote];\n}"
      : "=r"(value.x), "=r"(value.y)
      : "r"(shared_address(shared)), "r"(rank)
      : "memory");
  return value;
}

// Makes what this thread knows to be written to shared memory visible to products that it begins.
DMT_DEVICE void publish_writes() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// ---- Copies -------------------------------------------------------------------------------------------------------

// `bytes` consecutive ones (a multiple of 16) to the same place of all blocks of the cluster, counted at their
// barriers.
DMT_DEVICE void copy_to_cluster(void* shared, const void* global, int bytes, uint64_t* barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1], %2, [%3], "
      "%4;" ::"r"(shared_address(shared)),
      "l"(global), "r"(bytes), "r"(shared_address(barrier)), "h"(static_cast<uint16_t>((1 << kClusterBlocks) - 1))
      : "memory");
}

// ---- Products -----------------------------------------------------------------------------------------------------

// A tile (see above), whose address is a multiple of 1,024, for the instruction.
DMT_DEVICE uint64_t describe_tile(const void* tile) {
  constexpr uint64_t kSwizzle = uint64_t{1} << 62;         // of 128 bytes
  constexpr uint64_t kStride = uint64_t{1024 / 16} << 32;  // between groups of eight rows
  return kSwizzle | kStride | uint64_t{1} << 16 | (shared_address(tile) & 0x3FFFF) / 16;
}

DMT_DEVICE void begin_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
DMT_DEVICE void commit_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Until all but the last `kLeft` groups of products are done.
template <int kLeft>
DMT_DEVICE void wait_for_products() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kLeft) : "memory");
}

// What follows reads this sum, after a wait and not before it.
DMT_DEVICE void receive_sum(float& sum) { asm volatile("" : "+f"(sum)::"memory"); }

// sums [64, 128] = a [64, 16] @ b [128, 16].T, added to what they were if `adds`, by the 128 threads of a warpgroup.
DMT_DEVICE void multiply_add(float (&sums)[64], uint64_t a, uint64_t b, bool adds) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, "
      "%13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, "
      "%35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, "
      "%57, %58, %59, %60, %61, %62, %63}, %64, %65, p, 1, 1, 0, 0;\n}"
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3]), "+f"(sums[4]), "+f"(sums[5]), "+f"(sums[6]),
        "+f"(sums[7]), "+f"(sums[8]), "+f"(sums[9]), "+f"(sums[10]), "+f"(sums[11]), "+f"(sums[12]), "+f"(sums[13]),
        "+f"(sums[14]), "+f"(sums[15]), "+f"(sums[16]), "+f"(sums[17]), "+f"(sums[18]), "+f"(sums[19]), "+f"(sums[20]),
        "+f"(sums[21]), "+f"(sums[22]), "+f"(sums[23]), "+f"(sums[24]), "+f"(sums[25]), "+f"(sums[26]), "+f"(sums[27]),
        "+f"(sums[28]), "+f"(sums[29]), "+f"(sums[30]), "+f"(sums[31]), "+f"(sums[32]), "+f"(sums[33]), "+f"(sums[34]),
        "+f"(sums[35]), "+f"(sums[36]), "+f"(sums[37]), "+f"(sums[38]), "+f"(sums[39]), "+f"(sums[40]), "+f"(sums[41]),
        "+f"(sums[42]), "+f"(sums[43]), "+f"(sums[44]), "+f"(sums[45]), "+f"(sums[46]), "+f"(sums[47]), "+f"(sums[48]),
        "+f"(sums[49]), "+f"(sums[50]), "+f"(sums[51]), "+f"(sums[52]), "+f"(sums[53]), "+f"(sums[54]), "+f"(sums[55]),
        "+f"(sums[56]), "+f"(sums[57]), "+f"(sums[58]), "+f"(sums[59]), "+f"(sums[60]), "+f"(sums[61]), "+f"(sums[62]),
        "+f"(sums[63])
      : "l"(a), "l"(b), "r"(static_cast<int>(adds)));
}

#endif

}  // namespace dmt::cuda
