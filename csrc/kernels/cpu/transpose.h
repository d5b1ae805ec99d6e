// A square of numbers turned over its diagonal, in registers.
#pragma once

#include <cstdint>

#include "vectors.h"

namespace dmt::cpu {
namespace {

// From the lanes of two vectors, alternating, those from `first` on of each.
template <class Word>
vector_t<Word> interleave(vector_t<Word> a, vector_t<Word> b, int64_t first) {
  constexpr int64_t lanes = kLanes<Word>;
  typedef decltype(a < b) Lanes;  // integers as wide as a word
  Lanes from = {};
  for (int64_t i = 0; i < lanes; ++i) from[i] = first + i / 2 + i % 2 * lanes;
  return __builtin_shuffle(a, b, from);
}

// Lane j of vector i becomes lane i of vector j.
template <class Word>
void transpose(vector_t<Word>* square) {
  constexpr int64_t lanes = kLanes<Word>;
  // Each round interleaves the first half of the vectors with the second: a bit of i changes places with one of j.
#pragma GCC unroll 4
  for (int64_t round = 1; round < lanes; round *= 2) {
    vector_t<Word> turned[lanes];
#pragma GCC unroll 8
    for (int64_t i = 0; i < lanes / 2; ++i) {
      turned[2 * i] = interleave<Word>(square[i], square[i + lanes / 2], 0);
      turned[2 * i + 1] = interleave<Word>(square[i], square[i + lanes / 2], lanes / 2);
    }
#pragma GCC unroll 16
    for (int64_t i = 0; i < lanes; ++i) square[i] = turned[i];
  }
}

}  // namespace
}  // namespace dmt::cpu
