// Stands in for the kernels and for CUDA, so that onnxruntime's custom operators run on a CPU: every kernel calls back
// into test_onnxruntime_ops.py with its name and its structure.
#include <cstdlib>

#include <cuda_runtime_api.h>

extern "C" {

int (*swin_callback)(const char* name, const void* arguments) = nullptr;

#define KERNEL(name) \
    int name(const void* arguments, void*) { return swin_callback(#name, arguments); }
KERNEL(swin_layernorm)
KERNEL(swin_add_layernorm)
KERNEL(swin_layernorm_add)
KERNEL(swin_patch_merge)
KERNEL(swin_patch_embed)
KERNEL(swin_fnorm)
KERNEL(swin_attention)
KERNEL(swin_linear)
KERNEL(swin_mlp)

cudaError_t cudaMalloc(void** data, size_t bytes) {
    *data = std::malloc(bytes);
    return cudaSuccess;
}
cudaError_t cudaFree(void* data) {
    std::free(data);
    return cudaSuccess;
}
cudaError_t cudaGetDevice(int* device) {
    *device = 0;
    return cudaSuccess;
}
const char* cudaGetErrorString(cudaError_t error) { return error == cudaErrorInvalidValue ? "invalid argument" : "?"; }

}  // extern "C"
