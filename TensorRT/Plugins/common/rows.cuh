// How a kernel that reduces rows of [rows, width] is laid out over threads, and the reduction itself.
//
// A group of 4 to 1024 threads (a power of two) owns a row; each thread holds ITEMS vectors of VEC elements of it in
// registers, so that a row is read once. Groups of up to a warp share a block of 128 threads; a larger group is its
// block. Swin's widths are 3 * 2^k, so 3 or 6 vectors a thread fill every lane.
#pragma once

#include <climits>
#include <cmath>

#include "swin_types.h"
#include "vector_io.cuh"

namespace swin {

constexpr int kWarp = 32;

// Rows that a group works on at once: more loads in flight, and gamma and beta are read once for all of them.
constexpr int rows_at_once(int elements_per_thread, int vec) {
    return vec > 1 && elements_per_thread <= 32 ? 2 : 1;
}

// The largest block that a kernel is compiled for; VEC = 1 needs 1024 threads for SWIN_MAX_WIDTH at 8 items.
constexpr int max_threads(int vec) { return vec == 1 ? 1024 : 256; }

struct RowPlan {
    int group;    // threads that share a row, a power of two
    int items;    // vectors that each of them holds: 2, 3, 4, 6 or 8
    int threads;  // of a block
};

inline RowPlan plan_rows(int width, int vec) {
    const int vectors = (width + vec - 1) / vec;
    int group = 4;
    while (group < kWarp && vectors > 4 * group) group *= 2;
    if (vectors > 8 * kWarp) {
        while (group < max_threads(vec) && vectors > 4 * group) group *= 2;
    }
    const int needed = (vectors + group - 1) / group;
    const int items = needed <= 2 ? 2 : needed <= 4 ? needed : needed <= 6 ? 6 : 8;
    return {group, items, group > 128 ? group : 128};
}

template <class T_, int VEC_, int ITEMS_> struct RowShape {
    using T = T_;
    static constexpr int VEC = VEC_;
    static constexpr int ITEMS = ITEMS_;
    static constexpr int ROWS = rows_at_once(VEC_ * ITEMS_, VEC_);
    static constexpr int THREADS = max_threads(VEC_);
};

template <class T, int VEC, class Launch> int with_items(const RowPlan& plan, const Launch& launch) {
    switch (plan.items) {
    case 2: return launch(RowShape<T, VEC, 2>{}, plan);
    case 3: return launch(RowShape<T, VEC, 3>{}, plan);
    case 4: return launch(RowShape<T, VEC, 4>{}, plan);
    case 6: return launch(RowShape<T, VEC, 6>{}, plan);
    default: return launch(RowShape<T, VEC, 8>{}, plan);
    }
}

template <class T, class Launch> int with_vector(int width, bool vectorised, const Launch& launch) {
    if (vectorised) return with_items<T, kVector<T>>(plan_rows(width, kVector<T>), launch);
    return with_items<T, 1>(plan_rows(width, 1), launch);
}

inline int bytes_of(int type) { return type == SWIN_FP32 ? 4 : 2; }

// Calls launch(RowShape, RowPlan) with the shape that fits. contiguous: elements that are known to lie in a row in
// memory (the width, or the channels that a gather keeps together); aligned: all pointers are multiples of 16 bytes.
template <class Launch> int dispatch_rows(int type, int width, int contiguous, bool aligned, const Launch& launch) {
    if (width < 1 || width > SWIN_MAX_WIDTH) return cudaErrorInvalidValue;
    const bool vectorised = aligned && contiguous % (16 / bytes_of(type)) == 0;
    switch (type) {
    case SWIN_FP32: return with_vector<float>(width, vectorised, launch);
    case SWIN_FP16: return with_vector<__half>(width, vectorised, launch);
    case SWIN_BF16: return with_vector<__nv_bfloat16>(width, vectorised, launch);
    default: return cudaErrorInvalidValue;
    }
}

// Launches kernel(arguments, plan.group) over `rows` rows, rows_at_once of them by each group.
template <class Arguments>
int launch_rows(void (*kernel)(Arguments, int), const Arguments& arguments, const RowPlan& plan, long long rows,
    int rows_at_once, cudaStream_t stream) {
    const long long rows_per_block = static_cast<long long>(plan.threads / plan.group) * rows_at_once;
    const long long blocks = (rows + rows_per_block - 1) / rows_per_block;
    if (rows < 0 || blocks > INT_MAX) return cudaErrorInvalidValue;
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(static_cast<unsigned>(blocks));
    config.blockDim = dim3(static_cast<unsigned>(plan.threads));
    config.stream = stream;
    return cudaLaunchKernelEx(&config, kernel, arguments, plan.group);
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
template <class Scalar, int N> __device__ __forceinline__ void group_sum(Scalar (&value)[N], int group) {
    for (int offset = min(group, kWarp) / 2; offset > 0; offset /= 2) {
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
    for (int w = 0; w < group / kWarp; ++w) {
#pragma unroll
        for (int n = 0; n < N; ++n) value[n] += partial[n][w];
    }
}

}  // namespace swin
