// The MLP branch of a Swin block on Hopper, one kernel, for sm_90a only: LayerNorm, fc1, GELU, fc2 and the residual;
// and the end of the attention branch before it, where that is given: proj, in V2 its LayerNorm, and its residual.
//
// A warpgroup takes 64 rows of x and goes through the hidden features 64 at a time: it multiplies its rows with as much
// of fc1's weight, has the sums in registers, puts GELU over them, rounds them to FP16 and multiplies them, from
// registers, with fc2's columns of the same features (as flash attention does with scores and values). So hidden
// activations, four times as wide as x, are never in memory. One warpgroup's GELU runs beside the others' products. One
// more warpgroup gives its registers to those that multiply; a warp of it copies x and the weights.
//
// With attention, its rows arrive where x's would. From proj's sums comes x as it is from there on: it goes to y, where
// the same threads read it again as the residual, and, as fc1's operand, to the place of attention.
//
// Where all weights fit into shared memory beside x (width 96), they are copied once and the warpgroups go their own
// ways; else they pass through a ring of stages, which the warpgroups of a block share.
#include <algorithm>

#include "Mlp/mlp_sm90_kernel.h"
#include "common/product_sm90.cuh"

namespace swin {
namespace {

constexpr int kHidden = 64;  // hidden features at a time

// kWidth: of x. kWarpgroups: that multiply. kProj: with attention. kChunks: how many times kHidden hidden features
// there are, where weights stay in shared memory; 0 where they do not.
template <int kWidth_, int kWarpgroups_, bool kProj_, int kChunks = 0> struct Shape {
    static constexpr int kWidth = kWidth_, kWarpgroups = kWarpgroups_;
    static constexpr bool kProj = kProj_, kWeightsStay = kChunks > 0;
    static constexpr int kConsumers = 128 * kWarpgroups, kThreads = kConsumers + 128;
    // Tiles along x's width are blocks, of the widest rows that leave none half empty.
    static constexpr int kRowBytes = kWidth % 64 == 0 ? 128 : 64, kBlockWidth = kRowBytes / 2;
    static constexpr int kBlocks = kWidth / kBlockWidth;
    static constexpr int kBlockBytes = 64 * kRowBytes, kXBytes = kBlocks * kBlockBytes;  // of a warpgroup's rows
    static constexpr int kXBuffers = kWeightsStay ? 1 : 2;
    static constexpr int kWeight1Bytes = kBlocks * kBlockBytes, kStageBytes = kWeight1Bytes + kWidth * kTileBytes;
    // proj's weight takes stages too, as many blocks in each as there is room for.
    static constexpr int kProjBlockBytes = kWidth * kRowBytes;
    static constexpr int kProjBlocks
        = kStageBytes / kProjBlockBytes < kBlocks ? kStageBytes / kProjBlockBytes : kBlocks;
    static constexpr int kProjStages = kProj ? (kBlocks + kProjBlocks - 1) / kProjBlocks : 0;
    static constexpr int kForBarriers = 256;  // at most
    static constexpr int kStagesThatFit
        = (kSharedOfBlock - kForBarriers - kXBuffers * kWarpgroups * kXBytes) / kStageBytes;
    static constexpr int kStages = kWeightsStay ? kProjStages + kChunks : kStagesThatFit < 6 ? kStagesThatFit : 6;
    struct Barriers {
        Pipeline<kStages, !kWeightsStay> weights;
        Pipeline<kXBuffers * kWarpgroups> x;  // kXBuffers stages for each warpgroup
    };
    static constexpr int kStagesOffset = kXBuffers * kWarpgroups * kXBytes;
    static constexpr int kBarriersOffset = kStagesOffset + kStages * kStageBytes;
    static constexpr int kSharedBytes = kBarriersOffset + static_cast<int>(sizeof(Barriers));
    static constexpr int kRegisters = consumer_registers<kWarpgroups, (kWarpgroups > 1)>(kThreads, 1);
    static_assert(kWidth % kBlockWidth == 0 && kWidth % kFeatureGroup == 0);
    static_assert(kWidth <= 256 && kHidden <= 256, "a box of a tensor map, and a product, have at most 256");
    static_assert(
        kBlockBytes % kTileAlignment == 0 && kProjBlockBytes % kTileAlignment == 0 && kStageBytes % kTileAlignment == 0,
        "swizzled tiles begin at multiples");
    static_assert(kStages >= 2 && kStages <= kStagesThatFit);
    static_assert(kProjStages <= kStages, "proj takes all of its stages before it gives one back");
    static_assert(sizeof(Barriers) <= kForBarriers && kBarriersOffset % alignof(Barriers) == 0);
    static_assert(kSharedBytes <= kSharedOfBlock);
    static_assert(kWidth / 2 + kHidden / 2 + kHidden / 4 + 32 <= kRegisters,
        "fc2's and fc1's sums, activations and addresses fit into registers");
};

struct MlpMaps {
    CUtensorMap x;  // or attention
    CUtensorMap proj, weight1, weight2;
};

struct Norm {
    const float *gamma, *beta;
    float epsilon;
};

struct MlpArguments {
    Norm norm;
    const __half* bias1;
    Epilogue epilogue;  // of fc2
    int chunks;  // of kHidden
    // With attention:
    const __half *x, *proj_bias;
    Norm proj_norm;  // V2
};

template <class Shape> struct Shared {
    uint8_t *xs, *stages;
    typename Shape::Barriers& barriers;

    __device__ __forceinline__ explicit Shared(uint8_t* memory)
        : xs(memory), stages(memory + Shape::kStagesOffset),
          barriers(*reinterpret_cast<typename Shape::Barriers*>(memory + Shape::kBarriersOffset)) {}
    __device__ __forceinline__ uint8_t* weight1(int stage) const { return stages + stage * Shape::kStageBytes; }
    __device__ __forceinline__ uint8_t* weight2(int stage) const { return weight1(stage) + Shape::kWeight1Bytes; }
    __device__ __forceinline__ uint8_t* proj(int stage, int block) const {
        return weight1(stage) + block % Shape::kProjBlocks * Shape::kProjBlockBytes;
    }
    __device__ __forceinline__ uint8_t* x(int stage) const { return xs + stage * Shape::kXBytes; }
};

// Where a warpgroup's number-th rows are in the ring of x.
template <class Shape>
__device__ __forceinline__ PipelineState<Shape::kXBuffers * Shape::kWarpgroups> place_of_rows(
    int warpgroup, int number) {
    return {number % Shape::kXBuffers * Shape::kWarpgroups + warpgroup, number / Shape::kXBuffers & 1};
}

// What a block does: `count` times 64 rows for each warpgroup.
template <class Shape> struct Rows {
    int count;

    __device__ __forceinline__ explicit Rows(int rows) {
        const int all = (rows + 64 * Shape::kWarpgroups - 1) / (64 * Shape::kWarpgroups);
        count = (all - static_cast<int>(blockIdx.x) + static_cast<int>(gridDim.x) - 1) / static_cast<int>(gridDim.x);
    }
    __device__ __forceinline__ int first(int warpgroup, int number) const {
        return ((static_cast<int>(blockIdx.x) + number * static_cast<int>(gridDim.x)) * Shape::kWarpgroups + warpgroup)
            * 64;
    }
};

// What the copying warp does. `steps`: stages of weights that 64 rows go through, proj's and then fc1's and fc2's.
template <class Shape>
__device__ __forceinline__ void copy_all(
    const MlpMaps& maps, const Shared<Shape>& shared, int steps, const Rows<Shape>& rows) {
    using State = PipelineState<Shape::kStages, !Shape::kWeightsStay>;
    auto copy_weights = [&](const State& at, int step) {
        auto& pipeline = shared.barriers.weights;
        if (step < Shape::kProjStages) {
            const int first = step * Shape::kProjBlocks, end = min(first + Shape::kProjBlocks, Shape::kBlocks);
            pipeline.producer_expect(at, (end - first) * Shape::kProjBlockBytes);
            for (int block = first; block < end; ++block) {
                tma_load(shared.proj(at.stage, block), maps.proj, pipeline.barrier(at), block * Shape::kBlockWidth, 0,
                    0, 0, 0);
            }
            return;
        }
        const int hidden = (step - Shape::kProjStages) * kHidden;
        pipeline.producer_expect(at, Shape::kStageBytes);
#pragma unroll
        for (int block = 0; block < Shape::kBlocks; ++block) {
            tma_load(shared.weight1(at.stage) + block * Shape::kBlockBytes, maps.weight1, pipeline.barrier(at),
                block * Shape::kBlockWidth, hidden);
        }
        tma_load(shared.weight2(at.stage), maps.weight2, pipeline.barrier(at), hidden, 0, 0, 0, 0);
    };
    auto copy_x = [&](int number) {
        if (number >= rows.count) return;
        for (int warpgroup = 0; warpgroup < Shape::kWarpgroups; ++warpgroup) {
            auto& pipeline = shared.barriers.x;
            const auto at = place_of_rows<Shape>(warpgroup, number);
            if (number >= Shape::kXBuffers) pipeline.producer_acquire(at);
            if (!elect_one()) continue;
            pipeline.producer_expect(at, Shape::kXBytes);
#pragma unroll
            for (int block = 0; block < Shape::kBlocks; ++block) {
                tma_load(shared.x(at.stage) + block * Shape::kBlockBytes, maps.x, pipeline.barrier(at),
                    block * Shape::kBlockWidth, rows.first(warpgroup, number));
            }
        }
    };

    // Weights are constants: the first are copied before the wait for the kernel before.
    const int ready = min(Shape::kStages, steps);
    for (int step = 0; step < ready; ++step) {
        if (elect_one()) copy_weights({step, 0}, step);
    }
    griddepcontrol_wait();
    griddepcontrol_launch_dependents();
    copy_x(0);
    if constexpr (Shape::kWeightsStay) {
        for (int number = 1; number < rows.count; ++number) copy_x(number);
    } else {
        State at{ready % Shape::kStages, ready / Shape::kStages};
        copy_x(1);
        for (int number = 0; number < rows.count; ++number) {
            for (int step = number == 0 ? ready : 0; step < steps; ++step) {
                shared.barriers.weights.producer_acquire(at);
                if (elect_one()) copy_weights(at, step);
                at.advance();
                // The next rows after the first step for these: by then those before are done with their place.
                if (step == 0 && number > 0) copy_x(number + 1);
            }
        }
    }
}

// Where 8 features of a row, the chunk-th 8, lie in the tile of a warpgroup's rows.
template <class Shape> __device__ __forceinline__ uint4* place_of(uint8_t* tile, int row, int chunk) {
    constexpr int kChunks = Shape::kRowBytes / 16;  // of a block's row
    return reinterpret_cast<uint4*>(
        tile + chunk / kChunks * Shape::kBlockBytes + swizzled_offset<Shape::kRowBytes>(row, chunk % kChunks));
}
// What this warpgroup stored in its tile may be multiplied.
__device__ __forceinline__ void tile_is_written() {
    fence_proxy_async();
    warpgroup_sync(static_cast<int>(threadIdx.x) / 128);
}

// LayerNorm of a warpgroup's 64 rows of x in place, two threads a row. Mean first, then the differences; x is read from
// shared memory each time, because a wide row would fill the registers.
template <class Shape>
__device__ __forceinline__ void normalise_x(uint8_t* x, const Norm& norm) {
    constexpr int kChunks = Shape::kWidth / 16;  // of 8 features, a thread's
    const int row = threadIdx.x % 128 / 2, first_chunk = threadIdx.x % 2 * kChunks;
    auto place = [&](int i) { return place_of<Shape>(x, row, first_chunk + i); };
    float value[8], mean = 0.0F, deviation = 0.0F;
#pragma unroll 4
    for (int i = 0; i < kChunks; ++i) {
        unpack_halves(value, *place(i));
#pragma unroll
        for (int j = 0; j < 8; ++j) mean += value[j];
    }
    mean = (mean + __shfl_xor_sync(~0U, mean, 1)) * (1.0F / Shape::kWidth);
#pragma unroll 4
    for (int i = 0; i < kChunks; ++i) {
        unpack_halves(value, *place(i));
#pragma unroll
        for (int j = 0; j < 8; ++j) deviation = fmaf(value[j] - mean, value[j] - mean, deviation);
    }
    deviation += __shfl_xor_sync(~0U, deviation, 1);
    deviation = rsqrtf(fmaf(deviation, 1.0F / Shape::kWidth, norm.epsilon));
#pragma unroll 2
    for (int i = 0; i < kChunks; ++i) {
        float gamma[8], beta[8];
        load_floats(gamma, norm.gamma + (first_chunk + i) * 8);
        load_floats(beta, norm.beta + (first_chunk + i) * 8);
        unpack_halves(value, *place(i));
#pragma unroll
        for (int j = 0; j < 8; ++j) value[j] = fmaf((value[j] - mean) * deviation, gamma[j], beta[j]);
        *place(i) = packed_halves(value);
    }
    tile_is_written();
}

// x of a warpgroup's rows in the places of fc2's sums: 8 neighbouring features of a group in each.
template <int kWidth> using Residual = uint4[kWidth / kFeatureGroup][2];
template <int kWidth>
__device__ __forceinline__ void load_residual(Residual<kWidth>& x, const __half* tokens, int rows, int first_row) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        const int row = min(first_row + row_of_thread() + 8 * r, rows - 1);  // past the last: anything, and no branch
        const __half* from = tokens + static_cast<long long>(row) * kWidth + threadIdx.x % 4 * 8;
#pragma unroll
        for (int group = 0; group < kWidth / kFeatureGroup; ++group) {
            x[group][r] = *reinterpret_cast<const uint4*>(from + group * kFeatureGroup);
        }
    }
}

