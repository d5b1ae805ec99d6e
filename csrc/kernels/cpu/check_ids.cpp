#include "check_ids.h"

#include "float_formats.h"

namespace dmt::cpu {
namespace {

constexpr int64_t kGrain = 1 << 15;

bool offsets_are_valid(const int64_t* offsets, int64_t num_bags, int64_t num_ids, const ParallelFor& threads) {
  if (offsets[0] < 0 || offsets[num_bags] > num_ids) return false;
  int64_t descents = 0;
  parallel_for(threads, 0, num_bags, kGrain, [&](int64_t begin, int64_t end) {
    int64_t found = 0;
    for (int64_t i = begin; i < end; ++i) found += offsets[i] > offsets[i + 1];
    __atomic_fetch_add(&descents, found, __ATOMIC_RELAXED);
  });
  return descents == 0;
}

// Calls visit(bag, window of its table) for the bags of each (block, feature) with a bag in [begin, end).
template <class Visit>
void for_bags(const BagLayout& bags, int64_t begin, int64_t end, const Visit& visit) {
  for (int64_t bag = begin; bag < end;) {
    const int64_t group = bag / bags.num_samples;
    const int64_t group_end = (group + 1) * bags.num_samples;
    const RowWindow window = row_window(bags, bags.feature_table[group % bags.num_features]);
    for (; bag < end && bag < group_end; ++bag) visit(bag, window);
  }
}

template <class Id>
int64_t count_missing(const Id* ids, int64_t length, const RowWindow& window) {
  int64_t missing = 0;
  for (int64_t p = 0; p < length; ++p) missing += window.row(ids[p]) < 0 && window.is_missing(ids[p]);
  return missing;
}

template <class Id>
MissingIds find_missing_typed(const BagLayout& bags, const ParallelFor& threads) {
  const Id* ids = typed_ids<Id>(bags);
  const int64_t num_bags = bags.num_blocks * bags.num_features * bags.num_samples;
  int64_t count = 0;
  int64_t first_bag = num_bags;
  parallel_for(threads, 0, cost_before(bags, num_bags), kGrain, [&](int64_t begin, int64_t end) {
    int64_t found = 0;
    int64_t first = num_bags;
    for_bags(bags, bag_at_cost(bags, begin), bag_at_cost(bags, end), [&](int64_t bag, const RowWindow& window) {
      const int64_t here = count_missing(ids + bags.offsets[bag], bags.offsets[bag + 1] - bags.offsets[bag], window);
      if (here > 0 && found == 0) first = bag;
      found += here;
    });
    __atomic_fetch_add(&count, found, __ATOMIC_RELAXED);
    int64_t known = __atomic_load_n(&first_bag, __ATOMIC_RELAXED);
    while (first < known &&
           !__atomic_compare_exchange_n(&first_bag, &known, first, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
    }
  });
  if (count == 0) return {0, -1, -1, -1, -1};

  const int64_t feature = first_bag / bags.num_samples % bags.num_features;
  const RowWindow window = row_window(bags, bags.feature_table[feature]);
  int64_t position = 0;
  while (count_missing(ids + bags.offsets[first_bag] + position, 1, window) == 0) ++position;
  return {count, first_bag / bags.num_samples / bags.num_features, feature, first_bag % bags.num_samples, position};
}

MissingIds find_missing(const BagLayout& bags, const ParallelFor& threads) {
  MissingIds missing;
  with_id_type(bags, [&](auto id) { missing = find_missing_typed<decltype(id)>(bags, threads); });
  return missing;
}

}  // namespace

DMT_DEFINE_KERNELS(CheckIdsKernels, check_ids_kernels) = {offsets_are_valid, find_missing};

}  // namespace dmt::cpu
