// What the adapters of the CUDA kernels share: the device and its stream, and bags as the kernels read them.
#pragma once

#include <cstdint>
#include <vector>

#include "../kernels/cuda/bag_layout.h"
#include "bag_arguments.h"

#if defined(__CUDACC__)
#include <torch/csrc/stable/accelerator.h>
#define DMT_LIBRARY dmt
#define DMT_DISPATCH_KEY CUDA
#else  // emulated (tests/simt): beside the CPU's kernels, in a library that the build names
#define DMT_DISPATCH_KEY CPU
#endif

namespace dmt {

// The device of a tensor, current as long as this lives, and torch's current stream there. `check_here` takes tensors
// of this device alone.
class OnDevice {
 public:
  explicit OnDevice(const Tensor& tensor);
  ~OnDevice();
  OnDevice(const OnDevice&) = delete;
  cudaStream_t stream() const { return stream_; }

 private:
#if defined(__CUDACC__)
  torch::stable::accelerator::DeviceGuard guard_;
#endif
  int32_t before_;
  cudaStream_t stream_ = nullptr;
};

// float32, float16 or bfloat16.
cuda::DType device_dtype(const char* op, const char* name, ScalarType dtype);

// Uninitialised bytes on the device of `like`, from torch's allocator: the stream's own, so free when the op returns.
Tensor device_bytes(const Tensor& like, int64_t bytes);

// What an op sends to the device for its kernels to read.
class Uploads {
 public:
  // Bytes of the host's on the device of `like`: where an earlier call on this stream has put them, if they are the
  // same (tables and features seldom change), or in memory that lives as long as this.
  const void* put(const Tensor& like, const void* source, int64_t bytes, cudaStream_t stream);

 private:
  std::vector<Tensor> own_;
};

// The device's record of ids out of range. Making the first one waits for the device, so a process's first call may not
// be captured.
Tensor id_errors(const Tensor& like);

class DeviceBags {
 public:
  // `reports`: whether ids out of range are errors.
  DeviceBags(const char* op, const TableArguments& tables, const BagArguments& bags, const Tensor& like, bool reports);
  // Without tables and without reports: for who looks at ids alone.
  explicit DeviceBags(const BagArguments& bags);
  DeviceBags(const DeviceBags&) = delete;
  DeviceBags& operator=(const DeviceBags&) = delete;

  const std::vector<cuda::Feature>& features() const { return features_; }
  int64_t widest_dim() const;
  void upload(const Tensor& like, cudaStream_t stream);

  const cuda::Bags& layout() const { return layout_; }
  cuda::DType dtype() const { return dtype_; }  // of the tables

 private:
  void describe(const cpu::BagLayout& bags);

  cuda::DType dtype_ = cuda::DType::f32;
  std::vector<cuda::Feature> features_;
  std::vector<int64_t> block_order_;
  Uploads uploads_;
  Tensor errors_;
  cuda::Bags layout_ = {};
};

}  // namespace dmt
