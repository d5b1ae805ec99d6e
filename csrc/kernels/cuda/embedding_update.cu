#include "embedding_update.h"

#include <algorithm>
#include <bit>
#include <stdexcept>
#include <string>
#include <utility>

#include "row_ranks.h"

namespace dmt::cuda {
namespace {

constexpr int64_t kMostShared = 200 << 10;
static_assert(kStretch <= kRun);  // a long row reaches beyond the stretch that it begins in

// ---- 1. Keys ------------------------------------------------------------------------------------------------------

// `lanes` threads share a bag.
__global__ void __launch_bounds__(kThreads)
    list_ids(const Bags bags, const KeyBits bits, int lanes, uint64_t* keys, float* scales, int* refused) {
  const int64_t thread = blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x;
  const int64_t bag = thread / lanes;
  if (bag >= bags.num_blocks * bags.num_features * bags.num_samples) return;
  const int lane = static_cast<int>(thread % lanes);
  const unsigned group = lanes == 32 ? kAllLanes : ((1u << lanes) - 1) << (threadIdx.x % 32 / lanes * lanes);
  const int64_t k = bag / bags.num_samples / bags.num_features;
  const int64_t f = bag / bags.num_samples % bags.num_features;
  const int64_t sample = k * bags.num_samples + bag % bags.num_samples;
  const Feature feature = bags.features[f];
  const int64_t begin = load_offset(bags, bag);
  const int64_t end = load_offset(bags, bag + 1);
  int count = 0;
  if (feature.is_mean) {
    for (int64_t p = begin + lane; p < end; p += lanes) count += row_of(bags, feature, load_id(bags, p)) != kMissing;
    for (int distance = lanes / 2; distance > 0; distance /= 2) count += __shfl_xor_sync(group, count, distance);
  }
  const uint64_t source = static_cast<uint64_t>(sample) << bits.feature | static_cast<uint64_t>(f);
  for (int64_t p = begin + lane; p < end; p += lanes) {
    const int64_t id = load_id(bags, p);
    const int64_t row = row_of(bags, feature, id);
    if (row >= 0) {
      keys[p] = static_cast<uint64_t>(feature.first_key + row) << (bits.sample + bits.feature) | source;
      if (scales != nullptr) {
        const float weight = bags.weights != nullptr ? bags.weights[p] : 1.0f;
        scales[p] = feature.is_mean ? weight / static_cast<float>(count) : weight;
      }
    } else if (row == kMissing && bags.errors != nullptr) {
      report_missing(bags, feature, bag, id);
      *refused = 1;
    }
  }
}

// ---- 3. and 4. Rows -----------------------------------------------------------------------------------------------

// partials[j] = the sum of the run, not the last one of its row, that begins among keys [j*kRun, (j+1)*kRun). There is
// at most one: such a run reaches beyond them.
template <class Grad>
__global__ void __launch_bounds__(kThreads) sum_runs(const Work work) {
  DMT_DYNAMIC_SHARED(shared);
  const Group<Grad> group(work, shared);
  const Sorted& sorted = work.sorted;
  const int64_t groups = static_cast<int64_t>(blockDim.x) / work.lanes;
  const int64_t j = blockIdx.x * groups + static_cast<int>(threadIdx.x) / work.lanes;
  const int64_t beyond = (j + 1) * kRun;
  if (beyond >= sorted.count || *work.refused) return;
  const int64_t row = row_at(sorted, beyond);
  if (row >= sorted.num_rows || row_at(sorted, beyond - 1) != row) return;
  const int64_t head = first_of_row(sorted, row, 0, beyond);
  const int64_t first = j * kRun;
  const int64_t begin = head >= first ? head : head + ceil_div(first - head, kRun) * kRun;
  const int64_t end = begin + kRun;
  if (end >= sorted.count || row_at(sorted, end) != row) return;
  const int64_t dim = table_of_row(work, row).dim;
  group.clear(dim);
  group.fetch_first(begin, end, dim);
  for (int64_t i = begin; i < end; ++i) group.add(i, end, dim);
  float* const partial = work.partials + j * work.widest;
  constexpr int kSize = kPackSize<Grad>;
  for (int64_t pack = group.lane; pack * kSize < dim; pack += work.lanes) {
    for (int c = 0; c < kSize && pack * kSize + c < dim; ++c) partial[pack * kSize + c] = group.sums[pack * kSize + c];
  }
}

// In 32 chains, by column, which are then added up as pairs: the order of the CPU's kernel, and as there in double.
template <class T>
DMT_DEVICE double sum_of_squares(const T* row, const float* g, int64_t dim, float weight_decay, int lane, int lanes,
                                 unsigned mask) {
  const auto chain = [&](int first) {
    double sum = 0;
    for (int64_t c = first; c < dim; c += 32) {
      const float weight = weight_decay == 0.0f ? 0.0f : to_float(row[c]);
      const double value = static_cast<double>(decayed_gradient(weight, g[c], weight_decay));
      sum += value * value;
    }
    return sum;
  };
  double sum = chain(lane);
  if (lanes == 16) sum += chain(lane + 16);
  if (lanes == 8) sum = (sum + chain(lane + 16)) + (chain(lane + 8) + chain(lane + 24));
  for (int distance = lanes / 2; distance > 0; distance /= 2) sum += __shfl_xor_sync(mask, sum, distance);
  return sum;
}

// Weights of 16 bits, rounded by their place in the whole table.
struct AtRandom {
  uint64_t row;  // row_key()
  uint32_t first_column;

