// The inner product kernel of a fused lookup: sums += factors x panel, all of it in registers and the nearest cache.
//
// A *word* is what one lane multiplies: a float, a double, or with AVX512-BF16 a pair of bfloat16.
#pragma once

#include <cstdint>

#include "vectors.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace dmt::cpu {
namespace {

template <class T>
vector_t<T> splat(T value) {
  return value - vector_t<T>{};  // unlike value + 0 it keeps -0, so that it compiles to a broadcast
}

// a * b + c, rounded once where the instruction set can: the compiler may not choose that by itself.
inline vector_t<float> multiply_add(vector_t<float> a, vector_t<float> b, vector_t<float> c) {
#if defined(__AVX512F__)
  return _mm512_fmadd_ps(a, b, c);
#elif defined(__FMA__)
  return _mm256_fmadd_ps(a, b, c);
#else
  return a * b + c;
#endif
}

inline vector_t<double> multiply_add(vector_t<double> a, vector_t<double> b, vector_t<double> c) {
#if defined(__AVX512F__)
  return _mm512_fmadd_pd(a, b, c);
#elif defined(__FMA__)
  return _mm256_fmadd_pd(a, b, c);
#else
  return a * b + c;
#endif
}

#if defined(__AVX512BF16__)
// a and b hold pairs of bfloat16: c + both products, denormals taken as zero.
inline vector_t<float> multiply_add(WordBits a, WordBits b, vector_t<float> c) {
  return _mm512_dpbf16_ps(c, (__m512bh)a, (__m512bh)b);
}

// The pairs (low[0], low[1]), (low[2], low[3]), ... rounded to nearest, then those of high.
inline WordBits bfloat16_pairs(vector_t<float> low, vector_t<float> high) {
  return (WordBits)_mm512_cvtne2ps_pbh(high, low);
}
#endif

constexpr int64_t kPanelVectors = 2;  // vectors side by side

// `count` numbers, or as many as there are lanes if there are more; behind them zeros.
template <class Acc>
vector_t<Acc> load_some(const Acc* source, int64_t count) {
  if (count >= kLanes<Acc>) return load_vector(source);
  vector_t<Acc> values = {};
  if (count > 0) __builtin_memcpy(&values, source, count * sizeof(Acc));
  return values;
}

// The first `count` lanes, rounded; all of them if there are no more.
template <class T>
void store_some(T* target, vector_t<accumulator_t<T>> values, int64_t count) {
  constexpr int64_t lanes = kLanes<accumulator_t<T>>;
  if (count >= lanes) {
    store_vector(target, values);
    return;
  }
  T rounded[lanes];
  store_vector(&rounded[0], values);
  __builtin_memcpy(target, rounded, count * sizeof(T));
}

#if defined(__AVX512F__)
inline void store_some(float* target, vector_t<float> values, int64_t count) {
  _mm512_mask_storeu_ps(target, count >= kLanes<float> ? 0xFFFF : (1 << count) - 1, values);
}
#endif

// Words side by side in a panel: one per sample.
template <class Word>
constexpr int64_t kPanel = kPanelVectors * kLanes<Word>;

// Rows of a block: with kPanelVectors, as many sums as fit the registers beside a panel's row and a factor.
#if defined(__AVX512F__)
constexpr int64_t kBlockRows = 14;  // of 32 registers
#elif defined(__AVX2__)
constexpr int64_t kBlockRows = 6;  // of 16 registers
#else
constexpr int64_t kBlockRows = 5;  // of 16 registers, and one more for the product
#endif

constexpr int64_t kDepth = 128;  // most words that a block sums in one call

// sums[0:Rows, 0:kPanel] (+)= factors[0:Rows, 0:depth] @ panel[0:depth, 0:kPanel], rows of factors kDepth apart. Every
// sum runs over depth in order, one call after the other, so its bits depend on no blocking.
template <int64_t Rows, class Word, class Acc>
void multiply_block(const Word* factors, const Word* panel, int64_t depth, bool is_first, Acc* sums) {
  static_assert(sizeof(Word) == sizeof(Acc));
  constexpr int64_t lanes = kLanes<Acc>;
  // Unrolled, or the block does not stay in registers.
  vector_t<Acc> block[Rows][kPanelVectors];
#pragma GCC unroll 16
  for (int64_t r = 0; r < Rows; ++r) {
    for (int64_t v = 0; v < kPanelVectors; ++v) {
      block[r][v] = is_first ? vector_t<Acc>{} : load_vector(sums + (r * kPanelVectors + v) * lanes);
    }
  }
  for (int64_t d = 0; d < depth; ++d) {
    vector_t<Word> words[kPanelVectors];
    for (int64_t v = 0; v < kPanelVectors; ++v) words[v] = load_vector(panel + (d * kPanelVectors + v) * lanes);
#pragma GCC unroll 16
    for (int64_t r = 0; r < Rows; ++r) {
      const vector_t<Word> factor = splat(factors[r * kDepth + d]);
      for (int64_t v = 0; v < kPanelVectors; ++v) block[r][v] = multiply_add(factor, words[v], block[r][v]);
    }
  }
#pragma GCC unroll 16
  for (int64_t r = 0; r < Rows; ++r) {
    for (int64_t v = 0; v < kPanelVectors; ++v) store_vector(sums + (r * kPanelVectors + v) * lanes, block[r][v]);
  }
}

// target[0:rows, 0:columns] = the sums of a block of kBlockRows rows, panel after panel, rounded; rows `stride` apart.
template <class Acc, class T>
void store_block(const Acc* sums, int64_t rows, int64_t columns, T* target, int64_t stride) {
  constexpr int64_t lanes = kLanes<Acc>;
  for (int64_t c = 0; c < columns; c += lanes) {
    const Acc* source = sums + c / kPanel<Acc> * kBlockRows * kPanel<Acc> + c % kPanel<Acc>;
    for (int64_t r = 0; r < rows; ++r, source += kPanel<Acc>) {
      store_some(target + r * stride + c, load_vector(source), columns - c);
    }
  }
}

}  // namespace
}  // namespace dmt::cpu
