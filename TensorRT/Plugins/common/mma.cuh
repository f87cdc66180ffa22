// Matrix products of a warp on tensor cores (mma.sync), and reductions over their accumulators.
//
// FP16 runs from sm_75 on: there a product of depth 16 is two of depth 8. BF16 products exist from sm_80 on; before,
// the launchers must take another kernel.
#pragma once

#include <cstdint>

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "ptx.cuh"

namespace swin {

// What the two 16-bit types differ in. A pair is two neighbouring elements in one register, the first one low.
//   mma: d[16x8] = a[16x16] b[16x8] + c[16x8], FP32 sums; d and c may be the same.
template <typename T> struct Packed;

template <> struct Packed<__half> {
    static constexpr uint32_t kOnes = 0x3C003C00;
    static __device__ __forceinline__ uint32_t pack(float low, float high) {
        const __half2 pair = __floats2half2_rn(low, high);
        return *reinterpret_cast<const uint32_t*>(&pair);
    }
    static __device__ __forceinline__ float2 unpack(uint32_t pair) {
        return __half22float2(*reinterpret_cast<const __half2*>(&pair));
    }
    static __device__ __forceinline__ void mma(
        float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, const float (&c)[4]) {
#if __CUDA_ARCH__ >= 800
        asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
            "{%10, %11, %12, %13};"
            : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "f"(c[0]), "f"(c[1]), "f"(c[2]), "f"(c[3]));
#else
        mma_8(d, a[0], a[1], b0, c);
        mma_8(d, a[2], a[3], b1, d);
    }
    // d[16x8] = a[16x8] b[8x8] + c[16x8]
    static __device__ __forceinline__ void mma_8(
        float (&d)[4], uint32_t a0, uint32_t a1, uint32_t b, const float (&c)[4]) {
        asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%7, %8, %9, %10};"
            : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
            : "r"(a0), "r"(a1), "r"(b), "f"(c[0]), "f"(c[1]), "f"(c[2]), "f"(c[3]));
#endif
    }
};

template <> struct Packed<__nv_bfloat16> {
    static constexpr uint32_t kOnes = 0x3F803F80;
    static __device__ __forceinline__ uint32_t pack(float low, float high) {
        const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
        return *reinterpret_cast<const uint32_t*>(&pair);
    }
    static __device__ __forceinline__ float2 unpack(uint32_t pair) {
        return __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(&pair));
    }
    static __device__ __forceinline__ void mma(
        float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, const float (&c)[4]) {
#if __CUDA_ARCH__ >= 800
        asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
            "{%10, %11, %12, %13};"
            : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "f"(c[0]), "f"(c[1]), "f"(c[2]), "f"(c[3]));
#else
        __trap();
#endif
    }
};

// d[16x8] += a[16x32] b[32x8] of INT8, INT32 sums. Fragments are those of ldmatrix_x4, an INT8 row of 16 being one of
// its rows of 16 bytes.
__device__ __forceinline__ void mma_int8(int (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
#if __CUDA_ARCH__ >= 800
    asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#else
    const uint32_t b[2] = {b0, b1};
#pragma unroll
    for (int i = 0; i < 4; ++i) {  // 8 rows and a depth of 16 at a time
        asm("mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 {%0, %1}, {%2}, {%3}, {%0, %1};"
            : "+r"(d[i % 2 * 2]), "+r"(d[i % 2 * 2 + 1])
            : "r"(a[i]), "r"(b[i / 2]));
    }
#endif
}

// Reductions over the four lanes that share a row of an accumulator.
template <class T> __device__ __forceinline__ T quad_sum(T x) {
    x += __shfl_xor_sync(~0U, x, 1);
    return x + __shfl_xor_sync(~0U, x, 2);
}
__device__ __forceinline__ float quad_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(~0U, x, 1));
    return fmaxf(x, __shfl_xor_sync(~0U, x, 2));
}

// Sum of two pairs, added in FP32 and rounded once.
template <typename T> __device__ __forceinline__ uint32_t add_pairs(uint32_t a, uint32_t b) {
    const float2 x = Packed<T>::unpack(a), y = Packed<T>::unpack(b);
    return Packed<T>::pack(x.x + y.x, x.y + y.y);
}

}  // namespace swin
