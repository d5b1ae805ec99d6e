#include <algorithm>

#include "kernels/cpu/id_codec_plan.h"
#include "testing.h"
#include "values.h"

namespace dmt::testing {
namespace {

using cpu::IdCodecKernels;
using cpu::ParallelFor;

const std::vector<const IdCodecKernels*> kKernels = KERNELS_OF_ISAS(id_codec_kernels);

// What all ranks know.
struct Exchange {
  int64_t features;
  int64_t samples;
  std::vector<int64_t> rows;
  cpu::IdRoutes routes;
  bool wide_ids;
  bool weighted;

  int64_t world() const { return static_cast<int64_t>(routes.sizes.size()); }
  int64_t lengths_bytes(int64_t destination) const { return cpu::kIdHeaderBytes + routes.sizes[destination] * samples; }
};

// What one rank has, and the messages made of it.
struct Source {
  Buffer<int64_t> offsets;
  Buffer<int64_t> wide;
  Buffer<int32_t> narrow;
  Buffer<float> weights;
  Buffer<int64_t> feature_table;
  cpu::BagLayout layout;
  Buffer<uint8_t> lengths;
  Buffer<uint8_t> payload;
  std::vector<int64_t> payload_bytes;

  int64_t id(int64_t position) const { return layout.wide_ids ? wide[position] : narrow[position]; }
};

Exchange random_exchange(Random& random) {
  Exchange exchange;
  exchange.features = random.between(1, 5);
  exchange.routes.chunks = random.between(1, 4);
  exchange.samples = exchange.routes.chunks * random.pick<int64_t>({0, 1, 2, 3, 7, 40});
  exchange.wide_ids = random.one_in(2);
  exchange.weighted = random.one_in(3);
  for (int64_t f = 0; f < exchange.features; ++f) {
    exchange.rows.push_back(
        random.pick<int64_t>({0, 1, 200, 255, 256, 65535, 65536, int64_t{1} << 31, int64_t{1} << 40}));
  }
  for (int64_t destination = random.between(1, 3); destination > 0; --destination) {
    const int64_t size = random.between(0, 4);
    int64_t most_rows = 0;
    for (int64_t slot = 0; slot < size; ++slot) {
      exchange.routes.routes.push_back(random.below(exchange.features));
      most_rows = std::max(most_rows, exchange.rows[exchange.routes.routes.back()]);
    }
    exchange.routes.sizes.push_back(size);
    int64_t id_bytes = 1;
    while (id_bytes < 8 && most_rows >> (8 * id_bytes) > 0) id_bytes *= 2;
    exchange.routes.id_bytes.push_back(id_bytes);
  }
  return exchange;
}

Source random_source(Random& random, const Exchange& exchange) {
  Source source;
  const int64_t bags = exchange.features * exchange.samples;
  source.offsets = Buffer<int64_t>(bags + 1);
  source.offsets[0] = random.below(3);
  const int64_t longest = random.pick<int64_t>({0, 3, 20});
  for (int64_t bag = 0; bag < bags; ++bag) {
    const int64_t length = random.one_in(20) ? random.between(253, 300) : random.between(0, longest);
    source.offsets[bag + 1] = source.offsets[bag] + length;
  }
  const int64_t count = source.offsets[bags] + random.below(3);
  source.wide = Buffer<int64_t>(exchange.wide_ids ? count : 0);
  source.narrow = Buffer<int32_t>(exchange.wide_ids ? 0 : count);
  source.weights = Buffer<float>(exchange.weighted ? count : 0);
  for (int64_t i = 0; i < count; ++i) {
    const int64_t below = random.pick<int64_t>({1, 200, 70000, int64_t{1} << 31, int64_t{1} << 40});
    const int64_t id = random.one_in(9) ? -random.below(int64_t{1} << 31) - 1 : random.below(below);
    exchange.wide_ids ? source.wide[i] = id : source.narrow[i] = static_cast<int32_t>(id);
    if (exchange.weighted) source.weights[i] = static_cast<float>(random.uniform());
  }
  source.feature_table = Buffer<int64_t>(exchange.features);
  for (int64_t f = 0; f < exchange.features; ++f) source.feature_table[f] = f;
  source.layout = {};
  source.layout.ids = exchange.wide_ids ? static_cast<const void*>(source.wide.data()) : source.narrow.data();
  source.layout.wide_ids = exchange.wide_ids;
  source.layout.num_ids = count;
  source.layout.offsets = source.offsets.data();
  source.layout.num_blocks = 1;
  source.layout.num_features = exchange.features;
  source.layout.num_samples = exchange.samples;
  source.layout.feature_table = source.feature_table.data();
  source.layout.num_tables = exchange.features;
  source.layout.table_rows = exchange.rows.data();
  source.layout.weights = exchange.weighted ? source.weights.data() : nullptr;
  return source;
}

int64_t count_missing(const Exchange& exchange, const Source& source) {
  int64_t missing = 0;
  for (const int64_t feature : exchange.routes.routes) {
    const int64_t end = source.offsets[(feature + 1) * exchange.samples];
    for (int64_t i = source.offsets[feature * exchange.samples]; i < end; ++i) {
      missing += source.id(i) < 0 || source.id(i) >= exchange.rows[feature];
    }
  }
  return missing;
}

void encode(const Exchange& exchange, Source& source) {
  for_isas_and_threads(kKernels, [&](const IdCodecKernels& kernels, const ParallelFor& threads) {
    cpu::IdEncoder encoder(source.layout, exchange.weighted, exchange.routes, kernels);
    Buffer<uint8_t> lengths(encoder.lengths_bytes());
    encoder.encode_lengths(lengths.data(), threads);
    int64_t bytes = 0;
    for (const int64_t size : encoder.payload_bytes()) bytes += size;
    Buffer<uint8_t> payload(bytes);
    CHECK(encoder.encode_ids(payload.data(), threads) == count_missing(exchange, source));
    if (source.payload_bytes.empty()) {
      source.lengths = std::move(lengths);
      source.payload = std::move(payload);
      source.payload_bytes = encoder.payload_bytes();
    } else {
      CHECK(lengths == source.lengths && payload == source.payload);
      CHECK(encoder.payload_bytes() == source.payload_bytes);
    }
  });
}

struct Plain {
  std::vector<int64_t> ids;
  std::vector<int64_t> offsets = {0};
  std::vector<float> weights;
};

// Bags (source, chunk, lookup, sample) of the chunks in [first, last).
Plain expected_bags(const Exchange& exchange, const std::vector<Source>& sources, int64_t destination, int64_t first,
                    int64_t last) {
  Plain plain;
  const int64_t b = exchange.samples / exchange.routes.chunks;
  int64_t begin = 0;
  for (int64_t d = 0; d < destination; ++d) begin += exchange.routes.sizes[d];
  for (const Source& source : sources) {
    for (int64_t chunk = first; chunk < last; ++chunk) {
      for (int64_t slot = 0; slot < exchange.routes.sizes[destination]; ++slot) {
        const int64_t feature = exchange.routes.routes[begin + slot];
        for (int64_t sample = chunk * b; sample < (chunk + 1) * b; ++sample) {
          const int64_t bag = feature * exchange.samples + sample;
          for (int64_t i = source.offsets[bag]; i < source.offsets[bag + 1]; ++i) {
            const int64_t id = source.id(i);
            plain.ids.push_back(id >= 0 && id < exchange.rows[feature] ? id : -1);
            if (exchange.weighted) plain.weights.push_back(source.weights[i]);
          }
          plain.offsets.push_back(static_cast<int64_t>(plain.ids.size()));
        }
      }
    }
  }
  return plain;
}

void decode(Random& random, const Exchange& exchange, const std::vector<Source>& sources, int64_t destination) {
  std::vector<uint8_t> lengths;
  std::vector<uint8_t> payload;
  std::vector<int64_t> sizes;
  for (const Source& source : sources) {
    const uint8_t* from = source.lengths.data();
    const uint8_t* payload_from = source.payload.data();
    for (int64_t d = 0; d < destination; ++d) {
      from += exchange.lengths_bytes(d);
      payload_from += source.payload_bytes[d];
    }
    sizes.push_back(source.payload_bytes[destination]);
    lengths.insert(lengths.end(), from, from + exchange.lengths_bytes(destination));
    payload.insert(payload.end(), payload_from, payload_from + sizes.back());
  }
  const Buffer<uint8_t> lengths_in(lengths);
  const Buffer<uint8_t> payload_in(payload);
  const int64_t chunks = exchange.routes.chunks;
  const cpu::IdMessages messages = {lengths_in.data(),
                                    lengths_in.size(),
                                    payload_in.data(),
                                    payload_in.size(),
                                    static_cast<int64_t>(sources.size()),
                                    exchange.routes.id_bytes[destination],
                                    exchange.weighted,
                                    chunks};
  const bool is_wide = exchange.routes.id_bytes[destination] == 8 || random.one_in(2);
  for_isas_and_threads(kKernels, [&](const IdCodecKernels& kernels, const ParallelFor& threads) {
    CHECK(cpu::payload_bytes_of(messages, kernels) == sizes);
    cpu::IdDecoder decoder(messages, kernels);
    CHECK(decoder.fits());
    CHECK(decoder.num_results() == (chunks > 1 ? chunks + 1 : 1));
    std::vector<Plain> expected = {expected_bags(exchange, sources, destination, 0, chunks)};
    for (int64_t c = 0; c < chunks && chunks > 1; ++c) {
      expected.push_back(expected_bags(exchange, sources, destination, c, c + 1));
    }
    std::vector<Buffer<int64_t>> offsets;
    std::vector<Buffer<uint8_t>> ids;
    std::vector<Buffer<float>> weights;
    std::vector<cpu::DecodedBags> results;
    for (int64_t i = 0; i < decoder.num_results(); ++i) {
      CHECK(decoder.num_ids(i) == static_cast<int64_t>(expected[i].ids.size()));
      CHECK(decoder.num_bags(i) + 1 == static_cast<int64_t>(expected[i].offsets.size()));
      offsets.emplace_back(decoder.num_bags(i) + 1);
      ids.emplace_back(decoder.num_ids(i) * (is_wide ? 8 : 4));
      weights.emplace_back(exchange.weighted ? decoder.num_ids(i) : 0);
      results.push_back({ids[i].data(), offsets[i].data(), weights[i].data()});
    }
    decoder.decode(results, is_wide, threads);
    for (int64_t i = 0; i < decoder.num_results(); ++i) {
      CHECK(std::equal(expected[i].offsets.begin(), expected[i].offsets.end(), offsets[i].data()));
      CHECK(std::equal(expected[i].weights.begin(), expected[i].weights.end(), weights[i].data()));
      for (size_t p = 0; p < expected[i].ids.size(); ++p) {
        const int64_t id = is_wide ? reinterpret_cast<const int64_t*>(ids[i].data())[p]
                                   : reinterpret_cast<const int32_t*>(ids[i].data())[p];
        CHECK(id == (is_wide ? expected[i].ids[p] : static_cast<int32_t>(expected[i].ids[p])));
      }
    }

    if (payload_in.size() == 0) return;
    cpu::IdMessages other = messages;
    other.payload_bytes -= 1;
    CHECK(!cpu::IdDecoder(other, kernels).fits());
    std::vector<uint8_t> changed = lengths;
    const int64_t per_source = exchange.lengths_bytes(destination);
    int64_t position = random.below(per_source - 16);  // anything but samples and weights, which it does not read
    position += per_source * random.below(static_cast<int64_t>(sources.size())) + (position < 8 ? 0 : 16);
    changed[position] ^= 1 << random.below(8);
    const Buffer<uint8_t> changed_in(changed);
    other = messages;
    other.lengths = changed_in.data();
    CHECK(!cpu::IdDecoder(other, kernels).fits());
  });
}

}  // namespace

void test_id_codec(int64_t number) {
  Random random(number);
  const Exchange exchange = random_exchange(random);
  std::vector<Source> sources;
  for (int64_t i = 0; i < exchange.world(); ++i) {
    sources.push_back(random_source(random, exchange));
    encode(exchange, sources.back());
  }
  for (int64_t d = 0; d < exchange.world(); ++d) decode(random, exchange, sources, d);
}

}  // namespace dmt::testing
