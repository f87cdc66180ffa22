// Swin's patch embedding: convolution without overlap, tokens, LayerNorm: C interface.
#pragma once

#include "common/swin_types.h"

// In elements: what a token is made of (in_channels * patch_size^2), and its channels.
#define SWIN_MAX_PATCH 4096

#ifdef __cplusplus
extern "C" {
#endif

// x [batch, in_channels, height, width] -> y [batch, height/P * width/P, channels], both of `type`:
// y = LN(conv(x, weight, stride P) + bias) * gamma + beta, P = patch_size, which divides height and width.
// weight [channels, in_channels, P, P], bias, gamma and beta [channels] are FP32 (for 16-bit types the tensor cores
// take the weight rounded to `type`). Returns a cudaError_t: see swin_types.h.
int swin_patch_embed(const void* x, const float* weight, const float* bias, const float* gamma, const float* beta,
    void* y, int type, int batch, int in_channels, int height, int width, int patch_size, int channels, float epsilon,
    cudaStream_t stream);

#ifdef __cplusplus
}
#endif
