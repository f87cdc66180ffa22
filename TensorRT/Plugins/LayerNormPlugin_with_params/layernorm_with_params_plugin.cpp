// LayerNorm with weight and bias, alone and fused with its neighbours. README.md beside this file is the contract.
#include "LayerNorm/layernorm_kernel.h"
#include "LayerNormPlugin_with_params/layernorm_fused_kernel.h"
#include "common/registration.h"

namespace {

using namespace swin;

struct EpsilonAttribute {
    float epsilon;
};
constexpr Field<EpsilonAttribute> kEpsilonField{"epsilon", &EpsilonAttribute::epsilon};

struct LayerNormWithParamsOp {
    static constexpr const char* kName = "SwinLayerNormWithParams";
    static constexpr const char* kInputs[] = {"x", "gamma", "beta"};
    static constexpr int kActivations = 1;
    static constexpr int kRequired = 3;
    static constexpr int kOutputs = 1;
    static constexpr Ratio kTokens{}, kChannels{};

    using Attributes = EpsilonAttribute;
    static constexpr Field<Attributes> kFields[] = {kEpsilonField};

    static void check(const Attributes&, const Inputs& inputs) {
        check_rows(inputs, kActivations, inputs[0].last());
        expect_shape("gamma", inputs[1], {inputs[0].last()});
        expect_shape("beta", inputs[2], {inputs[0].last()});
    }

    static int launch(const Attributes& attributes, const Call& call) {
        const Shape& x = call.shapes[0];
        return swin_layernorm(call.inputs[0], call.parameter(1), call.parameter(2), call.outputs[0], call.type,
            x.rows(), static_cast<int>(x.last()), attributes.epsilon, call.stream);
    }
};

// What the forms with a residual share.
struct ResidualLayerNorm {
    static constexpr const char* kInputs[] = {"x", "residual", "gamma", "beta"};
    static constexpr int kActivations = 2;
    static constexpr int kRequired = 4;
    static constexpr Ratio kTokens{}, kChannels{};

    using Attributes = EpsilonAttribute;
    static constexpr Field<Attributes> kFields[] = {kEpsilonField};

    static void check(const Attributes&, const Inputs& inputs) {
        check_rows(inputs, kActivations, inputs[0].last());
        expect_shape("gamma", inputs[2], {inputs[0].last()});
        expect_shape("beta", inputs[3], {inputs[0].last()});
    }
};

struct AddLayerNormOp : ResidualLayerNorm {
    static constexpr const char* kName = "SwinAddLayerNorm";
    static constexpr int kOutputs = 2;

    static int launch(const Attributes& attributes, const Call& call) {
        const Shape& x = call.shapes[0];
        return swin_add_layernorm(call.inputs[0], call.inputs[1], call.parameter(2), call.parameter(3),
            call.outputs[0], call.outputs[1], call.type, x.rows(), static_cast<int>(x.last()), attributes.epsilon,
            call.stream);
    }
};

struct LayerNormAddOp : ResidualLayerNorm {
    static constexpr const char* kName = "SwinLayerNormAdd";
    static constexpr int kOutputs = 1;

    static int launch(const Attributes& attributes, const Call& call) {
        const Shape& x = call.shapes[0];
        return swin_layernorm_add(call.inputs[0], call.inputs[1], call.parameter(2), call.parameter(3),
            call.outputs[0], call.type, x.rows(), static_cast<int>(x.last()), attributes.epsilon, call.stream);
    }
};

void check_merge(const Inputs& inputs, int64_t height, int64_t width) {
    check_image("x", inputs[0], height, width);
    if (height % 2 != 0 || width % 2 != 0) {
        throw Refusal("height " + std::to_string(height) + " and width " + std::to_string(width) + " must be even");
    }
    if (inputs[0].last() != kUnknown) check_rows(inputs, 1, 4 * inputs[0].last());
}

struct PatchMergeLayerNormOp {
    static constexpr const char* kName = "SwinPatchMergeLayerNorm";
    static constexpr const char* kInputs[] = {"x", "gamma", "beta"};
    static constexpr int kActivations = 1;
    static constexpr int kRequired = 3;
    static constexpr int kOutputs = 1;
    static constexpr Ratio kTokens{1, 4}, kChannels{4, 1};

    struct Attributes {
        float epsilon;
        int32_t height, width;
    };
    static constexpr Field<Attributes> kFields[] = {
        {"epsilon", &Attributes::epsilon}, {"height", &Attributes::height}, {"width", &Attributes::width}};

    static void check(const Attributes& attributes, const Inputs& inputs) {
        check_merge(inputs, attributes.height, attributes.width);
        const int64_t merged = inputs[0].last() == kUnknown ? kUnknown : 4 * inputs[0].last();
        expect_shape("gamma", inputs[1], {merged});
        expect_shape("beta", inputs[2], {merged});
    }

    static int launch(const Attributes& attributes, const Call& call) {
        const Shape& x = call.shapes[0];
        return swin_patch_merge(call.inputs[0], call.parameter(1), call.parameter(2), call.outputs[0], call.type,
            static_cast<int>(x.sizes[0]), attributes.height, attributes.width, static_cast<int>(x.last()),
            attributes.epsilon, call.stream);
    }
};

struct PatchMergeOp {
    static constexpr const char* kName = "SwinPatchMerge";
    static constexpr const char* kInputs[] = {"x"};
    static constexpr int kActivations = 1;
    static constexpr int kRequired = 1;
    static constexpr int kOutputs = 1;
    static constexpr Ratio kTokens{1, 4}, kChannels{4, 1};

    struct Attributes {
        int32_t height, width;
    };
    static constexpr Field<Attributes> kFields[] = {{"height", &Attributes::height}, {"width", &Attributes::width}};

    static void check(const Attributes& attributes, const Inputs& inputs) {
        check_merge(inputs, attributes.height, attributes.width);
    }

    static int launch(const Attributes& attributes, const Call& call) {
        const Shape& x = call.shapes[0];
        return swin_patch_merge(call.inputs[0], nullptr, nullptr, call.outputs[0], call.type,
            static_cast<int>(x.sizes[0]), attributes.height, attributes.width, static_cast<int>(x.last()), 0.0f,
            call.stream);
    }
};

SWIN_REGISTER(LayerNormWithParamsOp)
SWIN_REGISTER(AddLayerNormOp)
SWIN_REGISTER(LayerNormAddOp)
SWIN_REGISTER(PatchMergeLayerNormOp)
SWIN_REGISTER(PatchMergeOp)

}  // namespace
