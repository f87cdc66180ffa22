#include "common/plugin.h"

#include <algorithm>
#include <cstring>
#include <iostream>

#include "common/registration.h"

namespace swin {

constexpr int kInt8PerElement = 4;  // of an INT32 tensor

bool is_activation_type(nvinfer1::DataType type) {
#if NV_TENSORRT_MAJOR >= 10
    if (type == nvinfer1::DataType::kBF16) return true;
#endif
    return type == nvinfer1::DataType::kFLOAT || type == nvinfer1::DataType::kHALF;
}

int swin_type(nvinfer1::DataType type) {
    if (!is_activation_type(type)) {
        throw Refusal("activations of TensorRT type " + std::to_string(static_cast<int>(type))
            + (NV_TENSORRT_MAJOR >= 10 ? "; FP32, FP16 and BF16 are supported" : "; FP32 and FP16 are supported"));
    }
    if (type == nvinfer1::DataType::kFLOAT) return SWIN_FP32;
    return type == nvinfer1::DataType::kHALF ? SWIN_FP16 : SWIN_BF16;
}

nvinfer1::DataType tensorrt_type(Type type, nvinfer1::DataType first) {
    switch (type) {
    case Type::kActivation: return first;
    case Type::kFp32: return nvinfer1::DataType::kFLOAT;
    case Type::kFp16: return nvinfer1::DataType::kHALF;
    case Type::kInt8: return nvinfer1::DataType::kINT32;
    }
    throw Refusal("a Type that does not exist");
}

SymbolicSize SymbolicSize::operator*(const SymbolicSize& other) const {
    return {*builder_->operation(nvinfer1::DimensionOperation::kPROD, *expression_, *other.expression_), *builder_};
}

SymbolicSize SymbolicSize::operator*(int factor) const {
    return *this * SymbolicSize(*builder_->constant(factor), *builder_);
}

SymbolicSize SymbolicSize::operator/(int divisor) const {
    const nvinfer1::IDimensionExpr* by = builder_->constant(divisor);
    return {*builder_->operation(nvinfer1::DimensionOperation::kFLOOR_DIV, *expression_, *by), *builder_};
}

SymbolicSize SymbolicSize::ceil_div(int divisor) const {
    const nvinfer1::IDimensionExpr* by = builder_->constant(divisor);
    return {*builder_->operation(nvinfer1::DimensionOperation::kCEIL_DIV, *expression_, *by), *builder_};
}

int64_t SymbolicSize::value() const { return expression_->isConstant() ? expression_->getConstantValue() : kUnknown; }

Shape shape_of(const nvinfer1::Dims& dims, Type type) {
    Shape shape{{dims.d, dims.d + std::max(dims.nbDims, 0)}};
    if (type == Type::kInt8 && shape.rank() > 0 && shape.last() != kUnknown) shape.sizes.back() *= kInt8PerElement;
    return shape;
}

SymbolicShape shape_of(const nvinfer1::DimsExprs& dims, Type type, nvinfer1::IExprBuilder& builder) {
    SymbolicShape shape;
    for (int i = 0; i < dims.nbDims; ++i) shape.emplace_back(*dims.d[i], builder);
    if (type == Type::kInt8 && !shape.empty()) shape.back() = shape.back() * kInt8PerElement;
    return shape;
}

nvinfer1::DimsExprs dims_of(const SymbolicShape& shape, Type type) {
    nvinfer1::DimsExprs dims{};
    dims.nbDims = static_cast<int32_t>(shape.size());
    for (size_t i = 0; i < shape.size(); ++i) dims.d[i] = shape[i].expression();
    if (type == Type::kInt8) {
        const int64_t last = shape.back().value();
        if (last != kUnknown && last % kInt8PerElement != 0) {
            throw Refusal("rows of " + std::to_string(last) + " INT8 elements do not divide by "
                + std::to_string(kInt8PerElement));
        }
        dims.d[shape.size() - 1] = (shape.back() / kInt8PerElement).expression();
    }
    return dims;
}

Shape known(const SymbolicShape& shape) {
    Shape values;
    for (const SymbolicSize& size : shape) values.sizes.push_back(size.value());
    return values;
}

namespace {

std::vector<Creator*>& creators() {
    static std::vector<Creator*> all;
    return all;
}

nvinfer1::ILoggerFinder* logger_finder = nullptr;

nvinfer1::ILogger* logger() { return logger_finder != nullptr ? logger_finder->findLogger() : getLogger(); }

#if NV_TENSORRT_MAJOR >= 10
using NamedCreator = nvinfer1::IPluginCreatorV3One;
#else
using NamedCreator = nvinfer1::IPluginCreator;
#endif

// The creators of the process's registry that have names to compare. Its getCreator would log an error for each name
// that is free.
std::vector<NamedCreator*> registered() {
    int32_t count = 0;
    std::vector<NamedCreator*> found;
#if NV_TENSORRT_MAJOR >= 10
    Creator* const* const all = getPluginRegistry()->getAllCreators(&count);
    for (int32_t i = 0; i < count; ++i) {
        if (std::strcmp(all[i]->getInterfaceInfo().kind, "PLUGIN CREATOR_V3ONE") != 0) continue;
        found.push_back(static_cast<NamedCreator*>(all[i]));
    }
#else
    NamedCreator* const* const all = getPluginRegistry()->getPluginCreatorList(&count);
    if (count > 0) found.assign(all, all + count);
#endif
    return found;
}

// For IPluginRegistry::loadLibrary, which registers them itself and refuses a library whose names are taken. They have
// been taken when the library was opened, which is all that dlopen, ctypes or LD_PRELOAD do.
Creator* const* hand_over(int32_t& count) {
    for (NamedCreator* other : registered()) {
        const auto is_ours = [other](Creator* creator) {
            const auto* const ours = static_cast<NamedCreator*>(creator);
            return std::strcmp(other->getPluginNamespace(), kNamespace) == 0
                && std::strcmp(other->getPluginName(), ours->getPluginName()) == 0
                && std::strcmp(other->getPluginVersion(), ours->getPluginVersion()) == 0;
        };
        if (std::any_of(creators().begin(), creators().end(), is_ours)) getPluginRegistry()->deregisterCreator(*other);
    }
    count = static_cast<int32_t>(creators().size());
    return creators().data();
}

}  // namespace

void log_error(const std::string& message) noexcept {
    if (nvinfer1::ILogger* log = logger()) {
        log->log(nvinfer1::ILogger::Severity::kERROR, message.c_str());
    } else {
        std::cerr << message << std::endl;
    }
}

void register_creator(Creator& creator) {
    creators().push_back(&creator);
    getPluginRegistry()->registerCreator(creator, kNamespace);
}

}  // namespace swin

// What IPluginRegistry::loadLibrary looks for (trtexec --dynamicPlugins, plans that carry this library).
#if NV_TENSORRT_MAJOR >= 10
extern "C" __attribute__((visibility("default"))) swin::Creator* const* getCreators(int32_t& count) {
    return swin::hand_over(count);
}
#else
extern "C" __attribute__((visibility("default"))) swin::Creator* const* getPluginCreators(int32_t& count) {
    return swin::hand_over(count);
}
#endif

extern "C" __attribute__((visibility("default"))) void setLoggerFinder(nvinfer1::ILoggerFinder* finder) {
    swin::logger_finder = finder;
}
