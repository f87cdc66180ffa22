// The plugins' TensorRT side on a machine that has neither TensorRT nor a GPU: tests/test_plugins_build.py links this
// with the plugins' object files. It stands in for libnvinfer (registry, logger, shape expressions) and asks every
// plugin what the builder asks: output shapes, refusals with their reason, formats, serialised attributes.
// Prints one line a failed check; the exit status is their number.

#include <algorithm>
#include <cstdio>
#include <deque>
#include <iterator>
#include <map>
#include <string>
#include <vector>

#include <NvInfer.h>

using namespace nvinfer1;
#pragma GCC diagnostic ignored "-Wdeprecated-declarations"

// --- what libnvinfer gives -------------------------------------------------------------------------------------------

#if NV_TENSORRT_MAJOR >= 10
using Size = int64_t;
using AnyCreator = IPluginCreatorInterface;
using Creator = IPluginCreatorV3One;
extern "C" AnyCreator* const* getCreators(int32_t& count);
#else
using Size = int32_t;
using AnyCreator = IPluginCreator;
using Creator = IPluginCreator;
extern "C" AnyCreator* const* getPluginCreators(int32_t& count);
#endif

std::vector<std::string> logged;

class Logger : public ILogger {
    void log(Severity, const char* message) noexcept override { logged.push_back(message); }
} logger;

class Registry : public IPluginRegistry {
public:
    std::vector<std::pair<AnyCreator*, std::string>> creators;
    ~Registry() noexcept override = default;
    bool registerCreator(AnyCreator& creator, const char* name) noexcept override {
        creators.emplace_back(&creator, name);
        return true;
    }
    bool deregisterCreator(const AnyCreator& creator) noexcept override {
        const auto is_it = [&](const auto& known) { return known.first == &creator; };
        const auto found = std::find_if(creators.begin(), creators.end(), is_it);
        if (found == creators.end()) return false;
        creators.erase(found);
        return true;
    }
    AnyCreator* find(const std::string& op, const std::string& space) const {
        for (const auto& [creator, name] : creators) {
            if (static_cast<Creator*>(creator)->getPluginName() == op && name == space) return creator;
        }
        return nullptr;
    }
    void setErrorRecorder(IErrorRecorder*) noexcept override {}
    IErrorRecorder* getErrorRecorder() const noexcept override { return nullptr; }
    bool isParentSearchEnabled() const override { return false; }
    void setParentSearchEnabled(bool) override {}
    void* loadLibrary(const char*) noexcept override { return nullptr; }
    void deregisterLibrary(void*) noexcept override {}
#if NV_TENSORRT_MAJOR >= 10
    AnyCreator* const* getAllCreators(int32_t* count) const noexcept override { return list(count); }
    AnyCreator* getCreator(const char*, const char*, const char*) noexcept override { return nullptr; }
    IPluginResource* acquirePluginResource(const char*, IPluginResource*) noexcept override { return nullptr; }
    int32_t releasePluginResource(const char*) noexcept override { return 0; }
    AnyCreator* const* getAllCreatorsRecursive(int32_t*) noexcept override { return nullptr; }
#endif
#if NV_TENSORRT_MAJOR == 10
    bool registerCreator(IPluginCreator&, const char*) noexcept override { return false; }
    bool deregisterCreator(const IPluginCreator&) noexcept override { return false; }
#endif
#if NV_TENSORRT_MAJOR == 10
    IPluginCreator* const* getPluginCreatorList(int32_t*) const noexcept override { return nullptr; }
#elif NV_TENSORRT_MAJOR < 10
    IPluginCreator* const* getPluginCreatorList(int32_t* count) const noexcept override { return list(count); }
#endif
#if NV_TENSORRT_MAJOR <= 10
    IPluginCreator* getPluginCreator(const char*, const char*, const char*) noexcept override { return nullptr; }
#endif

private:
    mutable std::vector<AnyCreator*> listed_;
    AnyCreator* const* list(int32_t* count) const {
        listed_.clear();
        for (const auto& [creator, name] : creators) listed_.push_back(creator);
        *count = static_cast<int32_t>(listed_.size());
        return listed_.data();
    }
};

Registry& registry() {
    static Registry* const only = new Registry;  // before any plugin's static registration, and never destroyed
    return *only;
}
extern "C" IPluginRegistry* getPluginRegistry() noexcept { return &registry(); }
extern "C" ILogger* getLogger() noexcept { return &logger; }

// A dimension: its value, or -1 where it is not known while building.
class Dimension : public IDimensionExpr, public apiv::VDimensionExpr {
public:
    explicit Dimension(Size value) : value_(value) { mImpl = this; }
    bool isConstant() const noexcept override { return value_ >= 0; }
    Size getConstantValue() const noexcept override { return value_; }
#if NV_TENSORRT_MAJOR >= 10
    bool isSizeTensor() const noexcept override { return false; }
#endif
private:
    Size value_;
};

class Builder : public IExprBuilder, public apiv::VExprBuilder {
public:
    Builder() { mImpl = this; }
    const IDimensionExpr* constant(Size value) noexcept override {
        made_.emplace_back(value);
        return &made_.back();
    }
    const IDimensionExpr* operation(
        DimensionOperation operation, const IDimensionExpr& first, const IDimensionExpr& second) noexcept override {
        const Size a = first.isConstant() ? first.getConstantValue() : -1;
        const Size b = second.getConstantValue();
        if (a < 0) return constant(-1);
        switch (operation) {
        case DimensionOperation::kPROD: return constant(a * b);
        case DimensionOperation::kCEIL_DIV: return constant((a + b - 1) / b);
        default: return constant(a / b);
        }
    }
#if NV_TENSORRT_MAJOR >= 10
    const IDimensionExpr* declareSizeTensor(int32_t, const IDimensionExpr&, const IDimensionExpr&) noexcept override {
        return nullptr;
    }
#endif
private:
    std::deque<Dimension> made_;
};

// --- checks ----------------------------------------------------------------------------------------------------------

using Shape = std::vector<Size>;
using Attributes = std::map<std::string, float>;  // integers end in "!"

int failures = 0;

void expect(bool condition, const std::string& what) {
    if (condition) return;
    ++failures;
    std::printf("FAILED: %s%s%s\n", what.c_str(),
        logged.empty() ? "" : "; logged: ", logged.empty() ? "" : logged.back().c_str());
}

// The plugin of either generation behind one face.
class Plugin {
public:
    Plugin(const std::string& op, const Attributes& attributes) {
        std::deque<int32_t> integers;
        std::deque<float> reals;
        std::deque<std::string> names;
        std::vector<PluginField> fields;
        for (const auto& [name, value] : attributes) {
            const bool integer = name.back() == '!';
            names.push_back(integer ? name.substr(0, name.size() - 1) : name);
            integers.push_back(static_cast<int32_t>(value));
            reals.push_back(value);
            const void* data = integer ? static_cast<void*>(&integers.back()) : &reals.back();
            fields.emplace_back(
                names.back().c_str(), data, integer ? PluginFieldType::kINT32 : PluginFieldType::kFLOAT32, 1);
        }
        PluginFieldCollection collection{static_cast<int32_t>(fields.size()), fields.data()};
        creator_ = static_cast<Creator*>(registry().find(op, "swin"));
        if (creator_ != nullptr) plugin_ = create(collection);
    }
    ~Plugin() { drop(plugin_); }

