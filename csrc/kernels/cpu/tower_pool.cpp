// A tile of rows is pooled one feature at a time into a small buffer and multiplied at once with that feature's slice
// of the weight. Buffer [32, D_f], sums [32, C] and slice [D_f, C] stay in the cache.
#include "tower_pool.h"

#include "float_formats.h"
#include "pool_bag.h"

namespace dmt::cpu {
namespace {

#if defined(__AVX512F__)
constexpr int64_t kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int64_t kVectorBytes = 32;
#else
constexpr int64_t kVectorBytes = 16;
#endif

constexpr int64_t kTileRows = 32;
constexpr int64_t kBlockRows = 4;  // times kBlockVectors: accumulators that fit the registers of every instruction set
constexpr int64_t kBlockVectors = 2;    // vectors side by side
constexpr int64_t kPaddedColumns = 32;  // C is padded to a multiple: of the widest block, so of every one

int64_t padded(int64_t columns) { return (columns + kPaddedColumns - 1) / kPaddedColumns * kPaddedColumns; }

// sums[0:Rows, 0:width] += pooled[0:Rows, 0:depth] @ weight[0:depth, 0:width]; width is a multiple of kPaddedColumns.
// Every sum runs over depth in order, so its bits do not depend on the blocking.
template <int64_t Rows, class Acc>
void multiply_rows(const Acc* pooled, int64_t depth, const Acc* weight, int64_t width, Acc* sums) {
  typedef Acc Vector __attribute__((vector_size(kVectorBytes)));
  constexpr int64_t lanes = kVectorBytes / static_cast<int64_t>(sizeof(Acc));
  for (int64_t column = 0; column < width; column += kBlockVectors * lanes) {
    Vector block[Rows][kBlockVectors];
    for (int64_t r = 0; r < Rows; ++r) __builtin_memcpy(block[r], sums + r * width + column, sizeof(block[r]));
    for (int64_t d = 0; d < depth; ++d) {
      Vector factor[kBlockVectors];
      __builtin_memcpy(factor, weight + d * width + column, sizeof(factor));
      for (int64_t r = 0; r < Rows; ++r) {
        for (int64_t v = 0; v < kBlockVectors; ++v) block[r][v] += pooled[r * depth + d] * factor[v];
      }
    }
    for (int64_t r = 0; r < Rows; ++r) __builtin_memcpy(sums + r * width + column, block[r], sizeof(block[r]));
  }
}

template <class Acc>
void multiply(const Acc* pooled, int64_t rows, int64_t depth, const Acc* weight, int64_t width, Acc* sums) {
  int64_t row = 0;
  for (; row + kBlockRows <= rows; row += kBlockRows) {
    multiply_rows<kBlockRows>(pooled + row * depth, depth, weight, width, sums + row * width);
  }
  for (; row < rows; ++row) multiply_rows<1>(pooled + row * depth, depth, weight, width, sums + row * width);
}

// packed [D, padded C] = weight^T, so that neighbouring sums read neighbouring factors.
template <class T>
void pack_weight(const T* weight, int64_t out_width, int64_t width, accumulator_t<T>* packed,
                 const ParallelFor& threads) {
  const int64_t columns = padded(out_width);
  parallel_for(threads, 0, width, 64, [&](int64_t begin, int64_t end) {
    for (int64_t d = begin; d < end; ++d) {
      for (int64_t c = 0; c < out_width; ++c) packed[d * columns + c] = load(weight[c * width + d]);
      for (int64_t c = out_width; c < columns; ++c) packed[d * columns + c] = 0;
    }
  });
}

// One thread's share of the scratch.
struct Share {
  int64_t pooled;  // [kTileRows, widest D_f]
  int64_t sums;    // [kTileRows, padded C]
  int64_t size() const { return pooled + sums; }
};

Share share(const BagLayout& bags, int64_t out_width) {
  int64_t widest = 0;
  for (int64_t i = 0; i < bags.num_tables; ++i) widest = bags.table_dims[i] > widest ? bags.table_dims[i] : widest;
  return {kTileRows * widest, kTileRows * padded(out_width)};
}

int64_t scratch_size(const BagLayout& bags, int64_t out_width, const ParallelFor& threads) {
  return bags.width * padded(out_width) + threads.num_threads * share(bags, out_width).size();
}

template <class T, class Id>
int64_t pool_typed(const BagLayout& bags, const TableData& tables, const T* weight, const T* bias, int64_t out_width,
                   T* out, accumulator_t<T>* scratch, const ParallelFor& threads) {
  using Acc = accumulator_t<T>;
  const int64_t F = bags.num_features;
  const int64_t B = bags.num_samples;
  const int64_t width = padded(out_width);
  const int64_t tiles_per_block = (B + kTileRows - 1) / kTileRows;
  const int64_t tiles = bags.num_blocks * tiles_per_block;
  const int64_t parts = threads.num_threads;
  const Share buffers = share(bags, out_width);
  Acc* packed = scratch;
  Acc* shares = scratch + bags.width * width;
  const Id* ids = typed_ids<Id>(bags);
  const Acc* sample_weights = static_cast<const Acc*>(bags.weights);
  pack_weight(weight, out_width, bags.width, packed, threads);

  // Tile `tile` is the rows [first, first + rows) of block k. Returns the missing ids.
  const auto pool_tile = [&](int64_t tile, Acc* pooled, Acc* sums) {
    const int64_t k = tile / tiles_per_block;
    const int64_t first = tile % tiles_per_block * kTileRows;
    const int64_t rows = B - first < kTileRows ? B - first : kTileRows;
    int64_t missing = 0;
    for (int64_t i = 0; i < rows * width; ++i) sums[i] = 0;
    for (int64_t f = 0; f < F; ++f) {
      const FeatureRows<T> feature = feature_rows<T>(bags, tables, f);
      const int64_t* offsets = bags.offsets + (k * F + f) * B + first;
      for (int64_t r = 0; r < rows; ++r) {
        const Acc* weights = sample_weights != nullptr ? sample_weights + offsets[r] : nullptr;
        missing += pool_bag(feature, 0, feature.dim, ids + offsets[r], offsets[r + 1] - offsets[r], weights,
                            pooled + r * feature.dim);
      }
      multiply(pooled, rows, feature.dim, packed + feature.column * width, width, sums);
    }
    T* target = out + (bags.block_order[k] * B + first) * out_width;
    for (int64_t r = 0; r < rows; ++r, target += out_width) {
      for (int64_t c = 0; c < out_width; ++c) {
        store(target + c, bias != nullptr ? sums[r * width + c] + load(bias[c]) : sums[r * width + c]);
      }
    }
    return missing;
  };

  int64_t missing = 0;
  parallel_for(threads, 0, parts, 1, [&](int64_t begin, int64_t end) {
    int64_t found = 0;
    for (int64_t part = begin; part < end; ++part) {
      Acc* pooled = shares + part * buffers.size();
      const int64_t last = tiles * (part + 1) / parts;
      for (int64_t tile = tiles * part / parts; tile < last; ++tile) {
        found += pool_tile(tile, pooled, pooled + buffers.pooled);
      }
    }
    __atomic_fetch_add(&missing, found, __ATOMIC_RELAXED);
  });
  return missing;
}

int64_t pool(const BagLayout& bags, const TableData& tables, const void* weight, const void* bias, int64_t out_width,
             void* out, void* scratch, const ParallelFor& threads) {
  int64_t missing = 0;
  with_id_type(bags, [&](auto id) {
    with_type(tables.dtype, [&](auto element) {
      using T = decltype(element);
      missing = pool_typed<T, decltype(id)>(bags, tables, static_cast<const T*>(weight), static_cast<const T*>(bias),
                                            out_width, static_cast<T*>(out), static_cast<accumulator_t<T>*>(scratch),
                                            threads);
    });
  });
  return missing;
}

}  // namespace

DMT_DEFINE_KERNELS(TowerPoolKernels, tower_pool_kernels) = {scratch_size, pool};

}  // namespace dmt::cpu
