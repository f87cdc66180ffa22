// LayerNorm with weight and bias, by itself and fused with its neighbours. README.md beside this file is the contract.
#include <array>

#include "LayerNorm/layernorm_kernel.h"
#include "LayerNormPlugin_with_params/layernorm_fused_kernel.h"
#include "common/registration.h"

namespace {

using namespace swin;

struct EpsilonAttribute { float epsilon; };
constexpr Field<EpsilonAttribute> kEpsilonField{"epsilon", &EpsilonAttribute::epsilon};

struct LayerNormWithParamsOp : Operator {
    static constexpr const char* kName = "SwinLayerNormWithParams";
    static constexpr Input kInputs[] = {{"x", Type::kActivation}, {"gamma", Type::kFp32}, {"beta", Type::kFp32}};
    static constexpr int kRequired = 3;

    using Attributes = EpsilonAttribute;
    static constexpr Field<Attributes> kFields[] = {kEpsilonField};

    static void check(const Attributes&, const Inputs& inputs) {
        check_rows(inputs[0], inputs[0].last());
        expect_shape("gamma", inputs[1], {{inputs[0].last()}});
        expect_shape("beta", inputs[2], {{inputs[0].last()}});
    }

    static int launch(const Attributes& attributes, const Call& call) {
        const Shape& x = call.shapes[0];
        SwinLayerNorm a{};
        a.x = call.input(0);
        a.gamma = call.parameter(1);
        a.beta = call.parameter(2);
        a.y = call.outputs[0];
        a.rows = x.rows();
        a.type = call.type;
        a.width = static_cast<int>(x.last());
        a.epsilon = attributes.epsilon;
        return swin_layernorm(&a, call.stream);
    }
};

// What the forms with a residual share.
struct ResidualLayerNorm : Operator {
    static constexpr Input kInputs[]
        = {{"x", Type::kActivation}, {"residual", Type::kActivation}, {"gamma", Type::kFp32}, {"beta", Type::kFp32}};
    static constexpr int kRequired = 4;

    using Attributes = EpsilonAttribute;
    static constexpr Field<Attributes> kFields[] = {kEpsilonField};

    static void check(const Attributes&, const Inputs& inputs) {
        check_rows(inputs[0], inputs[0].last());
        expect_shape("residual", inputs[1], inputs[0]);
        expect_shape("gamma", inputs[2], {{inputs[0].last()}});
        expect_shape("beta", inputs[3], {{inputs[0].last()}});
    }
};

struct AddLayerNormOp : ResidualLayerNorm {
    static constexpr const char* kName = "SwinAddLayerNorm";
    static constexpr int kOutputs = 2;

    static int launch(const Attributes& attributes, const Call& call) {
        const Shape& x = call.shapes[0];
        SwinAddLayerNorm a{};
        a.x = call.input(0);
        a.residual = call.input(1);
        a.gamma = call.parameter(2);
        a.beta = call.parameter(3);
        a.sum = call.outputs[0];
        a.y = call.outputs[1];
        a.rows = x.rows();
        a.type = call.type;
        a.width = static_cast<int>(x.last());
        a.epsilon = attributes.epsilon;
        return swin_add_layernorm(&a, call.stream);
    }
};

struct LayerNormAddOp : ResidualLayerNorm {
    static constexpr const char* kName = "SwinLayerNormAdd";

    static int launch(const Attributes& attributes, const Call& call) {
        const Shape& x = call.shapes[0];
        SwinLayerNormAdd a{};
        a.x = call.input(0);
        a.residual = call.input(1);
        a.gamma = call.parameter(2);
        a.beta = call.parameter(3);
        a.y = call.outputs[0];
        a.rows = x.rows();
        a.type = call.type;
        a.width = static_cast<int>(x.last());
        a.epsilon = attributes.epsilon;
        return swin_layernorm_add(&a, call.stream);
    }
};

// What the two forms of patch merging share: [B, H, W, C] -> [B, ceil(H/2), ceil(W/2), 4C].
struct MergeOperator : Operator {
    static constexpr const char* kEarlierAttribute = "height";

    template <class Attributes>
    static SymbolicShape output_shape(const Attributes&, int, const std::vector<SymbolicShape>& inputs) {
        const SymbolicShape& x = inputs[0];
        return {x[0], x[1].ceil_div(2), x[2].ceil_div(2), x[3] * 4};
    }

    static SwinPatchMerge arguments(const Call& call) {
        const Shape& x = call.shapes[0];
        SwinPatchMerge a{};
        a.x = call.input(0);
        a.y = call.outputs[0];
        a.type = call.type;
        a.batch = static_cast<int>(x.sizes[0]);
        a.height = static_cast<int>(x.sizes[1]);
        a.width = static_cast<int>(x.sizes[2]);
        a.channels = static_cast<int>(x.last());
        return a;
    }

    static void check_merge(const Shape& x) {
        check_image("x", x);
        if (x.last() != kUnknown) check_rows(x, 4 * x.last());
    }
};

struct PatchMergeLayerNormOp : MergeOperator {
    static constexpr const char* kName = "SwinPatchMergeLayerNorm";
    static constexpr Input kInputs[] = {{"x", Type::kActivation}, {"gamma", Type::kFp32}, {"beta", Type::kFp32}};
    static constexpr int kRequired = 3;

    using Attributes = EpsilonAttribute;
    static constexpr Field<Attributes> kFields[] = {kEpsilonField};

    static void check(const Attributes&, const Inputs& inputs) {
        check_merge(inputs[0]);
        const int64_t merged = inputs[0].last() == kUnknown ? kUnknown : 4 * inputs[0].last();
        expect_shape("gamma", inputs[1], {{merged}});
        expect_shape("beta", inputs[2], {{merged}});
    }

    static int launch(const Attributes& attributes, const Call& call) {
        SwinPatchMerge a = arguments(call);
        a.gamma = call.parameter(1);
        a.beta = call.parameter(2);
        a.epsilon = attributes.epsilon;
        return swin_patch_merge(&a, call.stream);
    }
};

struct PatchMergeOp : MergeOperator {
    static constexpr const char* kName = "SwinPatchMerge";
    static constexpr Input kInputs[] = {{"x", Type::kActivation}};
    static constexpr int kRequired = 1;

    struct Attributes {};
    static constexpr std::array<Field<Attributes>, 0> kFields{};

    static void check(const Attributes&, const Inputs& inputs) { check_merge(inputs[0]); }

    static int launch(const Attributes&, const Call& call) {
        const SwinPatchMerge a = arguments(call);
        return swin_patch_merge(&a, call.stream);
    }
};

SWIN_REGISTER(LayerNormWithParamsOp)
SWIN_REGISTER(AddLayerNormOp)
SWIN_REGISTER(LayerNormAddOp)
SWIN_REGISTER(PatchMergeLayerNormOp)
SWIN_REGISTER(PatchMergeOp)

}  // namespace
