// The current GPU, as far as kernels are chosen by it.
#pragma once

#include <cuda_runtime_api.h>

namespace swin {

struct Gpu {
    int major = 0, minor = 0;  // compute capability
    int multiprocessors = 1;

    // Compute capability 9.0, for which *_sm90_kernel.cu are compiled: other 9.x do not run sm_90a.
    bool is_sm90() const { return major == 9 && minor == 0; }
};

inline Gpu current_gpu() {
    Gpu gpu;
    int device = 0;
    cudaGetDevice(&device);
    cudaDeviceGetAttribute(&gpu.major, cudaDevAttrComputeCapabilityMajor, device);
    cudaDeviceGetAttribute(&gpu.minor, cudaDevAttrComputeCapabilityMinor, device);
    cudaDeviceGetAttribute(&gpu.multiprocessors, cudaDevAttrMultiProcessorCount, device);
    return gpu;
}

}  // namespace swin
