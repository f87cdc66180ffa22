// Linear with bias, and GELU or a residual in its epilogue: C interface.
#pragma once

#include <stddef.h>

#include "common/swin_types.h"

// What cuBLASLt is offered as workspace; with less it chooses among fewer algorithms.
#define SWIN_LINEAR_WORKSPACE_BYTES (32 << 20)

#ifdef __cplusplus
extern "C" {
#endif

// y = act(x weight^T + bias) + residual: x [rows, in_features], weight [out_features, in_features], bias [out_features],
// residual (or null) and y [rows, out_features], all of `type`. workspace: workspace_bytes of device memory, 256-byte
// aligned, that no other stream uses meanwhile; null with 0 bytes will do. gelu:
//   0  act(v) = v
//   1  GELU; in FP16 and BF16 its tanh form, in cuBLASLt's epilogue
//   2  the exact GELU v * Phi(v) for every type, in a pass of its own over y (for comparison with 1)
// gelu and residual exclude each other. The first call for a shape asks cuBLASLt for an algorithm and keeps the answer:
// make it outside of a graph capture. Returns a cudaError_t: see swin_types.h.
int swin_linear(const void* x, const void* weight, const void* bias, const void* residual, void* y, int type,
    long long rows, int in_features, int out_features, int gelu, void* workspace, size_t workspace_bytes,
    cudaStream_t stream);

#ifdef __cplusplus
}
#endif
