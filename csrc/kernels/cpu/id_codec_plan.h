// Where everything lies in the messages of an id exchange (id_codec.h), for one rank: what it sends, what it receives.
#pragma once

#include <cstdint>
#include <vector>

#include "id_codec.h"

namespace dmt::cpu {

// Who is sent what. Checked by the adapter: routes hold features of the batch, sizes add up to their number, chunks
// divide the samples, and id_bytes hold the rows of a destination's features.
struct IdRoutes {
  std::vector<int64_t> routes;    // features, destination after destination
  std::vector<int64_t> sizes;     // [W] how many are whose
  std::vector<int64_t> id_bytes;  // [W]
  int64_t chunks;
};

// The messages of one batch. Borrows `bags` and `kernels`.
class IdEncoder {
 public:
  // Whether there are weights does not show in the layout of a batch without ids.
  IdEncoder(const BagLayout& bags, bool has_weights, const IdRoutes& routes, const IdCodecKernels& kernels);

  int64_t lengths_bytes() const { return lengths_bytes_; }
  void encode_lengths(uint8_t* message, const ParallelFor& threads);

  // Once the lengths are encoded: bytes for every destination, and, of those messages in a row, ids that are missing.
  const std::vector<int64_t>& payload_bytes() const { return payload_bytes_; }
  int64_t encode_ids(uint8_t* payload, const ParallelFor& threads);

 private:
  int64_t ids_of(const EncodeRun& run) const { return bags_.offsets[run.bag + run.num_bags] - bags_.offsets[run.bag]; }

  const BagLayout& bags_;
  const bool has_weights_;
  const int64_t chunks_;
  const IdCodecKernels& kernels_;
  std::vector<int64_t> runs_of_;  // [W]
  std::vector<EncodeRun> runs_;   // destination after destination
  std::vector<int64_t> payload_bytes_;
  int64_t lengths_bytes_ = 0;
};

// Messages from `world` sources, one after the other; borrowed.
struct IdMessages {
  const uint8_t* lengths;
  int64_t lengths_bytes;  // world times as many as each source sent
  const uint8_t* payload;
  int64_t payload_bytes;
  int64_t world;
  int64_t id_bytes;
  bool weighted;
  int64_t chunks;

  int64_t bags_per_source() const { return lengths_bytes / world - kIdHeaderBytes; }
  int64_t item_bytes() const { return id_bytes + (weighted ? static_cast<int64_t>(sizeof(float)) : 0); }
};

// Bytes of payload from each source. Only the lengths of `messages` need be there.
std::vector<int64_t> payload_bytes_of(const IdMessages& messages, const IdCodecKernels& kernels);

// Bags as they came, (source, chunk) by (source, chunk), or those of one chunk.
struct DecodedBags {
  void* ids;
  int64_t* offsets;  // [bags + 1]
  float* weights;    // or null
};

class IdDecoder {
 public:
  IdDecoder(const IdMessages& messages, const IdCodecKernels& kernels);

  // Whether lengths and payload belong together. If not, nothing else may be asked.
  bool fits() const { return fits_; }

  // Results: all bags, and after them, if there are several chunks, those of each chunk.
  int64_t num_results() const { return static_cast<int64_t>(num_ids_.size()); }
  int64_t num_ids(int64_t result) const { return num_ids_[result]; }
  int64_t num_bags(int64_t result) const;
  void decode(const std::vector<DecodedBags>& results, bool wide_ids, const ParallelFor& threads);

 private:
  bool add_source(const uint8_t* header, int64_t payload_begin, int64_t payload_end);

  const IdMessages messages_;
  const IdCodecKernels& kernels_;
  std::vector<DecodeRun> runs_;  // source after source, chunk after chunk
  std::vector<int64_t> num_ids_;
  bool fits_;
};

}  // namespace dmt::cpu
