// onnxruntime: an operator (operator.h) as custom operator of the domain `swin`, for the CUDA execution provider.
//
// Plain C API, so that the library needs onnxruntime's headers only, and serves every onnxruntime from 1.17 on.
#pragma once

#include <algorithm>
#include <cstdint>
#include <exception>
#include <iterator>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include <onnxruntime_c_api.h>

#ifndef SWIN_PROVIDER  // another one in tests/test_onnxruntime_ops.py only
#define SWIN_PROVIDER "CUDAExecutionProvider"
#endif

namespace swin {

// A size of an output, computed from those of the inputs, which are known when a node runs.
class SymbolicSize {
public:
    SymbolicSize(int64_t value) : value_(value) {}

    SymbolicSize operator*(const SymbolicSize& other) const { return value_ * other.value_; }
    SymbolicSize operator*(int factor) const { return value_ * factor; }
    SymbolicSize operator/(int divisor) const { return value_ / divisor; }
    SymbolicSize ceil_div(int divisor) const { return (value_ + divisor - 1) / divisor; }
    int64_t value() const { return value_; }

private:
    int64_t value_;
};

}  // namespace swin

#include "common/operator.h"

namespace swin {

constexpr int kApiVersion = 17;  // of onnxruntime, the first that has all that is used here

// The functions of onnxruntime that are used, and failures as exceptions.
class Api {
public:
    explicit Api(const OrtApi* api) : api_(api) {}

