// What this machine can do with random rows at best: every line prefetched rows ahead, nothing computed, nothing
// written that need not be. Compiled by ceilings.py for the CPU at hand; not part of the package.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <thread>
#include <vector>

namespace {

typedef uint64_t Line __attribute__((vector_size(64)));

template <typename Range>
void on_threads(int64_t count, int threads, Range range) {
  std::vector<std::thread> others;
  auto begin = [&](int t) { return count * t / threads; };
  for (int t = 1; t < threads; ++t) others.emplace_back([&, t] { range(begin(t), begin(t + 1)); });
  range(0, begin(1));
  for (auto& other : others) other.join();
}

template <bool kWrites>
void visit(char* base, const int64_t* offsets, const int32_t* sizes, int64_t begin, int64_t end, int distance,
           uint64_t key, uint64_t* sink) {
  Line sum0{}, sum1{}, mask = Line{} + key;
  for (int64_t i = begin; i < end; ++i) {
    if (i + distance < end) {
      const char* ahead = base + offsets[i + distance];
      for (int32_t at = 0; at < sizes[i + distance]; at += 64) __builtin_prefetch(ahead + at, kWrites);
    }
    char* row = base + offsets[i];
    int32_t at = 0;
    auto line = [&](int32_t bytes) {
      Line value{};
      std::memcpy(&value, row + at, static_cast<size_t>(bytes));
      if (kWrites) {
        value ^= mask;
        std::memcpy(row + at, &value, static_cast<size_t>(bytes));
      } else {
        (at & 64 ? sum1 : sum0) ^= value;
      }
    };
    for (; at + 64 <= sizes[i]; at += 64) line(64);
    if (at < sizes[i]) line(sizes[i] - at);
  }
  sum0 ^= sum1;
  *sink = sum0[0] ^ sum0[7];
}

template <bool kWrites>
uint64_t visit_all(char* base, const int64_t* offsets, const int32_t* sizes, int64_t count, int distance, int threads,
                   uint64_t key) {
  uint64_t all = 0;
  on_threads(count, threads, [&](int64_t begin, int64_t end) {
    uint64_t sink = 0;
    visit<kWrites>(base, offsets, sizes, begin, end, distance, key, &sink);
    __atomic_fetch_xor(&all, sink, __ATOMIC_RELAXED);
  });
  return all;
}

}  // namespace

extern "C" {

// Reads `sizes[i]` bytes at `offsets[i]` for every i.
uint64_t read_rows(char* base, const int64_t* offsets, const int32_t* sizes, int64_t count, int distance, int threads) {
  return visit_all<false>(base, offsets, sizes, count, distance, threads, 0);
}

// Reads them and writes them back, unchanged when the key is 0. No two rows may overlap.
uint64_t rewrite_rows(char* base, const int64_t* offsets, const int32_t* sizes, int64_t count, int distance,
                      int threads, uint64_t key) {
  return visit_all<true>(base, offsets, sizes, count, distance, threads, key);
}
}
