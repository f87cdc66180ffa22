#include "common/layer_norm.cuh"
#include "layernorm_fused_kernel.h"

namespace swin {
namespace {

// The gather without LayerNorm moves bits: one warp a row, WORD by WORD. channels counts WORDs.
template <class WORD>
__global__ void __launch_bounds__(128)
    gather_kernel(const WORD* __restrict__ x, WORD* __restrict__ y, int rows, Merge merge) {
    griddepcontrol_wait();
    griddepcontrol_launch_dependents();
    const int row = blockIdx.x * blockDim.y + threadIdx.y;
    if (row >= rows) return;
    const MergeSource source(row, merge);
    const int width = 4 * merge.channels;
    WORD* out = y + static_cast<long long>(row) * width;
#pragma unroll 4
    for (int column = threadIdx.x; column < width; column += kWarp) {
        out[column] = source.is_there(column) ? x[source.at(column)] : WORD{};
    }
}

template <class WORD>
int launch_gather(const void* x, void* y, int rows, const Merge& merge, cudaStream_t stream) {
    return launch<gather_kernel<WORD>>(dim3((rows + 3) / 4), dim3(kWarp, 4), 0, stream, static_cast<const WORD*>(x),
        static_cast<WORD*>(y), rows, merge);
}

}  // namespace
}  // namespace swin

int swin_patch_merge(const SwinPatchMerge* arguments, cudaStream_t stream) {
    const SwinPatchMerge& given = *arguments;
    if (given.batch < 0 || given.height < 1 || given.width < 1) return cudaErrorInvalidValue;
    if (given.channels < 1 || given.channels > SWIN_MAX_WIDTH / 4) return cudaErrorInvalidValue;
    swin::Merge merge{given.height, given.width, given.channels, given.height / 2 + given.height % 2,
        given.width / 2 + given.width % 2};
    const long long tokens = static_cast<long long>(given.height) * given.width;
    if (tokens > INT_MAX || given.batch * tokens > INT_MAX) return cudaErrorInvalidValue;
    const long long rows = static_cast<long long>(given.batch) * merge.merged_height * merge.merged_width;

    if (given.gamma != nullptr) {
        swin::LayerNormArguments a{};
        a.x = given.x;
        a.gamma = given.gamma;
        a.beta = given.beta;
        a.y = given.y;
        a.rows = rows;
        a.width = 4 * given.channels;
        a.epsilon = given.epsilon;
        a.merge = merge;
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
    if (vectorised) merge.channels = bytes / 16;
    return launch(given.x, given.y, static_cast<int>(rows), merge, stream);
}
