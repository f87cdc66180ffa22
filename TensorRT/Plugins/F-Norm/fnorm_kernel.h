// L2 norm over the last axis (torch.nn.functional.normalize): C interface.
#pragma once

#include "common/swin_types.h"

#ifdef __cplusplus
extern "C" {
#endif

// y = x / max(|x|_2, epsilon) over each row, x and y [rows, width] of `type`. Returns a cudaError_t: see swin_types.h.
struct SwinFNorm {
    const void* x;
    void* y;
    long long rows;
    int type, width;
    float epsilon;
};
int swin_fnorm(const struct SwinFNorm* arguments, cudaStream_t stream);

#ifdef __cplusplus
}
#endif
