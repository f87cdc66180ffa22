// Matrix products for Hopper (compute capability 9.0a: TMA copies, wgmma) with the epilogues of Swin's linear layers,
// made of CUTLASS 4.2's parts: y = act(x weight^T [* scale] + bias) + residual.
//
// A block is persistent: it computes tile after tile of y, and loads the next one's x and weight while it multiplies.
// With KernelTmaWarpSpecializedPingpong two warpgroups compute a tile each, one its epilogue while the other multiplies;
// with KernelTmaWarpSpecializedCooperative they share a larger tile.
#pragma once

#include <type_traits>

#include <cute/tensor.hpp>
#include <cutlass/cutlass.h>
#include <cutlass/epilogue/collective/collective_builder.hpp>
#include <cutlass/epilogue/fusion/sm90_callbacks_tma_warpspecialized.hpp>
#include <cutlass/gemm/collective/collective_builder.hpp>
#include <cutlass/gemm/device/gemm_universal_adapter.h>
#include <cutlass/gemm/kernel/gemm_universal.hpp>

#include "gelu.cuh"
#include "quantize.cuh"

namespace swin {

struct Product {
    const void *x, *weight;  // [rows, K] and [N, K], INT8 or FP16
    const float* scale;      // [N]; INT8 alone
    const void* bias;        // [N]; FP32 where x is INT8, FP16 where it is FP16
    const void* residual;    // [rows, N] FP16, for a product with kResidual
    void* y;                 // [rows, N]
    int rows, in_features, out_features;
    bool gelu;
    float inverse_y_scale;  // y is INT8
    int multiprocessors;
    cudaStream_t stream;
};

struct EpilogueArguments {
    bool gelu;
    float inverse_y_scale;
};

// What becomes of the sums, as a node of CUTLASS's epilogue tree: its children are the sums, scale (INT8), bias and the
// residual (kResidual), in this order and in FP32.
template <class Element, class Output, bool kResidual> struct Epilogue {
    template <class Vector> struct Node {
        using Arguments = EpilogueArguments;
    };
    template <int N> struct Node<cutlass::Array<float, N>> {
        using Arguments = EpilogueArguments;
        using Vector = cutlass::Array<float, N>;
        static constexpr bool kScale = std::is_same_v<Element, int8_t>;

        CUTLASS_DEVICE auto operator()(const Vector& sums, const Vector& scale, const Vector& bias,
            const Vector& residual, const Arguments& arguments) const {
            return stored(added(scaled(sums, scale, bias), residual), arguments);
        }
        CUTLASS_DEVICE auto operator()(
            const Vector& sums, const Vector& a, const Vector& b, const Arguments& arguments) const {
            if constexpr (kScale) return stored(activated(scaled(sums, a, b), arguments), arguments);
            else return stored(added(added(sums, a), b), arguments);
        }
        CUTLASS_DEVICE auto operator()(const Vector& sums, const Vector& bias, const Arguments& arguments) const {
            return stored(activated(added(sums, bias), arguments), arguments);
        }

    private:
        CUTLASS_DEVICE static Vector added(Vector value, const Vector& addend) {
            CUTLASS_PRAGMA_UNROLL
            for (int i = 0; i < N; ++i) value[i] += addend[i];
            return value;
        }
        CUTLASS_DEVICE static Vector scaled(Vector value, const Vector& scale, const Vector& bias) {
            CUTLASS_PRAGMA_UNROLL
            for (int i = 0; i < N; ++i) value[i] = fmaf(value[i], scale[i], bias[i]);
            return value;
        }
        CUTLASS_DEVICE static Vector activated(Vector value, const Arguments& arguments) {
            if (arguments.gelu) {
                CUTLASS_PRAGMA_UNROLL
                for (int i = 0; i < N; ++i) value[i] = swin::gelu(value[i]);
            }
            return value;
        }
        CUTLASS_DEVICE static auto stored(const Vector& value, const Arguments& arguments) {
            if constexpr (std::is_same_v<Output, int8_t>) {
                static_assert(N % 4 == 0);
                cutlass::Array<int8_t, N> bytes;
                CUTLASS_PRAGMA_UNROLL
                for (int i = 0; i < N; i += 4) {
                    reinterpret_cast<uint32_t*>(&bytes)[i / 4] = quantize_quad(
                        value[i], value[i + 1], value[i + 2], value[i + 3], arguments.inverse_y_scale);
                }
                return bytes;
            } else {
                return value;
            }
        }
    };
};

// kCooperative: two warpgroups share a tile; else each has its own.
template <int kRows_, int kFeatures_, bool kCooperative_> struct Tile {
    static constexpr int kRows = kRows_;
    static constexpr int kFeatures = kFeatures_;
    static constexpr bool kCooperative = kCooperative_;
};

// Element and Output: int8_t or cutlass::half_t. A node has GELU or a residual, never both.
template <class Element, class Output, bool kResidual, class Tile> int multiply(const Product& p) {
    using namespace cute;
    namespace fusion = cutlass::epilogue::fusion;
    namespace collective = cutlass::gemm::collective;
    namespace epilogue = cutlass::epilogue::collective;
    using cutlass::half_t;
    using Sm90 = cutlass::arch::Sm90;
    using TensorOp = cutlass::arch::OpClassTensorOp;

    constexpr bool kInt8 = std::is_same_v<Element, int8_t>;
    using Sum = std::conditional_t<kInt8, int32_t, float>;
    using BiasElement = std::conditional_t<kInt8, float, half_t>;
    // 128 bytes of K at a time. An epilogue step is 128 (INT8: 64) bytes of a row of y where the tile allows it.
    using TileShape = cute::Shape<Int<Tile::kRows>, Int<Tile::kFeatures>, Int<128 / sizeof(Element)>>;
    using EpilogueTile = cute::Shape<Int<Tile::kCooperative ? 128 : 64>, Int<Tile::kFeatures % 64 == 0 ? 64 : 32>>;
    using Cluster = cute::Shape<_1, _1, _1>;
    using Schedule = std::conditional_t<Tile::kCooperative, cutlass::gemm::KernelTmaWarpSpecializedCooperative,
        cutlass::gemm::KernelTmaWarpSpecializedPingpong>;
    using EpilogueSchedule = std::conditional_t<Tile::kCooperative, cutlass::epilogue::TmaWarpSpecializedCooperative,
        cutlass::epilogue::TmaWarpSpecialized>;

    using Node = fusion::Sm90Compute<Epilogue<Element, Output, kResidual>::template Node, Output, float,
        cutlass::FloatRoundStyle::round_to_nearest>;
    using Sums = fusion::Sm90AccFetch;
    using Scale = fusion::Sm90RowBroadcast<0, TileShape, float>;
    using Bias = fusion::Sm90RowBroadcast<0, TileShape, BiasElement, float>;
    using Residual = fusion::Sm90SrcFetch<half_t>;
    using WithResidual = std::conditional_t<kInt8, fusion::Sm90EVT<Node, Sums, Scale, Bias, Residual>,
        fusion::Sm90EVT<Node, Sums, Bias, Residual>>;
    using WithoutResidual = std::conditional_t<kInt8, fusion::Sm90EVT<Node, Sums, Scale, Bias>,
        fusion::Sm90EVT<Node, Sums, Bias>>;
    using Tree = std::conditional_t<kResidual, WithResidual, WithoutResidual>;

    using RowMajor = cutlass::layout::RowMajor;
    using CollectiveEpilogue = typename epilogue::CollectiveBuilder<Sm90, TensorOp, TileShape, Cluster, EpilogueTile,
        Sum, float, std::conditional_t<kResidual, half_t, void>, RowMajor, 8, Output, RowMajor, 16 / sizeof(Output),
        EpilogueSchedule, Tree>::CollectiveOp;
    using CollectiveMainloop = typename collective::CollectiveBuilder<Sm90, TensorOp, Element, RowMajor,
        16 / sizeof(Element), Element, cutlass::layout::ColumnMajor, 16 / sizeof(Element), Sum, TileShape, Cluster,
        collective::StageCountAutoCarveout<static_cast<int>(sizeof(typename CollectiveEpilogue::SharedStorage))>,
        Schedule>::CollectiveOp;
    using Kernel = cutlass::gemm::kernel::GemmUniversal<cute::Shape<int, int, int, int>, CollectiveMainloop,
        CollectiveEpilogue, cutlass::gemm::PersistentScheduler>;
    using Gemm = cutlass::gemm::device::GemmUniversalAdapter<Kernel>;

    typename Gemm::Arguments arguments{};
    arguments.mode = cutlass::gemm::GemmUniversalMode::kGemm;
    arguments.problem_shape = {p.rows, p.out_features, p.in_features, 1};
    arguments.mainloop.ptr_A = static_cast<const Element*>(p.x);
    get<0>(arguments.mainloop.dA) = p.in_features;  // elements from row to row
    arguments.mainloop.ptr_B = static_cast<const Element*>(p.weight);
    get<0>(arguments.mainloop.dB) = p.in_features;
    arguments.epilogue.ptr_D = static_cast<Output*>(p.y);
    get<0>(arguments.epilogue.dD) = p.out_features;
    get<0>(arguments.epilogue.dC) = p.out_features;
    const typename Scale::Arguments scale{p.scale};
    const typename Bias::Arguments bias{static_cast<const BiasElement*>(p.bias)};
    const EpilogueArguments node{p.gelu, p.inverse_y_scale};
    if constexpr (kResidual) arguments.epilogue.ptr_C = static_cast<const half_t*>(p.residual);
    if constexpr (kInt8 && kResidual) {
        arguments.epilogue.thread = typename Tree::Arguments{{}, scale, bias, {}, node};
    } else if constexpr (kInt8) {
        arguments.epilogue.thread = {{}, scale, bias, node};
    } else if constexpr (kResidual) {
        arguments.epilogue.thread = {{}, bias, {}, node};
    } else {
        arguments.epilogue.thread = {{}, bias, node};
    }
    arguments.hw_info.sm_count = p.multiprocessors;

    Gemm gemm;
    if (gemm.can_implement(arguments) != cutlass::Status::kSuccess) return cudaErrorInvalidValue;
    if (gemm.initialize(arguments, nullptr, p.stream) != cutlass::Status::kSuccess
        || gemm.run(p.stream, nullptr, true) != cutlass::Status::kSuccess) {
        const cudaError_t error = cudaGetLastError();
        return error != cudaSuccess ? error : cudaErrorUnknown;
    }
    return cudaSuccess;
}

// --- which tile ------------------------------------------------------------------------------------------------------

// A tile and the multiply-adds a clock that a multiprocessor does with it when it has many tiles to do.
struct TileSpeed {
    int rows, features;
    float speed;
};

// The tile of the table with which all tiles of y are done first: the multiprocessors take them in waves.
template <int kCount>
int fastest_tile(const TileSpeed (&tiles)[kCount], long long rows, long long features, int multiprocessors) {
    int best = 0;
    float best_time = 0;
    for (int i = 0; i < kCount; ++i) {
        const TileSpeed& tile = tiles[i];
        const long long count
            = (rows + tile.rows - 1) / tile.rows * ((features + tile.features - 1) / tile.features);
        const long long waves = (count + multiprocessors - 1) / multiprocessors;
        const float time = static_cast<float>(waves * tile.rows * tile.features) / tile.speed;
        if (i == 0 || time < best_time) {
            best = i;
            best_time = time;
        }
    }
    return best;
}

}  // namespace swin
