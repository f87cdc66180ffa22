// What an operator says about itself, in terms that no TensorRT version changes, and what both adapters share.
//
// A plugin file defines one struct for its operator:
//
//   struct ExampleOp {
//       static constexpr const char* kName = "SwinExample";             // the ONNX op type
//       static constexpr const char* kInputs[] = {"x", "gamma"};        // in order, for messages
//       static constexpr int kActivations = 1;                          // the first inputs; those after are FP32
//       static constexpr int kRequired = 2;                             // inputs that must be there
//       static constexpr int kOutputs = 1;                              // of the type of the first input
//       static constexpr Ratio kTokens{}, kChannels{4, 1};              // the last two axes, output : first input
//       struct Attributes { float epsilon; };                           // 4-byte members only
//       static constexpr Field<Attributes> kFields[] = {{"epsilon", &Attributes::epsilon}};
//       static void check(const Attributes&, const Inputs&);            // throws Refusal; sizes may be kUnknown
//       static int launch(const Attributes&, const Call&);              // returns a cudaError_t
//   };
//   SWIN_REGISTER(ExampleOp)
//
// and plugin_v2.h (TensorRT 8.6) or plugin_v3.h (10 and later) makes a plugin of it.
#pragma once

#include <algorithm>
#include <cstdint>
#include <exception>
#include <initializer_list>
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
struct Refusal : std::invalid_argument {
    using std::invalid_argument::invalid_argument;
};

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

struct Ratio {
    int multiply = 1, divide = 1;
};

// An attribute of the ONNX node: an int or a float member of Op::Attributes.
template <class Attributes> struct Field {
    const char* name;
    int32_t Attributes::*integer = nullptr;
    float Attributes::*real = nullptr;

    constexpr Field(const char* name, int32_t Attributes::*member) : name(name), integer(member) {}
    constexpr Field(const char* name, float Attributes::*member) : name(name), real(member) {}

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
    int type;  // SwinType of activations and outputs
    const void* const* inputs;
    void* const* outputs;
    cudaStream_t stream;

    const float* parameter(int input) const { return static_cast<const float*>(inputs[input]); }
    // An optional input at the end: null where the node does not have it.
    const float* optional_parameter(int input) const {
        return input < static_cast<int>(shapes.size()) ? parameter(input) : nullptr;
    }
};

// --- checks that several operators make ---

// `actual` where it is known must be `expected`.
void expect_size(const char* what, int64_t actual, int64_t expected);
void expect_rank(const char* input, const Shape& shape, int rank);
// A parameter of exactly this shape; kUnknown in `sizes` matches anything.
void expect_shape(const char* input, const Shape& shape, std::initializer_list<int64_t> sizes);
// x and what is added to it: same shape, not wider than the row kernels take.
void check_rows(const Inputs& inputs, int activations, int64_t row_width);
// x is [B, height * width, channels].
void check_image(const char* input, const Shape& x, int64_t height, int64_t width);

// --- TensorRT's types ---

// Whether activations may have this type; BF16 tensors exist from TensorRT 10 on.
bool is_activation_type(nvinfer1::DataType type);
int swin_type(nvinfer1::DataType type);  // throws Refusal
Shape shape_of(const nvinfer1::Dims& dims);
Shape shape_of(const nvinfer1::DimsExprs& dims);

// Whether tensor `position` (inputs first, then outputs) may have this description, those before it being as they are.
// at(i) gives the nvinfer1::PluginTensorDesc of tensor i.
template <class Op, class At> bool supports_format(int position, int inputs, const At& at) {
    if (at(position).format != nvinfer1::TensorFormat::kLINEAR) return false;
    const bool parameter = position >= Op::kActivations && position < inputs;
    if (parameter) return at(position).type == nvinfer1::DataType::kFLOAT;
    return is_activation_type(at(position).type) && at(position).type == at(0).type;
}

// Throws Refusal for input types that supports_format would never accept.
template <class Op> void check_types(const nvinfer1::DataType* types, int inputs) {
    swin_type(types[0]);
    for (int i = 1; i < inputs; ++i) {
        const bool activation = i < Op::kActivations;
        if (types[i] != (activation ? types[0] : nvinfer1::DataType::kFLOAT)) {
            throw Refusal(std::string(Op::kInputs[i]) + (activation ? " is not of the type of " : " is not FP32")
                + (activation ? Op::kInputs[0] : ""));
        }
    }
}

template <class Op> void check_inputs(const typename Op::Attributes& attributes, const Inputs& inputs) {
    const int most = static_cast<int>(std::size(Op::kInputs));
    const int count = static_cast<int>(inputs.size());
    if (count < Op::kRequired || count > most) {
        throw Refusal("has " + std::to_string(count) + " inputs instead of " + std::to_string(Op::kRequired)
            + (most > Op::kRequired ? " to " + std::to_string(most) : ""));
    }
    Op::check(attributes, inputs);
}

template <class Op>
nvinfer1::DimsExprs output_shape(const nvinfer1::DimsExprs& input, nvinfer1::IExprBuilder& builder) {
    const auto scaled = [&](const nvinfer1::IDimensionExpr* size, Ratio ratio) {
        using Operation = nvinfer1::DimensionOperation;
        if (ratio.multiply != 1) size = builder.operation(Operation::kPROD, *size, *builder.constant(ratio.multiply));
        if (ratio.divide != 1) size = builder.operation(Operation::kFLOOR_DIV, *size, *builder.constant(ratio.divide));
        return size;
    };
    nvinfer1::DimsExprs output = input;
    const int last = input.nbDims - 1;
    output.d[last] = scaled(input.d[last], Op::kChannels);
    if (last >= 1) output.d[last - 1] = scaled(input.d[last - 1], Op::kTokens);
    return output;
}

// descriptions: the inputs' nvinfer1::PluginTensorDesc.
template <class Op>
void run(const typename Op::Attributes& attributes, const nvinfer1::PluginTensorDesc* descriptions, int count,
    const void* const* inputs, void* const* outputs, cudaStream_t stream) {
    Call call{{}, swin_type(descriptions[0].type), inputs, outputs, stream};
    for (int i = 0; i < count; ++i) call.shapes.push_back(shape_of(descriptions[i].dims));
    check_inputs<Op>(attributes, call.shapes);
    if (call.shapes[0].empty()) return;
    const int status = Op::launch(attributes, call);
    if (status != cudaSuccess) {
        throw std::runtime_error(std::string("CUDA: ") + cudaGetErrorString(static_cast<cudaError_t>(status)));
    }
}

// Every attribute of Op from a field collection; throws Refusal for one that is missing or of another type.
template <class Op>
typename Op::Attributes read_attributes(const nvinfer1::PluginFieldCollection& collection) {
    typename Op::Attributes attributes{};
    for (const auto& field : Op::kFields) {
        const nvinfer1::PluginField* given = nullptr;
        for (int i = 0; i < collection.nbFields; ++i) {
            if (std::string(field.name) == collection.fields[i].name) given = &collection.fields[i];
        }
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

// Op's attributes as fields that point into `attributes`; with null they say the names and types alone.
template <class Op>
std::vector<nvinfer1::PluginField> fields_of(typename Op::Attributes* attributes) {
    std::vector<nvinfer1::PluginField> fields;
    for (const auto& field : Op::kFields) {
        const void* data = attributes != nullptr ? field.of(*attributes) : nullptr;
        fields.emplace_back(field.name, data, field.type(), 1);
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
