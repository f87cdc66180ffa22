// Whole (shifted-)window attention in one pass over image-order qkv. README.md beside this file is the contract.
#pragma once

#include <cuda_runtime_api.h>

// y[B, H*W, C] = window attention of qkv[B, H*W, 3C], head_dim 32, C = 32 * num_heads; type is a SwinType (both).
//   bias         [num_heads, N, Np] FP32, N = window_size^2, Np = N rounded up to a multiple of 8; pads are never used
//   logit_scale  [num_heads] FP32, clamped and exponentiated: cosine attention (Swin V2); null: dot product (V1)
//   scale        multiplies q.k in V1 (head_dim^-0.5); ignored in V2
//   mask_value   added between tokens of different shift regions where shift_size > 0 (-100 in both models)
// Returns a cudaError_t: cudaErrorInvalidValue for a shape outside the contract, else what the launch returned.
struct SwinAttention {
    const void* qkv;
    const float *bias, *logit_scale;
    void* y;
    int type, batch, height, width, channels, num_heads, window_size, shift_size;
    float scale, mask_value;
};
extern "C" int swin_attention(const SwinAttention* arguments, cudaStream_t stream);

// The same of an INT8 qkv, which stands for qkv * qkv_scale.
//   qkv_scale    positive
//   y_scale      0: y is FP16; positive: y is INT8, quantised with it
struct SwinAttentionInt8 {
    const void* qkv;
    const float *bias, *logit_scale;
    void* y;
    int batch, height, width, channels, num_heads, window_size, shift_size;
    float scale, mask_value, qkv_scale, y_scale;
};
extern "C" int swin_attention_int8(const SwinAttentionInt8* arguments, cudaStream_t stream);
