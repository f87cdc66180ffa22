// Swin's patch embedding: convolution without overlap, tokens, LayerNorm: C interface.
#pragma once

#include "common/swin_types.h"

// In elements: what a token is made of (in_channels * patch_height * patch_width), and its channels.
#define SWIN_MAX_PATCH 4096

#ifdef __cplusplus
extern "C" {
#endif

// x [batch, in_channels, height, width] -> y [batch, h, w, channels]:
// y = LN(conv(x, weight, stride P) + bias) * gamma + beta, P = (patch_height, patch_width), where
//   ceil 0: h = floor(height / patch_height), w = floor(width / patch_width); what is left over is not read
//   ceil 1: h = ceil(height / patch_height), w = ceil(width / patch_width), with zeros at the bottom and the right
// All are FP32 but y, which is of y_type (SwinType). weight [channels, in_channels, patch_height, patch_width]; bias,
// gamma, beta [channels]. For 16-bit y, x and weight may be multiplied as sums of two numbers of y_type each: for FP16
// they must be within its range (beyond, y is NaN). Returns a cudaError_t: see swin_types.h.
struct SwinPatchEmbed {
    const float *x, *weight, *bias, *gamma, *beta;
    void* y;
    int y_type, batch, in_channels, height, width, patch_height, patch_width, ceil, channels;
    float epsilon;
};
int swin_patch_embed(const struct SwinPatchEmbed* arguments, cudaStream_t stream);

#ifdef __cplusplus
}
#endif
