// A block makes 128 samples x 128 or 256 columns of the output at a time. Two warpgroups multiply, 64 samples each, by
// wgmma; of the other two seven warps gather pooled rows into tiles and one brings the weight, so that the lookup runs
// behind the products. All wait for each other by barriers alone. Blocks stay, one on each multiprocessor, and take the
// next samples: those are gathered while results are stored. Two blocks share what is read of the weight.
// Rows of bfloat16 that are a bag of their own are copied into tiles (Gathering::copies); others come by a ring, for
// which tiles and weight have less room.
#include "tower_pool_hopper.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "tower_gather.h"

namespace dmt::cuda {

namespace {

constexpr int kMultipliers = 8;  // warps
constexpr int kThreads = 32 * (kMultipliers + kGatherers + 1);
constexpr int kInstruction = 128;  // columns of one product

enum class Gathering { copies, pools };

// Room for tiles, and for 64 factors of all columns.
template <Gathering kGathering>
constexpr int kSlots = kGathering == Gathering::copies ? 3 : 2;
template <Gathering kGathering>
constexpr int kFactorSlots = kSlots<kGathering>;
template <Gathering kGathering>
constexpr int kWarpPlaces = kGathering == Gathering::copies ? kPlacesOfWarp : kRingPlaces;
template <Gathering kGathering>
constexpr int kWarpRing = kGathering == Gathering::copies ? 0 : kRingBytes;

// Of a thread. The sums alone take kColumns / 2.
constexpr int kRegisters = (64 << 10) / kThreads;
template <Gathering kGathering, int kColumns>
constexpr int kMultiplierRegisters = kColumns / 2 + (kGathering == Gathering::copies ? 40 : 32);
template <Gathering kGathering, int kColumns>
constexpr int kGathererRegisters = 2 * kRegisters - kMultiplierRegisters<kGathering, kColumns>;

template <int kColumns>
constexpr int kFactorSlotBytes = kColumns * kSwizzledRow;

constexpr int kAlignment = 1024;
template <Gathering kGathering>
constexpr int kBarriers = 2 * (kSlots<kGathering> + kFactorSlots<kGathering>);

template <Gathering kGathering, int kColumns>
constexpr int kBlockBytes =
    kAlignment + kSlots<kGathering> * kSlotBytes + kFactorSlots<kGathering> * kFactorSlotBytes<kColumns> +
    kGatherers * (kWarpRing<kGathering> + kWarpPlaces<kGathering> * 8) + kBarriers<kGathering> * 8;

// packed [chunks, depth / 64, kColumns, 64] = the matrix, and zeros: 64 factors of all columns are a tile as products
// read it. A thread makes 16 bytes.
template <class T, int kColumns>
__global__ void __launch_bounds__(256) pack_tiles(const Matrix matrix, int64_t parts, int64_t slices, uint4* packed) {
  const int64_t i = blockIdx.x * int64_t{256} + threadIdx.x;
  if (i >= parts) return;
  const int64_t tile = i / (kColumns * 8);
  const int column = static_cast<int>(i / 8 % kColumns);
  const int part = static_cast<int>(i % 8);
  const int64_t row = tile / slices * kColumns + column;
  const int64_t first = tile % slices * 64 + part * 8;
  float values[8] = {};
#pragma unroll
  for (int k = 0; k < 8; ++k) {
    if (row < matrix.rows && first + k < matrix.columns) {
      const int64_t at = row * matrix.row_stride + (first + k) * matrix.column_stride;
      values[k] = to_float(static_cast<const T*>(matrix.data)[at]);
    }
  }
  packed[tile * (kColumns * 8) + swizzled_part(column, part) / 16] =
      make_uint4(round_pair<BFloat16>(values[0], values[1]), round_pair<BFloat16>(values[2], values[3]),
                 round_pair<BFloat16>(values[4], values[5]), round_pair<BFloat16>(values[6], values[7]));
}

#if defined(DMT_SM90A_CODE)

// The shared memory of a block.
template <Gathering kGathering, int kColumns>
struct Shared {
  static constexpr int kTiles = kSlots<kGathering>;
  static constexpr int kFactors = kFactorSlots<kGathering>;

