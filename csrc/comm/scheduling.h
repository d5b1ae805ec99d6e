// What the engine asks of the scheduler, where threads outnumber cores.
//
// gloo has a thread for each group that watches its connections (gloo_tcp_loop). It looks again and again at one as
// long as somebody who posts a message holds its lock (pytorch/gloo#246). A thread that is preempted while it posts
// lets the loops of its peers spin for a time slice, some 3 ms, on the cores on which it could go on.
#pragma once

#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <charconv>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <string>
#include <system_error>

namespace dmt {

// Makes those threads batch threads, which preempt nobody when they wake up, but wait their turn (docs/performance.md
// has what that costs where all cores compute). All of the process's are meant, those of groups that are not ours, too.
inline void keep_gloo_from_preempting() noexcept {
#ifdef SCHED_BATCH
  namespace fs = std::filesystem;
  std::error_code ignored;  // without it things are slower, and right
  const sched_param none{};
  for (fs::directory_iterator thread("/proc/self/task", ignored); thread != fs::directory_iterator();
       thread.increment(ignored)) {
    std::string name;
    std::getline(std::ifstream(thread->path() / "comm"), name);
    if (name != "gloo_tcp_loop") continue;
    const std::string number = thread->path().filename();
    int id = 0;
    std::from_chars(number.data(), number.data() + number.size(), id);
    if (sched_getscheduler(id) == SCHED_OTHER) sched_setscheduler(id, SCHED_BATCH, &none);
  }
#endif
}

// Asks for time slices of 20 ms for this thread, as long as a pass of a step, so that it is seldom preempted while it
// posts; not for the threads and processes that it will make. Linux grants it from 6.12 on; before, it
// has no slice to tell of. (What such a thread makes also begins with nice 0 if its own is negative.)
inline void ask_for_long_slices() noexcept {
#ifdef SYS_sched_setattr
  struct {  // sched_attr of the kernel, as of its first version
    uint32_t size, policy;
    uint64_t flags;
    int32_t nice;
    uint32_t priority;
    uint64_t runtime, deadline, period;  // ns
  } attributes{};
  constexpr uint64_t slice_ns = 20'000'000;
  if (syscall(SYS_sched_getattr, 0, &attributes, sizeof attributes, 0) != 0) return;
  const bool has_slices = attributes.runtime != 0;
  if (attributes.policy != SCHED_OTHER || !has_slices || attributes.runtime >= slice_ns) return;
  constexpr uint64_t reset_on_fork = 1;
  attributes.flags |= reset_on_fork;
  attributes.size = sizeof attributes;
  attributes.runtime = slice_ns;
  syscall(SYS_sched_setattr, 0, &attributes, 0);
#endif
}

}  // namespace dmt
