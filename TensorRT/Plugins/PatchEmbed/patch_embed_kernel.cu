// Patch embedding in one kernel: from the image to normalised tokens.
//
//   nvcc -std=c++17 -O3 -arch=sm_90 -I.. -c patch_embed_kernel.cu
//
// A convolution whose stride is its size is a matrix product: a token is a patch of K = in_channels * patch_height *
// patch_width pixels times weight^T [K, channels]. Pixels below and right of the image are zeros. The image, sums, bias
// and LayerNorm are FP32.
//
// Three kernels:
//   plain_patch_embed        FP32 arithmetic: FP32 results and BF16 before sm_80, and whatever the others do not take.
//   tensor_core_patch_embed  FP16 results, and BF16 from sm_80 on: RGB, patches of 4 x 4, channels 32, 64, 96, 128 or
//                            192, image width a multiple of 8, aligned pointers. A warp makes 16 tokens, whole rows of
//                            which lie in its accumulators. Each factor is the sum of two 16-bit numbers (Split), so
//                            that the image, whose rounding would be most of a network's FP16 error, is not rounded.
//   fp32_patch_embed         FP32 results from sm_80 on: the same channels, patches of any size whose weights fit in
//                            shared memory. Each factor is the sum of two TF32 numbers (common/tf32.cuh).
#include "patch_embed_kernel.h"

#include <algorithm>
#include <climits>
#include <cstdint>
#include <type_traits>

#include "common/gpu.h"
#include "common/mma.cuh"
#include "common/rows.cuh"
#include "common/tf32.cuh"

