#include <torch/csrc/stable/ops.h>

#include "../kernels/cpu/check_ids.h"
#include "bag_arguments.h"

namespace dmt {

const char* const kHere = "CPU";

bool is_here(const Tensor& tensor) { return tensor.is_cpu(); }

void check_offsets(const char* op, const int64_t* offsets, int64_t bags, int64_t ids) {
  if (cpu::check_ids_kernels().offsets_are_valid(offsets, bags, ids, torch_threads())) return;
  check(offsets[0] >= 0, op, "offsets[0] is ", offsets[0], ", must not be negative");
  for (int64_t i = 0; i < bags; ++i) {
    check(offsets[i] <= offsets[i + 1], op, "offsets must not decrease, but offsets[", i, "] = ", offsets[i],
          " and offsets[", i + 1, "] = ", offsets[i + 1]);
  }
  fail(op, "the last offset is ", offsets[bags], ", but there are only ", ids, " ids");
}

cpu::ParallelFor torch_threads() {
  return {[](int64_t begin, int64_t end, int64_t grain, cpu::ParallelFor::Body body, void* context) {
            torch::stable::parallel_for(begin, end, grain, [body, context](int64_t piece_begin, int64_t piece_end) {
              body(piece_begin, piece_end, context);
            });
          },
          static_cast<int64_t>(torch::stable::get_num_threads())};
}

void check_ids_in_bounds(const char* op, const cpu::BagLayout& bags) {
  const cpu::MissingIds missing = cpu::check_ids_kernels().find_missing(bags, torch_threads());
  if (missing.count == 0) return;
  const int64_t bag = (missing.block * bags.num_features + missing.feature) * bags.num_samples + missing.sample;
  const int64_t at = bags.offsets[bag] + missing.position;
  const int64_t id =
      bags.wide_ids ? static_cast<const int64_t*>(bags.ids)[at] : static_cast<const int32_t*>(bags.ids)[at];
  const int64_t table = bags.feature_table[missing.feature];
  std::ostringstream where;
  where << "id " << id << " of table " << table << ", feature " << missing.feature << ", sample " << missing.sample
        << ", position " << missing.position;
  if (bags.num_blocks > 1) where << ", block " << missing.block;
  if (bags.row_starts != nullptr) fail(op, where.str(), " is negative");
  fail(op, where.str(), " is outside [0, ", bags.table_rows[table], ")");
}

}  // namespace dmt
