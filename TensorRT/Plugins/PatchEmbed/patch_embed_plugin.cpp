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
        int32_t patch_size;
        int32_t y_type;  // SWIN_FP32 or SWIN_FP16
    };
    static constexpr Field<Attributes> kFields[]
        = {{"epsilon", &Attributes::epsilon}, {"patch_size", &Attributes::patch_size}, {"y_type", &Attributes::y_type}};

    static Type output_type(const Attributes& attributes, int /* output */) {
        return attributes.y_type == SWIN_FP16 ? Type::kFp16 : Type::kFp32;
    }

    static SymbolicShape output_shape(
        const Attributes& attributes, int /* output */, const std::vector<SymbolicShape>& inputs) {
        const SymbolicShape& x = inputs[0];
        const int patch = attributes.patch_size < 1 ? 1 : attributes.patch_size;  // less is refused by check
        return {x[0], (x[2] / patch) * (x[3] / patch), inputs[1][0]};
    }

    static void check(const Attributes& attributes, const Inputs& inputs) {
        const int64_t patch = attributes.patch_size;
        if (patch < 1) throw Refusal("patch_size is " + std::to_string(patch) + " instead of 1 or more");
        if (attributes.y_type != SWIN_FP32 && attributes.y_type != SWIN_FP16) {
            throw Refusal("y_type is " + std::to_string(attributes.y_type) + " instead of 0 (FP32) or 1 (FP16)");
        }
        const Shape& x = inputs[0];
        expect_rank("x", x, 4);
        expect_rank("weight", inputs[1], 4);
        const int64_t channels = inputs[1].sizes[0];
        expect_shape("weight", inputs[1], {{channels, x.sizes[1], patch, patch}});
        for (int i = 2; i < 5; ++i) expect_shape(kInputs[i].name, inputs[i], {{channels}});
        check_rows(x, channels);
        for (int axis = 2; axis < 4; ++axis) {
            if (x.sizes[axis] != kUnknown && x.sizes[axis] % patch != 0) {
                throw Refusal("x is " + x.text() + ", which patches of " + std::to_string(patch) + " do not divide");
            }
        }
        if (x.sizes[1] != kUnknown && x.sizes[1] * patch * patch > SWIN_MAX_PATCH) {
            throw Refusal("patches of " + std::to_string(x.sizes[1] * patch * patch) + " elements are larger than "
                + std::to_string(SWIN_MAX_PATCH));
        }
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
        a.patch_size = attributes.patch_size;
        a.channels = size(1, 0);
        a.epsilon = attributes.epsilon;
        return swin_patch_embed(&a, call.stream);
    }
};

SWIN_REGISTER(PatchEmbedOp)

}  // namespace
