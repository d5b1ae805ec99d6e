// dmt_kernels._comm: a stage of an exchange, that is an all-to-all of blocks of rows, in flight between start and wait.
// dmt_kernels/ops/stage.py documents it; dmt_kernels/ops/reference/stage.py is the same in Python.
//
// c10d has no stable ABI, so this serves the torch minor it was built with and no other; the package asks before it
// loads it. It is a module of its own instead of ops, because a call then costs half as much.
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/empty.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <torch/csrc/utils/pybind.h>
#include <torch/headeronly/version.h>
#include <torch/csrc/distributed/c10d/GroupRegistry.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <unordered_map>
#include <utility>
#include <vector>

#include "comm/gloo_loops.h"
#include "kernels/wire_format.h"

namespace dmt {
namespace {

using Blocks = std::vector<at::Tensor>;

std::atomic<int64_t> copied_bytes{0};  // by packing and unpacking, not by the codec

// Blocks [N_i, D_i] as the bytes that travel, one behind the other. Blocks of bytes are what travels already.
class Message {
 public:
  Message(Blocks blocks, std::optional<int64_t> format) : blocks_(std::move(blocks)), format_(format) {
    TORCH_CHECK(!blocks_.empty(), "a stage needs a block for every rank of its group");
    if (blocks_[0].scalar_type() == at::kByte) format_.reset();
    int64_t total = 0;
    for (const at::Tensor& block : blocks_) {
      TORCH_CHECK(block.dim() == 2, "a block has 2 dimensions, got one of shape ", block.sizes());
      sizes_.push_back(block.size(0) * row_bytes(block));
      total += sizes_.back();
    }
    if (const at::Tensor* first = format_.has_value() ? nullptr : together()) {
      bytes_ = as_bytes(*first, total);
      pieces_ = bytes_.split_with_sizes(sizes_);
      is_staged_.assign(blocks_.size(), false);
      return;
    }
    int64_t staged = 0;
    for (size_t i = 0; i < blocks_.size(); ++i) {
      // On the CPU blocks are sent one by one.
      is_staged_.push_back(format_.has_value() || !blocks_[i].is_cpu() || !blocks_[i].is_contiguous());
      if (is_staged_[i]) staged += sizes_[i];
    }
    bytes_ = at::empty({staged}, blocks_[0].options().dtype(at::kByte));
    int64_t begin = 0;
    for (size_t i = 0; i < blocks_.size(); ++i) {
      pieces_.push_back(is_staged_[i] ? bytes_.narrow(0, begin, sizes_[i]) : as_bytes(blocks_[i], sizes_[i]));
      if (is_staged_[i]) begin += sizes_[i];
    }
  }

  at::Tensor& bytes() { return bytes_; }  // on CUDA
  std::vector<int64_t>& sizes() { return sizes_; }

  // The bytes for, or from, each rank.
  const std::vector<at::Tensor>& pieces() const { return pieces_; }

  // An element is rounded by its row among those of all blocks.
  void pack(std::optional<int64_t> seed, int64_t step) {
    if (format_.has_value()) {
      static const auto encode = c10::Dispatcher::singleton()
                                     .findSchemaOrThrow("dmt::wire_encode_blocks_", "")
                                     .typed<void(const at::Tensor&, at::TensorList, int64_t, std::optional<int64_t>,
                                                 c10::SymInt, c10::SymInt)>();
      encode.call(bytes_, blocks_, *format_, seed, step, 0);
    } else {
      for_pieces([](const at::Tensor& piece, const at::Tensor& block) { piece.copy_(block); });
    }
  }

  void unpack() {
    if (format_.has_value()) {
      static const auto decode = c10::Dispatcher::singleton()
                                     .findSchemaOrThrow("dmt::wire_decode_blocks_", "")
                                     .typed<void(at::TensorList, const at::Tensor&, int64_t)>();
      decode.call(blocks_, bytes_, *format_);
    } else {
      for_pieces([](const at::Tensor& piece, const at::Tensor& block) { block.copy_(piece); });
    }
  }

  // The allocator must not hand staging out again before the stream that now waits for it is past it.
  void record_stream() {
    if (bytes_.is_cpu() || !is_staged_[0]) return;
    bytes_.record_stream(c10::impl::VirtualGuardImpl(bytes_.device().type()).getStream(bytes_.device()));
  }

 private:
  int64_t row_bytes(const at::Tensor& block) const {
    const int64_t columns = block.size(1);
    return format_.has_value() ? wire_row_bytes(static_cast<WireFormat>(*format_), columns)
                               : columns * static_cast<int64_t>(block.element_size());
  }

