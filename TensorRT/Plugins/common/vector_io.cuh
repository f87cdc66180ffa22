// Loads and stores of VEC neighbouring elements as one access, with conversion to and from FP32.
#pragma once

#include <cstdint>

#include <cuda_bf16.h>
#include <cuda_fp16.h>

namespace swin {

// Elements of T in one 16-byte access.
template <class T> constexpr int kVector = 16 / sizeof(T);

template <int BYTES> struct RawOf;
template <> struct RawOf<1> { using Type = uint8_t; };
template <> struct RawOf<2> { using Type = uint16_t; };
template <> struct RawOf<4> { using Type = uint32_t; };
template <> struct RawOf<8> { using Type = uint2; };
template <> struct RawOf<16> { using Type = uint4; };

// VEC elements of T as the register(s) that one load fills.
template <class T, int VEC> using Raw = typename RawOf<sizeof(T) * VEC>::Type;

template <class T, int VEC> __device__ __forceinline__ Raw<T, VEC> load_raw(const T* address) {
    return *reinterpret_cast<const Raw<T, VEC>*>(address);
}

// The same of what nobody reads again soon: the caches may drop it first.
template <class T, int VEC> __device__ __forceinline__ Raw<T, VEC> load_once(const T* address) {
    return __ldcs(reinterpret_cast<const Raw<T, VEC>*>(address));
}

template <class T, int VEC> __device__ __forceinline__ void store_raw(T* address, const Raw<T, VEC>& raw) {
    *reinterpret_cast<Raw<T, VEC>*>(address) = raw;
}

__device__ __forceinline__ float to_float(float value) { return value; }
__device__ __forceinline__ float to_float(int8_t value) { return value; }
__device__ __forceinline__ float to_float(__half value) { return __half2float(value); }
// BF16 is the upper half of an FP32: a shift, on every architecture.
__device__ __forceinline__ float to_float(__nv_bfloat16 value) {
    return __uint_as_float(static_cast<uint32_t>(__bfloat16_as_ushort(value)) << 16);
}

template <class T> __device__ __forceinline__ T from_float(float value);
template <> __device__ __forceinline__ float from_float<float>(float value) { return value; }
template <> __device__ __forceinline__ __half from_float<__half>(float value) { return __float2half_rn(value); }
template <> __device__ __forceinline__ __nv_bfloat16 from_float<__nv_bfloat16>(float value) {
    return __float2bfloat16_rn(value);
}

// Two neighbouring elements of a 16-bit type, rounded by one instruction where the GPU has it (sm_80 and later).
template <class T> struct PairOf { using Type = T; };  // FP32 and INT8 have no pairs
template <> struct PairOf<__half> { using Type = __half2; };
template <> struct PairOf<__nv_bfloat16> { using Type = __nv_bfloat162; };

__device__ __forceinline__ void round_pair(float low, float high, __half2& pair) {
    pair = __floats2half2_rn(low, high);
}
__device__ __forceinline__ void round_pair(float low, float high, __nv_bfloat162& pair) {
    pair = __floats2bfloat162_rn(low, high);
}

// The elements of one access, addressable one by one; lives in registers once loops over it are unrolled.
template <class T, int VEC> union Pack {
    Raw<T, VEC> raw;
    T element[VEC];
    typename PairOf<T>::Type pair[(VEC + 1) / 2];
    __device__ Pack() {}
};

template <class T, int VEC> __device__ __forceinline__ void unpack(const Raw<T, VEC>& raw, float (&value)[VEC]) {
    Pack<T, VEC> pack;
    pack.raw = raw;
#pragma unroll
    for (int i = 0; i < VEC; ++i) value[i] = to_float(pack.element[i]);
}

template <class T, int VEC> __device__ __forceinline__ Raw<T, VEC> pack(const float (&value)[VEC]) {
    Pack<T, VEC> pack;
    if constexpr (sizeof(T) == 2 && VEC > 1) {
#pragma unroll
        for (int i = 0; i < VEC / 2; ++i) round_pair(value[2 * i], value[2 * i + 1], pack.pair[i]);
    } else {
#pragma unroll
        for (int i = 0; i < VEC; ++i) pack.element[i] = from_float<T>(value[i]);
    }
    return pack.raw;
}

// VEC FP32 parameters from `address`, or `fallback` in each where there are none. They are constants while a kernel
// runs, so the compiler may move these loads past stores.
template <int VEC>
__device__ __forceinline__ void load_parameters(const float* address, int column, float fallback, float (&value)[VEC]) {
#pragma unroll
    for (int i = 0; i < VEC; ++i) value[i] = fallback;
    if (address == nullptr) return;
    if constexpr (VEC % 4 == 0) {
#pragma unroll
        for (int i = 0; i < VEC; i += 4) {
            const float4 part = __ldg(reinterpret_cast<const float4*>(address + column + i));
            value[i] = part.x;
            value[i + 1] = part.y;
            value[i + 2] = part.z;
            value[i + 3] = part.w;
        }
    } else {
#pragma unroll
        for (int i = 0; i < VEC; ++i) value[i] = __ldg(address + column + i);
    }
}

inline bool aligned16(const void* address) { return reinterpret_cast<uintptr_t>(address) % 16 == 0; }

}  // namespace swin
