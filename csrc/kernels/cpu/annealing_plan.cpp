#include "annealing_plan.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <tuple>
#include <vector>

#include "../random_rounding.h"

namespace dmt::cpu {
namespace {

constexpr double kWarm = 0.9;    // temperature to begin with, in mean costs of a feature; 0 at the end
constexpr double kPrice = 45.0;  // of a mean table's load outside a limit, in mean costs of a feature, to begin with
constexpr double kTwo = 0.3;     // of the steps deal out two tables of a tower, not one
constexpr double kAlike = 0.6;   // of the steps deal out tables that are about as heavy
constexpr double kLight = 1e-3;  // of a mean table's load: differences of lighter ones hardly count
constexpr int64_t kSpare = 2;    // empty slots of the fullest tower, so that tables can move alone
constexpr double kGrace = 0.1;   // of the time, before the clock counts
constexpr int64_t kLook = 20;    // steps from one look at the whole to the next
constexpr int64_t kNoise = 1 << 18;  // random numbers, drawn once: a step reads them from a random place on

class Annealing {
 public:
  Annealing(const AnnealingProblem& problem, uint64_t seed, const int64_t* places)
      : problem_(problem),
        kernels_(annealing_kernels()),
        key_(mix_bits(seed)),
        towers_(problem.towers),
        values_(problem.dims + 1 + problem.loads),
        width_((towers_ + kAnnealingLanes - 1) / kAnnealingLanes * kAnnealingLanes),
        pinned_(
            !std::all_of(problem.allowed, problem.allowed + problem.tables * towers_, [](auto may) { return may; })),
        table_values_((problem.tables + 1) * values_),
        sums_(towers_ * values_),
        kept_(width_ * values_),
        unit_values_(width_ * values_),
        energies_(width_ * towers_),
        scratch_(deal_scratch(towers_, width_)),
        drawn_(2 * towers_),
        units_(towers_) {
    for (int64_t k = 0; k < problem.loads; ++k) {
      middles_.push_back(static_cast<float>((problem.lows[k] + problem.highs[k]) / 2));
      halves_.push_back(static_cast<float>((problem.highs[k] - problem.lows[k]) / 2));
    }
    read_tables();
    fill_slots(places);
    draw_noise();
  }

  double run(const AnnealingSchedule& schedule, int64_t* places) {
    using Clock = std::chrono::steady_clock;
    const auto began = Clock::now();
    double least = cost();
    std::vector<int32_t> best = slots_;
    double passed = 0;
    for (int64_t step = 0; passed < 1 && least > 0;) {
      for (int64_t i = 0; i < kLook && step < schedule.steps; ++i) {
        const double by_steps = static_cast<double>(step) / static_cast<double>(schedule.steps);
        take(step++, std::max(by_steps, passed), least);
      }
      const std::chrono::duration<double> spent = Clock::now() - began;
      const double late = spent.count() - schedule.seconds * kGrace;
      passed = std::max(static_cast<double>(step) / static_cast<double>(schedule.steps),
                        late / (schedule.seconds * (1 - kGrace)));
      const double now = cost();
      if (now < least && keeps_limits()) least = now, best = slots_;
    }
    for (int64_t s = 0; s < towers_ * room_; ++s) {
      if (best[s] < problem_.tables) places[best[s]] = s / room_;
    }
    return least;
  }

