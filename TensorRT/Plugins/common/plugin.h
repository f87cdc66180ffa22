// What both TensorRT adapters, plugin_v2.h and plugin_v3.h, share: an operator (operator.h) in TensorRT's types.
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

namespace swin {

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

}  // namespace swin

#include "common/operator.h"

namespace swin {

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

template <class Attributes> nvinfer1::PluginFieldType field_type(const Field<Attributes>& field) {
    return field.integer != nullptr ? nvinfer1::PluginFieldType::kINT32 : nvinfer1::PluginFieldType::kFLOAT32;
}

template <class Op> void refuse_earlier_node(const nvinfer1::PluginFieldCollection& collection) {
    for (int i = 0; i < collection.nbFields; ++i) {
        const nvinfer1::PluginField& given = collection.fields[i];
        const auto has_its_name = [&](const char* name) { return std::strcmp(name, given.name) == 0; };
        const auto is_field = [&](const auto& field) { return has_its_name(field.name); };
        const bool known = std::any_of(std::begin(Op::kFields), std::end(Op::kFields), is_field);
        if (known || given.data == nullptr) continue;
        if (std::none_of(std::begin(kEarlierAttributes), std::end(kEarlierAttributes), has_its_name)) continue;
        throw Refusal(std::string("attribute ") + given.name + kEarlierNode);
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
        if (given->type != field_type(field)) {
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
        fields.emplace_back(field.name, data, field_type(field), 1);
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
