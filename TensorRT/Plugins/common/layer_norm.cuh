// The LayerNorm kernel behind all of its forms: alone or affine, with a residual Add before or after, with patch
// merging's gather in front.
//
// FP32 arithmetic whatever the element type. The row stays in registers, so the variance comes from differences to
// the mean. The mean itself is refined: with d = x - mean0, mean = mean0 + sum(d)/C and
// var = sum(d^2)/C - (sum(d)/C)^2, where sum(d)/C is rounding error alone. That keeps rows of mean 1e4 exact.
#pragma once

#include "rows.cuh"

namespace swin {

enum class Form {
    kNorm,        // y = LN(x)
    kAddNorm,     // sum = x + residual, y = LN(sum)
    kNormAdd,     // y = residual + LN(x)
    kMergeNorm,   // y = LN(the 2 x 2 neighbours of x side by side)
};

struct LayerNormArguments {
    const void* x;
    const void* residual;
    const float* gamma;  // null: 1
    const float* beta;   // null: 0
    void* sum;
    void* y;
    long long rows;
    int width;
    float epsilon;
    // kMergeNorm: x is [batch, 2 * merged height, 2 * merged_width, channels], width = 4 * channels.
    int merged_width;
    int channels;
};

// Where element `column` of merged row `row` lies in x. Neighbours stand in the official order
// (0,0), (1,0), (0,1), (1,1), each (row offset, column offset).
__device__ __forceinline__ long long merge_source(int row, int column, int merged_width, int channels) {
    const int neighbour = (column >= channels) + (column >= 2 * channels) + (column >= 3 * channels);
    const int j = row % merged_width;
    const int batch_and_i = row / merged_width;  // merged rows of the batch lie one under the other, and so do x's
    const long long source_row = 2LL * batch_and_i + (neighbour & 1);
    const long long source = source_row * (2 * merged_width) + 2 * j + (neighbour >> 1);
    return source * channels + (column - neighbour * channels);
}

// What rounding lost of inverse_root = 1 / sqrt(x): one Newton step with the products' low parts. 0 where x overflowed.
__device__ __forceinline__ float inverse_root_rest(float x, float inverse_root) {
    if (!(x < INFINITY)) return 0.0f;
    const float product = x * inverse_root;
    const float product_rest = fmaf(x, inverse_root, -product);
    const float residual = fmaf(-product, inverse_root, 1.0f) - product_rest * inverse_root;
    return 0.5f * inverse_root * residual;
}

template <Form FORM, class Shape>
__global__ void __launch_bounds__(Shape::THREADS, 1) layer_norm_kernel(const LayerNormArguments a, const int group) {
    using T = typename Shape::T;
    constexpr int VEC = Shape::VEC;
    constexpr int ITEMS = Shape::ITEMS;
    constexpr int ROWS = Shape::ROWS;
    constexpr bool kResidual = FORM == Form::kAddNorm || FORM == Form::kNormAdd;

    const T* __restrict__ x = static_cast<const T*>(a.x);
    const T* __restrict__ residual = static_cast<const T*>(a.residual);
    T* __restrict__ y = static_cast<T*>(a.y);
    const int lane = threadIdx.x % group;
    const long long first_row
        = (static_cast<long long>(blockIdx.x) * (blockDim.x / group) + threadIdx.x / group) * ROWS;

    Raw<T, VEC> x_raw[ROWS][ITEMS];
    Raw<T, VEC> residual_raw[ROWS][ITEMS];
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
#pragma unroll
        for (int i = 0; i < ITEMS; ++i) {
            const long long row = first_row + r;
            const int column = (i * group + lane) * VEC;
            x_raw[r][i] = {};
            residual_raw[r][i] = {};
            if (row < a.rows && column < a.width) {
                const long long at = FORM == Form::kMergeNorm
                    ? merge_source(static_cast<int>(row), column, a.merged_width, a.channels)
                    : row * a.width + column;
                x_raw[r][i] = load_raw<T, VEC>(x + at);
                if (kResidual) residual_raw[r][i] = load_raw<T, VEC>(residual + at);
            }
        }
    }

