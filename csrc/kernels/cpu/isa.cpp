#include "isa.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <initializer_list>

namespace dmt::cpu {
namespace {

// Of this CPU.
Isa best_isa() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c") &&
                    __builtin_cpu_supports("bmi2");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (avx512 && __builtin_cpu_supports("avx512bf16")) return Isa::avx512bf16;
  if (avx512) return Isa::avx512;
  if (avx2) return Isa::avx2;
#endif
  return Isa::baseline;
}

// A name that the CPU cannot run, or that does not exist, leaves the choice as it is: a program that asks for too much
// must not die of an illegal instruction.
Isa choose_isa() {
  const Isa best = std::min(best_isa(), static_cast<Isa>(DMT_BEST_ISA));
  const char* wanted = std::getenv("DMT_CPU_ISA");
  if (wanted == nullptr || *wanted == '\0') return best;
  for (const Isa isa : {Isa::baseline, Isa::avx2, Isa::avx512, Isa::avx512bf16}) {
    if (isa <= best && std::strcmp(wanted, isa_name(isa)) == 0) return isa;
  }
  std::fprintf(stderr,
               "dmt_kernels: DMT_CPU_ISA=%s is none of the instruction sets that this CPU runs and this build has; "
               "using %s\n",
               wanted, isa_name(best));
  return best;
}

}  // namespace

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::avx512bf16:
      return "avx512bf16";
    case Isa::avx512:
      return "avx512";
    case Isa::avx2:
      return "avx2";
    default:
      return "baseline";
  }
}

Isa isa_in_use() {
  static const Isa isa = choose_isa();
  return isa;
}

}  // namespace dmt::cpu