template <int kWidth>
__device__ __forceinline__ void store_to_y(const Epilogue& e, int row, int feature, const uint4& eight) {
    if (row >= e.rows) return;
    *reinterpret_cast<uint4*>(static_cast<__half*>(e.y) + static_cast<long long>(row) * kWidth + feature) = eight;
}

// In place of a warpgroup's sums, and of their `mean`'s sums over a thread's features: differences to a row's mean; and
// what normalises them.
template <int kWidth>
__device__ __forceinline__ void centre(
    float (&sums)[kWidth / 2], float (&mean)[2], float (&deviation)[2], float epsilon) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        mean[r] = quad_sum(mean[r]) * (1.0F / kWidth);
        deviation[r] = rsqrtf(fmaf(centre_row(sums, r, mean[r]), 1.0F / kWidth, epsilon));
    }
}

// y of a warpgroup's rows: x and fc2's sums with bias, normalised where LN comes after. In place, because a wide row
// leaves no registers for a copy; mean first, then the differences.
template <int kWidth, bool kNormLast>
__device__ __forceinline__ void store_rows(
    const MlpArguments& a, float (&sums)[kWidth / 2], const Residual<kWidth>& x, int first_row) {
    constexpr int kGroups = kWidth / kFeatureGroup;
    const int first_feature = threadIdx.x % 4 * 8;
    float mean[2] = {}, deviation[2] = {};
#pragma unroll
    for (int group = 0; group < kGroups; ++group) {
        float bias[8];
        unpack_halves(
            bias, ld_global_nc(static_cast<const __half*>(a.epilogue.bias) + first_feature + group * kFeatureGroup));
#pragma unroll
        for (int r = 0; r < 2; ++r) {
#pragma unroll
            for (int i = 0; i < 8; ++i) mean[r] += sums[index_of(group, r, i)] += bias[i];
        }
    }
    if constexpr (kNormLast) centre<kWidth>(sums, mean, deviation, a.norm.epsilon);
#pragma unroll
    for (int group = 0; group < kGroups; ++group) {
        const int feature = first_feature + group * kFeatureGroup;
        float gamma[8], beta[8];
        if constexpr (kNormLast) {
            load_floats(gamma, a.norm.gamma + feature);
            load_floats(beta, a.norm.beta + feature);
        }
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            float value[8];
            unpack_halves(value, x[group][r]);
#pragma unroll
            for (int i = 0; i < 8; ++i) {
                const float sum = sums[index_of(group, r, i)];
                value[i] += kNormLast ? fmaf(sum * deviation[r], gamma[i], beta[i]) : sum;
            }
            store_to_y<kWidth>(a.epilogue, first_row + row_of_thread() + 8 * r, feature, packed_halves(value));
        }
    }
}

