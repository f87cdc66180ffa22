// The attention branch of a Swin block in INT8 on Hopper, one kernel, for sm_90a only: qkv, window attention, proj,
// LayerNorm and the residual, and nothing between x_q and y in memory.
//
// A block takes a window at a time. Its tokens are the 64 rows of a warpgroup's product, 8 for each row of the window;
// with window 7 the last of the 8, and the last 8, are zeros. Each of three warpgroups does four of the 12 heads:
//   qkv        its 96 features of the head. The sums are quantised; q stays in registers, as an operand, k and v go to
//              the warpgroup's other warps by way of shared memory.
//   attention  scores and softmax as in tensor_core_attention (Attention/attention_kernel.cu), one warpgroup's beside
//              the products of the others, which take turns at the tensor cores. The result goes to shared memory.
// There the heads meet, and each warpgroup multiplies all of them with a third of proj's weight. LayerNorm is of the
// sums of all three.
//
// Three more warps copy weights, each for a warpgroup, through a ring of stages: for each window anew, from the L2
// cache. Another gathers the rows of the next window.
#include <algorithm>
#include <cfloat>
#include <cstddef>

#include "Attention/scores.cuh"
#include "Attention/tiles.cuh"
#include "Attention/windows.cuh"
#include "Int8/attention_branch_int8_kernel.h"
#include "common/product_sm90.cuh"

