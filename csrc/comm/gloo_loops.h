// gloo's threads that watch connections, one for each group.
#pragma once

#include <sched.h>

#include <charconv>
#include <filesystem>
#include <fstream>
#include <string>
#include <system_error>

namespace dmt {

// Such a thread looks again and again at a connection as long as somebody who posts a message holds its lock
// (pytorch/gloo#246). Where it wakes up on the core of who posts, it takes his place, and neither gets on until its
// time slice is over, some 4 ms. A batch thread preempts nobody when it wakes up; it waits its turn
// (docs/performance.md has what that costs where all cores compute). All of the process's are meant, those of groups
// that are not ours, too.
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

}  // namespace dmt
