// SwinMlp: the MLP branch of a Swin block with its LayerNorm and residual, and the end of the attention branch before
// it. README.md beside this file is the contract.
#include "Mlp/mlp_kernel.h"
#include "common/registration.h"

namespace {

using namespace swin;

struct MlpOp : Operator {
    static constexpr const char* kName = "SwinMlp";
    static constexpr Input kInputs[] = {{"x", Type::kActivation}, {"gamma", Type::kFp32}, {"beta", Type::kFp32},
        {"weight1", Type::kActivation}, {"bias1", Type::kActivation}, {"weight2", Type::kActivation},
        {"bias2", Type::kActivation}, {"attention", Type::kActivation}, {"proj_weight", Type::kActivation},
        {"proj_bias", Type::kActivation}, {"proj_gamma", Type::kFp32}, {"proj_beta", Type::kFp32}};
    static constexpr int kRequired = 7;
    static constexpr size_t kWorkspaceBytes = SWIN_MLP_WORKSPACE_BYTES;

    struct Attributes {
        int32_t norm_first, gelu;
        float epsilon;
        int32_t plain_fp32;
    };
    static constexpr Field<Attributes> kFields[] = {{"norm_first", &Attributes::norm_first},
        {"gelu", &Attributes::gelu}, {"epsilon", &Attributes::epsilon},
        {"plain_fp32", &Attributes::plain_fp32, Presence::kOptional}};

    static void check(const Attributes& attributes, const Inputs& inputs) {
        check_flag("norm_first", attributes.norm_first);
        check_gelu(attributes.gelu, SWIN_GELU);
        check_flag("plain_fp32", attributes.plain_fp32);
        const size_t with_attention = attributes.norm_first == 1 ? 10 : 12;
        if (inputs.size() != kRequired && inputs.size() != with_attention) {
            throw Refusal("has " + std::to_string(inputs.size()) + " inputs; norm_first "
                + std::to_string(attributes.norm_first) + " takes " + std::to_string(kRequired) + ", or "
                + std::to_string(with_attention) + " with attention");
        }
        const int64_t width = inputs[0].last();
        check_rows(inputs[0], width);
        expect_shape("gamma", inputs[1], {{width}});
        expect_shape("beta", inputs[2], {{width}});
        expect_rank("weight1", inputs[3], 2);
        const int64_t hidden = inputs[3].sizes[0];
        if (hidden > kWidestHidden) {
            throw Refusal(std::to_string(hidden) + " hidden features are more than " + std::to_string(kWidestHidden));
        }
        expect_shape("weight1", inputs[3], {{hidden, width}});
        expect_shape("bias1", inputs[4], {{hidden}});
        expect_shape("weight2", inputs[5], {{width, hidden}});
        expect_shape("bias2", inputs[6], {{width}});
        if (inputs.size() == kRequired) return;
        expect_shape("attention", inputs[7], inputs[0]);
        expect_shape("proj_weight", inputs[8], {{width, width}});
        expect_shape("proj_bias", inputs[9], {{width}});
        if (attributes.norm_first == 1) return;
        expect_shape("proj_gamma", inputs[10], {{width}});
        expect_shape("proj_beta", inputs[11], {{width}});
    }

    static int launch(const Attributes& attributes, const Call& call) {
        const Shape &x = call.shapes[0], &weight1 = call.shapes[3];
        SwinMlp a{};
        a.x = call.input(0);
        a.gamma = call.parameter(1);
        a.beta = call.parameter(2);
        a.weight1 = call.input(3);
        a.bias1 = call.input(4);
        a.weight2 = call.input(5);
        a.bias2 = call.input(6);
        a.attention = call.input(7);
        a.proj_weight = call.input(8);
        a.proj_bias = call.input(9);
        a.proj_gamma = call.parameter(10);
        a.proj_beta = call.parameter(11);
        a.y = call.outputs[0];
        a.rows = x.rows();
        a.type = call.type;
        a.width = static_cast<int>(x.last());
        a.hidden = static_cast<int>(weight1.sizes[0]);
        a.norm_first = attributes.norm_first;
        a.gelu = attributes.gelu;
        a.epsilon = attributes.epsilon;
        a.plain_fp32 = attributes.plain_fp32;
        a.workspace = call.workspace;
        a.workspace_bytes = kWorkspaceBytes;
        return swin_mlp(&a, call.stream);
    }

private:
    static constexpr int64_t kWidestHidden = 1 << 20;  // a row of FP32 fills a sixteenth of the workspace
};

SWIN_REGISTER(MlpOp)

}  // namespace
