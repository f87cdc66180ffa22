// Hopper's asynchronous tensor cores and copies (compute capability 9.0a), as thin as they can be: barriers in shared
// memory, tiles copied by tensor maps (TMA), and warpgroup products (wgmma) of tiles in shared memory. PTX ISA 8.0,
// sections "mbarrier", "cp.async.bulk.tensor" and "wgmma".
//
// A tile is rows of 128 bytes along K with the 128-byte swizzle, its address a multiple of 1024: what a tensor map with
// CU_TENSOR_MAP_SWIZZLE_128B writes is what a product reads. Or of 64 bytes, with the 64-byte swizzle.
#pragma once

#include <cstdint>

#include <cuda.h>
#include <cuda_fp16.h>

#include "mma.cuh"

namespace swin {

constexpr int kTileBytes = 128;  // of a row of a tile

// One thread of a warp, the same each time; all 32 ask. The compiler then knows that what only it does is done once, and
// keeps addresses in uniform registers.
__device__ __forceinline__ bool elected() {
    uint32_t is_elected;
    asm volatile("{\n.reg .pred p;\nelect.sync _|p, 0xFFFFFFFF;\nselp.u32 %0, 1, 0, p;\n}" : "=r"(is_elected));
    return is_elected != 0;
}
// The same number in each thread of a warp, and known to be.
__device__ __forceinline__ int warp_index() { return __shfl_sync(~0U, static_cast<int>(threadIdx.x) / 32, 0); }

// A warpgroup's registers of a thread: some give up theirs, the others wait until there are enough.
template <int COUNT> __device__ __forceinline__ void fewer_registers() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(COUNT));
}
template <int COUNT> __device__ __forceinline__ void more_registers() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(COUNT));
}

// --- barriers in shared memory -----------------------------------------------------------------------------------------

// A phase of a barrier ends when `arrivals` threads have arrived and all bytes that they announced have been copied.
__device__ __forceinline__ void barrier_init(uint64_t* barrier, int arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals) : "memory");
}
// Makes initialised barriers visible to copies; a __syncthreads() follows.
__device__ __forceinline__ void barrier_init_fence() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
__device__ __forceinline__ void barrier_arrive(uint64_t* barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}
__device__ __forceinline__ void barrier_arrive_and_expect(uint64_t* barrier, int bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
                 : "memory");
}
// Waits for the end of a phase; parity: 0 for the first, third ... phase of the barrier, 1 for the others.
__device__ __forceinline__ void barrier_wait(uint64_t* barrier, int parity) {
    asm volatile("{\n"
                 ".reg .pred done;\n"
                 "again:\n"
                 "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
                 "@!done bra again;\n"
                 "}" ::"r"(shared_address(barrier)), "r"(parity)
                 : "memory");
}

// What threads of this block stored in shared memory is seen by copies and products that come after a barrier.
__device__ __forceinline__ void shared_memory_fence() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// --- tiles by tensor maps ----------------------------------------------------------------------------------------------

__device__ __forceinline__ void prefetch(const CUtensorMap& map) {
    asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
}
// Starts a copy into shared memory, zeros outside of the tensor; it arrives at the barrier as bytes.
__device__ __forceinline__ void copy_tile(void* tile, const CUtensorMap& map, uint64_t* barrier, int c0, int c1) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];"
                 ::"r"(shared_address(tile)), "l"(&map), "r"(shared_address(barrier)), "r"(c0), "r"(c1)
                 : "memory");
}
__device__ __forceinline__ void copy_tile(
    void* tile, const CUtensorMap& map, uint64_t* barrier, int c0, int c1, int c2, int c3, int c4) {
    asm volatile("cp.async.bulk.tensor.5d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], "
                 "[%1, {%3, %4, %5, %6, %7}], [%2];"
                 ::"r"(shared_address(tile)), "l"(&map), "r"(shared_address(barrier)), "r"(c0), "r"(c1), "r"(c2), "r"(c3),
                 "r"(c4)
                 : "memory");
}

