#include "bags.h"
#include "kernels/cpu/embedding_bag_blocks.h"
#include "kernels/cpu/wire_codec.h"

namespace dmt::testing {
namespace {

using cpu::EmbeddingBagBlocksKernels;
using cpu::ParallelFor;

const std::vector<const EmbeddingBagBlocksKernels*> kKernels = KERNELS_OF_ISAS(embedding_bag_blocks_kernels);

// One of the blocks, in memory of its own.
struct Target {
  int64_t row_bytes;
  int64_t stride;
  bool encoded;
  Buffer<uint8_t> memory;
};

Target target_of(const Bags& bags, bool encoded, int64_t gap, WireFormat format) {
  const int64_t width = bags.layout.width;
  const int64_t size = element_size(bags.dtype());
  const int64_t row_bytes = encoded ? wire_row_bytes(format, width) : width * size;
  const int64_t stride = row_bytes + gap * (encoded ? 1 : size);
  const int64_t rows = bags.layout.num_samples;
  return {row_bytes, stride, encoded, Buffer<uint8_t>(rows > 0 && row_bytes > 0 ? (rows - 1) * stride + row_bytes : 0)};
}

// Whether the block is the message, or the rows, of the sums.
void check_block(const Bags& bags, const Sums& expected, int64_t block, const Target& target, WireFormat format) {
  const int64_t width = bags.layout.width;
  const int64_t rows = bags.layout.num_samples;
  if (rows == 0 || width == 0) return;
  Values decoded(bags.dtype(), rows * width);
  if (target.encoded) {
    const cpu::WireRows wire_rows = {decoded.data(), bags.dtype(), rows, width, width};
    cpu::wire_codec_kernels().decode(target.memory.data(), target.stride, format, wire_rows, threads(1));
  } else {
    for (int64_t r = 0; r < rows; ++r)
      std::memcpy(decoded.at(r * width), target.memory.data() + r * target.stride, target.row_bytes);
  }
  for (int64_t r = 0; r < rows; ++r) {
    double maximum = 0;
    for (int64_t c = 0; c < width; ++c)
      maximum = std::max(maximum, std::abs(expected.value[(block * rows + r) * width + c]));
    for (int64_t c = 0; c < width; ++c) {
      const int64_t i = (block * rows + r) * width + c;
      // No format is worse than int8's half step and fp8's four bits; their exact bytes are the Python tests'.
      const double off = target.encoded ? 0.07 * std::abs(expected.value[i]) + maximum / 200 + 0x1p-20 : 0;
      CHECK(is_near(decoded[r * width + c], expected.value[i], bags.dtype(),
                    off + sum_error(sums_of(bags.dtype()), expected.magnitude[i])));
    }
  }
}

}  // namespace

void test_embedding_bag_blocks(int64_t number) {
  Random random(number);
  const BagOptions options = {
      .dtype = static_cast<DType>(number % 4), .wide_ids = number / 4 % 2 == 0, .is_large = random.one_in(5)};
  const Bags bags = random_bags(random, options);
  const Sums expected = pool(bags, read(bags));
  const WireFormat format = static_cast<WireFormat>(number / 8 % kWireFormats);
  std::vector<Target> targets;
  std::vector<cpu::PooledBlock> blocks;
  for (int64_t k = 0; k < bags.layout.num_blocks; ++k) {
    targets.push_back(target_of(bags, random.one_in(2), random.pick<int64_t>({0, 0, 1, 5}), format));
  }
  std::vector<Buffer<uint8_t>> first;
  for_isas_and_threads(kKernels, [&](const EmbeddingBagBlocksKernels& kernels, const ParallelFor& threads) {
    blocks.clear();
    for (Target& target : targets) {
      target.memory = Buffer<uint8_t>(target.memory.size());
      blocks.push_back({target.memory.data(), target.stride, target.encoded});
    }
    const Buffer<uint8_t> scratch(kernels.scratch_size(bags.layout, bags.dtype(), threads));
    kernels.pool(bags.layout, bags.data, Buffer(blocks).data(), format, scratch.data(), threads);
    for (size_t k = 0; k < targets.size(); ++k) {
      check_block(bags, expected, static_cast<int64_t>(k), targets[k], format);
      if (threads.num_threads == 1) {
        first.resize(targets.size());
        first[k] = std::move(targets[k].memory);
        targets[k].memory = Buffer<uint8_t>(first[k].size());
      } else {
        CHECK(targets[k].memory == first[k]);
      }
    }
  });
}

}  // namespace dmt::testing
