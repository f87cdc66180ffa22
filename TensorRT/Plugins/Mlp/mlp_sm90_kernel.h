// swin_mlp in FP16 on compute capability 9.0.
#pragma once

#include "common/swin_types.h"

namespace swin {

// As swin_mlp's arguments, x, attention and y [rows, width].
struct Mlp {
    const void* x;
    const float *gamma, *beta;
    const void *weight1, *bias1, *weight2, *bias2;
    const void *attention, *proj_weight, *proj_bias;  // null: x is not added to
    const float *proj_gamma, *proj_beta;              // where norm_first is false
    void* y;
    int rows, width, hidden;
    bool norm_first;
    float epsilon;
    cudaStream_t stream;
};

// All of it in one kernel, which keeps the hidden activations on the chip. FP16; width is 96, 128 or 192, hidden a
// multiple of 64, rows at most INT_MAX - 256, pointers of 16 bytes. A library for other GPUs is built without it, and
// its address is null there. Returns a cudaError_t.
__attribute__((weak)) int mlp_sm90(const Mlp& a, int multiprocessors);

}  // namespace swin
