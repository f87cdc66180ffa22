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

int swin_layernorm_int8(const SwinLayerNormInt8* arguments, cudaStream_t stream) {
    const SwinLayerNormInt8& given = *arguments;
    swin::LayerNormArguments a{};
    a.x = given.x;
    a.gamma = given.gamma;
    a.beta = given.beta;
    a.y_q = static_cast<int8_t*>(given.y_q);
    a.rows = given.rows;
    a.width = given.width;
    a.epsilon = given.epsilon;
    return swin::launch_quantized<swin::Form::kNorm, __half>(a, given.y_scale, stream);
}

int swin_layernorm_add_int8(const SwinLayerNormAddInt8* arguments, cudaStream_t stream) {
    const SwinLayerNormAddInt8& given = *arguments;
    if (given.residual == nullptr || given.y == nullptr || !(given.x_scale >= 0)) return cudaErrorInvalidValue;
    swin::LayerNormArguments a{};
    a.x = given.x;
    a.residual = given.residual;
    a.gamma = given.gamma;
    a.beta = given.beta;
    a.y = given.y;
    a.y_q = static_cast<int8_t*>(given.y_q);
    a.rows = given.rows;
    a.width = given.width;
    if (given.x_scale == 0) {
        a.epsilon = given.epsilon;
        return swin::launch_quantized<swin::Form::kNormAdd, __half>(a, given.y_scale, stream);
    }
    a.epsilon = swin::epsilon_in_steps(given.epsilon, given.x_scale);
    return swin::launch_quantized<swin::Form::kNormAdd, int8_t>(a, given.y_scale, stream);
}
