// The threads of the caller, handed down to the kernels: they start none of their own, so a process never holds two
// OpenMP runtimes.
#pragma once

#include <cstdint>

namespace dmt::cpu {

struct ParallelFor {
  using Body = void (*)(int64_t begin, int64_t end, void* context);

  // Calls body(begin', end', context) on disjoint pieces that cover [begin, end), none smaller than `grain` unless it
  // is the last; returns when all are done. A body must not throw.
  void (*run)(int64_t begin, int64_t end, int64_t grain, Body body, void* context);

  // How many pieces run at once. Results must never depend on it.
  int64_t num_threads;
};

namespace {  // internal linkage: this is compiled into objects of several instruction sets

template <class Function>
void parallel_for(const ParallelFor& threads, int64_t begin, int64_t end, int64_t grain, const Function& function) {
  threads.run(
      begin, end, grain,
      [](int64_t piece_begin, int64_t piece_end, void* context) {
        (*static_cast<const Function*>(context))(piece_begin, piece_end);
      },
      const_cast<void*>(static_cast<const void*>(&function)));
}

}  // namespace
}  // namespace dmt::cpu