namespace swin {
namespace {

struct PatchEmbedArguments {
    const float* x;
    const float* weight;
    const float* bias;
    const float* gamma;
    const float* beta;
    void* y;
    long long tokens;  // of all images
    int in_channels, height, width, patch_height, patch_width, channels;
    int rows, columns;  // of an image's tokens
    float epsilon;
};

// --- the plain kernel --------------------------------------------------------------------------------------------

constexpr int kPlainTokens = 32;

// The compiler reads pixels four at a time; past the last it must not find what another thread is writing.
__host__ __device__ constexpr int padded(int depth) { return (depth + 3) / 4 * 4; }
constexpr size_t kSharedBytes = 48 << 10;  // what a block has without asking for more

// A block makes TOKENS tokens: their pixels and then their channels lie in shared memory, a thread has a channel of all
// of them at a time, and a warp normalises a token. VEC, 4 or 1: weights loaded at once; it divides their number.
template <class T, int TOKENS, int VEC>
__global__ void __launch_bounds__(256) plain_patch_embed(const PatchEmbedArguments a) {
    extern __shared__ float4 shared[];
    const int patch_pixels = a.patch_height * a.patch_width;
    const int depth = a.in_channels * patch_pixels;
    float* pixels = reinterpret_cast<float*>(shared);  // [depth][TOKENS]
    float* rows = pixels + padded(depth) * TOKENS;  // [TOKENS][channels]
    const long long first_token = static_cast<long long>(blockIdx.x) * TOKENS;
    const int live = static_cast<int>(min(static_cast<long long>(TOKENS), a.tokens - first_token));
    const int tokens_of_image = a.rows * a.columns;

    for (int i = threadIdx.x; i < depth * TOKENS; i += blockDim.x) {
        const int k = i / TOKENS, token = i % TOKENS;
        const long long image = (first_token + token) / tokens_of_image;
        const int place = static_cast<int>((first_token + token) % tokens_of_image);
        const int channel = k / patch_pixels, pixel = k % patch_pixels;
        const long long row = static_cast<long long>(place / a.columns) * a.patch_height + pixel / a.patch_width;
        const long long column = static_cast<long long>(place % a.columns) * a.patch_width + pixel % a.patch_width;
        const long long at = ((image * a.in_channels + channel) * a.height + row) * a.width + column;
        pixels[i] = token < live && row < a.height && column < a.width ? a.x[at] : 0.0f;
    }
    __syncthreads();

    // Sums of kRun products are added to the running ones as a whole: fewer roundings one after the other.
    constexpr int kRun = 16;
    constexpr int STEP = TOKENS % 4 == 0 ? 4 : 1;
    for (int c = threadIdx.x; c < a.channels; c += blockDim.x) {
        float sum[TOKENS] = {};
        for (int start = 0; start < depth; start += kRun) {
            float run[TOKENS] = {};
            for (int k = start; k < min(start + kRun, depth); k += VEC) {
                float weight[VEC];
                load_parameters<VEC>(a.weight + static_cast<long long>(c) * depth, k, 0.0f, weight);
#pragma unroll
                for (int v = 0; v < VEC; ++v) {
#pragma unroll
                    for (int t = 0; t < TOKENS; t += STEP) {
                        float pixel[STEP];
                        unpack<float, STEP>(load_raw<float, STEP>(pixels + (k + v) * TOKENS + t), pixel);
#pragma unroll
                        for (int i = 0; i < STEP; ++i) run[t + i] = fmaf(weight[v], pixel[i], run[t + i]);
                    }
                }
            }
#pragma unroll
            for (int t = 0; t < TOKENS; ++t) sum[t] += run[t];
        }
        const float bias = __ldg(a.bias + c);
#pragma unroll
        for (int t = 0; t < TOKENS; ++t) rows[t * a.channels + c] = sum[t] + bias;
    }
    __syncthreads();

    const auto warp_sum = [](float value) {
        for (int offset = 1; offset < kWarp; offset *= 2) value += __shfl_xor_sync(0xffffffffu, value, offset);
        return value;
    };
    const int lane = threadIdx.x % kWarp;
    for (int t = threadIdx.x / kWarp; t < TOKENS; t += blockDim.x / kWarp) {
        const float* row = rows + t * a.channels;
        float sum = 0.0f, squares = 0.0f;
        for (int c = lane; c < a.channels; c += kWarp) sum += row[c];
        const float mean = warp_sum(sum) / a.channels;
        for (int c = lane; c < a.channels; c += kWarp) squares = fmaf(row[c] - mean, row[c] - mean, squares);
        const float scale = 1.0f / sqrtf(warp_sum(squares) / a.channels + a.epsilon);
        if (t >= live) continue;
        T* y = static_cast<T*>(a.y) + (first_token + t) * a.channels;
        for (int c = lane; c < a.channels; c += kWarp) {
            y[c] = from_float<T>(fmaf((row[c] - mean) * scale, __ldg(a.gamma + c), __ldg(a.beta + c)));
        }
    }
}

// Blocks of at most 256 threads, and no more warps than channels need.
template <class T, int TOKENS, int VEC>
int launch_plain(const PatchEmbedArguments& a, size_t floats_of_token, cudaStream_t stream) {
    const long long blocks = (a.tokens + TOKENS - 1) / TOKENS;
    if (blocks > INT_MAX) return cudaErrorInvalidValue;
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(static_cast<unsigned>(blocks));
    config.blockDim = dim3(a.channels >= 256 ? 256 : (a.channels + kWarp - 1) / kWarp * kWarp);
    config.dynamicSmemBytes = TOKENS * floats_of_token * sizeof(float);
    config.stream = stream;
    return cudaLaunchKernelEx(&config, plain_patch_embed<T, TOKENS, VEC>, a);
}

template <class T> int launch_plain(const PatchEmbedArguments& a, cudaStream_t stream) {
    const int depth = a.in_channels * a.patch_height * a.patch_width;
    const size_t floats = static_cast<size_t>(padded(depth)) + a.channels;
    if (depth % 4 == 0 && aligned16(a.weight) && kPlainTokens * floats * sizeof(float) <= kSharedBytes) {
        return launch_plain<T, kPlainTokens, 4>(a, floats, stream);
    }
    return launch_plain<T, 1, 1>(a, floats, stream);
}

// --- the tensor-core kernel --------------------------------------------------------------------------------------

// Products are m16n8k16 with A = 16 tokens, B = weight^T. Which token, pixel and channel a row or column of the
// fragments stands for is free, and chosen so that a thread moves 16 bytes at a time. With quad = lane / 4 and
// place = lane % 4:
//   A rows quad and quad + 8 are the neighbouring tokens 2 * quad and 2 * quad + 1; a step of depth 16 is one colour,
//     and columns 2 * place, + 1, + 8, + 9 are the four pixels of row `place` of the patch: a load of 16 bytes;
//   B columns of accumulator n are channels such that accumulators 4g to 4g + 3 give a thread the eight channels from
//     32 * g + 8 * place on of both tokens: one store of 16 bytes each.
constexpr int kColours = 3;
constexpr int kPatch = 4;
constexpr int kPixels = kPatch * kPatch;
constexpr int kTileTokens = 16;
constexpr int kWarps = 4;

// The moments of a token's channels, of which the four lanes of a quad hold COUNT each: row 2 quad + half of a tile's
// sums. Takes centre, the mean of a lane's own, from these.
template <int COUNT, int BLOCKS>
__device__ __forceinline__ Moments moments_about(float (&sums)[BLOCKS][4], int half, float centre) {
    float squares = 0.0F;
#pragma unroll
    for (int n = 0; n < BLOCKS; ++n) {
#pragma unroll
        for (int c = 2 * half; c < 2 * half + 2; ++c) {
            sums[n][c] -= centre;
            squares = fmaf(sums[n][c], sums[n][c], squares);
        }
    }
    return warp_moments<COUNT>({centre, squares}, 4);
}

__device__ __forceinline__ void read_8(const float* address, float (&value)[8]) {
#pragma unroll
    for (int i = 0; i < 8; i += 4) {
        const float4 part = *reinterpret_cast<const float4*>(address + i);
        value[i] = part.x;
        value[i + 1] = part.y;
        value[i + 2] = part.z;
        value[i + 3] = part.w;
    }
}

// Two FP32 numbers as a pair of high parts, rounded to T, and a pair of what that lost, rounded to T. For FP16 the
// numbers must be within its range: beyond 65504 the parts are infinite and their sum NaN.
template <class T> struct Split {
    uint32_t high, low;

    __device__ __forceinline__ Split(float first, float second) {
        high = Packed<T>::pack(first, second);
        const float2 rounded = Packed<T>::unpack(high);
        low = Packed<T>::pack(first - rounded.x, second - rounded.y);
    }
};

// The second bound, blocks of a multiprocessor, gives the compiler the registers that 16 tokens need.
template <class T, int GROUPS>
__global__ void __launch_bounds__(kWarp* kWarps, GROUPS <= 3 ? 3 : 2)
    tensor_core_patch_embed(const PatchEmbedArguments a) {
    using P = Packed<T>;
    constexpr int CHANNELS = 32 * GROUPS;
    constexpr int BLOCKS = 4 * GROUPS;  // accumulators, of 8 channels
    __shared__ uint2 weight[kColours][BLOCKS][kWarp];  // B fragments: high parts
    __shared__ uint2 weight_rest[kColours][BLOCKS][kWarp];  // and low parts
    __shared__ alignas(16) float parameters[3][CHANNELS];  // bias, gamma, beta
    const int lane = threadIdx.x % kWarp;
    const int quad = lane / 4, place = lane % 4;
    const int columns = a.columns, rows = a.rows;
    const long long plane = static_cast<long long>(a.height) * a.width;
    const int tiles = static_cast<int>((a.tokens + kTileTokens - 1) / kTileTokens);
    const int stride = gridDim.x * kWarps;
    T* y = static_cast<T*>(a.y);

    // The pixels of tokens 2 * quad and 2 * quad + 1 of a tile; past the last tile or token those of the last.
    const auto load = [&](int tile, float4(&pixels)[kColours][2]) {
        const long long wanted = static_cast<long long>(tile) * kTileTokens + 2 * quad;
        const unsigned token = static_cast<unsigned>(min(wanted, a.tokens - 2));
        const unsigned token_row = token / columns, column = token - token_row * columns;
        const unsigned image = token_row / rows, row = token_row - image * rows;
        const long long pixel_row = static_cast<long long>(row) * kPatch + place;
        const bool inside = pixel_row < a.height;
        const float* from = a.x + image * kColours * plane + pixel_row * a.width + column * kPatch;
#pragma unroll
        for (int colour = 0; colour < kColours; ++colour) {
            const float4* both = reinterpret_cast<const float4*>(from + colour * plane);
            pixels[colour][0] = inside ? __ldg(both) : float4{};
            pixels[colour][1] = inside ? __ldg(both + 1) : float4{};
        }
    };

    float4 next[kColours][2];
    int tile = blockIdx.x * kWarps + threadIdx.x / kWarp;
    load(tile, next);

    for (int i = threadIdx.x; i < kColours * BLOCKS * kWarp; i += blockDim.x) {
        const int holder = i % kWarp, n = i / kWarp % BLOCKS, colour = i / kWarp / BLOCKS;
        const int slot = holder / 4;
        const int channel = n / 4 * 32 + slot / 2 * 8 + n % 4 * 2 + slot % 2;
        const float4 w = __ldg(
            reinterpret_cast<const float4*>(a.weight + (channel * kColours + colour) * kPixels + holder % 4 * kPatch));
        const Split<T> left(w.x, w.y), right(w.z, w.w);
        weight[colour][n][holder] = make_uint2(left.high, right.high);
        weight_rest[colour][n][holder] = make_uint2(left.low, right.low);
    }
    for (int i = threadIdx.x; i < CHANNELS; i += blockDim.x) {
        parameters[0][i] = __ldg(a.bias + i);
        parameters[1][i] = __ldg(a.gamma + i);
        parameters[2][i] = __ldg(a.beta + i);
    }
    __syncthreads();

    for (; tile < tiles; tile += stride) {
        float4 pixels[kColours][2];
#pragma unroll
        for (int colour = 0; colour < kColours; ++colour) {
            pixels[colour][0] = next[colour][0];
            pixels[colour][1] = next[colour][1];
        }
        load(tile + stride, next);

        float sums[BLOCKS][4];
#pragma unroll
        for (int n = 0; n < BLOCKS; ++n) {
            const float2 bias = *reinterpret_cast<const float2*>(&parameters[0][n / 4 * 32 + place * 8 + n % 4 * 2]);
            sums[n][0] = sums[n][2] = bias.x;
            sums[n][1] = sums[n][3] = bias.y;
        }
#pragma unroll
        for (int colour = 0; colour < kColours; ++colour) {
            const float4 first = pixels[colour][0], second = pixels[colour][1];
            const Split<T> a0(first.x, first.y), a1(second.x, second.y), a2(first.z, first.w), a3(second.z, second.w);
            const uint32_t high[4] = {a0.high, a1.high, a2.high, a3.high};
            const uint32_t low[4] = {a0.low, a1.low, a2.low, a3.low};
#pragma unroll
            for (int n = 0; n < BLOCKS; ++n) {  // low times low is below FP32's own rounding
                const uint2 w = weight[colour][n][lane], rest = weight_rest[colour][n][lane];
                P::mma(sums[n], low, w.x, w.y, sums[n]);
                P::mma(sums[n], high, rest.x, rest.y, sums[n]);
                P::mma(sums[n], high, w.x, w.y, sums[n]);
            }
        }

        // A token's channels lie in the four lanes of a quad, as a row in a group of four.
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            constexpr int COUNT = 8 * GROUPS;
            float sum = 0.0F;
#pragma unroll
            for (int n = 0; n < BLOCKS; ++n) sum += sums[n][2 * half] + sums[n][2 * half + 1];
            const float centre = divided_by<COUNT>(sum);
            const Moments all = moments_about<COUNT>(sums, half, centre);
            const float scale = rsqrtf(fmaf(all.squares, 1.0f / CHANNELS, a.epsilon));
            const float offset = (centre - all.mean) * scale;

            const long long token = static_cast<long long>(tile) * kTileTokens + 2 * quad + half;
            if (token < a.tokens) {
                T* to = y + token * CHANNELS + place * 8;
#pragma unroll
                for (int g = 0; g < GROUPS; ++g) {
                    float gamma[8], beta[8], out[8];
                    read_8(&parameters[1][32 * g + place * 8], gamma);
                    read_8(&parameters[2][32 * g + place * 8], beta);
#pragma unroll
                    for (int c = 0; c < 8; ++c) {
                        const float normalised = fmaf(sums[4 * g + c / 2][2 * half + c % 2], scale, offset);
                        out[c] = fmaf(normalised, gamma[c], beta[c]);
                    }
                    store_raw<T, 8>(to + 32 * g, pack<T, 8>(out));
                }
            }
        }
    }
}

template <class T, int GROUPS>
int launch_tensor_core(const PatchEmbedArguments& a, int multiprocessors, cudaStream_t stream) {
    constexpr int kThreads = kWarp * kWarps;
    static const int resident_blocks = [] {
        int blocks = 0;
        cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, tensor_core_patch_embed<T, GROUPS>, kThreads, 0);
        return blocks > 0 ? blocks : 1;
    }();
    // As many blocks as run at once: each prepares the weight once and loads the next tile while it computes one.
    const long long wanted = (a.tokens + kTileTokens * kWarps - 1) / (kTileTokens * kWarps);
    const long long resident = static_cast<long long>(multiprocessors) * resident_blocks;
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(static_cast<unsigned>(wanted < resident ? wanted : resident));
    config.blockDim = dim3(kThreads);
    config.stream = stream;
    return cudaLaunchKernelEx(&config, tensor_core_patch_embed<T, GROUPS>, a);
}

