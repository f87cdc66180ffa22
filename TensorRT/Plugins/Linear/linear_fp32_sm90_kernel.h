// The product of swin_linear in FP32 on compute capability 9.0, on tensor cores.
#pragma once

#include "Linear/linear_kernel.h"

namespace swin {

// y = act(x weight^T + bias) + residual as swin_linear's, all FP32. rows are at most INT_MAX - 256, in_features and
// out_features multiples of 4, pointers of 16 bytes. A library for other GPUs is built without it, and its address is
// null there. cudaErrorNotSupported, with tile 0, where cuBLASLt's product is taken to be faster or as exact, or the
// workspace is too small for the weights in two parts; else a cudaError_t.
__attribute__((weak)) int linear_fp32_sm90(const SwinLinear& a, int multiprocessors, cudaStream_t stream);

}  // namespace swin
