// FP32 linear layers on Hopper's tensor cores, compiled for sm_90a only: as exact as FP32 on CUDA cores.
//
// Each number is the sum of two TF32 numbers (common/tf32.cuh).
// Two kernels: one writes the weights' high and low parts to the workspace, in the order that the other wants; the
// other, as product_sm90.cuh's, has tiles of x and weights copied into a ring of stages and splits x in registers.
//
// Tensor cores truncate when they add, which pulls sums towards 0, more with each addition. So they add up 32 numbers
// along K only, the small products first, and these sums are added on CUDA cores, which round to nearest.
//
// The low part of what is not finite is no number, and high may be infinite where a is just below the largest FP32. So
// sums of a row that a thread has with one among them that is not finite are computed again as FP32 computes them,
// slowly.
#include <algorithm>
#include <climits>
#include <cmath>
#include <iterator>

#include "Linear/linear_fp32.cuh"
#include "Linear/linear_fp32_kernel.h"
#include "common/gelu.cuh"
#include "common/product_sm90.cuh"
#include "common/tf32.cuh"

namespace swin {
namespace {

constexpr int kStepK = kFp32StepK;  // of K in a stage
constexpr int kDepth = 8;  // of K in a product of tensor cores
constexpr int kProducts = kStepK / kDepth;  // of a stage, three times
constexpr int kGroup = 16;  // features that four lanes share, four neighbouring ones each
static_assert(kProducts * kDepth == kStepK && kStepK * sizeof(float) == kTileBytes);

// --- the weights in two parts ----------------------------------------------------------------------------------------

// How many rows and columns they have there, zeros where the weights have none.
struct Padded {
    int features, k;
    size_t bytes() const { return 2 * sizeof(float) * static_cast<size_t>(features) * k; }
};
__host__ __device__ constexpr int round_up(int x, int unit) { return (x + unit - 1) / unit * unit; }

// parts[0 .. features) are the high parts, the next `features` rows the low ones. A thread four neighbouring elements.
// Feature 16g + 4q + 2s + b lies in row 16g + 8s + 2q + b: so lane q has the sums of four neighbours (wgmma.cuh).
__global__ void __launch_bounds__(256)
    split_weights_kernel(uint4* parts, const float* weight, int out_features, int in_features, Padded padded) {
    const int fours = padded.k / 4, i = static_cast<int>(blockIdx.x) * 256 + static_cast<int>(threadIdx.x);
    const int row = i / fours, k = i % fours * 4, in_group = row % kGroup;
    if (row >= padded.features) return;
    const int feature = row - in_group + in_group / 2 % 4 * 4 + in_group / 8 * 2 + in_group % 2;
    uint4 raw{};
    if (feature < out_features && k < in_features) {
        raw = ld_global_nc(weight + static_cast<long long>(feature) * in_features + k);
    }
    uint4 high, low;
    split(raw, high, low);
    griddepcontrol_wait();
    parts[i] = high;
    parts[i + static_cast<long long>(padded.features) * fours] = low;
}

// --- the product -----------------------------------------------------------------------------------------------------

// 64 rows a warpgroup, kBlocks blocks to a multiprocessor. A stage: x, the high parts of the weights, the low parts.
template <int kWarpgroups_, int kFeatures_, int kBlocks_> struct WgmmaTile {
    static constexpr int kWarpgroups = kWarpgroups_, kFeatures = kFeatures_, kBlocks = kBlocks_;
    static constexpr int kRows = 64 * kWarpgroups, kConsumers = 128 * kWarpgroups;
    static constexpr bool kSplitsRegisters = kWarpgroups > 1;
    static constexpr int kThreads = kConsumers + (kSplitsRegisters ? 128 : 32);
    static constexpr int kXBytes = kRows * kTileBytes, kPartBytes = kFeatures * kTileBytes;
    static constexpr int kStageBytes = kXBytes + 2 * kPartBytes;
    static constexpr int kForBarriers = 256;  // at most
    static constexpr int kStagesThatFit
        = (kSharedOfMultiprocessor / kBlocks - kSharedOfSystem - kForBarriers) / kStageBytes;
    static constexpr int kStages = kStagesThatFit < 8 ? kStagesThatFit : 8;
    static constexpr int kBytes = kStages * kStageBytes + static_cast<int>(sizeof(Pipeline<kStages>));
    static constexpr int kRegisters = consumer_registers<kWarpgroups, kSplitsRegisters>(kThreads, kBlocks);
    static_assert(kFeatures % kGroup == 0 && kFeatures <= 256 && kRows <= 256);
    static_assert(kXBytes % kTileAlignment == 0 && kPartBytes % kTileAlignment == 0);
    static_assert(sizeof(Pipeline<kStages>) <= kForBarriers);
    static_assert(kStages >= 3, "one is multiplied, x of one split, and one copied");
    static_assert((kBytes + kSharedOfSystem) * kBlocks <= kSharedOfMultiprocessor);
    // Sums of tensor cores and of CUDA cores, high and low parts of x in two stages, addresses.
    static_assert(2 * (kFeatures / 2) + 2 * 2 * 4 * kProducts + 24 <= kRegisters, "what a thread has, fits");
};

struct Fp32Maps {
    CUtensorMap x, parts;  // parts: of the weights
};

struct Fp32Product {
    const float *x, *weight, *bias, *residual;
    float* y;
    int rows, in_features, out_features, padded_features, steps;
};

template <class Tile>
__device__ __forceinline__ void copy_all(
    uint8_t* shared, Pipeline<Tile::kStages>& pipeline, const Fp32Maps& maps, const Fp32Product& p, Course course) {
    griddepcontrol_wait();
    if (!elect_one()) return;
    PipelineState<Tile::kStages> at;
    for (; !course.ended(); course.advance(), at.advance()) {
        uint8_t* const stage = shared + at.stage * Tile::kStageBytes;
        const int k = course.step * kStepK, feature = course.tile % course.tiles_across * Tile::kFeatures;
        pipeline.producer_acquire(at);
        pipeline.producer_expect(at, Tile::kStageBytes);
        tma_load(stage, maps.x, pipeline.barrier(at), k, course.tile / course.tiles_across * Tile::kRows);
        tma_load(stage + Tile::kXBytes, maps.parts, pipeline.barrier(at), k, feature);
        tma_load(stage + Tile::kXBytes + Tile::kPartBytes, maps.parts, pipeline.barrier(at), k,
            p.padded_features + feature);
    }
}

// A thread's part of x in a stage, as operands of wgmma.
struct Fragments {
    uint32_t high[kProducts][4], low[kProducts][4];

