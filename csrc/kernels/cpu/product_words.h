// Words: what one lane multiplies, made of numbers that lie side by side or one below the other.
#pragma once

#include "multiply_block.h"

namespace dmt::cpu {
namespace {

// A number as it is.
template <class Acc>
struct Plain {
  using Word = Acc;
  static constexpr int64_t kTerms = 1;  // numbers in a word: products that it adds to a sum

  // words = the numbers side by side.
  template <class T>
  static void make(const T* values, int64_t count, Word* words) {
    for (int64_t i = 0; i < count; ++i) words[i] = load(values[i]);
  }

  // The numbers side by side, as many as make a vector of words.
  static vector_t<Word> vector(const Acc* values) { return load_vector(values); }

  // A vector of words, each of kTerms numbers `stride` apart.
  static vector_t<Word> vector_across(const Acc* rows, int64_t /*stride*/) { return load_vector(rows); }
};

#if defined(__AVX512BF16__)
// Two numbers, rounded to bfloat16; a last odd one is paired with zero.
struct Rounded {
  using Word = uint32_t;
  static constexpr int64_t kTerms = 2;

  template <class T>
  static void make(const T* values, int64_t count, Word* words) {
    constexpr int64_t lanes = kLanes<float>;
    int64_t i = 0;
    for (; i + 2 * lanes <= count; i += 2 * lanes) {
      store_vector(words + i / 2, vector(values + i));
    }
    if (i == count) return;
    float rest[2 * lanes] = {};
    for (int64_t j = i; j < count; ++j) rest[j - i] = load(values[j]);
    const WordBits pairs = vector(rest);
    for (int64_t j = i; j < count; j += 2) words[j / 2] = pairs[(j - i) / 2];
  }

  template <class T>
  static WordBits vector(const T* values) {
    return bfloat16_pairs(load_vector(values), load_vector(values + kLanes<float>));
  }

  static WordBits vector_across(const float* rows, int64_t stride) {
    typedef uint16_t Shorts __attribute__((vector_size(kRegisterBytes)));
    const Shorts rounded = (Shorts)bfloat16_pairs(load_vector(rows), load_vector(rows + stride));
    const Shorts zip = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                        8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    return (WordBits)__builtin_shuffle(rounded, zip);
  }
};
#else
// A number rounded to bfloat16; the product of two of them is exact in float.
struct Rounded {
  using Word = float;
  static constexpr int64_t kTerms = 1;

  template <class T>
  static void make(const T* values, int64_t count, Word* words) {
    for (int64_t i = 0; i < count; ++i) {
      BFloat16 rounded;
      store(&rounded, load(values[i]));
      words[i] = load(rounded);
    }
  }

  static vector_t<float> vector(const float* values) {
    BFloat16 rounded[kLanes<float>];
    store_floats(rounded, load_vector(values));
    return load_floats(rounded);
  }

  static vector_t<float> vector_across(const float* rows, int64_t /*stride*/) { return vector(rows); }
};
#endif

}  // namespace
}  // namespace dmt::cpu
