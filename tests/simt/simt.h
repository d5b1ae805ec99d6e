// CUDA's language on a CPU, for tests: the threads of a block are coroutines that run until they wait for each other,
// in a random order; blocks run one after the other. Slow, but a barrier that not all threads reach, a lane that is not
// there, a copy that is not waited for or shared memory that nobody wrote show here.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <numeric>
#include <random>
#include <stdexcept>
#include <utility>
#include <vector>

#include "kernels/cpu/float_formats.h"

#define __global__ static
#define __device__
#define __host__
#define __shared__ static
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __restrict__ __restrict
#define DMT_DEVICE static inline
#define DMT_BOTH static inline
#define DMT_MEMBER inline
#define DMT_DYNAMIC_SHARED(name) unsigned char* const name = ::simt::block->shared()

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
using cudaStream_t = void*;

inline dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace simt {

constexpr int kLanes = 32;
constexpr size_t kStackBytes = 128 << 10;

// What lanes of a warp that meet under one mask tell each other. Two places each: a lane may be one meeting ahead.
struct Meeting {
  uint64_t visits[kLanes] = {};
  unsigned char said[2][kLanes][64];
};

struct Copy {
  void* target;
  const void* source;
  bool is_there;
};

class Block {
 public:
  Block(int threads, int64_t shared_bytes, const std::function<void()>& body, unsigned seed)
      : body_(body), threads_(threads), meetings_((threads + kLanes - 1) / kLanes), order_(threads), random_(seed) {
    // As large as asked for, not larger; aligned as a device's; and what is not written is NaN.
    room_.reset(new (std::align_val_t{128}) unsigned char[std::max<int64_t>(shared_bytes, 1)]);
    std::memset(room_.get(), 0xFF, shared_bytes);
    std::iota(order_.begin(), order_.end(), 0);
  }

  void run();
  unsigned char* shared() { return room_.get(); }

  // Ends when all threads that still run are here.
  void barrier() {
    const uint64_t round = rounds_;
    ++waiting_;
    ++progress_;
    release_barrier();
    while (rounds_ == round) yield();
  }

  // all[lane] = what that lane of `mask` says.
  template <class T>
  void meet(unsigned mask, const T& mine, T (&all)[kLanes]) {
    static_assert(sizeof(T) <= 64);
    const int lane = current_ % kLanes;
    if (!(mask >> lane & 1)) throw std::logic_error("a lane meets others under a mask that leaves it out");
    Meeting& meeting = meetings_[current_ / kLanes][mask];
    const uint64_t visit = meeting.visits[lane]++;
    std::memcpy(meeting.said[visit % 2][lane], &mine, sizeof(T));
    ++progress_;
    for (int other = 0; other < kLanes; ++other) {
      if (!(mask >> other & 1)) continue;
      while (meeting.visits[other] <= visit) yield();
      std::memcpy(&all[other], meeting.said[visit % 2][other], sizeof(T));
    }
  }

  // For who waits for something else: the others go on, and something happened.
  void yield() { swapcontext(&contexts_[current_], &scheduler_); }
  void advance() { ++progress_; }

  // Work of a thread that runs beside it, in groups, not before it is waited for.
  void work(std::function<void()> work) { work_[current_].back().push_back(std::move(work)); }
  void commit_work() { work_[current_].emplace_back(); }
  void wait_for_work(size_t left) {
    auto& groups = work_[current_];
    while (groups.size() > left + 1) {
      for (const auto& work : groups.front()) work();
      groups.erase(groups.begin());
    }
  }

  // At once or when they are waited for: nobody knows when a device makes them.
  void copy(const Copy& copy) {
    if (random_() % 2) {
      make(copy);
    } else {
      copies_[current_].back().push_back(copy);
    }
  }
  void commit_copies() { copies_[current_].emplace_back(); }
  void wait_for_copies(size_t left) {
    auto& groups = copies_[current_];
    while (groups.size() > left + 1) {
      for (const Copy& copy : groups.front()) make(copy);
      groups.erase(groups.begin());
    }
  }

 private:
  static void start();
  static void make(const Copy& copy) {
    copy.is_there ? std::memcpy(copy.target, copy.source, 16) : std::memset(copy.target, 0, 16);
  }
  void release_barrier() {
    if (waiting_ < alive_ || waiting_ == 0) return;
    waiting_ = 0;
    ++rounds_;
    ++progress_;
  }

  const std::function<void()>& body_;
  const int threads_;
  struct Free {
    void operator()(unsigned char* bytes) const { ::operator delete[](bytes, std::align_val_t{128}); }
  };
  std::unique_ptr<unsigned char[], Free> room_;
  std::vector<std::map<unsigned, Meeting>> meetings_;
  std::vector<std::vector<std::vector<Copy>>> copies_;
  std::vector<std::vector<std::vector<std::function<void()>>>> work_;
  std::vector<int> order_;
  std::mt19937 random_;
  std::vector<ucontext_t> contexts_;
  std::vector<bool> ended_;
  ucontext_t scheduler_ = {};
  std::exception_ptr failure_;
  int current_ = 0;
  int alive_ = 0;
  int waiting_ = 0;
  uint64_t rounds_ = 0;
  uint64_t progress_ = 0;
};

inline Block* block = nullptr;  // that runs

inline void Block::start() {
  try {
    block->body_();
  } catch (...) {
    block->failure_ = std::current_exception();
  }
  block->ended_[block->current_] = true;
  --block->alive_;
  ++block->progress_;
  block->release_barrier();
  block->yield();
}

inline void Block::run() {
  static std::vector<std::unique_ptr<char[]>> stacks;
  while (static_cast<int>(stacks.size()) < threads_) stacks.push_back(std::make_unique<char[]>(kStackBytes));
  contexts_.resize(threads_);
  ended_.assign(threads_, false);
  copies_.assign(threads_, std::vector<std::vector<Copy>>(1));
  work_.assign(threads_, std::vector<std::vector<std::function<void()>>>(1));
  alive_ = threads_;
  block = this;
  for (int i = 0; i < threads_; ++i) {
    getcontext(&contexts_[i]);
    contexts_[i].uc_stack.ss_sp = stacks[i].get();
    contexts_[i].uc_stack.ss_size = kStackBytes;
    contexts_[i].uc_link = nullptr;
    makecontext(&contexts_[i], &Block::start, 0);
  }
  while (alive_ > 0) {
    std::shuffle(order_.begin(), order_.end(), random_);
    const uint64_t before = progress_;
    for (const int i : order_) {
      if (ended_[i]) continue;
      current_ = i;
      ::threadIdx = {static_cast<unsigned>(i), 0, 0};
      swapcontext(&scheduler_, &contexts_[i]);
      if (failure_) std::rethrow_exception(failure_);
    }
    if (progress_ == before) throw std::logic_error("deadlock: threads wait for others that do not come");
  }
}

template <class T>
T shuffle(unsigned mask, T value, int source) {
  T all[kLanes];
  block->meet(mask, value, all);
  if (!(mask >> source & 1)) throw std::logic_error("a lane reads from one that its mask leaves out");
  return all[source];
}

}  // namespace simt