  unsigned char* tiles;
  unsigned char* factors;
  unsigned char* rings;
  int64_t* places;
  uint64_t* full;
  uint64_t* empty;
  uint64_t* full_factors;
  uint64_t* empty_factors;

  DMT_MEMBER explicit Shared(unsigned char* memory) {
    tiles = memory + (kAlignment - shared_address(memory) % kAlignment) % kAlignment;
    factors = tiles + kTiles * kSlotBytes;
    rings = factors + kFactors * kFactorSlotBytes<kColumns>;
    places = reinterpret_cast<int64_t*>(rings + kGatherers * kWarpRing<kGathering>);
    full = reinterpret_cast<uint64_t*>(places + kGatherers * kWarpPlaces<kGathering>);
    empty = full + kTiles;
    full_factors = empty + kTiles;
    empty_factors = full_factors + kFactors;
  }

  DMT_MEMBER void make_barriers() const {
    for (int i = 0; i < kTiles; ++i) {
      init_barrier(full + i, kParts * 32);
      init_barrier(empty + i, kMultipliers);
    }
    for (int i = 0; i < kFactors; ++i) {
      init_barrier(full_factors + i, 1);
      init_barrier(empty_factors + i, kMultipliers * kClusterBlocks);
    }
    publish_barriers();
  }
};

// Half of all factors, for both blocks of the cluster: the other one brings the other half.
template <Gathering kGathering, int kColumns>
DMT_DEVICE void bring_factors(const Walk& walk, const unsigned char* packed,
                              const Shared<kGathering, kColumns>& shared) {
  constexpr int kBytes = kFactorSlotBytes<kColumns> / kClusterBlocks;
  const unsigned char* const mine = packed + cluster_rank() * kBytes;
  const int slices = 2 * walk.slices;
  wait_for_last_kernel();
  Slot slot;
  for (int item = walk.first_item(); item < walk.items(); item += walk.stride()) {
    const unsigned char* next = mine + static_cast<int64_t>(walk.chunk(item)) * slices * kFactorSlotBytes<kColumns>;
    for (int i = 0; i < slices; ++i, next += kFactorSlotBytes<kColumns>) {
      wait_for(shared.empty_factors + slot.index, slot.parity ^ 1);
      uint64_t* const full = shared.full_factors + slot.index;
      arrive_expecting(full, kFactorSlotBytes<kColumns>);
      copy_to_cluster(shared.factors + slot.index * kFactorSlotBytes<kColumns> + cluster_rank() * kBytes, next, kBytes,
                      full);
      slot.advance(shared.kFactors);
    }
  }
}

// Exchanges words between four lanes: word i of lane j becomes word j of lane i.
DMT_DEVICE void transpose_quad(uint32_t (&words)[4]) {
  const bool odd = threadIdx.x & 1;
  const bool high = threadIdx.x & 2;
#pragma unroll
  for (int i = 0; i < 4; i += 2) {
    const uint32_t got = __shfl_xor_sync(kAllLanes, odd ? words[i] : words[i + 1], 1);
    (odd ? words[i] : words[i + 1]) = got;
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const uint32_t got = __shfl_xor_sync(kAllLanes, high ? words[i] : words[i + 2], 2);
    (high ? words[i] : words[i + 2]) = got;
  }
}

// Of the output, a chunk of columns of some samples.
template <class T>
struct Target {
  T* first;  // of row 0
  const T* bias;
  int64_t width;
  int columns;
  int rows;

  DMT_MEMBER float bias_of(int column) const {
    return bias != nullptr && column < columns ? to_float(bias[column]) : 0.0f;
  }