namespace swin {
namespace {

constexpr int kWidth = 384, kHeads = kWidth / kHeadDim;
constexpr int kRows = 64, kPitch = 8;  // of a product; from one row of the window to the next
constexpr int kWarpgroups = 3, kHeadsEach = kHeads / kWarpgroups, kFeaturesEach = kWidth / kWarpgroups;
constexpr int kConsumers = 128 * kWarpgroups, kThreads = kConsumers + 128;
constexpr int kSteps = kWidth / kTileBytes;  // of K
constexpr int kBlockBytes = kRows * kTileBytes, kRowsBytes = kSteps * kBlockBytes;

// qkv's weight of a head, and proj's of a warpgroup, a step of K at a time.
constexpr int kGroupBytes = kFeatureGroup * kTileBytes, kQkvBytes = 3 * kGroupBytes;
constexpr int kProjBytes = kFeaturesEach * kTileBytes, kStageBytes = kProjBytes, kStages = 3;
constexpr int kStepsOfWindow = (kHeadsEach + 1) * kSteps;
static_assert(kHeads % kWarpgroups == 0 && kWidth == kHeads * kHeadDim);
static_assert(kWarpgroups == 3, "NamedBarrier has three warpgroups");
static_assert(kWidth % kTileBytes == 0 && kFeaturesEach % kFeatureGroup == 0 && kHeadDim == kFeatureGroup);
static_assert(kQkvBytes <= kStageBytes && kStageBytes % kTileAlignment == 0 && kBlockBytes % kTileAlignment == 0,
    "swizzled tiles begin at multiples");
static_assert(kStages >= kSteps, "a product takes all of its stages before it gives one back");
static_assert(kFeaturesEach / 2 + 2 * 4 * kFeaturesEach / kFeatureGroup + 32 <= RegisterSplit<kWarpgroups>::kConsumer,
    "proj's sums, the residual and addresses fit into registers");

// Moments of a row or of a part of it: the mean, and the squares of the differences to it; or the sums of INT8 numbers
// and of their squares.
struct FloatMoments { float mean, squares; };
struct Int8Moments { int sum, squares; };

// kCosine: V2, whose LayerNorm comes before the residual; V1 has a scaled dot product, and LayerNorm after the
// residual.
template <int kWindow_, bool kCosine_> struct Branch {
    static constexpr int kWindow = kWindow_;
    static constexpr bool kCosine = kCosine_;
    static constexpr int kPositions = kWindow * kWindow;
    static constexpr int kDistances = 2 * kWindow - 1, kTable = kDistances * kDistances;  // relative positions
    static_assert(kWindow <= kPitch && kPitch * kWindow <= kRows, "a row of the window is 8 rows of the product");

    // A row of the product: where in the window it lies, if it does, and as which side of the wrap (mask_flags).
    static __device__ __forceinline__ Position position(int row) { return {row / kPitch, row % kPitch}; }
    static __device__ __forceinline__ bool live(int row) { return row / kPitch < kWindow && row % kPitch < kWindow; }
    static __device__ __forceinline__ unsigned mask_flags(const Windows& windows, int row) {
        return static_cast<unsigned>(row / kPitch >= windows.mask_y)
            | static_cast<unsigned>(row % kPitch >= windows.mask_x) << 1;
    }
    // In a head's table: the key in the window's first corner, seen from a position; others lie as much before that as
    // they are away from the corner.
    static __device__ __forceinline__ int table_place(int row, int column) {
        return (row + kWindow - 1) * kDistances + column + kWindow - 1;
    }
    using Moments = std::conditional_t<kCosine, Int8Moments, FloatMoments>;
};

struct BranchMaps { CUtensorMap qkv, proj; };

struct BranchArguments {
    Windows windows;
    const int8_t* x_q;
    const __half* x;
    const float *qkv_factor, *qkv_bias, *proj_factor, *proj_bias, *bias, *gamma, *beta, *logit_scale;
    __half* y;
    int8_t* y_q;
    int bias_stride;
    float scale, mask_value;             // scale: V1, of the products of INT8 q and k
    float inverse_qkv_scale, out_scale;  // out_scale: what takes p v to INT8
    float inverse_proj_scale, epsilon;   // V2: epsilon is in steps of proj
    float inverse_y_scale;
};

// What becomes of the sums of a head's q, k and v, and of proj's sums of a warpgroup's features.
struct alignas(16) QkvParameters { float factor[3 * kHeadDim], bias[3 * kHeadDim]; };
struct alignas(16) RowParameters {
    float factor[kFeaturesEach], bias[kFeaturesEach], gamma[kFeaturesEach], beta[kFeaturesEach];
};

template <class B> struct Shared {
    alignas(kTileAlignment) uint8_t stages[kWarpgroups][kStages][kStageBytes];
    uint8_t x[kRowsBytes], attention[kRowsBytes];
    __half values[kWarpgroups][kRows * kHeadDim];
    union {
        uint8_t keys[kRows * kHeadDim];
        RowParameters row_parameters;  // of proj and LayerNorm, which come when all heads are done with
    } own[kWarpgroups];
    // The bias by relative position. Rows of a product that are not in the window look up to two rows past a head's.
    float table[kHeads * B::kTable + 2 * B::kDistances];
    alignas(8) float key_scale[kWarpgroups][kRows];
    typename B::Moments moments[kWarpgroups][kRows];
    QkvParameters qkv_parameters[kWarpgroups];  // of a head
    int token[kRows];                           // of the window's rows
    unsigned axes;                              // of its mask
    Pipeline<kStages> weights[kWarpgroups];
    Pipeline<1> rows;                 // x and token
    OrderedTurns<kWarpgroups> turns;  // to multiply
};

__device__ __forceinline__ int windows_of_block(const Windows& windows) {
    return (windows.windows - static_cast<int>(blockIdx.x) + static_cast<int>(gridDim.x) - 1)
        / static_cast<int>(gridDim.x);
}

// What the warp does that copies a warpgroup's weights. They are constants: it does not wait for the kernel before.
template <class B>
__device__ __forceinline__ void copy_weights(const BranchMaps& maps, Shared<B>& shared, int warpgroup, int windows) {
    auto& pipeline = shared.weights[warpgroup];
    PipelineState<kStages> at;
    for (int number = 0; number < windows; ++number) {
        for (int step = 0; step < kStepsOfWindow; ++step, at.advance()) {
            uint8_t* const stage = shared.stages[warpgroup][at.stage];
            const int k = step % kSteps * kTileBytes, head = warpgroup * kHeadsEach + step / kSteps;
            pipeline.producer_acquire(at);
            if (!elect_one()) continue;
            if (step < kHeadsEach * kSteps) {
                pipeline.producer_expect(at, kQkvBytes);
#pragma unroll
                for (int part = 0; part < 3; ++part) {
                    tma_load(
                        stage + part * kGroupBytes, maps.qkv, pipeline.barrier(at), k, 0, 0, 0, part * kHeads + head);
                }
            } else {
                pipeline.producer_expect(at, kProjBytes);
                tma_load(
                    stage, maps.proj, pipeline.barrier(at), k, 0, 0, 0, warpgroup * (kFeaturesEach / kFeatureGroup));
            }
        }
    }
}

// Starts the copies of a window's rows, from where they lie in the image. kCopiers threads do that, which `sync` lets
// wait for each other.
template <int kCopiers, class B, class Sync>
__device__ __forceinline__ void gather_rows(
    const BranchArguments& a, Shared<B>& shared, int number, int thread, const Sync& sync) {
    constexpr int kChunks = kWidth / 16;  // of a row
    const Window window = window_at(a.windows, static_cast<int>(blockIdx.x + number * gridDim.x));
    if (thread == 0) shared.axes = mask_axes(a.windows, window);
#pragma unroll
    for (int row = thread; row < kRows; row += kCopiers) {
        shared.token[row] = B::live(row) ? token_of<false>(a.windows, window, B::position(row)) : 0;
    }
    sync();
#pragma unroll 6
    for (int i = thread; i < kRows * kChunks; i += kCopiers) {
        const int row = i / kChunks, chunk = i % kChunks;
        cp_async_16(shared.x + chunk / 8 * kBlockBytes + swizzled_offset(row, chunk % 8),
            a.x_q + static_cast<long long>(shared.token[row]) * kWidth + chunk * 16, B::live(row));
    }
    cp_async_commit();
}

// What the warp does that gathers the rows of all windows but the first.
template <class B>
__device__ __forceinline__ void gather_all(const BranchArguments& a, Shared<B>& shared, int windows) {
    griddepcontrol_wait();
    griddepcontrol_launch_dependents();
    PipelineState<1> at;
    at.advance();  // the warpgroups gather the first themselves
    for (int number = 1; number < windows; ++number, at.advance()) {
        shared.rows.producer_acquire(at);
        gather_rows<32>(a, shared, number, static_cast<int>(threadIdx.x) % 32, [] { __syncwarp(); });
        cp_async_wait<0>();
        fence_proxy_async();
        shared.rows.producer_commit(at);
    }
}

// The rows of 64 that a thread has sums of: row_of_thread() and the one 8 below, in the window's next row.
template <class B> struct ThreadRows {
    int token[2];  // of the window at hand

    static __device__ __forceinline__ int row(int r) { return row_of_thread() + kPitch * r; }
    static __device__ __forceinline__ bool live(int r) { return B::live(row(r)); }
    // Where its features begin in x and y.
    __device__ __forceinline__ long long start(int r) const { return static_cast<long long>(token[r]) * kWidth; }
};

// 8 neighbouring features from their sums, quantised as product_sm90.cuh does it: whole numbers in FP32, and the number
// whose low bytes they are.
struct Quantized {
    uint32_t bits[8];

