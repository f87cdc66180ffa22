// A tile of scores in the registers of a warp, as flash attention has it: shift mask, softmax and p v.
//
// A lane holds, of the warp's 16 queries, rows lane / 4 and lane / 4 + 8 (r = 0, 1), and of every 8 keys two
// neighbours, the first being 2 (lane % 4): scores[n][2 * r + e] is that of key 8n + 2 (lane % 4) + e. Column c = 2n +
// e.
#pragma once

#include "Attention/tiles.cuh"
#include "common/mma.cuh"

namespace swin {

// Adds `value` where query and key lie on different sides of an image's wrap: see mask_flags. column_flags(c) and
// row_flags(r) give the flags, of which the bits of `axes` count.
template <int kBlocks, class ColumnFlags, class RowFlags>
__device__ __forceinline__ void add_mask(float (&scores)[kBlocks][4], unsigned axes, float value,
    const ColumnFlags& column_flags, const RowFlags& row_flags) {
#pragma unroll
    for (int c = 0; c < 2 * kBlocks; ++c) {
        const unsigned flags = column_flags(c);
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            if ((flags ^ row_flags(r)) & axes) scores[c / 2][2 * r + (c & 1)] += value;
        }
    }
}

// The largest of row r's scores and `maximum`, over the four lanes that share the row.
template <int kBlocks>
__device__ __forceinline__ float row_maximum(const float (&scores)[kBlocks][4], int r, float maximum) {
#pragma unroll
    for (int n = 0; n < kBlocks; ++n) maximum = fmaxf(maximum, fmaxf(scores[n][2 * r], scores[n][2 * r + 1]));
    return quad_max(maximum);
}

// Softmax numerators in place of row r's scores. maximum is in units of log2(e), and so are scores where kInLog2.
template <bool kInLog2, int kBlocks>
__device__ __forceinline__ void softmax_numerators(float (&scores)[kBlocks][4], int r, float maximum) {
#pragma unroll
    for (int n = 0; n < kBlocks; ++n) {
#pragma unroll
        for (int e = 2 * r; e < 2 * r + 2; ++e) {
            scores[n][e] = ex2_approx(kInLog2 ? scores[n][e] - maximum : fmaf(scores[n][e], kLog2e, -maximum));
        }
    }
}

// out += p v and sum += p 1, of p rounded to F. Two neighbouring accumulators of scores are one A fragment. values:
// rows of kWidth, swizzled; of F = __half or __nv_bfloat16. out[n] has features 8n + 2 (lane % 4) and the next.
template <int kWidth, class F, int kBlocks>
__device__ __forceinline__ void multiply_values(
    float (&out)[kWidth / 8][4], float (&sum)[4], const float (&scores)[kBlocks][4], const F* values, int lane) {
    using P = Packed<F>;
#pragma unroll
    for (int k = 0; k < (kBlocks + 1) / 2; ++k) {
        uint32_t p[4]
            = {P::pack(scores[2 * k][0], scores[2 * k][1]), P::pack(scores[2 * k][2], scores[2 * k][3]), 0, 0};
        if (2 * k + 1 < kBlocks) {
            p[2] = P::pack(scores[(2 * k + 1) % kBlocks][0], scores[(2 * k + 1) % kBlocks][1]);
            p[3] = P::pack(scores[(2 * k + 1) % kBlocks][2], scores[(2 * k + 1) % kBlocks][3]);
        }
        P::mma(sum, p, P::kOnes, P::kOnes, sum);
#pragma unroll
        for (int pair = 0; pair < kWidth / 16; ++pair) {
            uint32_t v[4];
            ldmatrix_x4_trans(v, &values[swizzled<kWidth>(k * 16 + (lane & 15), 2 * pair + lane / 16)]);
            P::mma(out[2 * pair], p, v[0], v[1], out[2 * pair]);
            P::mma(out[2 * pair + 1], p, v[2], v[3], out[2 * pair + 1]);
        }
    }
}

}  // namespace swin
