// Products of FP32 numbers on tensor cores, which multiply TF32: 11 significant bits, FP32's exponents.
//
// An FP32 number a is high + low, both TF32, but for 2^-23 of it: high is a rounded to TF32, low the rest, and a b =
// high low' + low high' + high high' but for 2^-22 ("3xTF32": Ootomo and Yokota, 2022, and CUTLASS's examples).
#pragma once

#include <cstdint>

#include <cuda_runtime_api.h>

namespace swin {

// The 13 bits that FP32 has more than TF32.
constexpr uint32_t kBeyondTF32 = 0x1FFFU;

// high is rounded, ties away from 0. low, of at most 13 bits, loses at most its last whether cut or rounded; cut, it
// is no number wherever x is not finite, or high is not: a carry would make 0 of the GPU's own NaN, 0x7FFFFFFF.
__device__ __forceinline__ void split(float x, uint32_t& high, uint32_t& low) {
    high = (__float_as_uint(x) + 0x1000U) & ~kBeyondTF32;
    low = __float_as_uint(x - __uint_as_float(high)) & ~kBeyondTF32;
}

__device__ __forceinline__ void split(const uint4& x, uint4& high, uint4& low) {
    split(__uint_as_float(x.x), high.x, low.x);
    split(__uint_as_float(x.y), high.y, low.y);
    split(__uint_as_float(x.z), high.z, low.z);
    split(__uint_as_float(x.w), high.w, low.w);
}

// --- products of a warp, from sm_80 on: m16n8k8 ----------------------------------------------------------------------

// Lane l has, with quad = l / 4 and place = l % 4, of
//   a[16x8]:  (quad, place), (quad + 8, place), (quad, place + 4), (quad + 8, place + 4)
//   b[8x8]:   (place, quad), (place + 4, quad)
//   d[16x8]:  (quad, 2 place), (quad, 2 place + 1), (quad + 8, 2 place), (quad + 8, 2 place + 1)
// (PTX ISA, "Matrix fragments for mma.m16n8k8"). d = a b + c, and may be c.
__device__ __forceinline__ void mma_tf32(
    float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], const float (&c)[4]) {
#if __CUDA_ARCH__ >= 800
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%10, %11, %12, %13};"
        : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "f"(c[0]), "f"(c[1]), "f"(c[2]), "f"(c[3]));
#else
    __trap();  // the launchers take another kernel
#endif
}

// A fragment of N registers in two parts.
template <int N> struct SplitFragment {
    uint32_t high[N], low[N];

    SplitFragment() = default;
    __device__ __forceinline__ explicit SplitFragment(const float (&x)[N]) {
#pragma unroll
        for (int i = 0; i < N; ++i) split(x[i], high[i], low[i]);
    }
};

// sums += a b as exactly as FP32 does. Tensor cores truncate when they add, which pulls sums towards 0, more with each
// addition: so they add up these 8 numbers along K only, the small products first, and CUDA cores, which round to
// nearest, add the result.
__device__ __forceinline__ void add_product(
    float (&sums)[4], const SplitFragment<4>& a, const SplitFragment<2>& b) {
    const float zero[4] = {0.0F, 0.0F, 0.0F, 0.0F};
    float product[4];
    mma_tf32(product, a.low, b.high, zero);
    mma_tf32(product, a.high, b.low, product);
    mma_tf32(product, a.high, b.high, product);
#pragma unroll
    for (int i = 0; i < 4; ++i) sums[i] += product[i];
}

}  // namespace swin