    __device__ __forceinline__ void fence() {
#pragma unroll
        for (int k = 0; k < kProducts; ++k) {
            fence_operand(high[k]);
            fence_operand(low[k]);
        }
    }
};

// Waits for a stage and splits this thread's part of x in it.
template <class Tile>
__device__ __forceinline__ void split_stage(
    Fragments& x, uint8_t* shared, Pipeline<Tile::kStages>& pipeline, const PipelineState<Tile::kStages>& at) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    // Of this lane's row; 32 bytes on along K is, swizzled, a flip of bits.
    const int x_offset = at.stage * Tile::kStageBytes + static_cast<int>(threadIdx.x) / 32 * 16 * kTileBytes
        + swizzled_offset(lane % 16, lane / 16);
    pipeline.consumer_wait(at);
#pragma unroll
    for (int k = 0; k < kProducts; ++k) {
        uint32_t raw[4];
        ldmatrix_x4(raw, shared + (x_offset ^ 32 * k));
#pragma unroll
        for (int i = 0; i < 4; ++i) split(__uint_as_float(raw[i]), x.high[k][i], x.low[k][i]);
    }
}

// Products of a stage, which is then released; meanwhile the next stage is split where there is one.
template <class Tile>
__device__ __forceinline__ void multiply_stage(float (&sums)[Tile::kFeatures / 2], Fragments& x, Fragments& next,
    bool has_next, uint8_t* shared, Pipeline<Tile::kStages>& pipeline, PipelineState<Tile::kStages>& at) {
    using Wgmma = WgmmaTF32<Tile::kFeatures>;
    const int stage = at.stage;
    const uint8_t* const weights = shared + stage * Tile::kStageBytes + Tile::kXBytes;
    const uint64_t high = make_smem_desc(weights), low = make_smem_desc(weights + Tile::kPartBytes);
    float of_stage[Tile::kFeatures / 2];
    x.fence();
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < kProducts; ++k) Wgmma::mma(of_stage, x.low[k], high + 2 * k, k > 0);
#pragma unroll
    for (int k = 0; k < kProducts; ++k) Wgmma::mma(of_stage, x.high[k], low + 2 * k, 1);
#pragma unroll
    for (int k = 0; k < kProducts; ++k) Wgmma::mma(of_stage, x.high[k], high + 2 * k, 1);
    wgmma_commit();
    at.advance();
    if (has_next) split_stage<Tile>(next, shared, pipeline, at);
    wgmma_wait<0>();
    fence_operand(of_stage);
    x.fence();
    pipeline.consumer_release(stage);
#pragma unroll
    for (int i = 0; i < Tile::kFeatures / 2; ++i) sums[i] += of_stage[i];
}

