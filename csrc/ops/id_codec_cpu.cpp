#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <cstring>
#include <optional>
#include <tuple>

#include "../kernels/cpu/id_codec_plan.h"
#include "bag_arguments.h"

namespace dmt {
namespace {

void check_id_bytes(const char* op, int64_t id_bytes) {
  check(id_bytes == 1 || id_bytes == 2 || id_bytes == 4 || id_bytes == 8, op, "id_bytes must be 1, 2, 4 or 8, got ",
        id_bytes);
}

void check_routes(const char* op, const cpu::IdRoutes& routes, const std::vector<int64_t>& rows) {
  check(routes.sizes.size() == routes.id_bytes.size(), op, "got ", routes.sizes.size(), " route_sizes, but ",
        routes.id_bytes.size(), " id_bytes");
  size_t next = 0;
  for (size_t destination = 0; destination < routes.sizes.size(); ++destination) {
    const int64_t size = routes.sizes[destination];
    const int64_t id_bytes = routes.id_bytes[destination];
    check_id_bytes(op, id_bytes);
    check(size >= 0 && size <= static_cast<int64_t>(routes.routes.size() - next), op,
          Element{"route_sizes", destination}, " is ", size, ", but ", routes.routes.size() - next, " routes are left");
    for (const size_t end = next + size; next < end; ++next) {
      const int64_t feature = routes.routes[next];
      check(feature >= 0 && feature < static_cast<int64_t>(rows.size()), op, Element{"routes", next}, " is ", feature,
            ", but there are ", rows.size(), " features");
      const uint64_t code = ~uint64_t{0} >> (64 - 8 * id_bytes);  // of a missing id
      check(static_cast<uint64_t>(rows[feature]) <= code, op, "ids of feature ", feature, " with ", rows[feature],
            " rows need more than ", id_bytes, id_bytes == 1 ? " byte" : " bytes");
    }
  }
  check(next == routes.routes.size(), op, "route_sizes add up to ", next, ", but there are ", routes.routes.size(),
        " routes");
}

std::tuple<Tensor, Tensor, Tensor> id_encode(const Tensor& ids, const Tensor& offsets, const OptionalTensor& weights,
                                             const std::vector<int64_t>& rows, const std::vector<int64_t>& routes,
                                             const std::vector<int64_t>& route_sizes,
                                             const std::vector<int64_t>& id_bytes, int64_t chunks) {
  const char* op = "id_encode";
  for (size_t f = 0; f < rows.size(); ++f) check(rows[f] >= 0, op, Element{"rows", f}, " is ", rows[f]);
  // Only the integers are looked at: every feature is a table of its own, without columns.
  const BagArguments bags(op, rows, std::vector<int64_t>(rows.size(), 0), ScalarType::Float, ids, offsets, weights,
                          std::nullopt, std::nullopt, std::nullopt, std::nullopt);
  const int64_t samples = bags.layout().num_samples;
  check(chunks > 0 && samples % chunks == 0, op, samples, " samples are no whole number of ", chunks, " chunks");
  const cpu::IdRoutes plan = {routes, route_sizes, id_bytes, chunks};
  check_routes(op, plan, rows);

  cpu::IdEncoder encoder(bags.layout(), weights.has_value(), plan, cpu::id_codec_kernels());
  const cpu::ParallelFor threads = torch_threads();
  const Tensor lengths = torch::stable::empty({encoder.lengths_bytes()}, ScalarType::Byte);
  encoder.encode_lengths(static_cast<uint8_t*>(lengths.mutable_data_ptr()), threads);
  int64_t payload_bytes = 0;
  for (const int64_t bytes : encoder.payload_bytes()) payload_bytes += bytes;
  const Tensor payload = torch::stable::empty({payload_bytes}, ScalarType::Byte);
  const int64_t missing = encoder.encode_ids(static_cast<uint8_t*>(payload.mutable_data_ptr()), threads);

  const int64_t world = static_cast<int64_t>(route_sizes.size());
  const Tensor sizes = torch::stable::empty({world + 1}, ScalarType::Long);
  int64_t* const size_data = static_cast<int64_t*>(sizes.mutable_data_ptr());
  for (int64_t g = 0; g < world; ++g) size_data[g] = encoder.payload_bytes()[g];
  size_data[world] = missing;
  return {lengths, payload, sizes};
}

// With what is said of both messages checked, and of them their dtype and that lengths can be split.
cpu::IdMessages check_messages(const char* op, const Tensor& lengths, const Tensor* payload, int64_t world,
                               int64_t chunks) {
  check_cpu(op, "lengths", lengths);
  check(lengths.scalar_type() == ScalarType::Byte && lengths.dim() == 1 && lengths.is_contiguous(), op,
        "lengths must be a contiguous vector of uint8");
  check(world > 0, op, "world must be positive, got ", world);
  check(chunks > 0, op, "chunks must be positive, got ", chunks);
  const int64_t bytes = lengths.size(0);
  check(bytes % world == 0 && bytes / world >= cpu::kIdHeaderBytes, op, bytes,
        " bytes of lengths are no messages from ", world, world == 1 ? " rank" : " ranks");
  cpu::IdMessages messages = {
      static_cast<const uint8_t*>(lengths.const_data_ptr()), bytes, nullptr, 0, world, 1, false, chunks};
  check(messages.bags_per_source() % chunks == 0, op, messages.bags_per_source(), " bags are no whole number of ",
        chunks, " chunks");
  if (payload != nullptr) {
    check_cpu(op, "payload", *payload);
    check(payload->scalar_type() == ScalarType::Byte && payload->dim() == 1 && payload->is_contiguous(), op,
          "payload must be a contiguous vector of uint8");
    messages.payload = static_cast<const uint8_t*>(payload->const_data_ptr());
    messages.payload_bytes = payload->size(0);
  }
  return messages;
}

Tensor id_payload_bytes(const Tensor& lengths, int64_t world, int64_t item_bytes) {
  const char* op = "id_payload_bytes";
  check(item_bytes > 0, op, "item_bytes must be positive, got ", item_bytes);
  cpu::IdMessages messages = check_messages(op, lengths, nullptr, world, 1);
  messages.id_bytes = item_bytes;
  const std::vector<int64_t> sizes = cpu::payload_bytes_of(messages, cpu::id_codec_kernels());
  const Tensor result = torch::stable::empty({world}, ScalarType::Long);
  std::memcpy(result.mutable_data_ptr(), sizes.data(), sizes.size() * sizeof(int64_t));
  return result;
}

std::vector<Tensor> id_decode(const Tensor& lengths, const Tensor& payload, int64_t world, int64_t id_bytes,
                              bool weighted, int64_t chunks, std::optional<ScalarType> dtype) {
  const char* op = "id_decode";
  const ScalarType id_type = dtype.value_or(ScalarType::Int);
  check(id_type == ScalarType::Long || id_type == ScalarType::Int, op, "dtype must be int32 or int64, got ",
        dtype_name(id_type));
  check_id_bytes(op, id_bytes);
  cpu::IdMessages messages = check_messages(op, lengths, &payload, world, chunks);
  messages.id_bytes = id_bytes;
  messages.weighted = weighted;
  cpu::IdDecoder decoder(messages, cpu::id_codec_kernels());
  check(decoder.fits(), op, "lengths and payload do not belong together");

  std::vector<Tensor> parts;
  std::vector<cpu::DecodedBags> results;
  for (int64_t i = 0; i < decoder.num_results(); ++i) {
    const Tensor ids = torch::stable::empty({decoder.num_ids(i)}, id_type);
    const Tensor offsets = torch::stable::empty({decoder.num_bags(i) + 1}, ScalarType::Long);
    parts.push_back(ids);
    parts.push_back(offsets);
    results.push_back({ids.mutable_data_ptr(), static_cast<int64_t*>(offsets.mutable_data_ptr()), nullptr});
    if (!weighted) continue;
    parts.push_back(torch::stable::empty({decoder.num_ids(i)}, ScalarType::Float));
    results.back().weights = static_cast<float*>(parts.back().mutable_data_ptr());
  }
  decoder.decode(results, id_type == ScalarType::Long, torch_threads());
  return parts;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(dmt, CPU, ops) {
  ops.impl("id_encode", TORCH_BOX(&id_encode));
  ops.impl("id_payload_bytes", TORCH_BOX(&id_payload_bytes));
  ops.impl("id_decode", TORCH_BOX(&id_decode));
}

}  // namespace dmt
