// Bags as the kernels read them; letters, the order of bags and the meaning of ids are those of
// kernels/cpu/bag_layout.h.
#pragma once

#include <cstdint>

#include "element.h"

namespace dmt::cuda {

// A feature's table and its place. Strides and columns in elements.
struct alignas(16) Feature {
  const void* table;
  int64_t stride;
  int64_t rows;
  int64_t row_start;
  int64_t column;     // first one in the pooled matrix
  int64_t first_key;  // how many rows the tables before this one have
  int32_t dim;
  int32_t table_index;
  int32_t is_mean;
  int32_t unused;
};

// The first id out of range that was seen, where ids out of range are errors. The host reads it at the step's end.
struct IdErrors {
  unsigned long long count;
  long long id;
  long long table;
  long long feature;
  long long sample;
  long long block;
};

// All pointers are the device's. Offsets are not to be trusted: kernels clamp them.
struct Bags {
  const void* ids;             // [N] int64 if wide_ids, else int32
  const int64_t* offsets;      // [K*F*B + 1]
  const float* weights;        // [N], or null
  const int64_t* block_order;  // [K]
  const Feature* features;     // [F]
  IdErrors* errors;            // or null: ids out of range are missing, and that is all
  int64_t num_ids;
  int64_t num_blocks;
  int64_t num_features;
  int64_t num_samples;
  int64_t width;
  bool wide_ids;
  bool is_shard;   // ids of other rows are held elsewhere, rather than missing
  bool are_packs;  // features' rows are packs, at multiples of 16 bytes, and so are their columns in the pooled matrix
};

// Behind no row, but aligned like one: a copy is given its source also where it reads nothing.
constexpr int64_t kElsewhere = -16;
constexpr int64_t kMissing = -32;

DMT_DEVICE int64_t load_id(const Bags& bags, int64_t position) {
  return bags.wide_ids ? static_cast<const int64_t*>(bags.ids)[position]
                       : static_cast<const int32_t*>(bags.ids)[position];
}

// An id as it was read: to look at it would be to wait for it.
struct RawId {
  uint32_t low;
  uint32_t high;
};

DMT_DEVICE RawId ask_for_id(const Bags& bags, int64_t position) {
  if (!bags.wide_ids) return {static_cast<const uint32_t*>(bags.ids)[position], 0};
  const uint2 words = static_cast<const uint2*>(bags.ids)[position];
  return {words.x, words.y};
}

DMT_DEVICE int64_t id_of(const Bags& bags, const RawId& raw) {
  return bags.wide_ids ? static_cast<int64_t>(static_cast<uint64_t>(raw.high) << 32 | raw.low)
                       : static_cast<int32_t>(raw.low);
}

DMT_DEVICE int64_t clamp_offset(const Bags& bags, int64_t offset) {
  return offset < 0 ? 0 : offset > bags.num_ids ? bags.num_ids : offset;
}

DMT_DEVICE int64_t load_offset(const Bags& bags, int64_t bag) { return clamp_offset(bags, bags.offsets[bag]); }

// The local row of an id, or kElsewhere or kMissing. Unsigned, so that no id, however wild, overflows.
DMT_DEVICE int64_t row_of(const Bags& bags, const Feature& feature, int64_t id) {
  const uint64_t local = static_cast<uint64_t>(id) - static_cast<uint64_t>(feature.row_start);
  if (local < static_cast<uint64_t>(feature.rows)) return static_cast<int64_t>(local);
  return bags.is_shard && id >= 0 ? kElsewhere : kMissing;
}

// For one lane of those that see the id.
DMT_DEVICE void report_missing(const Bags& bags, const Feature& feature, int64_t bag, int64_t id) {
  if (atomicAdd(&bags.errors->count, 1ull) != 0) return;
  const int64_t group = bag / bags.num_samples;
  bags.errors->id = id;
  bags.errors->table = feature.table_index;
  bags.errors->feature = group % bags.num_features;
  bags.errors->sample = bag % bags.num_samples;
  bags.errors->block = group / bags.num_features;
}

// Gives what was recorded since the last call, and begins anew.
void take_errors(IdErrors* record, IdErrors* taken, cudaStream_t stream);

// Copies what the host knows to the device by kernel parameters: captured by CUDA graphs, without synchronisation.
void upload(void* target, const void* source, int64_t bytes, cudaStream_t stream);

}  // namespace dmt::cuda
