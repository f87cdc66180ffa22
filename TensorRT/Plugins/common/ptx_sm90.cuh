// Hopper's PTX instructions (compute capability 9.0a), one function each, under the names of the PTX ISA and of
// CUTLASS: PTX ISA 8.0, sections "mbarrier", "cp.async.bulk.tensor", "wgmma" and "setmaxnreg".
#pragma once

#include <cuda.h>

#include "ptx.cuh"

namespace swin {

// --- warps and warpgroups --------------------------------------------------------------------------------------------

// One thread of a warp, the same each time; all 32 ask. The compiler then knows that what only it does is done once,
// and keeps addresses in uniform registers.
__device__ __forceinline__ bool elect_one() {
    uint32_t is_elected;
    asm volatile("{\n.reg .pred p;\nelect.sync _|p, 0xFFFFFFFF;\nselp.u32 %0, 1, 0, p;\n}" : "=r"(is_elected));
    return is_elected != 0;
}
// The same number in each thread of a warp, and known to be.
__device__ __forceinline__ int warp_index() { return __shfl_sync(~0U, static_cast<int>(threadIdx.x) / 32, 0); }

// A warpgroup's registers of a thread: some give up theirs, the others wait until there are enough.
template <int COUNT> __device__ __forceinline__ void warpgroup_reg_dealloc() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(COUNT));
}
template <int COUNT> __device__ __forceinline__ void warpgroup_reg_alloc() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(COUNT));
}

// --- barriers --------------------------------------------------------------------------------------------------------

// bar.sync for kThreads threads of a block; see NamedBarrier in pipeline_sm90.cuh.
template <int kThreads> __device__ __forceinline__ void named_barrier_sync(int barrier) {
    asm volatile("bar.sync %0, %1;" ::"r"(barrier), "n"(kThreads) : "memory");
}

// --- barriers in shared memory ---------------------------------------------------------------------------------------

// A phase of a barrier ends when `arrivals` threads have arrived and all bytes that they announced have been copied.
__device__ __forceinline__ void mbarrier_init(uint64_t* barrier, int arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals) : "memory");
}
// Makes initialised barriers visible to copies; a __syncthreads() follows.
__device__ __forceinline__ void fence_barrier_init() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
__device__ __forceinline__ void mbarrier_arrive(uint64_t* barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}
__device__ __forceinline__ void mbarrier_arrive_expect_tx(uint64_t* barrier, int bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
        : "memory");
}
// Waits for the end of a phase; parity: 0 for the first, third ... phase of the barrier, 1 for the others.
__device__ __forceinline__ void mbarrier_wait(uint64_t* barrier, int parity) {
    asm volatile("{\n"
                 ".reg .pred done;\n"
                 "again:\n"
                 "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
                 "@!done bra again;\n"
                 "}" ::"r"(shared_address(barrier)),
        "r"(parity)
        : "memory");
}

// What threads of this block stored in shared memory is seen by copies and products that come after a barrier.
__device__ __forceinline__ void fence_proxy_async() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// --- tiles by tensor maps --------------------------------------------------------------------------------------------

__device__ __forceinline__ void prefetch_tensormap(const CUtensorMap& map) {
    asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
}
// Starts a copy into shared memory, zeros outside of the tensor; it arrives at the barrier as bytes.
__device__ __forceinline__ void tma_load(void* tile, const CUtensorMap& map, uint64_t* barrier, int c0, int c1) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];" ::"r"(
            shared_address(tile)),
        "l"(&map), "r"(shared_address(barrier)), "r"(c0), "r"(c1)
        : "memory");
}
__device__ __forceinline__ void tma_load(
    void* tile, const CUtensorMap& map, uint64_t* barrier, int c0, int c1, int c2, int c3, int c4) {
    asm volatile("cp.async.bulk.tensor.5d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], "
                 "[%1, {%3, %4, %5, %6, %7}], [%2];" ::"r"(shared_address(tile)),
        "l"(&map), "r"(shared_address(barrier)), "r"(c0), "r"(c1), "r"(c2), "r"(c3), "r"(c4)
        : "memory");
}

// Starts a copy out of shared memory, but for what is outside of the tensor.
__device__ __forceinline__ void tma_store(const void* tile, const CUtensorMap& map, int c0, int c1) {
    asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%2, %3}], [%1];\n"
                 "cp.async.bulk.commit_group;" ::"l"(&map),
        "r"(shared_address(tile)), "r"(c0), "r"(c1)
        : "memory");
}
// The copies that this thread started are done with shared memory.
__device__ __forceinline__ void tma_store_wait() { asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory"); }

// --- around products of a warpgroup (wgmma.cuh) ----------------------------------------------------------------------

// Registers that a product under way reads or writes: called after the wait, this keeps the compiler from using them
// for something else, or from reading them, before.
template <int N> __device__ __forceinline__ void fence_operand(float (&registers)[N]) {
#pragma unroll
    for (int i = 0; i < N; ++i) asm volatile("" : "+f"(registers[i])::"memory");
}
template <int N> __device__ __forceinline__ void fence_operand(int (&registers)[N]) {
#pragma unroll
    for (int i = 0; i < N; ++i) asm volatile("" : "+r"(registers[i])::"memory");
}
template <int N> __device__ __forceinline__ void fence_operand(uint32_t (&registers)[N]) {
#pragma unroll
    for (int i = 0; i < N; ++i) asm volatile("" : "+r"(registers[i])::"memory");
}

// Around a group of products: before its first, after its last, and before its sums are read. WAITING: how many groups
// may still be under way.
__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int WAITING> __device__ __forceinline__ void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(WAITING) : "memory");
}

}  // namespace swin