    __device__ __forceinline__ Quantized(const float (&value)[8], float inverse_scale) {
#pragma unroll
        for (int i = 0; i < 8; ++i) bits[i] = quantize_but_for_ties(value[i], inverse_scale);
    }
    __device__ __forceinline__ float number(int i) const { return __uint_as_float(bits[i]) - kRoundToInteger; }
    __device__ __forceinline__ uint2 bytes() const {
        return make_uint2(low_bytes(bits[0], bits[1], bits[2], bits[3]), low_bytes(bits[4], bits[5], bits[6], bits[7]));
    }
};

// 8 INT8 less `centre`, a whole number, as floats. With its sign bit flipped a byte is x + 128, and as the low byte of
// 0x4B0000.. the number 2^23 + x + 128.
__device__ __forceinline__ void unpack_numbers(float (&to)[8], const uint2& bytes, float centre) {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        const uint32_t four = (i < 4 ? bytes.x : bytes.y) ^ 0x80808080;
        to[i] = __uint_as_float(__byte_perm(four, 0x4B000000, 0x7440 + i % 4)) - (8388608.0F + 128.0F + centre);
    }
}

// Parameters go to shared memory, 16 bytes a thread, while products are under way: memory's latency would stand between
// the sums and what becomes of them.
template <class B>
__device__ __forceinline__ void copy_qkv_parameters(
    const BranchArguments& a, Shared<B>& shared, int warpgroup, int head) {
    constexpr int kChunks = kHeadDim / 4;  // of q, k or v
    const int chunk = static_cast<int>(threadIdx.x) % 128;
    if (chunk < 6 * kChunks) {
        const int part = chunk / kChunks % 3;
        cp_async_16(shared.qkv_parameters[warpgroup].factor + chunk * 4,
            (chunk < 3 * kChunks ? a.qkv_factor : a.qkv_bias) + (part * kHeads + head) * kHeadDim + chunk % kChunks * 4,
            true);
    }
    cp_async_commit();
}
template <class B>
__device__ __forceinline__ void copy_row_parameters(const BranchArguments& a, Shared<B>& shared, int warpgroup) {
    constexpr int kChunks = kFeaturesEach / 4;
    const int chunk = static_cast<int>(threadIdx.x) % 128, array = chunk / kChunks;
    const float* const from = array == 0 ? a.proj_factor : array == 1 ? a.proj_bias : array == 2 ? a.gamma : a.beta;
    cp_async_16(shared.own[warpgroup].row_parameters.factor + chunk * 4,
        from + warpgroup * kFeaturesEach + chunk % kChunks * 4, true);
    cp_async_commit();
}
__device__ __forceinline__ void read_floats(float (&to)[8], const float* from) {
    const float4 low = *reinterpret_cast<const float4*>(from), high = *reinterpret_cast<const float4*>(from + 4);
    to[0] = low.x, to[1] = low.y, to[2] = low.z, to[3] = low.w;
    to[4] = high.x, to[5] = high.y, to[6] = high.z, to[7] = high.w;
}

// What a thread has of a head's queries: an A fragment, whose columns are in an order of their own, in which k's rows
// are read too; and what its rows' products with k are multiplied with.
struct Queries {
    uint32_t fragment[4];
    float scale[2];
};

// The sums of a head's q, k and v become INT8: q in registers, k in shared memory, and v there as FP16.
template <class B>
__device__ __forceinline__ Queries quantise_qkv(const BranchArguments& a, Shared<B>& shared, const int (&sums)[48],
    const ThreadRows<B>& rows, int warpgroup, int head) {
    using P = Packed<__half>;
    const int quarter = static_cast<int>(threadIdx.x) % 4;
    uint8_t* const keys = shared.own[warpgroup].keys;
    __half* const values = shared.values[warpgroup];
    Queries q{{}, {a.scale, a.scale}};
    const float head_scale = B::kCosine ? __ldg(a.logit_scale + head) : 0.0F;
#pragma unroll
    for (int part = 0; part < 3; ++part) {
        float factor[8], bias[8];
        read_floats(factor, shared.qkv_parameters[warpgroup].factor + part * kHeadDim + quarter * 8);
        read_floats(bias, shared.qkv_parameters[warpgroup].bias + part * kHeadDim + quarter * 8);
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            float value[8];
#pragma unroll
            for (int i = 0; i < 8; ++i) {
                value[i] = fmaf(static_cast<float>(sums[index_of(part, r, i)]), factor[i], bias[i]);
            }
            const Quantized quantized(value, a.inverse_qkv_scale);
            const int row = rows.row(r);
            if (part == 2) {
                *reinterpret_cast<uint4*>(values + swizzled<kHeadDim>(row, quarter))
                    = make_uint4(P::pack(quantized.number(0), quantized.number(1)),
                        P::pack(quantized.number(2), quantized.number(3)),
                        P::pack(quantized.number(4), quantized.number(5)),
                        P::pack(quantized.number(6), quantized.number(7)));
                continue;
            }
            const uint2 bytes = quantized.bytes();
            float norm = 0.0F;
            if constexpr (B::kCosine) {
                norm = reciprocal_norm(quad_sum(static_cast<float>(add_squares(add_squares(0, bytes.x), bytes.y))));
            }
            if (part == 0) {
                q.fragment[r] = bytes.x;
                q.fragment[r + 2] = bytes.y;
                if (B::kCosine) q.scale[r] = norm;
            } else {
                *reinterpret_cast<uint2*>(keys + row * kHeadDim + quarter * 8) = bytes;
                if (B::kCosine && quarter == 0) shared.key_scale[warpgroup][row] = head_scale * norm;
            }
        }
    }
    return q;
}

