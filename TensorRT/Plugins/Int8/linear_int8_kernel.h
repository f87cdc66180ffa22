// Linear layers on INT8 tensors: C interface. README.md beside this file is the contract.
#pragma once

#include <cstdint>

#include "common/swin_types.h"

// The most features, K or N: |sums| stay below 2^31 with 128 * 128 * K.
#define SWIN_MAX_INT8_FEATURES 65536

// y[rows, N] = act((x[rows, K] weight[N, K]^T) * scale[N] + bias[N]) + residual[rows, N], K = in_features,
// N = out_features. x and weight are INT8, sums INT32, the rest FP32.
//   residual    FP16 or null
//   gelu        a SwinGelu: what act is; with either GELU residual is null
//   y_scale     0: y is FP16; else y is INT8, quantised with it
//   tile        0; or n: the n-th of the tiles that compute capability 9.0 has, for fit_tiles.py. Refused where there
//               is none
// K and N are multiples of 16 up to SWIN_MAX_INT8_FEATURES; pointers are multiples of 16 bytes.
// weight, scale and bias are constants: the kernel just before does not write them.
// Returns a cudaError_t: see swin_types.h.
struct SwinLinearInt8 {
    const void *x, *weight;
    const float *scale, *bias;
    const void* residual;
    void* y;
    long long rows;
    int in_features, out_features, gelu;
    float y_scale;
    int tile;
};
extern "C" int swin_linear_int8(const SwinLinearInt8* arguments, cudaStream_t stream);

namespace swin {

struct LinearInt8 {
    const int8_t *x, *weight;
    const float *scale, *bias;
    const void* residual;
    void* y;
    int rows, in_features, out_features;
    int gelu;               // a SwinGelu
    bool quantized;         // y is INT8
    float inverse_y_scale;  // where it is
    int tile;               // as SwinLinearInt8's
    cudaStream_t stream;
};

// GELU before INT8 is in FP16 on compute capability 9.0, 4.2e-4 off at most: y_scale is larger than that, and y not too
// large for FP16.
constexpr float kLeastScaleForHalves = 1.0F / 256.0F, kMostScaleForHalves = 64.0F;

// The product on compute capability 9.0 (linear_int8_sm90_kernel.cu); N is a multiple of 32, a residual only where y is
// FP16. A library for other GPUs is built without it, and its address is null there.
__attribute__((weak)) int linear_int8_sm90(const LinearInt8& a, int multiprocessors);

}  // namespace swin
