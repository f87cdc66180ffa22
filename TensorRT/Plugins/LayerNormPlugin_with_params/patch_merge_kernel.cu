#include "common/layer_norm.cuh"
#include "layernorm_fused_kernel.h"

namespace swin {
namespace {

// The gather alone moves bits: one warp a row, WORD by WORD. channels counts WORDs.
template <class WORD>
__global__ void __launch_bounds__(128)
    gather_kernel(const WORD* __restrict__ x, WORD* __restrict__ y, int rows, int merged_width, int channels) {
    griddepcontrol_wait();
    griddepcontrol_launch_dependents();
    const int row = blockIdx.x * blockDim.y + threadIdx.y;
    if (row >= rows) return;
    const MergeSource source(row, merged_width, channels);
    WORD* out = y + static_cast<long long>(row) * 4 * channels;
#pragma unroll 4
    for (int column = threadIdx.x; column < 4 * channels; column += kWarp) out[column] = x[source.at(column)];
}

template <class WORD>
int launch_gather(const void* x, void* y, int rows, int merged_width, int channels, cudaStream_t stream) {
    return launch<gather_kernel<WORD>>(dim3((rows + 3) / 4), dim3(kWarp, 4), 0, stream, static_cast<const WORD*>(x),
        static_cast<WORD*>(y), rows, merged_width, channels);
}

}  // namespace
}  // namespace swin

int swin_patch_merge(const void* x, const float* gamma, const float* beta, void* y, int type, int batch, int height,
    int width, int channels, float epsilon, cudaStream_t stream) {
    if (batch < 0 || height < 2 || width < 2 || height % 2 != 0 || width % 2 != 0) return cudaErrorInvalidValue;
    if (channels < 1 || channels > SWIN_MAX_WIDTH / 4) return cudaErrorInvalidValue;
    const long long rows = static_cast<long long>(batch) * (height / 2) * (width / 2);
    if (rows > INT_MAX / 4) return cudaErrorInvalidValue;

    if (gamma != nullptr) {
        swin::LayerNormArguments a{};
        a.x = x;
        a.gamma = gamma;
        a.beta = beta;
        a.y = y;
        a.rows = rows;
        a.width = 4 * channels;
        a.epsilon = epsilon;
        a.merged_width = width / 2;
        a.channels = channels;
        return swin::launch_layer_norm<swin::Form::kMergeNorm>(a, type, stream);
    }

    const bool known = type == SWIN_FP32 || type == SWIN_FP16 || type == SWIN_BF16;
    if (!known || x == nullptr || y == nullptr || beta != nullptr) return cudaErrorInvalidValue;
    if (rows == 0) return cudaSuccess;
    const int bytes = channels * swin::bytes_of(type);
    const bool vectorised = bytes % 16 == 0 && swin::aligned16(x) && swin::aligned16(y);
    const auto launch = vectorised ? swin::launch_gather<uint4>
        : type == SWIN_FP32        ? swin::launch_gather<uint32_t>
                                   : swin::launch_gather<uint16_t>;
    return launch(x, y, static_cast<int>(rows), width / 2, vectorised ? bytes / 16 : channels, stream);
}
