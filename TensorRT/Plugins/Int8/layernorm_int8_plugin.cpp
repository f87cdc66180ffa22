// SwinLayerNormInt8, SwinLayerNormAddInt8 and SwinQuantize. README.md beside this file is the contract.
#include "Int8/int8_op.h"
#include "Int8/layernorm_int8_kernel.h"
#include "common/registration.h"

namespace {

using namespace swin;

struct LayerNormInt8Op : Operator {
    static constexpr const char* kName = "SwinLayerNormInt8";
    static constexpr Input kInputs[] = {{"x", Type::kFp16}, {"gamma", Type::kFp32}, {"beta", Type::kFp32}};
    static constexpr int kRequired = 3;

    struct Attributes { float epsilon, y_scale; };
    static constexpr Field<Attributes> kFields[]
        = {{"epsilon", &Attributes::epsilon}, {"y_scale", &Attributes::y_scale}};

    static Type output_type(const Attributes&, int) { return Type::kInt8; }

    static void check(const Attributes& attributes, const Inputs& inputs) {
        check_scale("y_scale", attributes.y_scale);
        check_rows(inputs[0], inputs[0].last());
        expect_shape("gamma", inputs[1], {{inputs[0].last()}});
        expect_shape("beta", inputs[2], {{inputs[0].last()}});
    }

    static int launch(const Attributes& attributes, const Call& call) {
        const Shape& x = call.shapes[0];
        SwinLayerNormInt8 a{};
        a.x = call.input(0);
        a.gamma = call.parameter(1);
        a.beta = call.parameter(2);
        a.y_q = call.outputs[0];
        a.rows = x.rows();
        a.width = static_cast<int>(x.last());
        a.epsilon = attributes.epsilon;
        a.y_scale = attributes.y_scale;
        return swin_layernorm_int8(&a, call.stream);
    }
};

struct LayerNormAddInt8Op : Operator {
    static constexpr const char* kName = "SwinLayerNormAddInt8";
    static constexpr Input kInputs[]
        = {{"x", Type::kFp16}, {"residual", Type::kFp16}, {"gamma", Type::kFp32}, {"beta", Type::kFp32}};
    static constexpr int kRequired = 4;
    static constexpr int kOutputs = 2;

    struct Attributes { float epsilon, x_scale, y_scale; };
    static constexpr Field<Attributes> kFields[]
        = {{"epsilon", &Attributes::epsilon}, {"x_scale", &Attributes::x_scale}, {"y_scale", &Attributes::y_scale}};

    static Type input_type(const Attributes& attributes, int input, Type listed) {
        return input == 0 && attributes.x_scale != 0 ? Type::kInt8 : listed;
    }
    static Type output_type(const Attributes&, int output) { return output == 0 ? Type::kFp16 : Type::kInt8; }

    static void check(const Attributes& attributes, const Inputs& inputs) {
        if (attributes.x_scale != 0) check_scale("x_scale", attributes.x_scale);
        check_scale("y_scale", attributes.y_scale);
        check_rows(inputs[0], inputs[0].last());
        expect_shape("residual", inputs[1], inputs[0]);
        expect_shape("gamma", inputs[2], {{inputs[0].last()}});
        expect_shape("beta", inputs[3], {{inputs[0].last()}});
    }

    static int launch(const Attributes& attributes, const Call& call) {
        const Shape& x = call.shapes[0];
        SwinLayerNormAddInt8 a{};
        a.x = call.input(0);
        a.residual = call.input(1);
        a.gamma = call.parameter(2);
        a.beta = call.parameter(3);
        a.y = call.outputs[0];
        a.y_q = call.outputs[1];
        a.rows = x.rows();
        a.width = static_cast<int>(x.last());
        a.epsilon = attributes.epsilon;
        a.x_scale = attributes.x_scale;
        a.y_scale = attributes.y_scale;
        return swin_layernorm_add_int8(&a, call.stream);
    }
};

struct QuantizeOp : Operator {
    static constexpr const char* kName = "SwinQuantize";
    static constexpr Input kInputs[] = {{"x", Type::kFp16}};
    static constexpr int kRequired = 1;

    struct Attributes { float y_scale; };
    static constexpr Field<Attributes> kFields[] = {{"y_scale", &Attributes::y_scale}};

    static Type output_type(const Attributes&, int) { return Type::kInt8; }

    static void check(const Attributes& attributes, const Inputs& inputs) {
        check_scale("y_scale", attributes.y_scale);
        if (inputs[0].rank() < 1) throw Refusal("x is a scalar");
    }

    static int launch(const Attributes& attributes, const Call& call) {
        const Shape& x = call.shapes[0];
        SwinQuantize a{};
        a.x = call.input(0);
        a.y_q = call.outputs[0];
        a.count = x.rows() * x.last();
        a.y_scale = attributes.y_scale;
        return swin_quantize(&a, call.stream);
    }
};

SWIN_REGISTER(LayerNormInt8Op)
SWIN_REGISTER(LayerNormAddInt8Op)
SWIN_REGISTER(QuantizeOp)

}  // namespace
