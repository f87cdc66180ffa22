// TensorRT 10 and later: an operator (plugin.h) as IPluginV3.
#pragma once

#include "common/plugin.h"

namespace swin {

using Creator = nvinfer1::IPluginCreatorInterface;

template <class Op>
class Plugin final : public nvinfer1::IPluginV3,
                     public nvinfer1::IPluginV3OneCore,
                     public nvinfer1::IPluginV3OneBuild,
                     public nvinfer1::IPluginV3OneRuntime {
public:
    using Attributes = typename Op::Attributes;

    Plugin(std::string layer, const Attributes& attributes) : layer_(std::move(layer)), attributes_(attributes) {
        point_fields();
    }
    Plugin(const Plugin& other) : Plugin(other.layer_, other.attributes_) { inputs_ = other.inputs_; }

    // --- IPluginV3 ---

    nvinfer1::IPluginCapability* getCapabilityInterface(nvinfer1::PluginCapabilityType type) noexcept override {
        switch (type) {
        case nvinfer1::PluginCapabilityType::kCORE: return static_cast<nvinfer1::IPluginV3OneCore*>(this);
        case nvinfer1::PluginCapabilityType::kBUILD: return static_cast<nvinfer1::IPluginV3OneBuild*>(this);
        case nvinfer1::PluginCapabilityType::kRUNTIME: return static_cast<nvinfer1::IPluginV3OneRuntime*>(this);
        }
        return nullptr;
    }

    nvinfer1::IPluginV3* clone() noexcept override {
        return guard<Plugin*>(nullptr, [&] { return new Plugin(*this); });
    }

    // --- IPluginV3OneCore ---

    const char* getPluginName() const noexcept override { return Op::kName; }
    const char* getPluginVersion() const noexcept override { return kVersion; }
    const char* getPluginNamespace() const noexcept override { return kNamespace; }

    // --- IPluginV3OneBuild ---

    int32_t getNbOutputs() const noexcept override { return Op::kOutputs; }

    int32_t getOutputDataTypes(nvinfer1::DataType* outputs, int32_t output_count, const nvinfer1::DataType* inputs,
        int32_t count) const noexcept override {
        return guard(1, [&] {
            check_types<Op>(attributes_, count, [&](int i) { return inputs[i]; });
            for (int i = 0; i < output_count; ++i) {
                outputs[i] = tensorrt_type(Op::output_type(attributes_, i), inputs[0]);
            }
            return 0;
        });
    }

    int32_t getOutputShapes(const nvinfer1::DimsExprs* inputs, int32_t count, const nvinfer1::DimsExprs*, int32_t,
        nvinfer1::DimsExprs* outputs, int32_t output_count, nvinfer1::IExprBuilder& builder) noexcept override {
        return guard(1, [&] {
            std::copy_n(output_dims<Op>(attributes_, inputs, count, builder).begin(), output_count, outputs);
            return 0;
        });
    }

    bool supportsFormatCombination(
        int32_t position, const nvinfer1::DynamicPluginTensorDesc* tensors, int32_t inputs, int32_t) noexcept override {
        return supports_format<Op>(
            attributes_, position, inputs, [&](int i) -> const auto& { return tensors[i].desc; });
    }

    int32_t configurePlugin(const nvinfer1::DynamicPluginTensorDesc*, int32_t, const nvinfer1::DynamicPluginTensorDesc*,
        int32_t) noexcept override {
        return 0;
    }

    size_t getWorkspaceSize(const nvinfer1::DynamicPluginTensorDesc*, int32_t, const nvinfer1::DynamicPluginTensorDesc*,
        int32_t) const noexcept override {
        return Op::kWorkspaceBytes;
    }

    // --- IPluginV3OneRuntime ---

    int32_t onShapeChange(const nvinfer1::PluginTensorDesc*, int32_t inputs, const nvinfer1::PluginTensorDesc*,
        int32_t) noexcept override {
        inputs_ = inputs;
        return 0;
    }

    int32_t enqueue(const nvinfer1::PluginTensorDesc* descriptions, const nvinfer1::PluginTensorDesc*,
        const void* const* inputs, void* const* outputs, void* workspace, cudaStream_t stream) noexcept override {
        return guard(1, [&] {
            run<Op>(attributes_, descriptions, inputs_, inputs, outputs, workspace, stream);
            return 0;
        });
    }

    nvinfer1::IPluginV3* attachToContext(nvinfer1::IPluginResourceContext*) noexcept override { return clone(); }

    const nvinfer1::PluginFieldCollection* getFieldsToSerialize() noexcept override { return &collection_; }

private:
    template <class Result, class Body> Result guard(Result failure, const Body& body) const noexcept {
        return guarded(Op::kName, layer_, failure, body);
    }

    void point_fields() {
        fields_ = fields_of<Op>(&attributes_);
        collection_.nbFields = static_cast<int32_t>(fields_.size());
        collection_.fields = fields_.data();
    }

    std::string layer_;  // for messages
    Attributes attributes_;
    int32_t inputs_ = Op::kRequired;  // enqueue is not told how many there are
    std::vector<nvinfer1::PluginField> fields_;
    nvinfer1::PluginFieldCollection collection_{};
};

template <class Op> class OpCreator final : public nvinfer1::IPluginCreatorV3One {
public:
    OpCreator() : fields_(asked_fields<Op>()) {
        names_.nbFields = static_cast<int32_t>(fields_.size());
        names_.fields = fields_.data();
    }

    const char* getPluginName() const noexcept override { return Op::kName; }
    const char* getPluginVersion() const noexcept override { return kVersion; }
    const char* getPluginNamespace() const noexcept override { return kNamespace; }
    const nvinfer1::PluginFieldCollection* getFieldNames() noexcept override { return &names_; }

    // Build and runtime alike: an engine stores the attributes as the same fields that the ONNX node has.
    nvinfer1::IPluginV3* createPlugin(
        const char* layer, const nvinfer1::PluginFieldCollection* fields, nvinfer1::TensorRTPhase) noexcept override {
        const std::string name = name_or_empty(layer);
        return guarded<Plugin<Op>*>(
            Op::kName, name, nullptr, [&] { return new Plugin<Op>(name, read_attributes<Op>(*fields)); });
    }

private:
    std::vector<nvinfer1::PluginField> fields_;
    nvinfer1::PluginFieldCollection names_{};
};

}  // namespace swin
