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

// The device of a tensor, current as long as this lives, and torch's current stream there.
class OnDevice {
 public:
  explicit OnDevice(const Tensor& tensor);
  cudaStream_t stream() const { return stream_; }

 private:
#if defined(__CUDACC__)
  torch::stable::accelerator::DeviceGuard guard_;
#endif
  cudaStream_t stream_ = nullptr;
};

// float32, float16 or bfloat16.
cuda::DType device_dtype(const char* op, const char* name, ScalarType dtype);

// Uninitialised bytes on the device of `like`, from torch's allocator: the stream's own, so free when the op returns.
Tensor device_bytes(const Tensor& like, int64_t bytes);

// The device's record of ids out of range. Making the first one waits for the device, so a process's first call may not
// be captured.
Tensor id_errors(const Tensor& like);

// The pooled output's gradient, contiguous.
Tensor pooled_grad(const char* op, const Tensor& grad, const BagArguments& bags, ScalarType type);

class DeviceBags {
 public:
  // `reports`: whether ids out of range are errors.
  DeviceBags(const char* op, const TableArguments& tables, const BagArguments& bags, const Tensor& like, bool reports);
  // Without tables and without reports: for who looks at ids alone.
  DeviceBags(const BagArguments& bags, const Tensor& like);
  DeviceBags(const DeviceBags&) = delete;
  DeviceBags& operator=(const DeviceBags&) = delete;

  const std::vector<cuda::Feature>& features() const { return features_; }
  int64_t widest_dim() const;
  void upload(cudaStream_t stream);

  const cuda::Bags& layout() const { return layout_; }
  cuda::DType dtype() const { return dtype_; }  // of the tables

 private:
  void describe(const cpu::BagLayout& bags, const Tensor& like);

  cuda::DType dtype_ = cuda::DType::f32;
  std::vector<cuda::Feature> features_;
  std::vector<int64_t> block_order_;
  Tensor buffer_;
  Tensor errors_;
  cuda::Bags layout_ = {};
};

}  // namespace dmt
