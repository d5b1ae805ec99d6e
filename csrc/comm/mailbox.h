// Messages from one process to another of the same host, through memory that both map.
//
// The memory is a file without a place (memfd) that the sender makes and the receiver opens in /proc: slots that say
// where messages lie, then the messages. To send is to copy a message in and never waits; the file grows to what is
// under way at one time. To receive is to copy it out.
#pragma once

#include <fcntl.h>
#include <linux/futex.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <climits>
#include <cstdint>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "comm/system.h"

namespace dmt {

// The beginning of the file.
struct Slots {
  static constexpr uint32_t COUNT = 1024;           // messages that are under way, at most
  static constexpr size_t BYTES = 1 << 15;          // of the file, before messages
  static constexpr size_t MESSAGE_BYTES = 1 << 16;  // behind them, at first

  struct Slot {
    uint64_t offset;  // among messages
    uint64_t bytes;
    uint32_t tag;
    std::atomic<uint32_t> is_full;  // until the message has been received
  };

  uint64_t nonce;                          // of the sender
  alignas(64) std::atomic<uint32_t> sent;  // messages so far, on which the receiver sleeps
  alignas(64) Slot slots[COUNT];

  static Slots& in(const Mapping& memory) { return *reinterpret_cast<Slots*>(memory.data()); }
  Slot& of(uint32_t message) { return slots[message % COUNT]; }
};
static_assert(sizeof(Slots) <= Slots::BYTES && std::atomic<uint32_t>::is_always_lock_free);

// Where the sender puts messages.
class Outbox {
 public:
  static constexpr const char* FILE_NAME = "dmt_kernels";

  explicit Outbox(uint64_t nonce)
      : file_(memfd_create(FILE_NAME, MFD_CLOEXEC)),
        slots_memory_(sized(Slots::BYTES + Slots::MESSAGE_BYTES), 0, Slots::BYTES),
        messages_(file_.number(), Slots::BYTES, Slots::MESSAGE_BYTES) {
    slots_.nonce = nonce;
  }

  int file() const { return file_.number(); }

  void put(const void* data, size_t bytes, uint32_t tag) {
    const std::lock_guard<std::mutex> lock(mutex_);
    forget_received();
    const uint32_t number = slots_.sent.load(std::memory_order_relaxed);
    Slots::Slot& slot = slots_.of(number);
    if (slot.is_full.load(std::memory_order_acquire) != 0) {
      throw std::runtime_error(std::to_string(Slots::COUNT) + " messages through shared memory are under way already");
    }
    const size_t offset = place(bytes);
    std::memcpy(messages_.data() + offset, data, bytes);
    ends_.emplace(offset, offset + bytes);
    under_way_.emplace_back(number, offset);
    slot.offset = offset;
    slot.bytes = bytes;
    slot.tag = tag;
    slot.is_full.store(1, std::memory_order_relaxed);
    slots_.sent.store(number + 1, std::memory_order_release);
    syscall(SYS_futex, &slots_.sent, FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0);
  }

 private:
  void forget_received() {
    const auto is_received = [this](const std::pair<uint32_t, size_t>& message) {
      const auto& [number, offset] = message;
      if (slots_.of(number).is_full.load(std::memory_order_acquire) != 0) return false;
      ends_.erase(offset);
      return true;
    };
    under_way_.erase(std::remove_if(under_way_.begin(), under_way_.end(), is_received), under_way_.end());
  }

  // The first gap, since caches know it best.
  size_t place(size_t bytes) {
    constexpr size_t line = 64;
    size_t begin = 0;
    for (const auto& [offset, end] : ends_) {
      if (begin + bytes <= offset) break;
      begin = (end + line - 1) / line * line;
    }
    if (begin + bytes > messages_.size()) {
      const size_t size = std::max(begin + bytes, 2 * messages_.size());
      sized(Slots::BYTES + size);
      messages_.grow_to(size);
    }
    return begin;
  }