 private:
  // Values of tables, and of an empty slot behind them: zeros. Points count from their mean: far from 0, what they cost
  // would drown in the rounding of squares.
  void read_tables() {
    const auto [tables, dims, loads] = std::tuple(problem_.tables, problem_.dims, problem_.loads);
    std::vector<double> mean(dims);
    for (int64_t n = 0; n < tables; ++n) {
      features_ += problem_.sizes[n];
      for (int64_t d = 0; d < dims; ++d) mean[d] += problem_.points[n * dims + d] * problem_.sizes[n];
    }
    for (double& x : mean) x /= std::max(features_, double{kNoFeatures});
    for (int64_t n = 0; n < tables; ++n) {
      double* values = &table_values_[n * values_];
      for (int64_t d = 0; d < dims; ++d) {
        const double x = problem_.points[n * dims + d] - mean[d];
        values[d] = x * problem_.sizes[n];
        spread_ += x * x * problem_.sizes[n];
      }
      values[dims] = problem_.sizes[n];
      for (int64_t k = 0; k < loads; ++k) values[dims + 1 + k] = problem_.weights[k * tables + n];
    }
    heaviness_.resize(loads * (tables + 1));
    const double light = kLight * static_cast<double>(towers_) / static_cast<double>(tables);
    for (int64_t k = 0; k < loads; ++k) {
      for (int64_t n = 0; n <= tables; ++n) {
        const double weight = table_values_[n * values_ + dims + 1 + k];
        heaviness_[k * (tables + 1) + n] = static_cast<float>(std::log(weight + light));
      }
    }
  }

  void fill_slots(const int64_t* places) {
    std::vector<int64_t> filled(towers_);
    for (int64_t n = 0; n < problem_.tables; ++n) filled[places[n]] += 1;
    room_ = *std::max_element(filled.begin(), filled.end()) + kSpare;
    slots_.assign(towers_ * room_, static_cast<int32_t>(problem_.tables));
    std::fill(filled.begin(), filled.end(), 0);
    for (int64_t n = 0; n < problem_.tables; ++n) {
      const int64_t t = places[n];
      slots_[t * room_ + filled[t]++] = static_cast<int32_t>(n);
      add(1, n, &sums_[t * values_]);
    }
  }

  // By Gumbel's distribution: the least of energies less such noise is one drawn by Boltzmann's.
  void draw_noise() {
    noise_.resize(kNoise + towers_ * width_);
    for (size_t i = 0; i < noise_.size(); ++i) {
      noise_[i] = static_cast<float>(-std::log(-std::log(uniform(~uint64_t{0}, i))));
    }
  }

  // A number in (0, 1), the same for the same step and index.
  double uniform(uint64_t step, uint64_t index) const {
    return (static_cast<double>(mix_bits(row_key(mix_bits(key_ + step), index)) >> 12) + 0.5) * 0x1.0p-52;
  }
  int64_t below(int64_t end, uint64_t step, uint64_t index) const {
    return static_cast<int64_t>(uniform(step, index) * static_cast<double>(end));
  }

  void add(double sign, int64_t table, double* sums) const {
    for (int64_t v = 0; v < values_; ++v) sums[v] += sign * table_values_[table * values_ + v];
  }

  // A step, when a part of them has passed.
  void take(int64_t step, double passed, double least) {
    const auto s = static_cast<uint64_t>(step);
    const int64_t tables = problem_.tables;
    const int64_t many = uniform(s, 0) < kTwo ? 2 : 1;
    const float alike = uniform(s, 1) < kAlike ? 1 : 0;
    const float* heaviness = &heaviness_[below(problem_.loads, s, 2) * (tables + 1)];
    const SlotDraw draw = {slots_.data(), heaviness,           towers_, room_,
                           many,          below(tables, s, 3), alike,   mix_bits(key_ ^ mix_bits(s))};
    kernels_.draw(draw, drawn_.data());
    give_up(many);

    const double unit = least / features_;                                                 // a mean cost of a feature
    const double mean_table = static_cast<double>(tables) / static_cast<double>(towers_);  // ... of them weigh 1
    const double price = unit * kPrice * mean_table / std::max(1 - passed, 1e-3);
    const EnergyTask task = {kept_.data(),
                             unit_values_.data(),
                             towers_,
                             width_,
                             problem_.dims,
                             problem_.loads,
                             middles_.data(),
                             halves_.data(),
                             static_cast<float>(price),
                             static_cast<float>(unit * kWarm * (1 - passed)),
                             &noise_[below(kNoise, s, 4)]};
    kernels_.energies(task, energies_.data());
    if (pinned_) forbid(many);
    kernels_.deal(energies_.data(), towers_, width_, scratch_.data(), units_.data());
    take_over(many);
  }

