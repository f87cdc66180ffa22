// FP16 products on Hopper by CUTLASS 4.2's parts (TMA copies, wgmma):
// y = act(x weight^T + bias) + residual.
//
// A block is persistent: it computes tile after tile of y, and loads the next one's x and weight while it multiplies.
// Two warpgroups compute a tile each, one its epilogue while the other multiplies.
#pragma once

#include <cute/tensor.hpp>
#include <cutlass/cutlass.h>
#include <cutlass/epilogue/collective/collective_builder.hpp>
#include <cutlass/epilogue/fusion/sm90_callbacks_tma_warpspecialized.hpp>
#include <cutlass/gemm/collective/collective_builder.hpp>
#include <cutlass/gemm/device/gemm_universal_adapter.h>
#include <cutlass/gemm/kernel/gemm_universal.hpp>

#include "common/product_sm90.cuh"

namespace swin {

struct CutlassActivation { bool gelu; };

// What becomes of the sums, as a node of CUTLASS's epilogue tree: its children are the sums, the bias and, where there
// is one, the residual, in this order and in FP32.
template <class Vector> struct CutlassEpilogue { using Arguments = CutlassActivation; };
template <int N> struct CutlassEpilogue<cutlass::Array<float, N>> {
    using Arguments = CutlassActivation;
    using Vector = cutlass::Array<float, N>;

    CUTLASS_DEVICE Vector operator()(
        const Vector& sums, const Vector& bias, const Vector& residual, const Arguments&) const {
        return added(added(sums, bias), residual);
    }
    CUTLASS_DEVICE Vector operator()(const Vector& sums, const Vector& bias, const Arguments& arguments) const {
        Vector value = added(sums, bias);
        if (arguments.gelu) {
            CUTLASS_PRAGMA_UNROLL
            for (int i = 0; i < N; ++i) value[i] = swin::gelu(value[i]);
        }
        return value;
    }

private:
    CUTLASS_DEVICE static Vector added(Vector value, const Vector& addend) {
        CUTLASS_PRAGMA_UNROLL
        for (int i = 0; i < N; ++i) value[i] += addend[i];
        return value;
    }
};

// A node has GELU or a residual, never both.
template <bool kResidual, int kRows, int kFeatures> int multiply_by_cutlass(const Product& p) {
    using namespace cute;
    namespace fusion = cutlass::epilogue::fusion;
    namespace collective = cutlass::gemm::collective;
    namespace epilogue = cutlass::epilogue::collective;
    using cutlass::half_t;
    using Sm90 = cutlass::arch::Sm90;
    using TensorOp = cutlass::arch::OpClassTensorOp;

    using TileShape = cute::Shape<Int<kRows>, Int<kFeatures>, _64>;
    using EpilogueTile = cute::Shape<_64, Int<kFeatures % 64 == 0 ? 64 : 32>>;  // at a time; 64 does not divide 96
    using Cluster = cute::Shape<_1, _1, _1>;

    using Node = fusion::Sm90Compute<CutlassEpilogue, half_t, float, cutlass::FloatRoundStyle::round_to_nearest>;
    using Sums = fusion::Sm90AccFetch;
    using Bias = fusion::Sm90RowBroadcast<0, TileShape, half_t, float>;
    using Residual = fusion::Sm90SrcFetch<half_t>;
    using Tree
        = std::conditional_t<kResidual, fusion::Sm90EVT<Node, Sums, Bias, Residual>, fusion::Sm90EVT<Node, Sums, Bias>>;

    using RowMajor = cutlass::layout::RowMajor;
    using CollectiveEpilogue = typename epilogue::CollectiveBuilder<Sm90, TensorOp, TileShape, Cluster, EpilogueTile,
        float, float, std::conditional_t<kResidual, half_t, void>, RowMajor, 8, half_t, RowMajor, 8,
        cutlass::epilogue::TmaWarpSpecialized, Tree>::CollectiveOp;
    using CollectiveMainloop = typename collective::CollectiveBuilder<Sm90, TensorOp, half_t, RowMajor, 8, half_t,
        cutlass::layout::ColumnMajor, 8, float, TileShape, Cluster,
        collective::StageCountAutoCarveout<static_cast<int>(sizeof(typename CollectiveEpilogue::SharedStorage))>,
        cutlass::gemm::KernelTmaWarpSpecializedPingpong>::CollectiveOp;
    using Kernel = cutlass::gemm::kernel::GemmUniversal<cute::Shape<int, int, int, int>, CollectiveMainloop,
        CollectiveEpilogue, cutlass::gemm::PersistentScheduler>;
    using Gemm = cutlass::gemm::device::GemmUniversalAdapter<Kernel>;

    typename Gemm::Arguments arguments{};
    arguments.mode = cutlass::gemm::GemmUniversalMode::kGemm;
    arguments.problem_shape = {p.rows, p.out_features, p.in_features, 1};
    arguments.mainloop.ptr_A = static_cast<const half_t*>(p.x);
    get<0>(arguments.mainloop.dA) = p.in_features;  // elements from row to row
    arguments.mainloop.ptr_B = static_cast<const half_t*>(p.weight);
    get<0>(arguments.mainloop.dB) = p.in_features;
    arguments.epilogue.ptr_D = static_cast<half_t*>(p.y);
    get<0>(arguments.epilogue.dD) = p.out_features;
    get<0>(arguments.epilogue.dC) = p.out_features;
    const typename Bias::Arguments bias{static_cast<const half_t*>(p.bias)};
    if constexpr (kResidual) {
        arguments.epilogue.ptr_C = static_cast<const half_t*>(p.residual);
        arguments.epilogue.thread = {{}, bias, {}, {false}};
    } else {
        arguments.epilogue.thread = {{}, bias, {p.gelu}};
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

}  // namespace swin
