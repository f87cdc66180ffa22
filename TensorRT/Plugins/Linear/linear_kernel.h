// Linear with bias, and GELU or a residual in its epilogue: C interface.
#pragma once

#include <stddef.h>

#include "common/swin_types.h"

// What cuBLASLt is offered as workspace; with less it chooses among fewer algorithms.
#define SWIN_LINEAR_WORKSPACE_BYTES (32 << 20)

#ifdef __cplusplus
extern "C" {
#endif

// y = act(x weight^T + bias) + residual: x [rows, in_features], weight [out_features, in_features], bias
// [out_features], residual (or null) and y [rows, out_features], all of `type`. workspace: workspace_bytes of device
// memory, 256-byte aligned, that no other stream uses meanwhile; null with 0 bytes will do.
//   gelu  a SwinGelu: what act is; with either GELU residual is null
//   tile  0; or n: the n-th of the tiles that FP16 has on compute capability 9.0, and FP32 from sm_80 on
//         (linear_fp32_kernel.cu), for fit_tiles.py. Refused where there is none
//   plain_fp32  1: FP32 products on CUDA cores only; 0: where that is faster, on tensor cores as products of TF32 parts
//         that are as exact (linear_fp32_kernel.cu)
// weight and bias are constants: the kernel just before does not write them.
// The first call for a shape may ask cuBLASLt for an algorithm and keep the answer: make it outside of a graph capture.
// Returns a cudaError_t: see swin_types.h.
struct SwinLinear {
    const void *x, *weight, *bias, *residual;
    void* y;
    long long rows;
    int type, in_features, out_features, gelu;
    void* workspace;
    size_t workspace_bytes;
    int tile, plain_fp32;
};
int swin_linear(const struct SwinLinear* arguments, cudaStream_t stream);

#ifdef __cplusplus
}
#endif
