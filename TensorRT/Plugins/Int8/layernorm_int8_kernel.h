// LayerNorm forms with an INT8 output, and quantisation by itself: C interface. README.md beside this file is the contract.
// gamma and beta are FP32, x (but for an x_scale), residual and y FP16, y_q INT8 quantised with y_scale. Each returns a
// cudaError_t: see swin_types.h.
#pragma once

#include "common/swin_types.h"

#ifdef __cplusplus
extern "C" {
#endif

// Swin V1: y_q = LN(x) * gamma + beta, [rows, width].
struct SwinLayerNormInt8 {
    const void* x;
    const float *gamma, *beta;
    void* y_q;
    long long rows;
    int width;
    float epsilon, y_scale;
};
int swin_layernorm_int8(const struct SwinLayerNormInt8* arguments, cudaStream_t stream);

// Swin V2: y = residual + LN(x) * gamma + beta, and y_q of it, [rows, width].
//   x_scale     0: x is FP16; else x is INT8, and stands for x * x_scale
struct SwinLayerNormAddInt8 {
    const void *x, *residual;
    const float *gamma, *beta;
    void *y, *y_q;
    long long rows;
    int width;
    float epsilon, x_scale, y_scale;
};
int swin_layernorm_add_int8(const struct SwinLayerNormAddInt8* arguments, cudaStream_t stream);

// y_q = x quantised, count elements.
struct SwinQuantize {
    const void* x;
    void* y_q;
    long long count;
    float y_scale;
};
int swin_quantize(const struct SwinQuantize* arguments, cudaStream_t stream);

#ifdef __cplusplus
}
#endif
