#include "common/plugin.h"

#include <algorithm>
#include <iostream>

#include "common/registration.h"

namespace swin {

bool Shape::empty() const { return std::find(sizes.begin(), sizes.end(), 0) != sizes.end(); }

long long Shape::rows() const {
    long long product = 1;
    for (size_t i = 0; i + 1 < sizes.size(); ++i) product *= sizes[i];
    return product;
}

std::string Shape::text() const {
    std::string text;
    for (int64_t size : sizes) {
        text += text.empty() ? "" : ", ";
        text += size == kUnknown ? "?" : std::to_string(size);
    }
    return "[" + text + "]";
}

void expect_size(const char* what, int64_t actual, int64_t expected) {
    if (actual != kUnknown && expected != kUnknown && actual != expected) {
        throw Refusal(std::string(what) + " is " + std::to_string(actual) + " instead of " + std::to_string(expected));
    }
}

void expect_rank(const char* input, const Shape& shape, int rank) {
    if (shape.rank() != rank) {
        throw Refusal(
            std::string(input) + " is " + shape.text() + " instead of " + std::to_string(rank) + "-dimensional");
    }
}

void expect_shape(const char* input, const Shape& shape, std::initializer_list<int64_t> sizes) {
    const Shape expected{sizes};
    bool same = shape.rank() == expected.rank();
    for (int i = 0; same && i < shape.rank(); ++i) {
        same = shape.sizes[i] == expected.sizes[i] || shape.sizes[i] == kUnknown || expected.sizes[i] == kUnknown;
    }
    if (!same) throw Refusal(std::string(input) + " is " + shape.text() + " instead of " + expected.text());
}

void check_rows(const Inputs& inputs, int activations, int64_t row_width) {
    if (inputs[0].rank() < 1) throw Refusal("x is a scalar; it needs an axis to normalise over");
    if (row_width > SWIN_MAX_WIDTH) {
        throw Refusal(
            "rows of " + std::to_string(row_width) + " elements are wider than " + std::to_string(SWIN_MAX_WIDTH));
    }
    for (int i = 1; i < activations; ++i) {
        expect_rank("residual", inputs[i], inputs[0].rank());
        for (int axis = 0; axis < inputs[0].rank(); ++axis) {
            expect_size("a dimension of residual", inputs[i].sizes[axis], inputs[0].sizes[axis]);
        }
    }
}

void check_image(const char* input, const Shape& x, int64_t height, int64_t width) {
    expect_rank(input, x, 3);
    if (height < 1 || width < 1) throw Refusal("height and width must be positive");
    if (x.sizes[1] != kUnknown && x.sizes[1] != height * width) {
        throw Refusal(std::string(input) + " has " + std::to_string(x.sizes[1]) + " tokens instead of height * width = "
            + std::to_string(height) + " * " + std::to_string(width));
    }
}

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

Shape shape_of(const nvinfer1::Dims& dims) { return Shape{{dims.d, dims.d + std::max(dims.nbDims, 0)}}; }

Shape shape_of(const nvinfer1::DimsExprs& dims) {
    Shape shape;
    for (int i = 0; i < dims.nbDims; ++i) {
        shape.sizes.push_back(dims.d[i]->isConstant() ? dims.d[i]->getConstantValue() : kUnknown);
    }
    return shape;
}

namespace {

#if NV_TENSORRT_MAJOR >= 10
std::vector<Creator*>& creators() {
    static std::vector<Creator*> all;
    return all;
}

nvinfer1::ILoggerFinder* logger_finder = nullptr;
#endif

nvinfer1::ILogger* logger() {
#if NV_TENSORRT_MAJOR >= 10
    if (logger_finder != nullptr) return logger_finder->findLogger();
#endif
    return getLogger();
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
#if NV_TENSORRT_MAJOR >= 10
    creators().push_back(&creator);
#endif
    getPluginRegistry()->registerCreator(creator, kNamespace);
}

}  // namespace swin

#if NV_TENSORRT_MAJOR >= 10
// What nvinfer1::IPluginRegistry::loadLibrary (trtexec --dynamicPlugins) looks for.
extern "C" __attribute__((visibility("default"))) nvinfer1::IPluginCreatorInterface* const* getCreators(
    int32_t& count) {
    count = static_cast<int32_t>(swin::creators().size());
    return swin::creators().data();
}

extern "C" __attribute__((visibility("default"))) void setLoggerFinder(nvinfer1::ILoggerFinder* finder) {
    swin::logger_finder = finder;
}
#endif
