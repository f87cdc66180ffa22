// Where the tokens of a window lie in the image, and which of them see each other: the index arithmetic that all
// attention kernels share. The host runs it too: tests/test_windows.py compares it with roll, pad and partition.
#pragma once

#include <climits>

#include <cuda_runtime_api.h>

namespace swin {

constexpr int kMaxWindow = 32;  // tokens along a side

struct Window {
    int y, x;  // in units of windows
    int tokens;  // tokens of the images before this one
};

// The windows of a batch of images. They lie on a grid of whole windows, which is the image, padded at the bottom and
// the right where they do not divide it.
struct Windows {
    int height, width;  // of an image
    int window_height, window_width;
    int positions;  // N = window_height * window_width
    int windows_x, windows_y, windows;  // windows along the grid's sides; in the whole batch
    int reciprocal;  // position / window_width == position * reciprocal >> 16
    // The place (y, x) of the grid holds the token at ((y + shift_height) mod wrap_height, ..) of the image: what was
    // padded and then rolled wraps at the grid's sides, what was rolled and then padded at the image's.
    int shift_height, shift_width, wrap_height, wrap_width;
    bool roll_first;
    bool padded;  // the grid is larger than the image
    // Where the mask divides a window of the last row (column), counted in tokens; and that row (column), -1 where the
    // axis is not shifted.
    int mask_y, mask_x;
    int masked_row, masked_column;
};

// What replaces the division by a window's width in position_at.
constexpr int reciprocal_of(int width) { return 65536 / width + 1; }
constexpr bool reciprocal_is_exact(int width) {
    for (int position = 0; position < kMaxWindow * width; ++position) {
        if (position * reciprocal_of(width) >> 16 != position / width) return false;
    }
    return true;
}
constexpr bool reciprocals_are_exact() {
    for (int width = 1; width <= kMaxWindow; ++width) {
        if (!reciprocal_is_exact(width)) return false;
    }
    return true;
}
static_assert(reciprocals_are_exact());

// The side of the grid: `side` rounded up to whole windows.
constexpr long long grid_side(long long side, long long window) { return (side + window - 1) / window * window; }

// Places of all grids, and what index arithmetic adds to a place, are ints.
constexpr bool fits_int(long long batch, long long grid_height, long long grid_width) {
    constexpr long long kMost = INT_MAX;
    return grid_height <= kMost - kMaxWindow && grid_width <= kMost - kMaxWindow && grid_height <= kMost / grid_width
        && batch <= kMost / (grid_height * grid_width);
}

// Whether these are windows of the contract, and then these windows. Given: SwinAttention, or any with its fields.
template <class Given> inline bool describe(Windows& windows, const Given& given) {
    const auto valid = [](int side, int window, int shift) {
        return side > 0 && window > 0 && window <= kMaxWindow && shift >= 0 && shift < window;
    };
    const auto is_flag = [](int value) { return value == 0 || value == 1; };
    if (given.batch <= 0 || !valid(given.height, given.window_height, given.shift_height)
        || !valid(given.width, given.window_width, given.shift_width) || !is_flag(given.roll_first)
        || !is_flag(given.shift_if_covered)) {
        return false;
    }
    const long long grid_height = grid_side(given.height, given.window_height);
    const long long grid_width = grid_side(given.width, given.window_width);
    if (!fits_int(given.batch, grid_height, grid_width)) {
        return false;
    }
    windows.height = given.height;
    windows.width = given.width;
    windows.window_height = given.window_height;
    windows.window_width = given.window_width;
    windows.positions = given.window_height * given.window_width;
    windows.windows_y = static_cast<int>(grid_height / given.window_height);
    windows.windows_x = static_cast<int>(grid_width / given.window_width);
    windows.windows = windows.windows_x * windows.windows_y * given.batch;
    windows.reciprocal = reciprocal_of(given.window_width);
    windows.roll_first = given.roll_first == 1;
    windows.padded = grid_height != given.height || grid_width != given.width;
    windows.wrap_height = windows.roll_first ? given.height : static_cast<int>(grid_height);
    windows.wrap_width = windows.roll_first ? given.width : static_cast<int>(grid_width);
    const int shift_height = given.shift_if_covered == 0 && windows.windows_y == 1 ? 0 : given.shift_height;
    const int shift_width = given.shift_if_covered == 0 && windows.windows_x == 1 ? 0 : given.shift_width;
    windows.shift_height = shift_height % windows.wrap_height;  // an image may be smaller than a window and its shift
    windows.shift_width = shift_width % windows.wrap_width;
    windows.mask_y = given.window_height - shift_height;
    windows.mask_x = given.window_width - shift_width;
    windows.masked_row = shift_height > 0 ? windows.windows_y - 1 : -1;
    windows.masked_column = shift_width > 0 ? windows.windows_x - 1 : -1;
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

__host__ __device__ inline Position position_at(const Windows& windows, int index) {
    const int row = index * windows.reciprocal >> 16;
    return {row, index - row * windows.window_width};
}

// The token that a position of a window holds; window reverse and the roll back write to the same token.
// kPadded: the windows may hold padded tokens, for which it is -1.
template <bool kPadded>
__host__ __device__ inline int token_of(const Windows& windows, const Window& window, const Position& position) {
    const int grid_y = window.y * windows.window_height + position.row;
    const int grid_x = window.x * windows.window_width + position.column;
    int y = grid_y + windows.shift_height;
    int x = grid_x + windows.shift_width;
    // Without padding the image is the grid. Fewer values to hold keep the INT8 branch's kernel from spilling registers.
    const int wrap_height = kPadded ? windows.wrap_height : windows.height;
    const int wrap_width = kPadded ? windows.wrap_width : windows.width;
    y -= y >= wrap_height ? wrap_height : 0;
    x -= x >= wrap_width ? wrap_width : 0;
    if (kPadded) {
        const bool outside = windows.roll_first ? grid_y >= windows.height || grid_x >= windows.width
                                                : y >= windows.height || x >= windows.width;
        if (outside) return -1;
    }
    return window.tokens + y * windows.width + x;
}

// Which side of the wrap a position lies on: bit 0 below it, bit 1 right of it. In a window of the last row (column) of
// the grid, tokens with different bits come from opposite ends of the image and must not see each other:
//   masked(i, j) = ((mask_flags(i) ^ mask_flags(j)) & mask_axes(window)) != 0
__host__ __device__ inline unsigned mask_flags(const Windows& windows, int index) {
    const Position position = position_at(windows, index);
    return static_cast<unsigned>(position.row >= windows.mask_y)
        | static_cast<unsigned>(position.column >= windows.mask_x) << 1;
}
__host__ __device__ inline unsigned mask_axes(const Windows& windows, const Window& window) {
    return static_cast<unsigned>(window.y == windows.masked_row)
        | static_cast<unsigned>(window.x == windows.masked_column) << 1;
}

}  // namespace swin
