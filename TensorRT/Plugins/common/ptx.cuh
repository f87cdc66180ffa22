// PTX instructions that every architecture's kernels use, one function each, under the instruction's own name (PTX ISA,
// "Instruction Set"). Hopper's are in ptx_sm90.cuh, matrix products in mma.cuh and wgmma.cuh.
#pragma once

#include <cstdint>

#include <cuda_runtime_api.h>

namespace swin {

__device__ __forceinline__ uint32_t shared_address(const void* pointer) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// 16 bytes from global to shared memory without passing through registers; zeros where `live` is false.
__device__ __forceinline__ void cp_async_16(void* shared, const void* global, bool live) {
#if __CUDA_ARCH__ >= 800
    asm volatile(
        "cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global), "r"(live ? 16 : 0)
        : "memory");
#else
    *static_cast<uint4*>(shared) = live ? *static_cast<const uint4*>(global) : uint4{};
#endif
}

// The same for 8 bytes.
__device__ __forceinline__ void cp_async_8(void* shared, const void* global, bool live) {
#if __CUDA_ARCH__ >= 800
    asm volatile(
        "cp.async.ca.shared.global [%0], [%1], 8, %2;" ::"r"(shared_address(shared)), "l"(global), "r"(live ? 8 : 0)
        : "memory");
#else
    *static_cast<uint2*>(shared) = live ? *static_cast<const uint2*>(global) : uint2{};
#endif
}

// One element of 4 bytes.
__device__ __forceinline__ void cp_async_4(float* shared, const float* global) {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(shared_address(shared)), "l"(global) : "memory");
#else
    *shared = *global;
#endif
}

// What was started before a commit is one group; wait<N> until at most N groups are under way.
__device__ __forceinline__ void cp_async_commit() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
template <int N> __device__ __forceinline__ void cp_async_wait() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
#endif
}

// Four 8x8 matrices of 16-bit elements from shared memory; lane l gives the address of row l % 8 of matrix l / 8.
__device__ __forceinline__ void ldmatrix_x4(uint32_t (&fragment)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
        : "=r"(fragment[0]), "=r"(fragment[1]), "=r"(fragment[2]), "=r"(fragment[3])
        : "r"(shared_address(row))
        : "memory");
}
__device__ __forceinline__ void ldmatrix_x4_trans(uint32_t (&fragment)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
        : "=r"(fragment[0]), "=r"(fragment[1]), "=r"(fragment[2]), "=r"(fragment[3])
        : "r"(shared_address(row))
        : "memory");
}

// exp2 to 2 ulp; results below 2^-126 are 0.
__device__ __forceinline__ float ex2_approx(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// 1 / x and 1 / sqrt(x) to 2 ulp; an x below 2^-126 counts as 0, whose result is inf.
__device__ __forceinline__ float rcp_approx(float x) {
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
__device__ __forceinline__ float rsqrt_approx(float x) {
    float y;
    asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// --- 16 bytes of global memory ---------------------------------------------------------------------------------------

// The compiler neither moves nor splits these: it would keep what it read in registers that sums need.
// ld_global_nc: of constants.
__device__ __forceinline__ uint4 ld_global_nc(const void* from) {
    uint4 x;
    asm volatile("ld.global.nc.v4.u32 {%0, %1, %2, %3}, [%4];"
        : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)
        : "l"(from));
    return x;
}
__device__ __forceinline__ uint4 ld_global(const void* from) {
    uint4 x;
    asm volatile("ld.global.v4.u32 {%0, %1, %2, %3}, [%4];"
        : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)
        : "l"(from)
        : "memory");
    return x;
}
__device__ __forceinline__ void st_global(void* to, const uint4& x) {
    asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(x.x), "r"(x.y), "r"(x.z), "r"(x.w)
        : "memory");
}

// --- programmatic dependent launch (launch.cuh) ----------------------------------------------------------------------

// Waits for the end of the kernel before this one in the stream.
__device__ __forceinline__ void griddepcontrol_wait() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
// From here on the next kernel may be given the multiprocessors that this one leaves idle. It waits for this one's end
// itself, so this may come before the results are written.
__device__ __forceinline__ void griddepcontrol_launch_dependents() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;");
#endif
}

// --- clusters of blocks (from sm_90 on) -------------------------------------------------------------------------------

// All threads of the cluster have come here; what they wrote to shared memory before can be read after.
__device__ __forceinline__ void barrier_cluster() {
#if __CUDA_ARCH__ >= 900
    asm volatile("barrier.cluster.arrive.release;\nbarrier.cluster.wait.acquire;" ::: "memory");
#endif
}
// 16 bytes of the shared memory of the cluster's block of that rank, from where `own` lies in this block's.
__device__ __forceinline__ float4 ld_shared_cluster(const float* own, int rank) {
    float4 x{};
#if __CUDA_ARCH__ >= 900
    uint32_t address;
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(address) : "r"(shared_address(own)), "r"(rank));
    asm volatile("ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [%4];"
        : "=f"(x.x), "=f"(x.y), "=f"(x.z), "=f"(x.w)
        : "r"(address)
        : "memory");
#endif
    return x;
}

}  // namespace swin