// first_major: the compute capability from which on tensor cores multiply T.
template <class T> int launch_16_bit(const PatchEmbedArguments& a, int first_major, cudaStream_t stream) {
    const Gpu gpu = current_gpu();
    const bool fits = gpu.major >= first_major && a.in_channels == kColours
        && a.patch_height == kPatch && a.patch_width == kPatch && a.width % 8 == 0 && aligned16(a.x)
        && aligned16(a.weight) && aligned16(a.y);
    switch (fits ? a.channels : 0) {
    case 32: return launch_tensor_core<T, 1>(a, gpu.multiprocessors, stream);
    case 64: return launch_tensor_core<T, 2>(a, gpu.multiprocessors, stream);
    case 96: return launch_tensor_core<T, 3>(a, gpu.multiprocessors, stream);
    case 128: return launch_tensor_core<T, 4>(a, gpu.multiprocessors, stream);
    case 192: return launch_tensor_core<T, 6>(a, gpu.multiprocessors, stream);
    default: return launch_plain<T>(a, stream);
    }
}

// --- FP32 on tensor cores --------------------------------------------------------------------------------------------

// Products are m16n8k8 (tf32.cuh) with A = 16 tokens, B = weight^T, K in steps of 8. With quad = lane / 4 and place =
// lane % 4:
//   A rows quad and quad + 8 are the neighbouring tokens 2 * quad and 2 * quad + 1, as above. A lane has two of the
//     step's elements of a patch of each, 2 * place and 2 * place + 1; or, of RGB patches of 4 x 4 in aligned rows
//     (IN_FOURS), pixels 0 and 1, or 2 and 3, of row `place` of the patch: a load of 16 bytes for two steps;
//   B columns of accumulators 2g and 2g + 1 are channels such that these give a thread the four channels from 16 * g +
//     4 * place on of both tokens: one store of 16 bytes each.
constexpr int kStepK = 8;
constexpr int kStepsOfColour = kPixels / kStepK;

