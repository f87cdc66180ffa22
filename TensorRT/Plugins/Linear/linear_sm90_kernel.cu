// FP16 linear layers on Hopper, compiled for sm_90a only, by our own product (common/product_sm90.cuh) or CUTLASS's,
// whichever was measured to be faster.
#include "Linear/product_cutlass.cuh"
#include "linear_sm90_kernel.h"

namespace swin {
namespace {

template <class Tile> int by_own(const Product& p) {
    if (p.residual != nullptr) return multiply_then<__half, __half, After::kResidual, Tile>(p);
    return p.gelu ? multiply_then<__half, __half, After::kGelu, Tile>(p)
                  : multiply_then<__half, __half, After::kNothing, Tile>(p);
}
#ifdef SWIN_ONE_CUTLASS_TILE  // the Makefile's QUICK_BUILD: each of CUTLASS's kernels takes long to compile
constexpr bool kOneTile = true;
#else
constexpr bool kOneTile = false;
#endif
template <int kRows, int kFeatures> int by_cutlass(const Product& p) {
    constexpr int rows = kOneTile ? 128 : kRows, features = kOneTile ? 96 : kFeatures;
    if (p.residual == nullptr) return multiply_by_cutlass<false, rows, features>(p);
    return multiply_by_cutlass<true, rows, features>(p);
}
// Multiprocessors take tiles in waves. The wider a tile, the less is read for each product: a feature takes 5 and 12 %
// longer in the narrower ones (products of Small on an H200).
int by_cutlass_in_large_tiles(const Product& p) {
    const auto time = [&p](int features, float of_one) {
        const int waves = (tiles_of(p, 128, features) + p.multiprocessors - 1) / p.multiprocessors;
        return static_cast<float>(waves * features) * of_one;
    };
    const float wide = time(192, 1.0F), medium = time(128, 1.05F), narrow = time(96, 1.12F);
    if (wide <= std::min(medium, narrow)) return by_cutlass<128, 192>(p);
    return medium <= narrow ? by_cutlass<128, 128>(p) : by_cutlass<128, 96>(p);
}

// A team has two warpgroups for a tile's GELU, CUTLASS one; without GELU CUTLASS's is faster.
using Teams = Tile<128, 128, 1, 2>;

// With the tile that is asked for; FP16_TILES of fit_tiles.py names them.
int multiply_in(const Product& p) {
    if (p.tile <= 3 && p.out_features % kFeatureGroup != 0) return cudaErrorInvalidValue;
    switch (p.tile) {
    case 1: return by_own<Tile<64, 64, 2>>(p);
    case 2: return by_own<Tile<128, 192, 1>>(p);
    case 3:
        if (p.residual != nullptr) return cudaErrorInvalidValue;
        return p.gelu ? multiply_then<__half, __half, After::kGelu, Teams>(p)
                      : multiply_then<__half, __half, After::kNothing, Teams>(p);
    case 4: return by_cutlass<64, 64>(p);
    case 5: return by_cutlass<128, 96>(p);
    case 6: return by_cutlass<128, 128>(p);
    case 7: return by_cutlass<128, 192>(p);
    default: return cudaErrorInvalidValue;
    }
}

// As measured on an H100 over the products of Small (docs/experiments/products.md); fit_tiles.py measures them all.
int multiply_fastest(const Product& p) {
    const int all = p.multiprocessors, steps = steps_of<__half>(p), large = tiles_of(p, 128, 128);
    const bool own = p.out_features % kFeatureGroup == 0;
    if (own && steps <= 6 && tiles_of(p, 64, 64) <= 3 * all) return by_own<Tile<64, 64, 2>>(p);
    if (own && tiles_of(p, 128, 192) <= all && all < large && large <= 2 * all) return by_own<Tile<128, 192, 1>>(p);
    // A tile of 64 x 64 takes 0.45 times as long as one of 128 x 128; multiprocessors take them in waves.
    const auto waves = [all](int tiles) { return (tiles + all - 1) / all; };
    if (0.45F * static_cast<float>(waves(tiles_of(p, 64, 64))) < static_cast<float>(waves(large))) {
        return by_cutlass<64, 64>(p);
    }
    if (own && p.gelu) return multiply_then<__half, __half, After::kGelu, Teams>(p);
    return by_cutlass_in_large_tiles(p);
}

}  // namespace

int linear_sm90(const SwinLinear& a, int multiprocessors, cudaStream_t stream) {
    Product p{};
    p.x = a.x;
    p.weight = a.weight;
    p.bias = a.bias;
    p.residual = a.residual;
    p.y = a.y;
    p.rows = static_cast<int>(a.rows);
    p.in_features = a.in_features;
    p.out_features = a.out_features;
    p.gelu = a.gelu == 1;
    p.tile = a.tile;
    p.multiprocessors = multiprocessors;
    p.stream = stream;
    return p.tile == 0 ? multiply_fastest(p) : multiply_in(p);
}

}  // namespace swin
