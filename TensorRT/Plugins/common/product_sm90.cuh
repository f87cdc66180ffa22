// Matrix products for Hopper (compute capability 9.0a) with the epilogues of Swin's linear layers:
// y = act(x weight^T [* scale] + bias) + residual.
//
// A block computes tile after tile of y: one warp has tiles of x and weight copied into a ring of stages in shared memory,
// warpgroups multiply them. Several blocks share a multiprocessor, so that while one is in its epilogue the tensor cores
// work for the others: Swin's products are short (K is 96 to 768 in most of them) and their epilogues as long.
// Weights are copied before the kernel waits for the one before it: they are constants.
//
// The columns of a tile are permuted, so that a thread's sums of a row are 8 neighbouring features: row 32g + 8q + 2s + b
// of the weight's tile lies in shared memory at 32g + 8s + 2q + b.
#pragma once

#include <algorithm>
#include <type_traits>

#include "gelu.cuh"
#include "launch.cuh"
#include "quantize.cuh"
#include "wgmma.cuh"

namespace swin {

struct Product {
    const void *x, *weight;  // [rows, K] and [N, K], INT8 or FP16
    const float* scale;      // [N]; INT8 alone
    const void* bias;        // [N]; FP32 where x is INT8, FP16 where it is FP16
    const void* residual;    // [rows, N] FP16, where kResidual
    void* y;                 // [rows, N]
    int rows, in_features, out_features;
    bool gelu;
    float inverse_y_scale;  // y is INT8
    int multiprocessors;
    cudaStream_t stream;
};

// x is a multiple of 16 bytes a row, and so is weight; the permutation takes features by 32.
constexpr int kFeatureGroup = 32;

// --- epilogue --------------------------------------------------------------------------------------------------------

struct Epilogue {
    const float* scale;
    const void* bias;
    const __half* residual;
    void* y;
    int rows, features;
    bool gelu;
    float inverse_y_scale;
};

// Constants, read where they are needed: of a plain load the compiler would make one long before, and keep what it read in
// registers that the sums need.
__device__ __forceinline__ uint4 load_constant(const void* from) {
    uint4 x;
    asm volatile("ld.global.nc.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w) : "l"(from));
    return x;
}
__device__ __forceinline__ void load_floats(float (&to)[8], const float* from) {
    const uint4 low = load_constant(from), high = load_constant(from + 4);
    const uint32_t bits[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
    for (int i = 0; i < 8; ++i) to[i] = __uint_as_float(bits[i]);
}
__device__ __forceinline__ void unpack_halves(float (&to)[8], const uint4& from) {
    const uint32_t pairs[4] = {from.x, from.y, from.z, from.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const float2 pair = Packed<__half>::unpack(pairs[i]);
        to[2 * i] = pair.x, to[2 * i + 1] = pair.y;
    }
}

// What 8 neighbouring features of y need beside the sums.
template <class Element> struct Features;
template <> struct Features<__half> {
    float bias[8];
    __device__ __forceinline__ Features(const Epilogue& e, int feature) {
        unpack_halves(bias, load_constant(static_cast<const __half*>(e.bias) + feature));
    }
    __device__ __forceinline__ float value(float sum, int i) const { return sum + bias[i]; }
};
template <> struct Features<int8_t> {
    float scale[8], bias[8];
    __device__ __forceinline__ Features(const Epilogue& e, int feature) {
        load_floats(scale, e.scale + feature);
        load_floats(bias, static_cast<const float*>(e.bias) + feature);
    }
    __device__ __forceinline__ float value(int sum, int i) const {
        return fmaf(static_cast<float>(sum), scale[i], bias[i]);
    }
};

__device__ __forceinline__ uint4 packed_halves(const float (&value)[8]) {
    using P = Packed<__half>;
    return make_uint4(P::pack(value[0], value[1]), P::pack(value[2], value[3]), P::pack(value[4], value[5]),
        P::pack(value[6], value[7]));
}

// Sums of 8 neighbouring features of a row to y; the same features of the residual where kResidual.
template <class Element, class Output, bool kResidual, class Sum>
__device__ __forceinline__ void store(
    const Epilogue& e, const Features<Element>& features, int row, int feature, const Sum (&sums)[8], const uint4& residual) {
    const long long at = static_cast<long long>(row) * e.features + feature;
    float value[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) value[i] = features.value(sums[i], i);
    if constexpr (kResidual) {
        float addend[8];
        unpack_halves(addend, residual);
#pragma unroll
        for (int i = 0; i < 8; ++i) value[i] += addend[i];
    } else if (e.gelu) {
#pragma unroll
        for (int i = 0; i < 8; ++i) value[i] = gelu(value[i]);
    }
    if constexpr (std::is_same_v<Output, int8_t>) {
        store_quantized<8>(static_cast<int8_t*>(e.y) + at, value, e.inverse_y_scale);
    } else {
        *reinterpret_cast<uint4*>(static_cast<__half*>(e.y) + at) = packed_halves(value);
    }
}

// --- the ring of stages ------------------------------------------------------------------------------------------------

// kRows x kFeatures of y at a time, a warpgroup to 64 rows; kBlocks blocks to a multiprocessor.
template <int kRows_, int kFeatures_, int kBlocks_> struct Tile {
    static constexpr int kRows = kRows_, kFeatures = kFeatures_, kBlocks = kBlocks_;
    static constexpr int kConsumers = 2 * kRows;  // threads that multiply
    static constexpr int kThreads = kConsumers + 32;
    static constexpr int kXBytes = kRows * kTileBytes, kStageBytes = (kRows + kFeatures) * kTileBytes;
    // A multiprocessor has 228 KiB of shared memory, of which each block loses one; barriers take 16 bytes a stage.
    static constexpr int kStagesThatFit = ((228 << 10) / kBlocks - 1024 - 256) / kStageBytes;
    static constexpr int kStages = kStagesThatFit < 8 ? kStagesThatFit : 8;
    static constexpr int kSharedBytes = kStages * kStageBytes + 16 * kStages;
};

struct Maps {
    CUtensorMap x, weight;
};

// What a block does, step by step: each of its tiles, kTileBytes of K at a time.
struct Course {
    int tile, stride, tiles, tiles_across;
    int steps, step = 0;

    __device__ __forceinline__ bool ended() const { return tile >= tiles; }
    __device__ __forceinline__ void advance() {
        if (++step == steps) {
            step = 0;
            tile += stride;
        }
    }
};

template <class Element, class Tile> struct Ring {
    const Maps& maps;
    uint8_t* stages;
    uint64_t *full, *empty;
    int stage = 0, parity = 0;

    __device__ __forceinline__ Ring(const Maps& maps_, uint8_t* shared)
        : maps(maps_), stages(shared), full(reinterpret_cast<uint64_t*>(shared + Tile::kStages * Tile::kStageBytes)),
          empty(full + Tile::kStages) {
        if (threadIdx.x == Tile::kConsumers) {
            prefetch(maps.x);
            prefetch(maps.weight);
            for (int i = 0; i < Tile::kStages; ++i) {
                barrier_init(&full[i], 1);
                barrier_init(&empty[i], Tile::kConsumers / 32);
            }
            barrier_init_fence();
        }
        __syncthreads();
    }
    __device__ __forceinline__ uint8_t* x(int i) const { return stages + i * Tile::kStageBytes; }
    __device__ __forceinline__ uint8_t* weight(int i) const { return x(i) + Tile::kXBytes; }
    __device__ __forceinline__ void advance() {
        if (++stage == Tile::kStages) {
            stage = 0;
            parity ^= 1;
        }
    }

    // What the copying warp does, all of it: the first steps' weights, then, after the wait for the kernel before, the
    // rest.
    __device__ __forceinline__ void copy_all(const Course& course) {
        Course ahead = course;
        int count = 0;
        for (; count < Tile::kStages && !ahead.ended(); ++count, ahead.advance()) {
            if (elected()) {
                barrier_arrive_and_expect(&full[count], Tile::kStageBytes);
                copy_weight(count, ahead);
            }
        }
        wait_for_previous_kernel();
        let_next_kernel_start();
        ahead = course;
        for (int i = 0; i < count; ++i, ahead.advance(), advance()) {
            if (elected()) copy_x(i, ahead);
        }
        for (; !ahead.ended(); ahead.advance(), advance()) {
            barrier_wait(&empty[stage], parity ^ 1);
            if (elected()) {
                barrier_arrive_and_expect(&full[stage], Tile::kStageBytes);
                copy_weight(stage, ahead);
                copy_x(stage, ahead);
            }
        }
    }
    __device__ __forceinline__ void copy_weight(int to, const Course& at) const {
        copy_tile(weight(to), maps.weight, &full[to], at.step * static_cast<int>(kTileBytes / sizeof(Element)), 0, 0, 0,
            at.tile % at.tiles_across * (Tile::kFeatures / kFeatureGroup));
    }
    __device__ __forceinline__ void copy_x(int to, const Course& at) const {
        copy_tile(x(to), maps.x, &full[to], at.step * static_cast<int>(kTileBytes / sizeof(Element)),
            at.tile / at.tiles_across * Tile::kRows);
    }

    // A warp that multiplies is done with a stage.
    __device__ __forceinline__ void release(int used) const {
        if (threadIdx.x % 32 == 0) barrier_arrive(&empty[used]);
    }
};

template <class Element> using SumOf = std::conditional_t<std::is_same_v<Element, int8_t>, int, float>;

// Sums of `steps` steps for this warpgroup's 64 rows.
template <class Element, class Tile>
__device__ __forceinline__ void multiply_tiles(
    SumOf<Element> (&sums)[Tile::kFeatures / 2], Ring<Element, Tile>& ring, int steps) {
    const int x_offset = static_cast<int>(threadIdx.x) / 128 * 64 * kTileBytes;
    int before = 0;
    for (int step = 0; step < steps; ++step) {
        barrier_wait(&ring.full[ring.stage], ring.parity);
        const uint64_t x = tile_descriptor(ring.x(ring.stage) + x_offset);
        const uint64_t weight = tile_descriptor(ring.weight(ring.stage));
        product_fence();
#pragma unroll
        for (int k = 0; k < 4; ++k) {
            WarpgroupProduct<SumOf<Element>, Tile::kFeatures>::add(
                sums, x + 2 * k, weight + 2 * k, step > 0 || k > 0);
        }
        product_commit();
        if (step > 0) {  // while these run, the step before is done with
            product_wait<1>();
            ring.release(before);
        }
        before = ring.stage;
        ring.advance();
    }
    product_wait<0>();
    keep(sums);
    ring.release(before);
}

// Of each group of features a thread has 8 neighbouring ones, from 8 (lane % 4) on, in two rows of its warpgroup's 64:
// this one and the one 8 below.
__device__ __forceinline__ constexpr int index_of(int group, int r, int i) { return 16 * group + i / 2 * 4 + 2 * r + i % 2; }
__device__ __forceinline__ int row_of_thread() { return threadIdx.x / 32 % 4 * 16 + threadIdx.x % 32 / 4; }
template <class Sum, int kSums>
__device__ __forceinline__ void eight_of(Sum (&eight)[8], const Sum (&sums)[kSums], int group, int r) {
#pragma unroll
    for (int i = 0; i < 8; ++i) eight[i] = sums[index_of(group, r, i)];
}

// Over the four lanes that share a row of sums.
__device__ __forceinline__ float sum_of_quad(float x) {
    x += __shfl_xor_sync(~0U, x, 1);
    return x + __shfl_xor_sync(~0U, x, 2);
}

// A warpgroup's sums of a tile to y, a pair of groups at a time: what their residuals are is asked for at once, because
// memory answers late.
template <class Element, class Output, bool kResidual, class Tile>
__device__ __forceinline__ void store_tile(
    const Epilogue& e, const SumOf<Element> (&sums)[Tile::kFeatures / 2], int first_row, int first_feature) {
    constexpr int kGroups = Tile::kFeatures / kFeatureGroup;
    const int row = first_row + row_of_thread();
    first_feature += static_cast<int>(threadIdx.x) % 4 * 8;
#pragma unroll
    for (int pair = 0; pair < kGroups; pair += 2) {
        uint4 residual[2][2];
        if constexpr (kResidual) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const int group = pair + i / 2, feature = first_feature + group * kFeatureGroup;
                if (group < kGroups && feature < e.features && row + i % 2 * 8 < e.rows) {
                    residual[i / 2][i % 2] = *reinterpret_cast<const uint4*>(
                        e.residual + static_cast<long long>(row + i % 2 * 8) * e.features + feature);
                }
            }
        }
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const int group = pair + i, feature = first_feature + group * kFeatureGroup;
            if (group >= kGroups || feature >= e.features) break;
            const Features<Element> features(e, feature);
#pragma unroll
            for (int r = 0; r < 2; ++r) {
                if (row + r * 8 >= e.rows) continue;
                SumOf<Element> eight[8];
                eight_of(eight, sums, group, r);
                store<Element, Output, kResidual>(e, features, row + r * 8, feature, eight, residual[i][r]);
            }
        }
    }
}

