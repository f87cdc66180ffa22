// What an operator says about itself, in terms that no TensorRT version changes, and what both adapters share.
//
// A plugin file defines one struct for its operator:
//
//   struct ExampleOp : Operator {
//       static constexpr const char* kName = "SwinExample";             // the ONNX op type
//       static constexpr Input kInputs[] = {{"x", Type::kActivation}, {"gamma", Type::kFp32}};  // optional ones last
//       static constexpr int kRequired = 2;                             // inputs that must be there
//       struct Attributes { float epsilon; };                           // 4-byte members only, or none
//       static constexpr Field<Attributes> kFields[] = {{"epsilon", &Attributes::epsilon}};
//       static void check(const Attributes&, const Inputs&);            // throws Refusal; sizes may be kUnknown
//       static int launch(const Attributes&, const Call&);              // returns a cudaError_t
//   };
//   SWIN_REGISTER(ExampleOp)
//
// and plugin_v2.h (TensorRT 8.6) or plugin_v3.h (10 and later) makes a plugin of it.
//
// Its base `Operator` says: one output, of the activations' type and the first input's shape, and no workspace. An
// operator for which something else holds defines kOutputs, input_type, output_type, output_shape or kWorkspaceBytes
// anew. Shapes count elements of the tensor's own Type everywhere, so INT8 tensors have the shapes of the formula (see
// Type::kInt8).
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <exception>
#include <iterator>
#include <stdexcept>
#include <string>
#include <vector>

#include <NvInfer.h>

#include "common/swin_types.h"

namespace swin {

constexpr const char* kNamespace = "swin";
constexpr const char* kVersion = "1";

// A shape, type or attribute outside an operator's contract; what() says which and why.
struct Refusal : std::invalid_argument { using std::invalid_argument::invalid_argument; };

constexpr int64_t kUnknown = -1;  // a dynamic dimension while the engine is built

struct Shape {
    std::vector<int64_t> sizes;

    int rank() const { return static_cast<int>(sizes.size()); }
    int64_t last() const { return sizes.empty() ? kUnknown : sizes.back(); }
    bool empty() const;        // some dimension is zero
    long long rows() const;    // product of all dimensions but the last
    std::string text() const;  // [2, 49, 96], ? for unknown
};

using Inputs = std::vector<Shape>;

// What the elements of an operator's tensor are.
enum class Type {
    kActivation,  // FP32, FP16 or BF16: any, but the same in all tensors of a node that have this Type, and in input 0
    kFp32,
    kFp16,
    kInt8,  // INT8. In TensorRT an INT32 tensor with a quarter of the last axis, four INT8 in each, lowest byte first
};

struct Input {
    const char* name;
    Type type;
};

// A dimension that may not be known yet, as TensorRT's expression of it: sizes of outputs are computed with these.
class SymbolicSize {
public:
    SymbolicSize(const nvinfer1::IDimensionExpr& expression, nvinfer1::IExprBuilder& builder)
        : expression_(&expression), builder_(&builder) {}

    SymbolicSize operator*(const SymbolicSize& other) const;
    SymbolicSize operator*(int factor) const;
    SymbolicSize operator/(int divisor) const;  // rounded down
    SymbolicSize ceil_div(int divisor) const;   // rounded up
    int64_t value() const;  // or kUnknown
    const nvinfer1::IDimensionExpr* expression() const { return expression_; }

private:
    const nvinfer1::IDimensionExpr* expression_;
    nvinfer1::IExprBuilder* builder_;
};

using SymbolicShape = std::vector<SymbolicSize>;

// What holds for an operator that does not say otherwise.
struct Operator {
    static constexpr int kOutputs = 1;
    static constexpr size_t kWorkspaceBytes = 0;
    // An attribute that only nodes of an earlier version have, or null: see refuse_earlier_node.
    static constexpr const char* kEarlierAttribute = nullptr;