// The sums of a tile, for this warpgroup's 64 rows. x: of the tile's first stage; afterwards, where there is one, of the
// next tile's.
template <class Tile>
__device__ __forceinline__ void multiply(float (&sums)[Tile::kFeatures / 2], Fragments& x, uint8_t* shared,
    Pipeline<Tile::kStages>& pipeline, PipelineState<Tile::kStages>& at, int steps, bool has_next_tile) {
    Fragments next;
#pragma unroll
    for (float& sum : sums) sum = 0.0F;
    for (int step = 0; step < steps; step += 2) {
        multiply_stage<Tile>(sums, x, next, step + 1 < steps || has_next_tile, shared, pipeline, at);
        if (step + 1 < steps) {
            multiply_stage<Tile>(sums, next, x, step + 2 < steps || has_next_tile, shared, pipeline, at);
        } else {
            x = next;
        }
    }
}

__device__ __forceinline__ float4 load4(const float* from) { return *reinterpret_cast<const float4*>(from); }

// y of this thread's features of a row; r: of the first or the second of its rows. False where a sum is not finite.
template <class Tile, After AFTER>
__device__ __forceinline__ bool store_row(
    const Fp32Product& p, const float (&sums)[Tile::kFeatures / 2], int r, int row, int first_feature) {
    constexpr int kGroups = Tile::kFeatures / kGroup;
    if (row >= p.rows) return true;
    const long long first = static_cast<long long>(row) * p.out_features;
    float4 residual[AFTER == After::kResidual ? kGroups : 1];  // memory answers late: all at once
    if constexpr (AFTER == After::kResidual) {
#pragma unroll
        for (int group = 0; group < kGroups; ++group) {
            residual[group] = load4(p.residual + first + min(first_feature + group * kGroup, p.out_features - 4));
        }
    }
    float not_finite = 0.0F;
#pragma unroll
    for (int group = 0; group < kGroups; ++group) {
        const int feature = first_feature + group * kGroup;
        const float4 bias = __ldg(reinterpret_cast<const float4*>(p.bias + min(feature, p.out_features - 4)));
        float value[4] = {bias.x, bias.y, bias.z, bias.w};
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const float sum = sums[8 * group + i / 2 * 4 + 2 * r + i % 2];
            not_finite = fmaf(sum, 0.0F, not_finite);
            value[i] += sum;
            if constexpr (AFTER == After::kGelu) value[i] = fine_gelu(value[i]);
        }
        if constexpr (AFTER == After::kResidual) {
            const float4& addend = residual[group];
            value[0] += addend.x, value[1] += addend.y, value[2] += addend.z, value[3] += addend.w;
        }
        if (feature < p.out_features) {
            *reinterpret_cast<float4*>(p.y + first + feature) = make_float4(value[0], value[1], value[2], value[3]);
        }
    }
    return not_finite == 0.0F;
}