  // Four lanes have 8 columns together, and four times those.
  DMT_MEMBER void store(int row, int column, const float (&sums)[4][2]) const {
    const int lane = static_cast<int>(threadIdx.x % 4);
    T* const to = first + row * width;
    if constexpr (sizeof(T) == 4) {
      if (row >= rows) return;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int c = column + 8 * i + 2 * lane;
        store_values(to + c, sums[i], columns - c, reinterpret_cast<uintptr_t>(to + c) % 8 == 0);
      }
    } else {
      uint32_t words[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) words[i] = round_pair<T>(sums[i][0], sums[i][1]);
      transpose_quad(words);
      if (row >= rows) return;
      const int c = column + 8 * lane;
      if (columns - c >= 8 && reinterpret_cast<uintptr_t>(to + c) % 16 == 0) {
        *reinterpret_cast<uint4*>(to + c) = make_uint4(words[0], words[1], words[2], words[3]);
        return;
      }
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        if (c + i < columns) to[c + i] = T{static_cast<uint16_t>(words[i / 2] >> (i % 2 * 16))};
      }
    }
  }
};

// The sums of 64 samples, a warpgroup's.
template <int kColumns>
class WideSums {
 public:
  // (+)= the products of a half of a tile and of the factors that go with it.
  DMT_MEMBER void add(uint64_t tile, uint64_t factors, bool adds) {
    begin_products();
#pragma unroll
    for (int k = 0; k < 4; ++k) {  // of 16 factors, 32 bytes
#pragma unroll
      for (int n = 0; n < kColumns / kInstruction; ++n) {
        multiply_add(sums_[n], tile + 2 * k, factors + 2 * k + n * (kInstruction * kSwizzledRow / 16), adds || k > 0);
      }
    }
    commit_products();
  }

  template <class T>
  DMT_MEMBER void store(const Target<T>& target) {
    const int lane = static_cast<int>(threadIdx.x % 32);
    const int row = static_cast<int>(threadIdx.x / 32) * 16 + lane / 4;
#pragma unroll
    for (int n = 0; n < kColumns / kInstruction; ++n) {
#pragma unroll
      for (int i = 0; i < kInstruction / 2; ++i) receive_sum(sums_[n][i]);
#pragma unroll
      for (int j = 0; j < kInstruction / 8; j += 4) {
        const int column = n * kInstruction + 8 * j;
        float bias[4][2];
#pragma unroll
        for (int i = 0; i < 8; ++i) bias[i / 2][i % 2] = target.bias_of(column + i / 2 * 8 + lane % 4 * 2 + i % 2);
#pragma unroll
        for (int half = 0; half < 2; ++half) {  // 8 rows below each other
          float sums[4][2];
#pragma unroll
          for (int i = 0; i < 8; ++i) {
            sums[i / 2][i % 2] = sums_[n][4 * (j + i / 2) + 2 * half + i % 2] + bias[i / 2][i % 2];
          }
          target.store(row + 8 * half, column, sums);
        }
      }
    }
  }

 private:
  float sums_[kColumns / kInstruction][kInstruction / 2];
};

