// What both kernels of FP32 products share: a result again, as FP32 computes it, where a sum of parts is not finite.
#pragma once

namespace swin {

// Product: has x, weight, bias, residual, y, in_features and out_features. gelu: exact GELU; residual: it is added.
template <class Product>
__device__ __forceinline__ void compute_again(const Product& p, int row, int feature, bool gelu, bool residual) {
    const float* const x = p.x + static_cast<long long>(row) * p.in_features;
    const float* const weight = p.weight + static_cast<long long>(feature) * p.in_features;
    float sum = 0.0F;
#pragma unroll 1
    for (int k = 0; k < p.in_features; ++k) sum = fmaf(x[k], weight[k], sum);
    const long long at = static_cast<long long>(row) * p.out_features + feature;
    float value = sum + p.bias[feature];
    if (gelu) value *= normcdff(value);
    if (residual) value += p.residual[at];
    p.y[at] = value;
}

}  // namespace swin
