// What every test of the kernels uses: failures, random numbers, threads, instruction sets.
#pragma once

#include <cstdint>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "kernels/cpu/isa.h"
#include "kernels/cpu/parallel_for.h"

namespace dmt::testing {

// One of each test file; main.cpp calls them with the number of the case. They throw Failure.
void test_annealing(int64_t number);
void test_check_ids(int64_t number);
void test_dot_interaction(int64_t number);
void test_embedding_bag(int64_t number);
void test_embedding_bag_blocks(int64_t number);
void test_embedding_update(int64_t number);
void test_embedding_update_plan(int64_t number);
void test_id_codec(int64_t number);
void test_tower_pool(int64_t number);
void test_tower_pool_backward(int64_t number);
void test_tower_pool_pooled_backward(int64_t number);
void test_wire_codec(int64_t number);

// ---- Failures -------------------------------------------------------------------------------------------------------

struct Failure : std::runtime_error {
  using std::runtime_error::runtime_error;
};

inline std::string running_on;  // instruction set and threads, for the message of a failure

#define CHECK(condition)                                                                                         \
  do {                                                                                                           \
    if (!(condition)) {                                                                                          \
      throw ::dmt::testing::Failure(std::string(__FILE__ ":") + std::to_string(__LINE__) + ": not " #condition + \
                                    ::dmt::testing::running_on);                                                 \
    }                                                                                                            \
  } while (false)

// ---- Random numbers -------------------------------------------------------------------------------------------------

// The same on every machine, which the distributions of the standard library are not.
class Random {
 public:
  explicit Random(int64_t seed) : engine_(static_cast<uint64_t>(seed)) {}

  int64_t below(int64_t end) { return static_cast<int64_t>(engine_() % static_cast<uint64_t>(end)); }
  int64_t between(int64_t first, int64_t last) { return first + below(last - first + 1); }
  bool one_in(int64_t count) { return below(count) == 0; }
  double uniform() { return static_cast<double>(engine_() >> 11) * 0x1.0p-52 - 1; }  // [-1, 1)

  template <class T>
  T pick(const std::vector<T>& values) {
    return values[static_cast<size_t>(below(static_cast<int64_t>(values.size())))];
  }

  std::vector<int64_t> permutation(int64_t count) {
    std::vector<int64_t> values;
    for (int64_t i = 0; i < count; ++i) values.insert(values.begin() + below(i + 1), i);
    return values;
  }

 private:
  std::mt19937_64 engine_;
};

// ---- Threads --------------------------------------------------------------------------------------------------------

constexpr int64_t kMostThreads = 4;

// Threads of the standard library, which ThreadSanitizer follows; 1 to kMostThreads. More than one cut a range into
// pieces as uneven, and take them in an order as odd, as the contract of ParallelFor allows.
cpu::ParallelFor threads(int64_t count);

// ---- Instruction sets -----------------------------------------------------------------------------------------------

#define DMT_ADDRESS_OF_KERNELS(isa, name) &cpu::isa::name,
#define KERNELS_OF_ISAS(name) {DMT_FOR_ISAS(DMT_ADDRESS_OF_KERNELS, name)}
#define KERNELS_OF_ISAS_AND_BF16(name) {DMT_FOR_BF16_ISAS(DMT_ADDRESS_OF_KERNELS, name)}

// Calls function(kernels, threads) with every number of threads, and with the kernels of every instruction set that the
// machine runs and DMT_CPU_ISA allows. `kernels` holds them in the order of cpu::Isa.
template <class Kernels, class Function>
void for_isas_and_threads(const std::vector<const Kernels*>& kernels, const Function& function) {
  for (size_t isa = 0; isa < kernels.size() && isa <= static_cast<size_t>(cpu::isa_in_use()); ++isa) {
    for (int64_t count = 1; count <= kMostThreads; ++count) {
      running_on =
          std::string(" (") + cpu::isa_name(static_cast<cpu::Isa>(isa)) + ", threads: " + std::to_string(count) + ")";
      function(*kernels[isa], threads(count));
      running_on.clear();
    }
  }
}

}  // namespace dmt::testing
