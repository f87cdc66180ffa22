// SwinPatchEmbed: the image to normalised tokens. README.md beside this file is the contract.
#include "PatchEmbed/patch_embed_kernel.h"
#include "common/registration.h"

namespace {

using namespace swin;

struct PatchEmbedOp : Operator {
    static constexpr const char* kName = "SwinPatchEmbed";
    static constexpr Input kInputs[] = {{"x", Type::kFp32}, {"weight", Type::kFp32}, {"bias", Type::kFp32},
        {"gamma", Type::kFp32}, {"beta", Type::kFp32}};
    static constexpr int kRequired = 5;

    struct Attributes {
        float epsilon;
        int32_t patch_height, patch_width;
        int32_t ceil;    // where a patch does not fit into the image: 1, it is padded with zeros; 0, it is left out
        int32_t y_type;  // SWIN_FP32 or SWIN_FP16
    };
    static constexpr Field<Attributes> kFields[] = {{"epsilon", &Attributes::epsilon},
        {"patch_height", &Attributes::patch_height}, {"patch_width", &Attributes::patch_width},
        {"ceil", &Attributes::ceil}, {"y_type", &Attributes::y_type}};
    static constexpr const char* kEarlierAttribute = "patch_size";

    static Type output_type(const Attributes& attributes, int /* output */) {
        return attributes.y_type == SWIN_FP16 ? Type::kFp16 : Type::kFp32;
    }

    static SymbolicShape output_shape(
        const Attributes& attributes, int /* output */, const std::vector<SymbolicShape>& inputs) {
        const SymbolicShape& x = inputs[0];
        const auto tokens = [&](const SymbolicSize& side, int patch) {
            return attributes.ceil == 1 ? side.ceil_div(patch) : side / patch;
        };
        return {x[0], tokens(x[2], attributes.patch_height), tokens(x[3], attributes.patch_width), inputs[1][0]};
    }

    static void check(const Attributes& attributes, const Inputs& inputs) {
        const int64_t patch[] = {attributes.patch_height, attributes.patch_width};
        if (patch[0] < 1) throw Refusal("patch_height is " + std::to_string(patch[0]) + " instead of 1 or more");
        if (patch[1] < 1) throw Refusal("patch_width is " + std::to_string(patch[1]) + " instead of 1 or more");
        check_flag("ceil", attributes.ceil);
        if (attributes.y_type != SWIN_FP32 && attributes.y_type != SWIN_FP16) {
            throw Refusal("y_type is " + std::to_string(attributes.y_type) + " instead of 0 (FP32) or 1 (FP16)");
        }
        const Shape& x = inputs[0];
        expect_rank("x", x, 4);
        expect_rank("weight", inputs[1], 4);
        const int64_t channels = inputs[1].sizes[0];
        expect_shape("weight", inputs[1], {{channels, x.sizes[1], patch[0], patch[1]}});
        for (int i = 2; i < 5; ++i) expect_shape(kInputs[i].name, inputs[i], {{channels}});
        check_rows(x, channels);
        if (x.sizes[1] != kUnknown && x.sizes[1] * patch[0] * patch[1] > SWIN_MAX_PATCH) {
            throw Refusal("patches of " + std::to_string(x.sizes[1] * patch[0] * patch[1])
                + " elements are larger than " + std::to_string(SWIN_MAX_PATCH));
        }
        Shape y{{x.sizes[0], kUnknown, kUnknown, channels}};
        for (int axis = 0; axis < 2; ++axis) {
            const int64_t side = x.sizes[2 + axis];
            if (side == kUnknown) continue;
            if (side < patch[axis] && side > 0 && attributes.ceil == 0) {
                throw Refusal("x is " + x.text() + ", smaller than a patch of " + std::to_string(patch[0]) + " x "
                    + std::to_string(patch[1]));
            }
            y.sizes[1 + axis] = side / patch[axis] + (attributes.ceil == 1 && side % patch[axis] != 0);
        }
        check_image("y", y);
    }

    static int launch(const Attributes& attributes, const Call& call) {
        const auto size = [&](int input, int axis) { return static_cast<int>(call.shapes[input].sizes[axis]); };
        SwinPatchEmbed a{};
        a.x = call.parameter(0);
        a.weight = call.parameter(1);
        a.bias = call.parameter(2);
        a.gamma = call.parameter(3);
        a.beta = call.parameter(4);
        a.y = call.outputs[0];
        a.y_type = attributes.y_type;
        a.batch = size(0, 0);
        a.in_channels = size(0, 1);
        a.height = size(0, 2);
        a.width = size(0, 3);
        a.patch_height = attributes.patch_height;
        a.patch_width = attributes.patch_width;
        a.ceil = attributes.ceil;
        a.channels = size(1, 0);
        a.epsilon = attributes.epsilon;
        return swin_patch_embed(&a, call.stream);
    }
};

SWIN_REGISTER(PatchEmbedOp)

}  // namespace
