#include <algorithm>
#include <atomic>
#include <thread>

#include "testing.h"

namespace dmt::testing {
namespace {

// Pieces [cuts[i], cuts[i + 1]) of one to four grains, the last one smaller.
std::vector<int64_t> cut(int64_t begin, int64_t end, int64_t grain) {
  Random random(end - begin);
  std::vector<int64_t> cuts = {begin};
  while (cuts.back() < end) cuts.push_back(std::min(end, cuts.back() + random.between(grain, 4 * grain)));
  return cuts;
}

template <int64_t kCount>
void run(int64_t begin, int64_t end, int64_t grain, cpu::ParallelFor::Body body, void* context) {
  if (begin >= end) return;
  if (kCount == 1) return body(begin, end, context);
  const std::vector<int64_t> cuts = cut(begin, end, grain);
  std::atomic<int64_t> left = static_cast<int64_t>(cuts.size()) - 1;
  const auto work = [&] {
    for (int64_t i = --left; i >= 0; i = --left) {
      body(cuts[static_cast<size_t>(i)], cuts[static_cast<size_t>(i) + 1], context);
    }
  };
  std::vector<std::thread> helpers;
  for (int64_t i = 1; i < std::min<int64_t>(kCount, static_cast<int64_t>(cuts.size()) - 1); ++i) {
    helpers.emplace_back(work);
  }
  work();
  for (std::thread& helper : helpers) helper.join();
}

}  // namespace

cpu::ParallelFor threads(int64_t count) {
  static_assert(kMostThreads == 4);
  constexpr decltype(cpu::ParallelFor::run) runs[] = {run<1>, run<2>, run<3>, run<4>};
  return {runs[count - 1], count};
}

}  // namespace dmt::testing
