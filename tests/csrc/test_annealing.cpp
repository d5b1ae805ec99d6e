// Steps against what they stand for: energies against towers made anew, the deal against all permutations.
#include <algorithm>
#include <numeric>

#include "kernels/cpu/annealing_plan.h"
#include "values.h"

namespace dmt::testing {
namespace {

using cpu::AnnealingKernels;

const std::vector<const AnnealingKernels*> kKernels = KERNELS_OF_ISAS(annealing_kernels);

int64_t width_of(int64_t towers) {
  return (towers + cpu::kAnnealingLanes - 1) / cpu::kAnnealingLanes * cpu::kAnnealingLanes;
}

Buffer<float> random_floats(Random& random, int64_t size) {
  Buffer<float> values(size);
  for (int64_t i = 0; i < size; ++i) values[i] = static_cast<float>(random.uniform());
  return values;
}

void test_draw(Random& random) {
  const int64_t towers = random.between(1, 20);
  const int64_t room = random.between(2, 40);
  const int64_t tables = random.between(1, 30);
  const int64_t many = random.between(1, 2);
  Buffer<int32_t> slots(towers * room);
  for (int64_t s = 0; s < slots.size(); ++s) slots[s] = static_cast<int32_t>(random.below(tables + 1));
  const Buffer<float> heaviness = random_floats(random, tables + 1);
  const cpu::SlotDraw draw = {slots.data(), heaviness.data(),     towers, room,
                              many,         random.below(tables), 1.0f,   static_cast<uint64_t>(room)};
  std::vector<std::vector<int32_t>> seen;
  for_isas_and_threads(kKernels, [&](const AnnealingKernels& kernels, const cpu::ParallelFor&) {
    const Buffer<int32_t> drawn(towers * many);
    kernels.draw(draw, drawn.data());
    for (int64_t t = 0; t < towers; ++t) {
      for (int64_t i = 0; i < many; ++i) CHECK(drawn[t * many + i] >= 0 && drawn[t * many + i] < room);
      CHECK(many == 1 || drawn[2 * t] != drawn[2 * t + 1]);
    }
    seen.emplace_back(drawn.data(), drawn.data() + drawn.size());
    CHECK(seen.back() == seen.front());
  });
}

// The first in a row of random orders are those as heavy as the pivot, if there are any.
void test_alike(Random& random) {
  const int64_t room = 16;
  Buffer<int32_t> slots(room);
  for (int64_t s = 0; s < room; ++s) slots[s] = static_cast<int32_t>(s % 4);
  Buffer<float> heaviness(4);
  for (int64_t n = 0; n < 4; ++n) heaviness[n] = static_cast<float>(n);
  int64_t alike = 0;
  int64_t any = 0;
  for (uint64_t key = 0; key < 200; ++key) {
    const int64_t pivot = random.below(4);
    int32_t drawn = -1;
    cpu::SlotDraw draw = {slots.data(), heaviness.data(), 1, room, 1, pivot, 1.0f, key};
    cpu::annealing_kernels().draw(draw, &drawn);
    alike += slots[drawn] == pivot;
    draw.alike = 0.0f;
    cpu::annealing_kernels().draw(draw, &drawn);
    any += slots[drawn] == pivot;
  }
  CHECK(alike > 180 && any > 20 && any < 90);
}

void test_energies(Random& random) {
  const int64_t towers = random.between(1, 40);
  const int64_t dims = random.between(0, 9);
  const int64_t loads = random.between(1, 4);
  const int64_t width = width_of(towers);
  const Buffer<float> kept = random_floats(random, (dims + 1 + loads) * width);
  const Buffer<float> units = random_floats(random, (dims + 1 + loads) * width);
  for (int64_t t = 0; t < width; ++t) {  // numbers of features
    kept[dims * width + t] = static_cast<float>(random.below(4));
    units[dims * width + t] = static_cast<float>(random.below(3));
  }
  const Buffer<float> middles = random_floats(random, loads);
  const Buffer<float> halves = random_floats(random, loads);
  for (int64_t k = 0; k < loads; ++k) halves[k] = std::abs(halves[k]);
  const Buffer<float> noise = random_floats(random, towers * width);
  const cpu::EnergyTask task = {kept.data(),    units.data(),  towers, width, dims,        loads,
                                middles.data(), halves.data(), 3.0f,   0.25f, noise.data()};
  for_isas_and_threads(kKernels, [&](const AnnealingKernels& kernels, const cpu::ParallelFor&) {
    const Buffer<float> energies(towers * width);
    kernels.energies(task, energies.data());
    for (int64_t t = 0; t < towers; ++t) {
      for (int64_t j = 0; j < width; ++j) {
        if (j >= towers) {
          CHECK(energies[t * width + j] == HUGE_VALF);
          continue;
        }
        const auto sum = [&](int64_t v) -> double { return double{kept[v * width + t]} + units[v * width + j]; };
        double squares = 0;
        for (int64_t d = 0; d < dims; ++d) squares += sum(d) * sum(d);
        double outside = 0;
        for (int64_t k = 0; k < loads; ++k) {
          const double load = sum(dims + 1 + k);
          const double low = double{middles[k]} - halves[k];
          const double high = double{middles[k]} + halves[k];
          outside += std::max({0.0, low - load, load - high});
        }
        const double centred = sum(dims) > 0 ? squares / sum(dims) : 2 * squares;
        const double expected = 3 * outside - centred - 0.25 * noise[t * width + j];
        CHECK(std::abs(energies[t * width + j] - expected) < 1e-4 * (1 + squares + outside));
      }
    }
  });
}

double total(const Buffer<float>& energies, int64_t width, const std::vector<int32_t>& units) {
  double sum = 0;
  for (size_t t = 0; t < units.size(); ++t) sum += energies[static_cast<int64_t>(t) * width + units[t]];
  return sum;
}

// All permutations of few; of many, no change of two units is for the better, and a hidden one without cost is found.
void test_deal(Random& random) {
  const bool few = random.one_in(2);
  const int64_t count = few ? random.between(1, 7) : random.between(8, 70);
  const int64_t width = width_of(count);
  Buffer<float> energies = random_floats(random, count * width);
  const std::vector<int64_t> hidden = random.permutation(count);
  const bool has_hidden = !few && random.one_in(2);
  const bool has_equal = random.one_in(3);
  for (int64_t t = 0; t < count; ++t) {
    for (int64_t j = 0; j < width; ++j) {
      float& energy = energies[t * width + j];
      if (has_equal) energy = std::round(3 * energy);
      if (has_hidden) energy = hidden[t] == j ? 0 : std::abs(energy) + 0.01f;
      const bool forbidden = hidden[t] != j && random.one_in(4);
      if (forbidden || j >= count) energy = HUGE_VALF;
    }
  }
  for_isas_and_threads(kKernels, [&](const AnnealingKernels& kernels, const cpu::ParallelFor&) {
    const Buffer<char> scratch(cpu::deal_scratch(count, width));
    std::vector<int32_t> units(count);
    kernels.deal(energies.data(), count, width, scratch.data(), units.data());
    std::vector<int32_t> order = units;
    std::sort(order.begin(), order.end());
    for (int64_t t = 0; t < count; ++t) CHECK(order[t] == t);
    const double found = total(energies, width, units);
    if (has_hidden) CHECK(found == 0);
    if (few) {
      do {
        CHECK(found <= total(energies, width, order) + 1e-5);
      } while (std::next_permutation(order.begin(), order.end()));
    } else {
      for (int64_t t = 0; t < count; ++t) {
        const int64_t other = random.below(count);
        std::swap(units[t], units[other]);
        CHECK(found <= total(energies, width, units) + 1e-4);
        std::swap(units[t], units[other]);
      }
    }
  });
}

// A few tables with points far from 0, limits that the first towers just keep, pins, and a tower that may stay empty.
struct Small {
  int64_t tables, towers, dims, loads;
  std::vector<double> points, sizes, weights, lows, highs;
  std::vector<uint8_t> allowed;
  std::vector<int64_t> places;

