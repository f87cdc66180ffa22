// SwinAttention: whole (shifted-)window attention, V1 and V2. README.md beside this file is the contract.
#include "Attention/attention_kernel.h"
#include "common/registration.h"

namespace {

using namespace swin;

constexpr int64_t kHeadDim = 32;
constexpr int64_t kMaxWindow = 32;

struct AttentionOp : Operator {
    static constexpr const char* kName = "SwinAttention";
    static constexpr Input kInputs[] = {
        {"qkv", Type::kActivation}, {"bias", Type::kFp32}, {"logit_scale", Type::kFp32}};
    static constexpr int kRequired = 2;  // with logit_scale: V2's scaled cosine, without: V1's dot product

    struct Attributes {
        int32_t height, width, num_heads, window_size, shift_size;
        float scale, mask_value;
    };
    static constexpr Field<Attributes> kFields[] = {{"height", &Attributes::height}, {"width", &Attributes::width},
        {"num_heads", &Attributes::num_heads}, {"window_size", &Attributes::window_size},
        {"shift_size", &Attributes::shift_size}, {"scale", &Attributes::scale},
        {"mask_value", &Attributes::mask_value}};

    static void check(const Attributes& a, const Inputs& inputs) {
        const Shape& qkv = inputs[0];
        check_image("qkv", qkv, a.height, a.width);
        if (a.num_heads < 1) throw Refusal("num_heads is " + std::to_string(a.num_heads));
        if (qkv.last() != kUnknown && qkv.last() != 3 * kHeadDim * a.num_heads) {
            throw Refusal("qkv has " + std::to_string(qkv.last()) + " channels for " + std::to_string(a.num_heads)
                + " heads; the head dimension must be 32, which takes 3 * 32 * " + std::to_string(a.num_heads));
        }
        const std::string window = "window_size " + std::to_string(a.window_size);
        if (a.window_size < 1 || a.window_size > kMaxWindow) {
            throw Refusal(window + " is not in 1 to " + std::to_string(kMaxWindow));
        }
        if (a.height % a.window_size != 0 || a.width % a.window_size != 0) {
            throw Refusal(window + " does not divide height " + std::to_string(a.height) + " and width "
                + std::to_string(a.width));
        }
        if (a.shift_size < 0 || a.shift_size >= a.window_size) {
            throw Refusal("shift_size " + std::to_string(a.shift_size) + " is not in 0 .. window_size - 1");
        }
        const int64_t positions = a.window_size * a.window_size;
        expect_shape("bias", inputs[1], {{a.num_heads, positions, (positions + 7) / 8 * 8}});
        if (inputs.size() > 2) expect_shape("logit_scale", inputs[2], {{a.num_heads}});
    }

    static SymbolicShape output_shape(const Attributes&, int, const std::vector<SymbolicShape>& inputs) {
        const SymbolicShape& qkv = inputs[0];
        return {qkv[0], qkv[1], qkv[2] / 3};
    }

    static int launch(const Attributes& a, const Call& call) {
        const Shape& qkv = call.shapes[0];
        return swin_attention(call.inputs[0], call.parameter(1), call.parameter(2), call.outputs[0],
            call.type, static_cast<int>(qkv.sizes[0]), a.height, a.width, static_cast<int>(qkv.last() / 3),
            a.num_heads, a.window_size, a.shift_size, a.scale, a.mask_value, call.stream);
    }
};

SWIN_REGISTER(AttentionOp)

}  // namespace
