// Checks of the integers that say what to read: cheap passes before anything is read through them.
#pragma once

#include <cstdint>

#include "bag_layout.h"
#include "isa.h"
#include "parallel_for.h"

namespace dmt::cpu {

// How many missing ids (see bag_layout.h) the bags hold, and where the first is; -1 when there are none.
struct MissingIds {
  int64_t count;
  int64_t block;
  int64_t feature;
  int64_t sample;
  int64_t position;  // in its bag
};

struct CheckIdsKernels {
  // Whether 0 <= offsets[0] <= ... <= offsets[num_bags] <= num_ids.
  bool (*offsets_are_valid)(const int64_t* offsets, int64_t num_bags, int64_t num_ids, const ParallelFor& threads);

  MissingIds (*find_missing)(const BagLayout& bags, const ParallelFor& threads);
};

DMT_DECLARE_KERNELS(CheckIdsKernels, check_ids_kernels)

}  // namespace dmt::cpu
