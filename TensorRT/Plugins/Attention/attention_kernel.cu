// Whole (shifted-)window attention: from qkv in image order to the input of proj, in one kernel.
//
//   nvcc -std=c++17 -O3 -arch=sm_90 -I.. -c attention_kernel.cu
//
// W-MSA and SW-MSA of Swin Transformer (arXiv 2103.14030, section 3.2) and the scaled cosine attention of Swin V2
// (arXiv 2111.09883, equation 2). Roll, window partition, mask, window reverse and roll back are index arithmetic
// (token_of, mask_flags): nothing but qkv is read and nothing but the result is written.
//
// Two kernels compute the same:
//   plain_attention        one thread a query, FP32 arithmetic. FP32 tensors, BF16 before sm_80, unaligned pointers.
//   tensor_core_attention  FP16, INT8, and BF16 from sm_80 on. A block of kWarps warps owns one head and 16 * kWarps
//                          queries of a window; each warp keeps 16 rows of scores in registers from q k^T to p v (as
//                          flash attention does), so scores never touch memory. Keys arrive in tiles of 16 * kWarps.
//
// INT8 (swin_attention_int8): q k^T is a product of INT8 with INT32 sums; v becomes FP16, which holds it exactly, for
// p v. The scale of qkv goes into the scores' and the result's.
//
// In the tensor-core kernel logits are in units of log2(e), so that one exp2 gives the softmax numerator. V2's cosine
// is taken after the product, q.k / (|q| |k|): the norms are FP32 and q and k are never rounded a second time.

#include "attention_kernel.h"

#include <cstdint>
#include <type_traits>

#include "Attention/scores.cuh"
#include "Attention/windows.cuh"
#include "common/gpu.h"
#include "common/launch.cuh"
#include "common/mma.cuh"
#include "common/quantize.cuh"
#include "common/swin_types.h"
#include "common/vector_io.cuh"