// --- the kernel --------------------------------------------------------------------------------------------------------

template <class Element, class Output, bool kResidual, class Tile>
__global__ void __launch_bounds__(Tile::kThreads, Tile::kBlocks)
    product_kernel(const __grid_constant__ Maps maps, const Epilogue epilogue, int steps) {
    extern __shared__ __align__(1024) uint8_t shared[];
    const int tiles_across = (epilogue.features + Tile::kFeatures - 1) / Tile::kFeatures;
    const int tiles = (epilogue.rows + Tile::kRows - 1) / Tile::kRows * tiles_across;
    const int stride = gridDim.x, first_tile = blockIdx.x;
    Ring<Element, Tile> ring(maps, shared);
    if (warp_index() == Tile::kConsumers / 32) {
        ring.copy_all({first_tile, stride, tiles, tiles_across, steps});
        return;
    }
    wait_for_previous_kernel();
    for (int tile = first_tile; tile < tiles; tile += stride) {
        const int first_row = tile / tiles_across * Tile::kRows + static_cast<int>(threadIdx.x) / 128 * 64;
        SumOf<Element> sums[Tile::kFeatures / 2];
        multiply_tiles<Element, Tile>(sums, ring, steps);
        store_tile<Element, Output, kResidual, Tile>(
            epilogue, sums, first_row, tile % tiles_across * Tile::kFeatures);
    }
}

