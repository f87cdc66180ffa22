// FP32 to INT8 as QuantizeLinear with zero point 0 does it: saturate(round_half_even(value / scale)).
#pragma once

#include <algorithm>
#include <cfloat>
#include <cstdint>

#include <cuda_fp16.h>

namespace swin {

// Adding 1.5 * 2^23 makes FP32 round to an integer, half to even, and leaves that integer in the low bits; no
// conversion instruction, of which there are few a clock. Only the low byte of the result counts.
constexpr float kRoundToInteger = 12582912.0F;

__device__ __forceinline__ uint32_t quantize(float value, float inverse_scale) {
    const float rounded = fmaf(value, inverse_scale, kRoundToInteger);
    return __float_as_uint(fminf(fmaxf(rounded, kRoundToInteger - 128.0F), kRoundToInteger + 127.0F));
}
// The same without comparisons, of which there are half as many a clock as FMA: the first FMA, saturated to [0, 1],
// says where the value is between -128 and 127 steps. Within 255 * 2^-23 steps of a tie the neighbour may come out.
__device__ __forceinline__ uint32_t quantize_but_for_ties(float value, float inverse_scale) {
    const float place = __saturatef(fmaf(value, inverse_scale * (1.0F / 255.0F), 128.0F / 255.0F));
    return __float_as_uint(fmaf(place, 255.0F, kRoundToInteger - 128.0F));
}

__device__ __forceinline__ uint16_t quantize_pair(float first, float second, float inverse_scale) {
    return static_cast<uint16_t>(__byte_perm(quantize(first, inverse_scale), quantize(second, inverse_scale), 0x0040));
}

// The low bytes of four neighbouring elements, the first in the lowest.
__device__ __forceinline__ uint32_t low_bytes(uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
    return __byte_perm(__byte_perm(a, b, 0x0040), __byte_perm(c, d, 0x0040), 0x5410);
}
__device__ __forceinline__ uint32_t quantize_quad(float a, float b, float c, float d, float inverse_scale) {
    return low_bytes(
        quantize(a, inverse_scale), quantize(b, inverse_scale), quantize(c, inverse_scale), quantize(d, inverse_scale));
}

// VEC neighbouring elements, 1 or 8, as one store; y is a multiple of VEC bytes.
template <int VEC>
__device__ __forceinline__ void store_quantized(int8_t* y, const float (&value)[VEC], float inverse_scale) {
    static_assert(VEC == 1 || VEC == 8);
    if constexpr (VEC == 1) {
        *y = static_cast<int8_t>(quantize(value[0], inverse_scale));
    } else {
        *reinterpret_cast<uint2*>(y) = make_uint2(quantize_quad(value[0], value[1], value[2], value[3], inverse_scale),
            quantize_quad(value[4], value[5], value[6], value[7], inverse_scale));
    }
}

// 8 neighbouring elements, with quantize_but_for_ties.
__device__ __forceinline__ void store_quantized_but_for_ties(int8_t* y, const float (&value)[8], float inverse_scale) {
    uint32_t q[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) q[i] = quantize_but_for_ties(value[i], inverse_scale);
    *reinterpret_cast<uint2*>(y) = make_uint2(low_bytes(q[0], q[1], q[2], q[3]), low_bytes(q[4], q[5], q[6], q[7]));
}
// The same of FP16 pairs in FP16, where it takes 1.5 * 2^10: up to 2^-11 of a value and 255 * 2^-12 + 0.002 steps off
// where a step is 2^-16 to 64.
__device__ __forceinline__ void store_quantized_but_for_ties(
    int8_t* y, const __half2 (&value)[4], float inverse_scale) {
    const __half2 inverse = __float2half2_rn(inverse_scale * (1.0F / 255.0F));
    uint32_t pair[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const __half2 place = __hfma2_sat(value[i], inverse, __float2half2_rn(128.0F / 255.0F));
        const __half2 rounded = __hfma2(place, __float2half2_rn(255.0F), __float2half2_rn(1536.0F - 128.0F));
        pair[i] = *reinterpret_cast<const uint32_t*>(&rounded);
    }
    *reinterpret_cast<uint2*>(y)
        = make_uint2(__byte_perm(pair[0], pair[1], 0x6420), __byte_perm(pair[2], pair[3], 0x6420));
}

// The LayerNorm of x_scale * q with an epsilon is that of q, exact in FP32, with epsilon / x_scale^2. Never zero nor
// infinite, so that a row of equal numbers gives zeros.
inline float epsilon_in_steps(float epsilon, double x_scale) {
    return static_cast<float>(std::clamp<double>(epsilon / x_scale / x_scale, FLT_MIN, FLT_MAX));
}

}  // namespace swin
