// Attention of heads of more than 32 features, compiled beside attention_kernel.cu, which says how it works.
#include "Attention/launch_attention.cuh"

namespace swin {

void launch_wide_attention(const AttentionTensors& t, const AttentionShape& shape, int type, cudaStream_t stream) {
    launch_attention<64, true>(t, shape, type, stream);
}

void launch_wide_attention_int8(
    const AttentionTensors& t, const AttentionShape& shape, bool quantized, cudaStream_t stream) {
    launch_attention_int8<64, true>(t, shape, quantized, stream);
}

}  // namespace swin