    float value[ROWS][ITEMS][VEC];
    float mean[ROWS];
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
        mean[r] = 0.0f;
#pragma unroll
        for (int i = 0; i < ITEMS; ++i) {
            unpack<T, VEC>(x_raw[r][i], value[r][i]);
            if (FORM == Form::kAddNorm) {
                float addend[VEC];
                unpack<T, VEC>(residual_raw[r][i], addend);
#pragma unroll
                for (int v = 0; v < VEC; ++v) value[r][i][v] += addend[v];
                const int column = (i * group + lane) * VEC;
                if (first_row + r < a.rows && column < a.width) {
                    store_raw<T, VEC>(static_cast<T*>(a.sum) + (first_row + r) * a.width + column,
                        pack<T, VEC>(value[r][i]));
                }
            }
            mean[r] += sum_of(value[r][i]);
        }
    }
    group_sum(mean, group);

    const float width = static_cast<float>(a.width);
    float moments[2 * ROWS];  // of the differences to the first mean: sums, then sums of squares
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
        mean[r] /= width;
        moments[r] = 0.0f;
        moments[ROWS + r] = 0.0f;
#pragma unroll
        for (int i = 0; i < ITEMS; ++i) {
            const bool inside = (i * group + lane) * VEC < a.width;
#pragma unroll
            for (int v = 0; v < VEC; ++v) value[r][i][v] = inside ? value[r][i][v] - mean[r] : 0.0f;
            moments[r] += sum_of(value[r][i]);
            moments[ROWS + r] += sum_of_squares(value[r][i]);
        }
    }
    group_sum(moments, group);

    // (difference - shift) / sqrt(variance + epsilon) as difference * (rstd + rstd_rest) + offset: rstd_rest is what
    // rounding lost of rstd, an error that all of a row would share.
    float rstd[ROWS];
    float rstd_rest[ROWS];
    float offset[ROWS];
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
        const float shift = moments[r] / width;
        const float variance = fmaxf(moments[ROWS + r] / width - shift * shift, 0.0f);
        rstd[r] = 1.0f / sqrtf(variance + a.epsilon);
        rstd_rest[r] = inverse_root_rest(variance + a.epsilon, rstd[r]);
        offset[r] = -shift * rstd[r];
    }

#pragma unroll
    for (int i = 0; i < ITEMS; ++i) {
        const int column = (i * group + lane) * VEC;
        if (column >= a.width) continue;
        float gamma[VEC];
        float beta[VEC];
        load_parameters<VEC>(a.gamma, column, 1.0f, gamma);
        load_parameters<VEC>(a.beta, column, 0.0f, beta);
#pragma unroll
        for (int r = 0; r < ROWS; ++r) {
            if (first_row + r >= a.rows) continue;
            float out[VEC];
#pragma unroll
            for (int v = 0; v < VEC; ++v) {
                const float difference = value[r][i][v];
                const float normalised = fmaf(difference, rstd[r], fmaf(difference, rstd_rest[r], offset[r]));
                out[v] = fmaf(normalised, gamma[v], beta[v]);
            }
            if (FORM == Form::kNormAdd) {
                float addend[VEC];
                unpack<T, VEC>(residual_raw[r][i], addend);
#pragma unroll
                for (int v = 0; v < VEC; ++v) out[v] += addend[v];
            }
            store_raw<T, VEC>(y + (first_row + r) * a.width + column, pack<T, VEC>(out));
        }
    }
}

template <Form FORM> int launch_layer_norm(const LayerNormArguments& a, int type, cudaStream_t stream) {
    if (a.rows == 0) return cudaSuccess;
    const bool missing = a.x == nullptr || a.y == nullptr || (a.gamma == nullptr) != (a.beta == nullptr);
    if (missing) return cudaErrorInvalidValue;
    const bool aligned = aligned16(a.x) && aligned16(a.residual) && aligned16(a.gamma) && aligned16(a.beta)
        && aligned16(a.sum) && aligned16(a.y);
    const int contiguous = FORM == Form::kMergeNorm ? a.channels : a.width;
    return dispatch_rows(type, a.width, contiguous, aligned, [&](auto shape, const RowPlan& plan) {
        using Shape = decltype(shape);
        return launch_rows(layer_norm_kernel<FORM, Shape>, a, plan, a.rows, Shape::ROWS, stream);
    });
}

}  // namespace swin
