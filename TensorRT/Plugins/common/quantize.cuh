// FP32 to INT8 as QuantizeLinear with zero point 0 does it: saturate(round_half_even(value / scale)).
#pragma once

#include <cstdint>

namespace swin {

// Adding 1.5 * 2^23 makes FP32 round to an integer, half to even, and leaves that integer in the low bits; no
// conversion instruction, of which there are few a clock. Only the low byte of the result counts.
__device__ __forceinline__ uint32_t quantize(float value, float inverse_scale) {
    constexpr float kMagic = 12582912.0F;
    const float rounded = fmaf(value, inverse_scale, kMagic);
    return __float_as_uint(fminf(fmaxf(rounded, kMagic - 128.0F), kMagic + 127.0F));
}

__device__ __forceinline__ uint16_t quantize_pair(float first, float second, float inverse_scale) {
    return static_cast<uint16_t>(__byte_perm(quantize(first, inverse_scale), quantize(second, inverse_scale), 0x0040));
}

// Four neighbouring elements, the first in the lowest byte.
__device__ __forceinline__ uint32_t quantize_quad(float a, float b, float c, float d, float inverse_scale) {
    const uint32_t low = __byte_perm(quantize(a, inverse_scale), quantize(b, inverse_scale), 0x0040);
    const uint32_t high = __byte_perm(quantize(c, inverse_scale), quantize(d, inverse_scale), 0x0040);
    return __byte_perm(low, high, 0x5410);
}

// VEC neighbouring elements, 1 or 8, as one store; y is a multiple of VEC bytes.
template <int VEC>
__device__ __forceinline__ void store_quantized(int8_t* y, const float (&value)[VEC], float inverse_scale) {
    static_assert(VEC == 1 || VEC == 8);
    if constexpr (VEC == 1) {
        *y = static_cast<int8_t>(quantize(value[0], inverse_scale));
    } else {
        *reinterpret_cast<uint2*>(y)
            = make_uint2(quantize_quad(value[0], value[1], value[2], value[3], inverse_scale),
                quantize_quad(value[4], value[5], value[6], value[7], inverse_scale));
    }
}

}  // namespace swin
