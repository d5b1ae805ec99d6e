#include "../kernels/cpu/check_ids.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "bag_arguments.h"

namespace dmt {
namespace {

Tensor check_ids(const Tensor& ids, const Tensor& offsets, const std::vector<int64_t>& rows, int64_t num_blocks) {
  const char* op = "check_ids";
  check(num_blocks > 0, op, "num_blocks must be positive, got ", num_blocks);
  for (size_t f = 0; f < rows.size(); ++f) check(rows[f] >= 0, op, "rows[", f, "] is ", rows[f]);
  std::vector<int64_t> blocks(num_blocks);
  for (int64_t k = 0; k < num_blocks; ++k) blocks[k] = k;
  // Only the integers are looked at: every feature is a table of its own, without columns.
  const BagArguments bags(op, rows, std::vector<int64_t>(rows.size(), 0), ScalarType::Float, ids, offsets, std::nullopt,
                          std::nullopt, std::nullopt, std::nullopt, blocks);
  const cpu::MissingIds missing = cpu::check_ids_kernels().find_missing(bags.layout(), torch_threads());
  const Tensor result = torch::stable::empty({5}, ScalarType::Long);
  int64_t* values = static_cast<int64_t*>(result.mutable_data_ptr());
  values[0] = missing.count;
  values[1] = missing.block;
  values[2] = missing.feature;
  values[3] = missing.sample;
  values[4] = missing.position;
  return result;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(dmt, CPU, ops) { ops.impl("check_ids", TORCH_BOX(&check_ids)); }

}  // namespace dmt
