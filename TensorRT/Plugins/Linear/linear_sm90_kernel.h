// The product of swin_linear in FP16 on compute capability 9.0.
#pragma once

#include "Linear/linear_kernel.h"

namespace swin {

// y = act(x weight^T + bias) + residual as swin_linear's, all FP16, without a workspace. rows are at most INT_MAX -
// 128, in_features and out_features multiples of 8, pointers of 16 bytes. A library for other GPUs is built without it,
// and its address is null there. Returns a cudaError_t.
__attribute__((weak)) int linear_sm90(const SwinLinear& a, int multiprocessors, cudaStream_t stream);

}  // namespace swin
