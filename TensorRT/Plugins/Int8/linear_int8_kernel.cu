// INT8 linear layers: the C interface, and the kernel for every GPU that has none of its own.
//
// A block of four warps computes 64 x 64 elements of y, a warp 32 x 32 of them. Tiles of x and weight, 64 rows of 64
// bytes each, arrive in shared memory while the tensor cores multiply the tiles before them.
#include "linear_int8_kernel.h"

#include <climits>

#include "common/gelu.cuh"
#include "common/gpu.h"
#include "common/mma.cuh"
#include "common/quantize.cuh"

namespace swin {
namespace {

constexpr int kTile = 64;     // rows of x, rows of weight and bytes of each in shared memory at a time
constexpr int kThreads = 128;

// Offset of a 16-byte chunk of a tile. Chunks are swizzled so that the 8 rows that ldmatrix reads at once lie in
// different banks.
__device__ __forceinline__ int swizzled(int row, int chunk) { return row * kTile + ((chunk ^ (row >> 1 & 3)) << 4); }

// Starts the copy of a tile of matrix[rows, width], zeros outside of it.
__device__ __forceinline__ void load_tile(
    int8_t* tile, const int8_t* matrix, int first_row, int rows, int first_column, int width) {
#pragma unroll
    for (int i = 0; i < kTile * 4 / kThreads; ++i) {
        const int index = i * kThreads + threadIdx.x;
        const int row = index / 4, chunk = index % 4;
        const int column = first_column + chunk * 16;
        const bool live = first_row + row < rows && column < width;
        const long long at = live ? static_cast<long long>(first_row + row) * width + column : 0;
        cp_async_16(tile + swizzled(row, chunk), matrix + at, live);
    }
}

__global__ void __launch_bounds__(kThreads) linear_int8_kernel(const LinearInt8 a) {
    __shared__ alignas(128) int8_t x_tiles[2][kTile * kTile];
    __shared__ alignas(128) int8_t weight_tiles[2][kTile * kTile];
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int first_row = blockIdx.x * kTile, first_feature = blockIdx.y * kTile;
    const int warp_row = warp / 2 * 32, warp_feature = warp % 2 * 32;

    int sums[2][4][4] = {};
    load_tile(x_tiles[0], a.x, first_row, a.rows, 0, a.in_features);
    load_tile(weight_tiles[0], a.weight, first_feature, a.out_features, 0, a.in_features);
    for (int k = 0, stage = 0; k < a.in_features; k += kTile, stage ^= 1) {
        cp_async_commit();
        cp_async_wait<0>();
        __syncthreads();  // these tiles have arrived, and every warp is done with the other stage
        if (k + kTile < a.in_features) {
            load_tile(x_tiles[stage ^ 1], a.x, first_row, a.rows, k + kTile, a.in_features);
            load_tile(weight_tiles[stage ^ 1], a.weight, first_feature, a.out_features, k + kTile, a.in_features);
        }

        uint32_t weight[4][4];  // of 8 features each: the tile's four chunks of 16 columns
#pragma unroll
        for (int n = 0; n < 4; ++n) {
            ldmatrix_x4(weight[n], weight_tiles[stage] + swizzled(warp_feature + n * 8 + (lane & 7), lane / 8));
        }
#pragma unroll
        for (int half = 0; half < 2; ++half) {
#pragma unroll
            for (int m = 0; m < 2; ++m) {
                uint32_t x[4];
                ldmatrix_x4(x, x_tiles[stage] + swizzled(warp_row + m * 16 + (lane & 15), half * 2 + lane / 16));
#pragma unroll
                for (int n = 0; n < 4; ++n) {
                    mma_int8(sums[m][n], x, weight[n][2 * half], weight[n][2 * half + 1]);
                }
            }
        }
    }

#pragma unroll
    for (int n = 0; n < 4; ++n) {
        const int feature = first_feature + warp_feature + n * 8 + (lane & 3) * 2;
        if (feature >= a.out_features) continue;
        const float2 scale = *reinterpret_cast<const float2*>(a.scale + feature);
        const float2 bias = *reinterpret_cast<const float2*>(a.bias + feature);
#pragma unroll
        for (int m = 0; m < 4; ++m) {  // rows of 8 apart
            const int row = first_row + warp_row + m * 8 + lane / 4;
            if (row >= a.rows) continue;
            const int* sum = &sums[m / 2][n][m % 2 * 2];
            float first = fmaf(static_cast<float>(sum[0]), scale.x, bias.x);
            float second = fmaf(static_cast<float>(sum[1]), scale.y, bias.y);
            if (a.gelu == SWIN_GELU) {
                first = gelu(first);
                second = gelu(second);
            } else if (a.gelu == SWIN_TANH_GELU) {
                first = tanh_gelu(first);
                second = tanh_gelu(second);
            }
            const long long at = static_cast<long long>(row) * a.out_features + feature;
            if (a.residual != nullptr) {
                const float2 addend
                    = __half22float2(*reinterpret_cast<const __half2*>(static_cast<const __half*>(a.residual) + at));
                first += addend.x;
                second += addend.y;
            }
            if (a.quantized) {
                *reinterpret_cast<uint16_t*>(static_cast<int8_t*>(a.y) + at)
                    = quantize_pair(first, second, a.inverse_y_scale);
            } else {
                *reinterpret_cast<__half2*>(static_cast<__half*>(a.y) + at) = __floats2half2_rn(first, second);
            }
        }
    }
}

int launch(const LinearInt8& a) {
    const dim3 blocks((a.rows + kTile - 1) / kTile, (a.out_features + kTile - 1) / kTile);
    linear_int8_kernel<<<blocks, kThreads, 0, a.stream>>>(a);
    return cudaGetLastError();
}

bool aligned16(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

}  // namespace
}  // namespace swin

int swin_linear_int8(const SwinLinearInt8* arguments, cudaStream_t stream) {
    using namespace swin;
    const SwinLinearInt8& given = *arguments;
    const auto features = [](int count) { return count > 0 && count <= SWIN_MAX_INT8_FEATURES && count % 16 == 0; };
    const bool shape
        = given.rows >= 0 && given.rows <= INT_MAX - 128 && features(given.in_features) && features(given.out_features);
    const bool act = given.gelu == SWIN_NO_GELU
        || (given.gelu > SWIN_NO_GELU && given.gelu <= SWIN_TANH_GELU && given.residual == nullptr);
    const bool attributes = act && given.y_scale >= 0;
    if (!shape || !attributes) return cudaErrorInvalidValue;
    if (given.rows == 0) return cudaSuccess;
    for (const void* pointer : {given.x, given.weight, static_cast<const void*>(given.scale),
             static_cast<const void*>(given.bias), static_cast<const void*>(given.y)}) {
        if (pointer == nullptr || !aligned16(pointer)) return cudaErrorInvalidValue;
    }
    if (!aligned16(given.residual)) return cudaErrorInvalidValue;

    LinearInt8 a{};
    a.x = static_cast<const int8_t*>(given.x);
    a.weight = static_cast<const int8_t*>(given.weight);
    a.scale = given.scale;
    a.bias = given.bias;
    a.residual = given.residual;
    a.y = given.y;
    a.rows = static_cast<int>(given.rows);
    a.in_features = given.in_features;
    a.out_features = given.out_features;
    a.gelu = given.gelu;
    a.quantized = given.y_scale > 0;
    a.inverse_y_scale = a.quantized ? 1.0F / given.y_scale : 0.0F;
    a.tile = given.tile;
    a.stream = stream;

    const Gpu gpu = current_gpu();
    const bool gelu_in_halves = a.gelu == SWIN_GELU && a.quantized;
    const bool sm90 = gpu.is_sm90() && linear_int8_sm90 != nullptr && a.out_features % 32 == 0
        && a.gelu != SWIN_TANH_GELU
        && (a.residual == nullptr || !a.quantized)
        && !(gelu_in_halves && (given.y_scale < kLeastScaleForHalves || given.y_scale > kMostScaleForHalves));
    if (!sm90 && a.tile != 0) return cudaErrorInvalidValue;
    return sm90 ? linear_int8_sm90(a, gpu.multiprocessors) : launch(a);
}
