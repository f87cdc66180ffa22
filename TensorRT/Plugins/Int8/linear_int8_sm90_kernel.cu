// INT8 linear layers on Hopper, compiled for sm_90a alone.
#include "common/product_sm90.cuh"
#include "linear_int8_kernel.h"

namespace swin {
namespace {

// How long a product takes with a tile, in us: `start`, for each wave of blocks `wave` and for each step of K in it
// `step`, and as much again by how full the waves are (`full`, `full_step`). Fitted to what an H100 took for the products
// of Small at batches 1, 8, 32 and 128 (Results/experiments.md). What is chosen by it takes at most 4 % more than the
// fastest of six tiles for each product would, over all products of a batch with the same epilogue.
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
// GELU takes time, and so does a residual, whose reading takes registers besides.
constexpr TileTime kQuantized[]{{64, 64, 2, 1.347F, 0.0F, 0.192F, 0.872F, 0.056F},
    {128, 96, 1, 1.840F, 0.0F, 0.254F, 0.869F, 0.0F}, {128, 128, 1, 2.370F, 0.046F, 0.291F, 0.990F, 0.0F},
    {128, 192, 1, 2.231F, 0.285F, 0.423F, 1.216F, 0.045F}};
constexpr TileTime kHalf[]{{64, 64, 2, 1.065F, 0.274F, 0.166F, 0.200F, 0.177F},
    {128, 96, 1, 1.576F, 0.238F, 0.249F, 0.533F, 0.067F}, {128, 128, 1, 1.933F, 0.264F, 0.281F, 0.718F, 0.061F},
    {128, 192, 1, 0.993F, 1.629F, 0.412F, 1.020F, 0.074F}};
constexpr TileTime kGelu[]{{64, 64, 2, 1.516F, 0.0F, 0.166F, 0.759F, 0.106F},
    {128, 96, 1, 2.397F, 0.0F, 0.173F, 0.682F, 0.115F}, {128, 128, 1, 2.825F, 0.0F, 0.248F, 1.069F, 0.050F},
    {64, 192, 1, 3.013F, 0.0F, 0.130F, 0.074F, 0.313F}};
constexpr TileTime kAdding[]{{64, 64, 2, 0.0F, 1.391F, 0.197F, 0.769F, 0.0F},
    {64, 96, 3, 0.0F, 1.609F, 0.251F, 2.733F, 0.239F}, {128, 96, 1, 0.0F, 2.117F, 0.251F, 0.605F, 0.025F},
    {64, 192, 1, 0.605F, 2.040F, 0.241F, 0.0F, 0.061F}};

template <class Output, After AFTER, class First, class Second, class Third, class Fourth>
int multiply_in_fastest(const Product& p, const TileTime (&times)[4]) {
    const auto faster = [&p](const TileTime& a, const TileTime& b) { return a(p) < b(p); };
    switch (std::min_element(times, times + 4, faster) - times) {
    case 0: return multiply_then<int8_t, Output, AFTER, First>(p);
    case 1: return multiply_then<int8_t, Output, AFTER, Second>(p);
    case 2: return multiply_then<int8_t, Output, AFTER, Third>(p);
    default: return multiply_then<int8_t, Output, AFTER, Fourth>(p);
    }
}
// Tiles in the order of those times.
template <class Output> int multiply(const Product& p) {
    using Small = Tile<64, 64, 2>;
    using Medium = Tile<128, 96, 1, 2>;
    using Large = Tile<128, 128, 1, 2>;
    using Wide = Tile<64, 192, 1, 3>;
    if (p.gelu) return multiply_in_fastest<Output, After::kGelu, Small, Medium, Large, Wide>(p, kGelu);
    return multiply_in_fastest<Output, After::kNothing, Small, Medium, Large, Tile<128, 192, 1>>(
        p, std::is_same_v<Output, int8_t> ? kQuantized : kHalf);
}
int multiply_and_add(const Product& p) {
    return multiply_in_fastest<__half, After::kResidual, Tile<64, 64, 2>, Tile<64, 96, 3>, Tile<128, 96, 1, 2>,
        Tile<64, 192, 1, 3>>(p, kAdding);
}

}  // namespace

int linear_int8_sm90(const LinearInt8& a, int multiprocessors) {
    const Product p{a.x, a.weight, a.scale, a.bias, a.residual, a.y, a.rows, a.in_features, a.out_features, a.gelu,
        a.inverse_y_scale, multiprocessors, a.stream};
    if (a.residual != nullptr) return multiply_and_add(p);
    return a.quantized ? multiply<int8_t>(p) : multiply<__half>(p);
}

}  // namespace swin