    // listed: the type in kInputs.
    template <class Attributes> static Type input_type(const Attributes&, int /* input */, Type listed) {
        return listed;
    }
    template <class Attributes> static Type output_type(const Attributes&, int /* output */) {
        return Type::kActivation;
    }
    template <class Attributes>
    static SymbolicShape output_shape(const Attributes&, int /* output */, const std::vector<SymbolicShape>& inputs) {
        return inputs[0];
    }
};

enum class Presence { kRequired, kOptional };

// An attribute of the ONNX node: an int or a float member of Op::Attributes. An optional one is 0 where a node lacks it.
template <class Attributes> struct Field {
    const char* name;
    int32_t Attributes::* integer = nullptr;
    float Attributes::* real = nullptr;
    Presence presence = Presence::kRequired;

    constexpr Field(const char* name, int32_t Attributes::* member, Presence presence = Presence::kRequired)
        : name(name), integer(member), presence(presence) {}
    constexpr Field(const char* name, float Attributes::* member) : name(name), real(member) {}

    nvinfer1::PluginFieldType type() const {
        return integer != nullptr ? nvinfer1::PluginFieldType::kINT32 : nvinfer1::PluginFieldType::kFLOAT32;
    }
    void* of(Attributes& attributes) const {
        return integer != nullptr ? static_cast<void*>(&(attributes.*integer)) : &(attributes.*real);
    }
};

// One execution: shapes are known, pointers are on the device.
struct Call {
    Inputs shapes;
    int type;  // SwinType of the activations; FP16 where input 0 is none
    const void* const* inputs;
    void* const* outputs;
    void* workspace;  // kWorkspaceBytes of the operator
    cudaStream_t stream;