// An integer below 2^22 on top of this is a float, kRoundToInteger and that integer: no conversion, of which there are
// half as many a clock as additions.
constexpr int kRoundBits = 0x4B400000;

// Attention of a head, from q, k and v to shared memory.
template <class B>
__device__ __forceinline__ void attend(const BranchArguments& a, Shared<B>& shared, const Queries& q,
    const ThreadRows<B>& rows, unsigned axes, int warpgroup, int head) {
    constexpr int kBlocks = B::kWindow;  // of 8 keys, a row of the window
    const int lane = static_cast<int>(threadIdx.x) % 32, quarter = lane % 4;
    const uint8_t* const keys = shared.own[warpgroup].keys;
    const __half* const values = shared.values[warpgroup];

    // Scores: q k^T, scaled, with bias and mask.
    float scores[kBlocks][4];
    const Position position = B::position(rows.row(0));
    // A lane's two columns are two keys of the window's row n. In window 7 the last is padding, and looks where the one
    // before it does.
    const bool padding = 2 * quarter + 1 >= B::kWindow;
    const float* const table
        = shared.table + head * B::kTable + B::table_place(position.row, position.column) - 2 * quarter;
    const float* const tables[2] = {table, table - !padding};
#pragma unroll
    for (int n = 0; n < kBlocks; ++n) {
        const uint2 k = *reinterpret_cast<const uint2*>(keys + (8 * n + lane / 4) * kHeadDim + quarter * 8);
        int products[4] = {kRoundBits, kRoundBits, kRoundBits, kRoundBits};
        mma_int8(products, q.fragment, k.x, k.y);
        float2 column_scale = make_float2(1.0F, 1.0F);
        if constexpr (B::kCosine) {
            column_scale = *reinterpret_cast<const float2*>(&shared.key_scale[warpgroup][8 * n + 2 * quarter]);
        }
#pragma unroll
        for (int e = 0; e < 2; ++e) {
#pragma unroll
            for (int r = 0; r < 2; ++r) {
                const float score = fmaf(__int_as_float(products[2 * r + e]) - kRoundToInteger,
                    q.scale[r] * (e ? column_scale.y : column_scale.x), tables[e][(r - n) * B::kDistances]);
                scores[n][2 * r + e] = e == 1 && padding ? -INFINITY : score;
            }
        }
    }
    if (axes) {
        // mask_flags of the keys, whose columns are the same in every row of the window: kept, that spills less.
        const unsigned column_flags[2]
            = {2 * quarter >= a.windows.mask_x ? 2U : 0U, 2 * quarter + 1 >= a.windows.mask_x ? 2U : 0U};
        add_mask(
            scores, axes, a.mask_value,
            [&](int c) { return column_flags[c & 1] | static_cast<unsigned>(c / 2 >= a.windows.mask_y); },
            [&](int r) { return B::mask_flags(a.windows, rows.row(r)); });
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) softmax_numerators<false>(scores, r, row_maximum(scores, r, -INFINITY) * kLog2e);
    float out[4][4] = {}, sum[4] = {};
    multiply_values<kHeadDim>(out, sum, scores, values, lane);

    uint8_t* const block = shared.attention + head / 4 * kBlockBytes;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        const float normaliser = rcp_approx(sum[2 * r]);
#pragma unroll
        for (int n = 0; n < 4; ++n) {
            uint8_t* const to = block + swizzled_offset(rows.row(r), head % 4 * 2 + n / 2) + n % 2 * 8 + quarter * 2;
            *reinterpret_cast<uint16_t*>(to)
                = static_cast<uint16_t>(__byte_perm(quantize_but_for_ties(out[n][2 * r] * normaliser, a.out_scale),
                    quantize_but_for_ties(out[n][2 * r + 1] * normaliser, a.out_scale), 0x0040));
        }
    }
}

