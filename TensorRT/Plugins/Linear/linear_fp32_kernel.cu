// FP32 linear layers on tensor cores from sm_80 on, as exact as FP32 on CUDA cores, and the choice among all of
// swin_linear's FP32 products.
//
//   nvcc -std=c++17 -O3 -arch=sm_80 -I.. -c linear_fp32_kernel.cu
//
// Each number is the sum of two TF32 numbers, into which it is split in registers (common/tf32.cuh). A block has a tile
// of y; tiles of x and weight, 32 numbers of K at a time, are copied into a ring of stages. Where there are too few
// tiles for all multiprocessors, K is split: on Hopper the blocks that share a tile are a cluster and add up each other's
// sums; elsewhere they write these to the workspace, and a second kernel adds them up. The order is always the same.
//
// The low part of what is not finite is no number, and high may be infinite where a number is just below the largest
// FP32. So a thread that has a result among its own that is not finite computes all of them again as FP32 computes
// them, slowly.
#include "Linear/linear_fp32_kernel.h"

#include <algorithm>
#include <climits>
#include <cstdint>
#include <iterator>

#include "Linear/linear_fp32.cuh"
#include "common/gelu.cuh"
#include "common/launch.cuh"
#include "common/tf32.cuh"

namespace swin {
namespace {

constexpr int kRowBytes = kFp32StepK * static_cast<int>(sizeof(float));  // of a stage
constexpr int kChunks = kRowBytes / 16;  // copied at once
constexpr int kDepth = 8;  // of K in a product of tensor cores
constexpr int kStages = 3;
constexpr int kMostParts = 8;  // of K, as many as a cluster has blocks at most
constexpr int kGroup = 16;  // features that four lanes share, four neighbouring ones each

// kWarpsDown x kWarpsAcross warps, each with kRowTiles x 16 rows and kGroups x 16 features; kBlocks blocks to a
// multiprocessor.
template <int kWarpsDown_, int kWarpsAcross_, int kRowTiles_, int kGroups_, int kBlocks_> struct MmaTile {
    static constexpr int kWarpsDown = kWarpsDown_, kWarpsAcross = kWarpsAcross_, kBlocks = kBlocks_;
    static constexpr int kRowTiles = kRowTiles_, kGroups = kGroups_;
    static constexpr int kThreads = 32 * kWarpsDown * kWarpsAcross;
    static constexpr int kRows = 16 * kRowTiles * kWarpsDown, kFeatures = kGroup * kGroups * kWarpsAcross;
    static constexpr int kXBytes = kRows * kRowBytes, kStageBytes = kXBytes + kFeatures * kRowBytes;
    static constexpr int kBytes = kStages * kStageBytes;
    static constexpr int kSumsStride = kFeatures + 16;  // of a row of sums in shared memory: two rows in different banks
    static constexpr int kRowsAtOnce = kThreads / kChunks;  // copied by a block
    static_assert(kRowsAtOnce % kGroup == 0, "a thread copies the same chunk of every row, in swizzled order too");
    static_assert(kRows % kRowsAtOnce == 0 && kFeatures % kGroup == 0);
    static_assert(kRows * kSumsStride * static_cast<int>(sizeof(float)) <= kBytes);
    static_assert(kBytes <= 99 << 10, "every GPU from sm_80 on has so much");
};

struct MmaProduct {
    const float *x, *weight, *bias, *residual;
    float *y, *partial;  // partial: [splits, rows, out_features], where K is split
    int rows, in_features, out_features, steps, splits;
    bool gelu;
    bool in_clusters;  // the blocks that share a tile
};

__device__ __forceinline__ float4 load4(const float* from) { return *reinterpret_cast<const float4*>(from); }
__device__ __forceinline__ void add(float4& to, const float4& more) {
    to.x += more.x, to.y += more.y, to.z += more.z, to.w += more.w;
}
// A lane's four neighbouring features of a group, in the first or the second of its rows.
__device__ __forceinline__ float4 four_of(const float (&first)[4], const float (&second)[4], int r) {
    return make_float4(first[2 * r], first[2 * r + 1], second[2 * r], second[2 * r + 1]);
}

// y of four features again, as FP32 computes them.
__device__ __forceinline__ void compute_four_again(const MmaProduct& p, int row, int first_feature) {
#pragma unroll 1
    for (int feature = first_feature; feature < first_feature + 4; ++feature) {
        compute_again(p, row, feature, p.gelu, p.residual != nullptr);
    }
}

// y of four neighbouring features of a row. False where one is not finite before GELU and residual.
__device__ __forceinline__ bool store_four(const MmaProduct& p, int row, int feature, const float4& sums) {
    const long long at = static_cast<long long>(row) * p.out_features + feature;
    const float4 bias = __ldg(reinterpret_cast<const float4*>(p.bias + feature));
    float value[4] = {sums.x + bias.x, sums.y + bias.y, sums.z + bias.z, sums.w + bias.w};
    float not_finite = 0.0F;
#pragma unroll
    for (int i = 0; i < 4; ++i) not_finite = fmaf(value[i], 0.0F, not_finite);
    if (p.gelu) {
#pragma unroll
        for (int i = 0; i < 4; ++i) value[i] = fine_gelu(value[i]);
    }
    if (p.residual != nullptr) {
        const float4 addend = load4(p.residual + at);
        value[0] += addend.x, value[1] += addend.y, value[2] += addend.z, value[3] += addend.w;
    }
    *reinterpret_cast<float4*>(p.y + at) = make_float4(value[0], value[1], value[2], value[3]);
    return not_finite == 0.0F;
}

// Which feature of a group a row of the weight's tile holds: so a lane's sums are of four neighbours (tf32.cuh).
__device__ __forceinline__ constexpr int feature_of_row(int row) {
    return row / kGroup * kGroup + row % kGroup / 2 % 4 * 4 + row % kGroup / 8 * 2 + row % 2;
}

// Where a chunk of a row lies in a tile of shared memory: swizzled, so that eight rows' are in different banks.
__device__ __forceinline__ int offset_of(int row, int chunk) { return row * kRowBytes + (chunk ^ row % 8) * 16; }

// Copies a step's tile of `from` [rows, in_features] from its row `first` on; kPermuted: its rows as features.
template <class Tile, int kTileRows, bool kPermuted>
__device__ __forceinline__ void copy_tile(
    uint8_t* shared, const float* from, int first, int rows, const MmaProduct& p, int step) {
    const int chunk = static_cast<int>(threadIdx.x) % kChunks, k = step * kFp32StepK + chunk * 4;
#pragma unroll
    for (int i = 0; i < kTileRows; i += Tile::kRowsAtOnce) {
        const int tile_row = i + static_cast<int>(threadIdx.x) / kChunks;
        if (kTileRows % Tile::kRowsAtOnce != 0 && tile_row >= kTileRows) break;
        const int row = first + (kPermuted ? feature_of_row(tile_row) : tile_row);
        const bool live = row < rows && k < p.in_features;
        cp_async_16(shared + offset_of(tile_row, chunk),
            from + (live ? static_cast<long long>(row) * p.in_features + k : 0), live);
    }
}

// Adds a stage's products to a warp's sums: of 16 rows and 8 features each, two in a group of features.
template <class Tile>
__device__ __forceinline__ void multiply_stage(
    float (&sums)[Tile::kRowTiles][2 * Tile::kGroups][4], const uint8_t* shared, int first_row, int first_feature) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll 2  // more takes registers that there are not
    for (int k = 0; k < kFp32StepK / kDepth; ++k) {
        SplitFragment<4> x[Tile::kRowTiles];
#pragma unroll
        for (int m = 0; m < Tile::kRowTiles; ++m) {
            uint32_t raw[4];  // rows 0 and 8 of the first four along K, and of the other four
            ldmatrix_x4(raw, shared + offset_of(first_row + 16 * m + lane % 16, 2 * k + lane / 16));
#pragma unroll
            for (int i = 0; i < 4; ++i) split(__uint_as_float(raw[i]), x[m].high[i], x[m].low[i]);
        }
#pragma unroll
        for (int g = 0; g < Tile::kGroups; ++g) {
            uint32_t raw[4];  // both fours along K of the first eight features, and of the other eight
            ldmatrix_x4(raw, shared + Tile::kXBytes
                + offset_of(first_feature + kGroup * g + lane % 8 + lane / 16 * 8, 2 * k + lane / 8 % 2));
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                SplitFragment<2> weight;
#pragma unroll
                for (int i = 0; i < 2; ++i) {
                    split(__uint_as_float(raw[2 * half + i]), weight.high[i], weight.low[i]);
                }
#pragma unroll
                for (int m = 0; m < Tile::kRowTiles; ++m) add_product(sums[m][2 * g + half], x[m], weight);
            }
        }
    }
}

