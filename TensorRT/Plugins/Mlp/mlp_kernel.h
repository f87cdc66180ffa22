// The MLP branch of a Swin block with its LayerNorm and residual, and the end of the attention branch before it: C
// interface.
#pragma once

#include <stddef.h>

#include "Linear/linear_kernel.h"

// What a product takes, and room for what lies between the products of a slice of rows.
#define SWIN_MLP_WORKSPACE_BYTES (SWIN_LINEAR_WORKSPACE_BYTES + (64 << 20))

#ifdef __cplusplus
extern "C" {
#endif

// norm_first 1 (V1): y = x + fc2(GELU(fc1(LN(x) * gamma + beta)))
//            0 (V2): y = x + LN(fc2(GELU(fc1(x)))) * gamma + beta
// with fc1(v) = v weight1^T + bias1, fc2(v) = v weight2^T + bias2 and GELU as gelu, SWIN_GELU or
// SWIN_TANH_GELU, says. Given
// attention, both x of a line stand for
// norm_first 1 (V1): x + proj(attention)
//            0 (V2): x + LN(proj(attention)) * proj_gamma + proj_beta
// with proj(v) = v proj_weight^T + proj_bias.
// x, attention and y [rows, width], of which y overlaps neither other, weight1 [hidden, width], bias1 [hidden],
// weight2 [width, hidden], bias2 [width], proj_weight [width, width], proj_bias [width], all of `type`; gamma, beta,
// proj_gamma and proj_beta [width] FP32. attention null: proj_* are null too; proj_gamma and proj_beta are null in V1.
// workspace: workspace_bytes of device memory, 256-byte aligned, that no other stream uses meanwhile. It has room for a
// product's (SWIN_LINEAR_WORKSPACE_BYTES) and for one row at least, which is of `hidden` elements, with attention of
// hidden + width; the more, the fewer slices.
// Weights and biases are constants: the kernel just before does not write them.
// The first call for a shape may ask cuBLASLt for an algorithm and keep the answer: make it outside of a graph capture.
// Returns a cudaError_t: see swin_types.h.
struct SwinMlp {
    const void* x;
    const float *gamma, *beta;
    const void *weight1, *bias1, *weight2, *bias2;
    const void *attention, *proj_weight, *proj_bias;
    const float *proj_gamma, *proj_beta;
    void* y;
    long long rows;
    int type, width, hidden, norm_first, gelu;
    float epsilon;
    void* workspace;
    size_t workspace_bytes;
    int plain_fp32;  // as SwinLinear's
};
int swin_mlp(const struct SwinMlp* arguments, cudaStream_t stream);

#ifdef __cplusplus
}
#endif
