// dmt_kernels._C: what this build is, and the instruction set in use. No torch in here.
#include <pybind11/pybind11.h>

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

}  // namespace

PYBIND11_MODULE(_C, module) {
  module.doc() = "What this build is, and the CPU instruction set in use.";
  module.def("build_info", &build_info, "Versions and options of this build; an empty string is an option not used.");
  module.def(
      "isa", [] { return dmt::cpu::isa_name(dmt::cpu::isa_in_use()); },
      "The instruction set in use: 'baseline', 'avx2' or 'avx512'. DMT_CPU_ISA forces a lower one.");
}
