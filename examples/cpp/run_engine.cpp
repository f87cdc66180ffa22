// Runs a TensorRT engine over images on two streams, each run a CUDA graph of copy, execution and copy. Prints logits.
//
//   make TENSORRT_ROOT=/path/to/TensorRT
//   ./run_engine mine.plan images.f32 --plugins libswin_plugins.so [--batch 8] [--output logits.f32]
//
// images.f32: images as the engine reads them, one after the other, float32 without a header (numpy's tofile); so are
// the logits. --plugins carried takes the library inside the plan (TensorRT/build.sh --carry-plugins), whose code then
// runs here. For TensorRT 8.6, 10 and 11, and TensorRT-RTX.
#include <NvInfer.h>
#include <cuda_runtime_api.h>
#include <dlfcn.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <fstream>
#include <iostream>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

[[noreturn]] void fail(std::string const& what) { throw std::runtime_error(what); }

void cuda(cudaError_t status, char const* call) {
    if (status != cudaSuccess) fail(std::string(call) + ": " + cudaGetErrorString(status));
}
#define CUDA(call) cuda(call, #call)

class Logger : public nvinfer1::ILogger {
public:
    void log(Severity severity, char const* message) noexcept override {
        if (severity <= Severity::kERROR && first.empty()) first = message;
    }
    std::string complaint() const {  // in one line: some of TensorRT's messages have several
        std::string text = first.empty() ? "TensorRT gave no reason" : first;
        std::replace(text.begin(), text.end(), '\n', ' ');
        return text;
    }

private:
    std::string first;
};