// y and y_q of a warpgroup's third of the features, from proj's sums.
template <class B>
__device__ __forceinline__ void store_rows(const BranchArguments& a, Shared<B>& shared,
    const int (&sums)[kFeaturesEach / 2], const uint4 (&x)[kFeaturesEach / kFeatureGroup][2], const ThreadRows<B>& rows,
    int warpgroup) {
    constexpr int kGroups = kFeaturesEach / kFeatureGroup;
    const RowParameters& parameters = shared.own[warpgroup].row_parameters;
    const int first_feature = static_cast<int>(threadIdx.x) % 4 * 8;  // of the warpgroup's
    __half* const y = a.y + warpgroup * kFeaturesEach;
    int8_t* const y_q = a.y_q + warpgroup * kFeaturesEach;
    // What LayerNorm takes, and its moments: of INT8 (V2) sums of numbers and of squares, which are exact; of FP16 (V1)
    // the mean of this warpgroup's features, and differences to it.
    float normed[B::kCosine ? 1 : kFeaturesEach / 2];
    uint2 numbers[kGroups][2];
    typename B::Moments moments[2] = {};
#pragma unroll
    for (int group = 0; group < kGroups; ++group) {
        const int feature = first_feature + group * kFeatureGroup;
        float factor[8], bias[8];
        read_floats(factor, parameters.factor + feature);
        read_floats(bias, parameters.bias + feature);
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            float value[8];
#pragma unroll
            for (int i = 0; i < 8; ++i) {
                value[i] = fmaf(static_cast<float>(sums[index_of(group, r, i)]), factor[i], bias[i]);
            }
            if constexpr (B::kCosine) {
                const uint2 bytes = numbers[group][r] = Quantized(value, a.inverse_proj_scale).bytes();
                moments[r].sum = add_numbers(add_numbers(moments[r].sum, bytes.x), bytes.y);
                moments[r].squares = add_squares(add_squares(moments[r].squares, bytes.x), bytes.y);
            } else {
                float addend[8];
                unpack_halves(addend, x[group][r]);
#pragma unroll
                for (int i = 0; i < 8; ++i) value[i] += addend[i];
                const uint4 rounded = packed_halves(value);
                if (rows.live(r)) st_global(y + rows.start(r) + feature, rounded);
                unpack_halves(value, rounded);
#pragma unroll
                for (int i = 0; i < 8; ++i) moments[r].mean += normed[index_of(group, r, i)] = value[i];
            }
        }
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        if constexpr (B::kCosine) {
            moments[r].sum = quad_sum(moments[r].sum);
            moments[r].squares = quad_sum(moments[r].squares);
        } else {
            moments[r].mean = quad_sum(moments[r].mean) * (1.0F / kFeaturesEach);
            moments[r].squares = centre_row(normed, r, moments[r].mean);
        }
        if (threadIdx.x % 4 == 0) shared.moments[warpgroup][rows.row(r)] = moments[r];
    }
    consumers_sync<kConsumers>();  // all have multiplied attention's results by now, too

    // LayerNorm is normed * deviation + offset; of INT8 normed is the difference to a whole number near the mean, so
    // that equal numbers give zeros, however small epsilon is in their steps.
    float deviation[2], offset[2], centre[2] = {};
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        typename B::Moments all{}, parts[kWarpgroups];
#pragma unroll
        for (int i = 0; i < kWarpgroups; ++i) parts[i] = shared.moments[i][rows.row(r)];
        if constexpr (B::kCosine) {
#pragma unroll
            for (int i = 0; i < kWarpgroups; ++i) {
                all.sum += parts[i].sum;
                all.squares += parts[i].squares;
            }
            // 384 times the squares, and the sum's square, are below 2^32.
            const unsigned variance = kWidth * static_cast<unsigned>(all.squares)
                - static_cast<unsigned>(all.sum) * static_cast<unsigned>(all.sum);
            deviation[r] = rsqrtf(fmaf(static_cast<float>(variance), 1.0F / (kWidth * kWidth), a.epsilon));
            const float sum = static_cast<float>(all.sum);
            centre[r] = rintf(sum * (1.0F / kWidth));
            offset[r] = fmaf(centre[r], static_cast<float>(kWidth), -sum) * (1.0F / kWidth) * deviation[r];
        } else {
#pragma unroll
            for (int i = 0; i < kWarpgroups; ++i) all.mean += parts[i].mean * (1.0F / kWarpgroups);
#pragma unroll
            for (int i = 0; i < kWarpgroups; ++i) {
                const float difference = parts[i].mean - all.mean;
                all.squares += fmaf(difference * difference, static_cast<float>(kFeaturesEach), parts[i].squares);
            }
            deviation[r] = rsqrtf(fmaf(all.squares, 1.0F / kWidth, a.epsilon));
            offset[r] = (moments[r].mean - all.mean) * deviation[r];
        }
    }

