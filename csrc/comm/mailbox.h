// Messages from one process to another of the same host, through memory that both map.
//
// The memory is a file without a place (memfd) that the sender makes and the receiver opens in /proc while they meet:
// slots that say where messages lie, then the messages. To send is to copy a message in, which waits for nobody; to
// receive is to copy it out. The file is sparse: it takes as much memory as was under way at one time.
#pragma once

#include <fcntl.h>
#include <linux/futex.h>
#include <sys/stat.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <climits>
#include <cstdint>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "comm/system.h"

namespace dmt {

// How long a receiver waits.
struct Patience {
  using Clock = std::chrono::steady_clock;
  static constexpr std::chrono::hours LONGEST{24 * 365};  // a clock has an end

  explicit Patience(std::chrono::milliseconds limit)
      : timeout(limit), deadline(Clock::now() + std::min<std::chrono::milliseconds>(limit, LONGEST)) {}

  // At least a moment, since none at all would mean for ever to some.
  std::chrono::milliseconds left() const {
    return std::max(std::chrono::ceil<std::chrono::milliseconds>(deadline - Clock::now()),
                    std::chrono::milliseconds(1));
  }

  std::chrono::milliseconds timeout;
  Clock::time_point deadline;
};

// The beginning of the file.
struct Slots {
  static constexpr uint32_t COUNT = 1024;
  static constexpr size_t BYTES = 1 << 16;  // of the file, before messages: whole pages, also where these are large
  static constexpr size_t MESSAGE_BYTES = 1 << 16;  // of messages that are mapped at first
  static constexpr off_t FILE_BYTES = off_t{1} << 40;

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
      : file_(std::make_unique<File>(memory_file())),
        slots_memory_(sized_file(), 0, Slots::BYTES),
        messages_(file_->number(), Slots::BYTES, Slots::MESSAGE_BYTES) {
    slots_.nonce = nonce;
  }

  int file() const { return file_->number(); }

  // Once the receiver has it open, or will not: processes may have few files.
  void close_file() { file_.reset(); }

  void put(const void* data, size_t bytes, uint32_t tag) {
    const std::lock_guard<std::mutex> lock(mutex_);
    forget_received();
    const uint32_t number = slots_.sent.load(std::memory_order_relaxed);
    Slots::Slot& slot = slots_.of(number);
    if (slot.is_full.load(std::memory_order_acquire) != 0) {
      throw std::runtime_error("of the last " + std::to_string(Slots::COUNT) +
                               " messages through shared memory the first has not been received");
    }
    slot.offset = bytes == 0 ? 0 : place(bytes, number);
    slot.bytes = bytes;
    slot.tag = tag;
    if (bytes != 0) std::memcpy(messages_.data() + slot.offset, data, bytes);
    slot.is_full.store(1, std::memory_order_release);
    slots_.sent.store(number + 1, std::memory_order_release);
    syscall(SYS_futex, &slots_.sent, FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0);
  }

 private:
  // Some systems refuse memory that could be run as a program; others do not know the wish that it be none.
  static int memory_file() {
#ifdef MFD_NOEXEC_SEAL
    const int file = memfd_create(FILE_NAME, MFD_CLOEXEC | MFD_NOEXEC_SEAL);
    if (file >= 0 || errno != EINVAL) return file;
#endif
    return memfd_create(FILE_NAME, MFD_CLOEXEC);
  }

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
  size_t place(size_t bytes, uint32_t number) {
    constexpr size_t line = 64;
    size_t begin = 0;
    for (const auto& [offset, end] : ends_) {
      if (begin + bytes <= offset) break;
      begin = (end + line - 1) / line * line;
    }
    if (begin + bytes > messages_.size()) messages_.grow_to(std::max(whole(begin + bytes), 2 * messages_.size()));
    touch(whole(begin + bytes));
    ends_.emplace(begin, begin + bytes);
    under_way_.emplace_back(number, begin);
    return begin;
  }

  // In pages, however large they are.
  static size_t whole(size_t bytes) { return (bytes + Slots::BYTES - 1) / Slots::BYTES * Slots::BYTES; }

  // Gets the pages of messages up to there, or says that there are none; a copy would end the process.
  void touch([[maybe_unused]] size_t end) {
#ifdef MADV_POPULATE_WRITE
    if (end <= touched_) return;
    if (madvise(messages_.data() + touched_, end - touched_, MADV_POPULATE_WRITE) != 0 && errno != EINVAL) {
      throw std::system_error(errno, std::generic_category(), "memory to share");
    }
    touched_ = end;
#endif
  }

