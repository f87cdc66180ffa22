// The products of swin_linear in FP32 on tensor cores: which there are, and which is taken.
#pragma once

#include <cmath>

#include "Linear/linear_kernel.h"
#include "common/gpu.h"

namespace swin {

// y = act(x weight^T + bias) + residual as swin_linear's, all FP32, from sm_80 on. rows are at most INT_MAX - 256,
// in_features and out_features multiples of 4, pointers of 16 bytes. cudaErrorNotSupported, with tile 0, where
// cuBLASLt's product is taken to be faster or as exact; else a cudaError_t.
int linear_fp32(const SwinLinear& a, const Gpu& gpu, cudaStream_t stream);

constexpr int kFp32StepK = 32;  // of K that tiles multiply at a time
inline int fp32_steps(const SwinLinear& a) { return (a.in_features + kFp32StepK - 1) / kFp32StepK; }

// Microseconds of a product in tiles of rows x features, `blocks` of them on a multiprocessor at once, K in `splits`
// parts. start: with what is done before or after. wave, step: of a wave of tiles and of each 32 of K in it; full,
// full_step: the same of waves that need not be whole. Fitted by fit_tiles.py to Results/fp32_products.csv (H200).
struct Fp32Time {
    int rows, features, blocks, splits;
    float start, wave, step, full, full_step;

    long long tiles(const SwinLinear& a) const {
        return (a.rows + rows - 1) / rows * ((a.out_features + features - 1) / features);
    }
    int steps(const SwinLinear& a) const { return (fp32_steps(a) + splits - 1) / splits; }
    float operator()(const SwinLinear& a, int multiprocessors) const {
        const auto of_tile = static_cast<float>(steps(a));
        const float filled = static_cast<float>(tiles(a) * splits) / static_cast<float>(multiprocessors * blocks);
        return start + std::ceil(filled) * (wave + step * of_tile) + filled * (full + full_step * of_tile);
    }
};

// A way to compute products. run returns cudaErrorNotSupported where the workspace is too small, or K too short.
struct Fp32Tile {
    int (*run)(const SwinLinear&, int multiprocessors, int splits, cudaStream_t);
    size_t (*workspace_bytes)(const SwinLinear&, int splits);
    int fewest_rows;  // that it is chosen for
    Fp32Time time;
};
struct Fp32Tiles {
    const Fp32Tile* first;
    int count;
};

// Those of compute capability 9.0 (linear_fp32_sm90_kernel.cu). A library for other GPUs is built without them, and the
// address is null there.
__attribute__((weak)) Fp32Tiles fp32_tiles_sm90();

}  // namespace swin
