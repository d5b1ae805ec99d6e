// kernel_tests [--cases N] [STEM...]: N random cases for each of the named files of kernels, by default for all. Case
// number i is the same on every machine and in every run.
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "testing.h"

using namespace dmt;

namespace {

struct Test {
  const char* stem;
  void (*run)(int64_t number);
};

constexpr Test kTests[] = {
    {"annealing", testing::test_annealing},
    {"check_ids", testing::test_check_ids},
    {"dot_interaction", testing::test_dot_interaction},
    {"embedding_bag", testing::test_embedding_bag},
    {"embedding_bag_blocks", testing::test_embedding_bag_blocks},
    {"embedding_update", testing::test_embedding_update},
    {"embedding_update_plan", testing::test_embedding_update_plan},
    {"id_codec", testing::test_id_codec},
    {"tower_pool", testing::test_tower_pool},
    {"tower_pool_backward", testing::test_tower_pool_backward},
    {"tower_pool_pooled_backward", testing::test_tower_pool_pooled_backward},
    {"wire_codec", testing::test_wire_codec},
};

bool passes(const Test& test, int64_t cases) {
  const auto start = std::chrono::steady_clock::now();
  for (int64_t number = 0; number < cases; ++number) {
    try {
      test.run(number);
    } catch (const testing::Failure& failure) {
      std::printf("%s: case %lld: %s\n", test.stem, static_cast<long long>(number), failure.what());
      return false;
    }
  }
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  std::printf("%s: %lld cases up to %s, %.1f s\n", test.stem, static_cast<long long>(cases),
              cpu::isa_name(cpu::isa_in_use()), seconds.count());
  return true;
}

}  // namespace

int main(int count, char** arguments) {
  int64_t cases = 300;
  std::vector<std::string> stems;
  for (int i = 1; i < count; ++i) {
    if (std::strcmp(arguments[i], "--cases") == 0 && i + 1 < count) {
      cases = std::atoll(arguments[++i]);
    } else {
      stems.push_back(arguments[i]);
    }
  }
  if (stems.empty()) {
    for (const Test& test : kTests) stems.push_back(test.stem);
  }
  bool all_pass = true;
  for (const std::string& stem : stems) {
    bool is_known = false;
    for (const Test& test : kTests) {
      if (stem != test.stem) continue;
      is_known = true;
      all_pass = passes(test, cases) && all_pass;
    }
    if (!is_known) std::printf("%s: there is no such test\n", stem.c_str());
    all_pass = all_pass && is_known;
  }
  return all_pass ? 0 : 1;
}