namespace {

using namespace swin;

struct Shape : Windows {
    int channels, num_heads;
    int bias_stride;          // Np
    Window stride;            // tensor_core_attention: from one window of a walk to the next
    float scale, mask_value;
    float out_scale;          // qkv is INT8: what takes p v to y
};

// --- the plain kernel --------------------------------------------------------------------------------------------

constexpr int kPlainThreads = 64;  // queries of a block
constexpr int kPlainKeys = 64;     // keys in shared memory at a time
constexpr int kChunk = 8;          // keys between two corrections of the running maximum

// Four partial sums: a quarter of the rounding steps of one running sum, and four independent chains.
__device__ float dot(const float (&q)[kHeadDim], const float* k) {
    float sums[4] = {};
#pragma unroll
    for (int d = 0; d < kHeadDim; ++d) {
        sums[d % 4] = fmaf(q[d], k[d], sums[d % 4]);
    }
    return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

template <typename T, typename Out, bool kCosine>
__global__ void __launch_bounds__(kPlainThreads) plain_attention(const T* __restrict__ qkv,
    const float* __restrict__ bias, const float* __restrict__ logit_scale, Out* __restrict__ y, Shape shape) {
    __shared__ alignas(16) float keys[kPlainKeys][kHeadDim];
    __shared__ alignas(16) float values[kPlainKeys][kHeadDim];
    __shared__ float key_scale[kPlainKeys];  // V1: scale; V2: logit_scale / |k|

    const int head = blockIdx.y;
    const int query = blockIdx.z * kPlainThreads + threadIdx.x;
    const bool live = query < shape.positions;
    const Window window = window_at(shape, blockIdx.x);
    const long long token = token_of(shape, window, position_at(shape, live ? query : 0));
    const unsigned flags = mask_flags(shape, query), axes = mask_axes(shape, window);
    const float* bias_row
        = bias + (static_cast<long long>(head) * shape.positions + (live ? query : 0)) * shape.bias_stride;

    swin::griddepcontrol_wait();
    float q[kHeadDim], out[kHeadDim] = {};
#pragma unroll
    for (int d = 0; d < kHeadDim; ++d) {
        q[d] = to_float(qkv[token * 3 * shape.channels + head * kHeadDim + d]);
    }
    float query_scale = 1.F;
    if (kCosine) {
        query_scale = 1.F / fmaxf(sqrtf(dot(q, q)), kNormEpsilon);
    }
    float maximum = -INFINITY, sum = 0.F;

    for (int first = 0; first < shape.positions; first += kPlainKeys) {
        const int count = min(kPlainKeys, shape.positions - first);
        __syncthreads();
        for (int i = threadIdx.x; i < count * kHeadDim; i += kPlainThreads) {
            const int key = i / kHeadDim, d = i % kHeadDim;
            const long long token = token_of(shape, window, position_at(shape, first + key));
            const T* source = qkv + token * 3 * shape.channels + head * kHeadDim + d;
            keys[key][d] = to_float(source[shape.channels]);
            values[key][d] = to_float(source[2 * shape.channels]);
        }
        __syncthreads();
        for (int key = threadIdx.x; key < count; key += kPlainThreads) {
            key_scale[key] = shape.scale;
            if (kCosine) {
                float k[kHeadDim];
#pragma unroll
                for (int d = 0; d < kHeadDim; ++d) {
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
            float chunk_sum = 0.F, chunk_out[kHeadDim] = {};
            maximum = chunk_maximum;
#pragma unroll
            for (int c = 0; c < kChunk; ++c) {
                if (start + c < count) {
                    const float p = expf(scores[c] - maximum);
                    chunk_sum += p;
#pragma unroll
                    for (int d = 0; d < kHeadDim; ++d) {
                        chunk_out[d] = fmaf(p, values[start + c][d], chunk_out[d]);
                    }
                }
            }
            sum = fmaf(sum, correction, chunk_sum);
#pragma unroll
            for (int d = 0; d < kHeadDim; ++d) {
                out[d] = fmaf(out[d], correction, chunk_out[d]);
            }
        }
    }
    if (live) {
#pragma unroll
        for (int d = 0; d < kHeadDim; ++d) {
            Out& to = y[token * shape.channels + head * kHeadDim + d];
            if constexpr (std::is_same_v<Out, int8_t>) {
                to = static_cast<int8_t>(swin::quantize(out[d] / sum, shape.out_scale));
            } else {
                to = from_float<Out>(out[d] / sum * (std::is_same_v<T, Out> ? 1.F : shape.out_scale));
            }
        }
    }
}

// --- the tensor-core kernel --------------------------------------------------------------------------------------

// The next window of a walk, which goes backwards.
__device__ void step_back(Window& window, const Shape& shape) {
    window.x -= shape.stride.x;
    const int row_before = window.x < 0;
    window.x += row_before ? shape.windows_x : 0;
    window.y -= shape.stride.y + row_before;
    const int image_before = window.y < 0;
    window.y += image_before ? shape.windows_y : 0;
    window.tokens -= shape.stride.tokens + (image_before ? shape.height * shape.width : 0);
}

// The place of a 16-byte chunk in a tile of bytes, whose rows are 2 chunks of 16.
__device__ int swizzled_bytes(int row, int chunk) { return row * kHeadDim + ((chunk ^ (row >> 2 & 1)) << 4); }

// Blocks of tensor_core_attention that a multiprocessor is to hold: 128 registers a thread. With 5 it spills, with 3
// window 8 is 7 % slower on an H200; window 7 does not care.
constexpr int kResident = 4;

// What the tensor cores multiply where qkv has elements of T, and the registers that hold 8 neighbouring ones.
template <typename T> struct TensorCore {
    using Factor = T;
    using Chunk = uint4;
};
template <> struct TensorCore<int8_t> {
    using Factor = __half;
    using Chunk = uint2;
};

// Four INT8 as FP16. With its sign bit flipped a byte is x + 128, and as the low byte of 0x64.. the number 1024 + x +
// 128.
__device__ uint2 halves_of(uint32_t bytes) {
    const __half2 bias = __float2half2_rn(1152.F);
    bytes ^= 0x80808080;
    const uint32_t low = __byte_perm(bytes, 0x64646464, 0x4140), high = __byte_perm(bytes, 0x64646464, 0x4342);
    const __half2 first = __hsub2(*reinterpret_cast<const __half2*>(&low), bias);
    const __half2 second = __hsub2(*reinterpret_cast<const __half2*>(&high), bias);
    return {*reinterpret_cast<const uint32_t*>(&first), *reinterpret_cast<const uint32_t*>(&second)};
}

template <typename T>
__device__ float sum_of_squares(float sum, uint32_t pair) {
    const float2 x = swin::Packed<T>::unpack(pair);
    return fmaf(x.x, x.x, fmaf(x.y, x.y, sum));
}

// The bias of query row i, key columns j and j + 1, in log2 units; -inf in padded columns, which then take part in
// nothing, and 0 in padded rows, which are not written.
__device__ float2 bias_pair(const float* head_bias, const Shape& shape, int i, int j) {
    float2 pair = make_float2(0.F, 0.F);
    if (i < shape.positions && j < shape.bias_stride) {
        pair = __ldg(reinterpret_cast<const float2*>(head_bias + static_cast<long long>(i) * shape.bias_stride + j));
    }
    pair.x = j < shape.positions ? pair.x * kLog2e : -INFINITY;
    pair.y = j + 1 < shape.positions ? pair.y * kLog2e : -INFINITY;
    return pair;
}

// Mask flags of the two key columns that a lane holds of each accumulator of a tile, 2 bits a column.
template <int kBlocks>
__device__ unsigned column_flags(const Shape& shape, int first_column) {
    unsigned flags = 0;
#pragma unroll
    for (int c = 0; c < 2 * kBlocks; ++c) {
        flags |= mask_flags(shape, first_column + c / 2 * 8 + (c & 1)) << (2 * c);
    }
    return flags;
}

// Grid: (num_heads, query tiles, walks through the windows). All walks go side by side from the last window to the
// first (common/launch.cuh says why). kBlocks: accumulators of 8 key columns in a tile. kOneTile: the
// window fits one tile (window 7 and 8); the bias of the block's head then stays in registers while the block walks its
// windows. By count, issuing instructions is what limits this kernel, so what does not change from window to window is
// kept, windows are stepped through instead of divided out, and the row sums are one more column of p v (v = 1).
template <typename T, typename Out, bool kCosine, int kWarps, int kBlocks, bool kOneTile>
__global__ void __launch_bounds__(32 * kWarps, kResident) tensor_core_attention(const T* __restrict__ qkv,
    const float* __restrict__ bias, const float* __restrict__ logit_scale, Out* __restrict__ y, Shape shape) {
    using F = typename TensorCore<T>::Factor;
    using P = swin::Packed<F>;
    constexpr bool kInt8 = std::is_same_v<T, int8_t>, kInt8Out = std::is_same_v<Out, int8_t>;
    constexpr int kTile = 16 * kWarps, kThreads = 32 * kWarps;
    static_assert(sizeof(F) == 2, "p v is a product of 16-bit numbers");
    static_assert(kHeadDim == 32, "the four lanes that share a row copy a chunk of 8 elements each");
    static_assert(kThreads == 2 * kTile, "two threads take the norm of a key");
    static_assert(kOneTile ? 8 * kBlocks <= kTile : 8 * kBlocks == kTile, "keys of a tile");
    static_assert(2 * kTile * kHeadDim * (2 * sizeof(T) + sizeof(F)) + 4 * kTile + (kInt8 ? 16 * kThreads : 8)
                + (kInt8 && !kInt8Out ? kTile * kHeadDim * sizeof(F) : 2) + 512
            <= 48 << 10,
        "static shared memory");
    static_assert(4 * kBlocks * (kOneTile ? 2 : 1) + 20 + 40 <= 65536 / (kThreads * kResident),
        "scores, the bias that is kept, p v and its sums, and addresses fit into registers");
    __shared__ alignas(128) T queries[2][kTile * kHeadDim];
    __shared__ alignas(128) T keys[2][kTile * kHeadDim];
    __shared__ alignas(128) F values[2][kTile * kHeadDim];
    __shared__ alignas(8) float key_scale[kTile];
    __shared__ float head_scale;  // logit_scale of this head, read before the wait below
    // An INT8 v arrives here, each thread's chunks in its own column, and is unpacked from here: p v is FP16.
    __shared__ alignas(16) uint2 packed[2][kInt8 ? 32 * kWarps : 1];
    // What y becomes where it is wider than q, whose own rows serve else.
    __shared__ alignas(128) F wider[kInt8 && !kInt8Out ? kTile * kHeadDim : 1];

    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int head = blockIdx.x;
    const int first_query = blockIdx.y * kTile;
    const int tiles = kOneTile ? 1 : (shape.positions + kTile - 1) / kTile;
    const int walks = static_cast<int>(gridDim.z), last_window = shape.windows - 1 - static_cast<int>(blockIdx.z);
    const int items = (last_window / walks + 1) * tiles;
    const float* head_bias = bias + static_cast<long long>(head) * shape.positions * shape.bias_stride;

    if (kCosine && threadIdx.x == 0) {
        head_scale = logit_scale[head] * kLog2e;
    }

    // This lane's rows of the tile, as holder of accumulators (columns `column` and column + 1 of each 8) and as
    // copier of tokens (of a head's row the fourth number `chunk`: 16 bytes, INT8 8).
    const int row[2] = {warp * 16 + lane / 4, warp * 16 + lane / 4 + 8};
    const int column = (lane & 3) * 2, chunk = lane & 3;
    const int place[2] = {swizzled(row[0], chunk), swizzled(row[1], chunk)};
    // Of q and k; INT8 comes in chunks of 8 bytes, two to one of 16.
    auto place_of = [&](int r) { return kInt8 ? swizzled_bytes(row[r], chunk / 2) + chunk % 2 * 8 : place[r]; };
    const Position query[2] = {position_at(shape, first_query + row[0]), position_at(shape, first_query + row[1])};
    const bool live[2] = {first_query + row[0] < shape.positions, first_query + row[1] < shape.positions};

    // Item = one key tile of one window. Its K and V, and Q with the first tile of a window, go to stage item % 2.
    Window ahead = window_at(shape, last_window);
    const T* const source = qkv + head * kHeadDim + chunk * 8;
    auto copy = [&](T* to, const T* from, bool arrives) {
        if constexpr (kInt8) {
            swin::cp_async_8(to, from, arrives);
        } else {
            swin::cp_async_16(to, from, arrives);
        }
    };
    auto copy_value = [&](int stage, int r, const T* from, bool arrives) {
        if constexpr (kInt8) {
            swin::cp_async_8(&packed[r][threadIdx.x], from, arrives);
        } else {
            swin::cp_async_16(&values[stage][place[r]], from, arrives);
        }
    };
    auto load = [&](int item, int tile, int (&token)[2]) {
        const int stage = item & 1;
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            if (kOneTile || tile == 0) {
                token[r] = live[r] ? token_of(shape, ahead, query[r]) : 0;
                const T* from = source + static_cast<long long>(token[r]) * 3 * shape.channels;
                copy(&queries[stage][place_of(r)], from, live[r]);
                if (kOneTile) {  // keys are the same tokens
                    copy(&keys[stage][place_of(r)], from + shape.channels, live[r]);
                    copy_value(stage, r, from + 2 * shape.channels, live[r]);
                }
            }
            if (!kOneTile) {
                const int key = tile * kTile + row[r];
                const bool live_key = key < shape.positions;
                const long long key_token = live_key ? token_of(shape, ahead, position_at(shape, key)) : 0;
                const T* from = source + key_token * 3 * shape.channels;
                copy(&keys[stage][place_of(r)], from + shape.channels, live_key);
                copy_value(stage, r, from + 2 * shape.channels, live_key);
            }
        }
    };
    int next_token[2];
    // The bias does not depend on the kernel before, so it comes first, unless that spills registers.
    constexpr bool kBiasFirst = kBlocks < 8 || (kCosine && !kInt8);
    auto begin = [&] {
        if (kOneTile) {  // of a multi-tile window this spills
            int first_token[2];
            for (int r = 0; r < 2; ++r) first_token[r] = live[r] ? token_of(shape, ahead, query[r]) : 0;
            swin::compute_before_what_follows(first_token[0] | first_token[1] | place[0] | place[1]);
        }
        swin::griddepcontrol_wait();
        swin::griddepcontrol_launch_dependents();
        load(0, 0, next_token);
        if (kOneTile) {
            swin::compute_before_what_follows(place[1]);
        }
    };
    if constexpr (!kBiasFirst) {
        begin();
    }

    // Of both rows, 2 bits each, as registers are short here.
    const unsigned row_flags = mask_flags(shape, first_query + row[0]) | mask_flags(shape, first_query + row[1]) << 2;
    const unsigned kept_flags = kOneTile ? column_flags<kBlocks>(shape, column) : 0;
    float2 kept_bias[kOneTile ? kBlocks : 1][2];
    if (kOneTile) {
#pragma unroll
        for (int n = 0; n < kBlocks; ++n) {
            kept_bias[kOneTile ? n : 0][0] = bias_pair(head_bias, shape, row[0], n * 8 + column);
            kept_bias[kOneTile ? n : 0][1] = bias_pair(head_bias, shape, row[1], n * 8 + column);
        }
    }

    if constexpr (kBiasFirst) {
        begin();
    }

    const float zeros[4] = {};
    uint32_t q[2][4];
    float row_scale[2] = {shape.scale * kLog2e, shape.scale * kLog2e};
    float maximum[2], out[4][4], sum[4];
    int token[2];
    unsigned axes = 0;
    for (int item = 0, tile = 0; item < items; ++item) {
        const int stage = item & 1;
        const int first_key = tile * kTile;
        const bool first = kOneTile || tile == 0, last = kOneTile || tile == tiles - 1;
        swin::cp_async_commit();
        swin::cp_async_wait<0>();
        if constexpr (kInt8) {
#pragma unroll
            for (int r = 0; r < 2; ++r) {
                const uint2 bytes = packed[r][threadIdx.x];
                const uint2 low = halves_of(bytes.x), high = halves_of(bytes.y);
                *reinterpret_cast<uint4*>(&values[stage][place[r]]) = make_uint4(low.x, low.y, high.x, high.y);
            }
        }
        __syncthreads();  // this item has arrived, and every warp is done with the other stage
        if (first) {
            axes = mask_axes(shape, ahead);
            token[0] = next_token[0];
            token[1] = next_token[1];
        }
        if (last) {
            step_back(ahead, shape);
        }
        tile = last ? 0 : tile + 1;  // of the next item
        if (item + 1 < items) {
            load(item + 1, tile, next_token);
        }

        if (kCosine) {  // logit_scale / |k|, two threads a key
            const int key = threadIdx.x / 2, half = threadIdx.x & 1;
            float squares = 0.F;
            if constexpr (kInt8) {
                const uint4 x = *reinterpret_cast<const uint4*>(&keys[stage][swizzled_bytes(key, half)]);
                squares = add_squares(add_squares(add_squares(add_squares(0, x.x), x.y), x.z), x.w);
            } else {
#pragma unroll
                for (int c = 0; c < 2; ++c) {
                    const uint4 x = *reinterpret_cast<const uint4*>(&keys[stage][swizzled(key, 2 * half + c)]);
                    squares = sum_of_squares<F>(squares, x.x);
                    squares = sum_of_squares<F>(squares, x.y);
                    squares = sum_of_squares<F>(squares, x.z);
                    squares = sum_of_squares<F>(squares, x.w);
                }
            }
            squares += __shfl_xor_sync(~0U, squares, 1);
            if (half == 0) {
                key_scale[key] = head_scale * reciprocal_norm(squares);
            }
            __syncthreads();
        }

        if (first) {
            if constexpr (kInt8) {
                swin::ldmatrix_x4(q[0], &queries[stage][swizzled_bytes(warp * 16 + (lane & 15), lane / 16)]);
            } else {
#pragma unroll
                for (int k = 0; k < 2; ++k) {
                    swin::ldmatrix_x4(q[k], &queries[stage][swizzled(warp * 16 + (lane & 15), 2 * k + lane / 16)]);
                }
            }
#pragma unroll
            for (int r = 0; r < 2; ++r) {
                if (kCosine) {  // fragments 0, 2 hold row 0 and fragments 1, 3 row 1
                    float squares;
                    if constexpr (kInt8) {
                        squares = add_squares(add_squares(0, q[0][r]), q[0][r + 2]);
                    } else {
                        squares = sum_of_squares<F>(sum_of_squares<F>(0.F, q[0][r]), q[0][r + 2]);
                        squares = sum_of_squares<F>(sum_of_squares<F>(squares, q[1][r]), q[1][r + 2]);
                    }
                    row_scale[r] = reciprocal_norm(quad_sum(squares));
                }
                maximum[r] = -INFINITY;
            }
#pragma unroll
            for (int c = 0; c < 4; ++c) {
                out[0][c] = out[1][c] = out[2][c] = out[3][c] = sum[c] = 0.F;
            }
        }

        // Scores: scale * q k^T + bias + mask.
        float scores[kBlocks][4];
        uint32_t k[4];
#pragma unroll
        for (int n = 0; n < kBlocks; ++n) {
            if constexpr (kInt8) {
                if (n % 2 == 0) {  // 8 keys' halves, and the next 8 keys'
                    const int key = (n + lane / 16) * 8 + (lane & 7);
                    swin::ldmatrix_x4(k, &keys[stage][swizzled_bytes(key, lane / 8 & 1)]);
                }
                int sums[4] = {};
                swin::mma_int8(sums, q[0], k[n % 2 * 2], k[n % 2 * 2 + 1]);
#pragma unroll
                for (int c = 0; c < 4; ++c) {
                    scores[n][c] = static_cast<float>(sums[c]);
                }
            } else {
                swin::ldmatrix_x4(k, &keys[stage][swizzled(n * 8 + (lane & 7), lane / 8)]);
                P::mma(scores[n], q[0], k[0], k[1], zeros);
                P::mma(scores[n], q[1], k[2], k[3], scores[n]);
            }
            float2 column_scale = make_float2(1.F, 1.F);
            if (kCosine) {
                column_scale = *reinterpret_cast<const float2*>(&key_scale[n * 8 + column]);
            }
#pragma unroll
            for (int r = 0; r < 2; ++r) {
                const float2 b = kOneTile
                    ? kept_bias[kOneTile ? n : 0][r]
                    : bias_pair(head_bias, shape, first_query + row[r], first_key + n * 8 + column);
                scores[n][2 * r] = fmaf(scores[n][2 * r], row_scale[r] * column_scale.x, b.x);
                scores[n][2 * r + 1] = fmaf(scores[n][2 * r + 1], row_scale[r] * column_scale.y, b.y);
            }
        }
        if (axes) {
            const unsigned flags = kOneTile ? kept_flags : column_flags<kBlocks>(shape, first_key + column);
            add_mask(
                scores, axes, shape.mask_value * kLog2e, [&](int c) { return flags >> (2 * c); },
                [&](int r) { return row_flags >> (2 * r); });
        }

        // Softmax numerators, with a running maximum over the tiles of a window.
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            const float new_maximum = row_maximum(scores, r, maximum[r]);
            if (!first) {
                const float correction = swin::ex2_approx(maximum[r] - new_maximum);
#pragma unroll
                for (int c = 2 * r; c < 2 * r + 2; ++c) {
                    sum[c] *= correction;
                    out[0][c] *= correction;
                    out[1][c] *= correction;
                    out[2][c] *= correction;
                    out[3][c] *= correction;
                }
            }
            maximum[r] = new_maximum;
            softmax_numerators<true>(scores, r, new_maximum);
        }

        multiply_values<F>(out, sum, scores, values[stage], lane);

        if (last) {  // the window is done: through this warp's own rows of queries, in stores of 8 elements
            Out* const staged = reinterpret_cast<Out*>(kInt8 && !kInt8Out ? static_cast<void*>(wider) : queries[stage]);
            auto staged_at
                = [](int row, int chunk) { return kInt8Out ? row * kHeadDim + chunk * 8 : swizzled(row, chunk); };
            __syncwarp();
#pragma unroll
            for (int r = 0; r < 2; ++r) {
                float normaliser = swin::rcp_approx(sum[2 * r]);
                if (kInt8 && !kInt8Out) {
                    normaliser *= shape.out_scale;
                }
#pragma unroll
                for (int n = 0; n < 4; ++n) {
                    const float first = out[n][2 * r] * normaliser, second = out[n][2 * r + 1] * normaliser;
                    Out* const to = &staged[staged_at(row[r], n) + column];
                    if constexpr (kInt8Out) {
                        *reinterpret_cast<uint16_t*>(to) = swin::quantize_pair(first, second, shape.out_scale);
                    } else {
                        *reinterpret_cast<uint32_t*>(to) = P::pack(first, second);
                    }
                }
            }
            __syncwarp();
#pragma unroll
            for (int r = 0; r < 2; ++r) {
                if (live[r]) {
                    using Chunk = typename TensorCore<Out>::Chunk;
                    Out* to = y + static_cast<long long>(token[r]) * shape.channels + head * kHeadDim + chunk * 8;
                    *reinterpret_cast<Chunk*>(to) = *reinterpret_cast<const Chunk*>(&staged[staged_at(row[r], chunk)]);
                }
            }
        }
    }
}

// --- launching ---------------------------------------------------------------------------------------------------

struct Tensors {
    const void* qkv;
    const float* bias;
    const float* logit_scale;
    void* y;
};

template <typename T, typename Out, bool kCosine>
void launch_plain(const Tensors& t, const Shape& shape, cudaStream_t stream) {
    const dim3 grid(shape.windows, shape.num_heads, (shape.positions + kPlainThreads - 1) / kPlainThreads);
    swin::launch<plain_attention<T, Out, kCosine>>(grid, kPlainThreads, 0, stream, static_cast<const T*>(t.qkv), t.bias,
        t.logit_scale, static_cast<Out*>(t.y), shape);
}

template <typename T, typename Out, bool kCosine, int kWarps, int kBlocks, bool kOneTile>
void launch_tensor_core(const Tensors& t, Shape shape, int multiprocessors, cudaStream_t stream) {
    constexpr auto kernel = tensor_core_attention<T, Out, kCosine, kWarps, kBlocks, kOneTile>;
    static const int resident_blocks = [] {
        int blocks = 0;
        cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, 32 * kWarps, 0);
        return blocks > 0 ? blocks : 1;
    }();
    // As many blocks as run at once: each then walks several windows and loads the next while it computes one.
    const int query_tiles = (shape.positions + 16 * kWarps - 1) / (16 * kWarps);
    const int wanted
        = (multiprocessors * resident_blocks + shape.num_heads * query_tiles - 1) / (shape.num_heads * query_tiles);
    const int windows_per_block = (shape.windows + wanted - 1) / wanted;  // at most
    const dim3 grid(shape.num_heads, query_tiles, (shape.windows + windows_per_block - 1) / windows_per_block);
    shape.stride = window_at(shape, static_cast<int>(grid.z));
    swin::launch<kernel>(grid, 32 * kWarps, 0, stream, static_cast<const T*>(t.qkv), t.bias, t.logit_scale,
        static_cast<Out*>(t.y), shape);
}

// first_major: the compute capability from which on tensor cores multiply T.
template <typename T, typename Out, bool kCosine>
void launch_fastest(const Tensors& t, const Shape& shape, int first_major, cudaStream_t stream) {
    const swin::Gpu gpu = swin::current_gpu();
    const bool aligned = (reinterpret_cast<uintptr_t>(t.qkv) | reinterpret_cast<uintptr_t>(t.y)) % 16 == 0
        && reinterpret_cast<uintptr_t>(t.bias) % 8 == 0;
    if (gpu.major < first_major || !aligned) {
        launch_plain<T, Out, kCosine>(t, shape, stream);
    } else if (shape.positions <= 56) {  // window 7: 49 keys are 7 columns of 8
        launch_tensor_core<T, Out, kCosine, 4, 7, true>(t, shape, gpu.multiprocessors, stream);
    } else if (shape.positions <= 64) {
        launch_tensor_core<T, Out, kCosine, 4, 8, true>(t, shape, gpu.multiprocessors, stream);
    } else if (shape.positions % 48 == 0 && shape.positions % 64 != 0) {  // window 12: 144 = 3 * 48, without padding
        launch_tensor_core<T, Out, kCosine, 3, 6, false>(t, shape, gpu.multiprocessors, stream);
    } else {
        launch_tensor_core<T, Out, kCosine, 4, 8, false>(t, shape, gpu.multiprocessors, stream);
    }
}

template <bool kCosine>
int launch(const Tensors& t, const Shape& shape, int type, cudaStream_t stream) {
    switch (type) {
    case SWIN_FP32: launch_plain<float, float, kCosine>(t, shape, stream); break;
    case SWIN_FP16: launch_fastest<__half, __half, kCosine>(t, shape, 7, stream); break;
    case SWIN_BF16: launch_fastest<__nv_bfloat16, __nv_bfloat16, kCosine>(t, shape, 8, stream); break;
    default: return cudaErrorInvalidValue;
    }
    return cudaGetLastError();
}

template <typename Out>
void launch_int8(const Tensors& t, const Shape& shape, cudaStream_t stream) {
    if (t.logit_scale) {
        launch_fastest<int8_t, Out, true>(t, shape, 7, stream);
    } else {
        launch_fastest<int8_t, Out, false>(t, shape, 7, stream);
    }
}

// Whether this is a shape of the contract, and then that shape, without scales. Given: SwinAttention or
// SwinAttentionInt8.
template <class Given> bool describe(Shape& shape, const Given& given) {
    if (given.num_heads <= 0 || given.channels != given.num_heads * kHeadDim
        || !swin::describe(shape, given.batch, given.height, given.width, given.window_size, given.shift_size)) {
        return false;
    }
    shape.channels = given.channels;
    shape.num_heads = given.num_heads;
    shape.bias_stride = (shape.positions + 7) / 8 * 8;
    shape.mask_value = given.mask_value;
    return true;
}

}  // namespace