// The element of a patch that lane `place` has in a step: the first or the second of the two.
template <bool IN_FOURS> __host__ __device__ constexpr int element_of(int step, int place, int second) {
    return IN_FOURS ? step / kStepsOfColour * kPixels + place * kPatch + step % kStepsOfColour * 2 + second
                    : step * kStepK + place * 2 + second;
}
__host__ __device__ constexpr int channel_of(int accumulator, int column) {
    return accumulator / 2 * 16 + column / 2 * 4 + accumulator % 2 * 2 + column % 2;
}

// Shared memory: B fragments of each step and accumulator, the high parts of a lane and then the low ones; bias, gamma
// and beta; where an element of a patch lies, as a distance in the image, its row and its column in the patch.
struct Fp32Layout {
    int steps, channels;
    bool in_fours;
    __host__ __device__ int fragments() const { return steps * (channels / 8) * kWarp; }
    __host__ __device__ size_t bytes() const {
        return fragments() * sizeof(uint4) + 3 * sizeof(float) * channels
            + (in_fours ? 0 : steps * kStepK * sizeof(int3));
    }
};
constexpr size_t kMostSharedBytes = 99 << 10;  // that every GPU from sm_80 on lets a block have

// Adds a step's products to a tile's sums. x: of the two tokens, their first elements and then their second ones.
template <int BLOCKS>
__device__ __forceinline__ void add_step(
    float (&sums)[BLOCKS][4], const float (&x)[4], const uint4* fragments, int step) {
    const SplitFragment<4> a(x);
    const uint4* const of_lane = fragments + step * BLOCKS * kWarp + threadIdx.x % kWarp;
#pragma unroll
    for (int n = 0; n < BLOCKS; ++n) {
        const uint4 parts = of_lane[n * kWarp];
        SplitFragment<2> b;
        b.high[0] = parts.x, b.high[1] = parts.y, b.low[0] = parts.z, b.low[1] = parts.w;
        add_product(sums[n], a, b);
    }
}

