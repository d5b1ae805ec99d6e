// Bags of ids to and from the two messages that carry them to each rank of an id exchange.
//
//   lengths   IdHeader; uint8 [bags], 255 for 255 ids or more
//   payload   int64 [long bags], the lengths of those; N ids of 1, 2, 4 or 8 bytes, all ones for a missing id;
//             float [N] if there are per-sample weights
//
// Bags of a message are ordered (chunk, feature of the destination's route, sample in the chunk). Messages follow each
// other rank by rank, so nothing in them is aligned. A *run* is what lies together on both sides: to encode, the bags
// of one feature in one chunk; to decode, those of one source in one chunk.
#pragma once

#include <cstdint>

#include "bag_layout.h"
#include "isa.h"
#include "parallel_for.h"

namespace dmt::cpu {

// Goes to every rank, also to one that is sent no bags: ranks find out by it whether they came with like batches.
struct IdHeader {
  int64_t num_ids;
  int64_t num_samples;
  int32_t has_weights;  // 0 or 1; with the chunks above it one int64 to Python
  int32_t chunks;
};

constexpr int64_t kIdHeaderBytes = sizeof(IdHeader);
constexpr int64_t kLongBag = 255;  // from this many ids on
constexpr int64_t kLongLengthBytes = 8;

struct EncodeRun {
  int64_t bag;       // the first
  int64_t num_bags;  // the same in all runs of a call
  int64_t rows;      // of the feature's table
  int64_t id_bytes;
  int64_t num_long;
  uint8_t* lengths;       // [num_bags]
  uint8_t* long_lengths;  // [num_long]
  uint8_t* ids;
  uint8_t* weights;  // or null
};

// Where decoded bags go: as they came, or chunk by chunk.
struct DecodeTarget {
  void* ids;         // from the first of the run on
  int64_t* offsets;  // the ends of the run's bags
  int64_t first_id;  // what those ends start at
  float* weights;    // or null
};

struct DecodeRun {
  int64_t num_bags;
  int64_t num_ids;
  int64_t id_bytes;
  bool has_long;
  const uint8_t* lengths;
  const uint8_t* long_lengths;  // the first of the run
  const uint8_t* ids;
  const uint8_t* weights;
  DecodeTarget targets[2];
};

struct IdCodecKernels {
  // Writes the lengths of all runs, and counts their long bags.
  void (*encode_lengths)(const BagLayout& bags, EncodeRun* runs, int64_t num_runs, const ParallelFor& threads);

  // Writes the rest, and returns how many of the ids are no row of their tables.
  int64_t (*encode_ids)(const BagLayout& bags, const EncodeRun* runs, int64_t num_runs, const ParallelFor& threads);

  // How many of the lengths are those of long bags; *sum is that of the others.
  int64_t (*count_long)(const uint8_t* lengths, int64_t num_bags, int64_t* sum);

  // Writes bags to the first `num_targets` of each run's targets, ids as int64 or int32.
  void (*decode)(const DecodeRun* runs, int64_t num_runs, int64_t num_targets, bool wide_ids,
                 const ParallelFor& threads);
};

DMT_DECLARE_KERNELS(IdCodecKernels, id_codec_kernels)

}  // namespace dmt::cpu