  DMT_MEMBER uint32_t word(int i) const { return random_word(row, first_column + static_cast<uint32_t>(i)); }
  DMT_MEMBER void operator()(int i, float value, BFloat16& to) const { to.bits = bfloat16_at_random(value, word(i)); }
  DMT_MEMBER void operator()(int i, float value, Half& to) const { to.bits = half_at_random(value, word(i)); }
};

// `rank`: of the row, if rows have numbers.
template <bool kIsRanked, class T, class Grad>
DMT_DEVICE void apply(const Group<Grad>& group, const UpdatedTable& table, int64_t row, int64_t rank) {
  constexpr int kSize = kPackSize<T>;
  const Work& work = group.work;
  const OptimizerSettings<float>& settings = work.settings;
  T* const weights = static_cast<T*>(table.data) + row * table.stride;
  const bool aligned = is_aligned(weights, 0);
  RowwiseFactors<float> factors = {};
  if (kIsRanked && work.statistic.squares != nullptr) {
    const double squares =
        sum_of_squares(weights, group.sums, table.dim, settings.weight_decay, group.lane, work.lanes, group.mask);
    if (group.lane == 0) work.statistic.squares[rank] = squares;
    return;
  }
  if (work.optimizer == Optimizer::rowwise_adagrad) {
    float* const state = table.state + row * table.state_stride;
    float value = *state;
    double mean_square;
    if (kIsRanked) {
      mean_square = rank < work.statistic.count ? work.statistic.mean_squares[rank] : nan("");
    } else {
      mean_square =
          sum_of_squares(weights, group.sums, table.dim, settings.weight_decay, group.lane, work.lanes, group.mask) /
          static_cast<double>(table.dim);
    }
    factors = rowwise_factors(static_cast<float>(mean_square), value, settings);
    __syncwarp(group.mask);  // all have read it
    if (group.lane == 0) *state = value;
  }
  uint64_t random_row = 0;
  if (sizeof(T) == 2 && work.step != nullptr) {
    random_row = row_key(message_key(table.seed, static_cast<uint64_t>(*work.step)),
                         static_cast<uint64_t>(table.first_row + row));
  }
  for (int64_t c = group.lane * kSize; c < table.dim; c += work.lanes * kSize) {
    const int count = static_cast<int>(table.dim - c < kSize ? table.dim - c : kSize);
    float values[kSize];
    load_values(weights + c, values, count, aligned);
    if (work.optimizer == Optimizer::adagrad) {
      float* const state = table.state + row * table.state_stride + c;
      float states[kSize];
      const bool aligned_state = is_aligned(state, 0);
      load_values(state, states, count, aligned_state);
#pragma unroll
      for (int i = 0; i < kSize; ++i) {
        if (i < count) values[i] = adagrad_weight(values[i], group.sums[c + i], states[i], settings);
      }
      store_values(state, states, count, aligned_state);
    } else {
#pragma unroll
      for (int i = 0; i < kSize; ++i) {
        if (i >= count) continue;
        values[i] = work.optimizer == Optimizer::sgd ? sgd_weight(values[i], group.sums[c + i], settings)
                                                     : rowwise_weight(values[i], group.sums[c + i], factors);
      }
    }
    if constexpr (sizeof(T) == 2) {
      if (work.step != nullptr) {
        const AtRandom at_random = {random_row, static_cast<uint32_t>(table.first_column + c)};
        store_values(weights + c, values, count, aligned, at_random);
        continue;
      }
    }
    store_values(weights + c, values, count, aligned);
  }
}

// Groups walk stretches of keys. A row belongs to the one in whose stretch it begins, which follows it beyond.
template <class T, class Grad, bool kIsRanked>
__global__ void __launch_bounds__(kThreads, 2) update_rows(const Work work) {
  DMT_DYNAMIC_SHARED(shared);
  const Group<Grad> group(work, shared);
  const Sorted& sorted = work.sorted;
  const int64_t groups = static_cast<int64_t>(blockDim.x) / work.lanes;
  const int64_t begin = (blockIdx.x * groups + static_cast<int>(threadIdx.x) / work.lanes) * kStretch;
  if (begin >= sorted.count || *work.refused) return;
  const int64_t end = begin + kStretch < sorted.count ? begin + kStretch : sorted.count;
  int64_t rank = kIsRanked ? work.first_ranks[begin / kStretch] : 0;
  int64_t i = begin;
  if (begin > 0) {
    const int64_t before = row_at(sorted, begin - 1);
    while (i < end && row_at(sorted, i) == before) ++i;
  }
  while (i < end) {
    // Rows of one table, whose gradients are copied ahead without regard to where a row ends.
    const int64_t first_row = row_at(sorted, i);
    if (first_row >= sorted.num_rows) return;
    const UpdatedTable table = table_of_row(work, first_row);
    const int64_t last_row = row_at(sorted, end - 1);
    int64_t known_end = end;  // of what is for this group and of this table, but for the end of a long row
    if (last_row >= table.end_key) {
      known_end = first_of_row(sorted, table.end_key, i, end);
    } else if (end < sorted.count && row_at(sorted, end) == last_row) {
      known_end = first_of_row(sorted, last_row + 1, end, end + kRun < sorted.count ? end + kRun : sorted.count);
    }
    group.fetch_first(i, known_end, table.dim);
    while (i < end) {
      const int64_t row = row_at(sorted, i);
      if (row >= table.end_key) break;
      prefetch(static_cast<const T*>(table.data) + (row - table.first_key) * table.stride + group.lane * kPackSize<T>);
      if (group.lane == 0 && table.state != nullptr) {
        prefetch(table.state + (row - table.first_key) * table.state_stride);
      }
      group.clear(table.dim);
      int64_t row_end = known_end;
      if (i + kRun < sorted.count && row_at(sorted, i + kRun) == row) {  // long: summed in runs, all but the last
        row_end = first_of_row(sorted, row + 1, i + kRun, sorted.count);
        const int64_t runs = (row_end - i - 1) / kRun;
        group.add_partials(work.partials + i / kRun * work.widest, runs, table.dim);
        i += runs * kRun;
        group.fetch_first(i, row_end, table.dim);
      }
      for (; i < sorted.count && row_at(sorted, i) == row; ++i) group.add(i, row_end, table.dim);
      __syncwarp(group.mask);  // the sums of all lanes are there
      apply<kIsRanked, T>(group, table, row - table.first_key, rank);
      if (kIsRanked) ++rank;
      __syncwarp(group.mask);  // and were read
    }
    wait_for_copies<0>();
  }
}

int lanes_for(int64_t widest, int64_t grad_size) {
  int lanes = 8;  // sum_of_squares knows no fewer
  while (lanes < 32 && lanes * 16 < widest * grad_size) lanes *= 2;
  return lanes;
}

int64_t group_bytes(const UpdatePlan& plan) {
  const int64_t packs = ceil_div(plan.widest * plan.grad_size, int64_t{16});
  return packs * 16 * kInFlight + packs * (16 / plan.grad_size) * 4;
}

int groups_per_block(const UpdatePlan& plan, int lanes) {
  const int64_t fit = (plan.widest <= 256 ? kSharedBytes : kMostShared / 2) / group_bytes(plan);
  int groups = kThreads / lanes;
  while (groups > 1 && groups > fit) groups /= 2;
  return std::max(groups, 32 / lanes);  // whole warps
}

int64_t rounded(int64_t bytes) { return ceil_div<int64_t>(bytes, 256) * 256; }

}  // namespace

UpdatePlan plan_update(const Bags& bags, const std::vector<Feature>& features, const std::vector<UpdatedTable>& tables,
                       DType dtype, bool grad_is_float, int64_t& workspace_bytes) {
  UpdatePlan plan = {};
  std::vector<int> uses(tables.size());
  for (const Feature& feature : features) {
    ++uses[feature.table_index];
    plan.has_scales = plan.has_scales || feature.is_mean;
  }
  plan.has_scales = plan.has_scales || bags.weights != nullptr;
  plan.num_rows = tables.empty() ? 0 : tables.back().end_key;
  for (const UpdatedTable& table : tables) plan.widest = std::max(plan.widest, table.dim);
  plan.grad_size = grad_is_float || dtype == DType::f32 ? 4 : 2;
  const int64_t samples = bags.num_blocks * bags.num_samples;
  if (samples > INT32_MAX) throw std::length_error("embedding_update_: more than 2^31 - 1 samples");
  plan.bits.row = std::bit_width(static_cast<uint64_t>(plan.num_rows));
  // One bit at least: the row above is then no negative number in the keys of all ones, which belong to no row.
  plan.bits.sample = std::bit_width(static_cast<uint64_t>(std::max<int64_t>(samples, 2) - 1));
  plan.bits.feature = std::bit_width(static_cast<uint64_t>(std::max<int64_t>(bags.num_features, 1) - 1));
  if (plan.bits.row + plan.bits.sample + plan.bits.feature > 64) {
    throw std::length_error("embedding_update_: too many rows and bags for one sort key");
  }
  // Ids of a table that one feature reads lie in the order of its samples already, and the sort is stable.
  const bool is_shared = std::any_of(uses.begin(), uses.end(), [](int count) { return count > 1; });
  plan.bits.begin_bit = is_shared ? 0 : plan.bits.sample + plan.bits.feature;
  if (group_bytes(plan) * (32 / lanes_for(plan.widest, plan.grad_size)) > kMostShared) {
    throw std::length_error("embedding_update_: a row of " + std::to_string(plan.widest) + " columns is too wide");
  }
  plan.buffers.count = bags.num_ids;
  // Any address that is not null tells the sort that there are values.
  plan.buffers.values[0] = plan.has_scales ? reinterpret_cast<float*>(16) : nullptr;
  radix_sort(plan.buffers, plan.bits.begin_bit, plan.bits.row + plan.bits.sample + plan.bits.feature, nullptr,
             plan.scratch_bytes, nullptr);
  workspace_bytes = 256 + 2 * rounded(bags.num_ids * 8) + (plan.has_scales ? 2 : 0) * rounded(bags.num_ids * 4) +
                    rounded(plan.scratch_bytes) + rounded(bags.num_ids / kRun * plan.widest * 4) +
                    rounded((ceil_div(bags.num_ids, kStretch) + 1) * 8);
  return plan;
}

void place_workspace(UpdatePlan& plan, void* workspace) {
  char* next = static_cast<char*>(workspace);
  const auto take = [&](int64_t bytes) { return std::exchange(next, next + rounded(bytes)); };
  plan.refused = reinterpret_cast<int*>(take(1));
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
  fill_bytes(plan.refused, 0, 256, stream);
  fill_bytes(plan.buffers.keys[0], 0xFF, bags.num_ids * 8, stream);  // what belongs to no row
  int lanes = 1;
  while (lanes < 32 && lanes * num_bags < bags.num_ids) lanes *= 2;
  launch(list_ids, ceil_div<int64_t>(num_bags * lanes, kThreads), kThreads, 0, stream, bags, plan.bits, lanes,
         plan.buffers.keys[0], plan.buffers.values[0], plan.refused);
  if (plan.num_rows == 0) return;
  int64_t scratch_bytes = plan.scratch_bytes;
  const int full = radix_sort(plan.buffers, plan.bits.begin_bit, plan.bits.row + plan.bits.sample + plan.bits.feature,
                              plan.scratch, scratch_bytes, stream);

  const int row_lanes = lanes_for(plan.widest, plan.grad_size);
  const int groups = groups_per_block(plan, row_lanes);
  const int64_t shared = groups * group_bytes(plan);
  const Work work = {
      .bags = bags,
      .sorted = {plan.buffers.keys[full], plan.buffers.values[full], bags.num_ids, plan.num_rows, plan.bits},
      .tables = tables,
      .num_tables = num_tables,
      .grad = grad.data,
      .partials = plan.partials,
      .first_ranks = plan.first_ranks,
      .statistic = statistic,
      .widest = plan.widest,
      .refused = plan.refused,
      .optimizer = optimizer,
      .settings = settings,
      .step = step,
      .lanes = row_lanes,
      .group_bytes = static_cast<int>(group_bytes(plan)),
  };
  const int64_t stretches = ceil_div(bags.num_ids, kStretch);
  const bool is_ranked = statistic.mean_squares != nullptr || statistic.squares != nullptr;
  if (is_ranked) {
    launch(count_rows, ceil_div<int64_t>(stretches, kThreads), kThreads, 0, stream, work.sorted, plan.first_ranks);
    launch(add_counts, 1, kThreads, 0, stream, plan.first_ranks, stretches);
  }
  if (statistic.table_ends != nullptr) {
    launch(end_tables, ceil_div<int64_t>(num_tables, kThreads), kThreads, 0, stream, work);
  }
  const int64_t run_blocks = ceil_div<int64_t>(bags.num_ids / kRun, groups);
  const int64_t row_blocks = ceil_div<int64_t>(stretches, groups);
  const auto sum_and_update = [&](auto weight, auto gradient) {
    using T = decltype(weight);
    using Grad = decltype(gradient);
    launch(sum_runs<Grad>, run_blocks, groups * row_lanes, shared, stream, work);
    launch(is_ranked ? update_rows<T, Grad, true> : update_rows<T, Grad, false>, row_blocks, groups * row_lanes, shared,
           stream, work);
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
