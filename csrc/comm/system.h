// What Linux gives, as objects that give it back.
#pragma once

#include <poll.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <map>
#include <memory>
#include <mutex>
#include <system_error>

namespace dmt {

// A file, closed when it goes.
class File {
 public:
  explicit File(int number) : number_(number) {}
  File(const File&) = delete;
  ~File() {
    if (number_ >= 0) close(number_);
  }
  int number() const { return number_; }
  explicit operator bool() const { return number_ >= 0; }

 private:
  int number_;
};

// A part of a file in memory; it may move when it grows.
class Mapping {
 public:
  Mapping(int file, size_t offset, size_t size)
      : data_(mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, file, static_cast<off_t>(offset))), size_(size) {
    if (data_ == MAP_FAILED) throw std::system_error(errno, std::generic_category(), "mmap");
  }
  Mapping(const Mapping&) = delete;
  ~Mapping() { munmap(data_, size_); }

  void grow_to(size_t size) {
    if (size <= size_) return;
    void* const data = mremap(data_, size_, size, MREMAP_MAYMOVE);
    if (data == MAP_FAILED) throw std::system_error(errno, std::generic_category(), "mremap");
    data_ = data;
    size_ = size;
  }

  char* data() const { return static_cast<char*>(data_); }
  size_t size() const { return size_; }

 private:
  void* data_;
  size_t size_;
};

// Another process, which may end at any time. That shows at once, also while its parent has not asked for its status.
class OtherProcess {
 public:
  // One for all who ask for it, since it is an open file.
  static std::shared_ptr<OtherProcess> of(pid_t id) {
    static std::mutex mutex;
    static auto& known = *new std::map<pid_t, std::weak_ptr<OtherProcess>>;
    const std::lock_guard<std::mutex> lock(mutex);
    std::shared_ptr<OtherProcess> process = known[id].lock();
    if (process == nullptr || process->has_ended()) {  // another one may have its number by now
      process = std::make_shared<OtherProcess>(id);
      known[id] = process;
    }
    return process;
  }

  explicit OtherProcess(pid_t id) : descriptor_(open(id)) {}
  explicit operator bool() const { return static_cast<bool>(descriptor_); }
  bool has_ended() const {
    pollfd question{descriptor_.number(), POLLIN, 0};
    return poll(&question, 1, 0) == 1;
  }

 private:
  static int open([[maybe_unused]] pid_t id) {
#ifdef SYS_pidfd_open
    return static_cast<int>(syscall(SYS_pidfd_open, id, 0));
#else
    return -1;
#endif
  }

  File descriptor_;
};

}  // namespace dmt
