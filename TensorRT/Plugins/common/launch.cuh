// Launches a kernel so that it may start while the kernel before it in the stream is ending (programmatic dependent
// launch, GPUs of compute capability 9.0 and later); elsewhere as any launch.
//
// A kernel launched with `launch` must call griddepcontrol_wait in every thread before it touches memory that
// another kernel writes or reads, its own outputs included: their memory may still be in use. Before the wait it may
// read only constants (weights).
//
// In which order kernels go through the rows of a batch is agreed too. Products go from the first to the last,
// LayerNorm and attention on tensor cores, which stand between them, from the last to the first, and so does fc1, for
// fc2's sake, whose input is the largest. So a kernel begins with what the one before wrote last and the L2 cache still
// has.
#pragma once

#include <cuda_runtime_api.h>

#include "ptx.cuh"

namespace swin {

// x, which is not negative, is computed before what follows. The compiler moves the wait, and loads, in front of all
// arithmetic that it can, also of what should overlap with the kernel before; but not over a branch, and this one is
// never taken.
__device__ __forceinline__ void compute_before_what_follows(int x) {
    asm volatile(
        "{\n.reg .pred negative;\nsetp.lt.s32 negative, %0, 0;\n@!negative bra go_on;\ntrap;\ngo_on:\n}" ::"r"(x)
        : "memory");
}

// Whether the code of `kernel` that the current device runs is for sm_90 or later: has the wait in it, and what it does
// with clusters. Asked once per kernel: the devices of
// a process are taken to be alike.
template <auto KERNEL> bool is_sm90_code() {
    static const bool waits = [] {
        int device = 0, major = 0;
        cudaFuncAttributes attributes{};
        return cudaGetDevice(&device) == cudaSuccess
            && cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) == cudaSuccess
            && cudaFuncGetAttributes(&attributes, KERNEL) == cudaSuccess && major >= 9 && attributes.ptxVersion >= 90;
    }();
    return waits;
}

// Lets a kernel have more shared memory than every GPU has. Asked for at each launch, because each device must be told.
template <auto KERNEL> cudaError_t allow_shared_memory(int bytes) {
    return cudaFuncSetAttribute(KERNEL, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
}

// The same in clusters of blocks, from sm_90 on; of one block: no cluster.
template <auto KERNEL, class... Arguments>
int launch_in_clusters(dim3 cluster, dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream,
    const Arguments&... arguments) {
    cudaLaunchAttribute attributes[2]{};
    cudaLaunchConfig_t config{};
    if (is_sm90_code<KERNEL>()) {
        cudaLaunchAttribute& overlap = attributes[config.numAttrs++];
        overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
        overlap.val.programmaticStreamSerializationAllowed = 1;
    }
    if (cluster.x * cluster.y * cluster.z > 1) {
        cudaLaunchAttribute& blocks = attributes[config.numAttrs++];
        blocks.id = cudaLaunchAttributeClusterDimension;
        blocks.val.clusterDim.x = cluster.x;
        blocks.val.clusterDim.y = cluster.y;
        blocks.val.clusterDim.z = cluster.z;
    }
    config.gridDim = grid;
    config.blockDim = block;
    config.dynamicSmemBytes = shared_bytes;
    config.stream = stream;
    config.attrs = attributes;
    return cudaLaunchKernelEx(&config, KERNEL, arguments...);
}

template <auto KERNEL, class... Arguments>
int launch(dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream, const Arguments&... arguments) {
    return launch_in_clusters<KERNEL>(dim3(1), grid, block, shared_bytes, stream, arguments...);
}

}  // namespace swin