// --- launching ---------------------------------------------------------------------------------------------------------

using EncodeTensorMap = decltype(&cuTensorMapEncodeTiled);

// The driver's function, so that no library but the runtime is linked; null where the driver lacks it.
inline EncodeTensorMap encode_tensor_map() {
    static const EncodeTensorMap function = [] {
        void* found = nullptr;
        cudaDriverEntryPointQueryResult result{};
#if CUDART_VERSION >= 12050
        const cudaError_t error
            = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000, cudaEnableDefault, &result);
#else
        const cudaError_t error = cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &found, cudaEnableDefault, &result);
#endif
        return error == cudaSuccess && result == cudaDriverEntryPointSuccess ? reinterpret_cast<EncodeTensorMap>(found)
                                                                             : nullptr;
    }();
    return function;
}

// The map of a tensor whose innermost elements are neighbours, for boxes of kTileBytes along them.
// sizes, strides (of all but the innermost, in rows of sizes[0] elements) and box: innermost first.
template <class Element, int kRank>
bool make_map(CUtensorMap& map, const void* tensor, const cuuint64_t (&sizes)[kRank], const cuuint64_t (&strides)[kRank - 1],
    const cuuint32_t (&box)[kRank]) {
    const EncodeTensorMap encode = encode_tensor_map();
    if (encode == nullptr) return false;
    constexpr auto kType
        = std::is_same_v<Element, int8_t> ? CU_TENSOR_MAP_DATA_TYPE_UINT8 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
    constexpr cuuint32_t kOnes[5] = {1, 1, 1, 1, 1};
    cuuint64_t bytes[kRank - 1];
    for (int i = 0; i < kRank - 1; ++i) bytes[i] = strides[i] * sizes[0] * sizeof(Element);
    return encode(&map, kType, kRank, const_cast<void*>(tensor), sizes, bytes, box, kOnes, CU_TENSOR_MAP_INTERLEAVE_NONE,
               CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE)
        == CUDA_SUCCESS;
}

