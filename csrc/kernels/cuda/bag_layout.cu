#include "bag_layout.h"

#include <algorithm>
#include <cstring>

namespace dmt::cuda {
namespace {

constexpr int64_t kPieceBytes = 3584;  // of the 4096 that a kernel's parameters may have on every driver

struct Piece {
  uint4 words[kPieceBytes / 16];
};

__global__ void put_piece(uint4* target, const Piece piece, int words) {
  for (int i = static_cast<int>(threadIdx.x); i < words; i += static_cast<int>(blockDim.x)) target[i] = piece.words[i];
}

// Exchanged, not read and then cleared: kernels on other streams may be recording.
__global__ void take(IdErrors* record, IdErrors* taken) {
  const unsigned long long count = atomicExch(&record->count, 0ULL);
  *taken = count == 0 ? IdErrors{} : *record;
  taken->count = count;
}

}  // namespace

void take_errors(IdErrors* record, IdErrors* taken, cudaStream_t stream) {
  launch(take, 1, 1, 0, stream, record, taken);
}

void upload(void* target, const void* source, int64_t bytes, cudaStream_t stream) {
  for (int64_t begin = 0; begin < bytes; begin += kPieceBytes) {
    const int64_t size = std::min(bytes - begin, kPieceBytes);
    Piece piece = {};
    std::memcpy(&piece, static_cast<const char*>(source) + begin, static_cast<size_t>(size));
    launch(put_piece, 1, 256, 0, stream, static_cast<uint4*>(target) + begin / 16, piece,
           static_cast<int>(ceil_div<int64_t>(size, 16)));
  }
}

}  // namespace dmt::cuda
