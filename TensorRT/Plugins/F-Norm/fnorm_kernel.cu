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
template <class Shape> __global__ void __launch_bounds__(Shape::THREADS) fnorm_kernel(const FNormArguments a) {
    using T = typename Shape::T;
    constexpr int VEC = Shape::VEC;
    constexpr int ITEMS = Shape::ITEMS;

    const Row row = row_of_group(a.rows);
    const T* __restrict__ x = static_cast<const T*>(a.x) + row.index * a.width;
    T* __restrict__ y = static_cast<T*>(a.y) + row.index * a.width;
    const auto column_of = [](int item) { return static_cast<int>(item * blockDim.x + threadIdx.x) * VEC; };
    const auto inside = [&](int column) { return VEC > 1 || column < a.width; };

    griddepcontrol_wait();
    Raw<T, VEC> raw[ITEMS];
#pragma unroll
    for (int i = 0; i < ITEMS; ++i) {
        raw[i] = inside(column_of(i)) ? load_once<T, VEC>(x + column_of(i)) : Raw<T, VEC>{};
    }
    griddepcontrol_launch_dependents();

    float value[ITEMS][VEC];
    double squares[1] = {0.0};
#pragma unroll
    for (int i = 0; i < ITEMS; ++i) {
        unpack<T, VEC>(raw[i], value[i]);
        squares[0] += sum_of_squares(value[i]);
    }
    group_sum(squares);
    if (!row.live) return;

    const float sum = static_cast<float>(squares[0]);
    const float sum_rest = static_cast<float>(squares[0] - sum);
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
        if (!inside(column_of(i))) continue;
        float out[VEC];
#pragma unroll
        for (int v = 0; v < VEC; ++v) out[v] = fmaf(value[i][v], inverse, value[i][v] * inverse_rest);
        store_raw<T, VEC>(y + column_of(i), pack<T, VEC>(out));
    }
}

}  // namespace
}  // namespace swin

int swin_fnorm(const SwinFNorm* arguments, cudaStream_t stream) {
    const SwinFNorm& given = *arguments;
    if (given.rows == 0) return cudaSuccess;
    if (given.x == nullptr || given.y == nullptr) return cudaErrorInvalidValue;
    const swin::FNormArguments a{given.x, given.y, given.rows, given.width, given.epsilon};
    const bool aligned = swin::aligned16(given.x) && swin::aligned16(given.y);
    return swin::dispatch_rows(given.type, given.width, given.width, aligned, [&](auto shape, int group) {
        return swin::launch_rows<swin::fnorm_kernel<decltype(shape)>>(a, group, given.rows, stream);
    });
}
