// How a tile of q, k or v lies in shared memory, and what both attention kernels on tensor cores compute of its rows.
#pragma once

#include <cstdint>

#include "common/mma.cuh"

namespace swin {

constexpr float kNormEpsilon = 1e-12F;  // F.normalize's, on the norm and not on its square
constexpr float kLog2e = 1.4426950408889634F;

// A tile is [rows][kWidth], in chunks of 16 bytes. Chunks are swizzled so that the 8 rows that ldmatrix reads at once,
// or the 8 rows of an accumulator, lie in different banks. kBytes: of a row.
template <int kBytes> __device__ __forceinline__ int swizzled_chunk(int row, int chunk) {
    static_assert(kBytes == 32 || kBytes == 64 || kBytes == 128 || kBytes == 256);
    constexpr int kRowsOf128Bytes = kBytes == 32 ? 2 : kBytes == 64 ? 1 : 0;  // as a power of two
    return chunk ^ (row >> kRowsOf128Bytes & (kBytes / 16 - 1));
}
// The place of a chunk, in elements of T, of 2 or 4 bytes, and of 1 byte.
template <int kWidth, typename T = __half> __device__ __forceinline__ int swizzled(int row, int chunk) {
    constexpr int kElement = sizeof(T);
    return row * kWidth + swizzled_chunk<kElement * kWidth>(row, chunk) * (16 / kElement);
}
template <int kWidth> __device__ __forceinline__ int swizzled_bytes(int row, int chunk) {
    return row * kWidth + (swizzled_chunk<kWidth>(row, chunk) << 4);
}

// Four INT8, and their squares, on top of a sum.
__device__ inline int add_numbers(int sum, uint32_t four) { return __dp4a(static_cast<int>(four), 0x01010101, sum); }
__device__ inline int add_squares(int sum, uint32_t four) {
    return __dp4a(static_cast<int>(four), static_cast<int>(four), sum);
}

// 1 / max(|x|, kNormEpsilon), from |x|^2; kExact: rounded as PyTorch's FP32 is.
template <bool kExact = false> __device__ inline float reciprocal_norm(float squares) {
    if constexpr (kExact) {
        return 1.F / fmaxf(sqrtf(squares), kNormEpsilon);
    } else {
        return fminf(rsqrt_approx(squares), 1.F / kNormEpsilon);
    }
}

}  // namespace swin
