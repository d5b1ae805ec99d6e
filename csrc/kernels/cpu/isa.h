// One kernel source, one object per instruction set, one choice at load.
//
// A kernel file `stem.cpp` is compiled once per instruction set with DMT_ISA_NAMESPACE set to baseline, avx2 or avx512.
// It keeps everything in an anonymous namespace except one constant table of function pointers. The linker must never
// be able to pick an AVX-512 copy of a shared inline function for an older CPU, so such an object may define no weak
// symbol: no std:: templates, no inline functions with external linkage.
//
//   stem.h     struct StemKernels { void (*run)(...); };
//              DMT_DECLARE_KERNELS(StemKernels, stem_kernels)       // stem_kernels() gives the table in use
//   stem.cpp   DMT_DEFINE_KERNELS(StemKernels, stem_kernels) = {run};
#pragma once

namespace dmt::cpu {

enum class Isa { baseline, avx2, avx512 };

#define DMT_EXPORT __attribute__((visibility("default")))  // dmt_kernels._C reports the choice

// The instruction set in use: the best one that the CPU has, or the lower one named by DMT_CPU_ISA. Decided once.
DMT_EXPORT Isa isa_in_use();

DMT_EXPORT const char* isa_name(Isa isa);

}  // namespace dmt::cpu

#if defined(__x86_64__)
#define DMT_DECLARE_KERNELS(Type, name)                                                        \
  namespace baseline {                                                                         \
  extern const Type name;                                                                      \
  }                                                                                            \
  namespace avx2 {                                                                             \
  extern const Type name;                                                                      \
  }                                                                                            \
  namespace avx512 {                                                                           \
  extern const Type name;                                                                      \
  }                                                                                            \
  inline const Type& name() {                                                                  \
    const Isa isa = isa_in_use();                                                              \
    return isa == Isa::avx512 ? avx512::name : isa == Isa::avx2 ? avx2::name : baseline::name; \
  }
#else
#define DMT_DECLARE_KERNELS(Type, name) \
  namespace baseline {                  \
  extern const Type name;               \
  }                                     \
  inline const Type& name() { return baseline::name; }
#endif

#define DMT_DEFINE_KERNELS(Type, name) const Type DMT_ISA_NAMESPACE::name