// Starts a copy out of shared memory, but for what is outside of the tensor.
__device__ __forceinline__ void copy_tile_out(const void* tile, const CUtensorMap& map, int c0, int c1) {
    asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%2, %3}], [%1];\n"
                 "cp.async.bulk.commit_group;" ::"l"(&map), "r"(shared_address(tile)), "r"(c0), "r"(c1)
                 : "memory");
}
// The copies that this thread started are done with shared memory.
__device__ __forceinline__ void wait_for_copies_out() {
    asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory");
}

// --- products ----------------------------------------------------------------------------------------------------------

// Descriptor of a tile in shared memory; the next 32 bytes of K are at + 2.
template <int kRowBytes = kTileBytes> __device__ __forceinline__ uint64_t tile_descriptor(const void* tile) {
    static_assert(kRowBytes == 128 || kRowBytes == 64);
    constexpr uint64_t kSwizzle = kRowBytes == 128 ? 1 : 2, kEightRows = 8 * kRowBytes;
    return (shared_address(tile) & 0x3FFFF) >> 4 | 1ULL << 16 | kEightRows >> 4 << 32 | kSwizzle << 62;
}
// Where the 16 bytes number `chunk` of a row lie in such a tile.
template <int kRowBytes = kTileBytes> __device__ __forceinline__ int swizzled_offset(int row, int chunk) {
    return row * kRowBytes + (chunk ^ (kRowBytes == 128 ? row & 7 : row >> 1 & 3)) * 16;
}

// Registers that a product under way reads or writes: called after the wait, this keeps the compiler from using them for
// something else, or from reading them, before.
template <int N> __device__ __forceinline__ void keep(float (&registers)[N]) {
#pragma unroll
    for (int i = 0; i < N; ++i) asm volatile("" : "+f"(registers[i])::"memory");
}
template <int N> __device__ __forceinline__ void keep(int (&registers)[N]) {
#pragma unroll
    for (int i = 0; i < N; ++i) asm volatile("" : "+r"(registers[i])::"memory");
}
template <int N> __device__ __forceinline__ void keep(uint32_t (&registers)[N]) {
#pragma unroll
    for (int i = 0; i < N; ++i) asm volatile("" : "+r"(registers[i])::"memory");
}

// Around a group of products: before its first, after its last, and before its sums are read. WAITING: how many groups
// may still be under way.
__device__ __forceinline__ void product_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void product_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int WAITING> __device__ __forceinline__ void product_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(WAITING) : "memory");
}

// sums[64 x N] (+)= x[64 rows] weight[N rows]^T over 32 bytes of K: 16 FP16 or 32 INT8. sums are set where `add` is 0.
// Of each 8 columns a thread has, of its warp's 16 rows, row lane / 4 in sums[4j], [4j + 1] and the row 8 below in
// sums[4j + 2], [4j + 3]: columns 8j + 2 (lane % 4) and the next.
template <class Sum, int N> struct WarpgroupProduct;
template <int N> struct WarpgroupRegisterProduct;

#define SWIN_R8(c, i) c(sums[i]), c(sums[i + 1]), c(sums[i + 2]), c(sums[i + 3]), c(sums[i + 4]), c(sums[i + 5]), \
    c(sums[i + 6]), c(sums[i + 7])
#define SWIN_R32(c, i) SWIN_R8(c, i), SWIN_R8(c, i + 8), SWIN_R8(c, i + 16), SWIN_R8(c, i + 24)
#define SWIN_N32 \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
    "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define SWIN_N48 \
    SWIN_N32 ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47"
#define SWIN_N64 \
    SWIN_N48 ", %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define SWIN_N96 \
    SWIN_N64 ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, " \
    "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