template <class T, Gathering kGathering, int kColumns>
DMT_DEVICE void multiply_tiles(const Bags& bags, const Walk& walk, const Shared<kGathering, kColumns>& shared,
                               const T* bias, T* out, int64_t out_width) {
  // Whether products begin before those before them are done. With room for two tiles, both are needed by who pools:
  // then the other warpgroup's fill the gap.
  constexpr bool kOverlaps = kGathering == Gathering::copies;
  const int lane = static_cast<int>(threadIdx.x % 32);
  const int warpgroup = static_cast<int>(threadIdx.x / 128);
  const uint64_t tiles = describe_tile(shared.tiles + warpgroup * 64 * kSwizzledRow);
  const uint64_t factors = describe_tile(shared.factors);
  WideSums<kColumns> sums;
  Slot slot;
  Slot factor_slot;
  int old_slot = 0;  // what the products read that are done next
  int old_factor_slot = 0;
  const auto free_factors = [&] {
    if (lane < kClusterBlocks) arrive_at(shared.empty_factors + old_factor_slot, static_cast<unsigned>(lane));
  };
  const auto free_tile = [&] {
    if (lane == 0) arrive(shared.empty + old_slot);
  };
  for (int item = walk.first_item(); item < walk.items(); item += walk.stride()) {
    for (int slice = 0; slice < walk.slices; ++slice) {
      wait_for(shared.full + slot.index, slot.parity);
      publish_writes();
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        wait_for(shared.full_factors + factor_slot.index, factor_slot.parity);
        sums.add(tiles + (slot.index * kSlotBytes + half * kHalfBytes) / 16,
                 factors + factor_slot.index * kFactorSlotBytes<kColumns> / 16, slice + half > 0);
        if constexpr (kOverlaps) {
          wait_for_products<1>();
          if (slice + half > 0) free_factors();
          if (slice > 0 && half == 0) free_tile();
        }
        old_factor_slot = factor_slot.index;
        old_slot = slot.index;
        factor_slot.advance(shared.kFactors);
        if constexpr (!kOverlaps) {
          wait_for_products<0>();
          free_factors();
          if (half == 1) free_tile();
        }
      }
      slot.advance(shared.kTiles);
    }
    if constexpr (kOverlaps) {
      wait_for_products<0>();
      free_factors();
      free_tile();
    }
    const Tile samples = walk.samples(item, bags.num_samples);
    const int64_t column = static_cast<int64_t>(walk.chunk(item)) * kColumns;
    const int64_t left = out_width - column;
    const int64_t block = samples.count > 0 ? bags.block_order[samples.block] : 0;
    const int64_t row = block * bags.num_samples + samples.first;
    sums.store(Target<T>{out + row * out_width + column, bias != nullptr ? bias + column : nullptr, out_width,
                         static_cast<int>(left < kColumns ? left : kColumns), samples.count});
  }
}

#endif

template <class T, Gathering kGathering, int kColumns>
__global__ void __launch_bounds__(kThreads, 1)
    multiply_bags(const Bags bags, const Walk walk, const unsigned char* packed, const T* bias, T* out,
                  int64_t out_width) {
#if defined(DMT_SM90A_CODE)
  DMT_DYNAMIC_SHARED(memory);
  const Shared<kGathering, kColumns> shared(memory);
  const int warp = static_cast<int>(threadIdx.x / 32);
  if (threadIdx.x == 0) shared.make_barriers();
  cluster_sync();
  if (warp < kMultipliers) {
    set_registers<kRegisters, kMultiplierRegisters<kGathering, kColumns>>();
    multiply_tiles(bags, walk, shared, bias, out, out_width);
  } else {
    set_registers<kRegisters, kGathererRegisters<kGathering, kColumns>>();
    const int gatherer = warp - kMultipliers;
    const TileSlots slots = {shared.tiles, shared.full, shared.empty};
    int64_t* const places = shared.places + gatherer * kWarpPlaces<kGathering>;
    if (gatherer == kGatherers) {
      if (threadIdx.x % 32 == 0) bring_factors(walk, packed, shared);
    } else if constexpr (kGathering == Gathering::copies) {
      Copier<shared.kTiles>(bags, walk, slots, gatherer, places).run();
    } else {
      Pooler<T, shared.kTiles>(bags, walk, slots, gatherer, places, shared.rings + gatherer * kRingBytes).run();
    }
  }
  __syncwarp();    // one lane brings the weight
  cluster_sync();  // the other block may send factors and arrive here until then
#else
  __trap();
#endif
}

