// Quantisation alone: FP16 to INT8, 8 elements a thread.
#include <climits>

#include "common/quantize.cuh"
#include "common/vector_io.cuh"
#include "layernorm_int8_kernel.h"

namespace swin {
namespace {

constexpr int kThreads = 256;

// VEC elements of FP16 as INT8.
template <int VEC> __device__ __forceinline__ void quantize_vector(const __half* x, int8_t* y, float inverse_scale) {
    float value[VEC];
    unpack<__half, VEC>(load_raw<__half, VEC>(x), value);
    store_quantized<VEC>(y, value, inverse_scale);
}

// Blocks of kThreads * VEC elements; the last vector of all may be a short one, taken element by element.
template <int VEC>
__global__ void __launch_bounds__(kThreads)
    quantize_kernel(const __half* __restrict__ x, int8_t* __restrict__ y, long long count, float inverse_scale) {
    const long long first = (static_cast<long long>(blockIdx.x) * kThreads + threadIdx.x) * VEC;
    if (first + VEC <= count) {
        quantize_vector<VEC>(x + first, y + first, inverse_scale);
    } else {
        for (long long i = first; i < count; ++i) quantize_vector<1>(x + i, y + i, inverse_scale);
    }
}

template <int VEC> int launch(const void* x, void* y, long long count, float inverse_scale, cudaStream_t stream) {
    const long long blocks = (count + kThreads * VEC - 1) / (kThreads * VEC);
    if (blocks > INT_MAX) return cudaErrorInvalidValue;
    quantize_kernel<VEC><<<static_cast<unsigned>(blocks), kThreads, 0, stream>>>(
        static_cast<const __half*>(x), static_cast<int8_t*>(y), count, inverse_scale);
    return cudaGetLastError();
}

}  // namespace
}  // namespace swin

int swin_quantize(const void* x, void* y_q, long long count, float y_scale, cudaStream_t stream) {
    if (count == 0) return cudaSuccess;
    if (count < 0 || x == nullptr || y_q == nullptr || !(y_scale > 0)) return cudaErrorInvalidValue;
    const float inverse_scale = 1.0F / y_scale;
    return swin::aligned16(x) && swin::aligned16(y_q) ? swin::launch<8>(x, y_q, count, inverse_scale, stream)
                                                      : swin::launch<1>(x, y_q, count, inverse_scale, stream);
}
