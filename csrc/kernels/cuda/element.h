// Storage types of tables and rows, their conversion to float, and packs: the 16 bytes that a lane reads or writes at
// once.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "device.h"

namespace dmt::cuda {

enum class DType : int { f32, f16, bf16 };

struct Half {
  uint16_t bits;
};

struct BFloat16 {
  uint16_t bits;
};

// What tensor cores make of a float: the first 10 bits of its mantissa.
struct TensorFloat32 {
  uint32_t bits;
};

template <class To, class From>
DMT_DEVICE To bit_cast(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(&to, &from, sizeof(To));
  return to;
}

DMT_DEVICE float float_from_bits(uint32_t bits) { return bit_cast<float>(bits); }
DMT_DEVICE uint32_t bits_from_float(float value) { return bit_cast<uint32_t>(value); }

DMT_DEVICE float to_float(float value) { return value; }
DMT_DEVICE float to_float(BFloat16 value) { return float_from_bits(static_cast<uint32_t>(value.bits) << 16); }
DMT_DEVICE float to_float(Half value) {
#if defined(__CUDACC__)
  float result;
  asm("cvt.f32.f16 %0, %1;" : "=f"(result) : "h"(value.bits));
  return result;
#else
  return cpu::load(cpu::Half{value.bits});
#endif
}

// To nearest, ties to even.
DMT_DEVICE void from_float(float value, float& to) { to = value; }
DMT_DEVICE void from_float(float value, BFloat16& to) {
  const uint32_t bits = bits_from_float(value);
  const uint32_t rounded = (bits + ((bits >> 16) & 1u) + 0x7FFFu) >> 16;
  to.bits = static_cast<uint16_t>((bits & 0x7FFFFFFFu) > 0x7F800000u ? 0x7FC0u : rounded);
}
DMT_DEVICE void from_float(float value, Half& to) {
#if defined(__CUDACC__)
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(to.bits) : "f"(value));
#else
  cpu::Half half;
  cpu::store(&half, value);
  to.bits = half.bits;
#endif
}

// To nearest, ties away from zero, as PTX has it.
DMT_DEVICE void from_float(float value, TensorFloat32& to) {
#if defined(__CUDACC__)
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(to.bits) : "f"(value));
#else
  const uint32_t bits = bits_from_float(value);
  to.bits = (bits & 0x7FFFFFFFu) > 0x7F800000u ? bits | 0x400000u : (bits + 0x1000u) & ~0x1FFFu;
#endif
}

// Two of them, rounded, the first one in the low bits.
template <class T>
DMT_DEVICE uint32_t round_pair(float first, float second) {
  static_assert(sizeof(T) == 2);
#if defined(__CUDACC__)
  uint32_t pair;
  if constexpr (std::is_same_v<T, Half>) {
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));
  } else {
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));
  }
  return pair;
#else
  T low;
  T high;
  from_float(first, low);
  from_float(second, high);
  return low.bits | static_cast<uint32_t>(high.bits) << 16;
#endif
}

template <class T>
constexpr int kPackSize = 16 / static_cast<int>(sizeof(T));

// As words, so that elements which were loaded one by one take no more registers.
template <class T>
struct Pack {
  uint4 words;

  DMT_MEMBER float operator[](int i) const {
    const uint32_t word = word_of(words, i * static_cast<int>(sizeof(T)) / 4);
    if constexpr (sizeof(T) == 4) {
      return to_float(bit_cast<T>(word));
    } else {
      return to_float(T{static_cast<uint16_t>(word >> (i % 2 * 16))});
    }
  }

  DMT_MEMBER void set(int i, T value) {
    uint32_t& word = word_of(words, i * static_cast<int>(sizeof(T)) / 4);
    if constexpr (sizeof(T) == 4) {
      word = bit_cast<uint32_t>(value);
    } else {
      word |= static_cast<uint32_t>(value.bits) << (i % 2 * 16);  // once, of a pack of zeros
    }
  }

