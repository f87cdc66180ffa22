// LayerNorm over the last axis, with or without weight and bias: C interface.
#pragma once

#include "common/swin_types.h"

#ifdef __cplusplus
extern "C" {
#endif

// y = (x - mean) / sqrt(var + epsilon) [* gamma + beta], x and y [rows, width] of `type`, gamma and beta [width] FP32
// or both null. Returns a cudaError_t: see swin_types.h.
struct SwinLayerNorm {
    const void* x;
    const float *gamma, *beta;
    void* y;
    long long rows;
    int type, width;
    float epsilon;
};
int swin_layernorm(const struct SwinLayerNorm* arguments, cudaStream_t stream);

#ifdef __cplusplus
}
#endif
