// Whole (shifted-)window attention in one pass over image-order qkv. README.md beside this file is the contract.
#pragma once

#include <cuda_runtime_api.h>

// y[B, H, W, C] = window attention of qkv[B, H, W, 3C] (channel = q, k or v; head; d); type is a SwinType (both).
//   d            C / num_heads, a multiple of 8 from 8 to 64
//   window       1 to 32 a side; N = window_height * window_width tokens
//   bias         [num_heads, N, Np] FP32, Np = N rounded up to a multiple of 8; pads are never used
//   padding      [3C] FP32: q, k and v of a padded token, rounded to `type` before they are used. May be null where
//                the windows divide height and width
//   logit_scale  [num_heads] FP32, clamped and exponentiated: cosine attention (Swin V2); null: dot product (V1)
//   scale        multiplies q.k in V1 (d^-0.5 of the source's d); ignored in V2
//   mask_value   added between tokens of different shift regions (-100 in both models)
//   shift        0 <= shift < window, of each axis
//   roll_first   where windows do not divide a side: 0, the image is padded and then rolled; 1, rolled and then padded
//   shift_if_covered  0: an axis whose padded side is one window is not shifted; 1: it is shifted as any other
//   plain_fp32   of FP32, 1: on CUDA cores; -1: from sm_80 on, on tensor cores as products of TF32 parts; 0: the default
//                of the two, which is CUDA cores until the other is measured
// Returns a cudaError_t: cudaErrorInvalidValue for a shape outside the contract, else what the launch returned.
struct SwinAttention {
    const void* qkv;
    const float *bias, *padding, *logit_scale;
    void* y;
    int type, batch, height, width, channels, num_heads;
    int window_height, window_width, shift_height, shift_width, roll_first, shift_if_covered;
    float scale, mask_value;
    int plain_fp32;
};
extern "C" int swin_attention(const SwinAttention* arguments, cudaStream_t stream);

// The same of an INT8 qkv, which stands for qkv * qkv_scale; padding is quantised as qkv is.
//   qkv_scale    positive
//   y_scale      0: y is FP16; positive: y is INT8, quantised with it
struct SwinAttentionInt8 {
    const void* qkv;
    const float *bias, *padding, *logit_scale;
    void* y;
    int batch, height, width, channels, num_heads;
    int window_height, window_width, shift_height, shift_width, roll_first, shift_if_covered;
    float scale, mask_value, qkv_scale, y_scale;
};
extern "C" int swin_attention_int8(const SwinAttentionInt8* arguments, cudaStream_t stream);