template <class T, Gathering kGathering, int kColumns>
void multiply_chunks(const Bags& bags, const Matrix& weight, const void* bias, void* scratch, void* out,
                     cudaStream_t stream) {
  Walk walk = {};
  walk.tiles_per_block = static_cast<int>(ceil_div<int64_t>(bags.num_samples, kWideRows));
  walk.tiles = static_cast<int>(bags.num_blocks) * walk.tiles_per_block;
  walk.chunks = static_cast<int>(ceil_div<int64_t>(weight.rows, kColumns));
  walk.slices = static_cast<int>(ceil_div<int64_t>(bags.width, kSlice));
  const int64_t parts = int64_t{walk.chunks} * walk.slices * 2 * kColumns * 8;
  launch(pack_tiles<T, kColumns>, ceil_div<int64_t>(parts, 256), 256, 0, stream, weight, parts,
         int64_t{walk.slices} * 2, static_cast<uint4*>(scratch));
  const int64_t items = ceil_div<int64_t>(walk.tiles, kClusterBlocks) * walk.chunks;
  const int64_t clusters = std::min<int64_t>(items, multiprocessors() / kClusterBlocks);
  launch_clusters(multiply_bags<T, kGathering, kColumns>, kClusterBlocks, clusters * kClusterBlocks, kThreads,
                  kBlockBytes<kGathering, kColumns>, stream, bags, walk, static_cast<const unsigned char*>(scratch),
                  static_cast<const T*>(bias), static_cast<T*>(out), weight.rows);
}

template <class T, Gathering kGathering>
void multiply_bags_by(const Bags& bags, const Matrix& weight, const void* bias, void* scratch, void* out,
                      cudaStream_t stream) {
  if (weight.rows <= 128) {
    multiply_chunks<T, kGathering, 128>(bags, weight, bias, scratch, out, stream);
  } else {
    multiply_chunks<T, kGathering, 256>(bags, weight, bias, scratch, out, stream);
  }
}

// Rows of bfloat16 are copied where there are as many ids as bags, hence in all likelihood one each, and no weights.
// What copies cannot bring to its place would be pooled by those few warps, one row after the other.
Gathering gathering_of(const Bags& bags, DType dtype) {
  const bool has_one_each = bags.num_ids == bags.num_blocks * bags.num_features * bags.num_samples;
  const bool is_copied = dtype == DType::bf16 && has_one_each && bags.weights == nullptr && bags.are_packs;
  return is_copied ? Gathering::copies : Gathering::pools;
}

// Whether rows that are pooled by a ring are multiplied here, too. No GPU has run that yet: it is for those who ask.
bool may_pool() {
  const char* const asked = std::getenv("DMT_TOWER_POOL_RING");
  return asked != nullptr && std::strcmp(asked, "1") == 0;
}

}  // namespace

// Half of a tile of fewer samples would be empty. Rows that are pooled would be so anew for every chunk of the output.
bool is_for_hopper(const Bags& bags, DType dtype, const Matrix& weight, Products products) {
  const int64_t tiles = bags.num_blocks * ceil_div<int64_t>(bags.num_samples, kWideRows);
  return products == Products::bf16 && bags.num_samples > kTileRows && weight.columns > 0 && weight.rows > 0 &&
         (gathering_of(bags, dtype) == Gathering::copies || (may_pool() && weight.rows <= 256)) &&
         tiles * ceil_div<int64_t>(weight.rows, 128) < 1 << 30 && is_hopper();
}

void tower_pool_hopper(const Bags& bags, DType dtype, const Matrix& weight, const void* bias, void* scratch, void* out,
                       cudaStream_t stream) {
  if (gathering_of(bags, dtype) == Gathering::copies) {
    return multiply_bags_by<BFloat16, Gathering::copies>(bags, weight, bias, scratch, out, stream);
  }
  with_type(dtype, [&](auto element) {
    multiply_bags_by<decltype(element), Gathering::pools>(bags, weight, bias, scratch, out, stream);
  });
}

}  // namespace dmt::cuda