std::string read(std::string const& path) {
    std::ifstream file(path, std::ios::binary);
    std::string bytes((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
    if (!file || bytes.empty()) fail(path + ": cannot be read, or is empty; give an existing file");
    return bytes;
}

struct Lane {  // a context with its own stream and buffers; its graph copies in, runs and copies out
    std::unique_ptr<nvinfer1::IExecutionContext> context;
    cudaStream_t stream{};
    cudaGraphExec_t graph{};
    float *input{}, *output{};  // page-locked, on the host
    int64_t first = -1;         // image of the batch that is under way
};

int64_t volume(nvinfer1::Dims const& dims) {
    int64_t count = 1;
    for (int i = 0; i < dims.nbDims; ++i) count *= dims.d[i];
    return count;
}

void run(int argc, char** argv) {
    std::vector<std::string> files;
    std::string plugins, output;
    int64_t batch = 8;
    for (int i = 1; i < argc; ++i) {
        std::string const word = argv[i];
        if (word.rfind("--", 0) != 0) files.push_back(word);
        else if (++i == argc) fail(word + ": needs a value");
        else if (word == "--plugins") plugins = argv[i];
        else if (word == "--output") output = argv[i];
        else if (word == "--batch") batch = std::atoll(argv[i]);
        else fail(word + ": unknown; there are --plugins, --batch and --output");
    }
    if (files.size() != 2) fail("usage: run_engine PLAN IMAGES [--plugins LIB|carried] [--batch N] [--output LOGITS]");
    if (batch < 1) fail("--batch: needs a whole number above zero");
    std::string const& name = files[0];
    std::string const plan = read(name);
    std::string const images = read(files[1]);
    CUDA(cudaFree(nullptr));  // says so where no GPU can be used: TensorRT 8.6 itself crashes there
    // The library registers its plugins as it is loaded.
    if (!plugins.empty() && plugins != "carried" && !dlopen(plugins.c_str(), RTLD_NOW | RTLD_GLOBAL)) fail(dlerror());

    Logger logger;
    // As createInferRuntime(logger) does; the library's own version, because TensorRT-RTX is built with 11's headers.
    std::unique_ptr<nvinfer1::IRuntime> runtime(
        static_cast<nvinfer1::IRuntime*>(createInferRuntime_INTERNAL(&logger, getInferLibVersion())));
    if (!runtime) fail("no TensorRT runtime: " + logger.complaint());
    runtime->setEngineHostCodeAllowed(plugins == "carried");
    std::unique_ptr<nvinfer1::ICudaEngine> engine(runtime->deserializeCudaEngine(plan.data(), plan.size()));
    if (!engine) fail(name + ": cannot be loaded: " + logger.complaint() + " (a plugin library goes with --plugins)");
    if (engine->getNbIOTensors() != 2) fail(name + ": has not one input and one output");
    char const *in = engine->getIOTensorName(0), *out = engine->getIOTensorName(1);
    if (engine->getTensorIOMode(in) != nvinfer1::TensorIOMode::kINPUT) std::swap(in, out);
    for (char const* tensor : {in, out})
        if (engine->getTensorDataType(tensor) != nvinfer1::DataType::kFLOAT) fail(name + ": its tensors are not FP32");

    nvinfer1::Dims shape = engine->getTensorShape(in);
    if (shape.d[0] > 0) batch = shape.d[0];  // fixed at export
    shape.d[0] = batch;
    int64_t const pixels = volume(shape) / batch;  // of one image, all channels
    if (pixels < 1) fail(name + ": leaves the size of its images open; build it with TensorRT/build.sh --size");
    int64_t const count = static_cast<int64_t>(images.size() / sizeof(float)) / pixels;
    if (images.size() != static_cast<size_t>(count * pixels) * sizeof(float))
        fail(files[1] + ": is not of whole images of " + std::to_string(pixels) + " float32 numbers, as " + name +
             " takes them");

    std::array<Lane, 2> lanes;
    int64_t classes = 0;
    for (Lane& lane : lanes) {
        lane.context.reset(engine->createExecutionContext());
        if (!lane.context || !lane.context->setInputShape(in, shape))
            fail(name + ": batch " + std::to_string(batch) + " is refused: " + logger.complaint());
        size_t const read = volume(shape) * sizeof(float);
        size_t const made = volume(lane.context->getTensorShape(out)) * sizeof(float);
        classes = static_cast<int64_t>(made / sizeof(float)) / batch;
        void *input = nullptr, *logits = nullptr;
        CUDA(cudaMalloc(&input, read));
        CUDA(cudaMalloc(&logits, made));
        CUDA(cudaMallocHost(reinterpret_cast<void**>(&lane.input), read));
        CUDA(cudaMallocHost(reinterpret_cast<void**>(&lane.output), made));
        CUDA(cudaStreamCreateWithFlags(&lane.stream, cudaStreamNonBlocking));
        lane.context->setTensorAddress(in, input);
        lane.context->setTensorAddress(out, logits);
        auto const enqueue = [&] {
            CUDA(cudaMemcpyAsync(input, lane.input, read, cudaMemcpyHostToDevice, lane.stream));
            if (!lane.context->enqueueV3(lane.stream)) fail(name + ": does not run: " + logger.complaint());
            CUDA(cudaMemcpyAsync(lane.output, logits, made, cudaMemcpyDeviceToHost, lane.stream));
        };
        enqueue();  // TensorRT finishes its work for a new shape in a run that must not be captured
        CUDA(cudaStreamSynchronize(lane.stream));
        cudaGraph_t graph{};
        CUDA(cudaStreamBeginCapture(lane.stream, cudaStreamCaptureModeThreadLocal));
        enqueue();
        CUDA(cudaStreamEndCapture(lane.stream, &graph));
        CUDA(cudaGraphInstantiateWithFlags(&lane.graph, graph, 0));
    }

    std::vector<float> result(static_cast<size_t>(count * classes));
    auto const collect = [&](Lane& lane) {
        if (lane.first < 0) return;
        CUDA(cudaStreamSynchronize(lane.stream));
        std::copy_n(lane.output, std::min(batch, count - lane.first) * classes, result.begin() + lane.first * classes);
    };
    for (int64_t first = 0; first < count; first += batch) {
        Lane& lane = lanes[first / batch % 2];
        collect(lane);  // meanwhile the other one runs
        int64_t const numbers = std::min(batch, count - first) * pixels;
        std::memcpy(lane.input, images.data() + first * pixels * sizeof(float), numbers * sizeof(float));
        std::fill(lane.input + numbers, lane.input + batch * pixels, 0.0F);  // the last batch is filled up
        lane.first = first;
        CUDA(cudaGraphLaunch(lane.graph, lane.stream));
    }
    for (Lane& lane : lanes) collect(lane);

    for (int64_t i = 0; i < count; ++i) {
        for (int64_t k = 0; k < std::min<int64_t>(classes, 8); ++k) std::cout << result[i * classes + k] << ' ';
        std::cout << (classes > 8 ? "...\n" : "\n");
    }
    if (output.empty()) return;
    std::ofstream file(output, std::ios::binary);
    file.write(reinterpret_cast<char const*>(result.data()), static_cast<int64_t>(result.size() * sizeof(float)));
    if (!file.flush()) fail(output + ": cannot be written; give another place");
}

}  // namespace

int main(int argc, char** argv) try {
    run(argc, argv);
} catch (std::exception const& error) {
    std::cerr << "run_engine: error: " << error.what() << '\n';
    return 1;
}