extern "C" int swin_attention(const SwinAttention* arguments, cudaStream_t stream) {
    const SwinAttention& given = *arguments;
    Shape shape{};
    if (!describe(shape, given)) {
        return cudaErrorInvalidValue;
    }
    shape.scale = given.scale;
    const Tensors tensors{given.qkv, given.bias, given.logit_scale, given.y};
    return given.logit_scale ? launch<true>(tensors, shape, given.type, stream)
                             : launch<false>(tensors, shape, given.type, stream);
}

extern "C" int swin_attention_int8(const SwinAttentionInt8* arguments, cudaStream_t stream) {
    const SwinAttentionInt8& given = *arguments;
    Shape shape{};
    if (!describe(shape, given) || !(given.qkv_scale > 0) || !(given.y_scale >= 0)) {
        return cudaErrorInvalidValue;
    }
    shape.scale = given.scale * given.qkv_scale * given.qkv_scale;
    shape.out_scale = given.y_scale > 0 ? given.qkv_scale / given.y_scale : given.qkv_scale;
    const Tensors tensors{given.qkv, given.bias, given.logit_scale, given.y};
    if (given.y_scale > 0) {
        launch_int8<int8_t>(tensors, shape, stream);
    } else {
        launch_int8<__half>(tensors, shape, stream);
    }
    return cudaGetLastError();
}
