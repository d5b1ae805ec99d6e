#include "bags.h"
#include "kernels/cpu/wire_codec.h"

namespace dmt::testing {
namespace {

using cpu::ParallelFor;
using cpu::WireCodecKernels;

const std::vector<const WireCodecKernels*> kKernels = KERNELS_OF_ISAS(wire_codec_kernels);

float float_at(const uint8_t* bytes) {
  float value;
  std::memcpy(&value, bytes, sizeof(value));
  return value;
}

double payload_number(WireFormat format, const uint8_t* payload, int64_t column) {
  const uint8_t* const bytes = payload + column * wire_element_bytes(format);
  switch (format) {
    case WireFormat::fp32:
      return float_at(bytes);
    case WireFormat::bf16:
      return float_of<7, 8>(bytes[0] | bytes[1] << 8);
    case WireFormat::fp16:
      return float_of<10, 5>(bytes[0] | bytes[1] << 8);
    case WireFormat::fp8: {
      if ((bytes[0] & 0x7F) == 0x7F) return std::nan("");
      const bool is_large = (bytes[0] & 0x78) == 0x78;  // where other types have infinities
      return is_large ? 2 * float_of<3, 4>(bytes[0] - 8u) : float_of<3, 4>(bytes[0]);
    }
    default:
      return static_cast<int8_t>(bytes[0]);
  }
}

// What column `column` of a row of a message means.
double number_at(WireFormat format, const uint8_t* row, int64_t columns, int64_t column) {
  const double number = payload_number(format, row, column);
  return wire_has_scale(format) ? number * float_at(row + wire_payload_bytes(format, columns)) : number;
}

// How far apart neighbours of `value` are in a row of this scale.
double step_at(WireFormat format, double value, double scale) {
  const double magnitude = std::abs(value);
  switch (format) {
    case WireFormat::fp32:
      return 0;
    case WireFormat::bf16:
      return 0x1p-7 * magnitude + 0x1p-133;
    case WireFormat::fp16:
      return 0x1p-10 * magnitude + 0x1p-24 * scale;
    case WireFormat::fp8:
      return 0x1p-3 * magnitude + 0x1p-9 * scale;
    default:
      return scale;
  }
}

void check_message(const Matrix& rows, WireFormat format, bool is_random, const uint8_t* message) {
  const int64_t row_bytes = wire_row_bytes(format, rows.dim);
  for (int64_t r = 0; r < rows.rows; ++r) {
    const uint8_t* const row = message + r * row_bytes;
    const int64_t payload_bytes = wire_payload_bytes(format, rows.dim);
    bool is_finite = true;
    double maximum = 0;
    for (int64_t c = 0; c < rows.dim; ++c) {
      is_finite = is_finite && std::isfinite(rows(r, c));
      maximum = std::max(maximum, std::abs(rows(r, c)));
    }
    const double scale = wire_has_scale(format) ? float_at(row + payload_bytes) : 1;
    CHECK(std::isnan(scale) == (wire_has_scale(format) && !is_finite));
    CHECK(std::isnan(scale) || (scale > 0 && (maximum > 0 || scale == 1)));
    for (int64_t c = 0; c < rows.dim; ++c) {
      const double wanted = rows(r, c);
      const double actual = number_at(format, row, rows.dim, c);
      if (std::isnan(scale)) {
        CHECK(payload_number(format, row, c) == 0);
      } else if (std::isfinite(wanted)) {
        // In float, whatever the rows are: its roundings come on top.
        const double step = step_at(format, wanted, scale);
        CHECK(std::abs(actual - wanted) <= step * (is_random ? 1 : 0.5) + 0x1p-21 * std::abs(wanted) + 0x1p-148);
      } else {
        CHECK(std::isnan(wanted) ? std::isnan(actual) : actual == wanted);
      }
    }
    for (int64_t i = rows.dim * wire_element_bytes(format); i < payload_bytes; ++i) CHECK(row[i] == 0);
  }
}

Matrix random_rows(Random& random, DType dtype) {
  const int64_t columns = random.pick<int64_t>({0, 1, 3, 4, 7, 8, 15, 16, 17, random.between(1, 70), 130});
  const int64_t count = random.pick<int64_t>({0, 1, 2, 9, 16000 / (columns + 1)});
  Matrix rows = random_matrix(random, dtype, count, columns,
                              [&](Values& memory, int64_t index) { memory.randomize(index, random); });
  if (element_size(dtype) < 4) return rows;
  for (int64_t r = 0; r < count && columns > 0; ++r) {
    // Of zeros, close to the least and the largest floats, or with something that is no number.
    const double factor = random.pick<double>({1, 1, 0, 0x1p-140, 0x1p-60, 0x1p120});
    for (int64_t c = 0; c < columns; ++c) rows.memory.set(rows.index(r, c), rows(r, c) * factor);
    if (!random.one_in(8)) continue;
    rows.memory.set(rows.index(r, random.below(columns)), random.pick<double>({HUGE_VAL, -HUGE_VAL, std::nan("")}));
  }
  return rows;
}

void test_decode(const Matrix& rows, WireFormat format, const Buffer<uint8_t>& message, int64_t gap) {
  const int64_t row_bytes = wire_row_bytes(format, rows.dim);
  const int64_t stride = row_bytes + gap;
  const Buffer<uint8_t> apart(rows.rows > 0 && row_bytes > 0 ? (rows.rows - 1) * stride + row_bytes : 0);
  for (int64_t r = 0; r < rows.rows && row_bytes > 0; ++r) {
    std::memcpy(apart.data() + r * stride, message.data() + r * row_bytes, row_bytes);
  }
  for_isas_and_threads(kKernels, [&](const WireCodecKernels& kernels, const ParallelFor& threads) {
    const Matrix decoded = {rows.rows, rows.dim, rows.stride, rows.first,
                            Values(rows.memory.dtype(), rows.memory.size())};
    const cpu::WireRows target = {decoded.data(), decoded.memory.dtype(), decoded.rows, decoded.dim, decoded.stride};
    kernels.decode(apart.data(), stride, format, target, threads);
    std::vector<bool> is_written(decoded.memory.size());
    for (int64_t r = 0; r < rows.rows; ++r) {
      for (int64_t c = 0; c < rows.dim; ++c) {
        const double expected = number_at(format, apart.data() + r * stride, rows.dim, c);
        const double actual = decoded(r, c);
        if (std::isfinite(expected)) {
          CHECK(is_near(actual, expected, decoded.memory.dtype(), 0x1p-23 * std::abs(expected)));
        } else {
          CHECK(std::isnan(expected) ? std::isnan(actual) : actual == expected);
        }
        is_written[decoded.index(r, c)] = true;
      }
    }
    for (int64_t i = 0; i < decoded.memory.size(); ++i) CHECK(is_written[i] || std::isnan(decoded.memory[i]));
  });
}

}  // namespace

void test_wire_codec(int64_t number) {
  Random random(number);
  const Matrix rows = random_rows(random, static_cast<DType>(number % 4));
  const WireFormat format = static_cast<WireFormat>(number / 4 % kWireFormats);
  const cpu::WireRows source = {rows.data(), rows.memory.dtype(), rows.rows, rows.dim, rows.stride};
  const bool is_random = random.one_in(2);
  const cpu::StochasticRounding rounding = {random.below(1 << 20), random.below(100), random.below(1 << 20)};
  // Ranks with other instruction sets read the message: its bits are the same on all.
  Buffer<uint8_t> first;
  for_isas_and_threads(kKernels, [&](const WireCodecKernels& kernels, const ParallelFor& threads) {
    Buffer<uint8_t> message(rows.rows * wire_row_bytes(format, rows.dim));
    kernels.encode(source, format, is_random ? &rounding : nullptr, message.data(), threads);
    check_message(rows, format, is_random, message.data());
    if (first.size() == 0) {
      first = std::move(message);
    } else {
      CHECK(message == first);
    }
  });
  test_decode(rows, format, first, random.pick<int64_t>({0, 1, 4, 7}));
}

}  // namespace dmt::testing
