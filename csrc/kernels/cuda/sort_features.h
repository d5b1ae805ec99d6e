// A stable sort of the keys of every feature on its own, in one launch, by a cluster of blocks each: for Hopper, and
// for batches so small that a sort of all keys together would mostly wait for its own many launches.
#pragma once

#include "bag_layout.h"
#include "radix_sort.h"

namespace dmt::cuda {

// Whether it is for bags like these: of one block, on average of one id or two, some ten thousand of a feature.
bool is_for_clusters(const Bags& bags);

// The keys of feature f lie where its ids do, from offsets[f*B] on (of one block). Sorts by `bits` bits from
// `begin_bit` on, and returns which place is full. Both places have keys before: where no feature has ids, or offsets
// do not ascend, some of either stay.
int sort_features(const Bags& bags, const SortBuffers& buffers, int begin_bit, int bits, cudaStream_t stream);

}  // namespace dmt::cuda
