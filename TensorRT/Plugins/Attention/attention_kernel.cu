// Whole (shifted-)window attention: from qkv in image order to the input of proj, in one kernel.
//
//   nvcc -std=c++17 -O3 -arch=sm_90 -I.. -c attention_kernel.cu
//
// W-MSA and SW-MSA of Swin Transformer (arXiv 2103.14030, section 3.2) and the scaled cosine attention of Swin V2
// (arXiv 2111.09883, equation 2). Padding, roll, window partition, mask, window reverse and roll back are index
// arithmetic (windows.cuh): nothing but qkv is read and nothing but the result is written.
//
// Two kernels compute the same:
//   plain_attention        one thread a query, FP32 arithmetic. FP32, BF16 before sm_80, unaligned pointers.
//   tensor_core_attention  FP16, INT8, and from sm_80 on BF16, and FP32 where that is asked for. A block of kWarps warps owns one head and
//                          16 * kWarps queries of a window; each warp keeps 16 rows of scores in registers from
//                          q k^T to p v (as flash attention does), so scores never touch memory. Keys arrive in tiles
//                          of 16 * kWarps.
//
// Both are compiled for heads of 32 features in windows without padded tokens, as most Swins have them, for heads of up
// to 32, and for heads of up to 64 (attention_wide_kernel.cu). In shared memory a head has 32 or 64 features, the last
// of which are zeros where it is narrower: products and norms do not see them.
//
// A padded token's q, k and v lie in shared memory; the others' are copied from qkv. It takes part as a key, and what
// it gives as a query is dropped.
//
// INT8 (swin_attention_int8): q k^T is a product of INT8 with INT32 sums; v becomes FP16, which holds it exactly, for
// p v. The scale of qkv goes into the scores' and the result's.
//
// FP32: q, k, p and v are sums of two TF32 numbers each, and a product is three of theirs (common/tf32.cuh). Logits
// are in natural units; norms are rounded as PyTorch's are.
//
// In the tensor-core kernel other types' logits are in units of log2(e), so that one exp2 gives the softmax numerator.
// V2's cosine is taken after the product, q.k / (|q| |k|): the norms are FP32 and q and k are never rounded a second
// time.

#include "attention_kernel.h"

#include "Attention/launch_attention.cuh"

namespace {

using namespace swin;

constexpr int kNarrow = 32, kWide = 64;  // features of a head in shared memory
constexpr int kChunkFeatures = 8;        // which no kernel divides

// Whether this is a shape of the contract, and then that shape, without scales. Given: SwinAttention or
// SwinAttentionInt8.
template <class Given> bool describe_attention(AttentionShape& shape, const Given& given) {
    if (given.num_heads <= 0 || given.channels <= 0 || given.channels % given.num_heads != 0) return false;
    const int head_width = given.channels / given.num_heads;
    if (head_width > kWide || head_width % kChunkFeatures != 0 || !describe(shape, given)) return false;
    if (shape.padded && given.padding == nullptr) return false;
    shape.channels = given.channels;
    shape.num_heads = given.num_heads;
    shape.head_width = head_width;
    shape.bias_stride = (shape.positions + 7) / 8 * 8;
    shape.mask_value = given.mask_value;
    return true;
}

// FP32 on tensor cores has not run on a GPU yet, so it is not the default: it takes plain_fp32 = -1, which no node has.
constexpr bool kFp32OnTensorCores = false;

template <class Given> AttentionTensors tensors_of(const Given& given) {
    return {given.qkv, given.bias, given.padding, given.logit_scale, given.y};
}

}  // namespace

extern "C" int swin_attention(const SwinAttention* arguments, cudaStream_t stream) {
    const SwinAttention& given = *arguments;
    AttentionShape shape{};
    if (!describe_attention(shape, given) || given.type < SWIN_FP32 || given.type > SWIN_BF16
        || given.plain_fp32 < -1 || given.plain_fp32 > 1) {
        return cudaErrorInvalidValue;
    }
    shape.scale = given.scale;
    shape.plain_fp32 = given.plain_fp32 == 1 || (given.plain_fp32 == 0 && !kFp32OnTensorCores);
    const AttentionTensors tensors = tensors_of(given);
    if (shape.head_width > kNarrow) {
        launch_wide_attention(tensors, shape, given.type, stream);
    } else if (shape.head_width < kNarrow || shape.padded) {
        launch_attention<kNarrow, true>(tensors, shape, given.type, stream);
    } else {
        launch_attention<kNarrow, false>(tensors, shape, given.type, stream);
    }
    return cudaGetLastError();
}

extern "C" int swin_attention_int8(const SwinAttentionInt8* arguments, cudaStream_t stream) {
    const SwinAttentionInt8& given = *arguments;
    AttentionShape shape{};
    if (!describe_attention(shape, given) || !(given.qkv_scale > 0) || !(given.y_scale >= 0)) {
        return cudaErrorInvalidValue;
    }
    const bool quantized = given.y_scale > 0;
    shape.scale = given.scale * given.qkv_scale * given.qkv_scale;
    shape.qkv_scale = given.qkv_scale;
    shape.out_scale = quantized ? given.qkv_scale / given.y_scale : given.qkv_scale;
    const AttentionTensors tensors = tensors_of(given);
    if (shape.head_width > kNarrow) {
        launch_wide_attention_int8(tensors, shape, quantized, stream);
    } else if (shape.head_width < kNarrow || shape.padded) {
        launch_attention_int8<kNarrow, true>(tensors, shape, quantized, stream);
    } else {
        launch_attention_int8<kNarrow, false>(tensors, shape, quantized, stream);
    }
    return cudaGetLastError();
}