    bool registered() const { return creator_ != nullptr; }
    bool made() const { return plugin_ != nullptr; }

#if NV_TENSORRT_MAJOR >= 10
    using Made = IPluginV3;
    Made* create(const PluginFieldCollection& fields) const {
        return creator_->createPlugin("layer", &fields, TensorRTPhase::kBUILD);
    }
    static void drop(Made* made) { delete made; }
    template <class Capability> Capability* as(PluginCapabilityType type) const {
        return static_cast<Capability*>(plugin_->getCapabilityInterface(type));
    }
    IPluginV3OneBuild* build() const { return as<IPluginV3OneBuild>(PluginCapabilityType::kBUILD); }
    int outputs() const { return build()->getNbOutputs(); }

    // Output shapes as the builder learns them; empty where they are refused.
    std::vector<Shape> output_shapes(const std::vector<Shape>& inputs) const {
        Builder builder;
        const std::vector<DimsExprs> given = expressions(inputs, builder);
        std::vector<DimsExprs> out(outputs());
        const int32_t status = build()->getOutputShapes(
            given.data(), static_cast<int32_t>(given.size()), nullptr, 0, out.data(), outputs(), builder);
        std::vector<Shape> shapes;
        for (const DimsExprs& dims : out) {
            if (status == 0) shapes.push_back(values(dims));
        }
        return shapes;
    }
    std::vector<DataType> output_types(const std::vector<DataType>& inputs) const {
        std::vector<DataType> types(outputs(), DataType::kBOOL);
        build()->getOutputDataTypes(types.data(), outputs(), inputs.data(), static_cast<int32_t>(inputs.size()));
        return types;
    }
    size_t workspace_bytes() const { return build()->getWorkspaceSize(nullptr, 0, nullptr, 0); }
    bool supports(int position, const std::vector<PluginTensorDesc>& tensors, int inputs) const {
        std::vector<DynamicPluginTensorDesc> dynamic;
        for (const PluginTensorDesc& one : tensors) dynamic.push_back({one, one.dims, one.dims, one.dims});
        return build()->supportsFormatCombination(
            position, dynamic.data(), inputs, static_cast<int32_t>(tensors.size()) - inputs);
    }
    // The plugin that a runtime makes of what this one stores in an engine.
    void reload() {
        const auto* stored = as<IPluginV3OneRuntime>(PluginCapabilityType::kRUNTIME)->getFieldsToSerialize();
        Made* again = creator_->createPlugin("layer", stored, TensorRTPhase::kRUNTIME);
        drop(plugin_);
        plugin_ = again;
    }
    int enqueue(const std::vector<PluginTensorDesc>& inputs) const {
        auto* runtime = as<IPluginV3OneRuntime>(PluginCapabilityType::kRUNTIME);
        runtime->onShapeChange(inputs.data(), static_cast<int32_t>(inputs.size()), nullptr, outputs());
        const void* none[12] = {};
        void* nothing[2] = {};
        return runtime->enqueue(inputs.data(), nullptr, none, nothing, nullptr, nullptr);
    }
#else
    using Made = IPluginV2DynamicExt;
    Made* create(const PluginFieldCollection& fields) const {
        return static_cast<Made*>(creator_->createPlugin("layer", &fields));
    }
    static void drop(Made* made) {
        if (made != nullptr) made->destroy();
    }
    int outputs() const { return plugin_->getNbOutputs(); }

    std::vector<Shape> output_shapes(const std::vector<Shape>& inputs) const {
        Builder builder;
        const std::vector<DimsExprs> given = expressions(inputs, builder);
        std::vector<Shape> shapes;
        for (int i = 0; i < outputs(); ++i) {
            const DimsExprs dims
                = plugin_->getOutputDimensions(i, given.data(), static_cast<int32_t>(given.size()), builder);
            if (dims.nbDims >= 0) shapes.push_back(values(dims));
        }
        return shapes;
    }
    std::vector<DataType> output_types(const std::vector<DataType>& inputs) const {
        std::vector<DataType> types;
        for (int i = 0; i < outputs(); ++i) {
            types.push_back(plugin_->getOutputDataType(i, inputs.data(), static_cast<int32_t>(inputs.size())));
        }
        return types;
    }
    size_t workspace_bytes() const { return plugin_->getWorkspaceSize(nullptr, 0, nullptr, 0); }
    bool supports(int position, const std::vector<PluginTensorDesc>& tensors, int inputs) const {
        return plugin_->supportsFormatCombination(
            position, tensors.data(), inputs, static_cast<int32_t>(tensors.size()) - inputs);
    }
    void reload() {
        std::vector<char> bytes(plugin_->getSerializationSize());
        plugin_->serialize(bytes.data());
        expect(creator_->deserializePlugin("layer", bytes.data(), bytes.size() - 1) == nullptr, "a truncated engine");
        logged.clear();
        drop(plugin_);
        plugin_ = static_cast<Made*>(creator_->deserializePlugin("layer", bytes.data(), bytes.size()));
    }
    int enqueue(const std::vector<PluginTensorDesc>& inputs) const {
        std::vector<DynamicPluginTensorDesc> dynamic(inputs.size());
        plugin_->configurePlugin(dynamic.data(), static_cast<int32_t>(inputs.size()), nullptr, outputs());
        const void* none[12] = {};
        void* nothing[2] = {};
        return plugin_->enqueue(inputs.data(), nullptr, none, nothing, nullptr, nullptr);
    }
#endif

    void clone() {
        Made* copy = plugin_->clone();
        drop(plugin_);
        plugin_ = copy;
    }

private:
    static std::vector<DimsExprs> expressions(const std::vector<Shape>& shapes, Builder& builder) {
        std::vector<DimsExprs> all;
        for (const Shape& shape : shapes) {
            DimsExprs dims{};
            dims.nbDims = static_cast<int32_t>(shape.size());
            for (size_t i = 0; i < shape.size(); ++i) dims.d[i] = builder.constant(shape[i]);
            all.push_back(dims);
        }
        return all;
    }
    static Shape values(const DimsExprs& dims) {
        Shape shape;
        for (int i = 0; i < dims.nbDims; ++i) {
            shape.push_back(dims.d[i]->isConstant() ? dims.d[i]->getConstantValue() : -1);
        }
        return shape;
    }

    Creator* creator_ = nullptr;
    Made* plugin_ = nullptr;
};

PluginTensorDesc tensor(const Shape& shape, DataType type, TensorFormat format = TensorFormat::kLINEAR) {
    PluginTensorDesc description{};
    description.type = type;
    description.format = format;
    description.dims.nbDims = static_cast<int32_t>(shape.size());
    std::copy(shape.begin(), shape.end(), description.dims.d);
    return description;
}

struct Valid {
    std::string op;
    Attributes attributes;
    std::string types;  // a letter a tensor, inputs first: a activation, f FP32, h FP16, q INT8 (four in an INT32)
    std::vector<Shape> inputs, outputs;
};

DataType type_of(char letter, DataType activation) {
    return letter == 'a' ? activation
        : letter == 'f'  ? DataType::kFLOAT
        : letter == 'h'  ? DataType::kHALF
                         : DataType::kINT32;
}

