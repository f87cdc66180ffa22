// What all attention kernels share: where the tokens of a window lie in the image, which of them see each other, and
// how a tile of them lies in shared memory.
#pragma once

#include <climits>
#include <cstdint>

#include "common/mma.cuh"

namespace swin {

constexpr int kHeadDim = 32;
constexpr int kMaxWindow = 32;
constexpr float kNormEpsilon = 1e-12F;  // F.normalize's, on the norm and not on its square
constexpr float kLog2e = 1.4426950408889634F;

// --- windows -----------------------------------------------------------------------------------------------------

struct Window {
    int y, x;  // in units of windows
    int tokens;  // tokens of the images before this one
};

// The windows of a batch of images.
struct Windows {
    int height, width, window, shift;
    int positions;  // N = window^2
    int windows_x, windows_y, windows;  // windows along an image's sides; in the whole batch
    int reciprocal;  // position / window == position * reciprocal >> 16
};

// What replaces the division by a window's size in position_at.
constexpr int reciprocal_of(int window) { return 65536 / window + 1; }
constexpr bool reciprocal_is_exact(int window) {
    for (int position = 0; position < window * window; ++position) {
        if (position * reciprocal_of(window) >> 16 != position / window) return false;
    }
    return true;
}
constexpr bool reciprocals_are_exact() {
    for (int window = 1; window <= kMaxWindow; ++window) {
        if (!reciprocal_is_exact(window)) return false;
    }
    return true;
}
static_assert(reciprocals_are_exact());

// Whether these are windows of the contract, and then these windows.
inline bool describe(Windows& windows, int batch, int height, int width, int window_size, int shift_size) {
    const bool valid = batch > 0 && window_size > 0 && window_size <= kMaxWindow && height > 0 && width > 0
        && height % window_size == 0 && width % window_size == 0 && shift_size >= 0 && shift_size < window_size
        && static_cast<long long>(batch) * height * width <= INT_MAX;
    if (!valid) {
        return false;
    }
    windows.height = height;
    windows.width = width;
    windows.window = window_size;
    windows.shift = shift_size;
    windows.positions = window_size * window_size;
    windows.windows_x = width / window_size;
    windows.windows_y = height / window_size;
    windows.windows = windows.windows_x * windows.windows_y * batch;
    windows.reciprocal = reciprocal_of(window_size);
    return true;
}

__host__ __device__ inline Window window_at(const Windows& windows, int index) {
    const int row = index / windows.windows_x;
    const int image = row / windows.windows_y;
    return {row - image * windows.windows_y, index - row * windows.windows_x, image * windows.height * windows.width};
}

struct Position {
    int row, column;  // in a window
};

__device__ inline Position position_at(const Windows& windows, int index) {
    const int row = index * windows.reciprocal >> 16;
    return {row, index - row * windows.window};
}

// The token that a position of a window holds: window partition of the image rolled by -shift. Window reverse and the
// roll back write to the same token.
__device__ inline int token_of(const Windows& windows, const Window& window, const Position& position) {
    int y = window.y * windows.window + position.row + windows.shift;
    int x = window.x * windows.window + position.column + windows.shift;
    y -= y >= windows.height ? windows.height : 0;
    x -= x >= windows.width ? windows.width : 0;
    return window.tokens + y * windows.width + x;
}

// Which side of the wrap a position lies on: bit 0 below it, bit 1 right of it. In a window of the last row (column) of
// the rolled image, tokens with different bits come from opposite ends of the image and must not see each other:
//   masked(i, j) = ((mask_flags(i) ^ mask_flags(j)) & mask_axes(window)) != 0
__device__ inline unsigned mask_flags(const Windows& windows, int index) {
    const Position position = position_at(windows, index);
    const int wrap = windows.window - windows.shift;
    return static_cast<unsigned>(position.row >= wrap) | static_cast<unsigned>(position.column >= wrap) << 1;
}
__device__ inline unsigned mask_axes(const Windows& windows, const Window& window) {
    if (windows.shift == 0) {
        return 0;
    }
    const bool last_row = window.y + 1 == windows.windows_y, last_column = window.x + 1 == windows.windows_x;
    return static_cast<unsigned>(last_row) | static_cast<unsigned>(last_column) << 1;
}

// --- tiles -------------------------------------------------------------------------------------------------------

// A tile in shared memory is [rows][32] of 2-byte elements: 4 chunks of 16 bytes a row. Chunks are swizzled so that
// the 8 rows that ldmatrix reads at once, or the 8 rows of an accumulator, lie in different banks.
__device__ inline int swizzled(int row, int chunk) { return row * kHeadDim + ((chunk ^ (row >> 1 & 3)) << 3); }

// Four INT8, and their squares, on top of a sum.
__device__ inline int add_numbers(int sum, uint32_t four) { return __dp4a(static_cast<int>(four), 0x01010101, sum); }
__device__ inline int add_squares(int sum, uint32_t four) {
    return __dp4a(static_cast<int>(four), static_cast<int>(four), sum);
}

// 1 / max(|x|, kNormEpsilon), from |x|^2.
__device__ inline float reciprocal_norm(float squares) { return fminf(rsqrt_approx(squares), 1.F / kNormEpsilon); }

}  // namespace swin
