// INT8 linear layers on Hopper, compiled for sm_90a alone.
#include "common/product_sm90.cuh"
#include "linear_int8_kernel.h"

namespace swin {
namespace {

// How long a product takes with a tile, in us: `start`, for each wave of blocks `wave` and for each step of K in it
// `step`, and as much again by how full the waves are (`full`, `full_step`). Fitted to what an H100 took for the products
// of Small at batches 1, 32 and 128 (Results/experiments.md). At batches 32 and 128 what is chosen by it takes at most 5 %
// more than the fastest of eight tiles for each product would, over all products with the same epilogue.
struct TileTime {
    int rows, features, blocks;
    float start, wave, step, full, full_step;

    float operator()(const Product& p) const {
        const auto steps = static_cast<float>(steps_of<int8_t>(p));
        const int tiles = tiles_of(p, rows, features), at_once = p.multiprocessors * blocks;
        const auto waves = static_cast<float>((tiles + at_once - 1) / at_once);
        const float filled = static_cast<float>(tiles) / static_cast<float>(at_once);
        return start + waves * (wave + step * steps) + filled * (full + full_step * steps);
    }
};
constexpr TileTime kSmall{64, 64, 2, 0.885F, 0.339F, 0.202F, 1.381F, 0.0F};
constexpr TileTime kMedium{128, 96, 1, 1.081F, 0.628F, 0.235F, 0.688F, 0.015F};
constexpr TileTime kLarge{128, 128, 1, 1.306F, 0.640F, 0.287F, 0.862F, 0.0F};
// GELU takes time, and so does a residual, whose reading takes registers besides.
constexpr TileTime kMediumGelu{128, 96, 1, 1.305F, 1.085F, 0.142F, 0.425F, 0.0F};
constexpr TileTime kSmallAdding{64, 64, 2, 0.0F, 1.391F, 0.197F, 0.769F, 0.0F};
constexpr TileTime kNarrowAdding{64, 96, 3, 0.0F, 1.609F, 0.251F, 2.733F, 0.239F};
constexpr TileTime kMediumAdding{128, 96, 1, 0.0F, 2.117F, 0.251F, 0.605F, 0.025F};
constexpr TileTime kWideAdding{64, 192, 1, 0.605F, 2.040F, 0.241F, 0.0F, 0.061F};

template <class Output> int multiply_fastest(const Product& p) {
    using Small = Tile<64, 64, 2>;
    using Medium = Tile<128, 96, 1, 2>;
    const float small = kSmall(p);
    if (p.gelu) {
        return small <= kMediumGelu(p) ? multiply_then<int8_t, Output, After::kGelu, Small>(p)
                                       : multiply_then<int8_t, Output, After::kGelu, Medium>(p);
    }
    const float medium = kMedium(p), large = kLarge(p);
    if (small <= std::min(medium, large)) return multiply_then<int8_t, Output, After::kNothing, Small>(p);
    return medium <= large ? multiply_then<int8_t, Output, After::kNothing, Medium>(p)
                           : multiply_then<int8_t, Output, After::kNothing, Tile<128, 128, 1, 2>>(p);
}

template <class Tile> int multiply_and_add(const Product& p) {
    return multiply_then<int8_t, __half, After::kResidual, Tile>(p);
}
int multiply_and_add_fastest(const Product& p) {
    const float small = kSmallAdding(p), narrow = kNarrowAdding(p), medium = kMediumAdding(p), wide = kWideAdding(p);
    const float fastest = std::min({small, narrow, medium, wide});
    if (fastest == small) return multiply_and_add<Tile<64, 64, 2>>(p);
    if (fastest == narrow) return multiply_and_add<Tile<64, 96, 3>>(p);
    return fastest == medium ? multiply_and_add<Tile<128, 96, 1, 2>>(p) : multiply_and_add<Tile<64, 192, 1, 3>>(p);
}

}  // namespace

int linear_int8_sm90(const LinearInt8& a, int multiprocessors) {
    const Product p{a.x, a.weight, a.scale, a.bias, a.residual, a.y, a.rows, a.in_features, a.out_features, a.gelu,
        a.inverse_y_scale, multiprocessors, a.stream};
    if (a.residual != nullptr) return multiply_and_add_fastest(p);
    return a.quantized ? multiply_fastest<int8_t>(p) : multiply_fastest<__half>(p);
}

}  // namespace swin
