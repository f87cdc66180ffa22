// INT8 linear layers on Hopper, compiled for sm_90a alone.
#include "common/product_sm90.cuh"
#include "linear_int8_kernel.h"

namespace swin {
namespace {

// How long a product takes with a tile, in us: `start`, for each wave of blocks `wave` and for each step of K in it
// `step`, and as much again by how full the waves are (`full`, `full_step`). Fitted to what an H100 took for the products
// of Small at batches 1, 32 and 128 (Results/experiments.md); what is chosen by it is within 4 % of the fastest of ten
// tiles.
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
// Without and with a residual, whose reading takes registers and time.
constexpr TileTime kSmall{64, 64, 2, 0.885F, 0.339F, 0.202F, 1.381F, 0.0F};
constexpr TileTime kMedium{128, 96, 2, 0.826F, 1.214F, 0.198F, 1.693F, 0.316F};
constexpr TileTime kLarge{128, 128, 2, 0.616F, 1.978F, 0.237F, 1.476F, 0.499F};
constexpr TileTime kSmallAdding{64, 64, 2, 0.0F, 1.391F, 0.197F, 0.769F, 0.0F};
constexpr TileTime kMediumAdding{64, 96, 3, 0.0F, 1.534F, 0.250F, 2.979F, 0.251F};
constexpr TileTime kLargeAdding{128, 192, 1, 0.0F, 2.500F, 0.435F, 1.580F, 0.187F};

template <class Output> int multiply_fastest(const Product& p) {
    const float small = kSmall(p), medium = kMedium(p), large = kLarge(p);
    if (small <= std::min(medium, large)) return multiply<int8_t, Output, false, Tile<64, 64, 2>>(p);
    return medium <= large ? multiply<int8_t, Output, false, Tile<128, 96, 2>>(p)
                           : multiply<int8_t, Output, false, Tile<128, 128, 2>>(p);
}

int multiply_and_add_fastest(const Product& p) {
    const float small = kSmallAdding(p), medium = kMediumAdding(p), large = kLargeAdding(p);
    if (small <= std::min(medium, large)) return multiply<int8_t, __half, true, Tile<64, 64, 2>>(p);
    return medium <= large ? multiply<int8_t, __half, true, Tile<64, 96, 3>>(p)
                           : multiply<int8_t, __half, true, Tile<128, 192, 1>>(p);
}

}  // namespace

int linear_int8_sm90(const LinearInt8& a, int multiprocessors) {
    const Product p{a.x, a.weight, a.scale, a.bias, a.residual, a.y, a.rows, a.in_features, a.out_features, a.gelu,
        a.inverse_y_scale, multiprocessors, a.stream};
    if (a.residual != nullptr) return multiply_and_add_fastest(p);
    return a.quantized ? multiply_fastest<int8_t>(p) : multiply_fastest<__half>(p);
}

}  // namespace swin