// The operands after the sums: x, weight and add, numbered X, W and A.
#define SWIN_WGMMA(N, SHAPE_HALF, SHAPE_INT8, LIST, X, W, A, ...) \
    template <> struct WarpgroupProduct<float, N> { \
        static __device__ __forceinline__ void add(float (&sums)[N / 2], uint64_t x, uint64_t weight, int add) { \
            asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #A ", 0;\n" \
                         "wgmma.mma_async.sync.aligned." SHAPE_HALF ".f32.f16.f16 {" LIST "}, %" #X ", %" #W \
                         ", p, 1, 1, 0, 0;\n}" \
                         : __VA_ARGS__(SWIN_FLOAT) \
                         : "l"(x), "l"(weight), "r"(add)); \
        } \
    }; \
    template <> struct WarpgroupProduct<int, N> { \
        static __device__ __forceinline__ void add(int (&sums)[N / 2], uint64_t x, uint64_t weight, int add) { \
            asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #A ", 0;\n" \
                         "wgmma.mma_async.sync.aligned." SHAPE_INT8 ".s32.s8.s8 {" LIST "}, %" #X ", %" #W ", p;\n}" \
                         : __VA_ARGS__(SWIN_INT) \
                         : "l"(x), "l"(weight), "r"(add)); \
        } \
    };
// The same with x in registers, two FP16 in each: of the warp's 16 rows, row lane / 4 and the one 8 below, alternating,
// columns 2 (lane % 4) and the next in the first two, 8 more in the others. The registers must stay as they are until the
// product has been waited for: see keep.
#define SWIN_WGMMA_REGISTERS(N, SHAPE, LIST, X0, X1, X2, X3, W, A, ...) \
    template <> struct WarpgroupRegisterProduct<N> { \
        static __device__ __forceinline__ void add( \
            float (&sums)[N / 2], const uint32_t (&x)[4], uint64_t weight, int add) { \
            asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #A ", 0;\n" \
                         "wgmma.mma_async.sync.aligned." SHAPE ".f32.f16.f16 {" LIST "}, {%" #X0 ", %" #X1 ", %" #X2 \
                         ", %" #X3 "}, %" #W ", p, 1, 1, 0;\n}" \
                         : __VA_ARGS__(SWIN_FLOAT) \
                         : "r"(x[0]), "r"(x[1]), "r"(x[2]), "r"(x[3]), "l"(weight), "r"(add)); \
        } \
    };
#define SWIN_FLOAT(x) "+f"(x)
#define SWIN_INT(x) "+r"(x)
#define SWIN_SUMS_32(c) SWIN_R32(c, 0)
#define SWIN_SUMS_48(c) SWIN_R32(c, 0), SWIN_R8(c, 32), SWIN_R8(c, 40)
#define SWIN_SUMS_64(c) SWIN_R32(c, 0), SWIN_R32(c, 32)
#define SWIN_SUMS_96(c) SWIN_R32(c, 0), SWIN_R32(c, 32), SWIN_R32(c, 64)
SWIN_WGMMA(64, "m64n64k16", "m64n64k32", SWIN_N32, 32, 33, 34, SWIN_SUMS_32)
SWIN_WGMMA(96, "m64n96k16", "m64n96k32", SWIN_N48, 48, 49, 50, SWIN_SUMS_48)
SWIN_WGMMA(128, "m64n128k16", "m64n128k32", SWIN_N64, 64, 65, 66, SWIN_SUMS_64)
SWIN_WGMMA(192, "m64n192k16", "m64n192k32", SWIN_N96, 96, 97, 98, SWIN_SUMS_96)
SWIN_WGMMA_REGISTERS(96, "m64n96k16", SWIN_N48, 48, 49, 50, 51, 52, 53, SWIN_SUMS_48)
SWIN_WGMMA_REGISTERS(128, "m64n128k16", SWIN_N64, 64, 65, 66, 67, 68, 69, SWIN_SUMS_64)
SWIN_WGMMA_REGISTERS(192, "m64n192k16", SWIN_N96, 96, 97, 98, 99, 100, 101, SWIN_SUMS_96)
#undef SWIN_R8
#undef SWIN_R32
#undef SWIN_N32
#undef SWIN_N48
#undef SWIN_N64
#undef SWIN_N96
#undef SWIN_WGMMA
#undef SWIN_WGMMA_REGISTERS
#undef SWIN_FLOAT
#undef SWIN_INT
#undef SWIN_SUMS_32
#undef SWIN_SUMS_48
#undef SWIN_SUMS_64
#undef SWIN_SUMS_96

}  // namespace swin
