// Attention on tensor cores, of FP16, INT8 and from sm_80 on BF16 and FP32. attention_kernel.cu says how.
#pragma once

#include <cstdint>
#include <type_traits>

#include "Attention/attention.cuh"
#include "Attention/scores.cuh"
#include "Attention/tiles.cuh"
#include "common/launch.cuh"
#include "common/mma.cuh"
#include "common/tf32.cuh"

namespace swin {

// The next window of a walk, which goes backwards.
__device__ __forceinline__ void step_back(Window& window, const AttentionShape& shape) {
    window.x -= shape.stride.x;
    const int row_before = window.x < 0;
    window.x += row_before ? shape.windows_x : 0;
    window.y -= shape.stride.y + row_before;
    const int image_before = window.y < 0;
    window.y += image_before ? shape.windows_y : 0;
    window.tokens -= shape.stride.tokens + (image_before ? shape.height * shape.width : 0);
}

// Blocks of tensor_core_attention that a multiprocessor is to hold. Heads of 32, 128 registers a thread: with 5 it
// spills, with 3 window 8 is 7 % slower on an H200; window 7 does not care. Heads of 64 need more registers.
// FP32's queries, in two parts, need as many again as scores.
template <typename T, int kWidth>
constexpr int kResident = (kWidth == 32 ? 4 : 3) - (std::is_same_v<T, float> ? 1 : 0);

// What the tensor cores multiply where qkv has elements of T, and what is copied at once: kChunk elements.
template <typename T> struct TensorCore {
    using Factor = T;
    using Chunk = uint4;
    static constexpr int kChunk = 8;
};
template <> struct TensorCore<int8_t> {
    using Factor = __half;
    using Chunk = uint2;
    static constexpr int kChunk = 8;
};
template <> struct TensorCore<float> {
    using Factor = float;
    using Chunk = uint4;
    static constexpr int kChunk = 4;
};

// Four INT8 as FP16. With its sign bit flipped a byte is x + 128, and as the low byte of 0x64.. the number 1024 + x +
// 128.
__device__ __forceinline__ uint2 halves_of(uint32_t bytes) {
    const __half2 bias = __float2half2_rn(1152.F);
    bytes ^= 0x80808080;
    const uint32_t low = __byte_perm(bytes, 0x64646464, 0x4140), high = __byte_perm(bytes, 0x64646464, 0x4342);
    const __half2 first = __hsub2(*reinterpret_cast<const __half2*>(&low), bias);
    const __half2 second = __hsub2(*reinterpret_cast<const __half2*>(&high), bias);
    return {*reinterpret_cast<const uint32_t*>(&first), *reinterpret_cast<const uint32_t*>(&second)};
}

// Of a register: two numbers of T, or one.
template <typename T>
__device__ __forceinline__ float sum_of_squares(float sum, uint32_t bits) {
    if constexpr (std::is_same_v<T, float>) {
        return fmaf(__uint_as_float(bits), __uint_as_float(bits), sum);
    } else {
        const float2 x = Packed<T>::unpack(bits);
        return fmaf(x.x, x.x, fmaf(x.y, x.y, sum));
    }
}
__device__ __forceinline__ float sum_of_squares(const float4& x) {
    return fmaf(x.x, x.x, x.y * x.y) + fmaf(x.z, x.z, x.w * x.w);
}

// The bias of query row i, key columns j and j + 1, times `unit`; -inf in padded columns, which then take part in
// nothing, and 0 in padded rows, which are not written.
__device__ __forceinline__ float2 bias_pair(
    const float* head_bias, const AttentionShape& shape, int i, int j, float unit) {
    float2 pair = make_float2(0.F, 0.F);
    if (i < shape.positions && j < shape.bias_stride) {
        pair = __ldg(reinterpret_cast<const float2*>(head_bias + static_cast<long long>(i) * shape.bias_stride + j));
    }
    pair.x = j < shape.positions ? pair.x * unit : -INFINITY;
    pair.y = j + 1 < shape.positions ? pair.y * unit : -INFINITY;
    return pair;
}

// Mask flags of the two key columns that a lane holds of each accumulator of a tile, 2 bits a column.
template <int kBlocks>
__device__ __forceinline__ unsigned column_flags(const AttentionShape& shape, int first_column) {
    unsigned flags = 0;
#pragma unroll
    for (int c = 0; c < 2 * kBlocks; ++c) {
        flags |= mask_flags(shape, first_column + c / 2 * 8 + (c & 1)) << (2 * c);
    }
    return flags;
}

// What a block has in shared memory: two stages, of which one is filled while the other is computed with.
template <typename T, typename Out, int kWidth, bool kPads, int kWarps> struct TileMemory {
    using F = typename TensorCore<T>::Factor;
    static constexpr int kElements = 16 * kWarps * kWidth;
    static constexpr bool kInt8 = std::is_same_v<T, int8_t>, kWider = kInt8 && !std::is_same_v<Out, int8_t>;
    alignas(128) T queries[2][kElements];
    alignas(128) T keys[2][kElements];
    alignas(128) F values[2][kElements];
    alignas(8) float key_scale[16 * kWarps];
    float head_scale;  // logit_scale of this head, read before the wait below
    // An INT8 v arrives here, each thread's chunks in its own column, and is unpacked from here: p v is FP16.
    alignas(16) uint2 packed[kWidth / 16][kInt8 ? 32 * kWarps : 1];
    // What y becomes where it is wider than q, whose own rows serve else.
    alignas(128) F wider[kWider ? kElements : 1];
    alignas(16) T padding[kPads ? 3 * kWidth : 1];  // q, k and v of a padded token
};

// More than every block has without asking must be asked for, and comes at launch.
template <class Memory> constexpr bool kAsksForMemory = sizeof(Memory) > 48 << 10;
template <class Memory> __device__ __forceinline__ Memory& shared_memory() {
    if constexpr (kAsksForMemory<Memory>) {
        extern __shared__ __align__(128) unsigned char given[];
        return *reinterpret_cast<Memory*>(given);
    } else {
        __shared__ Memory memory;
        return memory;
    }
}

// Grid: (num_heads, query tiles, walks through the windows). All walks go side by side from the last window to the
// first (common/launch.cuh says why). kBlocks: accumulators of 8 key columns in a tile. kOneTile: the
// window fits one tile (window 7 and 8); the bias of the block's head then stays in registers while the block walks its
// windows. By count, issuing instructions is what limits this kernel, so what does not change from window to window is
// kept, windows are stepped through instead of divided out, and the row sums are one more column of p v (v = 1).
template <typename T, typename Out, bool kCosine, int kWidth, bool kPads, int kWarps, int kBlocks, bool kOneTile>
__global__ void __launch_bounds__(32 * kWarps, kResident<T, kWidth>)
    tensor_core_attention(const T* __restrict__ qkv, const float* __restrict__ bias, const float* __restrict__ padding,
        const float* __restrict__ logit_scale, Out* __restrict__ y, AttentionShape shape) {
    using F = typename TensorCore<T>::Factor;
    using Chunk = typename TensorCore<T>::Chunk;
    constexpr bool kFp32 = std::is_same_v<T, float>;
    constexpr bool kInt8 = std::is_same_v<T, int8_t>, kInt8Out = std::is_same_v<Out, int8_t>;
    constexpr int kTile = 16 * kWarps, kThreads = 32 * kWarps;
    constexpr int kChunk = TensorCore<T>::kChunk;
    constexpr int kLaneChunks = kWidth / (4 * kChunk);   // that a lane copies of a row
    constexpr int kSteps = kWidth * static_cast<int>(sizeof(T)) / 32;  // of a product of q and k
    constexpr float kUnit = kFp32 ? 1.F : kLog2e;        // of logits; FP32's are not rounded once more to be in log2
    static_assert(kFp32 || sizeof(F) == 2, "p v is a product of 16-bit numbers, or of FP32's parts");
    static_assert(kWidth % 32 == 0, "the four lanes that share a row copy a chunk each at a time");
    static_assert(kThreads == 2 * kTile, "two threads take the norm of a key");
    static_assert(kOneTile ? 8 * kBlocks <= kTile : 8 * kBlocks == kTile, "keys of a tile");
    static_assert(4 * kBlocks * (kOneTile ? 2 : 1) + (kFp32 ? kWidth : 0) + kWidth / 2 + 4 + 40
            <= 65536 / (kThreads * kResident<T, kWidth>),
        "scores, the bias that is kept, FP32's q, p v and its sums, and addresses fit into registers");
    auto& shared = shared_memory<TileMemory<T, Out, kWidth, kPads, kWarps>>();
    auto& queries = shared.queries;
    auto& keys = shared.keys;
    auto& values = shared.values;

    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int head = blockIdx.x, head_width = kPads ? shape.head_width : kWidth;
    const int first_query = blockIdx.y * kTile;
    const int tiles = kOneTile ? 1 : (shape.positions + kTile - 1) / kTile;
    const int walks = static_cast<int>(gridDim.z), last_window = shape.windows - 1 - static_cast<int>(blockIdx.z);
    const int items = (last_window / walks + 1) * tiles;
    const float* head_bias = bias + static_cast<long long>(head) * shape.positions * shape.bias_stride;

    if (kCosine && threadIdx.x == 0) {
        shared.head_scale = logit_scale[head] * kUnit;
    }
    if constexpr (kPads) {
        for (int i = threadIdx.x; i < 3 * kWidth; i += kThreads) {
            const int part = i / kWidth, d = i % kWidth;
            const bool there = shape.padded && d < head_width;
            shared.padding[i] = padding_value<T>(
                there ? padding[part * shape.channels + head * head_width + d] : 0.F, shape);
        }
        __syncthreads();
    }

    // This lane's rows of the tile, as holder of accumulators (columns `column` and column + 1 of each 8) and as
    // copier of tokens (of a head's row the chunk number `chunk`: 16 bytes, INT8 8; in a longer one also 4 further on).
    const int row[2] = {warp * 16 + lane / 4, warp * 16 + lane / 4 + 8};
    const int column = (lane & 3) * 2, chunk = lane & 3;
    auto chunk_of = [&](int c) { return chunk + 4 * c; };
    auto chunk_is_there = [&](int c) { return !kPads || chunk_of(c) * kChunk < head_width; };
    auto value_place = [&](int r, int c) { return swizzled<kWidth, F>(row[r], chunk_of(c)); };
    // Of q and k; INT8 comes in chunks of 8 bytes, two to one of 16.
    auto place = [&](int r, int c) {
        return kInt8 ? swizzled_bytes<kWidth>(row[r], chunk_of(c) / 2) + chunk % 2 * 8 : value_place(r, c);
    };
    const Position query[2] = {position_at(shape, first_query + row[0]), position_at(shape, first_query + row[1])};
    const bool live[2] = {first_query + row[0] < shape.positions, first_query + row[1] < shape.positions};

    // Item = one key tile of one window. Its K and V, and Q with the first tile of a window, go to stage item % 2.
    Window ahead = window_at(shape, last_window);
    const T* const source = qkv + head * head_width + (chunk_is_there(0) ? chunk * kChunk : 0);
    auto copy = [&](void* to, const T* from, bool arrives) {
        if constexpr (kInt8) {
            cp_async_8(to, from, arrives);
        } else {
            cp_async_16(to, from, arrives);
        }
    };
    auto value_at = [&](int stage, int r, int c) -> void* {
        if constexpr (kInt8) {
            return &shared.packed[r * kLaneChunks + c][threadIdx.x];
        } else {
            return &values[stage][value_place(r, c)];
        }
    };
    // Starts the copies of the lane's chunks of a row: q's, k's and v's, or those of them that are wanted. A padded
    // token's are in shared memory; what is past a head's features, or past the window, becomes zeros.
    auto fetch = [&](int stage, int r, int token, bool arrives, bool query, bool key_and_value) {
        if constexpr (kPads) {
            if (arrives && token < 0) {
#pragma unroll
                for (int c = 0; c < kLaneChunks; ++c) {
                    const T* const from = &shared.padding[chunk_of(c) * kChunk];
                    const auto put = [](void* to, const T* chunk) {
                        *static_cast<Chunk*>(to) = *reinterpret_cast<const Chunk*>(chunk);
                    };
                    if (query) put(&queries[stage][place(r, c)], from);
                    if (key_and_value) {
                        put(&keys[stage][place(r, c)], from + kWidth);
                        put(value_at(stage, r, c), from + 2 * kWidth);
                    }
                }
                return;
            }
        }
        const T* const row_start = source + static_cast<long long>(kPads && !arrives ? 0 : token) * 3 * shape.channels;
#pragma unroll
        for (int c = 0; c < kLaneChunks; ++c) {
            const bool there = arrives && chunk_is_there(c);
            const T* const from = row_start + (chunk_is_there(c) ? 4 * kChunk * c : 0);
            if (query) copy(&queries[stage][place(r, c)], from, there);
            if (key_and_value) {
                copy(&keys[stage][place(r, c)], from + shape.channels, there);
                copy(value_at(stage, r, c), from + 2 * shape.channels, there);
            }
        }
    };
    auto load = [&](int item, int tile, int (&token)[2]) {
        const int stage = item & 1;
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            if (kOneTile || tile == 0) {
                token[r] = live[r] ? token_of<kPads>(shape, ahead, query[r]) : kPads ? -1 : 0;
                fetch(stage, r, token[r], live[r], true, kOneTile);  // keys are the same tokens
            }
            if (!kOneTile) {
                const int key = tile * kTile + row[r];
                const bool live_key = key < shape.positions;
                const int key_token = live_key ? token_of<kPads>(shape, ahead, position_at(shape, key)) : 0;
                fetch(stage, r, key_token, live_key, false, true);
            }
        }
    };
    int next_token[2];
    // The bias does not depend on the kernel before, so it comes first, unless that spills registers.
    constexpr bool kBiasFirst = kBlocks < 8 || (kCosine && !kInt8);
    auto begin = [&] {
        if (kOneTile) {  // of a multi-tile window this spills
            int first_token[2];
            for (int r = 0; r < 2; ++r) first_token[r] = live[r] ? max(token_of<kPads>(shape, ahead, query[r]), 0) : 0;
            compute_before_what_follows(first_token[0] | first_token[1] | value_place(0, 0) | value_place(1, 0));
        }
        griddepcontrol_wait();
        griddepcontrol_launch_dependents();
        load(0, 0, next_token);
        if (kOneTile) {
            compute_before_what_follows(value_place(1, 0));
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
            kept_bias[kOneTile ? n : 0][0] = bias_pair(head_bias, shape, row[0], n * 8 + column, kUnit);
            kept_bias[kOneTile ? n : 0][1] = bias_pair(head_bias, shape, row[1], n * 8 + column, kUnit);
        }
    }

