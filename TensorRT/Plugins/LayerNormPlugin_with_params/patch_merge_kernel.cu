#include "common/layer_norm.cuh"
#include "layernorm_fused_kernel.h"

namespace swin {
namespace {

// The gather without LayerNorm moves bits: one warp a row, WORD by WORD. channels counts WORDs.
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

int swin_patch_merge(const SwinPatchMerge* arguments, cudaStream_t stream) {
    const SwinPatchMerge& given = *arguments;
    if (given.batch < 0 || given.height < 2 || given.width < 2 || given.height % 2 != 0 || given.width % 2 != 0) {
        return cudaErrorInvalidValue;
    }
    if (given.channels < 1 || given.channels > SWIN_MAX_WIDTH / 4) return cudaErrorInvalidValue;
    const long long rows = static_cast<long long>(given.batch) * (given.height / 2) * (given.width / 2);
    if (rows > INT_MAX / 4) return cudaErrorInvalidValue;

    if (given.gamma != nullptr) {
        swin::LayerNormArguments a{};
        a.x = given.x;
        a.gamma = given.gamma;
        a.beta = given.beta;
        a.y = given.y;
        a.rows = rows;
        a.width = 4 * given.channels;
        a.epsilon = given.epsilon;
        a.merged_width = given.width / 2;
        a.channels = given.channels;
        return swin::launch_layer_norm<swin::Form::kMergeNorm>(a, given.type, stream);
    }

    const bool known = given.type == SWIN_FP32 || given.type == SWIN_FP16 || given.type == SWIN_BF16;
    if (!known || given.x == nullptr || given.y == nullptr || given.beta != nullptr) return cudaErrorInvalidValue;
    if (rows == 0) return cudaSuccess;
    const int bytes = given.channels * swin::bytes_of(given.type);
    const bool vectorised = bytes % 16 == 0 && swin::aligned16(given.x) && swin::aligned16(given.y);
    const auto launch = vectorised ? swin::launch_gather<uint4>
        : given.type == SWIN_FP32  ? swin::launch_gather<uint32_t>
                                   : swin::launch_gather<uint16_t>;
    return launch(
        given.x, given.y, static_cast<int>(rows), given.width / 2, vectorised ? bytes / 16 : given.channels, stream);
}
