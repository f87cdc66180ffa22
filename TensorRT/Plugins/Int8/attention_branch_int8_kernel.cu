#include "attention_branch_int8_kernel.h"

#include <algorithm>

#include "Attention/attention_kernel.h"
#include "Int8/layernorm_int8_kernel.h"
#include "Int8/linear_int8_kernel.h"
#include "common/gpu.h"
#include "common/vector_io.cuh"

namespace swin {
namespace {

long long tokens_of(const SwinAttentionBranchInt8& a) { return static_cast<long long>(a.height) * a.width; }

bool valid_attributes(const SwinAttentionBranchInt8& a) {
    const bool scales = a.qkv_scale > 0 && a.attention_scale > 0 && a.y_scale > 0;
    return scales
        && (a.norm_first == 1 ? a.proj_scale == 0 && a.logit_scale == nullptr
                              : a.proj_scale > 0 && a.logit_scale != nullptr);
}

bool valid_pointers(const SwinAttentionBranchInt8& a) {
    for (const void* pointer : {static_cast<const void*>(a.x_q), a.x, static_cast<const void*>(a.qkv_weight),
             static_cast<const void*>(a.qkv_factor), static_cast<const void*>(a.qkv_bias),
             static_cast<const void*>(a.proj_weight), static_cast<const void*>(a.proj_factor),
             static_cast<const void*>(a.proj_bias), static_cast<const void*>(a.bias), static_cast<const void*>(a.gamma),
             static_cast<const void*>(a.beta), static_cast<const void*>(a.y), static_cast<const void*>(a.y_q)}) {
        if (pointer == nullptr || !aligned16(pointer)) return false;
    }
    return aligned16(a.logit_scale);
}

// `images` images from `first` on, by the kernels of the parts. y_q holds attention's result before its own, which has
// the same shape; in V2 proj lies where qkv was. Each kernel waits for the end of the one before.
int run_group(const SwinAttentionBranchInt8& a, long long first, int images, cudaStream_t stream) {
    const int channels = kHeadDim * a.num_heads;
    const long long rows = images * tokens_of(a), offset = first * tokens_of(a) * channels;
    const bool norm_first = a.norm_first == 1;
    const char* x = static_cast<const char*>(a.x) + 2 * offset;
    char* y = static_cast<char*>(a.y) + 2 * offset;
    int8_t* y_q = a.y_q + offset;
    void* const proj = norm_first ? y : a.workspace;

    SwinLinearInt8 qkv{};
    qkv.x = a.x_q + offset;
    qkv.weight = a.qkv_weight;
    qkv.scale = a.qkv_factor;
    qkv.bias = a.qkv_bias;
    qkv.y = a.workspace;
    qkv.rows = rows;
    qkv.in_features = channels;
    qkv.out_features = 3 * channels;
    qkv.y_scale = a.qkv_scale;
    int status = swin_linear_int8(&qkv, stream);
    if (status != cudaSuccess) return status;

    SwinAttentionInt8 attention{};
    attention.qkv = a.workspace;
    attention.bias = a.bias;
    attention.logit_scale = a.logit_scale;
    attention.y = y_q;
    attention.batch = images;
    attention.height = a.height;
    attention.width = a.width;
    attention.channels = channels;
    attention.num_heads = a.num_heads;
    attention.window_height = a.window_height;
    attention.window_width = a.window_width;
    attention.shift_height = a.shift_height;
    attention.shift_width = a.shift_width;
    attention.roll_first = a.roll_first;
    attention.shift_if_covered = a.shift_if_covered;
    attention.scale = a.scale;
    attention.mask_value = a.mask_value;
    attention.qkv_scale = a.qkv_scale;
    attention.y_scale = a.attention_scale;
    status = swin_attention_int8(&attention, stream);
    if (status != cudaSuccess) return status;

    SwinLinearInt8 of_proj{};
    of_proj.x = y_q;
    of_proj.weight = a.proj_weight;
    of_proj.scale = a.proj_factor;
    of_proj.bias = a.proj_bias;
    of_proj.residual = norm_first ? x : nullptr;
    of_proj.y = proj;
    of_proj.rows = rows;
    of_proj.in_features = of_proj.out_features = channels;
    of_proj.y_scale = a.proj_scale;
    status = swin_linear_int8(&of_proj, stream);
    if (status != cudaSuccess) return status;

    if (norm_first) {
        SwinLayerNormInt8 norm{};
        norm.x = y;
        norm.gamma = a.gamma;
        norm.beta = a.beta;
        norm.y_q = y_q;
        norm.rows = rows;
        norm.width = channels;
        norm.epsilon = a.epsilon;
        norm.y_scale = a.y_scale;
        return swin_layernorm_int8(&norm, stream);
    }
    SwinLayerNormAddInt8 norm{};
    norm.x = proj;
    norm.residual = x;
    norm.gamma = a.gamma;
    norm.beta = a.beta;
    norm.y = y;
    norm.y_q = y_q;
    norm.rows = rows;
    norm.width = channels;
    norm.epsilon = a.epsilon;
    norm.x_scale = a.proj_scale;
    norm.y_scale = a.y_scale;
    return swin_layernorm_add_int8(&norm, stream);
}

// Groups of about the same size.
int run_groups(const SwinAttentionBranchInt8& a, int most, cudaStream_t stream) {
    const int groups = (a.batch - 1) / most + 1;
    const int step = (a.batch - 1) / groups + 1;
    for (int first = 0; first < a.batch; first += step) {
        const int status = run_group(a, first, std::min(step, a.batch - first), stream);
        if (status != cudaSuccess) return status;
    }
    return cudaSuccess;
}

}  // namespace
}  // namespace swin

int swin_attention_branch_int8(const SwinAttentionBranchInt8* arguments, cudaStream_t stream) {
    using namespace swin;
    const SwinAttentionBranchInt8& a = *arguments;
    if (a.batch == 0) return cudaSuccess;
    Windows windows{};
    if (!describe_branch(windows, a) || a.num_heads < 1
        || a.num_heads > SWIN_MAX_WIDTH / kHeadDim || a.norm_first < 0 || a.norm_first > 1 || !valid_attributes(a)
        || !valid_pointers(a)) {
        return cudaErrorInvalidValue;
    }
    const Gpu gpu = current_gpu();
    if (gpu.is_sm90() && attention_branch_int8_sm90 != nullptr && fits_attention_branch_sm90(a, gpu.multiprocessors)) {
        return attention_branch_int8_sm90(a, gpu.multiprocessors, stream);
    }
    const long long image = attention_branch_bytes_per_image(tokens_of(a), kHeadDim * a.num_heads);
    const long long most = std::min<long long>(a.workspace_bytes / image, a.batch);
    if (a.workspace == nullptr || most == 0) return cudaErrorInvalidValue;
    return run_groups(a, static_cast<int>(most), stream);
}
