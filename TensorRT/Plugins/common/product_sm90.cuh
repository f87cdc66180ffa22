// Matrix products for Hopper (compute capability 9.0a) with the epilogues of Swin's linear layers:
// y = act(x weight^T [* scale] + bias) + residual.
//
// A block computes tile after tile of y: one warp has tiles of x and weight copied into a ring of stages in shared
// memory, warpgroups multiply them. So that the tensor cores work while sums become y (Swin's products are short, K is
// 96 to 768 in most of them, and their epilogues as long), either teams of warpgroups take turns, each multiplying
// while the others are in their epilogues, or several blocks share a multiprocessor.
// Weights are copied before the kernel waits for the one before it: they are constants.
#pragma once

#include <algorithm>
#include <type_traits>

#include "accumulators_sm90.cuh"
#include "gelu.cuh"
#include "launch.cuh"
#include "pipeline_sm90.cuh"
#include "quantize.cuh"

namespace swin {

struct Product {
    const void *x, *weight;  // [rows, K] and [N, K], INT8 or FP16
    const float* scale;  // [N]; INT8 only
    const void* bias;  // [N]; FP32 where x is INT8, FP16 where it is FP16
    const void* residual;  // [rows, N] FP16, or null
    void* y;  // [rows, N]
    int rows, in_features, out_features;
    bool gelu;
    float inverse_y_scale;  // y is INT8
    int tile;  // 0: the fastest; n: the n-th of those that there are
    int multiprocessors;
    cudaStream_t stream;
};

// --- epilogue --------------------------------------------------------------------------------------------------------

enum class After { kNothing, kGelu, kResidual };  // the bias

struct Epilogue {
    const float* scale;
    const void* bias;
    const __half* residual;
    void* y;
    int rows, features;
    float inverse_y_scale;
};

// What 8 neighbouring features of y need beside the sums; of features past the last, anything.
template <class Element> struct Features;
template <> struct Features<__half> {
    uint4 bias;
    __device__ __forceinline__ Features(const Epilogue& e, int feature)
        : bias(ld_global_nc(static_cast<const __half*>(e.bias) + min(feature, e.features - 8))) {}
    __device__ __forceinline__ void add_to(float (&value)[8], const float (&sums)[8]) const {
        unpack_halves(value, bias);
#pragma unroll
        for (int i = 0; i < 8; ++i) value[i] += sums[i];
    }
};
template <> struct Features<int8_t> {
    float scale[8], bias[8];
    __device__ __forceinline__ Features(const Epilogue& e, int feature) {
        feature = min(feature, e.features - 8);
        load_floats(scale, e.scale + feature);
        load_floats(bias, static_cast<const float*>(e.bias) + feature);
    }
    __device__ __forceinline__ void add_to(float (&value)[8], const int (&sums)[8]) const {
#pragma unroll
        for (int i = 0; i < 8; ++i) value[i] = fmaf(static_cast<float>(sums[i]), scale[i], bias[i]);
    }
};

// y of 8 neighbouring features of a row, from their sums.
template <After AFTER, class Element, class Output, class Sum>
__device__ __forceinline__ void store(
    const Epilogue& e, const Features<Element>& features, Output* y, const Sum (&sums)[8], const uint4& residual) {
    float value[8];
    features.add_to(value, sums);
    if constexpr (AFTER == After::kResidual) {
        float addend[8];
        unpack_halves(addend, residual);
#pragma unroll
        for (int i = 0; i < 8; ++i) value[i] += addend[i];
    }
    if constexpr (std::is_same_v<Output, int8_t>) {
        if constexpr (AFTER == After::kGelu) {
            __half2 pairs[4];
#pragma unroll
            for (int i = 0; i < 4; ++i) pairs[i] = gelu(__floats2half2_rn(value[2 * i], value[2 * i + 1]));
            store_quantized_but_for_ties(y, pairs, e.inverse_y_scale);
        } else {
            store_quantized_but_for_ties(y, value, e.inverse_y_scale);
        }
    } else {
        if constexpr (AFTER == After::kGelu) {
#pragma unroll
            for (int i = 0; i < 8; ++i) value[i] = gelu(value[i]);
        }
        *reinterpret_cast<uint4*>(y) = packed_halves(value);
    }
}

// --- the ring of stages ----------------------------------------------------------------------------------------------

// kRows x kFeatures of y at a time, a warpgroup to 64 rows: a team. kTeams teams to a block, each with tiles of its
// own; kBlocks blocks to a multiprocessor.
template <int kRows_, int kFeatures_, int kBlocks_, int kTeams_ = 1> struct Tile {
    static constexpr int kRows = kRows_, kFeatures = kFeatures_, kBlocks = kBlocks_, kTeams = kTeams_;
    static constexpr int kTeam = 2 * kRows;  // threads
    static constexpr int kConsumers = kTeams * kTeam;  // threads that multiply
    static constexpr int kThreads = kConsumers + (kTeams > 1 ? 128 : 32);
    static constexpr int kXBytes = kRows * kTileBytes, kStageBytes = (kRows + kFeatures) * kTileBytes;
    static constexpr int kRegisters = consumer_registers<kConsumers / 128, (kTeams > 1)>(kThreads, kBlocks);
    static_assert(kRows % 64 == 0, "a warpgroup multiplies 64 rows");
    static_assert(kFeatures % kFeatureGroup == 0, "a thread's sums are whole groups of features");
    static_assert(kRows <= 256 && kFeatures <= 256, "a box of a tensor map, and a product, have at most 256");
    static_assert(kTeams == 1 || kBlocks == 1, "teams split the registers of a whole multiprocessor");
    static_assert(kThreads <= 1024);
    static_assert(
        kXBytes % kTileAlignment == 0 && kStageBytes % kTileAlignment == 0, "swizzled tiles begin at multiples");
    static_assert(kFeatures / 2 + 48 <= kRegisters, "sums, and what an epilogue takes, fit into registers");
};

// What is in a block's shared memory: stages, an INT8 y on its way to memory, barriers.
template <class Output, class Tile> struct SharedMemory {
    // Of INT8 four threads have 32 bytes of a row, too few for a store to memory. By way of shared memory a warp's 16
    // rows go there in one piece. Tiles that share a multiprocessor are taken where there are few, and would only wait
    // longer for it.
    static constexpr bool kStagesY = std::is_same_v<Output, int8_t> && Tile::kBlocks == 1;
    static constexpr int kWarpRows = 16, kWarpYBytes = kStagesY ? kWarpRows * Tile::kFeatures : 0;
    static constexpr int kYBytes = Tile::kConsumers / 32 * kWarpYBytes;
    static constexpr int kForBarriers = 256;  // at most
    static constexpr int kStagesThatFit
        = (kSharedOfMultiprocessor / Tile::kBlocks - kSharedOfSystem - kForBarriers - kYBytes) / Tile::kStageBytes;
    static constexpr int kStages = kStagesThatFit < 8 ? kStagesThatFit : 8;
    struct Barriers {
        Pipeline<kStages> pipeline;
        OrderedTurns<Tile::kTeams> turns;  // to multiply
    };
    static constexpr int kYOffset = kStages * Tile::kStageBytes, kBarriersOffset = kYOffset + kYBytes;
    static constexpr int kBytes = kBarriersOffset + static_cast<int>(sizeof(Barriers));
    static_assert(kStages >= 2, "one is copied while another is multiplied");
    static_assert(sizeof(Barriers) <= kForBarriers && kBarriersOffset % alignof(Barriers) == 0);
    static_assert(kWarpYBytes % 128 == 0 && kYOffset % 128 == 0, "TMA stores from multiples of 128 bytes");
    static_assert((kBytes + kSharedOfSystem) * Tile::kBlocks <= kSharedOfMultiprocessor);
};

struct Maps {
    CUtensorMap x, weight, y;  // y: INT8 only
};

// What a block does, step by step: each of its tiles, kTileBytes of K at a time.
struct Course {
    int tile, stride, tiles, tiles_across;
    int steps, step = 0;

