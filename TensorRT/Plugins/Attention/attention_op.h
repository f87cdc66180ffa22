// What the attention operators have in common, whatever the type of qkv: attributes, checks and the shape of y.
#pragma once

#include <string>

#include "Attention/windows.cuh"
#include "common/registration.h"

namespace swin {

struct AttentionAttributes {
    int32_t num_heads, window_height, window_width, shift_height, shift_width, roll_first, shift_if_covered;
    float scale, mask_value;
};

// The windows and heads of qkv [B, H, W, 3C]; H and W may be any.
inline void check_windows(const AttentionAttributes& a, const Shape& qkv) {
    check_image("qkv", qkv);
    if (a.num_heads < 1) throw Refusal("num_heads is " + std::to_string(a.num_heads));
    const int64_t heads = int64_t{3} * a.num_heads, head_width = qkv.last() / heads;
    if (qkv.last() != kUnknown
        && (qkv.last() % heads != 0 || head_width < 8 || head_width > 64 || head_width % 8 != 0)) {
        throw Refusal("qkv has " + std::to_string(qkv.last()) + " channels for " + std::to_string(a.num_heads)
            + " heads; q, k and v of a head must have a multiple of 8 from 8 to 64");
    }
    const auto check_axis = [](const char* axis, int32_t window, int32_t shift) {
        if (window < 1 || window > kMaxWindow) {
            throw Refusal(std::string("window_") + axis + ' ' + std::to_string(window) + " is not in 1 to "
                + std::to_string(kMaxWindow));
        }
        if (shift < 0 || shift >= window) {
            throw Refusal(std::string("shift_") + axis + ' ' + std::to_string(shift) + " is not in 0 .. window_" + axis
                + " - 1");
        }
    };
    check_axis("height", a.window_height, a.shift_height);
    check_axis("width", a.window_width, a.shift_width);
    check_flag("roll_first", a.roll_first);
    check_flag("shift_if_covered", a.shift_if_covered);
    const int64_t batch = qkv.sizes[0], height = qkv.sizes[1], width = qkv.sizes[2];
    if (batch > 0 && height > 0 && width > 0
        && !fits_int(batch, grid_side(height, a.window_height), grid_side(width, a.window_width))) {
        throw Refusal("qkv is " + qkv.text() + ", more than 2^31 - 1 tokens with the padding to whole windows");
    }
}

inline Shape bias_shape(const AttentionAttributes& a) {
    const int64_t positions = int64_t{a.window_height} * a.window_width;
    return {{a.num_heads, positions, (positions + 7) / 8 * 8}};
}

// Inputs: qkv, bias, padding, and logit_scale where there are four.
inline void check_attention(const AttentionAttributes& a, const Inputs& inputs) {
    check_windows(a, inputs[0]);
    expect_shape("bias", inputs[1], bias_shape(a));
    expect_shape("padding", inputs[2], {{inputs[0].last()}});
    if (inputs.size() > 3) expect_shape("logit_scale", inputs[3], {{a.num_heads}});
}

struct AttentionOperator : Operator {
    static constexpr const char* kEarlierAttribute = "window_size";

    template <class Attributes>
    static SymbolicShape output_shape(const Attributes&, int, const std::vector<SymbolicShape>& inputs) {
        const SymbolicShape& qkv = inputs[0];
        return {qkv[0], qkv[1], qkv[2], qkv[3] / 3};
    }

    // What SwinAttention and SwinAttentionInt8, the structures, are given alike.
    template <class Given> static void fill(Given& given, const AttentionAttributes& a, const Call& call) {
        const Shape& qkv = call.shapes[0];
        given.qkv = call.input(0);
        given.bias = call.parameter(1);
        given.padding = call.parameter(2);
        given.logit_scale = call.parameter(3);
        given.y = call.outputs[0];
        given.batch = static_cast<int>(qkv.sizes[0]);
        given.height = static_cast<int>(qkv.sizes[1]);
        given.width = static_cast<int>(qkv.sizes[2]);
        given.channels = static_cast<int>(qkv.last() / 3);
        given.num_heads = a.num_heads;
        given.window_height = a.window_height;
        given.window_width = a.window_width;
        given.shift_height = a.shift_height;
        given.shift_width = a.shift_width;
        given.roll_first = a.roll_first;
        given.shift_if_covered = a.shift_if_covered;
        given.scale = a.scale;
        given.mask_value = a.mask_value;
    }
};

}  // namespace swin
