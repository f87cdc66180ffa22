// SwinLayerNorm: normalisation without weight and bias. README.md beside this file is the contract.
#include "LayerNorm/layernorm_kernel.h"
#include "common/registration.h"

namespace {

using namespace swin;

struct LayerNormOp : Operator {
    static constexpr const char* kName = "SwinLayerNorm";
    static constexpr Input kInputs[] = {{"x", Type::kActivation}};
    static constexpr int kRequired = 1;

    struct Attributes { float epsilon; };
    static constexpr Field<Attributes> kFields[] = {{"epsilon", &Attributes::epsilon}};

    static void check(const Attributes&, const Inputs& inputs) { check_rows(inputs[0], inputs[0].last()); }

    static int launch(const Attributes& attributes, const Call& call) {
        const Shape& x = call.shapes[0];
        SwinLayerNorm a{};
        a.x = call.input(0);
        a.y = call.outputs[0];
        a.rows = x.rows();
        a.type = call.type;
        a.width = static_cast<int>(x.last());
        a.epsilon = attributes.epsilon;
        return swin_layernorm(&a, call.stream);
    }
};

SWIN_REGISTER(LayerNormOp)

}  // namespace