// From proj's sums of a warpgroup's rows: x with the attention branch added, to y, and fc1's operand, to `tile`. In V1
// that is LN of it.
template <class Shape, bool kNormFirst>
__device__ __forceinline__ void add_attention(const MlpArguments& a, float (&sums)[Shape::kWidth / 2],
    const Residual<Shape::kWidth>& x, int first_row, uint8_t* tile) {
    constexpr int kWidth = Shape::kWidth, kGroups = kWidth / kFeatureGroup;
    const int quarter = threadIdx.x % 4;
    float mean[2] = {}, deviation[2];
#pragma unroll
    for (int group = 0; group < kGroups; ++group) {
        const int feature = group * kFeatureGroup + quarter * 8;
        float bias[8];
        unpack_halves(bias, ld_global_nc(a.proj_bias + feature));
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            float value[8] = {};
            if constexpr (kNormFirst) unpack_halves(value, x[group][r]);
#pragma unroll
            for (int i = 0; i < 8; ++i) {
                value[i] += sums[index_of(group, r, i)] + bias[i];
                sums[index_of(group, r, i)] = value[i];
                mean[r] += value[i];
            }
            if constexpr (kNormFirst) {
                store_to_y<kWidth>(a.epilogue, first_row + row_of_thread() + 8 * r, feature, packed_halves(value));
            }
        }
    }
    const Norm& norm = kNormFirst ? a.norm : a.proj_norm;
    centre<kWidth>(sums, mean, deviation, norm.epsilon);
    warpgroup_sync(static_cast<int>(threadIdx.x) / 128);  // all have multiplied what lay in the tile