#pragma unroll
    for (int group = 0; group < kGroups; ++group) {
        const int feature = first_feature + group * kFeatureGroup;
        float gamma[8], beta[8];
        read_floats(gamma, parameters.gamma + feature);
        read_floats(beta, parameters.beta + feature);
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            float value[8] = {}, addend[8] = {};
            if constexpr (B::kCosine) {
                unpack_numbers(value, numbers[group][r], centre[r]);
                unpack_halves(addend, x[group][r]);
            } else {
                eight_of(value, normed, group, r);
            }
#pragma unroll
            for (int i = 0; i < 8; ++i) {
                value[i] = addend[i] + fmaf(fmaf(value[i], deviation[r], offset[r]), gamma[i], beta[i]);
            }
            if (!rows.live(r)) continue;
            if constexpr (B::kCosine) st_global(y + rows.start(r) + feature, packed_halves(value));
            store_quantized_but_for_ties(y_q + rows.start(r) + feature, value, a.inverse_y_scale);
        }
    }
}

template <class B>
__global__ void __launch_bounds__(kThreads, 1)
    attention_branch_kernel(const __grid_constant__ BranchMaps maps, const BranchArguments a) {
    static_assert(sizeof(Shared<B>) <= kSharedOfBlock);
    static_assert(offsetof(Shared<B>, x) % kTileAlignment == 0 && offsetof(Shared<B>, attention) % kTileAlignment == 0);
    static_assert(offsetof(Shared<B>, values) % 16 == 0 && offsetof(Shared<B>, own) % 16 == 0);
    extern __shared__ __align__(kTileAlignment) uint8_t memory[];
    Shared<B>& shared = *reinterpret_cast<Shared<B>*>(memory);
    if (threadIdx.x == kConsumers) {
        prefetch_tensormap(maps.qkv);
        prefetch_tensormap(maps.proj);
        for (auto& pipeline : shared.weights) pipeline.init(1, 4);
        shared.rows.init(32, kConsumers);
        shared.turns.init(4);
        fence_barrier_init();
    }
    __syncthreads();

    const int windows = windows_of_block(a.windows);
    const int warpgroup = warp_index() / 4;
    if (warpgroup == kWarpgroups) {
        warpgroup_reg_dealloc<RegisterSplit<kWarpgroups>::kProducer>();
        if (warp_index() % 4 < kWarpgroups) {
            copy_weights(maps, shared, warp_index() % 4, windows);
        } else {
            gather_all(a, shared, windows);
        }
        return;
    }
    warpgroup_reg_alloc<RegisterSplit<kWarpgroups>::kConsumer>();

    // Seen from the four corners of a window, its keys are at all distances that there are; those at distance 0 along
    // an axis count from the first corner.
#pragma unroll
    for (int i = static_cast<int>(threadIdx.x); i < 4 * kHeads * B::kPositions; i += kConsumers) {
        const int key = i % B::kPositions, corner = i / B::kPositions % 4, head = i / B::kPositions / 4;
        const int row = corner / 2 * (B::kWindow - 1), column = corner % 2 * (B::kWindow - 1);
        const int key_row = key / B::kWindow, key_column = key % B::kWindow;
        if ((row > 0 && key_row == row) || (column > 0 && key_column == column)) continue;
        cp_async_4(shared.table + head * B::kTable + B::table_place(row - key_row, column - key_column),
            a.bias + (head * B::kPositions + row * B::kWindow + column) * a.bias_stride + key);
    }
    ThreadRows<B> rows;
    griddepcontrol_wait();
    gather_rows<kConsumers>(a, shared, 0, static_cast<int>(threadIdx.x), [] { consumers_sync<kConsumers>(); });

    Pipeline<kStages>& weights = shared.weights[warpgroup];
    PipelineState<kStages> place;
    Turn<kWarpgroups> turn(shared.turns, warpgroup);
    for (int number = 0; number < windows; ++number) {
        auto multiply = [&](auto& sums, const uint8_t* tile) {
            constexpr int kFeatures = sizeof(sums) / sizeof(int) * 2;
            PipelineState<kStages> at = place;
            turn.wait();
#pragma unroll
            for (int step = 0; step < kSteps; ++step, at.advance()) {
                weights.consumer_wait(at);
                wgmma_fence();
#pragma unroll
                for (int k = 0; k < 4; ++k) {
                    WgmmaSS<int, kFeatures>::mma(sums, make_smem_desc(tile + step * kBlockBytes) + 2 * k,
                        make_smem_desc(shared.stages[warpgroup][at.stage]) + 2 * k, step > 0 || k > 0);
                }
                wgmma_commit();
            }
            turn.pass_on();
        };
        auto release = [&] {  // the stages of products that are done
#pragma unroll
            for (int step = 0; step < kSteps; ++step, place.advance()) weights.consumer_release(place);
        };

        copy_qkv_parameters(a, shared, warpgroup, warpgroup * kHeadsEach);
        if (number == 0) {
            cp_async_wait<0>();
            fence_proxy_async();
            consumers_sync<kConsumers>();
        } else {
            shared.rows.consumer_wait({0, (number - 1) & 1});
        }
        const unsigned axes = shared.axes;
#pragma unroll
        for (int r = 0; r < 2; ++r) rows.token[r] = shared.token[rows.row(r)];
#pragma unroll 1
        for (int i = 0; i < kHeadsEach; ++i) {
            const int head = warpgroup * kHeadsEach + i;
            int sums[48];
            multiply(sums, shared.x);
            wgmma_wait<0>();
            fence_operand(sums);
            release();
            cp_async_wait<0>();
            warpgroup_sync(warpgroup);  // parameters are there, and all are done with the keys and values before
            const Queries q = quantise_qkv<B>(a, shared, sums, rows, warpgroup, head);
            warpgroup_sync(warpgroup);
            if (i + 1 < kHeadsEach) copy_qkv_parameters(a, shared, warpgroup, head + 1);
            attend<B>(a, shared, q, rows, axes, warpgroup, head);
        }
        shared.rows.consumer_release_by_thread({0, 0});  // each has read the rows' tokens itself
        fence_proxy_async();
        consumers_sync<kConsumers>();

        copy_row_parameters(a, shared, warpgroup);
        int sums[kFeaturesEach / 2];
        multiply(sums, shared.attention);
        uint4 x[kFeaturesEach / kFeatureGroup][2];
#pragma unroll
        for (int group = 0; group < kFeaturesEach / kFeatureGroup; ++group) {
#pragma unroll
            for (int r = 0; r < 2; ++r) {
                x[group][r] = ld_global(a.x + rows.start(r) + warpgroup * kFeaturesEach + group * kFeatureGroup
                    + static_cast<int>(threadIdx.x) % 4 * 8);
            }
        }
        wgmma_wait<0>();
        fence_operand(sums);
        release();
        cp_async_wait<0>();
        warpgroup_sync(warpgroup);
        store_rows<B>(a, shared, sums, x, rows, warpgroup);
    }
}

