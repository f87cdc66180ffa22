// The LayerNorm kernel behind all of its forms: plain or affine, with a residual Add before or after, with patch
// merging's gather in front.
//
// FP32 arithmetic whatever the element type, on a row that stays in registers. Variances come from differences to a
// mean, in one of two ways:
//   16-bit elements, whole vectors: each thread's differences to the mean of its own elements, merged in one reduction
//     (group_moments). What an FP32 mean rounds away is far below what the result is rounded to.
//   FP32, and rows element by element: differences to the row's mean, and then that mean is refined: with
//     d = x - mean0, mean = mean0 + sum(d)/C and var = sum(d^2)/C - (sum(d)/C)^2, where sum(d)/C is only rounding
//     error. That keeps FP32 rows of mean 1e4 exact, for a second reduction.
#pragma once

#include "quantize.cuh"
#include "rows.cuh"

namespace swin {

enum class Form {
    kNorm,        // y = LN(x)
    kAddNorm,     // sum = x + residual, y = LN(sum)
    kNormAdd,     // y = residual + LN(x)
    kMergeNorm,   // y = LN(the 2 x 2 neighbours of x side by side)
};

// Patch merging of [batch, height, width, channels]; an odd side is padded with zeros.
struct Merge {
    int height, width, channels;
    int merged_height, merged_width;  // ceil(height / 2), ceil(width / 2)
};

struct LayerNormArguments {
    const void* x;
    const void* residual;
    const float* gamma;  // null: 1
    const float* beta;   // null: 0
    void* sum;
    void* y;
    int8_t* y_q;            // with QUANTIZED: the result as INT8,
    float inverse_y_scale;  // quantised with 1 / this
    long long rows;
    int width;
    float epsilon;
    float inverse_width;  // set by launch_layer_norm
    // kMergeNorm: what is merged; width = 4 * merge.channels.
    Merge merge;
};

// Where merged row `row` lies in x: its element `column` is x[at(column)], or zero where is_there(column) is false.
// Neighbours stand in the official order (0,0), (1,0), (0,1), (1,1), each (row offset, column offset).
struct MergeSource {
    long long start;
    long long row_stride;  // of x, in elements
    int channels;
    bool last_row, last_column;  // which have no neighbours below or to the right

