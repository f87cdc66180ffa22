// INT8 linear layers on Hopper: CUTLASS, compiled for sm_90a alone.
#include "common/product_sm90.cuh"
#include "linear_int8_kernel.h"

namespace swin {
namespace {

template <class Tile> int with_epilogue(const LinearInt8& a, const Product& product) {
    using cutlass::half_t;
    if (a.quantized) return multiply<int8_t, int8_t, false, Tile>(product);
    if (a.residual == nullptr) return multiply<int8_t, half_t, false, Tile>(product);
    return multiply<int8_t, half_t, true, Tile>(product);
}

// The ratio of the last two is that of FP16 products on an H200. 128 x 192 is taken to be as fast as 128 x 128, so it
// is chosen where it leaves fewer multiprocessors idle.
constexpr TileSpeed kTiles[] = {{128, 192, 1.0F}, {128, 128, 1.0F}, {64, 64, 0.55F}};

}  // namespace

int linear_int8_sm90(const LinearInt8& a, int multiprocessors) {
    const Product product{a.x, a.weight, a.scale, a.bias, a.residual, a.y, a.rows, a.in_features, a.out_features,
        a.gelu, a.inverse_y_scale, multiprocessors, a.stream};
    switch (fastest_tile(kTiles, a.rows, a.out_features, multiprocessors)) {
    case 0: return with_epilogue<Tile<128, 192, true>>(a, product);
    case 1: return with_epilogue<Tile<128, 128, false>>(a, product);
    default: return with_epilogue<Tile<64, 64, false>>(a, product);
    }
}

}  // namespace swin
