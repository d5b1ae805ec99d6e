// dmt_kernels._comm: a stage of an exchange, that is an all-to-all of blocks of rows, in flight between its beginning
// and wait. dmt_kernels/ops/stage.py documents it; dmt_kernels/ops/reference/stage.py is the same in Python.
//
// c10d has no stable ABI, so this serves the torch minor it was built with and no other; the package asks before it
// loads it. It is a module of its own instead of ops, because a call then costs half as much.
#include <torch/csrc/distributed/c10d/debug.h>
#include <torch/csrc/utils/pybind.h>
#include <torch/headeronly/version.h>
#include <torch/csrc/distributed/c10d/GroupRegistry.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "comm/groups.h"
#include "comm/message.h"
#include "comm/scheduling.h"

namespace dmt {
namespace {

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
  } catch (const c10::ValueError& error) {  // of what a stage was given
    throw pybind11::value_error(error.what_without_backtrace());
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

// Python only takes note of Ctrl-C; a rank that waits for another asks it.
void heed_signals() {
  const pybind11::gil_scoped_acquire locked;
  if (PyErr_CheckSignals() != 0) throw pybind11::error_already_set();
}

// Lives until its end has been waited for, and keeps alive what is sent, received and staged until then. So do the
// backends for what they were given: gloo's work owns it, NCCL's stashes it until wait() has made the current stream
// wait for NCCL's own (ProcessGroupNCCL.hpp, TensorShelf), or until it is done. After that wait, staging that is freed
// may be handed out again to the current stream alone, which record_stream() sees to.
//
// A stage that nobody waits for, or that fails, leaves all that to its group: other ranks may still be at it, but
// for neighbours, who reach no memory of this rank's.
class Stage {
 public:
  Stage(Blocks out, const std::string& group, std::optional<int64_t> format)
      : received_(std::move(out), format), group_(WeakGroup(c10d::resolve_process_group(group))) {}
  Stage(const Stage&) = delete;

  ~Stage() {
    const Group group = is_done_ || works_.empty() ? Group() : group_.lock();
    if (!group) return;
    using Buffers = std::tuple<std::optional<Message>, Message, std::vector<Pending>>;
    groups().keep(group, std::make_shared<Buffers>(std::move(sent_), std::move(received_), std::move(works_)));
  }

  void expect() {
    const Group group = this->group();
    check_count(*group, received_);
    if (received_.device().is_cpu()) expect_from_each(group);
  }

  void send(Blocks blocks, std::optional<int64_t> format, std::optional<int64_t> seed, int64_t step) {
    TORCH_CHECK(!sent_, "the stage has sent its blocks");
    sent_.emplace(std::move(blocks), format);
    TORCH_CHECK_VALUE(sent_->device() == received_.device(), "blocks and out are on one device");
    const Group group = this->group();
    check_count(*group, *sent_);
    const int64_t own = sent_->sizes()[group->getRank()], room = received_.sizes()[group->getRank()];
    TORCH_CHECK_VALUE(own == room, "a rank sends itself ", own, " bytes, and expects ", room);
    const bool is_encoded = sent_->dtype() == at::kByte || received_.dtype() == at::kByte;
    TORCH_CHECK_VALUE(is_encoded || sent_->dtype() == received_.dtype(), "blocks are ", sent_->dtype(), ", and ",
                      received_.dtype(), " is expected");
    sent_->pack(seed, step);
    if (sent_->device().is_cpu()) {
      send_to_each(group);
    } else {
      works_.push_back({all_to_all(*group), NOBODY});
    }
  }

  const std::vector<int64_t>& sent_bytes() {
    TORCH_CHECK(sent_, "the stage has sent nothing");
    return sent_->sizes();
  }

  void wait() {
    if (is_done_) return;
    in_plain_words([this] {
      const at::AutoDispatchBelowADInplaceOrView untracked;
      TORCH_CHECK(sent_, "the stage has sent nothing");
      const Patience patience(timeout_.value_or(Patience::LONGEST));  // with all of them together
      for (Expected& expected : expected_) {
        naming(expected.peer,
               [&] { expected.delivery.take(received_.pieces()[expected.peer], patience, heed_signals); });
      }
      for (const auto& [work, peer] : works_) {
        if (peer == NOBODY) {
          work->wait();
        } else {
          naming(peer, [&, &work = work] { work->wait(timeout_.has_value() ? patience.left() : kNoTimeout); });
        }
      }
      sent_->record_stream();
      received_.record_stream();
      received_.unpack();
    });
    is_done_ = true;
  }

 private:
  static constexpr int NOBODY = -1;  // in particular

  struct Expected {
    int peer;
    Delivery delivery;
  };

  struct Pending {
    c10::intrusive_ptr<c10d::Work> work;
    int peer;
  };

  Group group() const {
    Group group = group_.lock();
    TORCH_CHECK(group, "the process group is gone");
    return group;
  }

  // On CUDA. NCCL sends and receives rank by rank either way, so ranks may differ in which one they take; but for
  // TORCH_DISTRIBUTED_DEBUG=DETAIL, which compares the ranks' calls. Every piece is contiguous, which is all that NCCL
  // asks for; it stashes all of them, as it does the two of a single one.
  c10::intrusive_ptr<c10d::Work> all_to_all(c10d::ProcessGroup& group) {
    const bool is_single = received_.is_one_piece() && sent_->is_one_piece();
    if (!is_single || c10d::debug_level() == c10d::DebugLevel::Detail) {
      return group.alltoall(received_.pieces(), sent_->pieces());
    }
#if TORCH_VERSION_MAJOR > 2 || TORCH_VERSION_MINOR >= 13
    return group.all_to_all_single(received_.bytes(), sent_->bytes(), received_.sizes(), sent_->sizes());
#else
    return group.alltoall_base(received_.bytes(), sent_->bytes(), received_.sizes(), sent_->sizes());
#endif
  }

  // Before anything travels: gloo ends a process that is sent more than it expects.
  static void check_count(const c10d::ProcessGroup& group, Message& message) {
    TORCH_CHECK_VALUE(static_cast<int>(message.sizes().size()) == group.getSize(), "a stage among ", group.getSize(),
                      " ranks needs as many blocks, got ", message.sizes().size());
  }

  // gloo's all-to-all posts what it sends before what it receives. Two ranks that come at different times then use a
  // link in one direction after the other: the late one's word that it is ready queues behind its own message.
  void expect_from_each(const Group& group) {
    turn_ = groups().next_turn(group);
    const auto backend = group->getBackend(c10::DeviceType::CPU);
    if (backend->getBackendName() == "gloo") timeout_ = backend->getBackendOptions()->timeout;
    if (turn_.is_first) {
      keep_gloo_from_preempting();
      ask_for_long_slices();
    }
    for_peers(group, received_, NEAR, [&](int peer, const at::Tensor&) {
      expected_.push_back({peer, turn_.neighbours->expect(peer, turn_.tag)});
    });
    for_peers(group, received_, FAR, [&](int peer, const at::Tensor& piece) {
      std::vector<at::Tensor> one = {piece};
      works_.push_back({group->recv(one, peer, turn_.tag), peer});
    });
  }

  // What takes longest to arrive leaves first.
  void send_to_each(const Group& group) {
    for_peers(group, *sent_, FAR, [&](int peer, const at::Tensor& piece) {
      std::vector<at::Tensor> one = {piece};
      works_.push_back({group->send(one, peer, turn_.tag), peer});
    });
    for_peers(group, *sent_, NEAR,
              [&](int peer, const at::Tensor& piece) { turn_.neighbours->send(peer, piece, turn_.tag); });
    received_.pieces()[group->getRank()].copy_(sent_->pieces()[group->getRank()]);
  }

  enum Distance { NEAR, FAR };

  template <class Function>
  void for_peers(const Group& group, Message& message, Distance distance, const Function& function) const {
    const int ranks = group->getSize();
    const std::vector<at::Tensor>& pieces = message.pieces();
    // Every rank begins with its successor, so that nobody is sent to by all at once.
    for (int i = 1; i < ranks; ++i) {
      const int peer = (group->getRank() + i) % ranks;
      if (turn_.neighbours->has(peer) != (distance == NEAR)) continue;
      if (pieces[peer].numel() == 0 && distance == FAR)
        continue;  // neighbours get empty ones, so that unlike sizes show
      naming(peer, [&] { function(peer, pieces[peer]); });
    }
  }

  std::optional<Message> sent_;
  Message received_;
  WeakGroup group_;
  Groups::Turn turn_;
  std::optional<std::chrono::milliseconds> timeout_;  // of gloo; others keep theirs
  std::vector<Expected> expected_;                    // from neighbours
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

std::shared_ptr<Stage> expect(Blocks out, const std::string& group, std::optional<int64_t> format) {
  std::shared_ptr<Stage> stage;
  in_plain_words([&] {
    const at::AutoDispatchBelowADInplaceOrView untracked;  // no gradients, no version counters
    stage = std::make_shared<Stage>(std::move(out), group, format);
    stage->expect();
  });
  return stage;
}

void send(Stage& stage, Blocks blocks, std::optional<int64_t> format, std::optional<int64_t> seed, int64_t step) {
  in_plain_words([&] {
    const at::AutoDispatchBelowADInplaceOrView untracked;
    stage.send(std::move(blocks), format, seed, step);
  });
}

std::vector<int> share_memory(const std::string& name, bool is_willing) {
  std::shared_ptr<const Neighbours> neighbours;
  in_plain_words([&] {
    const Group group = c10d::resolve_process_group(name);
    neighbours = std::make_shared<const Neighbours>(*group, is_willing);
    groups().introduce(group, neighbours);
  });
  return neighbours->ranks();
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
      .def("send", &dmt::send, Unlocked())
      .def("wait", &dmt::Stage::wait, Unlocked())
      .def("promise", &dmt::promise);
  module.def("expect", &dmt::expect, Unlocked());
  module.def("share_memory", &dmt::share_memory, Unlocked());
  module.def("copied_bytes", [] { return dmt::copied_bytes.load(); });
}
