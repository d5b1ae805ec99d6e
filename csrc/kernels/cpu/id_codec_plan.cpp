#include "id_codec_plan.h"

#include <cstring>

namespace dmt::cpu {
namespace {

// Of a header it is the number of ids.
int64_t number_at(const uint8_t* bytes) {
  int64_t number;
  std::memcpy(&number, bytes, sizeof(number));
  return number;
}

}  // namespace

// ---- Encoding -------------------------------------------------------------------------------------------------------

IdEncoder::IdEncoder(const BagLayout& bags, bool has_weights, const IdRoutes& routes, const IdCodecKernels& kernels)
    : bags_(bags), has_weights_(has_weights), chunks_(routes.chunks), kernels_(kernels) {
  const int64_t num_bags = bags.num_samples / routes.chunks;
  runs_.reserve(routes.routes.size() * routes.chunks);
  const int64_t* route = routes.routes.data();
  for (size_t destination = 0; destination < routes.sizes.size(); ++destination) {
    const int64_t size = routes.sizes[destination];
    for (int64_t chunk = 0; chunk < routes.chunks && num_bags > 0; ++chunk) {
      for (int64_t slot = 0; slot < size; ++slot) {
        runs_.push_back({.bag = route[slot] * bags.num_samples + chunk * num_bags,
                         .num_bags = num_bags,
                         .rows = bags.table_rows[bags.feature_table[route[slot]]],
                         .id_bytes = routes.id_bytes[destination],
                         .num_long = 0,
                         .lengths = nullptr,
                         .long_lengths = nullptr,
                         .ids = nullptr,
                         .weights = nullptr});
      }
    }
    route += size;
    runs_of_.push_back(num_bags > 0 ? size * routes.chunks : 0);
    lengths_bytes_ += kIdHeaderBytes + size * bags.num_samples;
  }
}

void IdEncoder::encode_lengths(uint8_t* message, const ParallelFor& threads) {
  EncodeRun* run = runs_.data();
  std::vector<uint8_t*> headers;
  for (const int64_t count : runs_of_) {
    headers.push_back(message);
    message += kIdHeaderBytes;
    for (const EncodeRun* const end = run + count; run < end; ++run) {
      run->lengths = message;
      message += run->num_bags;
    }
  }
  kernels_.encode_lengths(bags_, runs_.data(), static_cast<int64_t>(runs_.size()), threads);

  run = runs_.data();
  for (size_t destination = 0; destination < runs_of_.size(); ++destination) {
    const int64_t count = runs_of_[destination];
    IdHeader header = {.num_ids = 0,
                       .num_samples = bags_.num_samples,
                       .has_weights = has_weights_,
                       .chunks = static_cast<int32_t>(chunks_)};
    int64_t bytes = 0;
    for (const EncodeRun* const end = run + count; run < end; ++run) {
      header.num_ids += ids_of(*run);
      const int64_t weight_bytes = has_weights_ ? sizeof(float) : 0;
      bytes += run->num_long * kLongLengthBytes + ids_of(*run) * (run->id_bytes + weight_bytes);
    }
    std::memcpy(headers[destination], &header, kIdHeaderBytes);
    payload_bytes_.push_back(bytes);
  }
}

int64_t IdEncoder::encode_ids(uint8_t* payload, const ParallelFor& threads) {
  EncodeRun* run = runs_.data();
  for (const int64_t count : runs_of_) {
    EncodeRun* const begin = run;
    EncodeRun* const end = run + count;
    for (run = begin; run < end; ++run) {
      run->long_lengths = payload;
      payload += run->num_long * kLongLengthBytes;
    }
    for (run = begin; run < end; ++run) {
      run->ids = payload;
      payload += ids_of(*run) * run->id_bytes;
    }
    for (run = begin; run < end && bags_.weights != nullptr; ++run) {
      run->weights = payload;
      payload += ids_of(*run) * static_cast<int64_t>(sizeof(float));
    }
    run = end;
  }
  return kernels_.encode_ids(bags_, runs_.data(), static_cast<int64_t>(runs_.size()), threads);
}

// ---- Decoding -------------------------------------------------------------------------------------------------------

std::vector<int64_t> payload_bytes_of(const IdMessages& messages, const IdCodecKernels& kernels) {
  std::vector<int64_t> sizes(messages.world, 0);
  for (int64_t source = 0; source < messages.world; ++source) {
    const uint8_t* const header = messages.lengths + source * (messages.lengths_bytes / messages.world);
    int64_t sum;
    const int64_t num_long = kernels.count_long(header + kIdHeaderBytes, messages.bags_per_source(), &sum);
    // Unsigned: a message that is none may begin with anything.
    sizes[source] = static_cast<int64_t>(static_cast<uint64_t>(num_long * kLongLengthBytes) +
                                         static_cast<uint64_t>(number_at(header)) * messages.item_bytes());
  }
  return sizes;
}

IdDecoder::IdDecoder(const IdMessages& messages, const IdCodecKernels& kernels)
    : messages_(messages), kernels_(kernels), num_ids_(messages.chunks > 1 ? messages.chunks + 1 : 1) {
  runs_.reserve(messages.world * messages.chunks);
  const std::vector<int64_t> sizes = payload_bytes_of(messages, kernels);
  const int64_t most_ids = messages.payload_bytes / messages.item_bytes();
  int64_t begin = 0;
  fits_ = true;
  for (int64_t source = 0; source < messages.world && fits_; ++source) {
    const uint8_t* const header = messages.lengths + source * (messages.lengths_bytes / messages.world);
    fits_ = number_at(header) >= 0 && number_at(header) <= most_ids;
    fits_ =
        fits_ && sizes[source] <= messages.payload_bytes - begin && add_source(header, begin, begin + sizes[source]);
    if (fits_) begin += sizes[source];
  }
  fits_ = fits_ && begin == messages.payload_bytes;
}

bool IdDecoder::add_source(const uint8_t* header, int64_t payload_begin, int64_t payload_end) {
  const int64_t num_bags = messages_.bags_per_source() / messages_.chunks;
  const int64_t count = number_at(header);
  const uint8_t* long_lengths = messages_.payload + payload_begin;
  const uint8_t* weights = messages_.payload + payload_end - (messages_.weighted ? count * sizeof(float) : 0);
  const uint8_t* ids = weights - count * messages_.id_bytes;
  int64_t rest = count;
  for (int64_t chunk = 0; chunk < messages_.chunks; ++chunk) {
    const uint8_t* const lengths = header + kIdHeaderBytes + chunk * num_bags;
    DecodeRun run = {.num_bags = num_bags,
                     .num_ids = 0,
                     .id_bytes = messages_.id_bytes,
                     .has_long = false,
                     .lengths = lengths,
                     .long_lengths = long_lengths,
                     .ids = ids,
                     .weights = messages_.weighted ? weights : nullptr,
                     .targets = {}};
    const int64_t num_long = num_bags > 0 ? kernels_.count_long(lengths, num_bags, &run.num_ids) : 0;
    run.has_long = num_long > 0;
    for (int64_t i = 0; i < num_long; ++i, long_lengths += kLongLengthBytes) {
      const int64_t length = number_at(long_lengths);
      if (length < kLongBag || length > rest) return false;
      run.num_ids += length;
    }
    rest -= run.num_ids;
    if (rest < 0) return false;
    ids += run.num_ids * messages_.id_bytes;
    weights += run.num_ids * static_cast<int64_t>(sizeof(float));
    runs_.push_back(run);
    num_ids_[0] += run.num_ids;
    if (messages_.chunks > 1) num_ids_[1 + chunk] += run.num_ids;
  }
  return rest == 0;
}

int64_t IdDecoder::num_bags(int64_t result) const {
  const int64_t all = messages_.world * messages_.bags_per_source();
  return result == 0 ? all : all / messages_.chunks;
}

void IdDecoder::decode(const std::vector<DecodedBags>& results, bool wide_ids, const ParallelFor& threads) {
  const int64_t id_size = wide_ids ? sizeof(int64_t) : sizeof(int32_t);
  std::vector<DecodeTarget> next;  // where the next run of a result goes
  for (const DecodedBags& result : results) {
    result.offsets[0] = 0;
    next.push_back({result.ids, result.offsets + 1, 0, result.weights});
  }
  const auto take = [&](DecodeTarget& target, const DecodeRun& run) {
    const DecodeTarget taken = target;
    target.ids = static_cast<uint8_t*>(target.ids) + run.num_ids * id_size;
    target.offsets += run.num_bags;
    target.first_id += run.num_ids;
    if (target.weights != nullptr) target.weights += run.num_ids;
    return taken;
  };
  for (size_t i = 0; i < runs_.size(); ++i) {
    runs_[i].targets[0] = take(next[0], runs_[i]);
    if (messages_.chunks > 1) runs_[i].targets[1] = take(next[1 + i % messages_.chunks], runs_[i]);
  }
  kernels_.decode(runs_.data(), static_cast<int64_t>(runs_.size()), messages_.chunks > 1 ? 2 : 1, wide_ids, threads);
}

}  // namespace dmt::cpu