    if constexpr (kBiasFirst) {
        begin();
    }

    std::conditional_t<kFp32, SplitFragment<4>, uint32_t[4]> q[kSteps];
    float row_scale[2] = {shape.scale * kUnit, shape.scale * kUnit};
    float maximum[2], out[kWidth / 8][4], sum[4];
    int token[2];
    unsigned axes = 0;
    for (int item = 0, tile = 0; item < items; ++item) {
        const int stage = item & 1;
        const int first_key = tile * kTile;
        const bool first = kOneTile || tile == 0, last = kOneTile || tile == tiles - 1;
        cp_async_commit();
        cp_async_wait<0>();
        if constexpr (kInt8) {
#pragma unroll
            for (int i = 0; i < 2 * kLaneChunks; ++i) {
                const uint2 bytes = shared.packed[i][threadIdx.x];
                const uint2 low = halves_of(bytes.x), high = halves_of(bytes.y);
                *reinterpret_cast<uint4*>(&values[stage][value_place(i / kLaneChunks, i % kLaneChunks)])
                    = make_uint4(low.x, low.y, high.x, high.y);
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
                int sum = 0;
#pragma unroll
                for (int c = 0; c < kWidth / 32; ++c) {
                    const uint4 x = *reinterpret_cast<const uint4*>(
                        &keys[stage][swizzled_bytes<kWidth>(key, kWidth / 32 * half + c)]);
                    sum = add_squares(add_squares(add_squares(add_squares(sum, x.x), x.y), x.z), x.w);
                }
                squares = sum;
            } else if constexpr (kFp32) {
#pragma unroll
                for (int c = 0; c < kWidth / 8; ++c) {
                    squares += sum_of_squares(*reinterpret_cast<const float4*>(
                        &keys[stage][swizzled<kWidth, F>(key, kWidth / 8 * half + c)]));
                }
            } else {
#pragma unroll
                for (int c = 0; c < kWidth / 16; ++c) {
                    const uint4 x = *reinterpret_cast<const uint4*>(
                        &keys[stage][swizzled<kWidth, F>(key, kWidth / 16 * half + c)]);
                    squares = sum_of_squares<F>(squares, x.x);
                    squares = sum_of_squares<F>(squares, x.y);
                    squares = sum_of_squares<F>(squares, x.z);
                    squares = sum_of_squares<F>(squares, x.w);
                }
            }
            squares += __shfl_xor_sync(~0U, squares, 1);
            if (half == 0) {
                shared.key_scale[key] = shared.head_scale * reciprocal_norm<kFp32>(squares);
            }
            __syncthreads();
        }

        if (first) {
            std::conditional_t<kInt8, int, float> squares[2] = {};
#pragma unroll
            for (int k = 0; k < kSteps; ++k) {
                const int query_row = warp * 16 + (lane & 15), at = 2 * k + lane / 16;
                uint32_t raw[4];  // fragments 0, 2 hold row 0 and fragments 1, 3 row 1
                if constexpr (kInt8) {
                    ldmatrix_x4(raw, &queries[stage][swizzled_bytes<kWidth>(query_row, at)]);
                } else {
                    ldmatrix_x4(raw, &queries[stage][swizzled<kWidth, F>(query_row, at)]);
                }
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    if constexpr (kFp32) {
                        split(__uint_as_float(raw[i]), q[k].high[i], q[k].low[i]);
                    } else {
                        q[k][i] = raw[i];
                    }
                    if constexpr (kCosine && kInt8) {
                        squares[i % 2] = add_squares(squares[i % 2], raw[i]);
                    } else if constexpr (kCosine) {
                        squares[i % 2] = sum_of_squares<F>(squares[i % 2], raw[i]);
                    }
                }
            }
#pragma unroll
            for (int r = 0; r < 2; ++r) {
                if (kCosine) {
                    row_scale[r] = reciprocal_norm<kFp32>(quad_sum(static_cast<float>(squares[r])));
                }
                maximum[r] = -INFINITY;
            }
#pragma unroll
            for (int c = 0; c < 4; ++c) {
                sum[c] = 0.F;
#pragma unroll
                for (int n = 0; n < kWidth / 8; ++n) out[n][c] = 0.F;
            }
        }