// Adds up the sums of a cluster's blocks, each of which has a part of K: a block some rows of the tile.
template <class Tile>
__device__ __forceinline__ void add_parts_of_cluster(const MmaProduct& p,
    const float (&sums)[Tile::kRowTiles][2 * Tile::kGroups][4], float* shared, int warp_row, int warp_feature,
    int tile_row, int tile_feature, int part) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    cp_async_wait<0>();
    __syncthreads();  // all are done with the stages, in whose place the sums come
#pragma unroll
    for (int m = 0; m < Tile::kRowTiles; ++m) {
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            const int row = warp_row + 16 * m + 8 * r + lane / 4;
#pragma unroll
            for (int g = 0; g < Tile::kGroups; ++g) {
                *reinterpret_cast<float4*>(
                    shared + row * Tile::kSumsStride + warp_feature + kGroup * g + lane % 4 * 4)
                    = four_of(sums[m][2 * g], sums[m][2 * g + 1], r);
            }
        }
    }
    barrier_cluster();
    constexpr int kFours = Tile::kFeatures / 4;
    const int rows_of_block = (Tile::kRows + p.splits - 1) / p.splits;
#pragma unroll 1
    for (int i = static_cast<int>(threadIdx.x); i < rows_of_block * kFours; i += Tile::kThreads) {
        const int row_in_tile = part * rows_of_block + i / kFours, in_row = i % kFours * 4;
        const int row = tile_row + row_in_tile, feature = tile_feature + in_row;
        if (row_in_tile >= Tile::kRows || row >= p.rows || feature >= p.out_features) continue;
        float4 parts[kMostParts];  // other blocks' memory answers late: all at once
#pragma unroll
        for (int other = 0; other < kMostParts; ++other) {
            if (other < p.splits) {
                parts[other] = ld_shared_cluster(shared + row_in_tile * Tile::kSumsStride + in_row, other);
            }
        }
        float4 total = parts[0];
#pragma unroll
        for (int other = 1; other < kMostParts; ++other) {
            if (other < p.splits) add(total, parts[other]);
        }
        if (!store_four(p, row, feature, total)) compute_four_again(p, row, feature);
    }
    barrier_cluster();  // nobody ends while others read its memory
}

