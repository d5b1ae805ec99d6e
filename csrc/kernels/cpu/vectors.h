// A thin vector type: as many sums side by side as one register of the instruction set holds, and their way from
// the storage types. Every lane has the bits of the scalar conversions in float_formats.h (NaNs stay NaNs).
#pragma once

#include <cstdint>

#include "float_formats.h"

#if defined(__SSE4_1__)
#include <immintrin.h>
#endif

namespace dmt::cpu {
namespace {

#if defined(__AVX512F__)
constexpr int64_t kRegisterBytes = 64;
#elif defined(__AVX2__)
constexpr int64_t kRegisterBytes = 32;
#else
constexpr int64_t kRegisterBytes = 16;
#endif

template <class Acc>
struct VectorOf {
  typedef Acc type __attribute__((vector_size(kRegisterBytes)));
};
template <class Acc>
using vector_t = typename VectorOf<Acc>::type;

template <class Acc>
constexpr int64_t kLanes = kRegisterBytes / static_cast<int64_t>(sizeof(Acc));

typedef uint8_t ByteBits __attribute__((vector_size(kRegisterBytes / 4)));
typedef uint16_t ShortBits __attribute__((vector_size(kRegisterBytes / 2)));
typedef uint32_t WordBits __attribute__((vector_size(kRegisterBytes)));
typedef double WideDoubles __attribute__((vector_size(2 * kRegisterBytes)));  // as many as there are floats in a vector

template <class Acc>
vector_t<Acc> load_vector(const Acc* source) {
  vector_t<Acc> values;
  __builtin_memcpy(&values, source, sizeof(values));
  return values;
}

// A vector of words from shorts. GCC converts them by halves, with shuffles.
inline WordBits load_shorts(const void* source) {
  ShortBits bits;
  __builtin_memcpy(&bits, source, sizeof(bits));
#if defined(__AVX512F__)
  return __builtin_bit_cast(WordBits, _mm512_maskz_cvtepu16_epi32(-1, __builtin_bit_cast(__m256i, bits)));
#elif defined(__AVX2__)
  return __builtin_bit_cast(WordBits, _mm256_cvtepu16_epi32(__builtin_bit_cast(__m128i, bits)));
#elif defined(__SSE4_1__)
  return __builtin_bit_cast(WordBits, _mm_cvtepu16_epi32(_mm_cvtsi64_si128(__builtin_bit_cast(int64_t, bits))));
#else
  return __builtin_convertvector(bits, WordBits);
#endif
}

inline vector_t<float> load_vector(const BFloat16* source) {
  return __builtin_bit_cast(vector_t<float>, load_shorts(source) << 16);
}

inline vector_t<float> load_vector(const Half* source) {
#if defined(__AVX512F__)
  __m256i bits;
  __builtin_memcpy(&bits, source, sizeof(bits));
  return _mm512_maskz_cvtph_ps(-1, bits);  // of the unmasked one gcc says "maybe uninitialized"
#elif defined(__F16C__)
  __m128i bits;
  __builtin_memcpy(&bits, source, sizeof(bits));
  return _mm256_cvtph_ps(bits);
#else
  const WordBits shifted = load_shorts(source)
                           << 16;  // as in float_formats.h; lane by lane GCC would go through memory
  const WordBits magnitude = shifted + shifted;
  const vector_t<float> normal = __builtin_bit_cast(vector_t<float>, (magnitude >> 4) + 0x70000000u) * 0x1.0p-112f;
  const vector_t<float> subnormal = __builtin_bit_cast(vector_t<float>, (magnitude >> 17) | 0x3F000000u) - 0.5f;
  const WordBits finite = __builtin_bit_cast(WordBits, magnitude < 0x08000000u ? subnormal : normal);
  return __builtin_bit_cast(vector_t<float>, finite | (shifted & 0x80000000u));
#endif
}

// Doubles from either. A vector of more than a register's bytes GCC would keep in memory, hence no convertvector.
inline vector_t<double> load_doubles(const double* source) { return load_vector(source); }

inline vector_t<double> load_doubles(const float* source) {
#if defined(__AVX512F__)
  return _mm512_maskz_cvtps_pd(-1, _mm256_loadu_ps(source));
#elif defined(__AVX2__)
  return _mm256_cvtps_pd(_mm_loadu_ps(source));
#else
  vector_t<double> values;
  for (int64_t l = 0; l < kLanes<double>; ++l) values[l] = source[l];
  return values;
#endif
}

template <class Acc>
void store_vector(Acc* target, vector_t<Acc> values) {
  __builtin_memcpy(target, &values, sizeof(values));
}

// A vector of bytes from and to words below 256. GCC converts them one by one.
inline WordBits load_bytes(const uint8_t* source) {
  ByteBits bytes;
  __builtin_memcpy(&bytes, source, sizeof(bytes));
#if defined(__AVX512F__)
  return __builtin_bit_cast(WordBits, _mm512_maskz_cvtepu8_epi32(-1, __builtin_bit_cast(__m128i, bytes)));
#elif defined(__AVX2__)
  return __builtin_bit_cast(WordBits, _mm256_cvtepu8_epi32(_mm_set1_epi64x(__builtin_bit_cast(int64_t, bytes))));
#elif defined(__SSE4_1__)
  return __builtin_bit_cast(WordBits, _mm_cvtepu8_epi32(_mm_cvtsi32_si128(__builtin_bit_cast(int32_t, bytes))));
#else
  return __builtin_convertvector(bytes, WordBits);
#endif
}

inline void store_bytes(uint8_t* target, WordBits words) {
#if defined(__AVX512F__)
  const __m128i bytes = _mm512_maskz_cvtepi32_epi8(-1, __builtin_bit_cast(__m512i, words));
#elif defined(__AVX2__)
  const __m256i shorts = _mm256_packus_epi32(__builtin_bit_cast(__m256i, words), __m256i{});
  const __m256i quarters = _mm256_packus_epi16(shorts, __m256i{});  // one in each half
  const int64_t bytes =
      _mm_cvtsi128_si64(_mm_unpacklo_epi32(_mm256_castsi256_si128(quarters), _mm256_extracti128_si256(quarters, 1)));
#elif defined(__SSE4_1__)
  const __m128i shorts = _mm_packus_epi32(__builtin_bit_cast(__m128i, words), __m128i{});
  const int32_t bytes = _mm_cvtsi128_si32(_mm_packus_epi16(shorts, __m128i{}));
#else
  const ByteBits bytes = __builtin_convertvector(words, ByteBits);
#endif
  __builtin_memcpy(target, &bytes, sizeof(ByteBits));
}

// Words below 65536.
inline void store_shorts(void* target, WordBits words) {
  const ShortBits shorts = __builtin_convertvector(words, ShortBits);
  __builtin_memcpy(target, &shorts, sizeof(shorts));
}

// To nearest, ties to even.
inline void store_vector(BFloat16* target, vector_t<float> values) {
  const WordBits bits = __builtin_bit_cast(WordBits, values);
  const WordBits rounded = (bits + ((bits >> 16) & 1u) + 0x7FFFu) >> 16;
  store_shorts(target, (bits & 0x7FFFFFFFu) > 0x7F800000u ? WordBits{} + 0x7FC0u : rounded);
}

inline void store_vector(Half* target, vector_t<float> values) {
#if defined(__AVX512F__)
  const __m256i bits = _mm512_maskz_cvtps_ph(-1, values, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  __builtin_memcpy(target, &bits, sizeof(bits));
#elif defined(__F16C__)
  const __m128i bits = _mm256_cvtps_ph(values, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  __builtin_memcpy(target, &bits, sizeof(bits));
#else
  const WordBits bits = __builtin_bit_cast(WordBits, values);
  const WordBits doubled = bits + bits;
  const WordBits exponent = doubled & 0xFF000000u;
  const WordBits bias = exponent < 0x71000000u ? WordBits{} + 0x71000000u : exponent;
  vector_t<float> base = __builtin_bit_cast(vector_t<float>, bits & 0x7FFFFFFFu) * 0x1.0p+112f * 0x1.0p-110f;
  base = __builtin_bit_cast(vector_t<float>, (bias >> 1) + 0x07800000u) + base;
  const WordBits rounded = __builtin_bit_cast(WordBits, base);
  const WordBits magnitude = ((rounded >> 13) & 0x7C00u) + (rounded & 0x0FFFu);
  const WordBits unsigned_half = doubled > 0xFF000000u ? WordBits{} + 0x7E00u : magnitude;
  store_shorts(target, unsigned_half | ((bits & 0x80000000u) >> 16));
#endif
}

// The same past the caches: what is not read soon need not be fetched before it is overwritten. To aligned targets, and
// quick only if whole lines are written one after the other.
template <class Out, class Acc>
void stream_vector(Out* target, Acc values) {
  constexpr int64_t kBytes = kRegisterBytes / static_cast<int64_t>(sizeof(values[0]) / sizeof(Out));
  Out stored[kBytes / static_cast<int64_t>(sizeof(Out))];
  store_vector(stored, values);
#if defined(__SSE4_1__)
#if defined(__AVX512F__)
  if constexpr (kBytes == 64)
    return _mm512_stream_si512(reinterpret_cast<__m512i*>(target), _mm512_loadu_si512(stored));
#endif
#if defined(__AVX2__)
  if constexpr (kBytes == 32) {
    return _mm256_stream_si256(reinterpret_cast<__m256i*>(target),
                               _mm256_loadu_si256(reinterpret_cast<const __m256i*>(stored)));
  }
#endif
  if constexpr (kBytes == 16) {
    return _mm_stream_si128(reinterpret_cast<__m128i*>(target),
                            _mm_loadu_si128(reinterpret_cast<const __m128i*>(stored)));
  }
#endif
  __builtin_memcpy(target, stored, sizeof(stored));
}

// Before another thread may read what was streamed.
inline void finish_streams() {
#if defined(__SSE4_1__)
  _mm_sfence();
#endif
}

// A vector of floats from any storage type, and to it.
template <class T>
vector_t<float> load_floats(const T* source) {
  return load_vector(source);
}

inline vector_t<float> load_floats(const double* source) {
  WideDoubles values;
  __builtin_memcpy(&values, source, sizeof(values));
  return __builtin_convertvector(values, vector_t<float>);
}

template <class T>
void store_floats(T* target, vector_t<float> values) {
  store_vector(target, values);
}

inline void store_floats(double* target, vector_t<float> values) {
  const WideDoubles wide = __builtin_convertvector(values, WideDoubles);
  __builtin_memcpy(target, &wide, sizeof(wide));
}

}  // namespace
}  // namespace dmt::cpu