template <class B> int launch_branch(
    const SwinAttentionBranchInt8& a, const Windows& windows, int multiprocessors, cudaStream_t stream) {
    BranchMaps maps{};
    if (!make_weight_map<int8_t>(maps.qkv, a.qkv_weight, 3 * kWidth, kWidth, kFeatureGroup)
        || !make_weight_map<int8_t>(maps.proj, a.proj_weight, kWidth, kWidth, kFeaturesEach)) {
        return cudaErrorInvalidValue;
    }
    constexpr auto kKernel = attention_branch_kernel<B>;
    const cudaError_t error = allow_shared_memory<kKernel>(sizeof(Shared<B>));
    if (error != cudaSuccess) return error;
    BranchArguments arguments{};
    arguments.windows = windows;
    arguments.x_q = a.x_q;
    arguments.x = static_cast<const __half*>(a.x);
    arguments.qkv_factor = a.qkv_factor;
    arguments.qkv_bias = a.qkv_bias;
    arguments.proj_factor = a.proj_factor;
    arguments.proj_bias = a.proj_bias;
    arguments.bias = a.bias;
    arguments.gamma = a.gamma;
    arguments.beta = a.beta;
    arguments.logit_scale = a.logit_scale;
    arguments.y = static_cast<__half*>(a.y);
    arguments.y_q = a.y_q;
    arguments.bias_stride = (B::kPositions + 7) / 8 * 8;
    arguments.scale = a.scale * a.qkv_scale * a.qkv_scale;
    arguments.mask_value = a.mask_value;
    arguments.inverse_qkv_scale = 1.0F / a.qkv_scale;
    arguments.out_scale = a.qkv_scale / a.attention_scale;
    arguments.inverse_proj_scale = B::kCosine ? 1.0F / a.proj_scale : 0.0F;
    arguments.epsilon = B::kCosine ? epsilon_in_steps(a.epsilon, a.proj_scale) : a.epsilon;
    arguments.inverse_y_scale = 1.0F / a.y_scale;
    return launch<kKernel>(
        std::min(windows.windows, multiprocessors), kThreads, sizeof(Shared<B>), stream, maps, arguments);
}

}  // namespace

