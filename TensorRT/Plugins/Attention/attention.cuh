// What the attention kernels are given, and what they share. attention_kernel.cu says which there are.
#pragma once

#include <cstdint>
#include <type_traits>

#include "Attention/windows.cuh"
#include "common/quantize.cuh"
#include "common/vector_io.cuh"

namespace swin {

struct AttentionShape : Windows {
    int channels, num_heads;
    int head_width;           // d, a multiple of 8
    int bias_stride;          // Np
    Window stride;            // tensor_core_attention: from one window of a walk to the next
    float scale, mask_value;
    float qkv_scale;          // qkv is INT8: its step,
    float out_scale;          // and what takes p v to y
    bool plain_fp32;          // FP32 on CUDA cores only
};

struct AttentionTensors {
    const void* qkv;
    const float *bias, *padding, *logit_scale;
    void* y;
};

// A kernel's heads have kWidth features: d, and then zeros.
// kPads: d may be less than kWidth, and tokens may be padded ones. Without it the kernel does not look.

// A number of a padded token's q, k or v as qkv would hold it.
template <typename T> __device__ T padding_value(float value, const AttentionShape& shape) {
    if constexpr (std::is_same_v<T, int8_t>) {  // as QuantizeLinear: a quotient, not a product with 1 / step
        return static_cast<int8_t>(fminf(fmaxf(rintf(__fdiv_rn(value, shape.qkv_scale)), -128.F), 127.F));
    } else {
        return from_float<T>(value);
    }
}

// kWidth 64, with kPads, which is compiled by itself (attention_wide_kernel.cu). type: a SwinType that exists;
// quantized: y is INT8, else FP16.
void launch_wide_attention(const AttentionTensors& t, const AttentionShape& shape, int type, cudaStream_t stream);
void launch_wide_attention_int8(
    const AttentionTensors& t, const AttentionShape& shape, bool quantized, cudaStream_t stream);

}  // namespace swin
