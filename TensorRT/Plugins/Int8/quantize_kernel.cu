// Quantisation by itself: FP16 to INT8, 8 elements a thread.
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

int swin_quantize(const SwinQuantize* arguments, cudaStream_t stream) {
    const SwinQuantize& a = *arguments;
    if (a.count == 0) return cudaSuccess;
    if (a.count < 0 || a.x == nullptr || a.y_q == nullptr || !(a.y_scale > 0)) return cudaErrorInvalidValue;
    const auto launch = swin::aligned16(a.x) && swin::aligned16(a.y_q) ? swin::launch<8> : swin::launch<1>;
    return launch(a.x, a.y_q, a.count, 1.0F / a.y_scale, stream);
}