// The same features again, as FP32 computes them, where store_row found a sum that is not finite.
template <class Tile, After AFTER>
__device__ __forceinline__ void compute_row_again(const Fp32Product& p, int row, int first_feature) {
#pragma unroll 1
    for (int i = 0; i < Tile::kFeatures / 4; ++i) {
        const int feature = first_feature + i / 4 * kGroup + i % 4;
        if (feature >= p.out_features) return;
        compute_again(p, row, feature, AFTER == After::kGelu, AFTER == After::kResidual);
    }
}

template <class Tile, After AFTER>
__global__ void __launch_bounds__(Tile::kThreads, Tile::kBlocks)
    fp32_product_kernel(const __grid_constant__ Fp32Maps maps, const __grid_constant__ Fp32Product p) {
    extern __shared__ __align__(kTileAlignment) uint8_t shared[];
    auto& pipeline = *reinterpret_cast<Pipeline<Tile::kStages>*>(shared + Tile::kStages * Tile::kStageBytes);
    const int tiles_across = (p.out_features + Tile::kFeatures - 1) / Tile::kFeatures;
    const int tiles = (p.rows + Tile::kRows - 1) / Tile::kRows * tiles_across;
    const int blocks = static_cast<int>(gridDim.x), block = static_cast<int>(blockIdx.x);
    constexpr bool kBackwards = AFTER == After::kGelu;  // launch.cuh says why
    Course course{kBackwards ? tiles - 1 - block : block, kBackwards ? -blocks : blocks, tiles, tiles_across, p.steps};
    if (threadIdx.x == Tile::kConsumers) {
        prefetch_tensormap(maps.x);
        prefetch_tensormap(maps.parts);
        pipeline.init(1, Tile::kConsumers / 32);
        fence_barrier_init();
    }
    __syncthreads();
    if (warp_index() >= Tile::kConsumers / 32) {
        if constexpr (Tile::kSplitsRegisters) warpgroup_reg_dealloc<RegisterSplit<Tile::kWarpgroups>::kProducer>();
        if (warp_index() == Tile::kConsumers / 32) copy_all<Tile>(shared, pipeline, maps, p, course);
        return;
    }
    if constexpr (Tile::kSplitsRegisters) warpgroup_reg_alloc<RegisterSplit<Tile::kWarpgroups>::kConsumer>();
    griddepcontrol_wait();
    PipelineState<Tile::kStages> at;
    const int lane = static_cast<int>(threadIdx.x) % 32;
    Fragments x;
    split_stage<Tile>(x, shared, pipeline, at);
    while (!course.ended()) {
        const int row = course.tile / tiles_across * Tile::kRows + warp_index() * 16 + lane / 4;
        const int feature = course.tile % tiles_across * Tile::kFeatures + lane % 4 * 4;
        course.tile += course.stride;
        float sums[Tile::kFeatures / 2];
        multiply<Tile>(sums, x, shared, pipeline, at, p.steps, !course.ended());
        const bool finite = store_row<Tile, AFTER>(p, sums, 0, row, feature);
        const bool finite_below = store_row<Tile, AFTER>(p, sums, 1, row + 8, feature);
        if (!finite) compute_row_again<Tile, AFTER>(p, row, feature);
        if (!finite_below) compute_row_again<Tile, AFTER>(p, row + 8, feature);
        __syncwarp();
    }
}

// --- launching -------------------------------------------------------------------------------------------------------

