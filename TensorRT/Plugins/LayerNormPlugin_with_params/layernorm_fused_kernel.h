// LayerNorm with weight and bias, fused with what stands beside it in Swin: C interface.
// gamma and beta are FP32; every other pointer is of `type`. Each returns a cudaError_t: see swin_types.h.
#pragma once

#include "common/swin_types.h"

#ifdef __cplusplus
extern "C" {
#endif

// Swin V1, residual then norm: sum = x + residual, y = LN(sum) * gamma + beta, all [rows, width].
// The sum is normalised as it is in FP32, before it is rounded to `type`. sum may be x.
struct SwinAddLayerNorm {
    const void *x, *residual;
    const float *gamma, *beta;
    void *sum, *y;
    long long rows;
    int type, width;
    float epsilon;
};
int swin_add_layernorm(const struct SwinAddLayerNorm* arguments, cudaStream_t stream);

// Swin V2, norm then residual: y = residual + LN(x) * gamma + beta, all [rows, width].
// y may be x.
struct SwinLayerNormAdd {
    const void *x, *residual;
    const float *gamma, *beta;
    void* y;
    long long rows;
    int type, width;
    float epsilon;
};
int swin_layernorm_add(const struct SwinLayerNormAdd* arguments, cudaStream_t stream);

// Patch merging: x [batch, height, width, channels] -> y [batch, ceil(height / 2), ceil(width / 2), 4 * channels], the
// four neighbours in the order (0,0), (1,0), (0,1), (1,1) of (row, column) offsets, zeros where an odd side has none,
// then LN over 4 * channels with gamma and beta [4 * channels]. gamma and beta null: only the gather (epsilon unused).
struct SwinPatchMerge {
    const void* x;
    const float *gamma, *beta;
    void* y;
    int type, batch, height, width, channels;
    float epsilon;
};
int swin_patch_merge(const struct SwinPatchMerge* arguments, cudaStream_t stream);

#ifdef __cplusplus
}
#endif