template <int GROUPS, bool IN_FOURS>
__global__ void __launch_bounds__(kWarp* kWarps, GROUPS <= 3 ? 3 : 2) fp32_patch_embed(const PatchEmbedArguments a) {
    constexpr int CHANNELS = 32 * GROUPS;
    constexpr int BLOCKS = 4 * GROUPS;  // accumulators, of 8 channels
    extern __shared__ uint4 fragments[];
    const int patch_pixels = a.patch_height * a.patch_width, depth = a.in_channels * patch_pixels;
    const Fp32Layout layout{(depth + kStepK - 1) / kStepK, CHANNELS, IN_FOURS};
    float* const parameters = reinterpret_cast<float*>(fragments + layout.fragments());  // [3][CHANNELS]
    int3* const elements = reinterpret_cast<int3*>(parameters + 3 * CHANNELS);
    const int lane = threadIdx.x % kWarp;
    const int quad = lane / 4, place = lane % 4;
    const int plane = a.height * a.width;
    const int tiles = static_cast<int>((a.tokens + kTileTokens - 1) / kTileTokens);
    const int stride = gridDim.x * kWarps;
    float* const y = static_cast<float*>(a.y);

    // Where a token's patch begins; past the last token the last one's.
    struct Patch {
        const float* from;
        int rows, columns;  // of it that lie in the image
    };
    const auto patch_of = [&](long long wanted) {
        const auto token = static_cast<unsigned>(min(wanted, a.tokens - 1));
        const unsigned token_row = token / a.columns, column = (token - token_row * a.columns) * a.patch_width;
        const unsigned image = token_row / a.rows, row = (token_row - image * a.rows) * a.patch_height;
        const float* const from = a.x + static_cast<long long>(image) * a.in_channels * plane
            + static_cast<long long>(row) * a.width + column;
        return Patch{from, a.height - static_cast<int>(row), a.width - static_cast<int>(column)};
    };
    const auto first_token = [&](int tile) { return static_cast<long long>(tile) * kTileTokens + 2 * quad; };

    // Where rows are whole fours, and tokens pairs of a row: this lane's pixels of both tokens, a colour at a time.
    struct Row {
        const float* from;
        bool inside;
        __device__ void load(float4 (&pixels)[2], long long distance) const {
            const auto* const both = reinterpret_cast<const float4*>(from + distance);
            pixels[0] = inside ? __ldg(both) : float4{};
            pixels[1] = inside ? __ldg(both + 1) : float4{};
        }
    };
    const auto row_of = [&](int tile) {
        const Patch patch = patch_of(min(first_token(tile), a.tokens - 2));
        return Row{patch.from + static_cast<long long>(place) * a.width, place < patch.rows};
    };

    int tile = blockIdx.x * kWarps + threadIdx.x / kWarp;
    float4 pixels[kColours][2];
    if constexpr (IN_FOURS) {
        const Row row = row_of(tile);
#pragma unroll
        for (int colour = 0; colour < kColours; ++colour) {
            row.load(pixels[colour], static_cast<long long>(colour) * plane);
        }
    }

#pragma unroll 6  // memory answers late: several at once
    for (int i = threadIdx.x; i < layout.fragments(); i += kWarp * kWarps) {
        const int holder = i % kWarp, n = i / kWarp % BLOCKS, step = i / kWarp / BLOCKS;
        const float* const weight = a.weight + static_cast<long long>(channel_of(n, holder / 4)) * depth;
        float pair[2];
#pragma unroll
        for (int second = 0; second < 2; ++second) {
            const int element = element_of<IN_FOURS>(step, holder % 4, second);
            pair[second] = element < depth ? __ldg(weight + element) : 0.0F;
        }
        const SplitFragment<2> b(pair);
        fragments[i] = make_uint4(b.high[0], b.high[1], b.low[0], b.low[1]);
    }
    for (int i = threadIdx.x; i < CHANNELS; i += blockDim.x) {
        parameters[i] = __ldg(a.bias + i);
        parameters[CHANNELS + i] = __ldg(a.gamma + i);
        parameters[2 * CHANNELS + i] = __ldg(a.beta + i);
    }
    if constexpr (!IN_FOURS) {
        for (int i = threadIdx.x; i < layout.steps * kStepK; i += blockDim.x) {
            const int colour = i / patch_pixels, pixel = i % patch_pixels;
            const int row = pixel / a.patch_width, column = pixel % a.patch_width;
            // Past the last element: no row of an image.
            elements[i] = i < depth ? make_int3(colour * plane + row * a.width + column, row, column)
                                    : make_int3(0, INT_MAX, 0);
        }
    }
    __syncthreads();

    for (; tile < tiles; tile += stride) {
        float sums[BLOCKS][4] = {};
        if constexpr (IN_FOURS) {
            const Row next = row_of(tile + stride);
            // Real loops: unrolled, the weights of all steps would be read at once, into more registers than there are.
#pragma unroll 1
            for (int colour = 0; colour < kColours; ++colour) {
                const float4 one = pixels[0][0], other = pixels[0][1];
#pragma unroll
                for (int i = 0; i < 2; ++i) {
                    pixels[0][i] = pixels[1][i];
                    pixels[1][i] = pixels[2][i];
                }
                next.load(pixels[2], static_cast<long long>(colour) * plane);
#pragma unroll 1
                for (int half = 0; half < kStepsOfColour; ++half) {
                    const float x[4] = {half == 0 ? one.x : one.z, half == 0 ? other.x : other.z,
                        half == 0 ? one.y : one.w, half == 0 ? other.y : other.w};
                    add_step(sums, x, fragments, kStepsOfColour * colour + half);
                }
            }
        } else {
            const Patch both[2] = {patch_of(first_token(tile)), patch_of(first_token(tile) + 1)};
            for (int step = 0; step < layout.steps; ++step) {
                float x[4];
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    const int3 element = elements[element_of<IN_FOURS>(step, place, i / 2)];
                    const Patch& patch = both[i % 2];
                    const bool inside = element.y < patch.rows && element.z < patch.columns;
                    x[i] = inside ? __ldg(patch.from + element.x) : 0.0F;
                }
                add_step(sums, x, fragments, step);
            }
        }

        // A token's channels lie in the four lanes of a quad, as a row in a group of four.
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            constexpr int COUNT = 8 * GROUPS;
            float sum = 0.0F;
#pragma unroll
            for (int n = 0; n < BLOCKS; ++n) {
                const float2 bias = *reinterpret_cast<const float2*>(parameters + channel_of(n, 2 * place));
                sums[n][2 * half] += bias.x;
                sums[n][2 * half + 1] += bias.y;
                sum += sums[n][2 * half] + sums[n][2 * half + 1];
            }
            const float centre = divided_by<COUNT>(sum);
            const Moments all = moments_about<COUNT>(sums, half, centre);
            const float scale = 1.0F / sqrtf(fmaf(all.squares, 1.0F / CHANNELS, a.epsilon));
            const float offset = centre - all.mean;

            const long long token = first_token(tile) + half;
            if (token < a.tokens) {
#pragma unroll
                for (int n = 0; n < BLOCKS; n += 2) {
                    const int channel = channel_of(n, 2 * place);
                    const float4 gamma = *reinterpret_cast<const float4*>(parameters + CHANNELS + channel);
                    const float4 beta = *reinterpret_cast<const float4*>(parameters + 2 * CHANNELS + channel);
                    const auto normalised = [&](int i, int c) { return (sums[n + i][2 * half + c] + offset) * scale; };
                    *reinterpret_cast<float4*>(y + token * CHANNELS + channel) = make_float4(
                        fmaf(normalised(0, 0), gamma.x, beta.x), fmaf(normalised(0, 1), gamma.y, beta.y),
                        fmaf(normalised(1, 0), gamma.z, beta.z), fmaf(normalised(1, 1), gamma.w, beta.w));
                }
            }
        }
    }
}