  explicit Small(Random& random)
      : tables(random.between(1, 30)),
        towers(random.between(1, 8)),
        dims(random.between(1, 4)),
        loads(random.between(1, 3)),
        lows(loads, HUGE_VAL),
        highs(loads, -HUGE_VAL) {
    for (int64_t i = 0; i < tables * dims; ++i) points.push_back(1000 + random.uniform());
    for (int64_t n = 0; n < tables; ++n) {
      sizes.push_back(static_cast<double>(random.between(1, 3)));
      places.push_back(random.below(towers));
      const bool pinned = random.one_in(4);
      for (int64_t t = 0; t < towers; ++t) allowed.push_back(t == places[n] || (!pinned && !random.one_in(8)));
    }
    for (int64_t i = 0; i < loads * tables; ++i)
      weights.push_back((1 + random.uniform()) / static_cast<double>(tables));
    const double slack = random.one_in(2) ? 0.0 : 0.3;
    for (int64_t k = 0; k < loads; ++k) {
      for (int64_t t = 0; t < towers; ++t) {
        lows[k] = std::min(lows[k], load(k, t, places) - slack - 1e-9);
        highs[k] = std::max(highs[k], load(k, t, places) + slack + 1e-9);
      }
    }
  }

  double load(int64_t k, int64_t t, const std::vector<int64_t>& at) const {
    double sum = 0;
    for (int64_t n = 0; n < tables; ++n) sum += at[n] == t ? weights[k * tables + n] : 0;
    return sum;
  }

