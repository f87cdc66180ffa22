// GELU, x * Phi(x), with Phi the normal distribution function, and its tanh form (SwinGelu in swin_types.h).
#pragma once

#include <cuda_fp16.h>

#include "mma.cuh"

namespace swin {

// The tanh form. (1 + tanh(u)) / 2 is the logistic function of 2u, which is exact also where 1 + tanh cancels.
__device__ __forceinline__ float tanh_gelu(float x) {
    constexpr float kTwiceRoot = 1.5957691216F;  // 2 sqrt(2 / pi)
    return x / (1.0F + expf(-kTwiceRoot * fmaf(0.044715F * x * x, x, x)));
}

// x Phi(x) = max(x, 0) - |x| tail(|x|), where tail = 1 - Phi is 2 to a polynomial, a minimax fit of log2(tail) weighted
// by what an error of it does to the result. At most 6.4e-7 off for every finite x (numpy emulation of the FP32 steps,
// 2.4 million points of [-1e4, 1e4]), in 5 FMA, one exp2, a maximum and an FMA: little enough to hide behind the tensor
// cores in a product's epilogue. The polynomial's highest coefficient is negative: far out the tail is 0.
__device__ __forceinline__ float gelu(float x) {
    const float a = fabsf(x);
    float exponent = -4.73293970e-4F;
    exponent = fmaf(exponent, a, 7.08446093e-3F);
    exponent = fmaf(exponent, a, -5.18271700e-2F);
    exponent = fmaf(exponent, a, -4.59992647e-1F);
    exponent = fmaf(exponent, a, -1.15078771F);
    exponent = fmaf(exponent, a, -1.00003767F);
    return fmaf(-a, ex2_approx(exponent), fmaxf(x, 0.0F));
}

// The same for results in FP32, with a polynomial that has three more coefficients and 1/2 at 0: before the result is
// rounded at most 4.3e-8 off, and near 0 by 1.1e-7 of it (numpy emulation of the FP32 steps, 1.3 million points of
// [-13, 13]; ex2.approx may add as much).
__device__ __forceinline__ float fine_gelu(float x) {
    const float a = fminf(fabsf(x), 13.0F);  // where the tail is less than 2^-126
    float exponent = -1.90204923e-6F;
    exponent = fmaf(exponent, a, 2.80567219e-5F);
    exponent = fmaf(exponent, a, -1.31472058e-4F);
    exponent = fmaf(exponent, a, -2.72078905e-4F);
    exponent = fmaf(exponent, a, 7.24542607e-3F);
    exponent = fmaf(exponent, a, -5.26276156e-2F);
    exponent = fmaf(exponent, a, -4.59162146e-1F);
    exponent = fmaf(exponent, a, -1.15111101F);
    exponent = fmaf(exponent, a, -1.0F);
    return fmaf(-a, ex2_approx(exponent), fmaxf(x, 0.0F));
}

// gelu of two FP16 in FP16, half as many instructions, for a result that is then rounded to INT8: at most 4.2e-4
// and a rounding off for every FP16 (numpy emulation of the steps, with what PTX allows ex2.approx.f16 to be off).
__device__ __forceinline__ __half2 gelu(__half2 x) {
    const __half2 a = __hmin2(__habs2(x), __float2half2_rn(65504.0F));  // infinity times a tail of 0 is no number
    __half2 exponent = __float2half2_rn(-4.73293970e-4F);
    exponent = __hfma2(exponent, a, __float2half2_rn(7.08446093e-3F));
    exponent = __hfma2(exponent, a, __float2half2_rn(-5.18271700e-2F));
    exponent = __hfma2(exponent, a, __float2half2_rn(-4.59992647e-1F));
    exponent = __hfma2(exponent, a, __float2half2_rn(-1.15078771F));
    exponent = __hfma2(exponent, a, __float2half2_rn(-1.00003767F));
    uint32_t tail;
    asm("ex2.approx.f16x2 %0, %1;" : "=r"(tail) : "r"(*reinterpret_cast<const uint32_t*>(&exponent)));
    return __hfma2(__hneg2(a), *reinterpret_cast<const __half2*>(&tail), __hmax2(x, __float2half2_rn(0.0F)));
}

}  // namespace swin
