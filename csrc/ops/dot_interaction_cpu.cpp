#include "../kernels/cpu/dot_interaction.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "bag_arguments.h"
#include "output_pages.h"

namespace dmt {
namespace {

// The features of blocks [N, F_i * D], as the kernels see them.
class BlockFeatures {
 public:
  BlockFeatures(const char* op, const std::vector<Tensor>& blocks, int64_t dim, bool with_first) {
    check(!blocks.empty(), op, "blocks must not be empty");
    check(dim > 0, op, "dim must be positive, got ", dim);
    const ScalarType dtype = blocks[0].scalar_type();
    for (size_t i = 0; i < blocks.size(); ++i) {
      const Element block{"blocks", i};
      check_cpu(op, block, blocks[i]);
      check_dim(op, block, blocks[i], 2);
      check_floating(op, block, blocks[i].scalar_type());
      check(blocks[i].scalar_type() == dtype, op, block, " must be ", dtype_name(dtype), " like blocks[0], got ",
            dtype_name(blocks[i].scalar_type()));
      check(blocks[i].size(0) == blocks[0].size(0), op, block, " must have ", blocks[0].size(0),
            " rows like blocks[0], got ", blocks[i].size(0));
      check(blocks[i].size(1) % dim == 0, op, block, " must be whole features of ", dim, " columns, got shape ",
            shape_name(blocks[i]));
      const bool is_adjacent = blocks[i].size(1) <= 1 || blocks[i].stride(1) == 1;
      blocks_.push_back(is_adjacent ? blocks[i] : torch::stable::contiguous(blocks[i]));
      char* const first = static_cast<char*>(const_cast<void*>(blocks_[i].const_data_ptr()));
      for (int64_t f = 0; f < blocks_[i].size(1) / dim; ++f) {
        data_.push_back(first + f * dim * static_cast<int64_t>(blocks_[i].element_size()));
        strides_.push_back(blocks_[i].stride(0));
      }
    }
    features_ = {
        .data = data_.data(),
        .strides = strides_.data(),
        .features = static_cast<int64_t>(data_.size()),
        .samples = blocks[0].size(0),
        .dim = dim,
        .dtype = kernel_dtype(dtype),
        .kept = with_first ? blocks[0].size(1) / dim : 0,
    };
  }

  BlockFeatures(const BlockFeatures&) = delete;

  const cpu::InteractingFeatures& features() const { return features_; }
  ScalarType dtype() const { return blocks_[0].scalar_type(); }

  Tensor scratch(const cpu::ParallelFor& threads) const {
    return torch::stable::empty({cpu::dot_interaction_kernels().scratch_size(features_, threads)},
                                accumulator(dtype()));
  }

 private:
  std::vector<Tensor> blocks_;
  std::vector<void*> data_;
  std::vector<int64_t> strides_;
  cpu::InteractingFeatures features_;
};

Tensor dot_interaction(const std::vector<Tensor>& blocks, int64_t dim, bool with_first) {
  const BlockFeatures x("dot_interaction", blocks, dim, with_first);
  const cpu::ParallelFor threads = torch_threads();
  const Tensor out = torch::stable::empty({x.features().samples, x.features().width()}, x.dtype());
  ask_for_huge_pages(out);
  cpu::dot_interaction_kernels().products(x.features(), out.mutable_data_ptr(), x.scratch(threads).mutable_data_ptr(),
                                          threads);
  return out;
}

std::vector<Tensor> dot_interaction_backward(const Tensor& grad, const std::vector<Tensor>& blocks, int64_t dim,
                                             bool with_first) {
  const char* op = "dot_interaction_backward";
  const BlockFeatures x(op, blocks, dim, with_first);
  check_cpu(op, "grad", grad);
  check_floating(op, "grad", grad.scalar_type());
  check(grad.dim() == 2 && grad.size(0) == x.features().samples && grad.size(1) == x.features().width(), op,
        "grad must be [", x.features().samples, ", ", x.features().width(), "], as the output is, got ",
        shape_name(grad));
  const Tensor dense_grad = contiguous_as(grad, x.dtype());
  std::vector<Tensor> grads;
  for (const Tensor& block : blocks) grads.push_back(torch::stable::empty({block.size(0), block.size(1)}, x.dtype()));
  const BlockFeatures x_grad(op, grads, dim, with_first);
  const cpu::ParallelFor threads = torch_threads();
  cpu::dot_interaction_kernels().gradients(x.features(), dense_grad.const_data_ptr(), x_grad.features(),
                                           x.scratch(threads).mutable_data_ptr(), threads);
  return grads;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(dmt, CPU, ops) {
  ops.impl("dot_interaction", TORCH_BOX(&dot_interaction));
  ops.impl("dot_interaction_backward", TORCH_BOX(&dot_interaction_backward));
}

}  // namespace dmt
