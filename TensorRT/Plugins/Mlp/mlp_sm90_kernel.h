// swin_mlp in FP16 on compute capability 9.0.
#pragma once

#include "Mlp/mlp_kernel.h"

namespace swin {

// All of it in one kernel without a workspace, which keeps the hidden activations on the chip. FP16; width is 96, 128
// or 192, hidden a multiple of 64, rows at most INT_MAX - 256, pointers of 16 bytes. A library for other GPUs is built
// without it, and its address is null there. Returns a cudaError_t.
__attribute__((weak)) int mlp_sm90(const SwinMlp& a, int multiprocessors, cudaStream_t stream);

}  // namespace swin
