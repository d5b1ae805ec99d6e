#include "device_arguments.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <mutex>
#include <string>
#include <unordered_map>
#include <utility>

#if defined(__CUDACC__)
extern "C" AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device_index, void** stream);
#endif

namespace dmt {

namespace {

thread_local int32_t current_device = -1;  // of the innermost OnDevice

}  // namespace

OnDevice::~OnDevice() { current_device = before_; }

#if defined(__CUDACC__)

const char* const kHere = "CUDA";

bool is_here(const Tensor& tensor) {
  return tensor.is_cuda() && (current_device < 0 || tensor.get_device_index() == current_device);
}

OnDevice::OnDevice(const Tensor& tensor)
    : guard_(tensor.get_device_index()), before_(std::exchange(current_device, tensor.get_device_index())) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream));
  stream_ = static_cast<cudaStream_t>(stream);
}

#else

const char* const kHere = "CPU";

bool is_here(const Tensor& tensor) { return tensor.is_cpu(); }

OnDevice::OnDevice(const Tensor&) : before_(current_device) {}

#endif

void check_offsets(const char*, const int64_t*, int64_t, int64_t) {}  // kernels clamp them

cuda::DType device_dtype(const char* op, const char* name, ScalarType dtype) {
  check(dtype != ScalarType::Double, op, name, " of float64 are for CPUs only");
  return dtype == ScalarType::Half       ? cuda::DType::f16
         : dtype == ScalarType::BFloat16 ? cuda::DType::bf16
                                         : cuda::DType::f32;
}

Tensor device_bytes(const Tensor& like, int64_t bytes) {
  return torch::stable::new_empty(like, {bytes}, ScalarType::Byte);
}

namespace {

// Bytes on the device for one stream's kernels, which are never changed: they may be read by any kernel that is still
// to run. Not torch's memory, some of which is a graph's or a pool's and ends with it.
class Shelf {
 public:
  // Null where there is no room left.
  const void* find_or_put(const void* source, int64_t bytes, cudaStream_t stream) {
    std::string wanted(static_cast<const char*>(source), static_cast<size_t>(bytes));
    const auto found = places_.find(wanted);
    if (found != places_.end()) return memory_ + found->second;
    const int64_t size = cuda::ceil_div<int64_t>(bytes, kAlignment) * kAlignment;
    if (memory_ == nullptr || used_ + size > kBytes) return nullptr;
    cuda::upload(memory_ + used_, source, bytes, stream);
    places_.emplace(std::move(wanted), used_);
    return memory_ + std::exchange(used_, used_ + size);
  }

 private:
  static constexpr int64_t kBytes = 1 << 20;
  static constexpr int64_t kAlignment = 256;
  char* memory_ = static_cast<char*>(cuda::allocate(kBytes));
  int64_t used_ = 0;
  std::unordered_map<std::string, int64_t> places_;
};

const void* on_shelf(int32_t device, const void* source, int64_t bytes, cudaStream_t stream) {
  if (cuda::is_captured(stream)) return nullptr;  // a graph keeps its own
  static std::mutex mutex;
  static auto* const shelves = new std::map<std::pair<int32_t, cudaStream_t>, Shelf>();  // for ever: CUDA ends first
  const std::lock_guard<std::mutex> lock(mutex);
  return (*shelves)[{device, stream}].find_or_put(source, bytes, stream);
}

}  // namespace

const void* Uploads::put(const Tensor& like, const void* source, int64_t bytes, cudaStream_t stream) {
  const void* const there = on_shelf(like.get_device_index(), source, bytes, stream);
  if (there != nullptr) return there;
  own_.push_back(device_bytes(like, cuda::ceil_div<int64_t>(bytes, 16) * 16));
  cuda::upload(own_.back().mutable_data_ptr(), source, bytes, stream);
  return own_.back().const_data_ptr();
}

Tensor id_errors(const Tensor& like) {
  static std::mutex mutex;
  static auto* const records = new std::map<int32_t, Tensor>();  // for ever: CUDA ends before statics do
  const std::lock_guard<std::mutex> lock(mutex);
  const int32_t device = like.get_device_index();
  const auto found = records->find(device);
  if (found != records->end()) return found->second;
  const Tensor record =
      torch::stable::new_zeros(like, {static_cast<int64_t>(sizeof(cuda::IdErrors) / 8)}, ScalarType::Long);
#if defined(__CUDACC__)
  cuda::check_cuda(cudaStreamSynchronize(OnDevice(like).stream()), "the record of ids out of range");
#endif
  records->emplace(device, record);
  return record;
}