    const OrtApi* operator->() const { return api_; }
    void check(OrtStatus* status) const;  // throws std::runtime_error
    // An attribute, or false where the node lacks it.
    bool attribute(const OrtKernelInfo* info, const char* name, int32_t& value) const;
    bool attribute(const OrtKernelInfo* info, const char* name, float& value) const;
    bool attribute(const OrtShapeInferContext* context, const char* name, int32_t& value) const;
    bool attribute(const OrtShapeInferContext* context, const char* name, float& value) const;
    Shape shape(const OrtValue* tensor) const;
    // Output 0 is of this type and rank, with sizes that are not known.
    void set_output(OrtShapeInferContext* context, ONNXTensorElementDataType type, size_t rank) const;
    OrtStatus* failure(const std::string& message) const { return api_->CreateStatus(ORT_FAIL, message.c_str()); }

private:
    const OrtApi* api_;
};

// Of the onnxruntime that loaded the library.
const OrtApi* current_api();
void set_current_api(const OrtApi* api);

// Device memory for a stream's launches, which follow each other: made once, of the largest size asked for.
void* workspace_of(cudaStream_t stream, size_t bytes);  // throws std::runtime_error

// Runs body(): an exception becomes onnxruntime's status "op: reason".
template <class Body> OrtStatus* guarded(const Api& api, const char* op, const Body& body) noexcept {
    try {
        body();
        return nullptr;
    } catch (const std::exception& error) {
        return api.failure(std::string(op) + ": " + error.what());
    }
}

constexpr ONNXTensorElementDataType kActivationTypes[] = {
    ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16, ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16};

// Every attribute of Op from a node; throws Refusal for one that is missing though required, or of another type.
template <class Op, class Node> typename Op::Attributes read_attributes(const Api& api, const Node* node) {
    for (const char* name : kEarlierAttributes) {
        const auto is_it = [&](const auto& field) { return std::string(field.name) == name; };
        int32_t value = 0;
        if (std::none_of(std::begin(Op::kFields), std::end(Op::kFields), is_it) && api.attribute(node, name, value)) {
            throw Refusal(std::string("attribute ") + name + kEarlierNode);
        }
    }
    typename Op::Attributes attributes{};
    for (const auto& field : Op::kFields) {
        const bool there = field.integer != nullptr ? api.attribute(node, field.name, attributes.*field.integer)
                                                    : api.attribute(node, field.name, attributes.*field.real);
        if (!there && field.presence == Presence::kRequired) {
            throw Refusal(std::string("attribute ") + field.name + " is missing, or of another type");
        }
    }
    return attributes;
}

// One node's state.
template <class Op> class Kernel {
public:
    Kernel(const OrtApi* api, const OrtKernelInfo* info, int type)
        : api_(api), type_(type), attributes_(read_attributes<Op>(api_, info)) {}

    OrtStatus* compute(OrtKernelContext* context) noexcept {
        return guarded(api_, Op::kName, [&] { run(context); });
    }

private:
    void run(OrtKernelContext* context) {
        size_t count = 0;
        api_.check(api_->KernelContext_GetInputCount(context, &count));
        Inputs shapes;
        std::vector<const void*> inputs;
        for (size_t i = 0; i < count; ++i) {
            const OrtValue* tensor = nullptr;
            api_.check(api_->KernelContext_GetInput(context, i, &tensor));
            if (tensor == nullptr) break;  // optional ones come last
            void* data = nullptr;
            api_.check(api_->GetTensorMutableData(const_cast<OrtValue*>(tensor), &data));
            inputs.push_back(data);
            shapes.push_back(api_.shape(tensor));
        }
        if (inputs.size() < static_cast<size_t>(Op::kRequired)) {
            throw Refusal("has " + std::to_string(inputs.size()) + " inputs instead of " + std::to_string(Op::kRequired));
        }
        Op::check(attributes_, shapes);
        std::vector<SymbolicShape> sizes;
        for (const Shape& shape : shapes) sizes.emplace_back(shape.sizes.begin(), shape.sizes.end());
        std::vector<void*> outputs;
        for (int i = 0; i < Op::kOutputs; ++i) {
            std::vector<int64_t> dims;
            for (const SymbolicSize& size : Op::output_shape(attributes_, i, sizes)) dims.push_back(size.value());
            OrtValue* tensor = nullptr;
            api_.check(api_->KernelContext_GetOutput(context, i, dims.data(), dims.size(), &tensor));
            void* data = nullptr;
            api_.check(api_->GetTensorMutableData(tensor, &data));
            outputs.push_back(data);
        }
        if (shapes[0].empty()) return;
        void* stream = nullptr;
        api_.check(api_->KernelContext_GetGPUComputeStream(context, &stream));
        const auto on = static_cast<cudaStream_t>(stream);
        void* workspace = Op::kWorkspaceBytes > 0 ? workspace_of(on, Op::kWorkspaceBytes) : nullptr;
        const int status = Op::launch(attributes_, Call{shapes, type_, inputs.data(), outputs.data(), workspace, on});
        if (status != cudaSuccess) {
            throw std::runtime_error(std::string("CUDA: ") + cudaGetErrorString(static_cast<cudaError_t>(status)));
        }
    }

    Api api_;
    int type_;
    typename Op::Attributes attributes_;
};

// What onnxruntime is told of an operator with activations of one type: it takes several of one name.
template <class Op> struct CustomOp : OrtCustomOp {
    int type;  // a SwinType

    explicit CustomOp(int type) : OrtCustomOp{}, type(type) {
        version = kApiVersion;
        GetName = [](const OrtCustomOp*) { return Op::kName; };
        GetExecutionProviderType = [](const OrtCustomOp*) { return SWIN_PROVIDER; };
        GetInputTypeCount = [](const OrtCustomOp*) { return std::size(Op::kInputs); };
        GetOutputTypeCount = [](const OrtCustomOp*) { return static_cast<size_t>(Op::kOutputs); };
        GetInputType = [](const OrtCustomOp* op, size_t i) { return self(op).element_type(Op::kInputs[i].type); };
        GetOutputType = [](const OrtCustomOp* op, size_t) { return self(op).element_type(Type::kActivation); };
        GetInputCharacteristic = [](const OrtCustomOp*, size_t i) {
            return static_cast<int>(i) < Op::kRequired ? INPUT_OUTPUT_REQUIRED : INPUT_OUTPUT_OPTIONAL;
        };
        GetOutputCharacteristic = [](const OrtCustomOp*, size_t) { return INPUT_OUTPUT_REQUIRED; };
        GetInputMemoryType = [](const OrtCustomOp*, size_t) { return OrtMemTypeDefault; };
        GetVariadicInputMinArity = GetVariadicOutputMinArity = [](const OrtCustomOp*) { return 1; };
        GetVariadicInputHomogeneity = GetVariadicOutputHomogeneity = [](const OrtCustomOp*) { return 0; };
        GetStartVersion = [](const OrtCustomOp*) { return 1; };
        GetEndVersion = [](const OrtCustomOp*) { return 1; };
        CreateKernelV2 = [](const OrtCustomOp* op, const OrtApi* api, const OrtKernelInfo* info, void** kernel) {
            return guarded(Api(api), Op::kName, [&] { *kernel = new Kernel<Op>(api, info, self(op).type); });
        };
        KernelComputeV2 = [](void* kernel, OrtKernelContext* context) {
            return static_cast<Kernel<Op>*>(kernel)->compute(context);
        };
        KernelDestroy = [](void* kernel) { delete static_cast<Kernel<Op>*>(kernel); };
        // onnxruntime takes outputs for what the first operator of this name and these input types gives; where no input
        // has the activations' type, an attribute decides.
        if (Op::kInputs[0].type != Type::kActivation) InferOutputShapeFn = infer_output_type;
        GetMayInplace = GetAliasMap = [](int**, int**) { return size_t{0}; };
        ReleaseMayInplace = ReleaseAliasMap = [](int*, int*) {};
    }

private:
    static const CustomOp& self(const OrtCustomOp* op) { return *static_cast<const CustomOp*>(op); }

    static OrtStatus* infer_output_type(const OrtCustomOp*, OrtShapeInferContext* context) {
        const Api api(current_api());
        return guarded(api, Op::kName, [&] {
            const Type type = Op::output_type(read_attributes<Op>(api, context), 0);
            api.set_output(context, type == Type::kFp16 ? ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16
                                                        : ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, 4);
        });
    }

    ONNXTensorElementDataType element_type(Type of) const {
        return of == Type::kActivation ? kActivationTypes[type] : ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
    }
};

void register_op(const OrtCustomOp& op);

template <class Op> struct Registrar {
    CustomOp<Op> fp32{SWIN_FP32}, fp16{SWIN_FP16}, bf16{SWIN_BF16};
    Registrar() {
        for (const OrtCustomOp* op : {&fp32, &fp16, &bf16}) register_op(*op);
    }
};

}  // namespace swin

#define SWIN_REGISTER(Op) static swin::Registrar<Op> registrar_of_##Op;
