// Attention/windows.cuh on the host, for tests/test_windows.py, which compiles it and calls it through ctypes.
#include "Attention/windows.cuh"

struct Given {
    int batch, height, width, window_height, window_width, shift_height, shift_width, roll_first, shift_if_covered;
};

struct Counts { int windows, positions, padded; };

// 1 and the counts, or 0 for windows outside the contract.
extern "C" int count(const Given* given, Counts* counts) {
    swin::Windows windows{};
    if (!swin::describe(windows, *given)) return 0;
    *counts = {windows.windows, windows.positions, windows.padded};
    return 1;
}

// tokens [windows, positions], -1 for padded ones; flags [positions]; axes [windows].
extern "C" void fill(const Given* given, int* tokens, int* flags, int* axes) {
    swin::Windows windows{};
    swin::describe(windows, *given);
    for (int w = 0; w < windows.windows; ++w) {
        const swin::Window window = swin::window_at(windows, w);
        axes[w] = static_cast<int>(swin::mask_axes(windows, window));
        for (int p = 0; p < windows.positions; ++p) {
            const swin::Position position = swin::position_at(windows, p);
            flags[p] = static_cast<int>(swin::mask_flags(windows, p));
            *tokens++ = windows.padded ? swin::token_of<true>(windows, window, position)
                                       : swin::token_of<false>(windows, window, position);
        }
    }
}
