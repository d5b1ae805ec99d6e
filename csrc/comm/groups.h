// What the engine knows of process groups.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <utility>
#include <vector>

#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>

#include "comm/neighbours.h"

namespace dmt {

using Group = c10::intrusive_ptr<c10d::ProcessGroup>;
using WeakGroup = c10::weak_intrusive_ptr<c10d::ProcessGroup>;

// What is known of process groups, as long as they live; a later group of the same name is another one.
class Groups {
 public:
  // Whoever sends and receives in the same group on his own counts from 0.
  static constexpr uint32_t FIRST_TAG = 0x20000000;

  struct Turn {
    int tag = 0;  // of a stage's messages
    bool is_first = false;
    std::shared_ptr<const Neighbours> neighbours = std::make_shared<const Neighbours>();
  };

  // Ranks expect the stages of a group in the same order, so that they count alike.
  Turn next_turn(const Group& group) {
    std::vector<State> dead;  // before the lock, to end after it: what is freed may want Python's lock
    const std::lock_guard<std::mutex> lock(mutex_);
    State& state = state_of(group, dead);
    const uint32_t number = state.started++;
    return {static_cast<int>(FIRST_TAG | (number & (FIRST_TAG - 1))), number == 0, state.neighbours};
  }

  void introduce(const Group& group, std::shared_ptr<const Neighbours> neighbours) {
    std::vector<State> dead;
    const std::lock_guard<std::mutex> lock(mutex_);
    state_of(group, dead).neighbours = std::move(neighbours);
  }

  // Keeps what the group's backend may still read or write until the group is gone and another one has come, or at
  // least until it is gone.
  void keep(const Group& group, std::shared_ptr<void> buffers) {
    std::vector<State> dead;
    const std::lock_guard<std::mutex> lock(mutex_);
    state_of(group, dead).kept.push_back(std::move(buffers));
  }

 private:
  struct State {
    uint32_t started = 0;
    std::vector<std::shared_ptr<void>> kept;
    std::shared_ptr<const Neighbours> neighbours = std::make_shared<Neighbours>();
  };

  State& state_of(const Group& group, std::vector<State>& dead) {
    const auto [place, is_new] = states_.try_emplace(WeakGroup(group));
    for (auto other = states_.begin(); is_new && other != states_.end();) {
      if (other->first.expired()) {
        dead.push_back(std::move(other->second));
        other = states_.erase(other);
      } else {
        ++other;
      }
    }
    return place->second;
  }

  std::mutex mutex_;
  std::unordered_map<WeakGroup, State> states_;
};

inline Groups& groups() {
  static Groups& all = *new Groups;  // what it keeps cannot be freed when the process ends
  return all;
}

}  // namespace dmt
