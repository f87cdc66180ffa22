// SwinAttention: whole (shifted-)window attention, V1 and V2. README.md beside this file is the contract.
#include "Attention/attention_kernel.h"
#include "Attention/attention_op.h"
#include "common/registration.h"

namespace {

using namespace swin;

struct AttentionOp : AttentionOperator {
    static constexpr const char* kName = "SwinAttention";
    static constexpr Input kInputs[] = {{"qkv", Type::kActivation}, {"bias", Type::kFp32}, {"padding", Type::kFp32},
        {"logit_scale", Type::kFp32}};
    static constexpr int kRequired = 3;  // with logit_scale: V2's scaled cosine, without: V1's dot product

    struct Attributes : AttentionAttributes { int32_t plain_fp32; };
    static constexpr Field<Attributes> kFields[]
        = {{"num_heads", &Attributes::num_heads}, {"window_height", &Attributes::window_height},
            {"window_width", &Attributes::window_width}, {"shift_height", &Attributes::shift_height},
            {"shift_width", &Attributes::shift_width}, {"roll_first", &Attributes::roll_first},
            {"shift_if_covered", &Attributes::shift_if_covered}, {"scale", &Attributes::scale},
            {"mask_value", &Attributes::mask_value},
            {"plain_fp32", &Attributes::plain_fp32, Presence::kOptional}};

    static void check(const Attributes& attributes, const Inputs& inputs) {
        check_flag("plain_fp32", attributes.plain_fp32);
        check_attention(attributes, inputs);
    }

    static int launch(const Attributes& attributes, const Call& call) {
        SwinAttention a{};
        fill(a, attributes, call);
        a.type = call.type;
        a.plain_fp32 = attributes.plain_fp32;
        return swin_attention(&a, call.stream);
    }
};

SWIN_REGISTER(AttentionOp)

}  // namespace
