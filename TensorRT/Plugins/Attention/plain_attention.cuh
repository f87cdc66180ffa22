// One thread a query, FP32 arithmetic, for all types and any alignment. attention_kernel.cu says when it is taken.
#pragma once

#include "Attention/attention.cuh"
#include "Attention/tiles.cuh"
#include "common/launch.cuh"

namespace swin {

constexpr int kPlainThreads = 64;  // queries of a block
constexpr int kPlainKeys = 64;     // keys in shared memory at a time
constexpr int kChunk = 8;          // keys between two corrections of the running maximum

// Four partial sums: a quarter of the rounding steps of one running sum, and four independent chains.
template <int kWidth> __device__ float dot(const float (&q)[kWidth], const float* k) {
    float sums[4] = {};
#pragma unroll
    for (int d = 0; d < kWidth; ++d) {
        sums[d % 4] = fmaf(q[d], k[d], sums[d % 4]);
    }
    return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

template <typename T, typename Out, bool kCosine, int kWidth, bool kPads>
__global__ void __launch_bounds__(kPlainThreads)
    plain_attention(const T* __restrict__ qkv, const float* __restrict__ bias, const float* __restrict__ padding,
        const float* __restrict__ logit_scale, Out* __restrict__ y, AttentionShape shape) {
    __shared__ alignas(16) float keys[kPlainKeys][kWidth];
    __shared__ alignas(16) float values[kPlainKeys][kWidth];
    __shared__ float key_scale[kPlainKeys];  // V1: scale; V2: logit_scale / |k|

    const int head = blockIdx.y;
    const int head_width = kPads ? shape.head_width : kWidth;
    const int query = blockIdx.z * kPlainThreads + threadIdx.x;
    const bool live = query < shape.positions;
    const Window window = window_at(shape, blockIdx.x);
    const long long token = token_of<kPads>(shape, window, position_at(shape, live ? query : 0));
    const unsigned flags = mask_flags(shape, query), axes = mask_axes(shape, window);
    const float* bias_row
        = bias + (static_cast<long long>(head) * shape.positions + (live ? query : 0)) * shape.bias_stride;

    // Feature d of a token's q, k or v (part 0, 1, 2).
    auto read = [&](long long token, int part, int d) {
        const int feature = part * shape.channels + head * head_width + d;
        if (kPads && d >= head_width) return 0.F;
        if (kPads && token < 0) return to_float(padding_value<T>(padding[feature], shape));
        return to_float(qkv[token * 3 * shape.channels + feature]);
    };

    griddepcontrol_wait();
    float q[kWidth], out[kWidth] = {};
#pragma unroll
    for (int d = 0; d < kWidth; ++d) {
        q[d] = read(token, 0, d);
    }
    float query_scale = 1.F;
    if (kCosine) {
        query_scale = 1.F / fmaxf(sqrtf(dot(q, q)), kNormEpsilon);
    }
    float maximum = -INFINITY, sum = 0.F;

    for (int first = 0; first < shape.positions; first += kPlainKeys) {
        const int count = min(kPlainKeys, shape.positions - first);
        __syncthreads();
        for (int i = threadIdx.x; i < count * kWidth; i += kPlainThreads) {
            const int key = i / kWidth, d = i % kWidth;
            const long long token = token_of<kPads>(shape, window, position_at(shape, first + key));
            keys[key][d] = read(token, 1, d);
            values[key][d] = read(token, 2, d);
        }
        __syncthreads();
        for (int key = threadIdx.x; key < count; key += kPlainThreads) {
            key_scale[key] = shape.scale;
            if (kCosine) {
                float k[kWidth];
#pragma unroll
                for (int d = 0; d < kWidth; ++d) {
                    k[d] = keys[key][d];
                }
                key_scale[key] = logit_scale[head] / fmaxf(sqrtf(dot(k, k)), kNormEpsilon);
            }
        }
        __syncthreads();

        for (int start = 0; start < count; start += kChunk) {
            float scores[kChunk];
            float chunk_maximum = maximum;
#pragma unroll
            for (int c = 0; c < kChunk; ++c) {
                const int key = start + c;
                scores[c] = -INFINITY;
                if (key < count) {
                    scores[c] = fmaf(dot(q, keys[key]), query_scale * key_scale[key], bias_row[first + key]);
                    if ((flags ^ mask_flags(shape, first + key)) & axes) {
                        scores[c] += shape.mask_value;
                    }
                    chunk_maximum = fmaxf(chunk_maximum, scores[c]);
                }
            }
            // Sums of a chunk are added to the running ones as a whole: far fewer roundings than key by key.
            const float correction = expf(maximum - chunk_maximum);
            float chunk_sum = 0.F, chunk_out[kWidth] = {};
            maximum = chunk_maximum;
#pragma unroll
            for (int c = 0; c < kChunk; ++c) {
                if (start + c < count) {
                    const float p = expf(scores[c] - maximum);
                    chunk_sum += p;
#pragma unroll
                    for (int d = 0; d < kWidth; ++d) {
                        chunk_out[d] = fmaf(p, values[start + c][d], chunk_out[d]);
                    }
                }
            }
            sum = fmaf(sum, correction, chunk_sum);
#pragma unroll
            for (int d = 0; d < kWidth; ++d) {
                out[d] = fmaf(out[d], correction, chunk_out[d]);
            }
        }
    }
    if (!live || (kPads && token < 0)) return;
#pragma unroll
    for (int d = 0; d < kWidth; ++d) {
        if (kPads && d >= head_width) break;
        Out& to = y[token * shape.channels + head * head_width + d];
        if constexpr (std::is_same_v<Out, int8_t>) {
            to = static_cast<int8_t>(quantize(out[d] / sum, shape.out_scale));
        } else {
            to = from_float<Out>(out[d] / sum * (std::is_same_v<T, Out> ? 1.F : shape.out_scale));
        }
    }
}

template <typename T, typename Out, bool kCosine, int kWidth, bool kPads>
void launch_plain(const AttentionTensors& t, const AttentionShape& shape, cudaStream_t stream) {
    const dim3 grid(shape.windows, shape.num_heads, (shape.positions + kPlainThreads - 1) / kPlainThreads);
    launch<plain_attention<T, Out, kCosine, kWidth, kPads>>(grid, kPlainThreads, 0, stream,
        static_cast<const T*>(t.qkv), t.bias, t.padding, t.logit_scale, static_cast<Out*>(t.y), shape);
}

}  // namespace swin