  // The first block, if all of them are one piece of memory, in order.
  const at::Tensor* together() const {
    const at::Tensor* first = nullptr;
    const char* end = nullptr;
    for (const at::Tensor& block : blocks_) {
      if (block.numel() == 0) continue;
      const char* begin = static_cast<const char*>(block.const_data_ptr());
      if (!block.is_contiguous()) return nullptr;
      if (first == nullptr) {
        first = &block;
      } else if (begin != end || !block.is_alias_of(*first)) {
        return nullptr;
      }
      end = begin + block.nbytes();
    }
    return first == nullptr ? &blocks_[0] : first;
  }

  static at::Tensor as_bytes(const at::Tensor& block, int64_t size) {
    return block.as_strided({size / static_cast<int64_t>(block.element_size())}, {1}).view(at::kByte);
  }

  // Calls copy(where a block lies in staging, the block).
  template <class Copy>
  void for_pieces(const Copy& copy) {
    for (size_t i = 0; i < blocks_.size(); ++i) {
      if (!is_staged_[i] || blocks_[i].numel() == 0) continue;
      copy(pieces_[i].view(blocks_[i].scalar_type()).view(blocks_[i].sizes()), blocks_[i]);
      copied_bytes += sizes_[i];
    }
  }

  Blocks blocks_;
  std::optional<int64_t> format_;
  std::vector<int64_t> sizes_;
  at::Tensor bytes_;  // of all blocks, or of those that are staged
  std::vector<at::Tensor> pieces_;
  std::vector<bool> is_staged_;
};

using Group = c10::intrusive_ptr<c10d::ProcessGroup>;
using WeakGroup = c10::weak_intrusive_ptr<c10d::ProcessGroup>;

// What is known of process groups, as long as they live; a later group of the same name is another one.
class Groups {
 public:
  // Ranks start the stages of a group in the same order, so that they count alike.
  int next_tag(const Group& group) {
    std::vector<State> dead;  // before the lock, to end after it: what is freed may want Python's lock
    const std::lock_guard<std::mutex> lock(mutex_);
    return static_cast<int>(state_of(group, dead).started++ & 0x3FFFFFFF);
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

Groups& groups() {
  static Groups& all = *new Groups;  // what it keeps cannot be freed when the process ends
  return all;
}

// What a backend said of a message to or from a rank of the group.
struct PeerFailure : std::runtime_error {
  PeerFailure(const std::string& words, int rank) : std::runtime_error(words), peer(rank) {}
  int peer;
};

// Python's exceptions get the backend's words without the addresses of its callers.
template <class Function>
void in_plain_words(const Function& function) {
  try {
    function();
  } catch (const c10::Error& error) {
    throw std::runtime_error(error.what_without_backtrace());
  }
}

template <class Function>
void naming(int peer, const Function& function) {
  try {
    in_plain_words(function);
  } catch (const std::runtime_error& error) {
    throw PeerFailure(error.what(), peer);
  }
}

// Lives until its end has been waited for, and keeps alive what is sent, received and staged until then. So do the
// backends for what they were given: gloo's work owns it, NCCL's stashes it until wait() has made the current stream
// wait for NCCL's own (ProcessGroupNCCL.hpp, TensorShelf), or until it is done. After that wait, staging that is freed
// may be handed out again to the current stream alone, which record_stream() sees to.
//
// A stage that nobody waits for, or that fails, leaves all that to its group: other ranks may still be at it.
class Stage {
 public:
  Stage(Blocks blocks, Blocks out, const std::string& group, std::optional<int64_t> format)
      : sent_(std::move(blocks), format),
        received_(std::move(out), format),
        group_(WeakGroup(c10d::resolve_process_group(group))) {}
  Stage(const Stage&) = delete;

  ~Stage() {
    const Group group = is_done_ || works_.empty() ? Group() : group_.lock();
    if (!group) return;
    using Buffers = std::tuple<Message, Message, std::vector<Pending>>;
    groups().keep(group, std::make_shared<Buffers>(std::move(sent_), std::move(received_), std::move(works_)));
  }

  void start(std::optional<int64_t> seed, int64_t step) {
    const Group group = group_.lock();
    TORCH_CHECK(group, "the process group is gone");
    sent_.pack(seed, step);
    if (sent_.bytes().is_cpu()) {
      send_to_each(group);
      return;
    }
#if TORCH_VERSION_MAJOR > 2 || TORCH_VERSION_MINOR >= 13
    works_.push_back(
        {group->all_to_all_single(received_.bytes(), sent_.bytes(), received_.sizes(), sent_.sizes()), NOBODY});
#else
    works_.push_back(
        {group->alltoall_base(received_.bytes(), sent_.bytes(), received_.sizes(), sent_.sizes()), NOBODY});
#endif
  }

  const std::vector<int64_t>& sent_bytes() { return sent_.sizes(); }

  void wait() {
    if (is_done_) return;
    in_plain_words([this] {
      const at::AutoDispatchBelowADInplaceOrView untracked;
      for (const auto& [work, peer] : works_) {
        if (peer == NOBODY) {
          work->wait();
        } else {
          naming(peer, [&work = work] { work->wait(); });
        }
      }
      sent_.record_stream();
      received_.record_stream();
      received_.unpack();
    });
    is_done_ = true;
  }

 private:
  static constexpr int NOBODY = -1;  // in particular

  struct Pending {
    c10::intrusive_ptr<c10d::Work> work;
    int peer;
  };

  // gloo's all-to-all posts what it sends before what it receives. Two ranks that come at different times then use a
  // link in one direction after the other: the late one's word that it is ready queues behind its own message.
  void send_to_each(const Group& group) {
    const int rank = group->getRank();
    const int ranks = group->getSize();
    const int tag = groups().next_tag(group);
    if (tag == 0) keep_gloo_from_preempting();
    const std::vector<at::Tensor>& arriving = received_.pieces();
    const std::vector<at::Tensor>& leaving = sent_.pieces();
    TORCH_CHECK(static_cast<int>(leaving.size()) == ranks && static_cast<int>(arriving.size()) == ranks,
                "a stage among ", ranks, " ranks needs as many blocks, got ", leaving.size(), " and ", arriving.size());
    // Every rank begins with its successor, so that nobody is sent to by all at once.
    const auto for_peers = [&](const std::vector<at::Tensor>& pieces, const auto& function) {
      for (int i = 1; i < ranks; ++i) {
        const int peer = (rank + i) % ranks;
        if (pieces[peer].numel() == 0) continue;
        std::vector<at::Tensor> one = {pieces[peer]};
        naming(peer, [&] { works_.push_back({function(one, peer), peer}); });
      }
    };
    for_peers(arriving, [&](std::vector<at::Tensor>& piece, int peer) { return group->recv(piece, peer, tag); });
    for_peers(leaving, [&](std::vector<at::Tensor>& piece, int peer) { return group->send(piece, peer, tag); });
    arriving[rank].copy_(leaving[rank]);
  }

  Message sent_;
  Message received_;
  WeakGroup group_;
  std::vector<Pending> works_;
  bool is_done_ = false;
};

// A stage, for torch's own wait_tensor(), as long as somebody holds it.
class StageWork : public c10d::Work {
 public:
  explicit StageWork(std::weak_ptr<Stage> stage) : stage_(std::move(stage)) {}

  bool wait(std::chrono::milliseconds /*timeout*/) override {
    if (const auto stage = stage_.lock()) stage->wait();
    return true;
  }

 private:
  std::weak_ptr<Stage> stage_;
};

std::shared_ptr<Stage> start(Blocks blocks, Blocks out, const std::string& group, std::optional<int64_t> format,
                             std::optional<int64_t> seed, int64_t step) {
  std::shared_ptr<Stage> stage;
  in_plain_words([&] {
    const at::AutoDispatchBelowADInplaceOrView untracked;  // no gradients, no version counters
    stage = std::make_shared<Stage>(std::move(blocks), std::move(out), group, format);
    stage->start(seed, step);
  });
  return stage;
}

void promise(const std::shared_ptr<Stage>& stage, const at::Tensor& tensor) {
  c10d::register_work(tensor, c10::make_intrusive<StageWork>(stage));
}

}  // namespace
}  // namespace dmt

PYBIND11_MODULE(_comm, module) {
  using Unlocked = pybind11::call_guard<pybind11::gil_scoped_release>;
  module.doc() = "Stages of an exchange: see dmt_kernels.ops.stage.";
  pybind11::register_local_exception_translator([](std::exception_ptr raised) {
    try {
      if (raised) std::rethrow_exception(raised);
    } catch (const dmt::PeerFailure& failure) {
      pybind11::object error = pybind11::handle(PyExc_RuntimeError)(failure.what());
      error.attr("peer") = failure.peer;
      PyErr_SetObject(PyExc_RuntimeError, error.ptr());
    }
  });
  pybind11::class_<dmt::Stage, std::shared_ptr<dmt::Stage>>(module, "Stage", pybind11::module_local())
      .def_property_readonly("sent_bytes", &dmt::Stage::sent_bytes)
      .def("wait", &dmt::Stage::wait, Unlocked())
      .def("promise", &dmt::promise);
  module.def("start", &dmt::start, Unlocked());
  module.def("copied_bytes", [] { return dmt::copied_bytes.load(); });
}
