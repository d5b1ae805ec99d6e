#include "annealing.h"

#include "../random_rounding.h"
#include "vectors.h"

namespace dmt::cpu {
namespace {

using Floats = vector_t<float>;
using Ints = vector_t<int32_t>;
constexpr int64_t kStep = kLanes<float>;
static_assert(kAnnealingLanes % kStep == 0);

constexpr float kInfinity = __builtin_inff();
constexpr float kUnlike = 0.02f;  // logarithm of weights, added to how far they are apart

void draw(const SlotDraw& draw, int32_t* drawn) {
  const float middle = draw.heaviness[draw.pivot];
  for (int64_t t = 0; t < draw.towers; ++t, drawn += draw.many) {
    const int32_t* slots = draw.slots + t * draw.room;
    const uint64_t key = row_key(draw.key, static_cast<uint64_t>(t));
    float least[2] = {kInfinity, kInfinity};
    int32_t at[2] = {0, 1};
    for (int64_t s = 0; s < draw.room; ++s) {
      const float apart = draw.alike * __builtin_fabsf(draw.heaviness[slots[s]] - middle);
      const auto word = random_word(key, static_cast<uint32_t>(s));
      const float order = (apart + kUnlike) * static_cast<float>(word >> 8);
      if (order >= least[1]) continue;
      const bool first = order < least[0];
      least[1] = first ? least[0] : order;
      at[1] = first ? at[0] : static_cast<int32_t>(s);
      if (first) least[0] = order, at[0] = static_cast<int32_t>(s);
    }
    for (int64_t i = 0; i < draw.many; ++i) drawn[i] = at[i];
  }
}

Floats above(Floats values, float limit) {
  const Floats more = values - limit;
  return more > 0.0f ? more : Floats{};
}

// The sum over loads of what is beyond their limits, of one tower with units j to j + kStep.
Floats outside(const EnergyTask& task, int64_t t, int64_t j) {
  Floats sum = {};
  for (int64_t k = 0; k < task.loads; ++k) {
    const int64_t row = (task.dims + 1 + k) * task.width;
    const Floats load = load_vector(task.units + row + j) + (task.kept[row + t] - task.middles[k]);
    sum += above(load < 0.0f ? -load : load, task.halves[k]);
  }
  return sum;
}

// Squared norms of sums over sizes.
Floats closeness(const EnergyTask& task, int64_t t, int64_t j) {
  Floats squares = {};
  for (int64_t d = 0; d < task.dims; ++d) {
    const Floats sum = load_vector(task.units + d * task.width + j) + task.kept[d * task.width + t];
    squares += sum * sum;
  }
  const int64_t row = task.dims * task.width;
  const Floats size = load_vector(task.units + row + j) + task.kept[row + t];
  return squares / (size > kNoFeatures ? size : Floats{} + kNoFeatures);
}

void energies(const EnergyTask& task, float* energies) {
  for (int64_t t = 0; t < task.towers; ++t, energies += task.width) {
    const float* noise = task.noise + t * task.width;
    for (int64_t j = 0; j < task.width; j += kStep) {
      const Floats cost = task.price * outside(task, t, j) - closeness(task, t, j);
      store_vector(energies + j, cost - task.temperature * load_vector(noise + j));
    }
    for (int64_t j = task.towers; j < task.width; ++j) energies[j] = kInfinity;
  }
}

struct Nearest {
  int64_t unit;
  float distance;
};

// Rows and units with their dual prices: an energy less the prices of its row and its unit is 0 where they are matched,
// and nowhere less, but for rounding.
struct Deal {
  const float* energies;
  int64_t count;
  int64_t width;
  int32_t* units;      // [count] of rows, -1 if none yet
  float* row_prices;   // [count]
  int32_t* closed;     // [count] units that the path has been to, from the nearest on
  float* passed;       // [count] and how far they are
  float* unit_prices;  // [width]
  int32_t* rows;       // [width] of units, -1 if none yet
  float* reach;        // [width] how far units are, minus infinity once closed
  int32_t* before;     // [width] the row from which a unit is reached

