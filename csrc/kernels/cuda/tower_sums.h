// The sums of products that the threads of a block hold together, in registers, and how they add to them from tiles.
#pragma once

#include "tensor_core.h"
#include "tower_tile.h"

namespace dmt::cuda {

constexpr int kFactorBytes = 64;   // of a column of the product, at a time
constexpr int kFactorStride = 80;  // bytes between them: eight lie in different banks

template <class E>
constexpr int kDepth = kFactorBytes / static_cast<int>(sizeof(E));  // factors of a column, at a time

// ---- Sums that the threads of a block hold together: [kTileRows, kColumns] ----------------------------------------

// One by one, in the order of the factors: thread t has rows 8*(t / 32) and following, and columns t % 32, +32, ...
template <int kColumns>
class ExactSums {
 public:
  // += tile[:, first : first + kDepth] @ the factors' transpose.
  DMT_MEMBER void add(const float* tile, int first, const unsigned char* factors) {
    const float* const rows = tile + threadIdx.x / 32 * kRows * kTileStride<float> + first;
    const unsigned char* const columns = factors + threadIdx.x % 32 * kFactorStride;
#pragma unroll
    for (int k = 0; k < kDepth<float>; k += 4) {
      float4 b[kPerLane];
#pragma unroll
      for (int j = 0; j < kPerLane; ++j) {
        b[j] = *reinterpret_cast<const float4*>(columns + j * 32 * kFactorStride + k * 4);
      }
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
        const float4 a = *reinterpret_cast<const float4*>(rows + i * kTileStride<float> + k);
#pragma unroll
        for (int j = 0; j < kPerLane; ++j) {
          float& sum = sums_[i][j];
          sum = fmaf(a.x, b[j].x, sum);
          sum = fmaf(a.y, b[j].y, sum);
          sum = fmaf(a.z, b[j].z, sum);
          sum = fmaf(a.w, b[j].w, sum);
        }
      }
    }
  }

  // Calls function(row, column, sum).
  template <class Function>
  DMT_MEMBER void for_each(const Function& function) const {
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
#pragma unroll
      for (int j = 0; j < kPerLane; ++j) {
        function(static_cast<int>(threadIdx.x) / 32 * kRows + i, static_cast<int>(threadIdx.x) % 32 + 32 * j,
                 sums_[i][j]);
      }
    }
  }

 private:
  static constexpr int kRows = kTileRows / (kTileThreads / 32);
  static constexpr int kPerLane = kColumns / 32;
  float sums_[kRows][kPerLane] = {};
};

// What one instruction of the tensor cores multiplies: 32 bytes of factors of a row.
template <class E>
constexpr int kStep = 32 / static_cast<int>(sizeof(E));

template <class E>
DMT_DEVICE void multiply_add_as(float (&sums)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  if constexpr (sizeof(E) == 2) {
    multiply_add(sums, a, b0, b1);
  } else {
    multiply_add_tf32(sums, a, b0, b1);
  }
}

// On tensor cores: a warp has 64 columns of 16 * kHeight rows. To load_matrices, 4 words are 8 elements of 16 bits;
// they go to the lanes where tf32 factors belong.
template <class E, int kColumns>
class TensorSums {
 public:
  DMT_MEMBER void add(const E* tile, int first, const unsigned char* factors) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
    for (int k = 0; k < kDepth<E>; k += kStep<E>) {
      uint32_t a[kHeight][4];
#pragma unroll
      for (int i = 0; i < kHeight; ++i) {
        load_matrices(a[i],
                      tile + (row() + 16 * i + lane % 16) * kTileStride<E> + first + k + lane / 16 * (kStep<E> / 2));
      }
#pragma unroll
      for (int j = 0; j < 8; j += 2) {
        uint32_t b[4];
        load_matrices(b, factors + (column() + 8 * j + lane / 16 * 8 + lane % 8) * kFactorStride +
                             k * static_cast<int>(sizeof(E)) + lane / 8 % 2 * 16);
#pragma unroll
        for (int i = 0; i < kHeight; ++i) {
          multiply_add_as<E>(sums_[i][j], a[i], b[0], b[1]);
          multiply_add_as<E>(sums_[i][j + 1], a[i], b[2], b[3]);
        }
      }
    }
  }

  template <class Function>
  DMT_MEMBER void for_each(const Function& function) const {
    const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
    for (int i = 0; i < kHeight; ++i) {
#pragma unroll
      for (int j = 0; j < 8; ++j) {
#pragma unroll
        for (int c = 0; c < 4; ++c) {
          function(row() + 16 * i + lane / 4 + c / 2 * 8, column() + 8 * j + lane % 4 * 2 + c % 2, sums_[i][j][c]);
        }
      }
    }
  }

 private:
  static constexpr int kWarpsAcross = kColumns / 64;
  static constexpr int kHeight = kTileRows / 16 / (kTileThreads / 32 / kWarpsAcross);
  DMT_MEMBER static int row() { return static_cast<int>(threadIdx.x) / 32 / kWarpsAcross * kHeight * 16; }
  DMT_MEMBER static int column() { return static_cast<int>(threadIdx.x) / 32 % kWarpsAcross * 64; }
  float sums_[kHeight][8][4] = {};
};