inline void __syncthreads() { simt::block->barrier(); }

inline void __syncwarp(unsigned mask = 0xFFFFFFFFu) {
  int all[simt::kLanes];
  simt::block->meet(mask, 0, all);
}

template <class T>
T __shfl_sync(unsigned mask, T value, int lane, int width = simt::kLanes) {
  const int self = static_cast<int>(threadIdx.x % simt::kLanes);
  return simt::shuffle(mask, value, self / width * width + lane % width);
}

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int distance, int width = simt::kLanes) {
  const int self = static_cast<int>(threadIdx.x % simt::kLanes);
  const int other = self ^ distance;
  return simt::shuffle(mask, value, other / width == self / width ? other : self);
}

inline unsigned __ballot_sync(unsigned mask, bool vote) {
  unsigned all[simt::kLanes];
  simt::block->meet(mask, static_cast<unsigned>(vote), all);
  unsigned votes = 0;
  for (int lane = 0; lane < simt::kLanes; ++lane) {
    if (mask >> lane & 1) votes |= all[lane] << lane;
  }
  return votes;
}

inline unsigned __match_any_sync(unsigned mask, int value) {
  int all[simt::kLanes];
  simt::block->meet(mask, value, all);
  unsigned alike = 0;
  for (int lane = 0; lane < simt::kLanes; ++lane) {
    if ((mask >> lane & 1) && all[lane] == value) alike |= 1u << lane;
  }
  return alike;
}

inline bool __any_sync(unsigned mask, bool vote) { return __ballot_sync(mask, vote) != 0; }
inline bool __all_sync(unsigned mask, bool vote) { return __ballot_sync(mask, !vote) == 0; }

inline int __popc(unsigned bits) { return __builtin_popcount(bits); }

inline int __ffs(int bits) { return __builtin_ffs(bits); }

template <class T>
T atomicAdd(T* target, T value) {
  return std::exchange(*target, *target + value);
}

template <class T>
T atomicExch(T* target, T value) {
  return std::exchange(*target, value);
}

template <class T>
T atomicMin(T* target, T value) {
  return std::exchange(*target, std::min(*target, value));
}

template <class T>
T atomicMax(T* target, T value) {
  return std::exchange(*target, std::max(*target, value));
}

template <class T>
T __ldg(const T* source) {
  return *source;
}

template <class T>
T __ldcg(const T* source) {
  return *source;
}

