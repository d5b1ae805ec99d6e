// Memory that ends where it says, and numbers in it whose type is chosen at run time.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>
#include <utility>
#include <vector>

#include "kernels/cpu/bag_layout.h"
#include "testing.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

namespace dmt::testing {

using cpu::DType;

// An allocation of its own for exactly these elements, so that AddressSanitizer sees an access one element beside them.
// As torch's memory it is null without elements, and may be a view: aligned to 8 bytes and no more, unless asked for.
// All ones at first: NaN in every type of numbers.
template <class T>
class Buffer {
 public:
  explicit Buffer(int64_t size = 0, bool is_aligned = false) : size_(size) {
    if (size == 0) return;
    const size_t lead = is_aligned ? 0 : 8;
    memory_.reset(static_cast<unsigned char*>(::operator new(lead + bytes(), kAlignment)));
    data_ = reinterpret_cast<T*>(memory_.get() + lead);
    std::memset(static_cast<void*>(data_), 0xFF, bytes());
#if defined(__SANITIZE_ADDRESS__)
    ASAN_POISON_MEMORY_REGION(memory_.get(), lead);
#endif
  }
  explicit Buffer(const std::vector<T>& values) : Buffer(static_cast<int64_t>(values.size())) {
    for (int64_t i = 0; i < size_; ++i) data_[i] = values[i];
  }

  T* data() const { return data_; }
  int64_t size() const { return size_; }
  size_t bytes() const { return static_cast<size_t>(size_) * sizeof(T); }
  T& operator[](int64_t i) const { return data_[i]; }

  bool operator==(const Buffer& other) const {
    return size_ == other.size_ && (size_ == 0 || std::memcmp(data_, other.data_, bytes()) == 0);
  }

 private:
  static constexpr std::align_val_t kAlignment{64};
  struct Delete {
    void operator()(unsigned char* memory) const { ::operator delete(memory, kAlignment); }
  };
  int64_t size_;
  std::unique_ptr<unsigned char, Delete> memory_;
  T* data_ = nullptr;
};

inline int64_t element_size(DType dtype) { return dtype == DType::f64 ? 8 : dtype == DType::f32 ? 4 : 2; }

// The type in which sums over `dtype` are kept.
inline DType sums_of(DType dtype) { return dtype == DType::f64 ? DType::f64 : DType::f32; }

// A number of kFraction bits behind the point and kExponent bits of exponent. The type has infinities.
template <int kFraction, int kExponent>
double float_of(uint32_t bits) {
  constexpr int kBias = (1 << (kExponent - 1)) - 1;
  const int exponent = static_cast<int>(bits >> kFraction) & ((1 << kExponent) - 1);
  const int fraction = static_cast<int>(bits) & ((1 << kFraction) - 1);
  const double magnitude = exponent == 2 * kBias + 1 ? (fraction == 0 ? HUGE_VAL : std::nan(""))
                           : exponent == 0 ? std::ldexp(fraction, 1 - kBias - kFraction)
                                           : std::ldexp((1 << kFraction) + fraction, exponent - kBias - kFraction);
  return bits >> (kFraction + kExponent) & 1 ? -magnitude : magnitude;
}

// Numbers whose type is chosen at run time.
class Values {
 public:
  explicit Values(DType dtype = DType::f32, int64_t size = 0, bool is_aligned = false)
      : dtype_(dtype), size_(size), bytes_(size * element_size(dtype), is_aligned) {}

  DType dtype() const { return dtype_; }
  int64_t size() const { return size_; }
  void* data() const { return bytes_.data(); }
  void* at(int64_t i) const { return size_ > 0 ? bytes_.data() + i * element_size(dtype_) : nullptr; }

  bool operator==(const Values& other) const { return bytes_ == other.bytes_; }  // bit for bit

  double operator[](int64_t i) const {
    if (dtype_ == DType::f64) return get<double>(i);
    if (dtype_ == DType::f32) return get<float>(i);
    return dtype_ == DType::f16 ? float_of<10, 5>(get<uint16_t>(i)) : float_of<7, 8>(get<uint16_t>(i));
  }

  Values copy() const {
    Values other(dtype_, size_);
    if (size_ > 0) std::memcpy(other.data(), data(), bytes_.bytes());
    return other;
  }

  Values& fill_zero() {
    if (size_ > 0) std::memset(data(), 0, bytes_.bytes());
    return *this;
  }

  // Element i becomes a number in (-1, 1). One in eight of the short types, which are made of bits, is tiny or zero.
  void randomize(int64_t i, Random& random) {
    if (dtype_ == DType::f64) return put(i, random.uniform());
    if (dtype_ == DType::f32) return put(i, static_cast<float>(random.uniform()));
    const int64_t fraction_bits = dtype_ == DType::f16 ? 10 : 7;
    const int64_t exponent_of_one = dtype_ == DType::f16 ? 15 : 127;
    const int64_t exponent = random.one_in(8) ? 0 : random.between(exponent_of_one - 5, exponent_of_one - 1);
    const int64_t fraction = random.below(int64_t{1} << fraction_bits);
    put(i, static_cast<uint16_t>(random.below(2) << 15 | exponent << fraction_bits | fraction));
  }

  Values& randomize(Random& random) {
    for (int64_t i = 0; i < size_; ++i) randomize(i, random);
    return *this;
  }

  // Of f64 and f32.
  void set(int64_t i, double value) { dtype_ == DType::f64 ? put(i, value) : put(i, static_cast<float>(value)); }

 private:
  template <class T>
  T get(int64_t i) const {
    T value;
    std::memcpy(&value, at(i), sizeof(value));
    return value;
  }
  template <class T>
  void put(int64_t i, T value) {
    std::memcpy(at(i), &value, sizeof(value));
  }

  DType dtype_;
  int64_t size_;
  Buffer<unsigned char> bytes_;
};

// What a unit in the last place of 1 is, halved.
inline double rounding(DType dtype) {
  switch (dtype) {
    case DType::f64:
      return 0x1.0p-53;
    case DType::f32:
      return 0x1.0p-24;
    case DType::f16:
      return 0x1.0p-11;
    default:
      return 0x1.0p-8;
  }
}

// Whether `actual` is `expected` up to `error` and to its rounding to `dtype`. NaN never is.
inline bool is_near(double actual, double expected, DType dtype, double error) {
  // tower_pool may take what is below 2^-126 for zero.
  const double tiny = dtype == DType::f16 ? 0x1.0p-24 : 0x1.0p-110;
  return std::abs(actual - expected) <= error + rounding(dtype) * (std::abs(expected) + error) + tiny;
}

// How far a sum of some thousand terms, kept in `sums`, may be off when their absolute values add up to `magnitude`.
inline double sum_error(DType sums, double magnitude) { return 4096 * rounding(sums) * magnitude; }

// Sums, and the absolute values that their terms add up to.
struct Sums {
  std::vector<double> value;
  std::vector<double> magnitude;

  explicit Sums(int64_t size) : value(size), magnitude(size) {}

  void add(int64_t i, double term) {
    value[i] += term;
    magnitude[i] += std::abs(term);
  }

  // Whether `actual` are these sums, kept in `sums`.
  bool are_near(const Values& actual, DType sums) const {
    if (actual.size() != static_cast<int64_t>(value.size())) return false;
    for (int64_t i = 0; i < actual.size(); ++i) {
      if (!is_near(actual[i], value[i], actual.dtype(), sum_error(sums, magnitude[i]))) return false;
    }
    return true;
  }
};

}  // namespace dmt::testing
