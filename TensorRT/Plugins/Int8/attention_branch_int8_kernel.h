// The attention branch of a Swin block on INT8 tensors, with its residual and the LayerNorm at its end: C interface.
// README.md beside this file is the contract.
#pragma once

#include <cstddef>
#include <cstdint>

#include "Attention/windows.cuh"
#include "common/swin_types.h"

// Room for what lies between the kernels of a group of images, where it is not one kernel.
#define SWIN_ATTENTION_BRANCH_WORKSPACE_BYTES (64 << 20)

namespace swin {

constexpr int kHeadDim = 32;  // of every head of the branch

// What one image of the group takes of that: qkv, and later proj in its place.
constexpr long long attention_branch_bytes_per_image(long long tokens, long long channels) {
    return 3 * tokens * channels;
}

}  // namespace swin

// attention = proj(window attention of qkv(x_q)), C = 32 * num_heads, of square windows that divide height and width:
//   norm_first 1 (V1): y = x + attention;                              y_q = LN(y) * gamma + beta
//   norm_first 0 (V2): y = x + LN(attention) * gamma + beta;           y_q = y
// step by step what swin_linear_int8, swin_attention_int8, swin_linear_int8 and swin_layernorm_int8 or
// swin_layernorm_add_int8 do, with the same roundings between.
//   x_q           [batch, height, width, C] INT8
//   x             [batch, height, width, C] FP16, the residual
//   qkv_weight    [3C, C] INT8; qkv_factor, qkv_bias [3C] FP32: qkv = (x_q qkv_weight^T) * qkv_factor + qkv_bias
//   proj_weight   [C, C] INT8; proj_factor, proj_bias [C] FP32, the same of attention's result
//   bias          [num_heads, N, Np] FP32 as swin_attention's; where the branch is one kernel, that takes it for a
//                 function of the relative position, as it is in all Swin Transformers
//   logit_scale   [num_heads] FP32 (V2), or null (V1)
//   gamma, beta   [C] FP32
//   y             [batch, height, width, C] FP16; y_q the same in INT8. Neither overlaps an input.
//   qkv_scale, attention_scale, y_scale   steps of INT8 qkv, attention's result and y_q, positive
//   proj_scale    V2: step of INT8 proj, positive; V1: 0, as x + proj is FP16
// workspace: workspace_bytes of device memory, 256-byte aligned, that no other stream uses meanwhile; with room for one
// image at least: attention_branch_bytes_per_image. Weights, factors, biases, logit_scale, gamma and beta are
// constants: the kernel just before does not write them. Pointers are multiples of 16 bytes.
// Returns a cudaError_t: see swin_types.h.
struct SwinAttentionBranchInt8 {
    const int8_t* x_q;
    const void* x;
    const int8_t* qkv_weight;
    const float *qkv_factor, *qkv_bias;
    const int8_t* proj_weight;
    const float *proj_factor, *proj_bias;
    const float* bias;
    const float *gamma, *beta;
    const float* logit_scale;
    void* y;
    int8_t* y_q;
    int batch, height, width, num_heads;
    int window_height, window_width, shift_height, shift_width, roll_first, shift_if_covered, norm_first;
    float scale, mask_value;
    float qkv_scale, attention_scale, proj_scale, epsilon, y_scale;
    void* workspace;
    size_t workspace_bytes;
};
extern "C" int swin_attention_branch_int8(const SwinAttentionBranchInt8* arguments, cudaStream_t stream);

namespace swin {

// Whether the branch has windows of the contract, and then these windows.
inline bool describe_branch(Windows& windows, const SwinAttentionBranchInt8& a) {
    return a.window_height == a.window_width && describe(windows, a) && !windows.padded;
}

// Whether attention_branch_int8_sm90 takes the branch, and is faster at it than the kernels of its parts.
__attribute__((weak)) bool fits_attention_branch_sm90(const SwinAttentionBranchInt8& a, int multiprocessors);
// All of it in one kernel, which keeps qkv, scores and attention's result on the chip, on compute capability 9.0. A
// library for other GPUs is built without it, and its address is null there. Returns a cudaError_t.
__attribute__((weak)) int attention_branch_int8_sm90(
    const SwinAttentionBranchInt8& a, int multiprocessors, cudaStream_t stream);

}  // namespace swin
