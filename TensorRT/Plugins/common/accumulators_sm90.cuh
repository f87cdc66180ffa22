// The sums of a warpgroup's products (wgmma.cuh) as features of rows.
//
// The columns of a tile of weight are permuted, so that a thread's sums of a row are 8 neighbouring features: row
// 32g + 8q + 2s + b of the weight's tile lies in shared memory at 32g + 8s + 2q + b.
#pragma once

#include "mma.cuh"
#include "tensor_map_sm90.cuh"
#include "wgmma.cuh"

namespace swin {

constexpr int kFeatureGroup = 32;  // the permutation takes features by so many

// The map of weight[N, K], for boxes of `box_features` rows in that order.
template <class Element, int kRowBytes = kTileBytes>
bool make_weight_map(CUtensorMap& map, const void* weight, int n, int k, int box_features) {
    return make_map<Element, kRowBytes, 5>(map, weight,
        {static_cast<cuuint64_t>(k), 2, 4, 4, static_cast<cuuint64_t>(n / kFeatureGroup)}, {1, 8, 2, kFeatureGroup},
        {kRowBytes / sizeof(Element), 2, 4, 4, static_cast<cuuint32_t>(box_features / kFeatureGroup)});
}

template <class Element> using SumOf = std::conditional_t<std::is_same_v<Element, int8_t>, int, float>;

// In each group of features a thread has 8 neighbouring ones, from 8 (lane % 4) on, in two rows of its warpgroup's 64:
// this one and the one 8 below.
__device__ __forceinline__ constexpr int index_of(int group, int r, int i) {
    return 16 * group + i / 2 * 4 + 2 * r + i % 2;
}
__device__ __forceinline__ int row_of_thread() { return threadIdx.x / 32 % 4 * 16 + threadIdx.x % 32 / 4; }
template <class Sum, int kSums>
__device__ __forceinline__ void eight_of(Sum (&eight)[8], const Sum (&sums)[kSums], int group, int r) {
#pragma unroll
    for (int i = 0; i < 8; ++i) eight[i] = sums[index_of(group, r, i)];
}

// LayerNorm's second moment, of differences to `mean`, which take the place of row r's values; the sum of their squares
// over the four lanes that share the row.
template <int kValues> __device__ __forceinline__ float centre_row(float (&values)[kValues], int r, float mean) {
    float squares = 0.0F;
#pragma unroll
    for (int i = 0; i < kValues / 2; ++i) {
        float& value = values[i / 2 * 4 + 2 * r + i % 2];
        value -= mean;
        squares = fmaf(value, value, squares);
    }
    return quad_sum(squares);
}

// --- 8 neighbouring features -----------------------------------------------------------------------------------------

__device__ __forceinline__ void load_floats(float (&to)[8], const float* from) {
    const uint4 low = ld_global_nc(from), high = ld_global_nc(from + 4);
    const uint32_t bits[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
    for (int i = 0; i < 8; ++i) to[i] = __uint_as_float(bits[i]);
}
__device__ __forceinline__ void unpack_halves(float (&to)[8], const uint4& from) {
    const uint32_t pairs[4] = {from.x, from.y, from.z, from.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const float2 pair = Packed<__half>::unpack(pairs[i]);
        to[2 * i] = pair.x, to[2 * i + 1] = pair.y;
    }
}

__device__ __forceinline__ uint4 packed_halves(const float (&value)[8]) {
    using P = Packed<__half>;
    return make_uint4(P::pack(value[0], value[1]), P::pack(value[2], value[3]), P::pack(value[4], value[5]),
        P::pack(value[6], value[7]));
}

}  // namespace swin
