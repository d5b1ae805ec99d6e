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

// The instruction set in use: the best one of the CPU and of this build, or the lower one named by DMT_CPU_ISA. Decided
// once.
DMT_EXPORT Isa isa_in_use();

DMT_EXPORT const char* isa_name(Isa isa);

}  // namespace dmt::cpu

// X(isa, ...) for every instruction set that kernels are compiled for, in the order of Isa. A build ends at number
// DMT_BEST_ISA of them.
#define DMT_ISAS_0(X, ...) X(baseline, __VA_ARGS__)
#define DMT_ISAS_1(X, ...) DMT_ISAS_0(X, __VA_ARGS__) X(avx2, __VA_ARGS__)
#define DMT_ISAS_2(X, ...) DMT_ISAS_1(X, __VA_ARGS__) X(avx512, __VA_ARGS__)
#define DMT_ISAS_3(X, ...) DMT_ISAS_2(X, __VA_ARGS__) X(avx512bf16, __VA_ARGS__)
#if !defined(DMT_BEST_ISA)
#error "DMT_BEST_ISA is missing: it is the build's, in CMakeLists.txt"
#elif DMT_BEST_ISA == 0
#define DMT_FOR_ISAS DMT_ISAS_0
#elif DMT_BEST_ISA == 1
#define DMT_FOR_ISAS DMT_ISAS_1
#else
#define DMT_FOR_ISAS DMT_ISAS_2
#endif
#if DMT_BEST_ISA == 3
#define DMT_FOR_BF16_ISAS DMT_ISAS_3
#else
#define DMT_FOR_BF16_ISAS DMT_FOR_ISAS
#endif

#define DMT_DECLARE_COPY(isa, Type, name) \
  namespace isa {                         \
  extern const Type name;                 \
  }
#define DMT_ADDRESS_OF_COPY(isa, name) &isa::name,

#define DMT_DECLARE_COPIES(FOR_ISAS, Type, name)                                    \
  FOR_ISAS(DMT_DECLARE_COPY, Type, name)                                            \
  inline const Type& name() {                                                       \
    static constexpr const Type* kCopies[] = {FOR_ISAS(DMT_ADDRESS_OF_COPY, name)}; \
    constexpr int kBest = sizeof(kCopies) / sizeof(kCopies[0]) - 1;                 \
    const int isa = static_cast<int>(isa_in_use());                                 \
    return *kCopies[isa < kBest ? isa : kBest];                                     \
  }
#define DMT_DECLARE_KERNELS(Type, name) DMT_DECLARE_COPIES(DMT_FOR_ISAS, Type, name)
#define DMT_DECLARE_BF16_KERNELS(Type, name) DMT_DECLARE_COPIES(DMT_FOR_BF16_ISAS, Type, name)

#define DMT_DEFINE_KERNELS(Type, name) const Type DMT_ISA_NAMESPACE::name
