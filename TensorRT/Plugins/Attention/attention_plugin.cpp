// SwinAttention: whole (shifted-)window attention, V1 and V2. README.md beside this file is the contract.
#include "Attention/attention_kernel.h"
#include "Attention/attention_op.h"
#include "common/registration.h"

namespace {

using namespace swin;

struct AttentionOp : AttentionOperator {
    static constexpr const char* kName = "SwinAttention";
    static constexpr Input kInputs[]
        = {{"qkv", Type::kActivation}, {"bias", Type::kFp32}, {"logit_scale", Type::kFp32}};
    static constexpr int kRequired = 2;  // with logit_scale: V2's scaled cosine, without: V1's dot product

    using Attributes = AttentionAttributes;
    static constexpr Field<Attributes> kFields[]
        = {{"height", &Attributes::height}, {"width", &Attributes::width}, {"num_heads", &Attributes::num_heads},
            {"window_size", &Attributes::window_size}, {"shift_size", &Attributes::shift_size},
            {"scale", &Attributes::scale}, {"mask_value", &Attributes::mask_value}};

    static void check(const Attributes& attributes, const Inputs& inputs) { check_attention(attributes, inputs); }

    static int launch(const Attributes& attributes, const Call& call) {
        const Shape& qkv = call.shapes[0];
        SwinAttention a{};
        a.qkv = call.input(0);
        a.bias = call.parameter(1);
        a.logit_scale = call.parameter(2);
        a.y = call.outputs[0];
        a.type = call.type;
        a.batch = static_cast<int>(qkv.sizes[0]);
        a.height = attributes.height;
        a.width = attributes.width;
        a.channels = static_cast<int>(qkv.last() / 3);
        a.num_heads = attributes.num_heads;
        a.window_size = attributes.window_size;
        a.shift_size = attributes.shift_size;
        a.scale = attributes.scale;
        a.mask_value = attributes.mask_value;
        return swin_attention(&a, call.stream);
    }
};

SWIN_REGISTER(AttentionOp)

}  // namespace