#pragma unroll
    for (int group = 0; group < kGroups; ++group) {
        const int feature = group * kFeatureGroup + quarter * 8;
        float gamma[8], beta[8];
        load_floats(gamma, norm.gamma + feature);
        load_floats(beta, norm.beta + feature);
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            float value[8] = {};
            if constexpr (!kNormFirst) unpack_halves(value, x[group][r]);
#pragma unroll
            for (int i = 0; i < 8; ++i) {
                value[i] += fmaf(sums[index_of(group, r, i)] * deviation[r], gamma[i], beta[i]);
            }
            const uint4 packed = packed_halves(value);
            if constexpr (!kNormFirst) {
                store_to_y<kWidth>(a.epilogue, first_row + row_of_thread() + 8 * r, feature, packed);
            }
            *place_of<Shape>(tile, row_of_thread() + 8 * r, feature / 8) = packed;
        }
    }
    tile_is_written();
}

template <class Shape, bool kNormFirst>
__global__ void __launch_bounds__(Shape::kThreads, 1)
    mlp_kernel(const __grid_constant__ MlpMaps maps, const MlpArguments a) {
    extern __shared__ __align__(kTileAlignment) uint8_t memory[];
    const Shared<Shape> shared(memory);
    if (threadIdx.x == Shape::kConsumers) {
        prefetch_tensormap(maps.x);
        if constexpr (Shape::kProj) prefetch_tensormap(maps.proj);
        prefetch_tensormap(maps.weight1);
        prefetch_tensormap(maps.weight2);
        shared.barriers.weights.init(1, Shape::kConsumers / 32);
        shared.barriers.x.init(1, 4);
        fence_barrier_init();
    }
    __syncthreads();

    const Rows<Shape> rows(a.epilogue.rows);
    const int warpgroup = warp_index() / 4;
    if (warpgroup == Shape::kWarpgroups) {
        if constexpr (Shape::kWarpgroups > 1) warpgroup_reg_dealloc<RegisterSplit<Shape::kWarpgroups>::kProducer>();
        if (warp_index() % 4 == 0) copy_all(maps, shared, Shape::kProjStages + a.chunks, rows);
        return;
    }
    if constexpr (Shape::kWarpgroups > 1) warpgroup_reg_alloc<RegisterSplit<Shape::kWarpgroups>::kConsumer>();
    griddepcontrol_wait();
    auto& weights = shared.barriers.weights;
    PipelineState<Shape::kStages, !Shape::kWeightsStay> at;
    for (int number = 0; number < rows.count; ++number) {
        const auto place = place_of_rows<Shape>(warpgroup, number);
        const int first_row = rows.first(warpgroup, number);
        uint8_t* const x = shared.x(place.stage);
        shared.barriers.x.consumer_wait(place);

        float hidden[kHidden / 2], sums[Shape::kWidth / 2];
        if constexpr (Shape::kProj) {
            const int first_stage = at.stage;
#pragma unroll
            for (int block = 0; block < Shape::kBlocks; ++block) {
                if (block % Shape::kProjBlocks == 0) {
                    if (block > 0) at.advance();
                    weights.consumer_wait(at);
                    wgmma_fence();
                }
#pragma unroll
                for (int k = 0; k < Shape::kBlockWidth / 16; ++k) {
                    WgmmaSS<float, Shape::kWidth>::mma(sums,
                        make_smem_desc<Shape::kRowBytes>(x + block * Shape::kBlockBytes) + 2 * k,
                        make_smem_desc<Shape::kRowBytes>(shared.proj(at.stage, block)) + 2 * k, block > 0 || k > 0);
                }
            }
            wgmma_commit();
            at.advance();
            Residual<Shape::kWidth> tokens;
            load_residual<Shape::kWidth>(tokens, a.x, a.epilogue.rows, first_row);
            wgmma_wait<0>();
            fence_operand(sums);
#pragma unroll
            for (int i = 0; i < Shape::kProjStages; ++i) weights.consumer_release((first_stage + i) % Shape::kStages);
            add_attention<Shape, kNormFirst>(a, sums, tokens, first_row, x);
        } else if constexpr (kNormFirst) {
            normalise_x<Shape>(x, a.norm);
        }

        uint32_t activations[4][4] = {};
        // fc1: the stage's 64 hidden features.
        auto start_fc1 = [&] {
            weights.consumer_wait(at);
            wgmma_fence();
#pragma unroll
            for (int k = 0; k < Shape::kWidth / 16; ++k) {
                constexpr int kSteps = Shape::kBlockWidth / 16;  // of a block
                const int offset = k / kSteps * Shape::kBlockBytes;
                WgmmaSS<float, kHidden>::mma(hidden, make_smem_desc<Shape::kRowBytes>(x + offset) + k % kSteps * 2,
                    make_smem_desc<Shape::kRowBytes>(shared.weight1(at.stage) + offset) + k % kSteps * 2, k > 0);
            }
            wgmma_commit();
        };
        int before = 0;
        start_fc1();
        for (int chunk = 0; chunk < a.chunks; ++chunk) {
            uint32_t bias[kHidden / 8];
#pragma unroll
            for (int j = 0; j < kHidden / 8; ++j) {
                bias[j]
                    = __ldg(reinterpret_cast<const uint32_t*>(a.bias1 + chunk * kHidden + j * 8 + threadIdx.x % 4 * 2));
            }
            wgmma_wait<0>();
            fence_operand(hidden);
#pragma unroll
            for (int k = 0; k < 4; ++k) fence_operand(activations[k]);
            if (chunk > 0) weights.consumer_release(before);
            if (chunk == a.chunks - 1) shared.barriers.x.consumer_release(place);
#pragma unroll
            for (int j = 0; j < kHidden / 8; ++j) {
                const float2 b = Packed<__half>::unpack(bias[j]);
#pragma unroll
                for (int r = 0; r < 2; ++r) {
                    activations[j / 2][j % 2 * 2 + r] = Packed<__half>::pack(
                        gelu(hidden[4 * j + 2 * r] + b.x), gelu(hidden[4 * j + 2 * r + 1] + b.y));
                }
            }
            wgmma_fence();
            const uint64_t weight2 = make_smem_desc(shared.weight2(at.stage));
#pragma unroll
            for (int k = 0; k < 4; ++k) {
                WgmmaRS<Shape::kWidth>::mma(sums, activations[k], weight2 + 2 * k, chunk > 0 || k > 0);
            }
            wgmma_commit();
            before = at.stage;
            at.advance();
            if (chunk + 1 < a.chunks) start_fc1();
        }
        Residual<Shape::kWidth> residual;
        load_residual<Shape::kWidth>(residual, a.epilogue.residual, a.epilogue.rows, first_row);
        wgmma_wait<0>();
        fence_operand(sums);
#pragma unroll
        for (int k = 0; k < 4; ++k) fence_operand(activations[k]);
        weights.consumer_release(before);
        store_rows<Shape::kWidth, !kNormFirst>(a, sums, residual, first_row);
    }
}

