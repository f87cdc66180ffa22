// SwinAttentionBranchInt8: the attention branch of a Swin block on INT8 tensors, with its residual and its LayerNorm.
// README.md beside this file is the contract.
#include "Attention/attention_op.h"
#include "Int8/attention_branch_int8_kernel.h"
#include "Int8/int8_op.h"
#include "common/registration.h"

namespace {

using namespace swin;

struct AttentionBranchInt8Op : Operator {
    static constexpr const char* kName = "SwinAttentionBranchInt8";
    static constexpr Input kInputs[] = {{"x_q", Type::kInt8}, {"x", Type::kFp16}, {"qkv_weight", Type::kInt8},
        {"qkv_factor", Type::kFp32}, {"qkv_bias", Type::kFp32}, {"proj_weight", Type::kInt8},
        {"proj_factor", Type::kFp32}, {"proj_bias", Type::kFp32}, {"bias", Type::kFp32}, {"gamma", Type::kFp32},
        {"beta", Type::kFp32}, {"logit_scale", Type::kFp32}};
    static constexpr int kRequired = 11;
    static constexpr int kOutputs = 2;
    static constexpr size_t kWorkspaceBytes = SWIN_ATTENTION_BRANCH_WORKSPACE_BYTES;
    static constexpr const char* kEarlierAttribute = "height";

    struct Attributes : AttentionAttributes {
        int32_t norm_first;
        float qkv_scale, attention_scale, proj_scale, epsilon, y_scale;
    };
    static constexpr Field<Attributes> kFields[] = {{"num_heads", &Attributes::num_heads},
        {"window_height", &Attributes::window_height}, {"window_width", &Attributes::window_width},
        {"shift_height", &Attributes::shift_height}, {"shift_width", &Attributes::shift_width},
        {"roll_first", &Attributes::roll_first}, {"shift_if_covered", &Attributes::shift_if_covered},
        {"norm_first", &Attributes::norm_first}, {"scale", &Attributes::scale}, {"mask_value", &Attributes::mask_value},
        {"qkv_scale", &Attributes::qkv_scale},
        {"attention_scale", &Attributes::attention_scale}, {"proj_scale", &Attributes::proj_scale},
        {"epsilon", &Attributes::epsilon}, {"y_scale", &Attributes::y_scale}};

    static Type output_type(const Attributes&, int output) { return output == 0 ? Type::kFp16 : Type::kInt8; }

    static void check(const Attributes& a, const Inputs& inputs) {
        if (a.norm_first != 0 && a.norm_first != 1) {
            throw Refusal("norm_first is " + std::to_string(a.norm_first) + " instead of 0 or 1");
        }
        const size_t expected = a.norm_first == 1 ? kRequired : kRequired + 1;
        if (inputs.size() != expected) {
            throw Refusal("has " + std::to_string(inputs.size()) + " inputs; norm_first " + std::to_string(a.norm_first)
                + " takes " + std::to_string(expected)
                + (a.norm_first == 1 ? ", without logit_scale" : ", with logit_scale"));
        }
        check_scale("qkv_scale", a.qkv_scale);
        check_scale("attention_scale", a.attention_scale);
        check_scale("y_scale", a.y_scale);
        if (a.norm_first == 0) check_scale("proj_scale", a.proj_scale);
        if (a.norm_first == 1 && a.proj_scale != 0) {
            throw Refusal("proj_scale is " + std::to_string(a.proj_scale)
                + "; norm_first 1, which adds proj to x before it is rounded, takes 0");
        }
        const Shape& x = inputs[0];
        check_image("x_q", x);
        Shape qkv = x;
        qkv.sizes.back() = kUnknown;  // checked here
        check_windows(a, qkv);
        if (a.window_height != a.window_width) {
            throw Refusal("windows of " + std::to_string(a.window_height) + " x " + std::to_string(a.window_width)
                + " are not square");
        }
        const int64_t channels = int64_t{kHeadDim} * a.num_heads, height = x.sizes[1], width = x.sizes[2];
        if (x.last() != kUnknown && x.last() != channels) {
            throw Refusal("x_q has " + std::to_string(x.last()) + " channels for " + std::to_string(a.num_heads)
                + " heads; the head dimension must be 32");
        }
        for (const int64_t side : {height, width}) {
            if (side != kUnknown && side % a.window_height != 0) {
                throw Refusal("x_q is " + x.text() + ", which windows of " + std::to_string(a.window_height)
                    + " do not divide");
            }
        }
        check_rows(x, channels);
        if (height != kUnknown && width != kUnknown) {
            const int64_t image = attention_branch_bytes_per_image(height * width, channels);
            if (image > static_cast<int64_t>(kWorkspaceBytes)) {
                throw Refusal("qkv of an image is " + std::to_string(image) + " bytes, more than the workspace's "
                    + std::to_string(kWorkspaceBytes));
            }
        }
        expect_shape("bias", inputs[8], bias_shape(a));
        if (inputs.size() > kRequired) expect_shape("logit_scale", inputs[kRequired], {{a.num_heads}});
        expect_shape("x", inputs[1], x);
        expect_shape("qkv_weight", inputs[2], {{3 * channels, channels}});
        expect_shape("qkv_factor", inputs[3], {{3 * channels}});
        expect_shape("qkv_bias", inputs[4], {{3 * channels}});
        expect_shape("proj_weight", inputs[5], {{channels, channels}});
        expect_shape("proj_factor", inputs[6], {{channels}});
        expect_shape("proj_bias", inputs[7], {{channels}});
        expect_shape("gamma", inputs[9], {{channels}});
        expect_shape("beta", inputs[10], {{channels}});
    }

    static int launch(const Attributes& attributes, const Call& call) {
        SwinAttentionBranchInt8 a{};
        a.x_q = static_cast<const int8_t*>(call.input(0));
        a.x = call.input(1);
        a.qkv_weight = static_cast<const int8_t*>(call.input(2));
        a.qkv_factor = call.parameter(3);
        a.qkv_bias = call.parameter(4);
        a.proj_weight = static_cast<const int8_t*>(call.input(5));
        a.proj_factor = call.parameter(6);
        a.proj_bias = call.parameter(7);
        a.bias = call.parameter(8);
        a.gamma = call.parameter(9);
        a.beta = call.parameter(10);
        a.logit_scale = call.parameter(11);
        a.y = call.outputs[0];
        a.y_q = static_cast<int8_t*>(call.outputs[1]);
        a.batch = static_cast<int>(call.shapes[0].sizes[0]);
        a.height = static_cast<int>(call.shapes[0].sizes[1]);
        a.width = static_cast<int>(call.shapes[0].sizes[2]);
        a.num_heads = attributes.num_heads;
        a.window_height = attributes.window_height;
        a.window_width = attributes.window_width;
        a.shift_height = attributes.shift_height;
        a.shift_width = attributes.shift_width;
        a.roll_first = attributes.roll_first;
        a.shift_if_covered = attributes.shift_if_covered;
        a.norm_first = attributes.norm_first;
        a.scale = attributes.scale;
        a.mask_value = attributes.mask_value;
        a.qkv_scale = attributes.qkv_scale;
        a.attention_scale = attributes.attention_scale;
        a.proj_scale = attributes.proj_scale;
        a.epsilon = attributes.epsilon;
        a.y_scale = attributes.y_scale;
        a.workspace = call.workspace;
        a.workspace_bytes = kWorkspaceBytes;
        return swin_attention_branch_int8(&a, call.stream);
    }
};

SWIN_REGISTER(AttentionBranchInt8Op)

}  // namespace
