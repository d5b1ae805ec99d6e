// One kernel source, one object per instruction set, one choice at load.
//
// A kernel file `stem.cpp` is compiled once per instruction set with DMT_ISA_NAMESPACE set to baseline, avx2 or avx512;
// the few that multiply in bfloat16 (CMakeLists.txt names them) also with avx512bf16.
// It keeps everything in an anonymous namespace except one constant table of function pointers. The linker must never
// be able to pick an AVX-512 copy of a shared inline function for an older CPU, so such an object may define no weak
// symbol: no std:: templates, no inline functions with external linkage.
//
//   stem.h     struct StemKernels { void (*run)(...); };
//              DMT_DECLARE_KERNELS(StemKernels, stem_kernels)       // stem_kernels() gives the table in use
//   stem.cpp   DMT_DEFINE_KERNELS(StemKernels, stem_kernels) = {run};
#pragma once

namespace dmt::cpu {

enum class Isa { baseline, avx2, avx512, avx512bf16 };

#define DMT_EXPORT __attribute__((visibility("default")))  // dmt_kernels._C reports the choice

// The instruction set in use: the best one that the CPU has, or the lower one named by DMT_CPU_ISA. Decided once.
DMT_EXPORT Isa isa_in_use();

DMT_EXPORT const char* isa_name(Isa isa);

}  // namespace dmt::cpu

#if defined(__x86_64__)
#define DMT_DECLARE_OBJECT(isa, Type, name) \
  namespace isa {                           \
  extern const Type name;                   \
  }
#define DMT_DECLARE_KERNELS(Type, name)    \
  DMT_DECLARE_OBJECT(baseline, Type, name) \
  DMT_DECLARE_OBJECT(avx2, Type, name)     \
  DMT_DECLARE_OBJECT(avx512, Type, name)   \
  inline const Type& name() {              \
    switch (isa_in_use()) {                \
      case Isa::baseline:                  \
        return baseline::name;             \
      case Isa::avx2:                      \
        return avx2::name;                 \
      default:                             \
        return avx512::name;               \
    }                                      \
  }
#define DMT_DECLARE_BF16_KERNELS(Type, name) \
  DMT_DECLARE_OBJECT(baseline, Type, name)   \
  DMT_DECLARE_OBJECT(avx2, Type, name)       \
  DMT_DECLARE_OBJECT(avx512, Type, name)     \
  DMT_DECLARE_OBJECT(avx512bf16, Type, name) \
  inline const Type& name() {                \
    switch (isa_in_use()) {                  \
      case Isa::baseline:                    \
        return baseline::name;               \
      case Isa::avx2:                        \
        return avx2::name;                   \
      case Isa::avx512:                      \
        return avx512::name;                 \
      default:                               \
        return avx512bf16::name;             \
    }                                        \
  }
#else
#define DMT_DECLARE_KERNELS(Type, name) \
  namespace baseline {                  \
  extern const Type name;               \
  }                                     \
  inline const Type& name() { return baseline::name; }
#define DMT_DECLARE_BF16_KERNELS(Type, name) DMT_DECLARE_KERNELS(Type, name)
#endif

#define DMT_DEFINE_KERNELS(Type, name) const Type DMT_ISA_NAMESPACE::name