namespace dmt::cuda {

inline int multiprocessors() { return 2; }

inline int64_t most_shared() { return 223 << 10; }

inline void* allocate(int64_t bytes) { return std::aligned_alloc(256, static_cast<size_t>(bytes)); }

inline bool is_captured(cudaStream_t) { return false; }

inline void fill_bytes(void* target, int value, int64_t bytes, cudaStream_t) {
  if (bytes > 0) std::memset(target, value, static_cast<size_t>(bytes));
}

inline void copy_bytes(void* target, const void* source, int64_t bytes, cudaStream_t) {
  if (bytes > 0) std::memcpy(target, source, static_cast<size_t>(bytes));
}

inline void download(void* target, const void* source, int64_t bytes, cudaStream_t) {
  if (bytes > 0) std::memcpy(target, source, static_cast<size_t>(bytes));
}

template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), int64_t blocks, int threads, int64_t shared, cudaStream_t,
            const Arguments&... arguments) {
  if (shared > 227 << 10) throw std::length_error("no GPU has that much shared memory");
  static unsigned seed = 0;
  ::gridDim = {static_cast<unsigned>(blocks), 1, 1};
  ::blockDim = {static_cast<unsigned>(threads), 1, 1};
  const std::function<void()> body = [&] { kernel(arguments...); };
  for (int64_t i = 0; i < blocks; ++i) {
    ::blockIdx = {static_cast<unsigned>(i), 0, 0};
    simt::Block(threads, shared, body, ++seed).run();
  }
}

template <class Buffers>
int radix_sort(const Buffers& buffers, int begin_bit, int end_bit, void* scratch, int64_t& scratch_bytes,
               cudaStream_t) {
  scratch_bytes = 1;
  if (scratch == nullptr) return 0;
  const auto digits = [&](int64_t i) {
    const uint64_t above = end_bit < 64 ? buffers.keys[0][i] & ((uint64_t{1} << end_bit) - 1) : buffers.keys[0][i];
    return above >> begin_bit;
  };
  std::vector<int64_t> order(static_cast<size_t>(buffers.count));
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return digits(a) < digits(b); });
  for (int64_t i = 0; i < buffers.count; ++i) {
    buffers.keys[1][i] = buffers.keys[0][order[i]];
    if (buffers.values[0] != nullptr) buffers.values[1][i] = buffers.values[0][order[i]];
  }
  return 1;
}

inline void copy_async(void* shared, const void* global, bool is_there) {
  if (reinterpret_cast<uintptr_t>(shared) % 16 || reinterpret_cast<uintptr_t>(global) % 16) {
    throw std::logic_error("a copy of 16 bytes that is not aligned");
  }
  simt::block->copy({shared, global, is_there});
}
inline void copy_async_short(void* shared, const void* global, bool is_there) { copy_async(shared, global, is_there); }
inline void commit_copies() { simt::block->commit_copies(); }
template <int kLeft>
void wait_for_copies() {
  simt::block->wait_for_copies(kLeft);
}

// ---- Tensor cores: what lanes hold is as PTX defines it ------------------------------------------------------------

inline void load_matrices(uint32_t (&words)[4], const void* row, bool transposed = false) {
  if (reinterpret_cast<uintptr_t>(row) % 16) throw std::logic_error("a row of a matrix that is not aligned");
  const int lane = static_cast<int>(threadIdx.x % simt::kLanes);
  struct Row {
    uint16_t elements[8];
  };
  Row rows[simt::kLanes];
  simt::block->meet(0xFFFFFFFFu, *static_cast<const Row*>(row), rows);
  for (int j = 0; j < 4; ++j) {
    uint32_t pair[2];
    for (int i = 0; i < 2; ++i) {
      const int r = lane / 4;
      const int c = lane % 4 * 2 + i;
      pair[i] = transposed ? rows[8 * j + c].elements[r] : rows[8 * j + r].elements[c];
    }
    words[j] = pair[0] | pair[1] << 16;
  }
}

inline void load_transposed_matrices(uint32_t (&words)[4], const void* row) { load_matrices(words, row, true); }

// sums [16, 8] += a [16, 8 * kPerWord] @ b [8 * kPerWord, 8]; load(word, i): factor i of those in a word.
template <int kPerWord, class Load>
void multiply_add_words(float (&sums)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, const Load& load) {
  struct Factors {
    uint32_t a[4];
    uint32_t b[2];
  };
  constexpr int kHalf = 4 * kPerWord;
  Factors all[simt::kLanes];
  simt::block->meet(0xFFFFFFFFu, Factors{{a[0], a[1], a[2], a[3]}, {b0, b1}}, all);
  const auto a_at = [&](int row, int k) {
    return load(all[row % 8 * 4 + k % kHalf / kPerWord].a[row / 8 + k / kHalf * 2], k % kPerWord);
  };
  const auto b_at = [&](int k, int column) {
    return load(all[column * 4 + k % kHalf / kPerWord].b[k / kHalf], k % kPerWord);
  };
  const int lane = static_cast<int>(threadIdx.x % simt::kLanes);
  for (int i = 0; i < 4; ++i) {
    const int row = lane / 4 + i / 2 * 8;
    const int column = lane % 4 * 2 + i % 2;
    for (int k = 0; k < 2 * kHalf; ++k) sums[i] += a_at(row, k) * b_at(k, column);
  }
}

inline void multiply_add(float (&sums)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  multiply_add_words<2>(sums, a, b0, b1, [](uint32_t word, int i) {
    return cpu::load(cpu::BFloat16{static_cast<uint16_t>(word >> (16 * i))});
  });
}

inline void multiply_add_tf32(float (&sums)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  multiply_add_words<1>(sums, a, b0, b1, [](uint32_t word, int) { return cpu::float_from_bits(word & 0xFFFFE000u); });
}

}  // namespace dmt::cuda
