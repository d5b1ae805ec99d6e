// Memory of outputs.
#pragma once

#include <cstdint>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace dmt {

// A large output is fresh memory: in huge pages it costs a 512th of the page faults. A wish: if it fails, so be it.
// `tensor` is torch's of either ABI, on the CPU.
template <class Tensor>
inline void ask_for_huge_pages([[maybe_unused]] const Tensor& tensor) {
#if defined(__linux__)
  constexpr uintptr_t kPage = 2 << 20;
  const uintptr_t start = reinterpret_cast<uintptr_t>(tensor.const_data_ptr());
  const uintptr_t begin = (start + kPage - 1) / kPage * kPage;
  const uintptr_t end = (start + tensor.numel() * tensor.element_size()) / kPage * kPage;
  if (begin + kPage <= end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

}  // namespace dmt