// Of x[rows, K], boxes of `box_rows` rows; of weight[N, K], boxes of `box_features` rows in the order that the head of
// this file tells.
template <class Element> bool make_rows_map(CUtensorMap& map, const void* x, int rows, int k, int box_rows) {
    return make_map<Element, 2>(map, x, {static_cast<cuuint64_t>(k), static_cast<cuuint64_t>(rows)}, {1},
        {kTileBytes / sizeof(Element), static_cast<cuuint32_t>(box_rows)});
}
template <class Element> bool make_weight_map(CUtensorMap& map, const void* weight, int n, int k, int box_features) {
    return make_map<Element, 5>(map, weight,
        {static_cast<cuuint64_t>(k), 2, 4, 4, static_cast<cuuint64_t>(n / kFeatureGroup)}, {1, 8, 2, kFeatureGroup},
        {kTileBytes / sizeof(Element), 2, 4, 4, static_cast<cuuint32_t>(box_features / kFeatureGroup)});
}

template <class Element> int steps_of(const Product& p) {
    return static_cast<int>((p.in_features * sizeof(Element) + kTileBytes - 1) / kTileBytes);
}
inline int tiles_of(const Product& p, int rows, int features) {
    return (p.rows + rows - 1) / rows * ((p.out_features + features - 1) / features);
}

