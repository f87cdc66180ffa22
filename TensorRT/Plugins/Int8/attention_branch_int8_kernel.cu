#include "attention_branch_int8_kernel.h"

#include <algorithm>

#include "Attention/attention_kernel.h"
#include "Attention/windows.cuh"
#include "Int8/layernorm_int8_kernel.h"
#include "Int8/linear_int8_kernel.h"
#include "common/gpu.h"
#include "common/vector_io.cuh"

namespace swin {
namespace {

long long tokens_of(const AttentionBranchInt8& a) { return static_cast<long long>(a.height) * a.width; }

bool valid_attributes(const AttentionBranchInt8& a) {
    const bool scales = a.qkv_scale > 0 && a.attention_scale > 0 && a.y_scale > 0;
    return scales && (a.norm_first ? a.proj_scale == 0 && a.logit_scale == nullptr
                                   : a.proj_scale > 0 && a.logit_scale != nullptr);
}

bool valid_pointers(const AttentionBranchInt8& a) {
    for (const void* pointer : {static_cast<const void*>(a.x_q), a.x, static_cast<const void*>(a.qkv_weight),
             static_cast<const void*>(a.qkv_factor), static_cast<const void*>(a.qkv_bias),
             static_cast<const void*>(a.proj_weight), static_cast<const void*>(a.proj_factor),
             static_cast<const void*>(a.proj_bias), static_cast<const void*>(a.bias),
             static_cast<const void*>(a.gamma), static_cast<const void*>(a.beta), static_cast<const void*>(a.y),
             static_cast<const void*>(a.y_q)}) {
        if (pointer == nullptr || !aligned16(pointer)) return false;
    }
    return aligned16(a.logit_scale);
}

// `images` images from `first` on, by the kernels of the parts. y_q holds attention's result before its own, which has
// the same shape; in V2 proj lies where qkv was. Each kernel waits for the end of the one before.
int run_group(const AttentionBranchInt8& a, long long first, int images, char* workspace) {
    const int channels = kHeadDim * a.num_heads;
    const long long rows = images * tokens_of(a), offset = first * tokens_of(a) * channels;
    const int8_t* x_q = a.x_q + offset;
    const char* x = static_cast<const char*>(a.x) + 2 * offset;
    char* y = static_cast<char*>(a.y) + 2 * offset;
    int8_t* y_q = a.y_q + offset;
    int status = swin_linear_int8(x_q, a.qkv_weight, a.qkv_factor, a.qkv_bias, nullptr, workspace, rows, channels,
        3 * channels, 0, a.qkv_scale, a.stream);
    if (status != cudaSuccess) return status;
    status = swin_attention_int8(workspace, a.bias, a.logit_scale, y_q, images, a.height, a.width, channels,
        a.num_heads, a.window_size, a.shift_size, a.scale, a.mask_value, a.qkv_scale, a.attention_scale, a.stream);
    if (status != cudaSuccess) return status;
    const void* residual = a.norm_first ? x : nullptr;
    char* proj = a.norm_first ? y : workspace;
    status = swin_linear_int8(y_q, a.proj_weight, a.proj_factor, a.proj_bias, residual, proj, rows, channels, channels,
        0, a.proj_scale, a.stream);
    if (status != cudaSuccess) return status;
    return a.norm_first
        ? swin_layernorm_int8(y, a.gamma, a.beta, y_q, rows, channels, a.epsilon, a.y_scale, a.stream)
        : swin_layernorm_add_int8(
            proj, x, a.gamma, a.beta, y, y_q, rows, channels, a.epsilon, a.proj_scale, a.y_scale, a.stream);
}

// Groups of about the same size.
int run_groups(const AttentionBranchInt8& a, int most, char* workspace) {
    const int groups = (a.batch - 1) / most + 1;
    const int step = (a.batch - 1) / groups + 1;
    for (int first = 0; first < a.batch; first += step) {
        const int status = run_group(a, first, std::min(step, a.batch - first), workspace);
        if (status != cudaSuccess) return status;
    }
    return cudaSuccess;
}

}  // namespace
}  // namespace swin

int swin_attention_branch_int8(const void* x_q, const void* x, const void* qkv_weight, const float* qkv_factor,
    const float* qkv_bias, const void* proj_weight, const float* proj_factor, const float* proj_bias,
    const float* bias, const float* gamma, const float* beta, const float* logit_scale, void* y, void* y_q, int batch,
    int height, int width, int num_heads, int window_size, int shift_size, int norm_first, float scale,
    float mask_value, float qkv_scale, float attention_scale, float proj_scale, float epsilon, float y_scale,
    void* workspace, size_t workspace_bytes, cudaStream_t stream) {
    using namespace swin;
    if (batch == 0) return cudaSuccess;
    const AttentionBranchInt8 a{static_cast<const int8_t*>(x_q), x, static_cast<const int8_t*>(qkv_weight), qkv_factor,
        qkv_bias, static_cast<const int8_t*>(proj_weight), proj_factor, proj_bias, bias, gamma, beta, logit_scale, y,
        static_cast<int8_t*>(y_q), batch, height, width, num_heads, window_size, shift_size, norm_first == 1, scale,
        mask_value, qkv_scale, attention_scale, proj_scale, epsilon, y_scale, stream};
    Windows windows{};
    if (!describe(windows, batch, height, width, window_size, shift_size) || num_heads < 1
        || num_heads > SWIN_MAX_WIDTH / kHeadDim || norm_first < 0 || norm_first > 1 || !valid_attributes(a)
        || !valid_pointers(a)) {
        return cudaErrorInvalidValue;
    }
    const Gpu gpu = current_gpu();
    if (gpu.is_sm90() && attention_branch_int8_sm90 != nullptr
        && fits_attention_branch_sm90(a, gpu.multiprocessors)) {
        return attention_branch_int8_sm90(a, gpu.multiprocessors);
    }
    const long long image = attention_branch_bytes_per_image(tokens_of(a), kHeadDim * num_heads);
    const long long most = std::min<long long>(workspace_bytes / image, batch);
    if (workspace == nullptr || most == 0) return cudaErrorInvalidValue;
    return run_groups(a, static_cast<int>(most), static_cast<char*>(workspace));
}