    // A stride may be negative: then the tile after the last is below 0.
    __device__ __forceinline__ bool ended() const {
        return static_cast<unsigned>(tile) >= static_cast<unsigned>(tiles);
    }
    __device__ __forceinline__ void advance() {
        if (++step == steps) {
            step = 0;
            tile += stride;
        }
    }
};

// The ring: a thread's view of it, and its place in it.
template <class Element, class Tile, int kStages> struct Ring {
    const Maps& maps;
    uint8_t* stages;
    Pipeline<kStages>& pipeline;
    PipelineState<kStages> at;

    __device__ __forceinline__ uint8_t* x(int stage) const { return stages + stage * Tile::kStageBytes; }
    __device__ __forceinline__ uint8_t* weight(int stage) const { return x(stage) + Tile::kXBytes; }

    // What the copying warp does, all of it: the first steps' weights, then, after the wait for the kernel before, the
    // rest.
    __device__ __forceinline__ void copy_all(const Course& course) {
        Course ahead = course;
        PipelineState<kStages> first;
        int count = 0;
        for (; count < kStages && !ahead.ended(); ++count, ahead.advance(), first.advance()) {
            if (elect_one()) {
                pipeline.producer_expect(first, Tile::kStageBytes);
                copy_weight(first, ahead);
            }
        }
        griddepcontrol_wait();
        griddepcontrol_launch_dependents();
        ahead = course;
        for (int i = 0; i < count; ++i, ahead.advance(), at.advance()) {
            if (elect_one()) copy_x(at, ahead);
        }
        for (; !ahead.ended(); ahead.advance(), at.advance()) {
            pipeline.producer_acquire(at);
            if (elect_one()) {
                pipeline.producer_expect(at, Tile::kStageBytes);
                copy_weight(at, ahead);
                copy_x(at, ahead);
            }
        }
    }
    __device__ __forceinline__ void copy_weight(const PipelineState<kStages>& to, const Course& from) const {
        tma_load(weight(to.stage), maps.weight, pipeline.barrier(to),
            from.step * static_cast<int>(kTileBytes / sizeof(Element)), 0, 0, 0,
            from.tile % from.tiles_across * (Tile::kFeatures / kFeatureGroup));
    }
    __device__ __forceinline__ void copy_x(const PipelineState<kStages>& to, const Course& from) const {
        tma_load(x(to.stage), maps.x, pipeline.barrier(to), from.step * static_cast<int>(kTileBytes / sizeof(Element)),
            from.tile / from.tiles_across * Tile::kRows);
    }
};

// Sums of `steps` steps for this warpgroup's 64 rows. A team's turn to multiply ends when its products are under way.
template <class Element, class Tile, int kStages>
__device__ __forceinline__ void multiply_tiles(SumOf<Element> (&sums)[Tile::kFeatures / 2],
    Ring<Element, Tile, kStages>& ring, Turn<Tile::kTeams>& turn, int steps) {
    const int x_offset = static_cast<int>(threadIdx.x) % Tile::kTeam / 128 * 64 * kTileBytes;
    int before = 0;
    turn.wait();
    for (int step = 0; step < steps; ++step) {
        ring.pipeline.consumer_wait(ring.at);
        const uint64_t x = make_smem_desc(ring.x(ring.at.stage) + x_offset);
        const uint64_t weight = make_smem_desc(ring.weight(ring.at.stage));
        wgmma_fence();
#pragma unroll
        for (int k = 0; k < 4; ++k) {
            WgmmaSS<SumOf<Element>, Tile::kFeatures>::mma(sums, x + 2 * k, weight + 2 * k, step > 0 || k > 0);
        }
        wgmma_commit();
        if (step > 0) {  // while these run, the step before is done with
            wgmma_wait<1>();
            ring.pipeline.consumer_release(before);
        }
        before = ring.at.stage;
        ring.at.advance();
    }
    turn.pass_on();
    wgmma_wait<0>();
    fence_operand(sums);
    ring.pipeline.consumer_release(before);
}

// A warpgroup's sums of a tile to y. Memory answers late: what a pair of groups needs of the residual is asked for at
// once, and what a group of features needs while the group before is stored; of the first group, before the products.
// warp_row, tile_feature: the first of this warp's rows and of the tile's features. y: where they go, in memory or,
// INT8, in shared memory; rows are y_pitch elements apart.
template <class Element, class Output, After AFTER, class Tile>
__device__ __forceinline__ void store_tile(const Epilogue& e, const SumOf<Element> (&sums)[Tile::kFeatures / 2],
    Features<Element> features, int warp_row, int tile_feature, Output* y, long long y_pitch) {
    constexpr int kGroups = Tile::kFeatures / kFeatureGroup;
    constexpr bool kClippedByCopy = SharedMemory<Output, Tile>::kStagesY;
    static_assert(!kClippedByCopy || AFTER != After::kResidual, "a residual is not read beyond the last row");
    constexpr int kAhead = AFTER == After::kResidual ? 2 : 1;  // a residual leaves no registers for it before
    const int lane = static_cast<int>(threadIdx.x) % 32, row = warp_row + lane / 4;
    const int first_feature = tile_feature + lane % 4 * 8;
    const long long first = static_cast<long long>(row) * e.features;
    y += lane / 4 * y_pitch + lane % 4 * 8;
    uint4 residual[2][2];
#pragma unroll
    for (int group = 0; group < kGroups; ++group) {
        if (AFTER == After::kResidual && group % 2 == 0) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const int feature = first_feature + (group + i / 2) * kFeatureGroup;
                if (group + i / 2 < kGroups && feature < e.features && row + i % 2 * 8 < e.rows) {
                    residual[i / 2][i % 2] = *reinterpret_cast<const uint4*>(
                        e.residual + first + i % 2 * 8 * static_cast<long long>(e.features) + feature);
                }
            }
        }
        const int feature = first_feature + group * kFeatureGroup;
        Features<Element> next = features;
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            if (r == kAhead && group + 1 < kGroups) next = Features<Element>(e, feature + kFeatureGroup);
            if (!kClippedByCopy && (feature >= e.features || row + r * 8 >= e.rows)) continue;
            SumOf<Element> eight[8];
            eight_of(eight, sums, group, r);
            store<AFTER, Element, Output>(
                e, features, y + r * 8 * y_pitch + group * kFeatureGroup, eight, residual[group % 2][r]);
        }
        if (kAhead == 2 && group + 1 < kGroups) next = Features<Element>(e, feature + kFeatureGroup);
        features = next;
    }
}

