// What a rank sends or receives in one stage.
#pragma once

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/empty.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "kernels/wire_format.h"

namespace dmt {

using Blocks = std::vector<at::Tensor>;

inline std::atomic<int64_t> copied_bytes{0};  // by packing and unpacking, not by the codec

// Blocks [N_i, D_i] as the bytes that travel, one behind the other. Blocks of bytes are what travels already.
class Message {
 public:
  Message(Blocks blocks, std::optional<int64_t> format) : blocks_(std::move(blocks)), format_(format) {
    TORCH_CHECK_VALUE(!blocks_.empty(), "a stage needs a block for every rank of its group");
    if (blocks_[0].scalar_type() == at::kByte) format_.reset();
    int64_t total = 0;
    for (const at::Tensor& block : blocks_) {
      TORCH_CHECK_VALUE(block.dim() == 2, "a block has 2 dimensions, got one of shape ", block.sizes());
      TORCH_CHECK_VALUE(block.scalar_type() == blocks_[0].scalar_type(), "blocks of a stage have one dtype, got ",
                        blocks_[0].scalar_type(), " and ", block.scalar_type());
      TORCH_CHECK_VALUE(!format_.has_value() || at::isFloatingType(block.scalar_type()),
                        "rows that are encoded are floating point, got ", block.scalar_type());
      TORCH_CHECK_VALUE(!format_.has_value() || block.numel() == 0 || block.size(1) == 1 || block.stride(1) == 1,
                        "columns of rows that are encoded are adjacent in memory");
      sizes_.push_back(block.size(0) * row_bytes(block));
      total += sizes_.back();
    }
    if (const at::Tensor* first = format_.has_value() ? nullptr : together()) {
      bytes_ = as_bytes(*first, total);
      pieces_ = bytes_.split_with_sizes(sizes_);
      is_staged_.assign(blocks_.size(), false);
      is_one_piece_ = true;
      return;
    }
    int64_t staged = 0;
    for (size_t i = 0; i < blocks_.size(); ++i) {
      is_staged_.push_back(format_.has_value() || !blocks_[i].is_contiguous());
      if (is_staged_[i]) staged += sizes_[i];
    }
    is_one_piece_ = staged == total;
    bytes_ = at::empty({staged}, blocks_[0].options().dtype(at::kByte));
    int64_t begin = 0;
    for (size_t i = 0; i < blocks_.size(); ++i) {
      pieces_.push_back(is_staged_[i] ? bytes_.narrow(0, begin, sizes_[i]) : as_bytes(blocks_[i], sizes_[i]));
      if (is_staged_[i]) begin += sizes_[i];
    }
  }

  at::ScalarType dtype() const { return blocks_[0].scalar_type(); }
  at::Device device() const { return bytes_.device(); }
  std::vector<int64_t>& sizes() { return sizes_; }

  // The bytes for, or from, each rank.
  std::vector<at::Tensor>& pieces() { return pieces_; }

  // Whether they lie one behind the other, as bytes().
  bool is_one_piece() const { return is_one_piece_; }
  at::Tensor& bytes() { return bytes_; }

  // An element is rounded by its row among those of all blocks.
  void pack(std::optional<int64_t> seed, int64_t step) {
    if (format_.has_value()) {
      static const auto encode = c10::Dispatcher::singleton()
                                     .findSchemaOrThrow("dmt::wire_encode_blocks_", "")
                                     .typed<void(const at::Tensor&, at::TensorList, int64_t, std::optional<int64_t>,
                                                 c10::SymInt, c10::SymInt)>();
      encode.call(bytes_, blocks_, *format_, seed, step, 0);
    } else {
      for_pieces([](const at::Tensor& piece, const at::Tensor& block) { piece.copy_(block); });
    }
  }

  void unpack() {
    if (format_.has_value()) {
      static const auto decode = c10::Dispatcher::singleton()
                                     .findSchemaOrThrow("dmt::wire_decode_blocks_", "")
                                     .typed<void(at::TensorList, const at::Tensor&, int64_t)>();
      decode.call(blocks_, bytes_, *format_);
    } else {
      for_pieces([](const at::Tensor& piece, const at::Tensor& block) { block.copy_(piece); });
    }
  }

  // The allocator must not hand staging out again before the stream that now waits for it is past it.
  void record_stream() {
    if (bytes_.is_cpu() || std::find(is_staged_.begin(), is_staged_.end(), true) == is_staged_.end()) return;
    bytes_.record_stream(c10::impl::VirtualGuardImpl(bytes_.device().type()).getStream(bytes_.device()));
  }

 private:
  int64_t row_bytes(const at::Tensor& block) const {
    const int64_t columns = block.size(1);
    return format_.has_value() ? wire_row_bytes(static_cast<WireFormat>(*format_), columns)
                               : columns * static_cast<int64_t>(block.element_size());
  }

  // The first block, if all of them are one piece of memory, in order.
  const at::Tensor* together() const {
    const at::Tensor* first = nullptr;
    const char* end = nullptr;
    for (const at::Tensor& block : blocks_) {
      if (block.numel() == 0) continue;
      const char* begin = static_cast<const char*>(block.const_data_ptr());
      if (!block.is_contiguous()) return nullptr;
      if (first == nullptr) {
        first = &block;
      } else if (begin != end || !block.is_alias_of(*first)) {
        return nullptr;
      }
      end = begin + block.nbytes();
    }
    return first == nullptr ? &blocks_[0] : first;
  }

  static at::Tensor as_bytes(const at::Tensor& block, int64_t size) {
    return block.as_strided({size / static_cast<int64_t>(block.element_size())}, {1}).view(at::kByte);
  }

  // Calls copy(where a block lies in staging, the block).
  template <class Copy>
  void for_pieces(const Copy& copy) {
    for (size_t i = 0; i < blocks_.size(); ++i) {
      if (!is_staged_[i] || blocks_[i].numel() == 0) continue;
      copy(pieces_[i].view(blocks_[i].scalar_type()).view(blocks_[i].sizes()), blocks_[i]);
      copied_bytes += sizes_[i];
    }
  }

  Blocks blocks_;
  std::optional<int64_t> format_;
  std::vector<int64_t> sizes_;
  at::Tensor bytes_;  // of all blocks, or of those that are staged
  bool is_one_piece_ = false;
  std::vector<at::Tensor> pieces_;
  std::vector<bool> is_staged_;
};

}  // namespace dmt
