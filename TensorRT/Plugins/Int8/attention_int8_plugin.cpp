// SwinAttentionInt8: (shifted-)window attention of an INT8 qkv. README.md beside this file is the contract.
#include "Attention/attention_kernel.h"
#include "Attention/attention_op.h"
#include "Int8/int8_op.h"
#include "common/registration.h"

namespace {

using namespace swin;

struct AttentionInt8Op : AttentionOperator {
    static constexpr const char* kName = "SwinAttentionInt8";
    static constexpr Input kInputs[]
        = {{"qkv", Type::kInt8}, {"bias", Type::kFp32}, {"padding", Type::kFp32}, {"logit_scale", Type::kFp32}};
    static constexpr int kRequired = 3;

    struct Attributes : AttentionAttributes { float qkv_scale, y_scale; };
    static constexpr Field<Attributes> kFields[]
        = {{"num_heads", &Attributes::num_heads}, {"window_height", &Attributes::window_height},
            {"window_width", &Attributes::window_width}, {"shift_height", &Attributes::shift_height},
            {"shift_width", &Attributes::shift_width}, {"roll_first", &Attributes::roll_first},
            {"shift_if_covered", &Attributes::shift_if_covered}, {"scale", &Attributes::scale},
            {"mask_value", &Attributes::mask_value},
            {"qkv_scale", &Attributes::qkv_scale}, {"y_scale", &Attributes::y_scale}};

    static Type output_type(const Attributes& attributes, int) {
        return attributes.y_scale == 0 ? Type::kFp16 : Type::kInt8;
    }

    static void check(const Attributes& a, const Inputs& inputs) {
        check_scale("qkv_scale", a.qkv_scale);
        if (a.y_scale != 0) check_scale("y_scale", a.y_scale);
        check_attention(a, inputs);
    }

    static int launch(const Attributes& attributes, const Call& call) {
        SwinAttentionInt8 a{};
        fill(a, attributes, call);
        a.qkv_scale = attributes.qkv_scale;
        a.y_scale = attributes.y_scale;
        return swin_attention_int8(&a, call.stream);
    }
};

SWIN_REGISTER(AttentionInt8Op)

}  // namespace
