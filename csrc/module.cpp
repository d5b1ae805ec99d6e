// dmt_kernels._C: what this build is, the instruction set in use, and what runs on numpy's arrays. No torch in here.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "kernels/cpu/annealing_plan.h"
#include "kernels/cpu/isa.h"

namespace {

pybind11::dict build_info() {
  pybind11::dict info;
  info["version"] = DMT_VERSION;
  info["torch_version"] = DMT_TORCH_VERSION;
  info["cuda_version"] = DMT_CUDA_VERSION;
  info["communication_engine"] = DMT_COMM_STATE;
  info["compiler"] = DMT_COMPILER;
  info["build_type"] = DMT_BUILD_TYPE;
  info["sanitize"] = DMT_SANITIZE;
  info["instruction_sets"] = DMT_ISAS;
  return info;
}

template <class T>
using Array = pybind11::array_t<T, pybind11::array::c_style | pybind11::array::forcecast>;

template <class T>
void check_shape(const char* name, const Array<T>& array, const std::vector<int64_t>& shape) {
  bool fits = array.ndim() == static_cast<int64_t>(shape.size());
  for (size_t i = 0; fits && i < shape.size(); ++i) fits = array.shape(i) == shape[i];
  if (!fits) throw std::invalid_argument(std::string("anneal: the shape of ") + name + " is another than expected");
}

// Of sums of so many, squares are still floats.
void check_size(const char* name, const Array<double>& array) {
  constexpr double kMost = 1e9;
  const bool fits =
      std::all_of(array.data(), array.data() + array.size(), [](double x) { return std::abs(x) < kMost; });
  if (!fits) throw std::invalid_argument(std::string("anneal: ") + name + " are not all numbers below 1e9");
}

std::pair<Array<int64_t>, double> anneal(const Array<double>& points, const Array<double>& sizes,
                                         const Array<double>& weights, const Array<double>& lows,
                                         const Array<double>& highs, const Array<bool>& allowed,
                                         const Array<int64_t>& places, int64_t steps, double seconds, uint64_t seed) {
  const int64_t tables = points.shape(0);
  const int64_t towers = allowed.shape(1);
  const int64_t loads = weights.shape(0);
  check_shape("points", points, {tables, points.shape(1)});
  check_shape("sizes", sizes, {tables});
  check_shape("weights", weights, {loads, tables});
  check_shape("lows", lows, {loads});
  check_shape("highs", highs, {loads});
  check_shape("allowed", allowed, {tables, towers});
  check_shape("towers", places, {tables});
  if (tables == 0 || loads == 0) throw std::invalid_argument("anneal: there are no tables or no loads");
  for (int64_t n = 0; n < tables; ++n) {
    const int64_t t = places.data()[n];
    const bool is_allowed = 0 <= t && t < towers && allowed.data()[n * towers + t];
    if (!is_allowed) throw std::invalid_argument("anneal: table " + std::to_string(n) + " is where it may not be");
  }
  check_size("points", points);
  check_size("sizes", sizes);
  check_size("weights", weights);
  Array<int64_t> found(tables);
  std::copy_n(places.data(), tables, found.mutable_data());
  const auto* may = reinterpret_cast<const uint8_t*>(allowed.data());
  const dmt::cpu::AnnealingProblem problem = {tables,        towers,       points.shape(1), loads,
                                              points.data(), sizes.data(), weights.data(),  lows.data(),
                                              highs.data(),  may};
  int64_t* result = found.mutable_data();
  double cost = 0;
  {
    const pybind11::gil_scoped_release others_may_run;
    cost = dmt::cpu::anneal(problem, {steps, seconds, seed}, result);
  }
  return {std::move(found), cost};
}

}  // namespace

PYBIND11_MODULE(_C, module) {
  module.doc() = "What this build is, the CPU instruction set in use, and the planner's annealing.";
  module.def("build_info", &build_info, "Versions and options of this build; an empty string is an option not used.");
  module.def(
      "isa", [] { return dmt::cpu::isa_name(dmt::cpu::isa_in_use()); },
      "The instruction set in use: 'baseline', 'avx2', 'avx512' or 'avx512bf16'. DMT_CPU_ISA forces a lower one.");
  module.def("anneal", &anneal, "Towers [N] and their cost, as dmt_kernels.planner.annealing says.",
             pybind11::arg("points"), pybind11::arg("sizes"), pybind11::arg("weights"), pybind11::arg("lows"),
             pybind11::arg("highs"), pybind11::arg("allowed"), pybind11::arg("towers"), pybind11::kw_only(),
             pybind11::arg("steps"), pybind11::arg("seconds"), pybind11::arg("seed"));
}