Padded padded_for(const SwinLinear& a, int tile_features) {
    return {round_up(a.out_features, tile_features), round_up(a.in_features, kStepK)};
}

template <class Tile, After AFTER> int multiply_then(const SwinLinear& a, int multiprocessors, cudaStream_t stream) {
    const Padded padded = padded_for(a, Tile::kFeatures);
    const int rows = static_cast<int>(a.rows), across = padded.features / Tile::kFeatures;
    const long long tiles = (a.rows + Tile::kRows - 1) / Tile::kRows * across;
    if (padded.bytes() > a.workspace_bytes || tiles > INT_MAX / 2) return cudaErrorNotSupported;
    Fp32Maps maps{};
    if (!make_rows_map<float>(maps.x, a.x, rows, a.in_features, Tile::kRows)
        || !make_rows_map<float>(maps.parts, a.workspace, 2 * padded.features, padded.k, Tile::kFeatures)) {
        return cudaErrorInvalidValue;
    }
    const int fours = padded.features * (padded.k / 4);
    const int status = launch<split_weights_kernel>((fours + 255) / 256, 256, 0, stream,
        static_cast<uint4*>(a.workspace), static_cast<const float*>(a.weight), a.out_features, a.in_features, padded);
    if (status != cudaSuccess) return status;
    constexpr auto kKernel = fp32_product_kernel<Tile, AFTER>;
    const cudaError_t error = allow_shared_memory<kKernel>(Tile::kBytes);
    if (error != cudaSuccess) return error;
    const Fp32Product p{static_cast<const float*>(a.x), static_cast<const float*>(a.weight),
        static_cast<const float*>(a.bias), static_cast<const float*>(a.residual), static_cast<float*>(a.y), rows,
        a.in_features, a.out_features, padded.features, padded.k / kStepK};
    const int blocks = static_cast<int>(std::min<long long>(tiles, multiprocessors * Tile::kBlocks));
    return launch<kKernel>(blocks, Tile::kThreads, Tile::kBytes, stream, maps, p);
}

template <class Tile> int multiply_by(const SwinLinear& a, int multiprocessors, int /* splits */, cudaStream_t stream) {
    if (a.residual != nullptr) return multiply_then<Tile, After::kResidual>(a, multiprocessors, stream);
    return a.gelu == 1 ? multiply_then<Tile, After::kGelu>(a, multiprocessors, stream)
                       : multiply_then<Tile, After::kNothing>(a, multiprocessors, stream);
}

// --- which tiles there are -------------------------------------------------------------------------------------------

// Of fewer rows the smallest tile would be empty in part. cuBLASLt was as fast or faster with all products of 49 rows
// (Results/fp32_products.csv), and nearer to FP64 with one row, where few results stand for the error.
constexpr int kFewestRows = 64;

template <int kWarpgroups, int kFeatures, int kBlocks>
constexpr Fp32Tile wgmma_tile(float start, float wave, float step, float full, float full_step) {
    return {multiply_by<WgmmaTile<kWarpgroups, kFeatures, kBlocks>>,
        [](const SwinLinear& a, int /* splits */) { return padded_for(a, kFeatures).bytes(); }, kFewestRows,
        {64 * kWarpgroups, kFeatures, kBlocks, 1, start, wave, step, full, full_step}};
}
constexpr Fp32Tile kWgmmaTiles[] = {wgmma_tile<1, 64, 2>(3.811F, 0.0F, 0.415F, 1.498F, 0.251F),
    wgmma_tile<2, 96, 1>(5.031F, 0.0F, 0.725F, 1.623F, 0.046F),
    wgmma_tile<2, 128, 1>(5.424F, 0.0F, 0.928F, 2.398F, 0.042F)};

}  // namespace

Fp32Tiles fp32_tiles_sm90() { return {kWgmmaTiles, static_cast<int>(std::size(kWgmmaTiles))}; }

}  // namespace swin