// Lets a kernel have more shared memory than every GPU has. Asked for at each launch, because each device must be told.
template <auto KERNEL> cudaError_t allow_shared_memory(int bytes) {
    return cudaFuncSetAttribute(KERNEL, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
}

template <class Element, class Output, bool kResidual, class Tile> int multiply(const Product& p) {
    Maps maps;
    if (!make_rows_map<Element>(maps.x, p.x, p.rows, p.in_features, Tile::kRows)
        || !make_weight_map<Element>(maps.weight, p.weight, p.out_features, p.in_features, Tile::kFeatures)) {
        return cudaErrorInvalidValue;
    }
    constexpr auto kKernel = product_kernel<Element, Output, kResidual, Tile>;
    const cudaError_t error = allow_shared_memory<kKernel>(Tile::kSharedBytes);
    if (error != cudaSuccess) return error;
    const Epilogue epilogue{p.scale, p.bias, static_cast<const __half*>(p.residual), p.y, p.rows, p.out_features, p.gelu,
        p.inverse_y_scale};
    const int blocks = std::min(tiles_of(p, Tile::kRows, Tile::kFeatures), p.multiprocessors * Tile::kBlocks);
    return launch<kKernel>(blocks, Tile::kThreads, Tile::kSharedBytes, p.stream, maps, epilogue, steps_of<Element>(p));
}

}  // namespace swin