// blockIdx.x: the tile; blockIdx.y: the part of K.
template <class Tile>
__global__ void __launch_bounds__(Tile::kThreads, Tile::kBlocks) mma_product_kernel(const __grid_constant__ MmaProduct p) {
    extern __shared__ __align__(128) uint8_t shared[];
    const int tiles_across = (p.out_features + Tile::kFeatures - 1) / Tile::kFeatures;
    const int block = static_cast<int>(blockIdx.x), part = static_cast<int>(blockIdx.y);
    const int tile = p.gelu ? static_cast<int>(gridDim.x) - 1 - block : block;  // launch.cuh says why
    const int tile_row = tile / tiles_across * Tile::kRows, tile_feature = tile % tiles_across * Tile::kFeatures;
    const int first_step = static_cast<int>(static_cast<long long>(p.steps) * part / p.splits);
    const int steps = static_cast<int>(static_cast<long long>(p.steps) * (part + 1) / p.splits) - first_step;

    const auto copy_x = [&](int step) {
        copy_tile<Tile, Tile::kRows, false>(
            shared + step % kStages * Tile::kStageBytes, p.x, tile_row, p.rows, p, first_step + step);
    };
    const auto copy_weight = [&](int step) {
        copy_tile<Tile, Tile::kFeatures, true>(shared + step % kStages * Tile::kStageBytes + Tile::kXBytes, p.weight,
            tile_feature, p.out_features, p, first_step + step);
    };
    for (int step = 0; step < min(kStages - 1, steps); ++step) copy_weight(step);
    griddepcontrol_wait();
    for (int step = 0; step < kStages - 1; ++step) {
        if (step < steps) copy_x(step);
        cp_async_commit();
    }

    const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
    const int warp_row = warp % Tile::kWarpsDown * Tile::kRowTiles * 16;
    const int warp_feature = warp / Tile::kWarpsDown * Tile::kGroups * kGroup;
    float sums[Tile::kRowTiles][2 * Tile::kGroups][4] = {};
    for (int step = 0; step < steps; ++step) {
        cp_async_wait<kStages - 2>();
        __syncthreads();  // what this step needs has come, and all are done with the stage that is copied into next
        if (step + kStages - 1 < steps) {
            copy_weight(step + kStages - 1);
            copy_x(step + kStages - 1);
        }
        cp_async_commit();
        multiply_stage<Tile>(sums, shared + step % kStages * Tile::kStageBytes, warp_row, warp_feature);
    }
    griddepcontrol_launch_dependents();
    if (p.in_clusters) {
        add_parts_of_cluster<Tile>(p, sums, reinterpret_cast<float*>(shared), warp_row, warp_feature, tile_row,
            tile_feature, part);
        return;
    }

    const int first_row = tile_row + warp_row + lane / 4, first_feature = tile_feature + warp_feature + lane % 4 * 4;
    bool finite = true;
#pragma unroll
    for (int m = 0; m < Tile::kRowTiles; ++m) {
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            const int row = first_row + 16 * m + 8 * r;
            if (row >= p.rows) continue;
#pragma unroll
            for (int g = 0; g < Tile::kGroups; ++g) {
                const int feature = first_feature + kGroup * g;
                if (feature >= p.out_features) continue;
                const float4 four = four_of(sums[m][2 * g], sums[m][2 * g + 1], r);
                if (p.splits == 1) {
                    finite &= store_four(p, row, feature, four);
                } else {
                    const long long at = (static_cast<long long>(part) * p.rows + row) * p.out_features + feature;
                    *reinterpret_cast<float4*>(p.partial + at) = four;
                }
            }
        }
    }
    if (finite) return;