bool fits_attention_branch_sm90(const SwinAttentionBranchInt8& a, int multiprocessors) {
    const int window = a.norm_first == 1 ? 7 : 8;
    if (a.num_heads != kHeads || a.window_height != window || (a.logit_scale == nullptr) != (a.norm_first == 1))
        return false;
    // Each multiprocessor takes a window in a round; the kernels of the parts spread over all of them, whatever the
    // number of windows. On an H100 a round takes as long as they take for the windows of 0.8 of a round, and they
    // begin with what takes as long as 0.45 of it (V1 0.9 and 0.55, V2 0.75 and 0.35): so one kernel from 0.35 of a
    // round on, from 1.15 in two rounds, and always in three.
    const long long windows = static_cast<long long>(a.batch) * a.height * a.width / (window * window);
    const long long rounds = (windows + multiprocessors - 1) / multiprocessors;
    return 20 * windows >= multiprocessors * (16 * rounds - 9);
}

int attention_branch_int8_sm90(const SwinAttentionBranchInt8& a, int multiprocessors, cudaStream_t stream) {
    Windows windows{};
    if (!describe_branch(windows, a)) return cudaErrorInvalidValue;
    return a.norm_first == 1 ? launch_branch<Branch<7, false>>(a, windows, multiprocessors, stream)
                             : launch_branch<Branch<8, true>>(a, windows, multiprocessors, stream);
}

}  // namespace swin