struct Invalid {
    std::string op;
    Attributes attributes;
    std::vector<Shape> inputs;
    std::string reason;  // part of what is logged
};

const Attributes kEpsilon{{"epsilon", 1e-5F}};
// Patches of 4 x `width`.
Attributes patch(int width, int ceil, int y_type) {
    return {{"epsilon", 1e-5F}, {"patch_height!", 4}, {"patch_width!", width}, {"ceil!", ceil}, {"y_type!", y_type}};
}

Attributes attention(int heads, int window_height, int window_width, int shift) {
    return {{"num_heads!", heads}, {"window_height!", window_height}, {"window_width!", window_width},
        {"shift_height!", shift}, {"shift_width!", shift}, {"roll_first!", 0}, {"shift_if_covered!", 1},
        {"scale", 0.17F}, {"mask_value", -100}};
}

Attributes linear(int gelu) { return {{"gelu!", gelu}}; }

Attributes mlp(int norm_first, int gelu = 1) {
    return {{"norm_first!", norm_first}, {"gelu!", gelu}, {"epsilon", 1e-5F}};
}

// Inputs of a SwinMlp on x [-1, 32], its own and what an end of the attention branch has more.
std::vector<Shape> mlp_inputs(const std::vector<Shape>& more) {
    std::vector<Shape> inputs{{-1, 32}, {32}, {32}, {64, 32}, {64}, {32, 64}, {32}};
    inputs.insert(inputs.end(), more.begin(), more.end());
    return inputs;
}

Attributes int8(Attributes attributes, float y_scale) {
    attributes["y_scale"] = y_scale;
    return attributes;
}

Attributes norm_add_int8(float x_scale, float y_scale = 0.05F) {
    Attributes attributes = int8(kEpsilon, y_scale);
    attributes["x_scale"] = x_scale;
    return attributes;
}

Attributes attention_int8(int heads, int window, int shift, float qkv_scale, float y_scale = 0.02F) {
    Attributes attributes = int8(attention(heads, window, window, shift), y_scale);
    attributes["qkv_scale"] = qkv_scale;
    return attributes;
}

// proj_scale: 0 for V1, positive for V2.
Attributes branch_int8(int heads, int window, int shift, int norm_first, float proj_scale) {
    Attributes attributes = attention_int8(heads, window, shift, 0.03F);
    attributes.insert(
        {{"epsilon", 1e-5F}, {"norm_first!", norm_first}, {"attention_scale", 0.04F}, {"proj_scale", proj_scale}});
    return attributes;
}

// With one attribute changed.
Attributes but(Attributes attributes, const std::string& name, float value) {
    attributes[name] = value;
    return attributes;
}

// Inputs of a SwinAttentionBranchInt8 on 14 x 21 tokens of 96 channels, windows of 7; input `changed` is `shape`.
std::vector<Shape> branch_inputs(int changed = -1, const Shape& shape = {}) {
    std::vector<Shape> inputs{
        {-1, 14, 21, 24}, {-1, 14, 21, 96}, {288, 24}, {288}, {288}, {96, 24}, {96}, {96}, {3, 49, 56}, {96}, {96},
        {3}};
    if (changed >= 0) inputs[changed] = shape;
    return inputs;
}

// The same without logit_scale, as V1 takes them.
std::vector<Shape> branch_inputs_v1(int changed = -1, const Shape& shape = {}) {
    std::vector<Shape> inputs = branch_inputs(changed, shape);
    inputs.pop_back();
    return inputs;
}

void check_valid(const Valid& valid) {
    logged.clear();
    Plugin plugin(valid.op, valid.attributes);
    expect(plugin.registered(), valid.op + " is registered in namespace swin");
    expect(plugin.made(), valid.op + " is made from its attributes");
    if (!plugin.made()) return;
    const int inputs = static_cast<int>(valid.inputs.size());
    for (int round = 0; round < 3; ++round) {  // as parsed, as cloned, as loaded from an engine
        expect(plugin.output_shapes(valid.inputs) == valid.outputs, valid.op + " gives its output shapes");
        std::vector<DataType> activations{DataType::kFLOAT, DataType::kHALF};
#if NV_TENSORRT_MAJOR >= 10
        activations.push_back(DataType::kBF16);
#endif
        for (DataType activation : activations) {
            std::vector<PluginTensorDesc> tensors;
            std::vector<DataType> types;
            for (const auto* shapes : {&valid.inputs, &valid.outputs}) {
                for (const Shape& shape : *shapes) {
                    types.push_back(type_of(valid.types[tensors.size()], activation));
                    tensors.push_back(tensor(shape, types.back()));
                }
            }
            expect(plugin.output_types({types.begin(), types.begin() + inputs})
                    == std::vector<DataType>(types.begin() + inputs, types.end()),
                valid.op + " gives its outputs' types");
            for (int i = 0; i < static_cast<int>(tensors.size()); ++i) {
                const std::string which = valid.op + ", tensor " + std::to_string(i) + ", type "
                    + std::to_string(static_cast<int>(types[i]));
                expect(plugin.supports(i, tensors, inputs), which + " is supported");
                auto other = tensors;
                other[i].type = DataType::kINT8;
                expect(!plugin.supports(i, other, inputs), which + " as INT8 is not");
                other[i] = tensors[i];
                other[i].format = TensorFormat::kCHW32;
                expect(!plugin.supports(i, other, inputs), which + " in another format is not");
                for (DataType type : {DataType::kFLOAT, DataType::kHALF, DataType::kINT32}) {
                    if (type == types[i] || (i == 0 && valid.types[0] == 'a')) continue;
                    other[i] = tensors[i];
                    other[i].type = type;
                    expect(!plugin.supports(i, other, inputs), which + " of another type is not");
                }
            }
        }
        if (round == 0) plugin.clone();
        if (round == 1) plugin.reload();
    }

    expect(logged.empty(), valid.op + " logs nothing while all is well");
    // A batch of none is nothing to do; activations of a type that was never agreed on are an error, not a launch.
    std::vector<PluginTensorDesc> tensors;
    for (Shape shape : valid.inputs) {
        if (shape[0] < 0) shape[0] = 0;
        tensors.push_back(tensor(shape, type_of(valid.types[tensors.size()], DataType::kFLOAT)));
    }
    expect(plugin.enqueue(tensors) == 0 && logged.empty(), valid.op + " with an empty batch");
    tensors[0].type = DataType::kINT8;
    expect(plugin.enqueue(tensors) != 0 && !logged.empty(), valid.op + " on INT8 activations");
}

void check_invalid(const Invalid& invalid) {
    logged.clear();
    const Plugin plugin(invalid.op, invalid.attributes);
    const std::string what = invalid.op + " refuses: " + invalid.reason;
    if (plugin.made()) {
        expect(plugin.output_shapes(invalid.inputs).empty(), what);
    }
    expect(!logged.empty() && logged.back().find(invalid.op + " (layer): ") == 0, what + " (logged with its name)");
    expect(!logged.empty() && logged.back().find(invalid.reason) != std::string::npos, what + " (reason logged)");
}