#pragma unroll 1
    for (int i = 0; i < 2 * Tile::kRowTiles * Tile::kGroups; ++i) {
        const int row = first_row + i / Tile::kGroups * 8, feature = first_feature + i % Tile::kGroups * kGroup;
        if (row < p.rows && feature < p.out_features) compute_four_again(p, row, feature);
    }
}

// Adds up the parts of K: a thread four neighbouring features of a row.
__global__ void __launch_bounds__(128) add_parts_kernel(const __grid_constant__ MmaProduct p) {
    const long long fours = static_cast<long long>(p.rows) * (p.out_features / 4);
    const long long i = static_cast<long long>(blockIdx.x) * 128 + threadIdx.x;
    griddepcontrol_wait();
    if (i >= fours) return;
    float4 sums = load4(p.partial + 4 * i);
    for (int part = 1; part < p.splits; ++part) {
        add(sums, load4(p.partial + 4 * (part * fours + i)));
    }
    const int row = static_cast<int>(i / (p.out_features / 4)), feature = static_cast<int>(i % (p.out_features / 4)) * 4;
    if (!store_four(p, row, feature, sums)) compute_four_again(p, row, feature);
}

// --- launching -------------------------------------------------------------------------------------------------------

size_t partial_bytes(const SwinLinear& a, int splits) {
    return splits == 1 ? 0 : static_cast<size_t>(splits) * a.rows * a.out_features * sizeof(float);
}

