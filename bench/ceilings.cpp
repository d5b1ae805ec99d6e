// What this machine can do with random rows at best: every line prefetched rows ahead, nothing computed, nothing
// written that need not be. Compiled by ceilings.py for the CPU at hand; not part of the package.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <thread>
#include <vector>

#if defined(__linux__)
#include <sched.h>
#endif
#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace {

typedef uint64_t Line __attribute__((vector_size(64)));

void stream(char* begin, char* end) {
#if defined(__SSE2__)
  for (; begin < end; begin += 16) _mm_stream_si128(reinterpret_cast<__m128i*>(begin), _mm_setzero_si128());
  _mm_sfence();
#else
  std::memset(begin, 0, static_cast<size_t>(end - begin));
#endif
}

// Keeps the calling thread on the n-th of the cores that it may use, while this lives: systems start threads where
// others run, and spread them later than a probe is over.
class OnCore {
 public:
  explicit OnCore([[maybe_unused]] int n) {
#if defined(__linux__)
    CPU_ZERO(&before_);
    if (sched_getaffinity(0, sizeof(before_), &before_) != 0) return;
    n %= CPU_COUNT(&before_);
    int core = 0;
    while (!CPU_ISSET(core, &before_) || n-- > 0) ++core;
    cpu_set_t only;
    CPU_ZERO(&only);
    CPU_SET(core, &only);
    sched_setaffinity(0, sizeof(only), &only);
#endif
  }
  ~OnCore() {
#if defined(__linux__)
    sched_setaffinity(0, sizeof(before_), &before_);
#endif
  }

#if defined(__linux__)
 private:
  cpu_set_t before_;
#endif
};

// Seconds from the moment when all threads run until the last is done. They spin first: so may the workers of another
// pool, for a while after their work. Thread t does [cuts[t], cuts[t + 1]).
template <typename Range>
double on_threads(const std::vector<int64_t>& cuts, Range range) {
  using Clock = std::chrono::steady_clock;
  const Clock::time_point start = Clock::now() + std::chrono::milliseconds(30);
  const int threads = static_cast<int>(cuts.size()) - 1;
  std::vector<Clock::time_point> ends(threads);
  auto work = [&](int t) {
    const OnCore here(t);
    while (Clock::now() < start) {
    }
    range(cuts[t], cuts[t + 1]);
    ends[t] = Clock::now();
  };
  std::vector<std::thread> others;
  for (int t = 1; t < threads; ++t) others.emplace_back(work, t);
  work(0);
  for (auto& other : others) other.join();
  return std::chrono::duration<double>(*std::max_element(ends.begin(), ends.end()) - start).count();
}

// Calls function(byte, bytes) for the lines of a row, and their last part.
template <typename Function>
inline void for_lines(int64_t size, Function function) {
  int64_t at = 0;
#pragma GCC unroll 8
  for (; at + 64 <= size; at += 64) function(at, 64);
  if (at < size) function(at, size - at);
}

// kCache: what lines are prefetched into, the first cache (3) or the second (2); the better one counts.
template <bool kWrites, int kCache>
uint64_t visit(char* base, const int64_t* offsets, const int32_t* sizes, int64_t begin, int64_t end, int distance,
               uint64_t key) {
  Line sum{};
  const Line mask = Line{} + key;
  for (int64_t i = begin; i < end; ++i) {
    const int64_t later = i + distance < end ? i + distance : end - 1;
    const char* ahead = base + offsets[later];
    for_lines(sizes[later],
              [&](int64_t at, int64_t) { __builtin_prefetch(ahead + at, kWrites && kCache == 3, kCache); });
    char* row = base + offsets[i];
    for_lines(sizes[i], [&](int64_t at, int64_t bytes) {
      Line value{};
      std::memcpy(&value, row + at, static_cast<size_t>(bytes));
      if (kWrites) {
        value ^= mask;
        std::memcpy(row + at, &value, static_cast<size_t>(bytes));
      } else {
        sum ^= value;
      }
    });
  }
  return sum[0] ^ sum[7];
}

// Cuts rows into as many ranges of about as many bytes.
std::vector<int64_t> equal_bytes(const int32_t* sizes, int64_t count, int threads) {
  const int64_t total = std::accumulate(sizes, sizes + count, int64_t{0});
  std::vector<int64_t> cuts;
  int64_t before = 0;
  for (int64_t i = 0; i < count; before += sizes[i++]) {
    while (static_cast<int>(cuts.size()) < threads && before * threads >= total * static_cast<int64_t>(cuts.size())) {
      cuts.push_back(i);
    }
  }
  cuts.resize(threads + 1, count);
  return cuts;
}

template <bool kWrites>
double visit_all(char* base, const int64_t* offsets, const int32_t* sizes, int64_t count, int distance, int cache,
                 int threads, uint64_t key) {
  static std::atomic<uint64_t> all;  // so that no read is deleted
  return on_threads(equal_bytes(sizes, count, threads), [&](int64_t begin, int64_t end) {
    all ^= cache == 1 ? visit<kWrites, 3>(base, offsets, sizes, begin, end, distance, key)
                      : visit<kWrites, 2>(base, offsets, sizes, begin, end, distance, key);
  });
}

}  // namespace

extern "C" {

// Reads `sizes[i]` bytes at `offsets[i]` for every i, each prefetched `distance` rows ahead into the first or second
// cache. Returns seconds.
double read_rows(char* base, const int64_t* offsets, const int32_t* sizes, int64_t count, int distance, int cache,
                 int threads) {
  return visit_all<false>(base, offsets, sizes, count, distance, cache, threads, 0);
}

// Reads them and writes them back, unchanged when the key is 0. No two rows may overlap.
double rewrite_rows(char* base, const int64_t* offsets, const int32_t* sizes, int64_t count, int distance, int cache,
                    int threads, uint64_t key) {
  return visit_all<true>(base, offsets, sizes, count, distance, cache, threads, key);
}

// Overwrites `lines` whole lines, which are not read before where the CPU can do without. Returns seconds.
double write_lines(char* base, int64_t lines, int threads) {
  std::vector<int64_t> cuts;
  for (int t = 0; t <= threads; ++t) cuts.push_back(lines * t / threads);
  return on_threads(cuts, [&](int64_t begin, int64_t end) { stream(base + 64 * begin, base + 64 * end); });
}
}
