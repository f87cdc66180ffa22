// INT8 linear layers on Hopper, compiled for sm_90a only.
#include <algorithm>
#include <iterator>

#include "common/product_sm90.cuh"
#include "linear_int8_kernel.h"

namespace swin {
namespace {

// How long a product takes with a tile, in us: `start`, for each wave of blocks `wave` and for each step of K in it
// `step`, and as much again by how full the waves are (`full`, `full_step`). Fitted to what an H100 took for the
// products of Small at batches 1, 8, 32 and 128 (with a residual: 1, 32 and 128). What is chosen by it takes at most 4
// % (5 %) more than the fastest tile for each product would, over all products of a batch with the same epilogue
// (docs/experiments/int8.md). Fitted by fit_tiles.py, which reads these tables.
template <class Tile> struct TileTime {
    float start, wave, step, full, full_step;

    float operator()(const Product& p) const {
        const auto steps = static_cast<float>(steps_of<int8_t>(p));
        const int tiles = tiles_of(p, Tile::kRows, Tile::kFeatures), at_once = p.multiprocessors * Tile::kBlocks;
        const auto waves = static_cast<float>((tiles + at_once - 1) / at_once);
        const float filled = static_cast<float>(tiles) / static_cast<float>(at_once);
        return start + waves * (wave + step * steps) + filled * (full + full_step * steps);
    }
};

template <class Output, After AFTER, class... Tiles>
int multiply_in_fastest(const Product& p, const TileTime<Tiles>&... times) {
    const float predicted[] = {times(p)...};
    const auto fastest = std::min_element(std::begin(predicted), std::end(predicted)) - predicted;
    const auto chosen = p.tile == 0 ? fastest : p.tile - 1;
    int i = 0, status = cudaErrorInvalidValue;
    (void)((i++ == chosen && (status = multiply_then<int8_t, Output, AFTER, Tiles>(p), true)) || ...);
    return status;
}

using Small = Tile<64, 64, 2>;
using Medium = Tile<128, 96, 1, 2>;
using Large = Tile<128, 128, 1, 2>;
using Wide = Tile<128, 192, 1>;
using Flat = Tile<64, 192, 1, 3>;

// GELU takes time, and so does a residual, whose reading takes registers besides.
template <class Output> int multiply(const Product& p) {
    if (p.gelu) {
        return multiply_in_fastest<Output, After::kGelu>(p, TileTime<Small>{1.516F, 0.0F, 0.166F, 0.759F, 0.106F},
            TileTime<Medium>{2.397F, 0.0F, 0.173F, 0.682F, 0.115F},
            TileTime<Large>{2.825F, 0.0F, 0.248F, 1.069F, 0.050F},
            TileTime<Flat>{3.013F, 0.0F, 0.130F, 0.074F, 0.313F});
    }
    if constexpr (std::is_same_v<Output, int8_t>) {
        return multiply_in_fastest<Output, After::kNothing>(p, TileTime<Small>{1.347F, 0.0F, 0.192F, 0.872F, 0.056F},
            TileTime<Medium>{1.840F, 0.0F, 0.254F, 0.869F, 0.0F}, TileTime<Large>{2.370F, 0.046F, 0.291F, 0.990F, 0.0F},
            TileTime<Wide>{2.231F, 0.285F, 0.423F, 1.216F, 0.045F});
    } else {
        return multiply_in_fastest<Output, After::kNothing>(p, TileTime<Small>{1.065F, 0.274F, 0.166F, 0.200F, 0.177F},
            TileTime<Medium>{1.576F, 0.238F, 0.249F, 0.533F, 0.067F},
            TileTime<Large>{1.933F, 0.264F, 0.281F, 0.718F, 0.061F},
            TileTime<Wide>{0.993F, 1.629F, 0.412F, 1.020F, 0.074F});
    }
}
int multiply_and_add(const Product& p) {
    return multiply_in_fastest<__half, After::kResidual>(p, TileTime<Small>{0.0F, 1.391F, 0.197F, 0.769F, 0.0F},
        TileTime<Tile<64, 96, 3>>{0.0F, 1.609F, 0.251F, 2.733F, 0.239F},
        TileTime<Medium>{0.0F, 2.117F, 0.251F, 0.605F, 0.025F}, TileTime<Flat>{0.605F, 2.040F, 0.241F, 0.0F, 0.061F});
}

}  // namespace

int linear_int8_sm90(const LinearInt8& a, int multiprocessors) {
    Product p{};
    p.x = a.x;
    p.weight = a.weight;
    p.scale = a.scale;
    p.bias = a.bias;
    p.residual = a.residual;
    p.y = a.y;
    p.rows = a.rows;
    p.in_features = a.in_features;
    p.out_features = a.out_features;
    p.gelu = a.gelu == SWIN_GELU;
    p.inverse_y_scale = a.inverse_y_scale;
    p.tile = a.tile;
    p.multiprocessors = multiprocessors;
    p.stream = a.stream;
    if (a.residual != nullptr) return multiply_and_add(p);
    return a.quantized ? multiply<int8_t>(p) : multiply<__half>(p);
}

}  // namespace swin
