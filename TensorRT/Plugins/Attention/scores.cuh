// A tile of scores in the registers of a warp, as flash attention has it: shift mask, softmax and p v.
//
// A lane holds, of the warp's 16 queries, rows lane / 4 and lane / 4 + 8 (r = 0, 1), and of every 8 keys two
// neighbours, the first being 2 (lane % 4): scores[n][2 * r + e] is that of key 8n + 2 (lane % 4) + e. Column c = 2n +
// e.
#pragma once

#include "Attention/tiles.cuh"
#include "common/mma.cuh"
#include "common/tf32.cuh"

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

// --- FP32 ------------------------------------------------------------------------------------------------------------

// Each number is the sum of two TF32 numbers (common/tf32.cuh), except where it is not finite or next to the largest
// FP32: what comes of those is no number either, and is computed again without parts. keys, values: rows of kWidth,
// swizzled.

// scores += q k^T, of q as fragments: q[step] has features 8 step to 8 step + 7.
template <int kWidth, int kBlocks>
__device__ __forceinline__ void multiply_keys(
    float (&scores)[kBlocks][4], const SplitFragment<4> (&q)[kWidth / 8], const float* keys, int lane) {
#pragma unroll
    for (int n = 0; n < kBlocks; ++n) {
#pragma unroll
        for (int step = 0; step < kWidth / 8; step += 2) {
            uint32_t raw[4];  // key lane / 4 of the 8: of each of four chunks feature lane % 4
            ldmatrix_x4(raw, &keys[swizzled<kWidth, float>(n * 8 + (lane & 7), 2 * step + lane / 8)]);
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const float k[2] = {__uint_as_float(raw[2 * half]), __uint_as_float(raw[2 * half + 1])};
                add_product(scores[n], q[step + half], SplitFragment<2>(k));
            }
        }
    }
}

template <int kCount> __device__ __forceinline__ bool all_finite(const float (&x)[kCount][4]) {
    float zero = 0.F;
#pragma unroll
    for (int n = 0; n < kCount; ++n) {
#pragma unroll
        for (int c = 0; c < 4; ++c) zero = fmaf(x[n][c], 0.F, zero);
    }
    return zero == 0.F;
}

// scores = q k^T without parts. q0, q1: rows of this lane's two queries in global memory, or null where a query is not
// there; column: this lane's first key of every 8.
template <int kWidth, int kBlocks>
__device__ __forceinline__ void multiply_keys_plainly(float (&scores)[kBlocks][4], const float* q0, const float* q1,
    int head_width, const float* keys, int column) {
#pragma unroll
    for (int n = 0; n < kBlocks; ++n) {
#pragma unroll
        for (int c = 0; c < 4; ++c) scores[n][c] = 0.F;
    }
#pragma unroll 1
    for (int d = 0; d < head_width; ++d) {
        const float q[2] = {q0 != nullptr ? q0[d] : 0.F, q1 != nullptr ? q1[d] : 0.F};
#pragma unroll
        for (int n = 0; n < kBlocks; ++n) {
#pragma unroll
            for (int e = 0; e < 2; ++e) {
                const float k = keys[swizzled<kWidth, float>(n * 8 + column + e, d / 4) + d % 4];
                scores[n][e] = fmaf(q[0], k, scores[n][e]);
                scores[n][2 + e] = fmaf(q[1], k, scores[n][2 + e]);
            }
        }
    }
}

// out += p v, and sum[2 * r] += this lane's numbers p of row r. Along K, key 2 i of 8 is number i and key 2 i + 1
// number i + 4, so that a lane's scores are its A fragment. Feature 32 g + 4 i + m is column i of out[4 g + m]: a lane
// reads four neighbours at once, and its out[4 g + m][2 * r + e] are features 32 g + 8 (lane % 4) + 4 e + m.
template <int kWidth, int kBlocks>
__device__ __forceinline__ void add_values(
    float (&out)[kWidth / 8][4], float (&sum)[4], const float (&scores)[kBlocks][4], const float* values, int lane) {
    float product[kWidth / 8][4] = {}, row_sum[2] = {};
    const auto four = [&](int key, int chunk) {
        return *reinterpret_cast<const float4*>(&values[swizzled<kWidth, float>(key, chunk)]);
    };
#pragma unroll
    for (int n = 0; n < kBlocks; ++n) {
        row_sum[0] += scores[n][0] + scores[n][1];
        row_sum[1] += scores[n][2] + scores[n][3];
        const float reordered[4] = {scores[n][0], scores[n][2], scores[n][1], scores[n][3]};
        const SplitFragment<4> p(reordered);
#pragma unroll
        for (int g = 0; g < kWidth / 32; ++g) {
            const int key = n * 8 + 2 * (lane & 3), chunk = 8 * g + lane / 4;
            const float4 even = four(key, chunk), odd = four(key + 1, chunk);
            const float v[4][2] = {{even.x, odd.x}, {even.y, odd.y}, {even.z, odd.z}, {even.w, odd.w}};
#pragma unroll
            for (int m = 0; m < 4; ++m) add_product(product[4 * g + m], p, SplitFragment<2>(v[m]));
        }
    }
    if (__any_sync(~0U, !all_finite(product))) {  // again, without parts
#pragma unroll
        for (int m = 0; m < kWidth / 8; ++m) {
#pragma unroll
            for (int c = 0; c < 4; ++c) product[m][c] = 0.F;
        }
#pragma unroll
        for (int n = 0; n < kBlocks; ++n) {
#pragma unroll 1
            for (int i = 0; i < 4; ++i) {  // the lane of these four that has two keys' p
#pragma unroll
                for (int e = 0; e < 2; ++e) {
                    const float p[2] = {__shfl_sync(~0U, scores[n][e], i, 4), __shfl_sync(~0U, scores[n][2 + e], i, 4)};
#pragma unroll
                    for (int chunk = 0; chunk < kWidth / 16; ++chunk) {  // of this lane, two of each 8
                        const float4 x = four(n * 8 + 2 * i + e, chunk / 2 * 8 + 2 * (lane & 3) + chunk % 2);
                        const float v[4] = {x.x, x.y, x.z, x.w};
#pragma unroll
                        for (int m = 0; m < 4; ++m) {
#pragma unroll
                            for (int r = 0; r < 2; ++r) {
                                float& to = product[chunk / 2 * 4 + m][2 * r + chunk % 2];
                                to = fmaf(p[r], v[m], to);
                            }
                        }
                    }
                }
            }
        }
    }
    sum[0] += row_sum[0];
    sum[2] += row_sum[1];
#pragma unroll
    for (int m = 0; m < kWidth / 8; ++m) {
#pragma unroll
        for (int c = 0; c < 4; ++c) out[m][c] += product[m][c];
    }
}

}  // namespace swin