template <class Tile> int multiply_in(const SwinLinear& a, int /* multiprocessors */, int splits, cudaStream_t stream) {
    const int across = (a.out_features + Tile::kFeatures - 1) / Tile::kFeatures;
    const long long tiles = (a.rows + Tile::kRows - 1) / Tile::kRows * across;
    if (splits > std::min(kMostParts, fp32_steps(a)) || partial_bytes(a, splits) > a.workspace_bytes || tiles > INT_MAX) {
        return cudaErrorNotSupported;
    }
    constexpr auto kKernel = mma_product_kernel<Tile>;
    const bool in_clusters = splits > 1 && is_sm90_code<kKernel>();
    const MmaProduct p{static_cast<const float*>(a.x), static_cast<const float*>(a.weight),
        static_cast<const float*>(a.bias), static_cast<const float*>(a.residual), static_cast<float*>(a.y),
        static_cast<float*>(a.workspace), static_cast<int>(a.rows), a.in_features, a.out_features, fp32_steps(a), splits,
        a.gelu == SWIN_GELU, in_clusters};
    const cudaError_t error = allow_shared_memory<kKernel>(Tile::kBytes);
    if (error != cudaSuccess) return error;
    const dim3 blocks(static_cast<unsigned>(tiles), static_cast<unsigned>(splits));
    const dim3 cluster(1, in_clusters ? splits : 1);
    const int status = launch_in_clusters<kKernel>(cluster, blocks, Tile::kThreads, Tile::kBytes, stream, p);
    if (status != cudaSuccess || splits == 1 || in_clusters) return status;
    const long long threads = a.rows * (a.out_features / 4);
    return launch<add_parts_kernel>(static_cast<unsigned>((threads + 127) / 128), 128, 0, stream, p);
}

// --- which of them ---------------------------------------------------------------------------------------------------

constexpr float kNotMeasured = INFINITY;  // never the fastest on compute capability 9.0

template <int kWarpsDown, int kWarpsAcross, int kRowTiles, int kGroups, int kBlocks>
constexpr Fp32Tile mma_tile(int splits, float start, float wave, float step, float full, float full_step) {
    using Tile = MmaTile<kWarpsDown, kWarpsAcross, kRowTiles, kGroups, kBlocks>;
    return {multiply_in<Tile>, partial_bytes, 16,
        {Tile::kRows, Tile::kFeatures, kBlocks, splits, start, wave, step, full, full_step}};
}

// The largest first: of two that would take as long it is taken.
constexpr Fp32Tile kMmaTiles[] = {mma_tile<2, 4, 4, 2, 1>(1, kNotMeasured, 0.0F, 0.0F, 0.0F, 0.0F),
    mma_tile<4, 2, 2, 3, 1>(1, kNotMeasured, 0.0F, 0.0F, 0.0F, 0.0F),
    mma_tile<2, 2, 2, 2, 3>(1, kNotMeasured, 0.0F, 0.0F, 0.0F, 0.0F),
    mma_tile<2, 2, 2, 2, 3>(2, kNotMeasured, 0.0F, 0.0F, 0.0F, 0.0F),
    mma_tile<2, 2, 2, 2, 3>(4, kNotMeasured, 0.0F, 0.0F, 0.0F, 0.0F),
    mma_tile<2, 2, 2, 2, 3>(8, kNotMeasured, 0.0F, 0.0F, 0.0F, 0.0F),
    mma_tile<2, 2, 1, 2, 4>(1, kNotMeasured, 0.0F, 0.0F, 0.0F, 0.0F),
    mma_tile<2, 2, 1, 2, 4>(2, kNotMeasured, 0.0F, 0.0F, 0.0F, 0.0F),
    mma_tile<2, 2, 1, 2, 4>(4, kNotMeasured, 0.0F, 0.0F, 0.0F, 0.0F),
    mma_tile<2, 2, 1, 2, 4>(8, kNotMeasured, 0.0F, 0.0F, 0.0F, 0.0F)};