template <int GROUPS, bool IN_FOURS>
int launch_fp32(const PatchEmbedArguments& a, const Fp32Layout& layout, int multiprocessors, cudaStream_t stream) {
    constexpr int kThreads = kWarp * kWarps;
    constexpr auto kKernel = fp32_patch_embed<GROUPS, IN_FOURS>;
    const cudaError_t error = allow_shared_memory<kKernel>(static_cast<int>(layout.bytes()));
    if (error != cudaSuccess) return error;
    int blocks_of_multiprocessor = 0;
    cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks_of_multiprocessor, kKernel, kThreads, layout.bytes());
    const long long wanted = (a.tokens + kTileTokens * kWarps - 1) / (kTileTokens * kWarps);
    const long long resident = static_cast<long long>(multiprocessors) * std::max(blocks_of_multiprocessor, 1);
    kKernel<<<static_cast<unsigned>(std::min(wanted, resident)), kThreads, layout.bytes(), stream>>>(a);
    return cudaGetLastError();
}

int launch_float(const PatchEmbedArguments& a, cudaStream_t stream) {
    const Gpu gpu = current_gpu();
    const int depth = a.in_channels * a.patch_height * a.patch_width;
    const bool in_fours = a.in_channels == kColours && a.patch_height == kPatch && a.patch_width == kPatch
        && a.width % 8 == 0 && aligned16(a.x);
    const Fp32Layout layout{(depth + kStepK - 1) / kStepK, a.channels, in_fours};
    const bool fits = gpu.major >= 8 && layout.bytes() <= kMostSharedBytes && aligned16(a.y)
        && static_cast<long long>(a.in_channels) * a.height * a.width <= INT_MAX;
    const auto launch = [&](auto groups) {
        constexpr int GROUPS = decltype(groups)::value;
        return in_fours ? launch_fp32<GROUPS, true>(a, layout, gpu.multiprocessors, stream)
                        : launch_fp32<GROUPS, false>(a, layout, gpu.multiprocessors, stream);
    };
    switch (fits ? a.channels : 0) {
    case 32: return launch(std::integral_constant<int, 1>{});
    case 64: return launch(std::integral_constant<int, 2>{});
    case 96: return launch(std::integral_constant<int, 3>{});
    case 128: return launch(std::integral_constant<int, 4>{});
    case 192: return launch(std::integral_constant<int, 6>{});
    default: return launch_plain<float>(a, stream);
    }
}

}  // namespace
}  // namespace swin

