// A thin vector type: as many sums side by side as one register of the instruction set holds, and their way from
// the storage types. Every lane has the bits of the scalar conversions in float_formats.h (NaNs stay NaNs).
#pragma once

#include <cstdint>

#include "float_formats.h"

#if defined(__F16C__)
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

typedef uint16_t ShortBits __attribute__((vector_size(kRegisterBytes / 2)));
typedef uint32_t WordBits __attribute__((vector_size(kRegisterBytes)));

template <class Acc>
vector_t<Acc> load_vector(const Acc* source) {
  vector_t<Acc> values;
  __builtin_memcpy(&values, source, sizeof(values));
  return values;
}

inline vector_t<float> load_vector(const BFloat16* source) {
  ShortBits bits;
  __builtin_memcpy(&bits, source, sizeof(bits));
  return __builtin_bit_cast(vector_t<float>, __builtin_convertvector(bits, WordBits) << 16);
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
  vector_t<float> values;
  for (int64_t i = 0; i < kLanes<float>; ++i) values[i] = load(source[i]);
  return values;
#endif
}

template <class Acc>
void store_vector(Acc* target, vector_t<Acc> values) {
  __builtin_memcpy(target, &values, sizeof(values));
}

inline void store_vector(BFloat16* target, vector_t<float> values) {
  const WordBits bits = __builtin_bit_cast(WordBits, values);
  const WordBits rounded = (bits + ((bits >> 16) & 1u) + 0x7FFFu) >> 16;
  const WordBits is_nan = (bits & 0x7FFFFFFFu) > 0x7F800000u;
  const ShortBits narrow = __builtin_convertvector((is_nan & 0x7FC0u) | (~is_nan & rounded), ShortBits);
  __builtin_memcpy(target, &narrow, sizeof(narrow));
}

inline void store_vector(Half* target, vector_t<float> values) {
#if defined(__AVX512F__)
  const __m256i bits = _mm512_maskz_cvtps_ph(-1, values, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  __builtin_memcpy(target, &bits, sizeof(bits));
#elif defined(__F16C__)
  const __m128i bits = _mm256_cvtps_ph(values, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  __builtin_memcpy(target, &bits, sizeof(bits));
#else
  for (int64_t i = 0; i < kLanes<float>; ++i) store(target + i, values[i]);
#endif
}

}  // namespace
}  // namespace dmt::cpu
