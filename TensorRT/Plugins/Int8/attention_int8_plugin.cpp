// SwinAttentionInt8: (shifted-)window attention of an INT8 qkv. README.md beside this file is the contract.
#include "Attention/attention_kernel.h"
#include "Attention/attention_op.h"
#include "Int8/int8_op.h"
#include "common/registration.h"

namespace {

using namespace swin;

struct AttentionInt8Op : AttentionOperator {
    static constexpr const char* kName = "SwinAttentionInt8";
    static constexpr Input kInputs[] = {{"qkv", Type::kInt8}, {"bias", Type::kFp32}, {"logit_scale", Type::kFp32}};
    static constexpr int kRequired = 2;

    struct Attributes {
        int32_t height, width, num_heads, window_size, shift_size;
        float scale, mask_value, qkv_scale, y_scale;
    };
    static constexpr Field<Attributes> kFields[] = {{"height", &Attributes::height}, {"width", &Attributes::width},
        {"num_heads", &Attributes::num_heads}, {"window_size", &Attributes::window_size},
        {"shift_size", &Attributes::shift_size}, {"scale", &Attributes::scale}, {"mask_value", &Attributes::mask_value},
        {"qkv_scale", &Attributes::qkv_scale}, {"y_scale", &Attributes::y_scale}};

    static Type output_type(const Attributes& attributes, int) {
        return attributes.y_scale == 0 ? Type::kFp16 : Type::kInt8;
    }

    static void check(const Attributes& a, const Inputs& inputs) {
        check_scale("qkv_scale", a.qkv_scale);
        if (a.y_scale != 0) check_scale("y_scale", a.y_scale);
        check_attention({a.height, a.width, a.num_heads, a.window_size, a.shift_size, a.scale, a.mask_value}, inputs);
    }

    static int launch(const Attributes& attributes, const Call& call) {
        const Shape& qkv = call.shapes[0];
        SwinAttentionInt8 a{};
        a.qkv = call.input(0);
        a.bias = call.parameter(1);
        a.logit_scale = call.parameter(2);
        a.y = call.outputs[0];
        a.batch = static_cast<int>(qkv.sizes[0]);
        a.height = attributes.height;
        a.width = attributes.width;
        a.channels = static_cast<int>(qkv.last() / 3);
        a.num_heads = attributes.num_heads;
        a.window_size = attributes.window_size;
        a.shift_size = attributes.shift_size;
        a.scale = attributes.scale;
        a.mask_value = attributes.mask_value;
        a.qkv_scale = attributes.qkv_scale;
        a.y_scale = attributes.y_scale;
        return swin_attention_int8(&a, call.stream);
    }
};

SWIN_REGISTER(AttentionInt8Op)

}  // namespace
