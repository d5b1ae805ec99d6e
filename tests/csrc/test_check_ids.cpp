#include "bags.h"
#include "kernels/cpu/check_ids.h"

namespace dmt::testing {
namespace {

bool are_valid(const Buffer<int64_t>& offsets, int64_t num_ids) {
  if (offsets[0] < 0 || offsets[offsets.size() - 1] > num_ids) return false;
  for (int64_t i = 0; i + 1 < offsets.size(); ++i) {
    if (offsets[i] > offsets[i + 1]) return false;
  }
  return true;
}

}  // namespace

void test_check_ids(int64_t number) {
  Random random(number);
  const BagOptions options = {
      .dtype = DType::f32, .wide_ids = number % 2 == 0, .is_large = random.one_in(3), .has_tables = random.one_in(2)};
  const Bags bags = random_bags(random, options);
  const int64_t F = bags.layout.num_features;
  const int64_t B = bags.layout.num_samples;
  const std::vector<MissingId> missing = read(bags).missing;
  cpu::MissingIds expected = {static_cast<int64_t>(missing.size()), -1, -1, -1, -1};
  if (!missing.empty()) {
    const auto& [bag, position] = missing[0];
    expected = {expected.count, bag / B / F, bag / B % F, bag % B, position};
  }

  for_isas_and_threads<cpu::CheckIdsKernels>(
      KERNELS_OF_ISAS(check_ids_kernels), [&](const cpu::CheckIdsKernels& kernels, const cpu::ParallelFor& threads) {
        const cpu::MissingIds found = kernels.find_missing(bags.layout, threads);
        CHECK(found.count == expected.count);
        CHECK(found.block == expected.block && found.feature == expected.feature);
        CHECK(found.sample == expected.sample && found.position == expected.position);

        CHECK(kernels.offsets_are_valid(bags.offsets.data(), bags.num_bags(), bags.layout.num_ids, threads));
        for (int i = 0; i < 4; ++i) {
          const Buffer<int64_t> offsets(
              std::vector<int64_t>(bags.offsets.data(), bags.offsets.data() + bags.num_bags() + 1));
          offsets[random.below(offsets.size())] += random.pick<int64_t>({-1, 1, -1000, 1000});
          CHECK(kernels.offsets_are_valid(offsets.data(), bags.num_bags(), bags.layout.num_ids, threads) ==
                are_valid(offsets, bags.layout.num_ids));
        }
      });
}

}  // namespace dmt::testing
