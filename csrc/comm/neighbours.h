// Which ranks of a group can share memory with this one, and the mailboxes between them.
#pragma once

#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>

#include <sys/stat.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <fstream>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "comm/mailbox.h"

namespace dmt {

struct Neighbour {
  std::unique_ptr<Outbox> outbox;
  std::unique_ptr<Inbox> inbox;
};

// A message that a neighbour sends, or has sent. It is taken, or forgotten.
class Delivery {
 public:
  Delivery(std::shared_ptr<Neighbour> from, uint32_t tag) : from_(std::move(from)), tag_(tag) {}
  Delivery(Delivery&&) = default;
  ~Delivery() {
    if (from_ == nullptr) return;
    try {
      from_->inbox->forget(tag_);
    } catch (const std::exception&) {  // no memory for a note; then its place stays taken
    }
  }

  void take(const at::Tensor& to, const Patience& patience, void (*look_up)()) {
    if (from_ == nullptr) return;
    from_->inbox->take(to.mutable_data_ptr(), to.nbytes(), tag_, patience, look_up);
    from_ = nullptr;
  }

 private:
  std::shared_ptr<Neighbour> from_;
  uint32_t tag_;
};

class Neighbours {
 public:
  Neighbours() = default;  // nobody

  // Collective. Ranks are neighbours if both are willing and can open each other's files.
  Neighbours(c10d::ProcessGroup& group, bool is_willing) {
    if (group.getBackend(c10::DeviceType::CPU)->getBackendName() != "gloo") return;  // others have ways of their own
    const int ranks = group.getSize(), rank = group.getRank();
    of_rank_.resize(ranks);
    const Identity self = is_willing ? identify() : Identity{};
    const auto places = ask_all(group, self.place);
    std::vector<int64_t> offers(ranks, -1);
    for (int peer = 0; peer < ranks; ++peer) {
      if (peer == rank || self.place[0] == 0 || places[peer] != self.place) continue;
      try {
        of_rank_[peer] = std::make_shared<Neighbour>(Neighbour{std::make_unique<Outbox>(self.nonce), nullptr});
        offers[peer] = of_rank_[peer]->outbox->file();
      } catch (const std::exception&) {  // such as too many open files
      }
    }

    offers.insert(offers.end(), {getpid(), self.nonce});
    const auto all_offers = ask_all(group, offers);
    std::vector<int64_t> opened(ranks);
    for (int peer = 0; peer < ranks; ++peer) {
      const std::vector<int64_t>& offer = all_offers[peer];
      if (of_rank_[peer] == nullptr || offer[rank] < 0) continue;
      try {
        of_rank_[peer]->inbox =
            Inbox::open(static_cast<pid_t>(offer[ranks]), static_cast<int>(offer[rank]), offer[ranks + 1]);
      } catch (const std::exception&) {
      }
      opened[peer] = of_rank_[peer]->inbox != nullptr;
    }

    const auto all_opened = ask_all(group, opened);
    for (int peer = 0; peer < ranks; ++peer) {
      if (opened[peer] == 0 || all_opened[peer][rank] == 0) of_rank_[peer] = nullptr;
      if (of_rank_[peer] != nullptr) of_rank_[peer]->outbox->close_file();
    }
  }

  std::vector<int> ranks() const {
    std::vector<int> all;
    for (int rank = 0; rank < static_cast<int>(of_rank_.size()); ++rank) {
      if (has(rank)) all.push_back(rank);
    }
    return all;
  }

  bool has(int rank) const { return !of_rank_.empty() && of_rank_[rank] != nullptr; }

  void send(int rank, const at::Tensor& message, uint32_t tag) const {
    of_rank_[rank]->outbox->put(message.const_data_ptr(), message.nbytes(), tag);
  }

  Delivery expect(int rank, uint32_t tag) const {
    of_rank_[rank]->inbox->expect(tag);
    return Delivery(of_rank_[rank], tag);
  }

 private:
  struct Identity {
    std::vector<int64_t> place = std::vector<int64_t>(4);
    int64_t nonce = 0;
  };

  // A place is what processes have in common that see each other in /proc, and their network: hosts that differ in that
  // alone (containers, emulated hosts) are meant to be hosts. Zeros if it cannot be known.
  static Identity identify() {
    std::string boot;
    std::getline(std::ifstream("/proc/sys/kernel/random/boot_id"), boot);
    boot.erase(std::remove(boot.begin(), boot.end(), '-'), boot.end());
    struct stat processes{}, network{};
    if (boot.size() != 32 || stat("/proc/self/ns/pid", &processes) != 0 || stat("/proc/self/ns/net", &network) != 0) {
      return {};
    }
    const auto half = [&](int from) { return static_cast<int64_t>(std::stoull(boot.substr(from, 16), nullptr, 16)); };
    try {
      std::random_device random;
      return {{half(0), half(16), static_cast<int64_t>(processes.st_ino), static_cast<int64_t>(network.st_ino)},
              static_cast<int64_t>(random()) << 32 | random()};
    } catch (const std::exception&) {  // no number, or no randomness
      return {};
    }
  }

  // What every rank says; all say as many numbers.
  static std::vector<std::vector<int64_t>> ask_all(c10d::ProcessGroup& group, std::vector<int64_t> mine) {
    const auto size = static_cast<int64_t>(mine.size());
    std::vector<at::Tensor> said = {at::from_blob(mine.data(), {size}, at::kLong)};
    std::vector<std::vector<at::Tensor>> heard(1);
    for (int rank = 0; rank < group.getSize(); ++rank) heard[0].push_back(at::empty({size}, at::kLong));
    group.allgather(heard, said)->wait();
    std::vector<std::vector<int64_t>> all;
    for (const at::Tensor& one : heard[0]) {
      all.emplace_back(one.const_data_ptr<int64_t>(), one.const_data_ptr<int64_t>() + size);
    }
    return all;
  }

  std::vector<std::shared_ptr<Neighbour>> of_rank_;
};

}  // namespace dmt