  Deal(const float* energies, int64_t count, int64_t width, void* scratch, int32_t* units)
      : energies(energies), count(count), width(width), units(units) {
    row_prices = static_cast<float*>(scratch);
    closed = reinterpret_cast<int32_t*>(row_prices + count);
    passed = reinterpret_cast<float*>(closed + count);
    unit_prices = passed + count;
    rows = reinterpret_cast<int32_t*>(unit_prices + width);
    reach = reinterpret_cast<float*>(rows + width);
    before = reinterpret_cast<int32_t*>(reach + width);
    for (int64_t j = 0; j < width; ++j) unit_prices[j] = 0, rows[j] = -1;
  }

  // A row's price is its least energy, and it has that unit unless an earlier row has.
  void start(int64_t t) {
    open();
    const Nearest nearest = look(t, 0);
    row_prices[t] = nearest.distance;
    units[t] = -1;
    if (rows[nearest.unit] < 0) match(t, nearest.unit);
  }

  // Gives a row a unit, and others on the shortest path to a free one the next of it.
  void augment(int64_t start) {
    open();
    Nearest nearest = look(start, -row_prices[start]);
    int64_t visited = 0;
    for (; rows[nearest.unit] >= 0; ++visited) {
      const int64_t t = rows[nearest.unit];
      closed[visited] = static_cast<int32_t>(nearest.unit);
      passed[visited] = nearest.distance;
      reach[nearest.unit] = -kInfinity;
      nearest = look(t, nearest.distance - row_prices[t]);
    }
    row_prices[start] += nearest.distance;
    for (int64_t i = 0; i < visited; ++i) {
      const float rest = nearest.distance - passed[i];
      row_prices[rows[closed[i]]] += rest;
      unit_prices[closed[i]] -= rest;
    }
    for (int64_t unit = nearest.unit, t = -1; t != start;) {
      t = before[unit];
      const int64_t given_up = units[t];
      match(t, unit);
      unit = given_up;
    }
  }

  void match(int64_t t, int64_t unit) {
    units[t] = static_cast<int32_t>(unit);
    rows[unit] = static_cast<int32_t>(t);
  }

  void open() {
    for (int64_t j = 0; j < width; ++j) reach[j] = kInfinity;
  }

  // Reaches units from a row, and finds the nearest one that is not closed; the first of equals.
  Nearest look(int64_t t, float base) {
    const float* row = energies + t * width;
    Floats least = Floats{} + kInfinity;
    Ints at = {};
    Ints here = {};
    for (int64_t i = 0; i < kStep; ++i) here[i] = static_cast<int32_t>(i);
    for (int64_t j = 0; j < width; j += kStep, here += static_cast<int32_t>(kStep)) {
      const Floats known = load_vector(reach + j);
      const Floats distance = load_vector(row + j) - load_vector(unit_prices + j) + base;
      const Ints nearer = distance < known;
      const Floats now = nearer ? distance : known;
      store_vector(reach + j, now);
      store_vector(before + j, nearer ? Ints{} + static_cast<int32_t>(t) : load_vector(before + j));
      const Ints nearest = (now < least) & (now > -kInfinity);
      at = nearest ? here : at;
      least = nearest ? now : least;
    }
    Nearest nearest = {at[0], least[0]};
    for (int64_t i = 1; i < kStep; ++i) {
      const bool is_first = least[i] == nearest.distance && at[i] < nearest.unit;
      if (least[i] < nearest.distance || is_first) nearest = {at[i], least[i]};
    }
    return nearest;
  }
};

void deal(const float* energies, int64_t count, int64_t width, void* scratch, int32_t* units) {
  Deal deal(energies, count, width, scratch, units);
  for (int64_t t = 0; t < count; ++t) deal.start(t);
  for (int64_t t = 0; t < count; ++t) {
    if (units[t] < 0) deal.augment(t);
  }
}

}  // namespace

DMT_DEFINE_KERNELS(AnnealingKernels, annealing_kernels) = {draw, energies, deal};

}  // namespace dmt::cpu