        // Scores: scale * q k^T + bias + mask.
        float scores[kBlocks][4] = {};
        [[maybe_unused]] uint32_t k[4];
        if constexpr (kFp32) {
            multiply_keys<kWidth>(scores, q, keys[stage], lane);
            if (!all_finite(scores)) {
                const T* const none = nullptr;
                const auto query_at = [&](int r) {
                    return live[r] && token[r] >= 0
                        ? qkv + static_cast<long long>(token[r]) * 3 * shape.channels + head * head_width : none;
                };
                multiply_keys_plainly<kWidth>(scores, query_at(0), query_at(1), head_width, keys[stage], column);
            }
        }
#pragma unroll
        for (int n = 0; n < kBlocks; ++n) {
            if constexpr (kInt8) {
                int sums[4] = {};
                if constexpr (kWidth == 32) {
                    if (n % 2 == 0) {  // 8 keys' halves, and the next 8 keys'
                        const int key = (n + lane / 16) * 8 + (lane & 7);
                        ldmatrix_x4(k, &keys[stage][swizzled_bytes<kWidth>(key, lane / 8 & 1)]);
                    }
                    mma_int8(sums, q[0], k[n % 2 * 2], k[n % 2 * 2 + 1]);
                } else {
                    ldmatrix_x4(k, &keys[stage][swizzled_bytes<kWidth>(n * 8 + (lane & 7), lane / 8)]);
                    mma_int8(sums, q[0], k[0], k[1]);
                    mma_int8(sums, q[1], k[2], k[3]);
                }
#pragma unroll
                for (int c = 0; c < 4; ++c) {
                    scores[n][c] = static_cast<float>(sums[c]);
                }
            } else if constexpr (!kFp32) {
#pragma unroll
                for (int step = 0; step < kSteps; step += 2) {
                    ldmatrix_x4(k, &keys[stage][swizzled<kWidth, F>(n * 8 + (lane & 7), 2 * step + lane / 8)]);
                    Packed<F>::mma(scores[n], q[step], k[0], k[1], scores[n]);
                    Packed<F>::mma(scores[n], q[step + 1], k[2], k[3], scores[n]);
                }
            }
            float2 column_scale = make_float2(1.F, 1.F);
            if (kCosine) {
                column_scale = *reinterpret_cast<const float2*>(&shared.key_scale[n * 8 + column]);
            }
#pragma unroll
            for (int r = 0; r < 2; ++r) {
                const float2 b = kOneTile
                    ? kept_bias[kOneTile ? n : 0][r]
                    : bias_pair(head_bias, shape, first_query + row[r], first_key + n * 8 + column, kUnit);
                scores[n][2 * r] = fmaf(scores[n][2 * r], row_scale[r] * column_scale.x, b.x);
                scores[n][2 * r + 1] = fmaf(scores[n][2 * r + 1], row_scale[r] * column_scale.y, b.y);
            }
        }
        if (axes) {
            const unsigned flags = kOneTile ? kept_flags : column_flags<kBlocks>(shape, first_key + column);
            add_mask(
                scores, axes, shape.mask_value * kUnit, [&](int c) { return flags >> (2 * c); },
                [&](int r) { return row_flags >> (2 * r); });
        }