  int sized_file() const {
    if (ftruncate(file_->number(), Slots::FILE_BYTES) != 0) {
      throw std::system_error(errno, std::generic_category(), "a file in memory");
    }
    return file_->number();
  }

  std::mutex mutex_;
  std::unique_ptr<File> file_;
  Mapping slots_memory_;
  Slots& slots_ = Slots::in(slots_memory_);
  Mapping messages_;
  size_t touched_ = 0;                                  // bytes of messages whose pages are there
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
    struct stat status{};
    if (!here || fstat(here.number(), &status) != 0 || status.st_size != Slots::FILE_BYTES) return nullptr;
    std::unique_ptr<Inbox> inbox(new Inbox(sender, here.number()));
    return *inbox->sender_ && inbox->slots_.nonce == nonce ? std::move(inbox) : nullptr;
  }

  // Messages may be taken in another order than they were put. `look_up`, for signals, is called all the while.
  void take(void* data, size_t bytes, uint32_t tag, const Patience& patience, void (*look_up)()) {
    std::unique_lock<std::mutex> lock(mutex_);
    for (uint32_t number = first_;; ++number) {
      while (has_all_before(number)) {
        lock.unlock();  // somebody else may wait for what is there
        if (!sleep(number)) look_up();
        complain(number, patience);
        lock.lock();
      }
      Slots::Slot& slot = slots_.of(number);
      if (!holds_wanted(slot) || slot.tag != tag) continue;
      if (slot.bytes != bytes) {
        throw std::runtime_error("a message of " + std::to_string(slot.bytes) + " bytes came where one of " +
                                 std::to_string(bytes) + " was expected");
      }
      messages_.grow_to(slot.offset + bytes);
      if (bytes != 0) std::memcpy(data, messages_.data() + slot.offset, bytes);
      slot.is_full.store(0, std::memory_order_release);
      break;
    }
    pass_what_is_received();
  }

  // Tags come again in the end; none of what was forgotten long ago is meant.
  void expect(uint32_t tag) {
    const std::lock_guard<std::mutex> lock(mutex_);
    unwanted_.erase(tag);
  }

  // Nobody will take the message of that tag, which may not be there yet.
  void forget(uint32_t tag) {
    const std::lock_guard<std::mutex> lock(mutex_);
    unwanted_.insert(tag);
    for (uint32_t number = first_; !has_all_before(number); ++number) holds_wanted(slots_.of(number));
    pass_what_is_received();
  }

 private:
  Inbox(pid_t sender, int file)
      : sender_(OtherProcess::of(sender)),
        slots_memory_(file, 0, Slots::BYTES),
        messages_(file, Slots::BYTES, Slots::MESSAGE_BYTES) {}

  bool has_all_before(uint32_t number) const { return slots_.sent.load(std::memory_order_acquire) == number; }

  bool holds_wanted(Slots::Slot& slot) {
    if (slot.is_full.load(std::memory_order_acquire) == 0) return false;
    if (unwanted_.erase(slot.tag) == 0) return true;
    slot.is_full.store(0, std::memory_order_release);
    return false;
  }

  void pass_what_is_received() {
    while (!has_all_before(first_) && slots_.of(first_).is_full.load(std::memory_order_acquire) == 0) ++first_;
  }

  // Until something comes after all messages before that one, or for a moment; returns whether something may have come.
  bool sleep(uint32_t number) const {
    const timespec moment{0, 20'000'000};
    return syscall(SYS_futex, &slots_.sent, FUTEX_WAIT, number, &moment, nullptr, 0) == 0 || errno == EAGAIN;
  }

  void complain(uint32_t number, const Patience& patience) const {
    if (has_all_before(number) && sender_->has_ended() && has_all_before(number)) {
      throw std::runtime_error("shared memory closed by peer, whose process has ended");
    }
    if (Patience::Clock::now() >= patience.deadline) {
      throw std::runtime_error("Timed out waiting " + std::to_string(patience.timeout.count()) +
                               "ms for a message through shared memory");
    }
  }

  std::mutex mutex_;
  std::shared_ptr<OtherProcess> sender_;
  Mapping slots_memory_;
  Slots& slots_ = Slots::in(slots_memory_);
  Mapping messages_;
  uint32_t first_ = 0;           // all messages before it have been taken
  std::set<uint32_t> unwanted_;  // tags of messages that nobody will take
};

}  // namespace dmt