    __device__ __forceinline__ MergeSource(long long row, const Merge& merge) : channels(merge.channels) {
        const int batch_and_i = static_cast<int>(row) / merge.merged_width;  // of all images, one under the other
        const int j = static_cast<int>(row) - batch_and_i * merge.merged_width;
        const bool odd = merge.height % 2 != 0;
        const int image = odd ? batch_and_i / merge.merged_height : 0;  // each image before this one lacks a row
        row_stride = static_cast<long long>(merge.width) * channels;
        start = (2LL * batch_and_i - image) * row_stride + 2LL * j * channels;
        last_row = odd && batch_and_i + 1 == (image + 1) * merge.merged_height;
        last_column = 2 * j + 1 == merge.width;
    }
    __device__ __forceinline__ int neighbour(int column) const {
        return (column >= channels) + (column >= 2 * channels) + (column >= 3 * channels);
    }
    __device__ __forceinline__ bool is_there(int column) const {
        const int n = neighbour(column);
        return !(last_row && (n & 1)) && !(last_column && n >> 1);
    }
    __device__ __forceinline__ long long at(int column) const {
        const int n = neighbour(column);
        const int in_row = column + ((n >> 1) - n) * channels;
        return start + in_row + (n & 1) * row_stride;
    }
};

// 1 / sqrt(x) as the sum of two floats.
struct InverseRoot {
    float value;
    float rest;  // what rounding lost: one Newton step with the product's low part. 0 where x overflowed.
};
__device__ __forceinline__ InverseRoot inverse_root(float x) {
    const float value = rsqrtf(x);
    const float product = x * value;
    const float product_rest = fmaf(x, value, -product);
    const float residual = fmaf(-product, value, 1.0f) - product_rest * value;
    return {value, x < INFINITY ? 0.5f * value * residual : 0.0f};
}

// The largest block. Four vectors of an INT8 x need more registers than RowShape's bound leaves, and the widest row
// needs fewer threads then.
template <class Shape, class X>
constexpr int kMostThreads = sizeof(X) == 1 && Shape::ITEMS == 4 ? SWIN_MAX_WIDTH / (4 * Shape::VEC) : Shape::THREADS;

// X: the type of x. INT8 is read as whole numbers; what their step does is in epsilon (layernorm_int8_kernel.cu).
// QUANTIZED: the result goes to y_q, and to y as well where it is a sum that a later residual needs (kNormAdd).
// EARLY: gamma and beta are read before the row is there, into registers of their own. That hides their latency, of
// which a small tensor's time consists, and costs a large one occupancy.
template <Form FORM, class Shape, class X, bool QUANTIZED, bool EARLY>
__global__ void __launch_bounds__(kMostThreads<Shape, X>) layer_norm_kernel(const LayerNormArguments a) {
    using T = typename Shape::T;
    constexpr int VEC = Shape::VEC;
    constexpr int ITEMS = Shape::ITEMS;
    constexpr bool kFull = VEC > 1;  // no idle places: see rows.cuh
    constexpr bool kOneReduction = kFull && sizeof(T) == 2;
    constexpr bool kResidual = FORM == Form::kAddNorm || FORM == Form::kNormAdd;

    const int group = blockDim.x;
    const Row row = row_of_group(a.rows);
    const int first_column = threadIdx.x * VEC;
    const int step = group * VEC;
    const auto inside = [&](int column) { return kFull || column < a.width; };
    const long long row_start = row.index * a.width;
    const X* __restrict__ x = static_cast<const X*>(a.x);
    const T* __restrict__ residual = static_cast<const T*>(a.residual) + row_start;

    float gamma[EARLY ? ITEMS : 1][VEC];
    float beta[EARLY ? ITEMS : 1][VEC];
    const auto load_affine = [&](int i) {
        const int column = first_column + i * step;
        load_parameters<VEC>(a.gamma, column, 1.0f, gamma[EARLY ? i : 0]);
        load_parameters<VEC>(a.beta, column, 0.0f, beta[EARLY ? i : 0]);
    };
    if constexpr (EARLY) {
#pragma unroll
        for (int i = 0; i < ITEMS; ++i) load_affine(i);
    }

    griddepcontrol_wait();
    Raw<X, VEC> x_raw[ITEMS];
    Raw<T, VEC> residual_raw[ITEMS];
    if constexpr (FORM == Form::kMergeNorm) {
        const MergeSource source(row.index, a.merge);
#pragma unroll
        for (int i = 0; i < ITEMS; ++i) {
            const int column = first_column + i * step;
            const bool there = inside(column) && source.is_there(column);
            x_raw[i] = there ? load_once<X, VEC>(x + source.at(column)) : Raw<X, VEC>{};
        }
    } else {
#pragma unroll
        for (int i = 0; i < ITEMS; ++i) {
            const int column = first_column + i * step;
            x_raw[i] = inside(column) ? load_once<X, VEC>(x + row_start + column) : Raw<X, VEC>{};
            if (kResidual) residual_raw[i] = inside(column) ? load_once<T, VEC>(residual + column) : Raw<T, VEC>{};
        }
    }
    griddepcontrol_launch_dependents();

    float value[ITEMS][VEC];
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < ITEMS; ++i) {
        unpack<X, VEC>(x_raw[i], value[i]);
        if (FORM == Form::kAddNorm) {
            float addend[VEC];
            unpack<T, VEC>(residual_raw[i], addend);
#pragma unroll
            for (int v = 0; v < VEC; ++v) value[i][v] += addend[v];
            const int column = first_column + i * step;
            if (row.live && inside(column)) {
                store_raw<T, VEC>(static_cast<T*>(a.sum) + row_start + column, pack<T, VEC>(value[i]));
            }
        }
        sum += sum_of(value[i]);
    }

