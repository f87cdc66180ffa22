// The library's entry point for onnxruntime, and what its kernels share.
#include "common/onnxruntime/ops.h"

#include <map>
#include <mutex>
#include <utility>

namespace swin {

void Api::check(OrtStatus* status) const {
    if (status == nullptr) return;
    const std::string message = api_->GetErrorMessage(status);
    api_->ReleaseStatus(status);
    throw std::runtime_error(message);
}

bool Api::attribute(const OrtKernelInfo* info, const char* name, int32_t& value) const {
    int64_t found = 0;
    OrtStatus* status = api_->KernelInfoGetAttribute_int64(info, name, &found);
    value = static_cast<int32_t>(found);
    if (status != nullptr) api_->ReleaseStatus(status);
    return status == nullptr;
}

bool Api::attribute(const OrtKernelInfo* info, const char* name, float& value) const {
    OrtStatus* status = api_->KernelInfoGetAttribute_float(info, name, &value);
    if (status != nullptr) api_->ReleaseStatus(status);
    return status == nullptr;
}

bool Api::attribute(const OrtShapeInferContext* context, const char* name, int32_t& value) const {
    const OrtOpAttr* found = nullptr;
    int64_t read = 0;
    size_t bytes = 0;
    OrtStatus* status = api_->ShapeInferContext_GetAttribute(context, name, &found);
    if (status == nullptr) status = api_->ReadOpAttr(found, ORT_OP_ATTR_INT, &read, sizeof(read), &bytes);
    value = static_cast<int32_t>(read);
    if (status != nullptr) api_->ReleaseStatus(status);
    return status == nullptr;
}

bool Api::attribute(const OrtShapeInferContext* context, const char* name, float& value) const {
    const OrtOpAttr* found = nullptr;
    size_t bytes = 0;
    OrtStatus* status = api_->ShapeInferContext_GetAttribute(context, name, &found);
    if (status == nullptr) status = api_->ReadOpAttr(found, ORT_OP_ATTR_FLOAT, &value, sizeof(value), &bytes);
    if (status != nullptr) api_->ReleaseStatus(status);
    return status == nullptr;
}

void Api::set_output(OrtShapeInferContext* context, ONNXTensorElementDataType type, size_t rank) const {
    OrtTensorTypeAndShapeInfo* info = nullptr;
    check(api_->CreateTensorTypeAndShapeInfo(&info));
    const std::vector<int64_t> open(rank, -1);
    OrtStatus* status = api_->SetTensorElementType(info, type);
    if (status == nullptr) status = api_->SetDimensions(info, open.data(), rank);
    if (status == nullptr) status = api_->ShapeInferContext_SetOutputTypeShape(context, 0, info);
    api_->ReleaseTensorTypeAndShapeInfo(info);
    check(status);
}

Shape Api::shape(const OrtValue* tensor) const {
    OrtTensorTypeAndShapeInfo* info = nullptr;
    check(api_->GetTensorTypeAndShape(tensor, &info));
    size_t rank = 0;
    Shape shape;
    OrtStatus* status = api_->GetDimensionsCount(info, &rank);
    if (status == nullptr) {
        shape.sizes.resize(rank);
        status = api_->GetDimensions(info, shape.sizes.data(), rank);
    }
    api_->ReleaseTensorTypeAndShapeInfo(info);
    check(status);
    return shape;
}

void* workspace_of(cudaStream_t stream, size_t bytes) {
    struct Buffer {
        void* data = nullptr;
        size_t bytes = 0;
    };
    static std::mutex mutex;
    static std::map<std::pair<int, cudaStream_t>, Buffer> buffers;
    int device = 0;
    cudaGetDevice(&device);
    const std::lock_guard<std::mutex> lock(mutex);
    Buffer& buffer = buffers[{device, stream}];
    if (buffer.bytes < bytes) {
        // Earlier launches may still use the smaller one, which cudaFree waits for.
        cudaFree(buffer.data);
        buffer = {};
        const cudaError_t status = cudaMalloc(&buffer.data, bytes);
        if (status != cudaSuccess) {
            throw std::runtime_error(std::string("workspace: ") + cudaGetErrorString(status));
        }
        buffer.bytes = bytes;
    }
    return buffer.data;
}

namespace {

std::vector<const OrtCustomOp*>& ops() {
    static std::vector<const OrtCustomOp*> all;
    return all;
}

const OrtApi* loaded_by = nullptr;

}  // namespace

const OrtApi* current_api() { return loaded_by; }

void set_current_api(const OrtApi* api) { loaded_by = api; }

void register_op(const OrtCustomOp& op) { ops().push_back(&op); }

}  // namespace swin

// What onnxruntime's SessionOptions.register_custom_ops_library looks for.
extern "C" __attribute__((visibility("default"))) OrtStatus* RegisterCustomOps(
    OrtSessionOptions* options, const OrtApiBase* base) {
    const OrtApi* api = base->GetApi(swin::kApiVersion);
    if (api == nullptr) {
        const OrtApi* oldest = base->GetApi(1);
        return oldest->CreateStatus(ORT_FAIL, "swin: needs onnxruntime 1.17 or newer");
    }
    swin::set_current_api(api);
    static OrtCustomOpDomain* domain = nullptr;  // lives as long as the sessions that have it: as long as the process
    static std::mutex mutex;
    const std::lock_guard<std::mutex> lock(mutex);
    if (domain == nullptr) {
        OrtCustomOpDomain* made = nullptr;
        if (OrtStatus* status = api->CreateCustomOpDomain(swin::kNamespace, &made)) return status;
        for (const OrtCustomOp* op : swin::ops()) {
            if (OrtStatus* status = api->CustomOpDomain_Add(made, op)) return status;
        }
        domain = made;
    }
    return api->AddCustomOpDomain(options, domain);
}
