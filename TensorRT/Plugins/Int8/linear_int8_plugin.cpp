// SwinLinearInt8: a linear layer on INT8 tensors. README.md beside this file is the contract.
#include "Int8/int8_op.h"
#include "Int8/linear_int8_kernel.h"
#include "common/registration.h"

namespace {

using namespace swin;

struct LinearInt8Op : Operator {
    static constexpr const char* kName = "SwinLinearInt8";
    static constexpr Input kInputs[] = {{"x", Type::kInt8}, {"weight", Type::kInt8}, {"scale", Type::kFp32},
        {"bias", Type::kFp32}, {"residual", Type::kFp16}};
    static constexpr int kRequired = 4;

    struct Attributes {
        int32_t gelu;
        float y_scale;
    };
    static constexpr Field<Attributes> kFields[] = {{"gelu", &Attributes::gelu}, {"y_scale", &Attributes::y_scale}};

    static Type output_type(const Attributes& attributes, int) {
        return attributes.y_scale == 0 ? Type::kFp16 : Type::kInt8;
    }

    static SymbolicShape output_shape(const Attributes&, int, const std::vector<SymbolicShape>& inputs) {
        SymbolicShape y = inputs[0];
        y.back() = inputs[1][0];
        return y;
    }

    static void check(const Attributes& attributes, const Inputs& inputs) {
        const Shape &x = inputs[0], &weight = inputs[1];
        check_gelu(attributes.gelu, SWIN_NO_GELU);
        if (attributes.y_scale != 0) check_scale("y_scale", attributes.y_scale);
        if (x.rank() < 1) throw Refusal("x is a scalar; it needs an axis of features");
        expect_rank("weight", weight, 2);
        expect_size("the last dimension of x", x.last(), weight.last());
        for (const int64_t features : weight.sizes) {
            if (features % 16 != 0 || features < 1 || features > SWIN_MAX_INT8_FEATURES) {
                throw Refusal("weight is " + weight.text() + ", not multiples of 16 up to "
                    + std::to_string(SWIN_MAX_INT8_FEATURES));
            }
        }
        expect_shape("scale", inputs[2], {{weight.sizes[0]}});
        expect_shape("bias", inputs[3], {{weight.sizes[0]}});
        if (inputs.size() > 4) {
            if (attributes.gelu != 0) throw Refusal("has gelu and a residual; only one of them is possible");
            Shape y = x;
            y.sizes.back() = weight.sizes[0];
            expect_shape("residual", inputs[4], y);
        }
    }

    static int launch(const Attributes& attributes, const Call& call) {
        const Shape &x = call.shapes[0], &weight = call.shapes[1];
        SwinLinearInt8 a{};
        a.x = call.input(0);
        a.weight = call.input(1);
        a.scale = call.parameter(2);
        a.bias = call.parameter(3);
        a.residual = call.input(4);
        a.y = call.outputs[0];
        a.rows = x.rows();
        a.in_features = static_cast<int>(weight.last());
        a.out_features = static_cast<int>(weight.sizes[0]);
        a.gelu = attributes.gelu;
        a.y_scale = attributes.y_scale;
        return swin_linear_int8(&a, call.stream);
    }
};

SWIN_REGISTER(LinearInt8Op)

}  // namespace
