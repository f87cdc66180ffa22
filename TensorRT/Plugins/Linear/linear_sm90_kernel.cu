// FP16 linear layers on Hopper: CUTLASS, compiled for sm_90a alone.
#include "common/product_sm90.cuh"
#include "linear_sm90_kernel.h"

namespace swin {
namespace {

// What each does when it has many tiles to do, as measured on an H200.
constexpr TileSpeed kTiles[] = {{128, 128, 1.0F}, {64, 64, 0.55F}};

template <class Tile> int with_epilogue(const Product& product) {
    using cutlass::half_t;
    if (product.residual == nullptr) return multiply<half_t, half_t, false, Tile>(product);
    return multiply<half_t, half_t, true, Tile>(product);
}

}  // namespace

int linear_sm90(const void* x, const void* weight, const void* bias, const void* residual, void* y, int rows,
    int in_features, int out_features, bool gelu, int multiprocessors, cudaStream_t stream) {
    const Product product{x, weight, nullptr, bias, residual, y, rows, in_features, out_features, gelu, 0.0F,
        multiprocessors, stream};
    return fastest_tile(kTiles, rows, out_features, multiprocessors) == 0
        ? with_epilogue<Tile<128, 128, false>>(product)
        : with_epilogue<Tile<64, 64, false>>(product);
}

}  // namespace swin