// cuBLASLt's product, whose tiles nobody knows: its time is told best as if they were these.
constexpr Fp32Time kPlainTime{64, 64, 2, 1, 4.789F, 2.226F, 0.104F, 0.0F, 1.536F};

// Steps of 64 x 64 numbers of y that the multiprocessor with the most blocks has, where nothing was measured: a block
// begins and ends in the time of two, and a second kernel takes that of five or so.
float waves_of(const SwinLinear& a, const Fp32Time& tile, int multiprocessors) {
    const auto blocks = (tile.tiles(a) * tile.splits + multiprocessors - 1) / multiprocessors;
    const float size = static_cast<float>(tile.rows * tile.features) / (64.0F * 64.0F);
    return static_cast<float>(blocks) * size * static_cast<float>(tile.steps(a) + 2) + (tile.splits > 1 ? 5.0F : 0.0F);
}

// No GPU has run kMmaTiles yet: until one has, they are only taken by number.
constexpr bool kMmaHasRun = false;

// Whether tensor cores multiply three TF32 numbers faster than CUDA cores one FP32: data sheets have 8 times as many
// TFLOP/s of dense TF32 as of FP32 on 8.0, and more on 10.0, but once or twice as many on 8.6, 8.9 and 12.0.
bool tensor_cores_are_faster(const Gpu& gpu) {
    return kMmaHasRun && ((gpu.major == 8 && gpu.minor == 0) || gpu.major == 10);
}

// Below that wgmma's truncation, of 32 numbers along K, shows beside FP32's few roundings: 1.7e-7 of the largest result
// where cuBLASLt has 1.3e-7.
constexpr int kShortestK = 3 * kFp32StepK;

}  // namespace

int linear_fp32(const SwinLinear& a, const Gpu& gpu, cudaStream_t stream) {
    const bool hopper = gpu.is_sm90() && fp32_tiles_sm90 != nullptr;
    const Fp32Tiles lists[]
        = {{kMmaTiles, static_cast<int>(std::size(kMmaTiles))}, hopper ? fp32_tiles_sm90() : Fp32Tiles{nullptr, 0}};
    int number = a.tile;
    const Fp32Tile* fastest = nullptr;
    float least = hopper ? kPlainTime(a, gpu.multiprocessors) : INFINITY;
    for (const Fp32Tiles& list : lists) {
        for (const Fp32Tile* tile = list.first; tile != list.first + list.count; ++tile) {
            if (a.tile > 0) {
                if (--number == 0) fastest = tile;
                continue;
            }
            const int splits = tile->time.splits;
            const bool fits = a.rows >= tile->fewest_rows && a.in_features >= kShortestK && splits <= fp32_steps(a)
                && tile->workspace_bytes(a, splits) <= a.workspace_bytes && (hopper || tensor_cores_are_faster(gpu));
            const float time
                = hopper ? tile->time(a, gpu.multiprocessors) : waves_of(a, tile->time, gpu.multiprocessors);
            if (fits && time < least) {
                fastest = tile;
                least = time;
            }
        }
    }
    if (fastest == nullptr) return a.tile == 0 ? cudaErrorNotSupported : cudaErrorInvalidValue;
    const int status = fastest->run(a, gpu.multiprocessors, fastest->time.splits, stream);
    return a.tile > 0 && status == cudaErrorNotSupported ? cudaErrorInvalidValue : status;
}

}  // namespace swin