// --- the kernel ------------------------------------------------------------------------------------------------------

template <class Element, class Output, After AFTER, class Tile>
__global__ void __launch_bounds__(Tile::kThreads, Tile::kBlocks)
    product_kernel(const __grid_constant__ Maps maps, const Epilogue epilogue, int steps) {
    using Memory = SharedMemory<Output, Tile>;
    static_assert(std::is_same_v<Element, __half> || std::is_same_v<Element, int8_t>);
    static_assert(std::is_same_v<Output, __half> || (std::is_same_v<Output, int8_t> && AFTER != After::kResidual),
        "a residual is FP16, and so is what it is added to");
    extern __shared__ __align__(kTileAlignment) uint8_t shared[];
    const int tiles_across = (epilogue.features + Tile::kFeatures - 1) / Tile::kFeatures;
    const int tiles = (epilogue.rows + Tile::kRows - 1) / Tile::kRows * tiles_across;
    constexpr bool kBackwards = AFTER == After::kGelu;  // launch.cuh says why
    const int blocks = static_cast<int>(gridDim.x), block = static_cast<int>(blockIdx.x);
    const Course course{
        kBackwards ? tiles - 1 - block : block, kBackwards ? -blocks : blocks, tiles, tiles_across, steps};
    auto& barriers = *reinterpret_cast<typename Memory::Barriers*>(shared + Memory::kBarriersOffset);
    if (threadIdx.x == Tile::kConsumers) {
        prefetch_tensormap(maps.x);
        prefetch_tensormap(maps.weight);
        barriers.pipeline.init(1, Tile::kTeam / 32);
        barriers.turns.init(Tile::kTeam / 32);
        fence_barrier_init();
    }
    __syncthreads();
    Ring<Element, Tile, Memory::kStages> ring{maps, shared, barriers.pipeline, {}};
    if (warp_index() >= Tile::kConsumers / 32) {
        if constexpr (Tile::kTeams > 1) warpgroup_reg_dealloc<RegisterSplit<Tile::kConsumers / 128>::kProducer>();
        if (warp_index() == Tile::kConsumers / 32) ring.copy_all(course);
        return;
    }
    if constexpr (Tile::kTeams > 1) warpgroup_reg_alloc<RegisterSplit<Tile::kConsumers / 128>::kConsumer>();
    griddepcontrol_wait();
    const int team = warp_index() / (Tile::kTeam / 32);
    Turn<Tile::kTeams> turn(barriers.turns, team);
    ring.at.advance(team * steps);
    const int row_in_tile = warp_index() % (Tile::kTeam / 32) * Memory::kWarpRows;
    const bool first_lane = threadIdx.x % 32 == 0;
    uint8_t* const staged_y = shared + Memory::kYOffset + warp_index() * Memory::kWarpYBytes;
    Course own = course;
    for (own.tile += team * own.stride; !own.ended(); own.tile += Tile::kTeams * own.stride) {
        const int row = own.tile / tiles_across * Tile::kRows + row_in_tile;
        const int feature = own.tile % tiles_across * Tile::kFeatures;
        const Features<Element> features(epilogue, feature + static_cast<int>(threadIdx.x) % 4 * 8);
        SumOf<Element> sums[Tile::kFeatures / 2];
        multiply_tiles(sums, ring, turn, steps);
        if constexpr (Memory::kStagesY) {
            if (first_lane) tma_store_wait();
            __syncwarp();
            store_tile<Element, Output, AFTER, Tile>(
                epilogue, sums, features, row, feature, reinterpret_cast<Output*>(staged_y), Tile::kFeatures);
            fence_proxy_async();
            __syncwarp();
            if (first_lane) tma_store(staged_y, maps.y, feature, row);
        } else {
            const long long first = static_cast<long long>(row) * epilogue.features + feature;
            store_tile<Element, Output, AFTER, Tile>(
                epilogue, sums, features, row, feature, static_cast<Output*>(epilogue.y) + first, epilogue.features);
        }
        ring.at.advance((Tile::kTeams - 1) * steps);
    }
    if (Memory::kStagesY && first_lane) tma_store_wait();  // shared memory ends with the block
}

