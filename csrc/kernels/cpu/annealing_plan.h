// Simulated annealing over towers of tables: dmt_kernels/planner/annealing.py says what a step is, annealing.h what it
// is made of.
#pragma once

#include <cstdint>

#include "annealing.h"

namespace dmt::cpu {

// Loads are in parts of a mean tower's. Energies are floats: points, sizes and weights may not be so large that squares
// of their sums are not. Borrowed.
struct AnnealingProblem {
  int64_t tables;
  int64_t towers;
  int64_t dims;
  int64_t loads;
  const double* points;    // [tables, dims]
  const double* sizes;     // [tables] numbers of features
  const double* weights;   // [loads, tables]
  const double* lows;      // [loads] limits of towers
  const double* highs;     // [loads]
  const uint8_t* allowed;  // [tables, towers]
};

struct AnnealingSchedule {
  int64_t steps;
  double seconds;  // the temperature falls by the clock where steps take longer than that
  uint64_t seed;
};

// places [tables]: the tower of every table, which keeps limits and is allowed; becomes the best seen that does.
// Returns what it costs: the sum over features of the squared distance to their tower's mean.
DMT_EXPORT double anneal(const AnnealingProblem& problem, const AnnealingSchedule& schedule, int64_t* places);

}  // namespace dmt::cpu
