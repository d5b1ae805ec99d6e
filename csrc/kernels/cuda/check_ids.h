// Where ids are out of range.
#pragma once

#include "bag_layout.h"

namespace dmt::cuda {

// Of the ids that are out of range: how many there are, and where the first one is in the order of the bags (-1 where
// there is none).
struct MissingIds {
  unsigned long long count;
  long long block;
  long long feature;
  long long sample;
  long long position;
};

// `bags`: features need no more than `rows`. `missing`: on the device, as all that `bags` points to.
void check_ids(const Bags& bags, MissingIds* missing, cudaStream_t stream);

}  // namespace dmt::cuda
