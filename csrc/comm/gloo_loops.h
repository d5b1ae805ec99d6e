// gloo's threads that watch connections, one for each group.
#pragma once

#include <sched.h>

#include <filesystem>
#include <fstream>
#include <string>
#include <system_error>

namespace dmt {

// Such a thread looks again and again at a connection as long as somebody who posts a message holds its lock
// (pytorch/gloo#246). Where it wakes up on the core of who posts, it takes his place, and neither gets on until its
// time slice is over, some 4 ms. A batch thread preempts nobody when it wakes up; it waits for a core at most as long.
inline void keep_gloo_from_preempting() {
  std::error_code ignored;
  const sched_param none{};
  for (const auto& thread : std::filesystem::directory_iterator("/proc/self/task", ignored)) {
    std::string name;
    std::getline(std::ifstream(thread.path() / "comm"), name);
    if (name != "gloo_tcp_loop") continue;
    const int id = std::stoi(thread.path().filename());
    if (sched_getscheduler(id) == SCHED_OTHER) sched_setscheduler(id, SCHED_BATCH, &none);
  }
}

}  // namespace dmt
