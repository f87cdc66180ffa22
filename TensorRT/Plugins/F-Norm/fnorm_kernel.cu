#include "fnorm_kernel.h"

#include "common/rows.cuh"

namespace swin {
namespace {

struct FNormArguments {
    const void* x;
    void* y;
    long long rows;
    int width;
    float epsilon;
};

// The norm is taken in FP32: epsilon 1e-12 is zero in FP16, and squares of FP16 values overflow it. All of a row share
// its error, so that is kept far below one rounding: vectors' sums of squares are added up in FP64 (a dozen additions
// a thread), and the inverse is a sum of two floats, the second what the square root and the division lost.
template <class Shape>
__global__ void __launch_bounds__(Shape::THREADS, 1) fnorm_kernel(const FNormArguments a, const int group) {
    using T = typename Shape::T;
    constexpr int VEC = Shape::VEC;
    constexpr int ITEMS = Shape::ITEMS;
    constexpr int ROWS = Shape::ROWS;

    const T* __restrict__ x = static_cast<const T*>(a.x);
    T* __restrict__ y = static_cast<T*>(a.y);
    const int lane = threadIdx.x % group;
    const long long first_row
        = (static_cast<long long>(blockIdx.x) * (blockDim.x / group) + threadIdx.x / group) * ROWS;

    Raw<T, VEC> raw[ROWS][ITEMS];
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
#pragma unroll
        for (int i = 0; i < ITEMS; ++i) {
            const int column = (i * group + lane) * VEC;
            raw[r][i] = {};
            if (first_row + r < a.rows && column < a.width) {
                raw[r][i] = load_raw<T, VEC>(x + (first_row + r) * a.width + column);
            }
        }
    }

    float value[ROWS][ITEMS][VEC];
    double squares[ROWS];
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
        squares[r] = 0.0;
#pragma unroll
        for (int i = 0; i < ITEMS; ++i) {
            unpack<T, VEC>(raw[r][i], value[r][i]);
            squares[r] += sum_of_squares(value[r][i]);
        }
    }
    group_sum(squares, group);

#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
        if (first_row + r >= a.rows) continue;
        const float sum = static_cast<float>(squares[r]);
        const float sum_rest = static_cast<float>(squares[r] - sum);
        const float root = sqrtf(sum);
        const float norm = fmaxf(root, a.epsilon);
        const float inverse = 1.0f / norm;
        float inverse_rest = 0.0f;
        if (norm < INFINITY) {
            const float norm_rest = norm == root ? (fmaf(-root, root, sum) + sum_rest) * 0.5f * inverse : 0.0f;
            inverse_rest = (fmaf(-inverse, norm, 1.0f) - inverse * norm_rest) * inverse;
        }
#pragma unroll
        for (int i = 0; i < ITEMS; ++i) {
            const int column = (i * group + lane) * VEC;
            if (column >= a.width) continue;
            float out[VEC];
#pragma unroll
            for (int v = 0; v < VEC; ++v) {
                out[v] = fmaf(value[r][i][v], inverse, value[r][i][v] * inverse_rest);
            }
            store_raw<T, VEC>(y + (first_row + r) * a.width + column, pack<T, VEC>(out));
        }
    }
}

}  // namespace
}  // namespace swin

int swin_fnorm(const void* x, void* y, int type, long long rows, int width, float epsilon, cudaStream_t stream) {
    if (rows == 0) return cudaSuccess;
    if (x == nullptr || y == nullptr) return cudaErrorInvalidValue;
    const swin::FNormArguments a{x, y, rows, width, epsilon};
    const bool aligned = swin::aligned16(x) && swin::aligned16(y);
    return swin::dispatch_rows(type, width, width, aligned, [&](auto shape, const swin::RowPlan& plan) {
        using Shape = decltype(shape);
        return swin::launch_rows(swin::fnorm_kernel<Shape>, a, plan, rows, Shape::ROWS, stream);
    });
}