        // Softmax numerators, with a running maximum over the tiles of a window.
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            const float new_maximum = row_maximum(scores, r, maximum[r]);
            if (!first) {
                const float correction = ex2_approx(kFp32
                    ? __fmul_rn(maximum[r], kLog2e) - __fmul_rn(new_maximum, kLog2e) : maximum[r] - new_maximum);
#pragma unroll
                for (int c = 2 * r; c < 2 * r + 2; ++c) {
                    sum[c] *= correction;
#pragma unroll
                    for (int n = 0; n < kWidth / 8; ++n) out[n][c] *= correction;
                }
            }
            maximum[r] = new_maximum;
            softmax_numerators<!kFp32>(scores, r, kFp32 ? __fmul_rn(new_maximum, kLog2e) : new_maximum);
        }

        if constexpr (kFp32) {
            add_values<kWidth>(out, sum, scores, values[stage], lane);
        } else {
            multiply_values<kWidth>(out, sum, scores, values[stage], lane);
        }
        if (!last) continue;

        // The window is done.
        if constexpr (kFp32) {  // a lane has four neighbours of a row
#pragma unroll
            for (int r = 0; r < 2; ++r) {
                const float normaliser = 1.F / quad_sum(sum[2 * r]);
                if (kPads ? token[r] < 0 : !live[r]) continue;
                Out* const to = y + static_cast<long long>(token[r]) * shape.channels + head * head_width;
#pragma unroll
                for (int n = 0; n < kWidth / 8; n += 4) {
#pragma unroll
                    for (int c = 2 * r; c < 2 * r + 2; ++c) {
                        const int feature = 8 * n + 8 * (lane & 3) + 4 * (c & 1);
                        if (kPads && feature >= head_width) continue;
                        *reinterpret_cast<float4*>(&to[feature]) = make_float4(out[n][c] * normaliser,
                            out[n + 1][c] * normaliser, out[n + 2][c] * normaliser, out[n + 3][c] * normaliser);
                    }
                }
            }
        } else {  // through this warp's own rows of queries, in stores of 8 elements
            Out* const staged
                = reinterpret_cast<Out*>(kInt8 && !kInt8Out ? static_cast<void*>(shared.wider) : queries[stage]);
            auto staged_at
                = [](int row, int chunk) { return kInt8Out ? row * kWidth + chunk * 8 : swizzled<kWidth>(row, chunk); };
            __syncwarp();
#pragma unroll
            for (int r = 0; r < 2; ++r) {
                float normaliser = rcp_approx(sum[2 * r]);
                if (kInt8 && !kInt8Out) {
                    normaliser *= shape.out_scale;
                }
#pragma unroll
                for (int n = 0; n < kWidth / 8; ++n) {
                    const float first = out[n][2 * r] * normaliser, second = out[n][2 * r + 1] * normaliser;
                    Out* const to = &staged[staged_at(row[r], n) + column];
                    if constexpr (kInt8Out) {
                        *reinterpret_cast<uint16_t*>(to) = quantize_pair(first, second, shape.out_scale);
                    } else {
                        *reinterpret_cast<uint32_t*>(to) = Packed<F>::pack(first, second);
                    }
                }
            }
            __syncwarp();
#pragma unroll
            for (int r = 0; r < 2; ++r) {
                if (kPads ? token[r] < 0 : !live[r]) continue;
#pragma unroll
                for (int c = 0; c < kLaneChunks; ++c) {
                    if (!chunk_is_there(c)) continue;
                    using OutChunk = typename TensorCore<Out>::Chunk;
                    Out* to = y + static_cast<long long>(token[r]) * shape.channels + head * head_width
                        + chunk_of(c) * 8;
                    *reinterpret_cast<OutChunk*>(to)
                        = *reinterpret_cast<const OutChunk*>(&staged[staged_at(row[r], chunk_of(c))]);
                }
            }
        }
    }
}

