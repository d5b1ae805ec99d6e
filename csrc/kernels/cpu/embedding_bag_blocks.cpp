// Some samples at a time: their pooled rows, all features side by side, are in the caches when they are encoded
// and never in memory.
#include "embedding_bag_blocks.h"

#include "bag_walk.h"
#include "wire_row.h"

namespace dmt::cpu {
namespace {

constexpr int64_t kRowsBytes = 128 << 10;  // of pooled rows at once: in the second cache, with rows of tables to come

int64_t samples_at_once(const BagLayout& bags, int64_t element_size) {
  const int64_t samples = kRowsBytes / (bags.width * element_size + 1);
  return samples < 1 ? 1 : samples < bags.num_samples ? samples : bags.num_samples;
}

template <class T, class Id>
struct BlocksPool {
  const BagLayout& bags;
  const TableData& tables;
  const PooledBlock* blocks;
  WireFormat format;

  // Rows [row, end) of the blocks as they come.
  void run(int64_t row, int64_t end, T* scratch) const {
    const int64_t at_once = samples_at_once(bags, sizeof(T));
    SampleWalk walk(bags, at_once, row, end);
    SampleWalk walk_ahead = walk;
    IdsAhead<T, Id, SampleWalk> ahead(bags, tables, walk_ahead);
    ahead.fetch_first(kIdsAhead, kBytesAhead);
    for (BagRange range; walk.next(range);) {
      const int64_t first = range.first % bags.num_samples;
      const PooledBlock& block = blocks[bags.block_order[range.first / bags.num_samples / bags.num_features]];
      uint8_t* const target = static_cast<uint8_t*>(block.data) + first * block.stride;
      const FeatureRows<T> rows = feature_rows<T>(bags, tables, range.feature);
      T* const sums = block.encoded ? scratch : reinterpret_cast<T*>(target);
      const int64_t stride = block.encoded ? bags.width : block.stride / static_cast<int64_t>(sizeof(T));
      pool_bags(rows, 0, rows.dim, bag_run<T, Id>(bags, range), SumRows<T>{sums + rows.column, stride, false}, ahead);
      if (block.encoded && range.feature + 1 == bags.num_features) encode(scratch, range.count, target, block.stride);
    }
  }

  __attribute__((noinline)) void encode(const T* sums, int64_t count, uint8_t* message, int64_t stride) const {
    if (wire_row_bytes(format, bags.width) == 0) return;  // such rows have no memory
    with_payload(format, [&](auto payload) {
      for (int64_t i = 0; i < count; ++i) {
        encode_row<decltype(payload)>(sums + i * bags.width, bags.width, Nearest{}, message + i * stride);
      }
    });
  }
};

int64_t scratch_size(const BagLayout& bags, DType dtype, const ParallelFor& threads) {
  int64_t size = 0;
  with_type(dtype, [&](auto element) {
    const int64_t element_size = sizeof(element);
    size = threads.num_threads * samples_at_once(bags, element_size) * bags.width * element_size;
  });
  return size;
}

void pool(const BagLayout& bags, const TableData& tables, const PooledBlock* blocks, WireFormat format, void* scratch,
          const ParallelFor& threads) {
  const int64_t rows = bags.num_blocks * bags.num_samples;
  with_id_type(bags, [&](auto id) {
    with_type(tables.dtype, [&](auto element) {
      using T = decltype(element);
      const BlocksPool<T, decltype(id)> job = {bags, tables, blocks, format};
      const int64_t own_size = samples_at_once(bags, sizeof(T)) * bags.width;
      for_pieces(bags, rows, threads, [&](int64_t piece, int64_t pieces, int64_t part) {
        job.run(rows * piece / pieces, rows * (piece + 1) / pieces, static_cast<T*>(scratch) + part * own_size);
      });
    });
  });
}

}  // namespace

DMT_DEFINE_KERNELS(EmbeddingBagBlocksKernels, embedding_bag_blocks_kernels) = {scratch_size, pool};

}  // namespace dmt::cpu