// IPluginRegistry::loadLibrary registers what the library hands over, and refuses names that are taken.
void check_loading() {
    const auto before = registry().creators;
    int32_t count = 0;
#if NV_TENSORRT_MAJOR >= 10
    AnyCreator* const* const handed = getCreators(count);
#else
    AnyCreator* const* const handed = getPluginCreators(count);
#endif
    expect(registry().creators.empty(), "names are free for loadLibrary");
    bool same = count == static_cast<int32_t>(before.size());
    for (int i = 0; same && i < count; ++i) same = handed[i] == before[i].first;
    expect(same, "loadLibrary is handed what the library registered when it was opened");
    registry().creators = before;
}

int main() {
    const Attributes kBranchV1 = branch_int8(3, 7, 3, 1, 0), kBranchV2 = branch_int8(3, 7, 3, 0, 0.02F);
    const Attributes kPatch = patch(4, 0, 1);
    const std::vector<Shape> kPatchParameters{{96, 3, 4, 4}, {96}, {96}, {96}};
    const auto patch_inputs = [&](const Shape& x) {
        std::vector<Shape> inputs{x};
        inputs.insert(inputs.end(), kPatchParameters.begin(), kPatchParameters.end());
        return inputs;
    };
    const std::string kEarlier
        = "made by an earlier version of this project; patch the FP32 graph again with add_all.py";
    const Valid valid[] = {
        {"SwinLayerNorm", kEpsilon, "aa", {{-1, 49, 96}}, {{-1, 49, 96}}},
        {"SwinLayerNorm", kEpsilon, "aa", {{-1, 96}}, {{-1, 96}}},
        {"SwinLayerNormWithParams", kEpsilon, "affa", {{-1, 7, 7, 96}, {96}, {96}}, {{-1, 7, 7, 96}}},
        {"SwinAddLayerNorm", kEpsilon, "aaffaa", {{-1, 49, 96}, {-1, 49, 96}, {96}, {96}},
            {{-1, 49, 96}, {-1, 49, 96}}},
        {"SwinLayerNormAdd", kEpsilon, "aaffa", {{-1, 49, 96}, {-1, 49, 96}, {96}, {96}}, {{-1, 49, 96}}},
        {"SwinPatchMergeLayerNorm", kEpsilon, "affa", {{-1, 56, 28, 96}, {384}, {384}}, {{-1, 28, 14, 384}}},
        {"SwinPatchMergeLayerNorm", kEpsilon, "affa", {{-1, 57, 1, 33}, {132}, {132}}, {{-1, 29, 1, 132}}},
        {"SwinPatchMerge", {}, "aa", {{-1, 56, 27, 96}}, {{-1, 28, 14, 384}}},
        {"SwinPatchMerge", {}, "aa", {{-1, -1, -1, 96}}, {{-1, -1, -1, 384}}},
        {"SwinPatchEmbed", kPatch, "fffffh", patch_inputs({-1, 3, 224, 256}), {{-1, 56, 64, 96}}},
        {"SwinPatchEmbed", kPatch, "fffffh", patch_inputs({-1, 3, 227, 257}), {{-1, 56, 64, 96}}},
        {"SwinPatchEmbed", patch(4, 1, 0), "ffffff", patch_inputs({-1, 3, 225, 3}), {{-1, 57, 1, 96}}},
        {"SwinPatchEmbed", patch(4, 1, 0), "ffffff", patch_inputs({-1, 3, -1, -1}), {{-1, -1, -1, 96}}},
        {"SwinPatchEmbed", patch(16, 0, 0), "ffffff", {{-1, 1, 64, 1001}, {48, 1, 4, 16}, {48}, {48}, {48}},
            {{-1, 16, 62, 48}}},
        {"SwinFNorm", {{"epsilon", 1e-12F}}, "aa", {{-1, 3, 49, 32}}, {{-1, 3, 49, 32}}},
        {"SwinAttention", attention(3, 7, 7, 3), "affa", {{-1, 14, 21, 288}, {3, 49, 56}, {288}}, {{-1, 14, 21, 96}}},
        {"SwinAttention", attention(3, 8, 8, 0), "afffa", {{-1, 16, 16, 288}, {3, 64, 64}, {288}, {3}},
            {{-1, 16, 16, 96}}},
        {"SwinAttention", attention(3, 8, 32, 5), "affa", {{-1, -1, -1, 72}, {3, 256, 256}, {72}}, {{-1, -1, -1, 24}}},
        {"SwinAttention", but(but(attention(2, 7, 14, 0), "shift_width!", 13), "roll_first!", 1), "affa",
            {{-1, 5, 200, 384}, {2, 98, 104}, {384}}, {{-1, 5, 200, 128}}},
        {"SwinAttention", but(attention(6, 32, 1, 0), "shift_if_covered!", 0), "affa",
            {{-1, 1, 1, 720}, {6, 32, 32}, {720}}, {{-1, 1, 1, 240}}},
        {"SwinAttention", but(attention(3, 7, 7, 3), "plain_fp32!", 1), "affa",
            {{-1, 14, 21, 288}, {3, 49, 56}, {288}}, {{-1, 14, 21, 96}}},
        {"SwinLinear", linear(1), "aaaa", {{-1, 49, 96}, {384, 96}, {384}}, {{-1, 49, 384}}},
        {"SwinLinear", linear(2), "aaaa", {{-1, 7, 7, 96}, {384, 96}, {384}}, {{-1, 7, 7, 384}}},
        {"SwinLinear", linear(0), "aaaaa", {{-1, 49, 384}, {96, 384}, {96}, {-1, 49, 96}}, {{-1, 49, 96}}},
        {"SwinLinear", linear(0), "aaaa", {{-1, 95}, {33, 95}, {33}}, {{-1, 33}}},
        {"SwinLinear", but(linear(1), "plain_fp32!", 1), "aaaa", {{-1, 95}, {33, 95}, {33}}, {{-1, 33}}},
        {"SwinMlp", mlp(1), "affaaaaa", {{-1, 49, 96}, {96}, {96}, {384, 96}, {384}, {96, 384}, {96}}, {{-1, 49, 96}}},
        {"SwinMlp", mlp(0), "affaaaaa", {{-1, 7, 33}, {33}, {33}, {50, 33}, {50}, {33, 50}, {33}}, {{-1, 7, 33}}},
        {"SwinMlp", but(mlp(0), "plain_fp32!", 0), "affaaaaa", mlp_inputs({}), {{-1, 32}}},
        {"SwinMlp", mlp(1, 2), "affaaaaa", mlp_inputs({}), {{-1, 32}}},
        {"SwinMlp", mlp(1), "affaaaaaaaa", mlp_inputs({{-1, 32}, {32, 32}, {32}}), {{-1, 32}}},
        {"SwinMlp", mlp(0), "affaaaaaaaffa", mlp_inputs({{-1, 32}, {32, 32}, {32}, {32}, {32}}), {{-1, 32}}},
        {"SwinMlp", mlp(0), "affaaaaaaaffa",
            {{-1, 49, 96}, {96}, {96}, {384, 96}, {384}, {96, 384}, {96}, {-1, 49, 96}, {96, 96}, {96}, {96}, {96}},
            {{-1, 49, 96}}},
        // INT8 shapes are TensorRT's: a quarter of the last axis.
        {"SwinLinearInt8", int8(linear(1), 0.05F), "qqffq", {{-1, 49, 24}, {384, 24}, {384}, {384}}, {{-1, 49, 96}}},
        {"SwinLinearInt8", int8(linear(2), 0.05F), "qqffq", {{-1, 24}, {384, 24}, {384}, {384}}, {{-1, 96}}},
        {"SwinLinearInt8", int8(linear(1), 0), "qqffh", {{-1, 49, 24}, {384, 24}, {384}, {384}}, {{-1, 49, 384}}},
        {"SwinLinearInt8", int8(linear(0), 0), "qqffhh", {{-1, 49, 96}, {96, 96}, {96}, {96}, {-1, 49, 96}},
            {{-1, 49, 96}}},
        {"SwinLayerNormInt8", int8(kEpsilon, 0.05F), "hffq", {{-1, 49, 96}, {96}, {96}}, {{-1, 49, 24}}},
        {"SwinLayerNormAddInt8", norm_add_int8(0), "hhffhq", {{-1, 49, 96}, {-1, 49, 96}, {96}, {96}},
            {{-1, 49, 96}, {-1, 49, 24}}},
        {"SwinLayerNormAddInt8", norm_add_int8(0.03F), "qhffhq", {{-1, 49, 24}, {-1, 49, 96}, {96}, {96}},
            {{-1, 49, 96}, {-1, 49, 24}}},
        {"SwinQuantize", int8({}, 0.05F), "hq", {{-1, 49, 96}}, {{-1, 49, 24}}},
        {"SwinAttentionInt8", attention_int8(3, 7, 3, 0.03F), "qffq", {{-1, 14, 21, 72}, {3, 49, 56}, {288}},
            {{-1, 14, 21, 24}}},
        {"SwinAttentionInt8", attention_int8(3, 8, 0, 0.03F), "qfffq", {{-1, 16, 17, 72}, {3, 64, 64}, {288}, {3}},
            {{-1, 16, 17, 24}}},
        {"SwinAttentionInt8", attention_int8(3, 7, 3, 0.03F, 0), "qffh", {{-1, 15, 21, 18}, {3, 49, 56}, {72}},
            {{-1, 15, 21, 24}}},
        {"SwinAttentionInt8", attention_int8(3, 8, 0, 0.03F, 0), "qfffh", {{-1, -1, 16, 72}, {3, 64, 64}, {288}, {3}},
            {{-1, -1, 16, 96}}},
        {"SwinAttentionBranchInt8", kBranchV1, "qhqffqfffffhq", branch_inputs_v1(),
            {{-1, 14, 21, 96}, {-1, 14, 21, 24}}},
        {"SwinAttentionBranchInt8", kBranchV2, "qhqffqffffffhq", branch_inputs(), {{-1, 14, 21, 96}, {-1, 14, 21, 24}}},
        {"SwinAttentionBranchInt8", branch_int8(12, 8, 4, 0, 0.02F), "qhqffqffffffhq",
            {{-1, 16, 16, 96}, {-1, 16, 16, 384}, {1152, 96}, {1152}, {1152}, {384, 96}, {384}, {384}, {12, 64, 64},
                {384}, {384}, {12}},
            {{-1, 16, 16, 384}, {-1, 16, 16, 96}}},
    };
    const Invalid invalid[] = {
        {"SwinLayerNorm", {}, {{2, 96}}, "attribute epsilon is missing"},
        {"SwinLayerNorm", {{"epsilon!", 1}}, {{2, 96}}, "attribute epsilon is not a float"},
        {"SwinLayerNorm", kEpsilon, {{-1, 8193}}, "wider than 8192"},
        {"SwinLayerNorm", kEpsilon, {{}}, "scalar"},
        {"SwinLayerNorm", kEpsilon, {{-1, 96}, {96}}, "2 inputs instead of 1"},
        {"SwinLayerNormWithParams", kEpsilon, {{-1, 96}, {95}, {96}}, "gamma is [95] instead of [96]"},
        {"SwinLayerNormWithParams", kEpsilon, {{-1, 96}, {96}, {1, 96}}, "beta is [1, 96] instead of [96]"},
        {"SwinAddLayerNorm", kEpsilon, {{-1, 49, 96}, {-1, 48, 96}, {96}, {96}}, "residual is [?, 48, 96] instead"},
        {"SwinLayerNormAdd", kEpsilon, {{-1, 49, 96}, {-1, 96}, {96}, {96}}, "residual is [?, 96]"},
        {"SwinLayerNormAdd", kEpsilon, {{-1, 49, 96}, {-1, 49, 96}, {96}}, "3 inputs instead of 4"},
        {"SwinPatchMergeLayerNorm", kEpsilon, {{-1, 1568, 96}, {384}, {384}}, "x is [?, 1568, 96] instead of 4-dim"},
        {"SwinPatchMergeLayerNorm", kEpsilon, {{-1, 56, 28, 96}, {96}, {96}}, "gamma is [96] instead of [384]"},
        {"SwinPatchMergeLayerNorm", kEpsilon, {{-1, 56, 28, 2049}, {8196}, {8196}}, "wider than 8192"},
        {"SwinPatchMergeLayerNorm", but(but(kEpsilon, "height!", 56), "width!", 28), {{-1, 56, 28, 96}, {384}, {384}},
            "attribute height: the node was " + kEarlier},
        {"SwinPatchMerge", {}, {{-1, 49, 96}}, "x is [?, 49, 96] instead of 4-dimensional"},
        {"SwinPatchMerge", {{"width!", 7}}, {{-1, 7, 7, 96}}, "attribute width: the node was " + kEarlier},
        {"SwinPatchMerge", {}, {{2, 46341, 46341, 4}}, "more than 2^31 - 1 tokens"},
        {"SwinPatchEmbed", kPatch, patch_inputs({-1, 3, 3, 224}), "smaller than a patch of 4 x 4"},
        {"SwinPatchEmbed", kPatch, {{-1, 3, 224, 224}, {96, 1, 4, 4}, {96}, {96}, {96}},
            "weight is [96, 1, 4, 4] instead"},
        {"SwinPatchEmbed", patch(2, 0, 1), patch_inputs({-1, 3, 224, 224}), "weight is [96, 3, 4, 4] instead"},
        {"SwinPatchEmbed", kPatch, {{-1, 3, 224, 224}, {96, 3, 4, 4}, {96}, {95}, {96}},
            "gamma is [95] instead of [96]"},
        {"SwinPatchEmbed", kPatch, patch_inputs({-1, 224, 224}), "instead of 4-dimensional"},
        {"SwinPatchEmbed", kPatch, {{-1, 257, 8, 8}, {96, 257, 4, 4}, {96}, {96}, {96}}, "larger than 4096"},
        {"SwinPatchEmbed", but(kPatch, "patch_height!", 0), patch_inputs({-1, 3, 8, 8}), "patch_height is 0"},
        {"SwinPatchEmbed", but(kPatch, "patch_width!", -1), patch_inputs({-1, 3, 8, 8}), "patch_width is -1"},
        {"SwinPatchEmbed", but(kPatch, "ceil!", 2), patch_inputs({-1, 3, 8, 8}), "ceil is 2 instead of 0 or 1"},
        {"SwinPatchEmbed", patch(4, 0, 2), patch_inputs({-1, 3, 8, 8}), "y_type is 2"},
        {"SwinPatchEmbed", kPatch, patch_inputs({1, 3, 200000, 200000}), "more than 2^31 - 1 tokens"},
        {"SwinPatchEmbed", {{"epsilon", 1e-5F}, {"patch_size!", 4}, {"y_type!", 0}}, patch_inputs({-1, 3, 8, 8}),
            "attribute patch_size: the node was " + kEarlier},
        {"SwinFNorm", {{"epsilon", 1e-12F}}, {{-1, 9000}}, "wider than 8192"},
        {"SwinAttention", attention(3, 7, 7, 3), {{-1, 196, 288}, {3, 49, 56}, {288}}, "qkv is [?, 196, 288] instead"},
        {"SwinAttention", attention(4, 7, 7, 3), {{-1, 14, 14, 286}, {4, 49, 56}, {286}}, "286 channels for 4 heads"},
        {"SwinAttention", attention(4, 7, 7, 3), {{-1, 14, 14, 360}, {4, 49, 56}, {360}}, "a multiple of 8 from 8"},
        {"SwinAttention", attention(1, 7, 7, 3), {{-1, 14, 14, 216}, {1, 49, 56}, {216}}, "from 8 to 64"},
        {"SwinAttention", attention(0, 7, 7, 3), {{-1, 14, 14, 288}, {0, 49, 56}, {288}}, "num_heads is 0"},
        {"SwinAttention", attention(3, 33, 7, 0), {{-1, 14, 14, 288}, {3, 231, 232}, {288}}, "window_height 33 is not"},
        {"SwinAttention", attention(3, 7, 33, 0), {{-1, 14, 14, 288}, {3, 231, 232}, {288}}, "window_width 33 is not"},
        {"SwinAttention", attention(3, 7, 0, 0), {{-1, 14, 14, 288}, {3, 0, 0}, {288}}, "window_width 0 is not"},
        {"SwinAttention", attention(3, 7, 8, 7), {{-1, 14, 14, 288}, {3, 56, 56}, {288}}, "shift_height 7 is not in"},
        {"SwinAttention", attention(3, 8, 7, 7), {{-1, 14, 14, 288}, {3, 56, 56}, {288}}, "shift_width 7 is not in"},
        {"SwinAttention", attention(3, 7, 7, -1), {{-1, 14, 14, 288}, {3, 49, 56}, {288}}, "shift_height -1"},
        {"SwinAttention", but(attention(3, 7, 7, 3), "roll_first!", 2), {{-1, 14, 14, 288}, {3, 49, 56}, {288}},
            "roll_first is 2 instead of 0 or 1"},
        {"SwinAttention", but(attention(3, 7, 7, 3), "shift_if_covered!", -1), {{-1, 14, 14, 288}, {3, 49, 56}, {288}},
            "shift_if_covered is -1 instead of 0 or 1"},
        {"SwinAttention", but(attention(3, 7, 7, 3), "plain_fp32!", 2), {{-1, 14, 14, 288}, {3, 49, 56}, {288}},
            "plain_fp32 is 2 instead of 0 or 1"},
        {"SwinAttention", attention(3, 7, 7, 3), {{-1, 14, 14, 288}, {3, 49, 49}, {288}}, "bias is [3, 49, 49]"},
        {"SwinAttention", attention(3, 7, 8, 3), {{-1, 14, 14, 288}, {3, 49, 56}, {288}}, "instead of [3, 56, 56]"},
        {"SwinAttention", attention(3, 7, 7, 3), {{-1, 14, 14, 288}, {3, 49, 56}, {96}}, "padding is [96] instead of"},
        {"SwinAttention", attention(3, 7, 7, 3), {{-1, 14, 14, 288}, {3, 49, 56}, {288}, {3, 1}}, "scale is [3, 1]"},
        {"SwinAttention", attention(3, 7, 7, 3), {{-1, 14, 14, 288}, {3, 49, 56}}, "2 inputs instead of 3 to 4"},
        {"SwinAttention", attention(3, 7, 7, 3), {{2, 46340, 46340, 288}, {3, 49, 56}, {288}}, "2^31 - 1 tokens"},
        {"SwinAttention", attention(3, 8, 8, 3), {{1, 46340, 46340, 288}, {3, 64, 64}, {288}},
            "more than 2^31 - 1 tokens with the padding"},
        {"SwinAttention", {{"height!", 14}, {"width!", 14}, {"num_heads!", 3}, {"window_size!", 7}, {"shift_size!", 3}},
            {{-1, 196, 288}, {3, 49, 56}}, "the node was " + kEarlier},
        {"SwinAttention", but(attention(3, 7, 7, 3), "window_size!", 7), {{-1, 14, 14, 288}, {3, 49, 56}, {288}},
            "attribute window_size: the node was " + kEarlier},
        {"SwinLinear", {}, {{-1, 96}, {96, 96}, {96}}, "attribute gelu is missing"},
        {"SwinLinear", linear(3), {{-1, 96}, {96, 96}, {96}}, "gelu is 3 instead of 0 (none), 1 (GELU) or 2 (its tanh"},
        {"SwinLinear", linear(2), {{-1, 96}, {96, 96}, {96}, {-1, 96}}, "gelu and a residual"},
        {"SwinLinear", but(linear(0), "plain_fp32!", 2), {{-1, 96}, {96, 96}, {96}}, "plain_fp32 is 2 instead of 0 or"},
        {"SwinLinear", but(linear(0), "plain_fp32", 1), {{-1, 96}, {96, 96}, {96}}, "plain_fp32 is not an integer"},
        {"SwinLinear", linear(0), {{-1, 96}, {96, 96}}, "2 inputs instead of 3 to 4"},
        {"SwinLinear", linear(0), {{}, {96, 96}, {96}}, "scalar"},
        {"SwinLinear", linear(0), {{-1, 96}, {96}, {96}}, "weight is [96] instead of 2-dimensional"},
        {"SwinLinear", linear(0), {{-1, 96}, {96, 384}, {96}}, "weight is [96, 384] instead of [96, 96]"},
        {"SwinLinear", linear(0), {{-1, 96}, {384, 96}, {96}}, "bias is [96] instead of [384]"},
        {"SwinLinear", linear(0), {{-1, 49, 96}, {384, 96}, {384}, {-1, 49, 96}}, "instead of [?, 49, 384]"},
        {"SwinLinear", linear(1), {{-1, 96}, {96, 96}, {96}, {-1, 96}}, "gelu and a residual"},
        {"SwinMlp", kEpsilon, {{-1, 32}, {32}, {32}, {64, 32}, {64}, {32, 64}, {32}},
            "attribute norm_first is missing"},
        {"SwinMlp", {{"norm_first!", 1}, {"gelu!", 1}}, mlp_inputs({}), "attribute epsilon is missing"},
        {"SwinMlp", {{"norm_first!", 1}, {"epsilon", 1e-5F}}, mlp_inputs({}), "attribute gelu is missing"},
        {"SwinMlp", mlp(1, 0), mlp_inputs({}), "gelu is 0 instead of 1 (GELU) or 2 (its tanh form)"},
        {"SwinMlp", mlp(2), {{-1, 32}, {32}, {32}, {64, 32}, {64}, {32, 64}, {32}}, "norm_first is 2 instead of 0"},
        {"SwinMlp", but(mlp(1), "plain_fp32!", -1), mlp_inputs({}), "plain_fp32 is -1 instead of 0 or 1"},
        {"SwinMlp", mlp(1), {{-1, 32}, {32}, {32}, {64, 32}, {64}, {32, 64}}, "6 inputs instead of 7 to 12"},
        {"SwinMlp", mlp(1), {{}, {32}, {32}, {64, 32}, {64}, {32, 64}, {32}}, "scalar"},
        {"SwinMlp", mlp(1), {{-1, 8193}, {8193}, {8193}, {64, 8193}, {64}, {8193, 64}, {8193}}, "wider than 8192"},
        {"SwinMlp", mlp(1), {{-1, 32}, {31}, {32}, {64, 32}, {64}, {32, 64}, {32}}, "gamma is [31] instead of [32]"},
        {"SwinMlp", mlp(0), {{-1, 32}, {32}, {1, 32}, {64, 32}, {64}, {32, 64}, {32}}, "beta is [1, 32] instead"},
        {"SwinMlp", mlp(0), {{-1, 32}, {32}, {32}, {64}, {64}, {32, 64}, {32}}, "weight1 is [64] instead of 2-di"},
        {"SwinMlp", mlp(0), {{-1, 32}, {32}, {32}, {32, 64}, {64}, {32, 64}, {32}}, "weight1 is [32, 64] instead"},
        {"SwinMlp", mlp(0), {{-1, 32}, {32}, {32}, {64, 32}, {32}, {32, 64}, {32}}, "bias1 is [32] instead of [64]"},
        {"SwinMlp", mlp(0), {{-1, 32}, {32}, {32}, {64, 32}, {64}, {64, 32}, {32}}, "weight2 is [64, 32] instead"},
        {"SwinMlp", mlp(0), {{-1, 32}, {32}, {32}, {64, 32}, {64}, {32, 64}, {64}}, "bias2 is [64] instead of [32]"},
        {"SwinMlp", mlp(1), {{-1, 1}, {1}, {1}, {1048577, 1}, {1048577}, {1, 1048577}, {1}}, "more than 1048576"},
        {"SwinMlp", mlp(1), mlp_inputs({{-1, 32}}), "8 inputs; norm_first 1 takes 7, or 10 with attention"},
        {"SwinMlp", mlp(1), mlp_inputs({{-1, 32}, {32, 32}}), "9 inputs; norm_first 1 takes 7, or 10"},
        {"SwinMlp", mlp(1), mlp_inputs({{-1, 32}, {32, 32}, {32}, {32}}), "11 inputs; norm_first 1 takes 7, or 10"},
        {"SwinMlp", mlp(1), mlp_inputs({{-1, 32}, {32, 32}, {32}, {32}, {32}}), "12 inputs; norm_first 1 takes"},
        {"SwinMlp", mlp(0), mlp_inputs({{-1, 32}, {32, 32}, {32}}), "10 inputs; norm_first 0 takes 7, or 12 with"},
        {"SwinMlp", mlp(0), mlp_inputs({{-1, 32}, {32, 32}, {32}, {32}}), "11 inputs; norm_first 0 takes 7, or 12"},
        {"SwinMlp", mlp(0), mlp_inputs({{-1, 32}, {32, 32}, {32}, {32}, {32}, {32}}), "13 inputs instead of 7 to 12"},
        {"SwinMlp", mlp(1), mlp_inputs({{-1, 64}, {32, 32}, {32}}), "attention is [?, 64] instead of [?, 32]"},
        {"SwinMlp", mlp(1), mlp_inputs({{-1, 1, 32}, {32, 32}, {32}}), "attention is [?, 1, 32] instead of [?, 32]"},
        {"SwinMlp", mlp(1), mlp_inputs({{-1, 32}, {32, 64}, {32}}), "proj_weight is [32, 64] instead of [32, 32]"},
        {"SwinMlp", mlp(1), mlp_inputs({{-1, 32}, {32}, {32}}), "proj_weight is [32] instead of [32, 32]"},
        {"SwinMlp", mlp(1), mlp_inputs({{-1, 32}, {32, 32}, {31}}), "proj_bias is [31] instead of [32]"},
        {"SwinMlp", mlp(0), mlp_inputs({{-1, 32}, {32, 32}, {32}, {31}, {32}}), "proj_gamma is [31] instead of [32]"},
        {"SwinMlp", mlp(0), mlp_inputs({{-1, 32}, {32, 32}, {32}, {32}, {64}}), "proj_beta is [64] instead of [32]"},
        {"SwinLinearInt8", linear(0), {{-1, 24}, {96, 24}, {96}, {96}}, "attribute y_scale is missing"},
        {"SwinLinearInt8", int8(linear(0), -1), {{-1, 24}, {96, 24}, {96}, {96}}, "instead of a positive number"},
        {"SwinLinearInt8", int8(linear(-1), 0), {{-1, 24}, {96, 24}, {96}, {96}}, "gelu is -1 instead of 0 (none)"},
        {"SwinLinearInt8", int8(linear(0), 0), {{-1, 24}, {96, 20}, {96}, {96}}, "x is 96 instead of 80"},
        {"SwinLinearInt8", int8(linear(0), 0), {{-1, 24}, {90, 24}, {90}, {90}}, "not multiples of 16"},
        {"SwinLinearInt8", int8(linear(0), 0), {{-1, 21}, {96, 21}, {96}, {96}}, "not multiples of 16"},
        {"SwinLinearInt8", int8(linear(0), 0), {{-1, 24}, {96, 24}, {1}, {96}}, "scale is [1] instead of [96]"},
        {"SwinLinearInt8", int8(linear(1), 0), {{-1, 24}, {96, 24}, {96}, {96}, {-1, 96}}, "gelu and a residual"},
        {"SwinLinearInt8", int8(linear(0), 0), {{-1, 24}, {96, 24}, {96}, {96}, {-1, 24}}, "residual is [?, 24]"},
        {"SwinLayerNormInt8", int8(kEpsilon, 0), {{-1, 96}, {96}, {96}}, "y_scale is 0"},
        {"SwinLayerNormInt8", int8(kEpsilon, 1), {{-1, 98}, {98}, {98}}, "98 INT8 elements do not divide"},
        {"SwinLayerNormAddInt8", norm_add_int8(0), {{-1, 96}, {-1, 92}, {96}, {96}}, "residual is [?, 92]"},
        {"SwinLayerNormAddInt8", norm_add_int8(0.03F), {{-1, 96}, {-1, 96}, {96}, {96}},
            "residual is [?, 96] instead of [?, 384]"},
        {"SwinLayerNormAddInt8", norm_add_int8(0), {{-1, 24}, {-1, 96}, {96}, {96}},
            "residual is [?, 96] instead of [?, 24]"},
        {"SwinLayerNormAddInt8", norm_add_int8(0.03F), {{-1, 2052}, {-1, 8208}, {8208}, {8208}}, "wider than 8192"},
        {"SwinLayerNormAddInt8", norm_add_int8(-1), {{-1, 24}, {-1, 96}, {96}, {96}}, "x_scale is -1"},
        {"SwinLayerNormAddInt8", norm_add_int8(0.03F, 0), {{-1, 24}, {-1, 96}, {96}, {96}}, "y_scale is 0"},
        {"SwinLayerNormAddInt8", int8(kEpsilon, 1), {{-1, 96}, {-1, 96}, {96}, {96}}, "attribute x_scale is missing"},
        {"SwinQuantize", int8({}, 0), {{-1, 96}}, "y_scale is 0"},
        {"SwinAttentionInt8", attention_int8(3, 7, 3, 0), {{-1, 14, 14, 72}, {3, 49, 56}, {288}}, "qkv_scale is 0"},
        {"SwinAttentionInt8", attention_int8(3, 7, 3, 0, 0), {{-1, 14, 14, 72}, {3, 49, 56}, {288}}, "qkv_scale is 0"},
        {"SwinAttentionInt8", attention_int8(3, 7, 3, 1, -1), {{-1, 14, 14, 72}, {3, 49, 56}, {288}}, "y_scale is -1"},
        {"SwinAttentionInt8", attention(3, 7, 7, 3), {{-1, 14, 14, 72}, {3, 49, 56}, {288}},
            "attribute qkv_scale is missing"},
        {"SwinAttentionInt8", attention_int8(4, 7, 3, 1), {{-1, 14, 14, 71}, {4, 49, 56}, {284}}, "from 8 to 64"},
        {"SwinAttentionInt8", attention_int8(4, 7, 3, 1, 0), {{-1, 14, 14, 72}, {4, 49, 56}, {72}}, "padding is [72]"},
        {"SwinAttentionInt8", but(attention_int8(3, 7, 3, 1), "shift_size!", 3), {{-1, 196, 72}, {3, 49, 56}, {288}},
            "attribute shift_size: the node was " + kEarlier},
        {"SwinAttentionBranchInt8", attention_int8(3, 7, 3, 1), branch_inputs_v1(), "attribute norm_first is missing"},
        {"SwinAttentionBranchInt8", but(kBranchV1, "height!", 14), branch_inputs_v1(), "the node was " + kEarlier},
        {"SwinAttentionBranchInt8", branch_int8(3, 7, 3, 2, 0), branch_inputs_v1(), "norm_first is 2 instead"},
        {"SwinAttentionBranchInt8", kBranchV1, branch_inputs(), "12 inputs; norm_first 1 takes 11, without"},
        {"SwinAttentionBranchInt8", kBranchV2, branch_inputs_v1(), "11 inputs; norm_first 0 takes 12, with"},
        {"SwinAttentionBranchInt8", kBranchV1, {{-1, 14, 21, 24}, {-1, 14, 21, 96}}, "2 inputs instead of 11 to 12"},
        {"SwinAttentionBranchInt8", but(kBranchV1, "proj_scale", 0.1F), branch_inputs_v1(), "norm_first 1, which adds"},
        {"SwinAttentionBranchInt8", but(kBranchV2, "proj_scale", 0), branch_inputs(), "proj_scale is 0"},
        {"SwinAttentionBranchInt8", but(kBranchV2, "proj_scale", -1), branch_inputs(), "proj_scale is -1"},
        {"SwinAttentionBranchInt8", but(kBranchV1, "qkv_scale", 0), branch_inputs_v1(), "qkv_scale is 0"},
        {"SwinAttentionBranchInt8", but(kBranchV1, "attention_scale", 0), branch_inputs_v1(), "attention_scale is 0"},
        {"SwinAttentionBranchInt8", but(kBranchV1, "y_scale", 0), branch_inputs_v1(), "y_scale is 0"},
        {"SwinAttentionBranchInt8", kBranchV1, branch_inputs_v1(0, {-1, 294, 24}), "x_q is [?, 294, 96] instead of 4"},
        {"SwinAttentionBranchInt8", kBranchV1, branch_inputs_v1(0, {-1, 14, 20, 24}), "windows of 7 do not divide"},
        {"SwinAttentionBranchInt8", kBranchV1, branch_inputs_v1(0, {-1, 14, 21, 32}), "head dimension must be 32"},
        {"SwinAttentionBranchInt8", but(kBranchV1, "window_height!", 14), branch_inputs_v1(), "14 x 7 are not square"},
        {"SwinAttentionBranchInt8", branch_int8(3, 5, 2, 1, 0), branch_inputs_v1(), "windows of 5 do not"},
        {"SwinAttentionBranchInt8", but(kBranchV1, "shift_width!", 7), branch_inputs_v1(), "shift_width 7"},
        {"SwinAttentionBranchInt8", kBranchV1, branch_inputs_v1(1, {-1, 14, 21, 24}), "x is [?, 14, 21, 24] instead"},
        {"SwinAttentionBranchInt8", kBranchV1, branch_inputs_v1(2, {288, 96}), "qkv_weight is [288, 384] instead of"},
        {"SwinAttentionBranchInt8", kBranchV1, branch_inputs_v1(3, {96}), "qkv_factor is [96] instead of [288]"},
        {"SwinAttentionBranchInt8", kBranchV1, branch_inputs_v1(4, {96}), "qkv_bias is [96] instead of [288]"},
        {"SwinAttentionBranchInt8", kBranchV1, branch_inputs_v1(5, {288, 24}), "proj_weight is [288, 96] instead of"},
        {"SwinAttentionBranchInt8", kBranchV1, branch_inputs_v1(6, {1}), "proj_factor is [1] instead of [96]"},
        {"SwinAttentionBranchInt8", kBranchV1, branch_inputs_v1(7, {1}), "proj_bias is [1] instead of [96]"},
        {"SwinAttentionBranchInt8", kBranchV1, branch_inputs_v1(8, {3, 49, 49}), "bias is [3, 49, 49] instead of"},
        {"SwinAttentionBranchInt8", kBranchV1, branch_inputs_v1(9, {95}), "gamma is [95] instead of [96]"},
        {"SwinAttentionBranchInt8", kBranchV1, branch_inputs_v1(10, {95}), "beta is [95] instead of [96]"},
        {"SwinAttentionBranchInt8", kBranchV2, branch_inputs(11, {3, 1}), "logit_scale is [3, 1] instead of [3]"},
        {"SwinAttentionBranchInt8", branch_int8(257, 7, 0, 1, 0),
            {{-1, 7, 7, 2056}, {-1, 7, 7, 8224}, {24672, 2056}, {24672}, {24672}, {8224, 2056}, {8224}, {8224},
                {257, 49, 56}, {8224}, {8224}},
            "wider than 8192"},
        {"SwinAttentionBranchInt8", kBranchV1, branch_inputs_v1(0, {-1, 490, 490, 24}),
            "more than the workspace's 67108864"},
    };
    for (const Valid& one : valid) check_valid(one);
    check_loading();
    expect(Plugin("SwinLinear", linear(0)).workspace_bytes() == 32 << 20, "SwinLinear asks for workspace");
    expect(Plugin("SwinMlp", mlp(1)).workspace_bytes() == 96 << 20, "SwinMlp asks for workspace");
    expect(Plugin("SwinAttentionBranchInt8", kBranchV1).workspace_bytes() == 64 << 20,
        "SwinAttentionBranchInt8 asks for workspace");
    expect(Plugin("SwinFNorm", kEpsilon).workspace_bytes() == 0, "SwinFNorm asks for none");
    for (const Invalid& one : invalid) check_invalid(one);
    std::printf("%zu plugins, %zu shapes accepted, %zu refused, %d checks failed\n", registry().creators.size(),
        std::size(valid), std::size(invalid), failures);
    return failures;
}