template <class E>
constexpr bool kIsExact = false;
template <>
constexpr bool kIsExact<float> = true;

template <class E, int kColumns>
struct SumsOf {
  using type = TensorSums<E, kColumns>;
};
template <int kColumns>
struct SumsOf<float, kColumns> {
  using type = ExactSums<kColumns>;
};

// ---- Sums of outer products: [128 columns of grad, kSlice columns of pooled rows] ----------------------------------

// Over the samples one by one: a thread has 8 x 8 of them, in two
// halves of four each way.
class ExactOuterSums {
 public:
  DMT_MEMBER void add(const float* grad, const float* pooled) {
    for (int k = 0; k < kTileRows; ++k, grad += kTileStride<float>, pooled += kTileStride<float>) {
      float a[8];
      float b[8];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float4 some = *reinterpret_cast<const float4*>(grad + 64 * half + threadIdx.x / 16 * 4);
        const float4 others = *reinterpret_cast<const float4*>(pooled + 64 * half + threadIdx.x % 16 * 4);
        a[4 * half] = some.x, a[4 * half + 1] = some.y, a[4 * half + 2] = some.z, a[4 * half + 3] = some.w;
        b[4 * half] = others.x, b[4 * half + 1] = others.y, b[4 * half + 2] = others.z, b[4 * half + 3] = others.w;
      }
#pragma unroll
      for (int i = 0; i < 8; ++i) {
#pragma unroll
        for (int j = 0; j < 8; ++j) sums_[i][j] = fmaf(a[i], b[j], sums_[i][j]);
      }
    }
  }

  template <class Function>
  DMT_MEMBER void for_each(const Function& function) const {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        function(i / 4 * 64 + static_cast<int>(threadIdx.x) / 16 * 4 + i % 4,
                 j / 4 * 64 + static_cast<int>(threadIdx.x) % 16 * 4 + j % 4, sums_[i][j]);
      }
    }
  }

 private:
  float sums_[8][8] = {};
};

// On tensor cores: a warp has 32 x 64. The tiles have a sample a row, so what is loaded is transposed.
template <class E>
class TensorOuterSums {
 public:
  DMT_MEMBER void add(const E* grad, const E* pooled) {
#pragma unroll
    for (int k = 0; k < kTileRows; k += kStep<E>) {
      uint32_t a[2][4];
#pragma unroll
      for (int i = 0; i < 2; ++i) load_transposed<true>(a[i], grad + k * kTileStride<E> + row() + 16 * i);
#pragma unroll
      for (int j = 0; j < 8; j += 2) {
        uint32_t b[4];
        load_transposed<false>(b, pooled + k * kTileStride<E> + column() + 8 * j);
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          multiply_add_as<E>(sums_[i][j], a[i], b[0], b[1]);
          multiply_add_as<E>(sums_[i][j + 1], a[i], b[2], b[3]);
        }
      }
    }
  }

  template <class Function>
  DMT_MEMBER void for_each(const Function& function) const {
    const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int j = 0; j < 8; ++j) {
#pragma unroll
        for (int c = 0; c < 4; ++c) {
          function(row() + 16 * i + lane / 4 + c / 2 * 8, column() + 8 * j + lane % 4 * 2 + c % 2, sums_[i][j][c]);
        }
      }
    }
  }

 private:
  // Of kStep samples 16 columns, for the left factor (`kIsLeft`) or twice 8 for the right one. Words are loaded one by
  // one: lanes have every other sample, the same ones of both factors, so that all read from different banks.
  template <bool kIsLeft>
  DMT_MEMBER static void load_transposed(uint32_t (&words)[4], const E* from) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const int first = lane / 8 % 2 * 8;
    const int second = lane / 16 * 8;
    if constexpr (sizeof(E) == 2) {
      const int sample = (kIsLeft ? second : first) + lane % 8;
      load_transposed_matrices(words, from + sample * kTileStride<E> + (kIsLeft ? first : second));
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int sample = lane % 4 * 2 + (kIsLeft ? i / 2 : i % 2);
        words[i] = from[sample * kTileStride<E> + lane / 4 + (kIsLeft ? i % 2 : i / 2) * 8].bits;
      }
    }
  }

  DMT_MEMBER static int row() { return static_cast<int>(threadIdx.x) / 32 / 2 * 32; }
  DMT_MEMBER static int column() { return static_cast<int>(threadIdx.x) / 32 % 2 * 64; }
  float sums_[2][8][4] = {};
};

template <class E>
struct OuterSumsOf {
  using type = TensorOuterSums<E>;
};
template <>
struct OuterSumsOf<float> {
  using type = ExactOuterSums;
};

}  // namespace dmt::cuda
