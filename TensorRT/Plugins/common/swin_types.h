// What every kernel's C interface shares: the element types and the status that launchers return.
#pragma once

#include <cuda_runtime_api.h>

// Element type of the activations. Parameters (gamma, beta, bias, logit_scale) are always FP32, but for weight and bias
// of a Linear, which are operands of its product.
enum SwinType {
    SWIN_FP32 = 0,
    SWIN_FP16 = 1,
    SWIN_BF16 = 2,
};

// What comes after fc1 and its bias.
enum SwinGelu {
    SWIN_NO_GELU = 0,
    SWIN_GELU = 1,       // v * Phi(v), with Phi the normal distribution function
    SWIN_TANH_GELU = 2,  // v / 2 * (1 + tanh(sqrt(2 / pi) * (v + 0.044715 v^3))): up to 5e-4 away
};

// The C interface: a function of each operator, which takes a structure of the same name with all that the launch
// needs, and the stream. Every field is set by its name; what an operator does not have (a null pointer, 0) is said as
// well.
//
// Every launcher returns a cudaError_t as int: cudaErrorInvalidValue for a shape or type outside its contract,
// otherwise what the launch itself returned. No launcher allocates, synchronises or uses a stream but the given one.

// The widest row that the row kernels (LayerNorm, F-Norm and their fused forms) take, in elements.
#define SWIN_MAX_WIDTH 8192
