// A step of simulated annealing over towers of tables (dmt_kernels/planner/annealing.py): which units towers give up,
// what every tower would cost with every unit, and who gets which.
//
// A table has `values`: its numbers of features times its point [dims], its number of features, and its loads [loads];
// towers and units have the sums of their tables'. They lie value by value, [values, width], floats.
#pragma once

#include <cstdint>

#include "isa.h"

namespace dmt::cpu {

// A multiple of all vectors: so many elements lie from one row to the next of what kernels read and write.
constexpr int64_t kAnnealingLanes = 16;

constexpr float kNoFeatures = 0.5f;  // fewer are none, whose squared norm divided by this is 0

// Slots of towers [towers, room], of which each gives up `many`: the first of a random order. With `alike` > 0 those
// come rather early whose `heaviness` is close to that of `heaviness[pivot]`.
struct SlotDraw {
  const int32_t* slots;    // a table, or another element of `heaviness` for none
  const float* heaviness;  // by table
  int64_t towers;
  int64_t room;
  int64_t many;  // 1 or 2, at most `room`
  int64_t pivot;
  float alike;  // 0 or 1
  uint64_t key;
};

struct EnergyTask {
  const float* kept;   // of towers without their units
  const float* units;  // as many, in their order
  int64_t towers;
  int64_t width;
  int64_t dims;
  int64_t loads;
  const float* middles;  // [loads] the middle of a load's limits
  const float* halves;   // [loads] their distance from it
  float price;           // of a unit of load beyond them
  float temperature;
  const float* noise;  // [towers, width]
};

struct AnnealingKernels {
  // drawn [towers, many]: positions of slots in their towers.
  void (*draw)(const SlotDraw& draw, int32_t* drawn);

  // energies [towers, width]: the cost of a tower with a unit, but for squared distances of tables to 0, plus the price
  // of its loads beyond their limits, less temperature times noise. Infinite beyond the units.
  void (*energies)(const EnergyTask& task, float* energies);

  // units [count]: those of the rows, a permutation with the least sum of energies [count, width], all but some
  // infinite ones finite. Shortest augmenting paths (Jonker and Volgenant, 1987). Scratch: deal_scratch(count, width)
  // bytes.
  void (*deal)(const float* energies, int64_t count, int64_t width, void* scratch, int32_t* units);
};

constexpr int64_t deal_scratch(int64_t count, int64_t width) { return 4 * (count * 3 + width * 4); }

DMT_DECLARE_KERNELS(AnnealingKernels, annealing_kernels)

}  // namespace dmt::cpu
