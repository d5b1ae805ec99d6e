#include "device_arguments.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <algorithm>

#include <map>
#include <mutex>

#if defined(__CUDACC__)
extern "C" AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device_index, void** stream);
#endif

namespace dmt {

#if defined(__CUDACC__)

const char* const kHere = "CUDA";

bool is_here(const Tensor& tensor) { return tensor.is_cuda(); }

OnDevice::OnDevice(const Tensor& tensor) : guard_(tensor.get_device_index()) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream));
  stream_ = static_cast<cudaStream_t>(stream);
}

#else

const char* const kHere = "CPU";

bool is_here(const Tensor& tensor) { return tensor.is_cpu(); }

OnDevice::OnDevice(const Tensor&) {}

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

Tensor pooled_grad(const char* op, const Tensor& grad, const BagArguments& bags, ScalarType type) {
  check_here(op, "grad", grad);
  check_floating(op, "grad", grad.scalar_type());
  check(grad.dim() == 2 && grad.size(0) == bags.out_rows() && grad.size(1) == bags.width(), op,
        "grad must have the shape of the pooled output, [", bags.out_rows(), ", ", bags.width(), "], got ",
        shape_name(grad));
  return contiguous_as(grad, type);
}

DeviceBags::DeviceBags(const BagArguments& bags, const Tensor& like) { describe(bags.layout(), like); }

DeviceBags::DeviceBags(const char* op, const TableArguments& tables, const BagArguments& bags, const Tensor& like,
                       bool reports)
    : dtype_(device_dtype(op, "tables", tables.dtype())), errors_(id_errors(like)) {
  describe(bags.layout(), like);
  check(layout_.num_ids <= INT32_MAX, op, "more than 2^31 - 1 ids in one call");  // kernels count them in 32 bits
  const cpu::TableData data = tables.data();
  for (cuda::Feature& feature : features_) {
    const int32_t t = feature.table_index;
    check(bags.layout().table_dims[t] <= INT32_MAX, op, "a row of ", bags.layout().table_dims[t],
          " columns is too wide");
    feature.table = data.data[t];
    feature.stride = data.strides[t];
  }
  if (reports) layout_.errors = static_cast<cuda::IdErrors*>(errors_.mutable_data_ptr());
}

void DeviceBags::describe(const cpu::BagLayout& all, const Tensor& like) {
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
  };
  const int64_t feature_bytes = all.num_features * static_cast<int64_t>(sizeof(cuda::Feature));
  buffer_ = device_bytes(like, feature_bytes + cuda::ceil_div<int64_t>(all.num_blocks, 2) * 16);
  layout_.features = static_cast<const cuda::Feature*>(buffer_.const_data_ptr());
  layout_.block_order =
      reinterpret_cast<const int64_t*>(static_cast<const char*>(buffer_.const_data_ptr()) + feature_bytes);
}

int64_t DeviceBags::widest_dim() const {
  int64_t widest = 0;
  for (const cuda::Feature& feature : features_) widest = std::max<int64_t>(widest, feature.dim);
  return widest;
}

void DeviceBags::upload(cudaStream_t stream) {
  const size_t feature_bytes = features_.size() * sizeof(cuda::Feature);
  std::vector<char> bytes(static_cast<size_t>(buffer_.size(0)));
  std::memcpy(bytes.data(), features_.data(), feature_bytes);
  std::memcpy(bytes.data() + feature_bytes, block_order_.data(), block_order_.size() * sizeof(int64_t));
  cuda::upload(buffer_.mutable_data_ptr(), bytes.data(), buffer_.size(0), stream);
}

namespace {

// What was recorded since the last call (see IdErrors), on the device; and nothing is recorded any more.
Tensor take_missing_ids(const Tensor& like) {
  const OnDevice device(like);
  Tensor record = id_errors(like);
  const Tensor taken = torch::stable::clone(record);
  torch::stable::zero_(record);
  return taken;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(DMT_LIBRARY, DMT_DISPATCH_KEY, ops) {
  ops.impl("take_missing_ids", TORCH_BOX(&take_missing_ids));
}

}  // namespace dmt
