// The product of swin_linear in FP16 on compute capability 9.0.
#pragma once

#include "common/swin_types.h"

namespace swin {

// y = act(x weight^T + bias) + residual as swin_linear's, all FP16. residual may be null; with GELU it is. in_features and
// out_features are multiples of 8, pointers of 16 bytes. A library for other GPUs is built without it, and its address
// is null there. Returns a cudaError_t.
__attribute__((weak)) int linear_sm90(const void* x, const void* weight, const void* bias, const void* residual, void* y,
    int rows, int in_features, int out_features, bool gelu, int multiprocessors, cudaStream_t stream);

}  // namespace swin
