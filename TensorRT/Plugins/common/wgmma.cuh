// Products of a warpgroup of tiles in shared memory on Hopper (wgmma).
//
// A tile is rows of 128 bytes along K with the 128-byte swizzle, its address a multiple of 1024: what a tensor map with
// CU_TENSOR_MAP_SWIZZLE_128B writes is what a product reads. Or of 64 bytes, with the 64-byte swizzle.
#pragma once

#include <cstdint>

#include <cuda_fp16.h>

#include "mma.cuh"
#include "ptx_sm90.cuh"
#include "tensor_map_sm90.cuh"

namespace swin {

// Descriptor of a tile in shared memory; the next 32 bytes of K are at + 2.
template <int kRowBytes = kTileBytes> __device__ __forceinline__ uint64_t make_smem_desc(const void* tile) {
    static_assert(kRowBytes == 128 || kRowBytes == 64);
    constexpr uint64_t kSwizzle = kRowBytes == 128 ? 1 : 2, kEightRows = 8 * kRowBytes;
    return (shared_address(tile) & 0x3FFFF) >> 4 | 1ULL << 16 | kEightRows >> 4 << 32 | kSwizzle << 62;
}
// Where the 16 bytes number `chunk` of a row lie in such a tile.
template <int kRowBytes = kTileBytes> __device__ __forceinline__ int swizzled_offset(int row, int chunk) {
    return row * kRowBytes + (chunk ^ (kRowBytes == 128 ? row & 7 : row >> 1 & 3)) * 16;
}

// sums[64 x N] (+)= x[64 rows] weight[N rows]^T over 32 bytes of K: 16 FP16 or 32 INT8. sums are set where `add` is 0.
// In each 8 columns a thread has, of its warp's 16 rows, row lane / 4 in sums[4j], [4j + 1] and the row 8 below in
// sums[4j + 2], [4j + 3]: columns 8j + 2 (lane % 4) and the next.
template <class Sum, int N> struct WgmmaSS;
template <int N> struct WgmmaRS;
template <int N> struct WgmmaTF32;

#define SWIN_R8(c, i) \
    c(sums[i]), c(sums[i + 1]), c(sums[i + 2]), c(sums[i + 3]), c(sums[i + 4]), c(sums[i + 5]), c(sums[i + 6]), \
        c(sums[i + 7])
#define SWIN_R32(c, i) SWIN_R8(c, i), SWIN_R8(c, i + 8), SWIN_R8(c, i + 16), SWIN_R8(c, i + 24)
#define SWIN_N32 \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
    "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define SWIN_N48 SWIN_N32 ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47"
#define SWIN_N64 SWIN_N48 ", %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define SWIN_N96 \
    SWIN_N64 ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, " \
             "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
// The operands after the sums: x, weight and add, numbered X, W and A.
#define SWIN_WGMMA(N, SHAPE_HALF, SHAPE_INT8, LIST, X, W, A, ...) \
    template <> struct WgmmaSS<float, N> { \
        static __device__ __forceinline__ void mma(float (&sums)[N / 2], uint64_t x, uint64_t weight, int add) { \
            asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #A ", 0;\n" \
                         "wgmma.mma_async.sync.aligned." SHAPE_HALF ".f32.f16.f16 {" LIST "}, %" #X ", %" #W \
                         ", p, 1, 1, 0, 0;\n}" \
                : __VA_ARGS__(SWIN_FLOAT) \
                : "l"(x), "l"(weight), "r"(add)); \
        } \
    }; \
    template <> struct WgmmaSS<int, N> { \
        static __device__ __forceinline__ void mma(int (&sums)[N / 2], uint64_t x, uint64_t weight, int add) { \
            asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #A ", 0;\n" \
                         "wgmma.mma_async.sync.aligned." SHAPE_INT8 ".s32.s8.s8 {" LIST "}, %" #X ", %" #W ", p;\n}" \
                : __VA_ARGS__(SWIN_INT) \
                : "l"(x), "l"(weight), "r"(add)); \
        } \
    };
// The same with x in registers, two FP16 in each: of the warp's 16 rows, row lane / 4 and the one 8 below, alternating,
// columns 2 (lane % 4) and the next in the first two, 8 more in the others. The registers must stay as they are until
// the product has been waited for: see fence_operand.
#define SWIN_WGMMA_REGISTERS(N, SHAPE, LIST, X0, X1, X2, X3, W, A, ...) \
    template <> struct WgmmaRS<N> { \
        static __device__ __forceinline__ void mma( \
            float (&sums)[N / 2], const uint32_t (&x)[4], uint64_t weight, int add) { \
            asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #A ", 0;\n" \
                         "wgmma.mma_async.sync.aligned." SHAPE ".f32.f16.f16 {" LIST "}, {%" #X0 ", %" #X1 ", %" #X2 \
                         ", %" #X3 "}, %" #W ", p, 1, 1, 0;\n}" \
                : __VA_ARGS__(SWIN_FLOAT) \
                : "r"(x[0]), "r"(x[1]), "r"(x[2]), "r"(x[3]), "l"(weight), "r"(add)); \
        } \
    };
// The same of TF32, 8 along K: FP32 whose 13 lowest bits are 0. x: row lane / 4 and the one 8 below, alternating, column
// lane % 4 in the first two, 4 more in the others: what ldmatrix_x4 brings of 16 rows and 8 columns of FP32.
#define SWIN_WGMMA_TF32(N, SHAPE, LIST, X0, X1, X2, X3, W, A, ...) \
    template <> struct WgmmaTF32<N> { \
        static __device__ __forceinline__ void mma( \
            float (&sums)[N / 2], const uint32_t (&x)[4], uint64_t weight, int add) { \
            asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #A ", 0;\n" \
                         "wgmma.mma_async.sync.aligned." SHAPE ".f32.tf32.tf32 {" LIST "}, {%" #X0 ", %" #X1 ", %" #X2 \
                         ", %" #X3 "}, %" #W ", p, 1, 1;\n}" \
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
SWIN_WGMMA_TF32(64, "m64n64k8", SWIN_N32, 32, 33, 34, 35, 36, 37, SWIN_SUMS_32)
SWIN_WGMMA_TF32(96, "m64n96k8", SWIN_N48, 48, 49, 50, 51, 52, 53, SWIN_SUMS_48)
SWIN_WGMMA_TF32(128, "m64n128k8", SWIN_N64, 64, 65, 66, 67, 68, 69, SWIN_SUMS_64)
#undef SWIN_R8
#undef SWIN_R32
#undef SWIN_N32
#undef SWIN_N48
#undef SWIN_N64
#undef SWIN_N96
#undef SWIN_WGMMA
#undef SWIN_WGMMA_REGISTERS
#undef SWIN_WGMMA_TF32
#undef SWIN_FLOAT
#undef SWIN_INT
#undef SWIN_SUMS_32
#undef SWIN_SUMS_48
#undef SWIN_SUMS_64
#undef SWIN_SUMS_96

}  // namespace swin
