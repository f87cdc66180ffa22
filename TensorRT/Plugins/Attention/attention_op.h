// What the attention operators have in common, whatever the type of qkv: attributes, checks and the shape of y.
#pragma once

#include <string>

#include "common/plugin.h"

namespace swin {

struct AttentionAttributes {
    int32_t height, width, num_heads, window_size, shift_size;
    float scale, mask_value;
};

// Inputs: qkv, bias, and logit_scale where there are three.
inline void check_attention(const AttentionAttributes& a, const Inputs& inputs) {
    constexpr int64_t kHeadDim = 32;
    constexpr int64_t kMaxWindow = 32;
    const Shape& qkv = inputs[0];
    check_image("qkv", qkv, a.height, a.width);
    if (a.num_heads < 1) throw Refusal("num_heads is " + std::to_string(a.num_heads));
    if (qkv.last() != kUnknown && qkv.last() != 3 * kHeadDim * a.num_heads) {
        throw Refusal("qkv has " + std::to_string(qkv.last()) + " channels for " + std::to_string(a.num_heads)
            + " heads; the head dimension must be 32, which takes 3 * 32 * " + std::to_string(a.num_heads));
    }
    const std::string window = "window_size " + std::to_string(a.window_size);
    if (a.window_size < 1 || a.window_size > kMaxWindow) {
        throw Refusal(window + " is not in 1 to " + std::to_string(kMaxWindow));
    }
    if (a.height % a.window_size != 0 || a.width % a.window_size != 0) {
        throw Refusal(
            window + " does not divide height " + std::to_string(a.height) + " and width " + std::to_string(a.width));
    }
    if (a.shift_size < 0 || a.shift_size >= a.window_size) {
        throw Refusal("shift_size " + std::to_string(a.shift_size) + " is not in 0 .. window_size - 1");
    }
    const int64_t positions = a.window_size * a.window_size;
    expect_shape("bias", inputs[1], {{a.num_heads, positions, (positions + 7) / 8 * 8}});
    if (inputs.size() > 2) expect_shape("logit_scale", inputs[2], {{a.num_heads}});
}

struct AttentionOperator : Operator {
    template <class Attributes>
    static SymbolicShape output_shape(const Attributes&, int, const std::vector<SymbolicShape>& inputs) {
        const SymbolicShape& qkv = inputs[0];
        return {qkv[0], qkv[1], qkv[2] / 3};
    }
};

}  // namespace swin