// --- launching -------------------------------------------------------------------------------------------------------

template <class Element> int steps_of(const Product& p) {
    return static_cast<int>((p.in_features * sizeof(Element) + kTileBytes - 1) / kTileBytes);
}
inline int tiles_of(const Product& p, int rows, int features) {
    return (p.rows + rows - 1) / rows * ((p.out_features + features - 1) / features);
}

// A product is followed by GELU or a residual, never both.
template <class Element, class Output, After AFTER, class Tile> int multiply_then(const Product& p) {
    using Memory = SharedMemory<Output, Tile>;
    Maps maps{};
    if (!make_rows_map<Element>(maps.x, p.x, p.rows, p.in_features, Tile::kRows)
        || !make_weight_map<Element>(maps.weight, p.weight, p.out_features, p.in_features, Tile::kFeatures)
        || (Memory::kStagesY
            && !make_map<Output, 0, 2>(maps.y, p.y,
                {static_cast<cuuint64_t>(p.out_features), static_cast<cuuint64_t>(p.rows)}, {1},
                {Tile::kFeatures, Memory::kWarpRows}))) {
        return cudaErrorInvalidValue;
    }
    constexpr auto kKernel = product_kernel<Element, Output, AFTER, Tile>;
    const cudaError_t error = allow_shared_memory<kKernel>(Memory::kBytes);
    if (error != cudaSuccess) return error;
    const Epilogue epilogue{
        p.scale, p.bias, static_cast<const __half*>(p.residual), p.y, p.rows, p.out_features, p.inverse_y_scale};
    const int blocks = std::min(tiles_of(p, Tile::kRows, Tile::kFeatures), p.multiprocessors * Tile::kBlocks);
    return launch<kKernel>(blocks, Tile::kThreads, Memory::kBytes, p.stream, maps, epilogue, steps_of<Element>(p));
}

}  // namespace swin
