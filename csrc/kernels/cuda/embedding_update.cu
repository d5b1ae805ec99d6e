#include "embedding_update.h"

#include <algorithm>
#include <bit>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>

#include "row_ranks.h"
#include "sort_features.h"
#include "update_row.h"

namespace dmt::cuda {
namespace {

static_assert(kStretch <= kRun);  // a long row reaches beyond the stretch that it begins in

// ---- 1. Keys ------------------------------------------------------------------------------------------------------

// 2^lane_bits threads share a bag; `blocks_each` blocks the bags of a feature in a block of samples.
__global__ void __launch_bounds__(kThreads)
    list_ids(const Bags bags, const KeyBits bits, bool is_by_feature, int lane_bits, unsigned blocks_each,
             uint64_t* keys, float* scales, int* accepted) {
  const unsigned group = blockIdx.x / blocks_each;
  const int64_t k = group / static_cast<unsigned>(bags.num_features);
  const int64_t f = group % static_cast<unsigned>(bags.num_features);
  const int64_t b = blockIdx.x % blocks_each * static_cast<int64_t>(kThreads >> lane_bits) + (threadIdx.x >> lane_bits);
  if (b >= bags.num_samples) return;
  const int lanes = 1 << lane_bits;
  const int lane = static_cast<int>(threadIdx.x) & (lanes - 1);
  const int64_t bag = group * bags.num_samples + b;
  const Feature& feature = bags.features[f];
  const int64_t begin = load_offset(bags, bag);
  const int64_t end = load_offset(bags, bag + 1);
  int count = 0;
  if (feature.is_mean) {
    const unsigned mask = (kAllLanes >> (32 - lanes)) << (threadIdx.x % 32 & ~(lanes - 1u));
    for (int64_t p = begin + lane; p < end; p += lanes) count += row_of(bags, feature, load_id(bags, p)) != kMissing;
    for (int distance = lanes / 2; distance > 0; distance /= 2) count += __shfl_xor_sync(mask, count, distance);
  }
  const uint64_t source = static_cast<uint64_t>(k * bags.num_samples + b) << bits.feature | static_cast<uint64_t>(f);
  for (int64_t p = begin + lane; p < end; p += lanes) {
    const int64_t id = load_id(bags, p);
    const int64_t row = row_of(bags, feature, id);
    const int64_t first = is_by_feature ? f << bits.local : feature.first_key;
    const int64_t number = row >= 0 ? first + row : first | local_bits(bits, -1);
    keys[p] = static_cast<uint64_t>(number) << (bits.sample + bits.feature) | source;
    if (row >= 0) {
      if (scales != nullptr) {
        const float weight = bags.weights != nullptr ? bags.weights[p] : 1.0f;
        scales[p] = feature.is_mean ? weight / static_cast<float>(count) : weight;
      }
    } else if (row == kMissing && bags.errors != nullptr) {
      report_missing(bags, feature, bag, id);
      *accepted = 0;
    }
  }
}

// ---- 3. and 4. Rows -----------------------------------------------------------------------------------------------

// Whether a row goes on across key (j+1)*kRun. Then one run of it begins among the kRun keys before, which sum_run sums
// unless it is the row's last.
DMT_DEVICE bool may_hold_run(const Sorted& sorted, int64_t j) {
  const int64_t beyond = (j + 1) * kRun;
  if (beyond >= sorted.count) return false;
  const int64_t row = row_at(sorted, beyond);
  return is_row(sorted.bits, row) && row_at(sorted, beyond - 1) == row;
}

// partials[j] = the sum of that run.
template <class Group>
DMT_DEVICE void sum_run(const Group& group, int64_t j) {
  constexpr int kLanes = Group::kLanes;
  constexpr int kSize = Group::kSize;
  const Work& work = group.work;
  const Sorted& sorted = work.sorted;
  const int64_t beyond = (j + 1) * kRun;
  const int64_t row = row_at(sorted, beyond);
  int64_t low = 0;
  if (work.is_by_feature) {  // what lies before the feature's keys may be in no order
    const uint64_t f = sorted.keys[beyond] & ((uint64_t{1} << sorted.bits.feature) - 1);
    low = load_offset(work.bags, static_cast<int64_t>(f) * work.bags.num_samples);
  }
  const int64_t head = group.first_of_row(row, low < beyond ? low : beyond, beyond);
  const int64_t first = j * kRun;
  const int64_t begin = head >= first ? head : head + ceil_div(first - head, kRun) * kRun;
  const int64_t end = begin + kRun;
  // (Its first key is another row's only if offsets do not ascend.)
  if (end >= sorted.count || row_at(sorted, end) != row || row_at(sorted, begin) != row) return;
  const int dim = feature_of_key(work, sorted.keys[begin]).dim;
  group.template add_row<kLanes>(kLanes, kLanes, begin, end, row, dim, true);
  float* const partial = work.partials + j * work.sum_width;
  group.for_columns(dim, [&](int c) {
    float sum[kSize];
    load_values(group.sums + c, sum, kSize, Group::kIsPacked);
    store_values(partial + c, sum, kSize, Group::kIsPacked);
  });
}

// A group looks for runs in `each` places, every lane in one; those beside each other are different groups'.
template <class Grad, class Shape>
__global__ void __launch_bounds__(kRowThreads, 3) sum_runs(const Work work, int each) {
  constexpr int kLanes = Shape::kLanes;
  DMT_DYNAMIC_SHARED(shared);
  const Group<Grad, Shape> group(work, shared);
  if (!*work.accepted) return;
  const int64_t groups = gridDim.x * static_cast<int64_t>(blockDim.x / kLanes);
  const int64_t first = static_cast<int64_t>(threadIdx.x / kLanes) * gridDim.x + blockIdx.x;
  const bool is_here = group.lane < each && may_hold_run(work.sorted, first + group.lane * groups);
  for (unsigned left = group.ballot(is_here); left != 0; left &= left - 1) {
    sum_run(group, first + (__ffs(static_cast<int>(left)) - 1) * groups);
    group.sync();  // all have read the sums
  }
}

// Sums a row whose contributions begin with window[head], that of key begin + head, and perhaps go on beyond.
template <class Group>
DMT_DEVICE void sum_beyond(const Group& group, int64_t begin, int head, int64_t row, int dim) {
  const Work& work = group.work;
  const Sorted& sorted = work.sorted;
  const int64_t first = begin + head;
  int64_t next = begin + Group::kLanes;
  const bool is_long = first + kRun < sorted.count && row_at(sorted, first + kRun) == row;
  if (is_long) {  // summed in runs, all but the last
    const int64_t row_end = group.first_of_row(row + 1, first + kRun, sorted.count);
    const int64_t runs = (row_end - first - 1) / kRun;
    group.add_partials(work.partials + first / kRun * work.sum_width, runs, dim);
    next = first + runs * kRun;
  }
  constexpr int kTogether = Group::kSize == 8 ? 4 : 8;  // as registers allow
  group.template add_row<kTogether>(is_long ? Group::kLanes : head, Group::kLanes, next, sorted.count, row, dim,
                                    !is_long);
}

// The stretch of a group. Those of all parts of the keys take turns.
DMT_DEVICE int64_t stretch_of_group(const Work& work, int lanes) {
  const int64_t group = blockIdx.x * static_cast<int64_t>(blockDim.x / lanes) + threadIdx.x / lanes;
  if (work.parts == 1) return group;
  // What is left over is beyond all keys.
  const unsigned turn = static_cast<unsigned>(group) / work.parts;
  const unsigned part = static_cast<unsigned>(group) % work.parts;
  return turn < work.stretches_each ? int64_t{part} * work.stretches_each + turn : work.sorted.count;
}

// Groups walk stretches of keys, with a window of as many as they have lanes. A row belongs to the one in whose stretch
// it begins, which follows it beyond.
template <class T, class Grad, class Shape>
__global__ void __launch_bounds__(kRowThreads, sizeof(T) == 4 ? 8 : 6) update_rows(const Work work) {
  constexpr int kLanes = Shape::kLanes;
  constexpr int kSize = Shape::template kSize<T>;
  DMT_DYNAMIC_SHARED(shared);
  const Group<Grad, Shape> group(work, shared);
  const Sorted& sorted = work.sorted;
  Target<T>* const targets = reinterpret_cast<Target<T>*>(group.sums + work.sum_width);  // of the window's rows
  const int64_t stretch = stretch_of_group(work, kLanes);
  if (stretch * kStretch >= sorted.count || !*work.accepted) return;
  int64_t rank = work.first_ranks != nullptr ? work.first_ranks[stretch] : 0;
  constexpr int kStep = kLanes < kStretch ? kLanes : static_cast<int>(kStretch);
  for (int64_t begin = stretch * kStretch; begin < (stretch + 1) * kStretch; begin += kStep) {
    const int64_t i = begin + group.lane;
    const uint64_t key = group.key_at(i);
    const int64_t row = row_of_key(sorted, key);
    const bool is_there = is_row(sorted.bits, row);
    const unsigned begins = group.ballot(i < sorted.count && (i == 0 || row_at(sorted, i - 1) != row));
    const unsigned heads = begins & group.ballot(is_there);
    const int there = static_cast<int>(sorted.count - begin < kLanes ? sorted.count - begin : kLanes);
    AtRandom random = {};
    group.window[group.lane].dim = 0;  // a missing id's
    if (is_there) {
      group.decode(i, key);
      const UpdatedTable& table = work.tables[feature_of_key(work, key).table_index];
      const int64_t local = work.is_by_feature ? local_bits(sorted.bits, row) : row - table.first_key;
      targets[group.lane] = {static_cast<T*>(table.data) + local * table.stride,
                             table.state + local * table.state_stride};
      if (sizeof(T) == 2 && work.step != nullptr) {
        random = {row_key(message_key(table.seed, static_cast<uint64_t>(*work.step)),
                          static_cast<uint64_t>(table.first_row + local)),
                  static_cast<uint32_t>(table.first_column)};
      }
    }
    group.sync();
    for (unsigned left = heads & (kAllLanes >> (32 - kStep)); left != 0; left &= left - 1) {
      const int head = __ffs(static_cast<int>(left)) - 1;
      const unsigned later = begins >> head >> 1;
      const int end = later != 0 ? head + __ffs(static_cast<int>(later)) : there;
      const Target<T> target = targets[head];
      const int dim = group.window[head].dim;
      // On their way while the gradient is summed.
      float values[kSize] = {};
      const int c = group.lane * kSize;
      if (c < dim) load_values(target.weights + c, values, kSize, Shape::kIsPacked);
      const float state = work.optimizer == Optimizer::rowwise_adagrad ? *target.state : 0.0f;
      if (later != 0) {
        const Contribution<Grad> coming = group.window[end];
        const int g = group.lane * Group<Grad, Shape>::kSize;
        if (c < coming.dim) prefetch(targets[end].weights + c);
        if (g < coming.dim) prefetch(coming.from + g);
      }
      if (end < kLanes) {
        group.template add<4>(head, end, dim, true);
      } else {
        sum_beyond(group, begin, head, group.shuffle(row, head), dim);
      }
      group.sync();  // the sums of all lanes are there
      AtRandom its_random = {};
      if (sizeof(T) == 2 && work.step != nullptr) {
        its_random = {group.shuffle(random.row, head), group.shuffle(random.first_column, head)};
      }
      apply<Shape>(group, targets[head], dim, values, state, rank++, its_random);
      group.sync();  // and were read
    }
  }
}

int sum_width(const UpdatePlan& plan) { return static_cast<int>(ceil_div<int64_t>(plan.widest, 8)) * 8; }

// A window of contributions and of targets, and sums.
int64_t group_bytes(const UpdatePlan& plan) { return plan.lanes * 32 + sum_width(plan) * int64_t{4}; }

int groups_per_block(const UpdatePlan& plan) {
  int groups = kRowThreads / plan.lanes;
  while (groups > 32 / plan.lanes && groups * group_bytes(plan) > kSharedBytes) groups /= 2;
  return groups;  // whole warps
}

// Whether all rows are whole packs: of tables, of their states, and of the gradient.
bool is_packed(const Bags& bags, const std::vector<Feature>& features, const std::vector<UpdatedTable>& tables,
               int64_t size, const void* grad, int64_t grad_size) {
  const auto is_whole = [](int64_t columns, int64_t bytes) { return columns * bytes % 16 == 0; };
  return reinterpret_cast<uintptr_t>(grad) % 16 == 0 && is_whole(bags.width, grad_size) &&
         std::all_of(features.begin(), features.end(),
                     [&](const Feature& feature) { return is_whole(feature.column, grad_size); }) &&
         std::all_of(tables.begin(), tables.end(), [&](const UpdatedTable& table) {
           return reinterpret_cast<uintptr_t>(table.data) % 16 == 0 && is_whole(table.stride, size) &&
                  is_whole(table.dim, size) && is_whole(table.dim, grad_size) &&
                  (table.state_stride <= 1 ||
                   (reinterpret_cast<uintptr_t>(table.state) % 16 == 0 && is_whole(table.state_stride, 4)));
         });
}

// Calls function(Shape<...>{}).
template <class Function>
void with_shape(const UpdatePlan& plan, const Function& function) {
  if (!plan.is_packed) return function(Shape<false, false, 32>{});
  if (!plan.is_narrow) return function(Shape<true, false, 32>{});
  if (plan.lanes == 8) return function(Shape<true, true, 8>{});
  if (plan.lanes == 16) return function(Shape<true, true, 16>{});
  function(Shape<true, true, 32>{});
}

int64_t rounded(int64_t bytes) { return ceil_div<int64_t>(bytes, 256) * 256; }

}  // namespace

UpdatePlan plan_update(const Bags& bags, const std::vector<Feature>& features, const std::vector<UpdatedTable>& tables,
                       DType dtype, const Gradient& grad, bool is_ranked, int64_t& workspace_bytes) {
  UpdatePlan plan = {};
  std::vector<int> uses(tables.size());
  for (const Feature& feature : features) {
    ++uses[feature.table_index];
    plan.has_scales = plan.has_scales || feature.is_mean;
  }
  plan.has_scales = plan.has_scales || bags.weights != nullptr;
  plan.num_rows = tables.empty() ? 0 : tables.back().end_key;
  int64_t most_rows = 0;
  for (const UpdatedTable& table : tables) {
    plan.widest = std::max(plan.widest, table.dim);
  }
  for (const Feature& feature : features) most_rows = std::max(most_rows, feature.rows);
  plan.grad_size = grad.is_float || dtype == DType::f32 ? 4 : 2;
  const int64_t samples = bags.num_blocks * bags.num_samples;
  if (samples > INT32_MAX) throw std::length_error("embedding_update_: more than 2^31 - 1 samples");
  // One bit at least: the row above is then no negative number in the keys of all ones, which belong to no row.
  plan.bits.sample = std::bit_width(static_cast<uint64_t>(std::max<int64_t>(samples, 2) - 1));
  plan.bits.feature = std::bit_width(static_cast<uint64_t>(std::max<int64_t>(bags.num_features, 1) - 1));
  // Ids of a table that one feature reads lie in the order of its samples already, and the sort is stable. If they lie
  // in one piece, too, those of each feature can be sorted on their own. (Of offsets that do not ascend, which are
  // wrong, the keys of a row may then lie apart, and its update is wrong.)
  const bool is_shared = std::any_of(uses.begin(), uses.end(), [](int count) { return count > 1; });
  const int source = plan.bits.sample + plan.bits.feature;
  const int row_bits = std::bit_width(static_cast<uint64_t>(plan.num_rows));
  if (row_bits + source > 64) {
    throw std::length_error("embedding_update_: too many rows and bags for one sort key");
  }
  const int local = std::bit_width(static_cast<uint64_t>(most_rows));
  plan.is_by_feature = !is_shared && !is_ranked && local + plan.bits.feature + source <= 64 && is_for_clusters(bags);
  plan.bits.local = plan.is_by_feature ? local : 64 - source;
  plan.bits.begin_bit = is_shared ? 0 : source;
  plan.bits.end_bit = source + (plan.is_by_feature ? local : row_bits);
  // Rows that are hit often are the first of their tables, as a rule: those of the last table should not come last of
  // all. But where many rows are touched, to walk through one table after the other is worth more (docs/gpu.md).
  plan.parts = !is_shared && 16 * bags.num_ids < plan.num_rows ? bags.num_features : 1;
  plan.is_packed = is_packed(bags, features, tables, dtype == DType::f32 ? 4 : 2, grad.data, plan.grad_size);
  plan.lanes = plan.is_packed ? 8 : 32;  // sum_of_squares knows no fewer
  while (plan.lanes < 32 && plan.lanes * 16 < plan.widest * plan.grad_size) plan.lanes *= 2;
  plan.is_narrow = plan.lanes * 16 >= plan.widest * plan.grad_size;
  if (const int64_t most = most_shared(); plan.widest > most || group_bytes(plan) * (32 / plan.lanes) > most) {
    throw std::length_error("embedding_update_: a row of " + std::to_string(plan.widest) + " columns is too wide");
  }
  plan.buffers.count = bags.num_ids;
  // Any address that is not null tells the sort that there are values.
  plan.buffers.values[0] = plan.has_scales ? reinterpret_cast<float*>(16) : nullptr;
  if (!plan.is_by_feature) {
    radix_sort(plan.buffers, plan.bits.begin_bit, plan.bits.end_bit, nullptr, plan.scratch_bytes, nullptr);
  }
  workspace_bytes = 256 + 2 * rounded(bags.num_ids * 8) + (plan.has_scales ? 2 : 0) * rounded(bags.num_ids * 4) +
                    rounded(plan.scratch_bytes) + rounded(bags.num_ids / kRun * sum_width(plan) * 4) +
                    rounded((ceil_div(bags.num_ids, kStretch) + 1) * 8);
  return plan;
}

void place_workspace(UpdatePlan& plan, void* workspace) {
  char* next = static_cast<char*>(workspace);
  const auto take = [&](int64_t bytes) { return std::exchange(next, next + rounded(bytes)); };
  plan.accepted = reinterpret_cast<int*>(take(1));
  for (uint64_t*& keys : plan.buffers.keys) keys = reinterpret_cast<uint64_t*>(take(plan.buffers.count * 8));
  for (float*& values : plan.buffers.values) {
    values = plan.has_scales ? reinterpret_cast<float*>(take(plan.buffers.count * 4)) : nullptr;
  }
  plan.scratch = take(plan.scratch_bytes);
  plan.first_ranks = reinterpret_cast<int64_t*>(take((ceil_div(plan.buffers.count, kStretch) + 1) * 8));
  plan.partials = reinterpret_cast<float*>(take(0));
}

void run_update(const Bags& bags, const UpdatePlan& plan, const UpdatedTable* tables, int64_t num_tables, DType dtype,
                const Gradient& grad, Optimizer optimizer, const OptimizerSettings<float>& settings,
                const int64_t* step, const RowStatistic& statistic, cudaStream_t stream) {
  const int64_t num_bags = bags.num_blocks * bags.num_features * bags.num_samples;
  if (bags.num_ids == 0 || num_bags == 0) return;
  // Accepted, until an id is out of range; and keys that belong to no row. (In both places, where a sort may leave out
  // what no feature has.)
  const uint64_t* const keys_end = plan.buffers.keys[plan.is_by_feature] + bags.num_ids;
  fill_bytes(plan.accepted, 0xFF, reinterpret_cast<const char*>(keys_end) - reinterpret_cast<char*>(plan.accepted),
             stream);
  int lane_bits = 0;
  while (lane_bits < 5 && (num_bags << lane_bits) < bags.num_ids) ++lane_bits;
  const int64_t blocks_each = ceil_div<int64_t>(bags.num_samples << lane_bits, kThreads);
  launch(list_ids, bags.num_blocks * bags.num_features * blocks_each, kThreads, 0, stream, bags, plan.bits,
         plan.is_by_feature, lane_bits, static_cast<unsigned>(blocks_each), plan.buffers.keys[0],
         plan.buffers.values[0], plan.accepted);
  if (plan.num_rows == 0) return;
  int64_t scratch_bytes = plan.scratch_bytes;
  const KeyBits& bits = plan.bits;
  const int full = plan.is_by_feature
                       ? sort_features(bags, plan.buffers, bits.begin_bit, bits.end_bit - bits.begin_bit, stream)
                       : radix_sort(plan.buffers, bits.begin_bit, bits.end_bit, plan.scratch, scratch_bytes, stream);

  const int groups = groups_per_block(plan);
  const int64_t shared = groups * group_bytes(plan);
  const bool is_ranked = statistic.mean_squares != nullptr || statistic.squares != nullptr;
  const Work work = {
      .bags = bags,
      .sorted = {plan.buffers.keys[full], plan.buffers.values[full], bags.num_ids, plan.bits},
      .tables = tables,
      .num_tables = num_tables,
      .grad = grad.data,
      .partials = plan.partials,
      .first_ranks = is_ranked ? plan.first_ranks : nullptr,
      .statistic = statistic,
      .accepted = plan.accepted,
      .optimizer = optimizer,
      .settings = settings,
      .step = step,
      .is_by_feature = plan.is_by_feature,
      .parts = static_cast<unsigned>(plan.parts),
      .stretches_each = static_cast<unsigned>(ceil_div(ceil_div(bags.num_ids, kStretch), plan.parts)),
      .sum_width = sum_width(plan),
      .group_bytes = static_cast<int>(group_bytes(plan)),
  };
  const int64_t stretches = ceil_div(bags.num_ids, kStretch);
  if (is_ranked) {
    launch(count_rows, ceil_div<int64_t>(stretches, kThreads), kThreads, 0, stream, work.sorted, plan.first_ranks);
    launch(add_counts, 1, kThreads, 0, stream, plan.first_ranks, stretches);
  }
  if (statistic.table_ends != nullptr) {
    launch(end_tables, ceil_div<int64_t>(num_tables, kThreads), kThreads, 0, stream, work);
  }
  // As many groups as can run at once, at least, since one that finds a run works for long.
  const int64_t runs = bags.num_ids / kRun;
  const int each = static_cast<int>(std::clamp<int64_t>(runs / (16 * multiprocessors()), 1, plan.lanes));
  const int64_t run_blocks = ceil_div<int64_t>(runs, groups * each);
  const int64_t row_blocks = ceil_div<int64_t>(ceil_div(stretches, plan.parts) * plan.parts, groups);
  const auto sum_and_update = [&](auto weight, auto gradient) {
    using T = decltype(weight);
    using Grad = decltype(gradient);
    with_shape(plan, [&](auto shape) {
      using Shape = decltype(shape);
      launch(sum_runs<Grad, Shape>, run_blocks, groups * plan.lanes, shared, stream, work, each);
      launch(update_rows<T, Grad, Shape>, row_blocks, groups * plan.lanes, shared, stream, work);
    });
  };
  with_type(dtype, [&](auto element) {
    if (grad.is_float) {
      sum_and_update(element, float{});
    } else {
      sum_and_update(element, element);
    }
  });
}

}  // namespace dmt::cuda
