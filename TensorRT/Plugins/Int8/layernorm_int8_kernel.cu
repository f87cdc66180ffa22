#include "layernorm_int8_kernel.h"

#include "common/layer_norm.cuh"

namespace swin {
namespace {

template <Form FORM, class X> int launch_quantized(LayerNormArguments a, float y_scale, cudaStream_t stream) {
    if (a.rows == 0) return cudaSuccess;
    const bool pointers = a.x != nullptr && a.gamma != nullptr && a.beta != nullptr && a.y_q != nullptr;
    if (!pointers || a.rows < 0 || a.width < 1 || a.width > SWIN_MAX_WIDTH || !(y_scale > 0)) {
        return cudaErrorInvalidValue;
    }
    a.inverse_width = 1.0f / a.width;
    a.inverse_y_scale = 1.0f / y_scale;
    const bool aligned = aligned16(a.x) && aligned16(a.residual) && aligned16(a.gamma) && aligned16(a.beta)
        && aligned16(a.y) && aligned16(a.y_q);
    return with_shape<__half>(a.width, aligned && a.width % kVector<__half> == 0, [&](auto shape, int group) {
        return launch_layer_norm_kernel<FORM, X, true, decltype(shape)>(a, group, stream);
    });
}

}  // namespace
}  // namespace swin

int swin_layernorm_int8(const void* x, const float* gamma, const float* beta, void* y_q, long long rows, int width,
    float epsilon, float y_scale, cudaStream_t stream) {
    swin::LayerNormArguments a{};
    a.x = x;
    a.gamma = gamma;
    a.beta = beta;
    a.y_q = static_cast<int8_t*>(y_q);
    a.rows = rows;
    a.width = width;
    a.epsilon = epsilon;
    return swin::launch_quantized<swin::Form::kNorm, __half>(a, y_scale, stream);
}

int swin_layernorm_add_int8(const void* x, const void* residual, const float* gamma, const float* beta, void* y,
    void* y_q, long long rows, int width, float epsilon, float x_scale, float y_scale, cudaStream_t stream) {
    if (residual == nullptr || y == nullptr || !(x_scale >= 0)) return cudaErrorInvalidValue;
    swin::LayerNormArguments a{};
    a.x = x;
    a.residual = residual;
    a.gamma = gamma;
    a.beta = beta;
    a.y = y;
    a.y_q = static_cast<int8_t*>(y_q);
    a.rows = rows;
    a.width = width;
    if (x_scale == 0) {
        a.epsilon = epsilon;
        return swin::launch_quantized<swin::Form::kNormAdd, __half>(a, y_scale, stream);
    }
    a.epsilon = swin::epsilon_in_steps(epsilon, x_scale);
    return swin::launch_quantized<swin::Form::kNormAdd, int8_t>(a, y_scale, stream);
}
