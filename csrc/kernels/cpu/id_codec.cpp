#include "id_codec.h"

#include "float_formats.h"

namespace dmt::cpu {
namespace {

constexpr int64_t kGrain = 1 << 15;  // ids and bags

// Calls body(run) for all runs; `cost` is that of all of them.
template <class Run, class Body>
void for_runs(Run* runs, int64_t num_runs, int64_t cost, const ParallelFor& threads, const Body& body) {
  const int64_t grain = cost > 0 ? 1 + num_runs * kGrain / cost : num_runs;
  parallel_for(threads, 0, num_runs, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) body(runs[i]);
  });
}

// Of messages, in which nothing is aligned.
template <class T>
T load_number(const uint8_t* bytes, int64_t i) {
  T value;
  __builtin_memcpy(&value, bytes + i * static_cast<int64_t>(sizeof(T)), sizeof(T));
  return value;
}

template <class T>
void store_number(uint8_t* bytes, int64_t i, T value) {
  __builtin_memcpy(bytes + i * static_cast<int64_t>(sizeof(T)), &value, sizeof(T));
}

template <class Function>
void with_wire_type(int64_t id_bytes, const Function& function) {
  switch (id_bytes) {
    case 1:
      return function(uint8_t{});
    case 2:
      return function(uint16_t{});
    case 4:
      return function(uint32_t{});
    default:
      return function(uint64_t{});
  }
}

void encode_lengths(const BagLayout& bags, EncodeRun* runs, int64_t num_runs, const ParallelFor& threads) {
  const int64_t num_bags = num_runs > 0 ? runs[0].num_bags : 0;
  for_runs(runs, num_runs, num_runs * num_bags, threads, [&](EncodeRun& run) {
    const int64_t* const offsets = bags.offsets + run.bag;
    uint8_t* const __restrict lengths = run.lengths;
    int64_t num_long = 0;
    for (int64_t b = 0; b < num_bags; ++b) {
      const int64_t length = offsets[b + 1] - offsets[b];
      num_long += length >= kLongBag;
      lengths[b] = static_cast<uint8_t>(length < kLongBag ? length : kLongBag);
    }
    run.num_long = num_long;
  });
}

template <class Id, class Wire>
int64_t narrow(const Id* __restrict ids, int64_t count, uint64_t rows, uint8_t* __restrict out) {
  int64_t missing = 0;
  for (int64_t i = 0; i < count; ++i) {
    const uint64_t id = static_cast<uint64_t>(static_cast<int64_t>(ids[i]));  // a negative one is beyond all rows
    missing += id >= rows;
    store_number(out, i, id < rows ? static_cast<Wire>(id) : static_cast<Wire>(-1));
  }
  return missing;
}

int64_t encode_ids(const BagLayout& bags, const EncodeRun* runs, int64_t num_runs, const ParallelFor& threads) {
  int64_t missing = 0;
  int64_t num_ids = 0;
  for (int64_t i = 0; i < num_runs; ++i) {
    num_ids += bags.offsets[runs[i].bag + runs[i].num_bags] - bags.offsets[runs[i].bag];
  }
  for_runs(runs, num_runs, num_ids, threads, [&](const EncodeRun& run) {
    const int64_t* const offsets = bags.offsets + run.bag;
    const int64_t first = offsets[0];
    const int64_t count = offsets[run.num_bags] - first;
    int64_t found = 0;
    with_wire_type(run.id_bytes, [&](auto wire) {
      with_id_type(bags, [&](auto id) {
        using Id = decltype(id);
        found =
            narrow<Id, decltype(wire)>(typed_ids<Id>(bags) + first, count, static_cast<uint64_t>(run.rows), run.ids);
      });
    });
    __atomic_fetch_add(&missing, found, __ATOMIC_RELAXED);
    if (run.weights != nullptr && count > 0) {
      __builtin_memcpy(run.weights, static_cast<const float*>(bags.weights) + first, count * sizeof(float));
    }
    for (int64_t b = 0, i = 0; i < run.num_long; ++b) {
      if (offsets[b + 1] - offsets[b] >= kLongBag) store_number(run.long_lengths, i++, offsets[b + 1] - offsets[b]);
    }
  });
  return missing;
}

int64_t count_long(const uint8_t* lengths, int64_t num_bags, int64_t* sum) {
  int64_t num_long = 0;
  int64_t num_ids = 0;
  constexpr int64_t kStep = 1 << 20;  // so that 32 bits hold a step's sums
  for (int64_t begin = 0; begin < num_bags; begin += kStep) {
    const int64_t end = begin + kStep < num_bags ? begin + kStep : num_bags;
    uint32_t longs = 0;
    uint32_t ids = 0;
    for (int64_t b = begin; b < end; ++b) {
      longs += lengths[b] == kLongBag;
      ids += lengths[b];
    }
    num_long += longs;
    num_ids += ids;
  }
  *sum = num_ids - num_long * kLongBag;
  return num_long;
}

template <class Wire, class Id>
void widen(const DecodeRun& run, int64_t num_targets) {
  const uint8_t* const __restrict wire = run.ids;
  Id* const __restrict first = static_cast<Id*>(run.targets[0].ids);
  Id* const __restrict second = static_cast<Id*>(run.targets[1].ids);
  const auto id_at = [&](int64_t i) {
    const Wire id = load_number<Wire>(wire, i);
    return id == static_cast<Wire>(-1) ? Id{-1} : static_cast<Id>(id);
  };
  if (num_targets == 1) {
    for (int64_t i = 0; i < run.num_ids; ++i) first[i] = id_at(i);
  } else {
    for (int64_t i = 0; i < run.num_ids; ++i) first[i] = second[i] = id_at(i);
  }
}

template <bool kHasLong>
void add_up_lengths(const DecodeRun& run, int64_t num_targets) {
  const uint8_t* const __restrict lengths = run.lengths;
  int64_t* const __restrict first = run.targets[0].offsets;
  int64_t* const __restrict second = run.targets[1].offsets;
  const int64_t between = run.targets[1].first_id - run.targets[0].first_id;
  int64_t end = run.targets[0].first_id;
  int64_t num_long = 0;
  for (int64_t b = 0; b < run.num_bags; ++b) {
    int64_t length = lengths[b];
    if (kHasLong && length == kLongBag) length = load_number<int64_t>(run.long_lengths, num_long++);
    end += length;
    first[b] = end;
    if (num_targets > 1) second[b] = end + between;
  }
}

void decode(const DecodeRun* runs, int64_t num_runs, int64_t num_targets, bool wide_ids, const ParallelFor& threads) {
  int64_t cost = 0;
  for (int64_t i = 0; i < num_runs; ++i) cost += runs[i].num_ids + runs[i].num_bags;
  for_runs(runs, num_runs, cost, threads, [&](const DecodeRun& run) {
    run.has_long ? add_up_lengths<true>(run, num_targets) : add_up_lengths<false>(run, num_targets);
    with_wire_type(run.id_bytes, [&](auto wire) {
      using Wire = decltype(wire);
      wide_ids ? widen<Wire, int64_t>(run, num_targets) : widen<Wire, int32_t>(run, num_targets);
    });
    for (int64_t t = 0; t < num_targets && run.weights != nullptr && run.num_ids > 0; ++t) {
      __builtin_memcpy(run.targets[t].weights, run.weights, run.num_ids * sizeof(float));
    }
  });
}

}  // namespace

DMT_DEFINE_KERNELS(IdCodecKernels, id_codec_kernels) = {encode_lengths, encode_ids, count_long, decode};

}  // namespace dmt::cpu
