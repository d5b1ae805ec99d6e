// Hopper's instructions on a CPU (csrc/kernels/cuda/hopper.h), for simt.h: barriers that threads wait for, and products
// that are not made before they are waited for. A cluster has one block.
#pragma once

#include "simt.h"

namespace dmt::cuda {

constexpr int kClusterBlocks = 1;
constexpr int kMostClusterBlocks = 1;

inline bool is_hopper() { return true; }

template <class... Parameters, class... Arguments>
void launch_clusters(void (*kernel)(Parameters...), int, int64_t blocks, int threads, int64_t shared,
                     cudaStream_t stream, const Arguments&... arguments) {
  launch(kernel, blocks, threads, shared, stream, arguments...);
}

inline void wait_for_last_kernel() {}
inline void cluster_sync() { simt::block->barrier(); }
inline unsigned cluster_rank() { return 0; }
inline uint2 load_of_block(const uint2* shared, unsigned) { return *shared; }
inline void publish_barriers() {}
inline void publish_writes() {}
template <int kOld, int kRegisters>
void set_registers() {}

inline unsigned shared_address(const void* shared) {
  return static_cast<unsigned>(reinterpret_cast<uintptr_t>(shared));
}

// ---- Barriers -----------------------------------------------------------------------------------------------------

struct Barrier {
  int32_t bytes : 24;  // that are expected yet
  int32_t parity : 8;  // of this phase
  uint16_t arrivals;
  uint16_t arrivals_left;
};
static_assert(sizeof(Barrier) == sizeof(uint64_t));

inline Barrier load_barrier(const uint64_t* barrier) {
  Barrier value;
  std::memcpy(&value, barrier, sizeof value);
  return value;
}

inline void store_barrier(uint64_t* barrier, Barrier value) {
  if (value.arrivals_left == 0 && value.bytes == 0) {
    value.arrivals_left = value.arrivals;
    value.parity ^= 1;
  }
  std::memcpy(barrier, &value, sizeof value);
  simt::block->advance();
}

inline void init_barrier(uint64_t* barrier, int arrivals) {
  const auto count = static_cast<uint16_t>(arrivals);
  store_barrier(barrier, {0, 0, count, count});
}

inline void arrive_expecting(uint64_t* barrier, int bytes) {
  Barrier value = load_barrier(barrier);
  if (value.arrivals_left == 0) throw std::logic_error("a barrier has more arrivals than it waits for");
  --value.arrivals_left;
  value.bytes += bytes;
  store_barrier(barrier, value);
}

inline void arrive(uint64_t* barrier) { arrive_expecting(barrier, 0); }
inline void arrive_after_copies(uint64_t* barrier) {
  simt::block->commit_copies();
  wait_for_copies<0>();
  arrive(barrier);
}
inline void arrive_at(uint64_t* barrier, unsigned) { arrive(barrier); }

inline bool has_ended(uint64_t* barrier, unsigned parity) {
  if (load_barrier(barrier).parity == static_cast<int>(parity)) simt::block->yield();
  if (load_barrier(barrier).parity == static_cast<int>(parity)) return false;
  simt::block->advance();
  return true;
}

inline void wait_for(uint64_t* barrier, unsigned parity) {
  while (!has_ended(barrier, parity)) {
  }
}

inline void copy_to_cluster(void* shared, const void* global, int bytes, uint64_t* barrier) {
  std::memcpy(shared, global, static_cast<size_t>(bytes));
  Barrier value = load_barrier(barrier);
  value.bytes -= bytes;
  store_barrier(barrier, value);
}

// ---- Products -----------------------------------------------------------------------------------------------------

inline uint64_t describe_tile(const void* tile) {
  if (reinterpret_cast<uintptr_t>(tile) % 1024) throw std::logic_error("a tile that is not aligned");
  return reinterpret_cast<uintptr_t>(tile) / 16;
}

// Here the lanes of a warp meet, as on a device.
inline void begin_products() { __syncwarp(); }
inline void commit_products() { simt::block->commit_work(); }
template <int kLeft>
void wait_for_products() {
  simt::block->wait_for_work(kLeft);
  __syncwarp();
}
inline void receive_sum(float&) {}

// sums [64, 128] = a [64, 16] @ b [128, 16].T, added to what they were if `adds`.
inline void multiply_add(float (&sums)[64], uint64_t a, uint64_t b, bool adds) {
  const auto at = [](uint64_t tile, int row, int k) {
    const uintptr_t place = tile * 16 + static_cast<uintptr_t>(row * 128 + k * 2);
    cpu::BFloat16 value;
    std::memcpy(&value, reinterpret_cast<const void*>(place ^ (place >> 7 & 7) << 4), 2);
    return cpu::load(value);
  };
  const int lane = static_cast<int>(threadIdx.x % 32);
  const int first = static_cast<int>(threadIdx.x % 128 / 32 * 16) + lane / 4;
  simt::block->work([=, &sums] {
    for (int i = 0; i < 64; ++i) {
      float sum = adds ? sums[i] : 0;
      for (int k = 0; k < 16; ++k) sum += at(a, first + i / 2 % 2 * 8, k) * at(b, i / 4 * 8 + lane % 4 * 2 + i % 2, k);
      sums[i] = sum;
    }
  });
}

}  // namespace dmt::cuda
