// How a kernel that reduces rows of [rows, width] is laid out over threads, and the reductions themselves.
//
// A group of threads owns a row; each thread holds ITEMS vectors of VEC elements of it in registers, so that a row is
// read once. A block is [rows of the block][group]: threadIdx.x is the place in the group and threadIdx.y the group. A
// group is a power of two up to a warp, or whole warps; then it is its block.
//
// Vectors are 16 bytes, and every thread of a group is full: ITEMS * group vectors are the row. Swin's widths, 2^k and
// 3 * 2^k, all divide so. Any other width, and unaligned rows, go element by element (VEC = 1), with idle places in the
// last items.
#pragma once

#include <climits>
#include <cmath>

#include "launch.cuh"
#include "swin_types.h"
#include "vector_io.cuh"

namespace swin {

constexpr int kWarp = 32;
constexpr int kScalarItems = 8;

// The largest block that a kernel is compiled for; VEC = 1 needs 1024 threads for SWIN_MAX_WIDTH.
constexpr int max_threads(int vec) { return vec == 1 ? SWIN_MAX_WIDTH / kScalarItems : 512; }

struct RowPlan {
    int group;  // threads that share a row
    int items;  // vectors that each of them holds; 0: the width does not divide
};

inline RowPlan plan_vectors(int width, int vec) {
    const int vectors = width / vec;
    for (const int items : {3, 4, 1}) {
        const int group = vectors / items;
        const bool power_of_two = (group & (group - 1)) == 0;
        const bool fits = group <= kWarp ? power_of_two : group % kWarp == 0 && group <= max_threads(vec);
        if (vectors % items == 0 && fits) return {group, items};
    }
    return {0, 0};
}

inline RowPlan plan_elements(int width) {
    int group = 1;
    while (group * kScalarItems < width) group *= 2;
    return {group, kScalarItems};
}

template <class T_, int VEC_, int ITEMS_> struct RowShape {
    using T = T_;
    static constexpr int VEC = VEC_;
    static constexpr int ITEMS = ITEMS_;
    static constexpr int THREADS = max_threads(VEC_);
};

template <class T, class Launch> int with_shape(int width, bool vectorised, const Launch& launch) {
    constexpr int VEC = kVector<T>;
    const RowPlan plan = vectorised ? plan_vectors(width, VEC) : RowPlan{0, 0};
    switch (plan.items) {
    case 1: return launch(RowShape<T, VEC, 1>{}, plan.group);
    case 3: return launch(RowShape<T, VEC, 3>{}, plan.group);
    case 4: return launch(RowShape<T, VEC, 4>{}, plan.group);
    default: return launch(RowShape<T, 1, kScalarItems>{}, plan_elements(width).group);
    }
}

inline int bytes_of(int type) { return type == SWIN_FP32 ? 4 : 2; }

// Calls launch(RowShape, group) with the shape that fits. contiguous: elements that are known to lie in a row in
// memory (the width, or the channels that a gather keeps together); aligned: all pointers are multiples of 16 bytes.
template <class Launch> int dispatch_rows(int type, int width, int contiguous, bool aligned, const Launch& launch) {
    if (width < 1 || width > SWIN_MAX_WIDTH) return cudaErrorInvalidValue;
    const bool vectorised = aligned && contiguous % (16 / bytes_of(type)) == 0;
    switch (type) {
    case SWIN_FP32: return with_shape<float>(width, vectorised, launch);
    case SWIN_FP16: return with_shape<__half>(width, vectorised, launch);
    case SWIN_BF16: return with_shape<__nv_bfloat16>(width, vectorised, launch);
    default: return cudaErrorInvalidValue;
    }
}

// Launches KERNEL(arguments) over `rows` rows, a group of threads each.
template <auto KERNEL, class Arguments>
int launch_rows(const Arguments& arguments, int group, long long rows, cudaStream_t stream) {
    // Blocks of 128 threads; smaller ones where those would leave multiprocessors idle.
    constexpr long long kBusyBlocks = 256;
    int rows_per_block = group <= kWarp ? 128 / group : 1;
    while (rows_per_block * group > kWarp && rows_per_block > 1 && rows / rows_per_block < kBusyBlocks) {
        rows_per_block /= 2;
    }
    const long long blocks = (rows + rows_per_block - 1) / rows_per_block;
    if (rows < 0 || blocks > INT_MAX) return cudaErrorInvalidValue;
    return launch<KERNEL>(dim3(static_cast<unsigned>(blocks)), dim3(group, rows_per_block), 0, stream, arguments);
}

// The row of a thread, blocks with the last rows first (launch.cuh says why). Groups past the last row take the last
// one: they read what is there and must write nothing.
struct Row {
    long long index;
    bool live;
};
__device__ __forceinline__ Row row_of_group(long long rows) {
    const long long row = static_cast<long long>(gridDim.x - 1 - blockIdx.x) * blockDim.y + threadIdx.y;
    return row < rows ? Row{row, true} : Row{rows - 1, false};
}

// Sums over the elements of one vector; a row's sum is a sum of these, which rounds less than one running sum.
template <int VEC> __device__ __forceinline__ float sum_of(const float (&value)[VEC]) {
    float sum = value[0];
#pragma unroll
    for (int v = 1; v < VEC; ++v) sum += value[v];
    return sum;
}

template <int VEC> __device__ __forceinline__ float sum_of_squares(const float (&value)[VEC]) {
    float sum = value[0] * value[0];
#pragma unroll
    for (int v = 1; v < VEC; ++v) sum = fmaf(value[v], value[v], sum);
    return sum;
}

// Sums of N values over the threads of each group; every thread of a group gets the same bits. All threads of the
// block must call it.
template <class Scalar, int N> __device__ __forceinline__ void group_sum(Scalar (&value)[N]) {
    const int group = blockDim.x;
    for (int offset = 1; offset < min(group, kWarp); offset *= 2) {
#pragma unroll
        for (int n = 0; n < N; ++n) value[n] += __shfl_xor_sync(0xffffffffu, value[n], offset);
    }
    if (group <= kWarp) return;
    __shared__ Scalar partial[N][kWarp];
    const int warp = threadIdx.x / kWarp;
    __syncthreads();  // an earlier call's readers are done
    if (threadIdx.x % kWarp == 0) {
#pragma unroll
        for (int n = 0; n < N; ++n) partial[n][warp] = value[n];
    }
    __syncthreads();
#pragma unroll
    for (int n = 0; n < N; ++n) value[n] = 0;
#pragma unroll 1
    for (int w = 0; w < group / kWarp; ++w) {
#pragma unroll
        for (int n = 0; n < N; ++n) value[n] += partial[n][w];
    }
}

// sum / COUNT in three instructions, correctly rounded: the mean of equal numbers is that number.
template <int COUNT> __device__ __forceinline__ float divided_by(float sum) {
    constexpr float kInverse = 1.0f / COUNT;
    const float quotient = sum * kInverse;
    return fmaf(fmaf(-quotient, static_cast<float>(COUNT), sum), kInverse, quotient);
}

// Mean of a set of numbers, and the sum of their squared differences to it.
struct Moments {
    float mean;
    float squares;
};

// The moments of what all lanes of each `group` of a warp hold, COUNT numbers a lane. Two sets of n numbers are merged
// without cancellation (Chan, Golub and LeVeque 1979): their squares, and n / 2 times the squared difference of their
// means. Every lane of a group gets the same bits.
template <int COUNT> __device__ __forceinline__ Moments warp_moments(Moments own, int group) {
    float half_count = 0.5f * COUNT;
    for (int offset = 1; offset < group; offset *= 2) {
        const float mean = __shfl_xor_sync(0xffffffffu, own.mean, offset);
        const float squares = __shfl_xor_sync(0xffffffffu, own.squares, offset);
        const float difference = own.mean - mean;
        own.squares = fmaf(difference * difference, half_count, own.squares + squares);
        own.mean = 0.5f * (own.mean + mean);
        half_count *= 2.0f;
    }
    return own;
}

// The same for groups of any size; call it once in a kernel, in all threads of the block.
template <int COUNT> __device__ __forceinline__ Moments group_moments(Moments own, int group) {
    own = warp_moments<COUNT>(own, min(group, kWarp));
    if (group <= kWarp) return own;
    __shared__ Moments partial[kWarp];
    if (threadIdx.x % kWarp == 0) partial[threadIdx.x / kWarp] = own;
    __syncthreads();
    const int warps = group / kWarp;
    Moments all{0.0f, 0.0f};
#pragma unroll 1
    for (int w = 0; w < warps; ++w) all.mean += partial[w].mean;
    all.mean /= warps;
#pragma unroll 1
    for (int w = 0; w < warps; ++w) {
        const float difference = partial[w].mean - all.mean;
        all.squares += fmaf(difference * difference, COUNT * kWarp, partial[w].squares);
    }
    return all;
}

}  // namespace swin
