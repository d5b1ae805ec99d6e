#include "../kernels/cuda/check_ids.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "device_arguments.h"

namespace dmt {
namespace {

Tensor check_ids(const Tensor& ids, const Tensor& offsets, const std::vector<int64_t>& rows, int64_t num_blocks) {
  const char* op = "check_ids";
  check(num_blocks > 0, op, "num_blocks must be positive, got ", num_blocks);
  for (size_t f = 0; f < rows.size(); ++f) check(rows[f] >= 0, op, "rows[", f, "] is ", rows[f]);
  const OnDevice device(ids);
  std::vector<int64_t> blocks(num_blocks);
  for (int64_t k = 0; k < num_blocks; ++k) blocks[k] = k;
  // Only the integers are looked at: every feature is a table of its own, without columns.
  const BagArguments bags(op, rows, std::vector<int64_t>(rows.size(), 0), ScalarType::Float, ids, offsets, std::nullopt,
                          std::nullopt, std::nullopt, std::nullopt, blocks);
  DeviceBags on_device(bags);
  on_device.upload(ids, device.stream());
  const Tensor result = torch::stable::new_empty(ids, {5}, ScalarType::Long);
  cuda::check_ids(on_device.layout(), static_cast<cuda::MissingIds*>(result.mutable_data_ptr()), device.stream());
  return result;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(DMT_LIBRARY, DMT_DISPATCH_KEY, ops) { ops.impl("check_ids", TORCH_BOX(&check_ids)); }

}  // namespace dmt