  int sized(size_t size) const {
    if (ftruncate(file_.number(), static_cast<off_t>(size)) != 0) {
      throw std::system_error(errno, std::generic_category(), "a file in memory");
    }
    return file_.number();
  }

  std::mutex mutex_;
  File file_;
  Mapping slots_memory_;
  Slots& slots_ = Slots::in(slots_memory_);
  Mapping messages_;
  std::map<size_t, size_t> ends_;                       // by where messages begin that are under way
  std::vector<std::pair<uint32_t, size_t>> under_way_;  // their numbers, and where they begin
};

// Where the receiver takes them from.
class Inbox {
 public:
  // Nothing if this process cannot open the file, or it is another one.
  static std::unique_ptr<Inbox> open(pid_t sender, int file, uint64_t nonce) {
    const std::string path = "/proc/" + std::to_string(sender) + "/fd/" + std::to_string(file);
    const std::string wanted = std::string("/memfd:") + Outbox::FILE_NAME;
    char target[64] = {};
    if (readlink(path.c_str(), target, sizeof target - 1) < 0 || std::string(target).rfind(wanted, 0) != 0) {
      return nullptr;  // to open somebody's device might do something
    }
    const File here(::open(path.c_str(), O_RDWR | O_CLOEXEC));
    if (!here) return nullptr;
    std::unique_ptr<Inbox> inbox(new Inbox(sender, here.number()));
    return inbox->sender_ && inbox->slots_.nonce == nonce ? std::move(inbox) : nullptr;
  }

  // Messages may be taken in another order than they were put.
  void take(void* data, size_t bytes, uint32_t tag, std::chrono::milliseconds timeout) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto deadline = std::chrono::steady_clock::now() + timeout;
    for (uint32_t number = first_;; ++number) {
      while (has_all_before(number)) sleep(number, deadline, timeout);
      Slots::Slot& slot = slots_.of(number);
      if (slot.is_full.load(std::memory_order_relaxed) == 0 || slot.tag != tag) continue;
      if (slot.bytes != bytes) {
        throw std::runtime_error("a message of " + std::to_string(slot.bytes) + " bytes came where one of " +
                                 std::to_string(bytes) + " was expected");
      }
      messages_.grow_to(slot.offset + bytes);
      std::memcpy(data, messages_.data() + slot.offset, bytes);
      slot.is_full.store(0, std::memory_order_release);
      break;
    }
    while (!has_all_before(first_) && slots_.of(first_).is_full.load(std::memory_order_relaxed) == 0) ++first_;
  }

 private:
  Inbox(pid_t sender, int file)
      : sender_(sender), slots_memory_(file, 0, Slots::BYTES), messages_(file, Slots::BYTES, Slots::MESSAGE_BYTES) {}

  bool has_all_before(uint32_t number) const { return slots_.sent.load(std::memory_order_acquire) == number; }

  // Until something comes after all messages before that one, or for a moment.
  void sleep(uint32_t number, std::chrono::steady_clock::time_point deadline, std::chrono::milliseconds timeout) const {
    const timespec moment{0, 20'000'000};
    syscall(SYS_futex, &slots_.sent, FUTEX_WAIT, number, &moment, nullptr, 0);
    if (!has_all_before(number)) return;
    if (sender_.has_ended() && has_all_before(number)) {
      throw std::runtime_error("shared memory closed by peer, whose process has ended");
    }
    if (std::chrono::steady_clock::now() >= deadline) {
      throw std::runtime_error("Timed out waiting " + std::to_string(timeout.count()) +
                               "ms for a message through shared memory");
    }
  }

  std::mutex mutex_;
  OtherProcess sender_;
  Mapping slots_memory_;
  Slots& slots_ = Slots::in(slots_memory_);
  Mapping messages_;
  uint32_t first_ = 0;  // all messages before it have been taken
};

}  // namespace dmt