  double cost(const std::vector<int64_t>& at) const {
    double sum = 0;
    for (int64_t t = 0; t < towers; ++t) {
      for (int64_t d = 0; d < dims; ++d) {
        double size = 0, pull = 0;
        for (int64_t n = 0; n < tables; ++n) {
          if (at[n] == t) size += sizes[n], pull += sizes[n] * points[n * dims + d];
        }
        for (int64_t n = 0; n < tables; ++n) {
          const double apart = points[n * dims + d] - pull / size;
          if (at[n] == t) sum += sizes[n] * apart * apart;
        }
      }
    }
    return sum;
  }

  cpu::AnnealingProblem problem() const {
    return {tables,       towers,         dims,        loads,        points.data(),
            sizes.data(), weights.data(), lows.data(), highs.data(), allowed.data()};
  }
};

// The first steps of a schedule are the hottest, and break most limits.
void test_plan(Random& random) {
  const Small small(random);
  const cpu::AnnealingSchedule schedule = {random.pick<int64_t>({1, 20, 70, 400}), 1e9,
                                           static_cast<uint64_t>(random.below(9))};
  std::vector<int64_t> found = small.places;
  const double cost = cpu::anneal(small.problem(), schedule, found.data());
  CHECK(std::abs(cost - small.cost(found)) < 1e-6);
  CHECK(cost <= small.cost(small.places) + 1e-6);
  for (int64_t n = 0; n < small.tables; ++n) CHECK(small.allowed[n * small.towers + found[n]]);
  for (int64_t k = 0; k < small.loads; ++k) {
    for (int64_t t = 0; t < small.towers; ++t) {
      CHECK(small.load(k, t, found) >= small.lows[k] - 1e-9 && small.load(k, t, found) <= small.highs[k] + 1e-9);
    }
  }
  std::vector<int64_t> again[2] = {small.places, small.places};
  cpu::parallel_for(threads(2), 0, 2, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) cpu::anneal(small.problem(), schedule, again[i].data());
  });
  CHECK(again[0] == found && again[1] == found);
}

// Groups of four, far from 0 and mixed up: few steps sort them.
void test_groups() {
  constexpr int64_t kGroups = 6;
  constexpr int64_t kTables = 4 * kGroups;
  Random random(0);
  std::vector<double> points, lows = {0.9}, highs = {1.1};
  std::vector<int64_t> places;
  for (int64_t n = 0; n < kTables; ++n) {
    for (int64_t d = 0; d < kGroups; ++d) points.push_back(1000 + (n % kGroups == d) + 0.1 * random.uniform());
    places.push_back(n / 4);
  }
  const std::vector<double> sizes(kTables, 1.0), weights(kTables, 0.25);
  const std::vector<uint8_t> allowed(kTables * kGroups, 1);
  const cpu::AnnealingProblem problem = {kTables,       kGroups,       kGroups,        1,
                                         points.data(), sizes.data(),  weights.data(), lows.data(),
                                         highs.data(),  allowed.data()};
  int64_t sorted = 0;
  std::vector<std::vector<int64_t>> ways;
  for (uint64_t seed = 0; seed < 10; ++seed) {
    std::vector<int64_t> found = places;
    cpu::anneal(problem, {300, 1e9, seed}, found.data());
    bool is_sorted = true;
    for (int64_t n = kGroups; n < kTables; ++n) is_sorted = is_sorted && found[n] == found[n % kGroups];
    sorted += is_sorted;
    if (std::find(ways.begin(), ways.end(), found) == ways.end()) ways.push_back(found);
  }
  CHECK(sorted >= 9);
  CHECK(ways.size() > 1);  // seeds differ: towers have other names
}

}  // namespace

void test_annealing(int64_t number) {
  Random random(number);
  if (number == 0) test_groups();
  test_plan(random);
  test_draw(random);
  test_alike(random);
  test_energies(random);
  test_deal(random);
}

}  // namespace dmt::testing
