// TensorRT 8.6: an operator (plugin.h) as IPluginV2DynamicExt.
#pragma once

#include <cstring>
#include <type_traits>

#include "common/plugin.h"

// 8.6 marks IPluginV2, the base of the class that it has in its stead, as deprecated.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wdeprecated-declarations"

namespace swin {

using Creator = nvinfer1::IPluginCreator;

// An optional attribute of every node, 1 in an FP16 graph.
constexpr const char* kFp16Field = "fp16";

inline bool wants_fp16(const nvinfer1::PluginFieldCollection& collection) {
    for (int i = 0; i < collection.nbFields; ++i) {
        const nvinfer1::PluginField& field = collection.fields[i];
        if (field.data != nullptr && std::strcmp(field.name, kFp16Field) == 0) {
            return *static_cast<const int32_t*>(field.data) != 0;
        }
    }
    return false;
}

template <class Op> class Plugin final : public nvinfer1::IPluginV2DynamicExt {
public:
    using Attributes = typename Op::Attributes;
    static_assert(std::is_trivially_copyable<Attributes>::value, "serialised as bytes");

    // fp16: activations must be FP16. What the graph says is otherwise a hint to 8.6, which takes the faster type.
    Plugin(std::string layer, const Attributes& attributes, bool fp16)
        : layer_(std::move(layer)), attributes_(attributes), fp16_(fp16) {}

    // --- IPluginV2DynamicExt ---

    nvinfer1::IPluginV2DynamicExt* clone() const noexcept override {
        return guard<Plugin*>(nullptr, [&] { return new Plugin(*this); });
    }

    // A refused shape is logged here; the unusable answer and supportsFormatCombination's then end the build.
    nvinfer1::DimsExprs getOutputDimensions(int32_t output, const nvinfer1::DimsExprs* inputs, int32_t count,
        nvinfer1::IExprBuilder& builder) noexcept override {
        nvinfer1::DimsExprs none{};
        none.nbDims = -1;
        return guard(none, [&] { return output_dims<Op>(attributes_, inputs, count, builder)[output]; });
    }

    bool supportsFormatCombination(
        int32_t position, const nvinfer1::PluginTensorDesc* tensors, int32_t inputs, int32_t) noexcept override {
        try {
            checked_inputs<Op>(attributes_, inputs, [&](int i) { return tensors[i].dims; });
        } catch (const std::exception&) {
            return false;  // logged by getOutputDimensions
        }
        const bool activation = type_at<Op>(attributes_, position, inputs) == Type::kActivation;
        if (fp16_ && activation && tensors[position].type != nvinfer1::DataType::kHALF) return false;
        return supports_format<Op>(attributes_, position, inputs, [&](int i) -> const auto& { return tensors[i]; });
    }

    void configurePlugin(const nvinfer1::DynamicPluginTensorDesc*, int32_t inputs,
        const nvinfer1::DynamicPluginTensorDesc*, int32_t) noexcept override {
        inputs_ = inputs;
    }

    size_t getWorkspaceSize(const nvinfer1::PluginTensorDesc*, int32_t, const nvinfer1::PluginTensorDesc*,
        int32_t) const noexcept override {
        return Op::kWorkspaceBytes;
    }

    int32_t enqueue(const nvinfer1::PluginTensorDesc* descriptions, const nvinfer1::PluginTensorDesc*,
        const void* const* inputs, void* const* outputs, void* workspace, cudaStream_t stream) noexcept override {
        return guard(1, [&] {
            run<Op>(attributes_, descriptions, inputs_, inputs, outputs, workspace, stream);
            return 0;
        });
    }

    // --- IPluginV2Ext, IPluginV2 ---

    nvinfer1::DataType getOutputDataType(
        int32_t output, const nvinfer1::DataType* types, int32_t) const noexcept override {
        return tensorrt_type(Op::output_type(attributes_, output), types[0]);
    }
    const char* getPluginType() const noexcept override { return Op::kName; }
    const char* getPluginVersion() const noexcept override { return kVersion; }
    int32_t getNbOutputs() const noexcept override { return Op::kOutputs; }
    int32_t initialize() noexcept override { return 0; }
    void terminate() noexcept override {}
    size_t getSerializationSize() const noexcept override { return sizeof(Serialized); }
    void serialize(void* buffer) const noexcept override {
        const Serialized bytes{attributes_, inputs_, fp16_};
        std::memcpy(buffer, &bytes, sizeof(bytes));
    }
    void destroy() noexcept override { delete this; }
    void setPluginNamespace(const char* name) noexcept override {
        guard(0, [&] {
            namespace_ = name;
            return 0;
        });
    }
    const char* getPluginNamespace() const noexcept override { return namespace_.c_str(); }

    static Plugin* deserialize(std::string layer, const void* data, size_t length) {
        Serialized bytes;
        if (length != sizeof(bytes)) {
            throw Refusal("the engine holds " + std::to_string(length) + " bytes of it instead of "
                + std::to_string(sizeof(bytes)) + "; build the engine again with this plugin library");
        }
        std::memcpy(&bytes, data, length);
        Plugin* plugin = new Plugin(std::move(layer), bytes.attributes, bytes.fp16 != 0);
        plugin->inputs_ = bytes.inputs;
        return plugin;
    }

private:
    struct Serialized {
        Attributes attributes;
        int32_t inputs;
        int32_t fp16;
    };

    template <class Result, class Body> Result guard(Result failure, const Body& body) const noexcept {
        return guarded(Op::kName, layer_, failure, body);
    }

    std::string layer_;  // for messages
    std::string namespace_ = kNamespace;
    Attributes attributes_;
    bool fp16_;
    int32_t inputs_ = Op::kRequired;  // enqueue is not told how many there are
};

template <class Op> class OpCreator final : public Creator {
public:
    OpCreator() : fields_(asked_fields<Op>()) {
        fields_.emplace_back(kFp16Field, nullptr, nvinfer1::PluginFieldType::kINT32, 1);
        names_.nbFields = static_cast<int32_t>(fields_.size());
        names_.fields = fields_.data();
    }

    const char* getPluginName() const noexcept override { return Op::kName; }
    const char* getPluginVersion() const noexcept override { return kVersion; }
    const nvinfer1::PluginFieldCollection* getFieldNames() noexcept override { return &names_; }
    void setPluginNamespace(const char*) noexcept override {}
    const char* getPluginNamespace() const noexcept override { return kNamespace; }

    nvinfer1::IPluginV2* createPlugin(
        const char* layer, const nvinfer1::PluginFieldCollection* fields) noexcept override {
        const std::string name = name_or_empty(layer);
        return guarded<Plugin<Op>*>(Op::kName, name, nullptr,
            [&] { return new Plugin<Op>(name, read_attributes<Op>(*fields), wants_fp16(*fields)); });
    }

    nvinfer1::IPluginV2* deserializePlugin(const char* layer, const void* data, size_t length) noexcept override {
        const std::string name = name_or_empty(layer);
        return guarded<Plugin<Op>*>(
            Op::kName, name, nullptr, [&] { return Plugin<Op>::deserialize(name, data, length); });
    }

private:
    std::vector<nvinfer1::PluginField> fields_;
    nvinfer1::PluginFieldCollection names_{};
};

}  // namespace swin

#pragma GCC diagnostic pop