template <class Shape, bool kNormFirst> int launch_mlp(const SwinMlp& a, int multiprocessors, cudaStream_t stream) {
    const int rows = static_cast<int>(a.rows);
    constexpr int kRowBytes = Shape::kRowBytes;
    MlpMaps maps{};
    bool made = make_rows_map<__half, kRowBytes>(maps.x, Shape::kProj ? a.attention : a.x, rows, a.width, 64)
        && make_rows_map<__half, kRowBytes>(maps.weight1, a.weight1, a.hidden, a.width, kHidden)
        && make_weight_map<__half>(maps.weight2, a.weight2, a.width, a.hidden, Shape::kWidth);
    if constexpr (Shape::kProj) {
        made = made && make_weight_map<__half, kRowBytes>(maps.proj, a.proj_weight, a.width, a.width, Shape::kWidth);
    }
    if (!made) return cudaErrorInvalidValue;
    constexpr auto kKernel = mlp_kernel<Shape, kNormFirst>;
    const cudaError_t error = allow_shared_memory<kKernel>(Shape::kSharedBytes);
    if (error != cudaSuccess) return error;
    const void* residual = Shape::kProj ? a.y : a.x;
    MlpArguments arguments{};
    arguments.norm = {a.gamma, a.beta, a.epsilon};
    arguments.bias1 = static_cast<const __half*>(a.bias1);
    arguments.epilogue.bias = a.bias2;
    arguments.epilogue.residual = static_cast<const __half*>(residual);
    arguments.epilogue.y = a.y;
    arguments.epilogue.rows = rows;
    arguments.epilogue.features = a.width;
    arguments.chunks = a.hidden / kHidden;
    arguments.x = static_cast<const __half*>(a.x);
    arguments.proj_bias = static_cast<const __half*>(a.proj_bias);
    arguments.proj_norm = {a.proj_gamma, a.proj_beta, a.epsilon};
    const int blocks = (rows + 64 * Shape::kWarpgroups - 1) / (64 * Shape::kWarpgroups);
    return launch<kKernel>(
        std::min(blocks, multiprocessors), Shape::kThreads, Shape::kSharedBytes, stream, maps, arguments);
}