template <typename T, typename Out, bool kCosine, int kWidth, bool kPads, int kWarps, int kBlocks, bool kOneTile>
void launch_tensor_core(
    const AttentionTensors& t, AttentionShape shape, int multiprocessors, cudaStream_t stream) {
    constexpr auto kernel = tensor_core_attention<T, Out, kCosine, kWidth, kPads, kWarps, kBlocks, kOneTile>;
    using Memory = TileMemory<T, Out, kWidth, kPads, kWarps>;
    constexpr int kBytes = kAsksForMemory<Memory> ? sizeof(Memory) : 0;
    if (kBytes > 0 && allow_shared_memory<kernel>(kBytes) != cudaSuccess) return;
    static const int resident_blocks = [] {
        int blocks = 0;
        cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, 32 * kWarps, kBytes);
        return blocks > 0 ? blocks : 1;
    }();
    // As many blocks as run at once: each then walks several windows and loads the next while it computes one.
    const int query_tiles = (shape.positions + 16 * kWarps - 1) / (16 * kWarps);
    const int wanted
        = (multiprocessors * resident_blocks + shape.num_heads * query_tiles - 1) / (shape.num_heads * query_tiles);
    const int windows_per_block = (shape.windows + wanted - 1) / wanted;  // at most
    const dim3 grid(shape.num_heads, query_tiles, (shape.windows + windows_per_block - 1) / windows_per_block);
    shape.stride = window_at(shape, static_cast<int>(grid.z));
    launch<kernel>(grid, 32 * kWarps, kBytes, stream, static_cast<const T*>(t.qkv), t.bias, t.padding, t.logit_scale,
        static_cast<Out*>(t.y), shape);
}

}  // namespace swin