  int32_t& slot(int64_t t, int64_t i, int64_t many) { return slots_[t * room_ + drawn_[t * many + i]]; }

  // Towers lose their units, which lie in `units_of_` afterwards.
  void give_up(int64_t many) {
    units_of_.resize(towers_ * many);
    for (int64_t t = 0; t < towers_; ++t) {
      for (int64_t v = 0; v < values_; ++v) unit_values_[v * width_ + t] = 0;
      for (int64_t i = 0; i < many; ++i) {
        const int32_t table = slot(t, i, many);
        units_of_[t * many + i] = table;
        add(-1, table, &sums_[t * values_]);
        for (int64_t v = 0; v < values_; ++v) {
          unit_values_[v * width_ + t] += static_cast<float>(table_values_[table * values_ + v]);
        }
      }
      for (int64_t v = 0; v < values_; ++v) kept_[v * width_ + t] = static_cast<float>(sums_[t * values_ + v]);
    }
  }

  void forbid(int64_t many) {
    for (int64_t t = 0; t < towers_; ++t) {
      for (int64_t j = 0; j < towers_ * many; ++j) {
        const int64_t table = units_of_[j];
        const bool may = table == problem_.tables || problem_.allowed[table * towers_ + t];
        if (!may) energies_[t * width_ + j / many] = HUGE_VALF;
      }
    }
  }

  void take_over(int64_t many) {
    for (int64_t t = 0; t < towers_; ++t) {
      for (int64_t i = 0; i < many; ++i) {
        const int32_t table = units_of_[units_[t] * many + i];
        slot(t, i, many) = table;
        add(1, table, &sums_[t * values_]);
      }
    }
  }

  double cost() const {
    double closeness = 0;
    for (int64_t t = 0; t < towers_; ++t) {
      const double* sums = &sums_[t * values_];
      double squares = 0;
      for (int64_t d = 0; d < problem_.dims; ++d) squares += sums[d] * sums[d];
      closeness += squares / std::max(sums[problem_.dims], double{kNoFeatures});
    }
    return spread_ - closeness;
  }

  bool keeps_limits() const {
    for (int64_t t = 0; t < towers_; ++t) {
      const double* loads = &sums_[t * values_ + problem_.dims + 1];
      for (int64_t k = 0; k < problem_.loads; ++k) {
        if (loads[k] < problem_.lows[k] || loads[k] > problem_.highs[k]) return false;
      }
    }
    return true;
  }

  const AnnealingProblem& problem_;
  const AnnealingKernels& kernels_;
  const uint64_t key_;
  const int64_t towers_;
  const int64_t values_;  // of a table: annealing.h
  const int64_t width_;
  const bool pinned_;
  double spread_ = 0;  // of all tables around 0
  double features_ = 0;
  int64_t room_ = 0;
  std::vector<double> table_values_;  // [tables + 1, values]
  std::vector<double> sums_;          // [towers, values]
  std::vector<float> kept_;           // [values, width], and the next
  std::vector<float> unit_values_;
  std::vector<float> energies_;  // [towers, width]
  std::vector<char> scratch_;
  std::vector<float> heaviness_;  // [loads, tables + 1] logarithms of weights
  std::vector<float> middles_;
  std::vector<float> halves_;
  std::vector<float> noise_;
  std::vector<int32_t> slots_;     // [towers, room]
  std::vector<int32_t> drawn_;     // [towers, many] slots given up
  std::vector<int32_t> units_of_;  // [towers, many] and what was in them
  std::vector<int32_t> units_;     // [towers] whose unit a tower gets
};

}  // namespace

double anneal(const AnnealingProblem& problem, const AnnealingSchedule& schedule, int64_t* places) {
  return Annealing(problem, schedule.seed, places).run(schedule, places);
}

}  // namespace dmt::cpu
