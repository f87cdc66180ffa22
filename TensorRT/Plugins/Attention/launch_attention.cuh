// Which attention kernel runs, for heads that lie in shared memory as kWidth features.
#pragma once

#include <climits>

#include "Attention/plain_attention.cuh"
#include "Attention/tensor_core_attention.cuh"
#include "common/gpu.h"
#include "common/swin_types.h"

namespace swin {

// first_major: the compute capability from which on tensor cores multiply T.
template <int kWidth, bool kPads, typename T, typename Out, bool kCosine>
void launch_fastest(const AttentionTensors& t, const AttentionShape& shape, int first_major, cudaStream_t stream) {
    const Gpu gpu = current_gpu();
    const bool aligned = (reinterpret_cast<uintptr_t>(t.qkv) | reinterpret_cast<uintptr_t>(t.y)) % 16 == 0
        && reinterpret_cast<uintptr_t>(t.bias) % 8 == 0;
    const int multiprocessors = gpu.multiprocessors, positions = shape.positions;
    if (gpu.major < first_major || !aligned) {
        launch_plain<T, Out, kCosine, kWidth, kPads>(t, shape, stream);
    } else if (positions <= 56) {  // window 7: 49 keys are 7 columns of 8
        launch_tensor_core<T, Out, kCosine, kWidth, kPads, 4, 7, true>(t, shape, multiprocessors, stream);
    } else if (positions <= 64) {
        launch_tensor_core<T, Out, kCosine, kWidth, kPads, 4, 8, true>(t, shape, multiprocessors, stream);
    } else if (positions % 48 == 0 && positions % 64 != 0) {  // window 12: 144 = 3 * 48, without padding
        launch_tensor_core<T, Out, kCosine, kWidth, kPads, 3, 6, false>(t, shape, multiprocessors, stream);
    } else {
        launch_tensor_core<T, Out, kCosine, kWidth, kPads, 4, 8, false>(t, shape, multiprocessors, stream);
    }
}

// type: a SwinType that exists.
template <int kWidth, bool kPads, bool kCosine>
void launch_of_type(const AttentionTensors& t, const AttentionShape& shape, int type, cudaStream_t stream) {
    switch (type) {
    case SWIN_FP32:
        launch_fastest<kWidth, kPads, float, float, kCosine>(t, shape, shape.plain_fp32 ? INT_MAX : 8, stream);
        break;
    case SWIN_FP16: launch_fastest<kWidth, kPads, __half, __half, kCosine>(t, shape, 7, stream); break;
    default: launch_fastest<kWidth, kPads, __nv_bfloat16, __nv_bfloat16, kCosine>(t, shape, 8, stream);
    }
}

template <int kWidth, bool kPads>
void launch_attention(const AttentionTensors& t, const AttentionShape& shape, int type, cudaStream_t stream) {
    if (t.logit_scale) {
        launch_of_type<kWidth, kPads, true>(t, shape, type, stream);
    } else {
        launch_of_type<kWidth, kPads, false>(t, shape, type, stream);
    }
}

template <int kWidth, bool kPads, typename Out>
void launch_of_int8(const AttentionTensors& t, const AttentionShape& shape, cudaStream_t stream) {
    if (t.logit_scale) {
        launch_fastest<kWidth, kPads, int8_t, Out, true>(t, shape, 7, stream);
    } else {
        launch_fastest<kWidth, kPads, int8_t, Out, false>(t, shape, 7, stream);
    }
}

// quantized: y is INT8, else FP16.
template <int kWidth, bool kPads>
void launch_attention_int8(
    const AttentionTensors& t, const AttentionShape& shape, bool quantized, cudaStream_t stream) {
    if (quantized) {
        launch_of_int8<kWidth, kPads, int8_t>(t, shape, stream);
    } else {
        launch_of_int8<kWidth, kPads, __half>(t, shape, stream);
    }
}

}  // namespace swin