 private:
  template <class Words>
  static DMT_MEMBER auto& word_of(Words& words, int i) {
    return i == 0 ? words.x : i == 1 ? words.y : i == 2 ? words.z : words.w;
  }
};

template <class T>
DMT_BOTH bool is_aligned(const T* address, int64_t stride) {
  return reinterpret_cast<uintptr_t>(address) % 16 == 0 && stride * static_cast<int64_t>(sizeof(T)) % 16 == 0;
}

// The first `count` elements behind `source`, and zeros. `aligned`: source is a multiple of 16 bytes.
template <class T>
DMT_DEVICE Pack<T> load_pack(const T* source, int count, bool aligned) {
  if (aligned && count >= kPackSize<T>) {
    return {__ldg(reinterpret_cast<const uint4*>(source))};
  }
  Pack<T> pack = {};
#pragma unroll
  for (int i = 0; i < kPackSize<T>; ++i) {
    if (i < count) pack.set(i, source[i]);
  }
  return pack;
}

// In one piece, also where the compiler sees that another path writes the same, element by element, and merges the two.
DMT_DEVICE void store_words(void* target, const uint4& words) {
#if defined(__CUDACC__)
  asm volatile("st.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(target), "r"(words.x), "r"(words.y), "r"(words.z), "r"(words.w)
               : "memory");
#else
  *static_cast<uint4*>(target) = words;
#endif
}

DMT_DEVICE void store_words(void* target, const uint2& words) {
#if defined(__CUDACC__)
  asm volatile("st.v2.b32 [%0], {%1, %2};" ::"l"(target), "r"(words.x), "r"(words.y) : "memory");
#else
  *static_cast<uint2*>(target) = words;
#endif
}

// How store_values makes its element i of a float.
struct ToNearest {
  template <class T>
  DMT_MEMBER void operator()(int, float value, T& to) const {
    from_float(value, to);
  }
};

// target[0 : count] = the values, at most kCount of them. `aligned`: target is a multiple of 16 bytes, or of all
// values' size.
template <int kCount, class T, class Round = ToNearest>
DMT_DEVICE void store_values(T* target, const float (&values)[kCount], int count, bool aligned,
                             const Round& round = {}) {
  if constexpr (kCount * sizeof(T) == 8) {
    if (aligned && count >= kCount) {
      struct alignas(8) {
        T values[kCount];
      } half;
#pragma unroll
      for (int i = 0; i < kCount; ++i) round(i, values[i], half.values[i]);
      store_words(target, bit_cast<uint2>(half));
      return;
    }
  } else if constexpr (kCount >= kPackSize<T>) {
    if (aligned && count >= kCount) {
#pragma unroll
      for (int first = 0; first < kCount; first += kPackSize<T>) {
        Pack<T> pack = {};
#pragma unroll
        for (int i = 0; i < kPackSize<T>; ++i) {
          T value;
          round(first + i, values[first + i], value);
          pack.set(i, value);
        }
        store_words(target + first, pack.words);
      }
      return;
    }
  }
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    if (i < count) round(i, values[i], target[i]);
  }
}

// values[0 : count] = those behind `source`, which this kernel may write later; the others stay.
template <int kCount, class T>
DMT_DEVICE void load_values(const T* source, float (&values)[kCount], int count, bool aligned) {
  if (aligned && count >= kCount) {
#pragma unroll
    for (int first = 0; first < kCount; first += kPackSize<T>) {
      const Pack<T> pack = {*reinterpret_cast<const uint4*>(source + first)};
#pragma unroll
      for (int i = 0; i < kPackSize<T>; ++i) values[first + i] = pack[i];
    }
    return;
  }
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    if (i < count) values[i] = to_float(source[i]);
  }
}

// Calls function(T{}) with the C++ type of `dtype`.
template <class Function>
void with_type(DType dtype, const Function& function) {
  switch (dtype) {
    case DType::f32:
      return function(float{});
    case DType::f16:
      return function(Half{});
    case DType::bf16:
      return function(BFloat16{});
  }
}

}  // namespace dmt::cuda