DeviceBags::DeviceBags(const BagArguments& bags) { describe(bags.layout()); }

DeviceBags::DeviceBags(const char* op, const TableArguments& tables, const BagArguments& bags, const Tensor& like,
                       bool reports)
    : dtype_(device_dtype(op, "tables", tables.dtype())), errors_(id_errors(like)) {
  describe(bags.layout());
  check(layout_.num_ids <= INT32_MAX, op, "more than 2^31 - 1 ids in one call");  // kernels count them in 32 bits
  const cpu::TableData data = tables.data();
  for (cuda::Feature& feature : features_) {
    const int32_t t = feature.table_index;
    check(bags.layout().table_dims[t] <= INT32_MAX, op, "a row of ", bags.layout().table_dims[t],
          " columns is too wide");
    feature.table = data.data[t];
    feature.stride = data.strides[t];
  }
  const int64_t pack = dtype_ == cuda::DType::f32 ? cuda::kPackSize<float> : cuda::kPackSize<cuda::BFloat16>;
  layout_.are_packs = std::all_of(features_.begin(), features_.end(), [&](const cuda::Feature& feature) {
    return feature.dim == 0 || (reinterpret_cast<uintptr_t>(feature.table) % 16 == 0 && feature.stride % pack == 0 &&
                                feature.dim % pack == 0 && feature.column % pack == 0);
  });
  if (reports) layout_.errors = static_cast<cuda::IdErrors*>(errors_.mutable_data_ptr());
}

void DeviceBags::describe(const cpu::BagLayout& all) {
  block_order_.assign(all.block_order, all.block_order + all.num_blocks);
  std::vector<int64_t> first_keys = {0};
  for (int64_t t = 0; t < all.num_tables; ++t) first_keys.push_back(first_keys.back() + all.table_rows[t]);
  for (int64_t f = 0; f < all.num_features; ++f) {
    const int64_t t = all.feature_table[f];
    features_.push_back({
        .table = nullptr,
        .stride = 0,
        .rows = all.table_rows[t],
        .row_start = all.row_starts != nullptr ? all.row_starts[t] : 0,
        .column = all.feature_column[f],
        .first_key = first_keys[t],
        .dim = static_cast<int32_t>(all.table_dims[t]),
        .table_index = static_cast<int32_t>(t),
        .is_mean = all.feature_is_mean[f],
        .unused = {},
    });
  }
  layout_ = {
      .ids = all.ids,
      .offsets = all.offsets,
      .weights = static_cast<const float*>(all.weights),
      .block_order = nullptr,
      .features = nullptr,
      .errors = nullptr,
      .num_ids = all.num_ids,
      .num_blocks = all.num_blocks,
      .num_features = all.num_features,
      .num_samples = all.num_samples,
      .width = all.width,
      .wide_ids = all.wide_ids,
      .is_shard = all.row_starts != nullptr,
      .are_packs = false,  // there are no tables yet
  };
}

int64_t DeviceBags::widest_dim() const {
  int64_t widest = 0;
  for (const cuda::Feature& feature : features_) widest = std::max<int64_t>(widest, feature.dim);
  return widest;
}

void DeviceBags::upload(const Tensor& like, cudaStream_t stream) {
  const size_t feature_bytes = features_.size() * sizeof(cuda::Feature);
  std::vector<char> bytes(feature_bytes + block_order_.size() * sizeof(int64_t));
  std::memcpy(bytes.data(), features_.data(), feature_bytes);
  std::memcpy(bytes.data() + feature_bytes, block_order_.data(), block_order_.size() * sizeof(int64_t));
  const void* const there = uploads_.put(like, bytes.data(), static_cast<int64_t>(bytes.size()), stream);
  layout_.features = static_cast<const cuda::Feature*>(there);
  layout_.block_order = reinterpret_cast<const int64_t*>(static_cast<const char*>(there) + feature_bytes);
}

namespace {

// What was recorded since the last call (see IdErrors), on the device; and nothing is recorded any more.
Tensor take_missing_ids(const Tensor& like) {
  const OnDevice device(like);
  Tensor record = id_errors(like);
  const Tensor taken = torch::stable::new_empty(like, record.sizes(), ScalarType::Long);
  cuda::take_errors(static_cast<cuda::IdErrors*>(record.mutable_data_ptr()),
                    static_cast<cuda::IdErrors*>(taken.mutable_data_ptr()), device.stream());
  return taken;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(DMT_LIBRARY, DMT_DISPATCH_KEY, ops) {
  ops.impl("take_missing_ids", TORCH_BOX(&take_missing_ids));
}

}  // namespace dmt
