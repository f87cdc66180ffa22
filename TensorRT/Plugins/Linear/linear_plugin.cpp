// SwinLinear: Linear with bias, and GELU or a residual in its epilogue. README.md beside this file is the contract.
#include "Linear/linear_kernel.h"
#include "common/registration.h"

namespace {

using namespace swin;

struct LinearOp : Operator {
    static constexpr const char* kName = "SwinLinear";
    static constexpr Input kInputs[] = {{"x", Type::kActivation}, {"weight", Type::kActivation},
        {"bias", Type::kActivation}, {"residual", Type::kActivation}};
    static constexpr int kRequired = 3;
    static constexpr size_t kWorkspaceBytes = SWIN_LINEAR_WORKSPACE_BYTES;

    struct Attributes { int32_t gelu, plain_fp32; };
    static constexpr Field<Attributes> kFields[]
        = {{"gelu", &Attributes::gelu}, {"plain_fp32", &Attributes::plain_fp32, Presence::kOptional}};

    static void check(const Attributes& attributes, const Inputs& inputs) {
        const Shape& x = inputs[0];
        if (x.rank() < 1) throw Refusal("x is a scalar; it needs an axis of features");
        expect_rank("weight", inputs[1], 2);
        const int64_t out_features = inputs[1].sizes[0];
        expect_shape("weight", inputs[1], {{out_features, x.last()}});
        expect_shape("bias", inputs[2], {{out_features}});
        check_gelu(attributes.gelu, SWIN_NO_GELU);
        check_flag("plain_fp32", attributes.plain_fp32);
        if (inputs.size() > 3) {
            if (attributes.gelu != 0) throw Refusal("has gelu and a residual; only one of them is possible");
            Shape y = x;
            y.sizes.back() = out_features;
            expect_shape("residual", inputs[3], y);
        }
    }

    static SymbolicShape output_shape(const Attributes&, int, const std::vector<SymbolicShape>& inputs) {
        SymbolicShape y = inputs[0];
        y.back() = inputs[1][0];
        return y;
    }

    static int launch(const Attributes& attributes, const Call& call) {
        const Shape &x = call.shapes[0], &weight = call.shapes[1];
        SwinLinear a{};
        a.x = call.input(0);
        a.weight = call.input(1);
        a.bias = call.input(2);
        a.residual = call.input(3);
        a.y = call.outputs[0];
        a.rows = x.rows();
        a.type = call.type;
        a.in_features = static_cast<int>(weight.sizes[1]);
        a.out_features = static_cast<int>(weight.sizes[0]);
        a.gelu = attributes.gelu;
        a.plain_fp32 = attributes.plain_fp32;
        a.workspace = call.workspace;
        a.workspace_bytes = kWorkspaceBytes;
        return swin_linear(&a, call.stream);
    }
};

SWIN_REGISTER(LinearOp)

}  // namespace