    // Null where the node does not have this input.
    const void* input(int index) const { return index < static_cast<int>(shapes.size()) ? inputs[index] : nullptr; }
    const float* parameter(int index) const { return static_cast<const float*>(input(index)); }
};

// --- checks that several operators make ---

// An attribute that is 0 or 1.
void check_flag(const char* name, int32_t value);

// An attribute gelu: a SwinGelu from `least` on.
void check_gelu(int32_t value, int32_t least);

// `actual` where it is known must be `expected`.
void expect_size(const char* what, int64_t actual, int64_t expected);
void expect_rank(const char* input, const Shape& shape, int rank);
// Exactly this shape; kUnknown matches anything.
void expect_shape(const char* input, const Shape& shape, const Shape& expected);
// x has rows, and rows of `row_width` elements are not wider than the row kernels take.
void check_rows(const Shape& x, int64_t row_width);
// x is [B, H, W, C], with no more tokens than the kernels count.
void check_image(const char* input, const Shape& x);

// --- TensorRT's types ---

// Whether activations may have this type; BF16 tensors exist from TensorRT 10 on.
bool is_activation_type(nvinfer1::DataType type);
int swin_type(nvinfer1::DataType type);  // throws Refusal
// TensorRT's type of a tensor, `first` being that of input 0.
nvinfer1::DataType tensorrt_type(Type type, nvinfer1::DataType first);
// Shapes in elements of `type` from TensorRT's, and back.
Shape shape_of(const nvinfer1::Dims& dims, Type type);
SymbolicShape shape_of(const nvinfer1::DimsExprs& dims, Type type, nvinfer1::IExprBuilder& builder);
nvinfer1::DimsExprs dims_of(const SymbolicShape& shape, Type type);  // throws Refusal
Shape known(const SymbolicShape& shape);

template <class Op> Type input_type(const typename Op::Attributes& attributes, int input) {
    return Op::input_type(attributes, input, Op::kInputs[input].type);
}

template <class Op> void check_count(int inputs) {
    const int most = static_cast<int>(std::size(Op::kInputs));
    if (inputs < Op::kRequired || inputs > most) {
        throw Refusal("has " + std::to_string(inputs) + " inputs instead of " + std::to_string(Op::kRequired)
            + (most > Op::kRequired ? " to " + std::to_string(most) : ""));
    }
}

// The type of tensor `position`: inputs first, then outputs.
template <class Op> Type type_at(const typename Op::Attributes& attributes, int position, int inputs) {
    return position < inputs ? input_type<Op>(attributes, position) : Op::output_type(attributes, position - inputs);
}

// Whether tensor `position` may have this description, those before it being as they are.
// at(i) gives the nvinfer1::PluginTensorDesc of tensor i.
template <class Op, class At>
bool supports_format(const typename Op::Attributes& attributes, int position, int inputs, const At& at) {
    if (at(position).format != nvinfer1::TensorFormat::kLINEAR) return false;
    const Type type = type_at<Op>(attributes, position, inputs);
    if (type == Type::kActivation && !is_activation_type(at(position).type)) return false;
    return at(position).type == tensorrt_type(type, at(0).type);
}

// Throws Refusal for input types that supports_format would never accept; type_of(i) gives that of input i.
template <class Op, class TypeOf>
void check_types(const typename Op::Attributes& attributes, int inputs, const TypeOf& type_of) {
    check_count<Op>(inputs);
    if (Op::kInputs[0].type == Type::kActivation) swin_type(type_of(0));
    for (int i = 0; i < inputs; ++i) {
        const Type type = input_type<Op>(attributes, i);
        if (type_of(i) == tensorrt_type(type, type_of(0))) continue;
        const std::string name = Op::kInputs[i].name;
        switch (type) {
        case Type::kActivation: throw Refusal(name + " is not of the type of " + Op::kInputs[0].name);
        case Type::kFp32: throw Refusal(name + " is not FP32");
        case Type::kFp16: throw Refusal(name + " is not FP16");
        case Type::kInt8: throw Refusal(name + " is not INT8, which TensorRT must see as INT32, four in each");
        }
    }
}

// The inputs' shapes; throws Refusal. at(i) gives the nvinfer1::Dims of input i.
template <class Op, class At>
Inputs checked_inputs(const typename Op::Attributes& attributes, int count, const At& at) {
    check_count<Op>(count);
    Inputs shapes;
    for (int i = 0; i < count; ++i) shapes.push_back(shape_of(at(i), input_type<Op>(attributes, i)));
    Op::check(attributes, shapes);
    return shapes;
}

// The shape of every output; throws Refusal.
template <class Op>
std::vector<nvinfer1::DimsExprs> output_dims(const typename Op::Attributes& attributes,
    const nvinfer1::DimsExprs* inputs, int count, nvinfer1::IExprBuilder& builder) {
    check_count<Op>(count);
    std::vector<SymbolicShape> symbolic;
    Inputs shapes;
    for (int i = 0; i < count; ++i) {
        symbolic.push_back(shape_of(inputs[i], input_type<Op>(attributes, i), builder));
        shapes.push_back(known(symbolic[i]));
    }
    Op::check(attributes, shapes);
    std::vector<nvinfer1::DimsExprs> outputs;
    for (int i = 0; i < Op::kOutputs; ++i) {
        outputs.push_back(dims_of(Op::output_shape(attributes, i, symbolic), Op::output_type(attributes, i)));
    }
    return outputs;
}

// descriptions: the inputs' nvinfer1::PluginTensorDesc.
template <class Op>
void run(const typename Op::Attributes& attributes, const nvinfer1::PluginTensorDesc* descriptions, int count,
    const void* const* inputs, void* const* outputs, void* workspace, cudaStream_t stream) {
    check_types<Op>(attributes, count, [&](int i) { return descriptions[i].type; });
    const int type = Op::kInputs[0].type == Type::kActivation ? swin_type(descriptions[0].type) : SWIN_FP16;
    const Call call{checked_inputs<Op>(attributes, count, [&](int i) { return descriptions[i].dims; }), type, inputs,
        outputs, workspace, stream};
    if (call.shapes[0].empty()) return;
    const int status = Op::launch(attributes, call);
    if (status != cudaSuccess) {
        throw std::runtime_error(std::string("CUDA: ") + cudaGetErrorString(static_cast<cudaError_t>(status)));
    }
}

// Heights, widths and squares that nodes said before activations were [B, H, W, C]. A node that still says one would
// mean something else now.
constexpr const char* kEarlierAttributes[] = {"height", "width", "window_size", "shift_size", "patch_size"};

template <class Op> void refuse_earlier_node(const nvinfer1::PluginFieldCollection& collection) {
    for (int i = 0; i < collection.nbFields; ++i) {
        const nvinfer1::PluginField& given = collection.fields[i];
        const auto has_its_name = [&](const char* name) { return std::strcmp(name, given.name) == 0; };
        const auto is_field = [&](const auto& field) { return has_its_name(field.name); };
        const bool known = std::any_of(std::begin(Op::kFields), std::end(Op::kFields), is_field);
        if (known || given.data == nullptr) continue;
        if (std::none_of(std::begin(kEarlierAttributes), std::end(kEarlierAttributes), has_its_name)) continue;
        throw Refusal(std::string("attribute ") + given.name
            + ": the node was made by an earlier version of this project; patch the FP32 graph again with add_all.py");
    }
}

// Every attribute of Op from a field collection; throws Refusal for one of another type, or missing though required.
template <class Op>
typename Op::Attributes read_attributes(const nvinfer1::PluginFieldCollection& collection) {
    refuse_earlier_node<Op>(collection);
    typename Op::Attributes attributes{};
    for (const auto& field : Op::kFields) {
        const nvinfer1::PluginField* given = nullptr;
        for (int i = 0; i < collection.nbFields; ++i) {
            if (std::string(field.name) == collection.fields[i].name) given = &collection.fields[i];
        }
        if (given == nullptr && field.presence == Presence::kOptional) continue;
        if (given == nullptr || given->data == nullptr || given->length < 1) {
            throw Refusal(std::string("attribute ") + field.name + " is missing");
        }
        if (given->type != field.type()) {
            throw Refusal(std::string("attribute ") + field.name + " is not "
                + (field.integer != nullptr ? "an integer" : "a float"));
        }
        std::copy_n(static_cast<const char*>(given->data), 4, static_cast<char*>(field.of(attributes)));
    }
    return attributes;
}

// Op's attributes as fields that point into `attributes`; with null they say only names and types.
template <class Op>
std::vector<nvinfer1::PluginField> fields_of(typename Op::Attributes* attributes) {
    std::vector<nvinfer1::PluginField> fields;
    for (const auto& field : Op::kFields) {
        const void* data = attributes != nullptr ? field.of(*attributes) : nullptr;
        fields.emplace_back(field.name, data, field.type(), 1);
    }
    return fields;
}

// What a creator asks the ONNX parser for, which hands over no other attribute of a node.
template <class Op> std::vector<nvinfer1::PluginField> asked_fields() {
    std::vector<nvinfer1::PluginField> fields = fields_of<Op>(nullptr);
    if (Op::kEarlierAttribute != nullptr) {
        fields.emplace_back(Op::kEarlierAttribute, nullptr, nvinfer1::PluginFieldType::kINT32, 1);
    }
    return fields;
}

// --- failures ---

void log_error(const std::string& message) noexcept;

inline std::string name_or_empty(const char* name) { return name != nullptr ? name : ""; }

// Runs body() in a noexcept method: an exception becomes a logged line "op (layer): reason" and `failure`.
template <class Result, class Body>
Result guarded(const char* op, const std::string& layer, Result failure, const Body& body) noexcept {
    try {
        return body();
    } catch (const std::exception& error) {
        log_error(std::string(op) + (layer.empty() ? "" : " (" + layer + ")") + ": " + error.what());
    } catch (...) {
        log_error(op);
    }
    return failure;
}

}  // namespace swin