template <class Shape> int with_norm(const SwinMlp& a, int multiprocessors, cudaStream_t stream) {
    return a.norm_first == 1 ? launch_mlp<Shape, true>(a, multiprocessors, stream)
                             : launch_mlp<Shape, false>(a, multiprocessors, stream);
}

template <bool kProj> int of_width(const SwinMlp& a, int multiprocessors, cudaStream_t stream) {
    // One warpgroup a block where several would leave multiprocessors idle.
    const bool few = a.rows <= 64 * multiprocessors;
    switch (a.width) {
    case 96:
        if (few) return with_norm<Shape<96, 1, kProj>>(a, multiprocessors, stream);
        if (a.hidden == 4 * 96) return with_norm<Shape<96, 3, kProj, 4 * 96 / kHidden>>(a, multiprocessors, stream);
        return with_norm<Shape<96, 3, kProj>>(a, multiprocessors, stream);
    case 128:
        return few ? with_norm<Shape<128, 1, kProj>>(a, multiprocessors, stream)
                   : with_norm<Shape<128, 2, kProj>>(a, multiprocessors, stream);
    case 192:
        return few ? with_norm<Shape<192, 1, kProj>>(a, multiprocessors, stream)
                   : with_norm<Shape<192, 2, kProj>>(a, multiprocessors, stream);
    default: return cudaErrorInvalidValue;
    }
}

}  // namespace

int mlp_sm90(const SwinMlp& a, int multiprocessors, cudaStream_t stream) {
    return a.attention != nullptr ? of_width<true>(a, multiprocessors, stream)
                                  : of_width<false>(a, multiprocessors, stream);
}

}  // namespace swin