int swin_patch_embed(const SwinPatchEmbed* arguments, cudaStream_t stream) {
    const SwinPatchEmbed& given = *arguments;
    const auto valid_axis = [](int side, int patch) { return side > 0 && patch > 0 && patch <= SWIN_MAX_PATCH; };
    const bool valid = given.batch >= 0 && given.in_channels > 0 && given.in_channels <= SWIN_MAX_PATCH
        && valid_axis(given.height, given.patch_height) && valid_axis(given.width, given.patch_width)
        && (given.ceil == 0 || given.ceil == 1) && given.channels > 0 && given.channels <= SWIN_MAX_WIDTH
        && static_cast<long long>(given.in_channels) * given.patch_height * given.patch_width <= SWIN_MAX_PATCH;
    if (!valid) return cudaErrorInvalidValue;
    const auto tokens_along
        = [&](int side, int patch) { return side / patch + (given.ceil == 1 && side % patch != 0); };
    const int rows = tokens_along(given.height, given.patch_height);
    const int columns = tokens_along(given.width, given.patch_width);
    const long long tokens_of_image = static_cast<long long>(rows) * columns;
    if (tokens_of_image > INT_MAX || given.batch * tokens_of_image > INT_MAX) return cudaErrorInvalidValue;
    if (tokens_of_image == 0) return cudaErrorInvalidValue;  // an image smaller than a patch
    if (given.batch == 0) return cudaSuccess;
    for (const void* pointer : {static_cast<const void*>(given.x), static_cast<const void*>(given.weight),
             static_cast<const void*>(given.bias), static_cast<const void*>(given.gamma),
             static_cast<const void*>(given.beta), static_cast<const void*>(given.y)}) {
        if (pointer == nullptr) return cudaErrorInvalidValue;
    }
    swin::PatchEmbedArguments a{};
    a.x = given.x;
    a.weight = given.weight;
    a.bias = given.bias;
    a.gamma = given.gamma;
    a.beta = given.beta;
    a.y = given.y;
    a.tokens = given.batch * tokens_of_image;
    a.in_channels = given.in_channels;
    a.height = given.height;
    a.width = given.width;
    a.patch_height = given.patch_height;
    a.patch_width = given.patch_width;
    a.rows = rows;
    a.columns = columns;
    a.channels = given.channels;
    a.epsilon = given.epsilon;
    switch (given.y_type) {
    case SWIN_FP32: return swin::launch_float(a, stream);
    case SWIN_FP16: return swin::launch_16_bit<__half>(a, 7, stream);
    case SWIN_BF16: return swin::launch_16_bit<__nv_bfloat16>(a, 8, stream);
    default: return cudaErrorInvalidValue;
    }
}