    // value becomes a difference to the mean, or to a number near it; normalised it is value * scale + offset.
    // scale.rest is what rounding lost of scale, an error that all of a row would share.
    InverseRoot scale;
    float offset = 0.0f;
    float lost[kOneReduction ? 1 : ITEMS][kOneReduction ? 1 : VEC];
    if constexpr (kOneReduction) {
        constexpr int COUNT = ITEMS * VEC;
        const float centre = divided_by<COUNT>(sum);
        float squares = 0.0f;
#pragma unroll
        for (int i = 0; i < ITEMS; ++i) {
#pragma unroll
            for (int v = 0; v < VEC; ++v) value[i][v] -= centre;
            squares += sum_of_squares(value[i]);
        }
        const Moments all = group_moments<COUNT>({centre, squares}, group);
        scale = inverse_root(fmaf(all.squares, a.inverse_width, a.epsilon));
        scale.value += scale.rest;
        offset = (centre - all.mean) * scale.value;
    } else {
        float total[1] = {sum};
        group_sum(total);
        const float width = static_cast<float>(a.width);
        const float centre = total[0] / width;
        float moments[2] = {0.0f, 0.0f};  // sum of the differences, sum of their squares
#pragma unroll
        for (int i = 0; i < ITEMS; ++i) {
            const bool counts = inside(first_column + i * step);
#pragma unroll
            for (int v = 0; v < VEC; ++v) value[i][v] = counts ? value[i][v] - centre : 0.0f;
            moments[0] += sum_of(value[i]);
            moments[1] += sum_of_squares(value[i]);
        }
        group_sum(moments);
        const float shift = moments[0] / width;
        const float variance = fmaxf(moments[1] / width - shift * shift, 0.0f);
        scale = inverse_root(variance + a.epsilon);
        // value - shift is rounded, so what that loses goes into the second float below.
#pragma unroll
        for (int i = 0; i < ITEMS; ++i) {
#pragma unroll
            for (int v = 0; v < VEC; ++v) {
                const float difference = value[i][v] - shift;
                lost[i][v] = (value[i][v] - difference) - shift;
                value[i][v] = difference;
            }
        }
    }
    if (!row.live) return;

    T* __restrict__ y = static_cast<T*>(a.y) + row_start;
#pragma unroll
    for (int i = 0; i < ITEMS; ++i) {
        const int column = first_column + i * step;
        if (!inside(column)) continue;
        if (!EARLY) load_affine(i);
        float out[VEC];
#pragma unroll
        for (int v = 0; v < VEC; ++v) {
            float rest = offset;
            if constexpr (!kOneReduction) rest = fmaf(value[i][v], scale.rest, lost[i][v] * scale.value);
            out[v] = fmaf(fmaf(value[i][v], scale.value, rest), gamma[EARLY ? i : 0][v], beta[EARLY ? i : 0][v]);
        }
        if (FORM == Form::kNormAdd) {
            float addend[VEC];
            unpack<T, VEC>(residual_raw[i], addend);
#pragma unroll
            for (int v = 0; v < VEC; ++v) out[v] += addend[v];
        }
        if (!QUANTIZED || FORM == Form::kNormAdd) store_raw<T, VEC>(y + column, pack<T, VEC>(out));
        if constexpr (QUANTIZED) store_quantized<VEC>(a.y_q + row_start + column, out, a.inverse_y_scale);
    }
}

// Up to this many elements EARLY is the faster one (measured on an H200, FP16, widths 96 to 768).
constexpr long long kEarlyElements = 4 << 20;

template <Form FORM, class X, bool QUANTIZED, class Shape>
int launch_layer_norm_kernel(const LayerNormArguments& a, int group, cudaStream_t stream) {
    if constexpr (Shape::VEC > 1 && sizeof(typename Shape::T) == 2) {
        if (a.rows * a.width <= kEarlyElements) {
            return launch_rows<layer_norm_kernel<FORM, Shape, X, QUANTIZED, true>>(a, group, a.rows, stream);
        }
    }
    return launch_rows<layer_norm_kernel<FORM, Shape, X, QUANTIZED, false>>(a, group, a.rows, stream);
}

template <Form FORM> int launch_layer_norm(LayerNormArguments a, int type, cudaStream_t stream) {
    if (a.rows == 0) return cudaSuccess;
    const bool missing = a.x == nullptr || a.y == nullptr || (a.gamma == nullptr) != (a.beta == nullptr);
    if (missing) return cudaErrorInvalidValue;
    a.inverse_width = 1.0f / a.width;
    const bool aligned = aligned16(a.x) && aligned16(a.residual) && aligned16(a.gamma) && aligned16(a.beta)
        && aligned16(a.sum) && aligned16(a.y);
    const int contiguous = FORM == Form::kMergeNorm ? a.merge.channels : a.width;
    return dispatch_rows(type, a.width, contiguous, aligned, [&](auto shape, int group) {
        using Shape = decltype(shape);
        return launch_layer_norm_kernel<FORM, typename Shape::T, false, Shape>(a, group, stream);
    });
}

}  // namespace swin
