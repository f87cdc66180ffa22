#include "linear_kernel.h"

#include <algorithm>
#include <climits>
#include <map>
#include <mutex>
#include <new>
#include <tuple>

#include <cublasLt.h>

#include "common/gelu.cuh"
#include "common/gpu.h"
#include "common/vector_io.cuh"
#include "linear_fp32_kernel.h"
#include "linear_sm90_kernel.h"

namespace swin {
namespace {

struct Linear : SwinLinear { cudaStream_t stream; };

// x * Phi(x), exact also in the tail where 1 + erf cancels.
__device__ __forceinline__ float exact_gelu(float x) { return x * normcdff(x); }

// --- what follows the bias, in a second pass over y ------------------------------------------------------------------

// Not in cuBLASLt's epilogue: its GELU is the tanh form, and in 16-bit types it rounds the sums with the residual
// before it adds the bias.
template <class T, int VEC>
__global__ void __launch_bounds__(256) gelu_or_add_kernel(T* y, const T* residual, long long vectors) {
    const long long step = static_cast<long long>(gridDim.x) * blockDim.x;
    for (long long i = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x; i < vectors; i += step) {
        float value[VEC], addend[VEC];
        unpack<T, VEC>(load_raw<T, VEC>(y + i * VEC), value);
        if (residual != nullptr) unpack<T, VEC>(load_raw<T, VEC>(residual + i * VEC), addend);
#pragma unroll
        for (int v = 0; v < VEC; ++v) value[v] = residual != nullptr ? value[v] + addend[v] : exact_gelu(value[v]);
        store_raw<T, VEC>(y + i * VEC, pack<T, VEC>(value));
    }
}

template <class T, int VEC> void launch_gelu_or_add(const Linear& a) {
    const long long vectors = a.rows * a.out_features / VEC;
    const auto blocks = static_cast<unsigned>(std::min((vectors + 255) / 256, 1LL << 30));
    gelu_or_add_kernel<T, VEC>
        <<<blocks, 256, 0, a.stream>>>(static_cast<T*>(a.y), static_cast<const T*>(a.residual), vectors);
}

// The tanh form of GELU is rare enough for a pass of its own after any product.
template <class T, int VEC> __global__ void __launch_bounds__(256) tanh_gelu_kernel(T* y, long long vectors) {
    const long long step = static_cast<long long>(gridDim.x) * blockDim.x;
    for (long long i = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x; i < vectors; i += step) {
        float value[VEC];
        unpack<T, VEC>(load_raw<T, VEC>(y + i * VEC), value);
#pragma unroll
        for (int v = 0; v < VEC; ++v) value[v] = tanh_gelu(value[v]);
        store_raw<T, VEC>(y + i * VEC, pack<T, VEC>(value));
    }
}

template <class T, int VEC> void launch_tanh_gelu(const Linear& a) {
    const long long vectors = a.rows * a.out_features / VEC;
    const auto blocks = static_cast<unsigned>(std::min((vectors + 255) / 256, 1LL << 30));
    tanh_gelu_kernel<T, VEC><<<blocks, 256, 0, a.stream>>>(static_cast<T*>(a.y), vectors);
}

template <class T> int run_tanh_gelu(const Linear& a) {
    const bool vectors = aligned16(a.y) && a.rows * a.out_features % kVector<T> == 0;
    vectors ? launch_tanh_gelu<T, kVector<T>>(a) : launch_tanh_gelu<T, 1>(a);
    return cudaGetLastError();
}

// --- the product where cuBLASLt has no algorithm -------------------------------------------------------------------

constexpr int kTile = 16;

// A thread an element of y; a block 16 x 16 of them, with as much of x and weight in shared memory at a time.
template <class T> __global__ void __launch_bounds__(kTile* kTile) plain_linear_kernel(const Linear a) {
    __shared__ float x_tile[kTile][kTile], weight_tile[kTile][kTile + 1];
    const T* x = static_cast<const T*>(a.x);
    const T* weight = static_cast<const T*>(a.weight);
    const int column = threadIdx.x, line = threadIdx.y;
    const long long row = static_cast<long long>(blockIdx.x) * kTile + line;
    const int feature = blockIdx.y * kTile + column;
    const int loaded_feature = blockIdx.y * kTile + line;

    float sum = 0.0f;
    for (int first = 0; first < a.in_features; first += kTile) {
        const int k = first + column;
        const bool inside = k < a.in_features;
        x_tile[line][column] = inside && row < a.rows ? to_float(x[row * a.in_features + k]) : 0.0f;
        weight_tile[line][column] = inside && loaded_feature < a.out_features
            ? to_float(weight[static_cast<long long>(loaded_feature) * a.in_features + k])
            : 0.0f;
        __syncthreads();
        float partial = 0.0f;  // sums of sums round less than one running sum
#pragma unroll
        for (int i = 0; i < kTile; ++i) partial = fmaf(x_tile[line][i], weight_tile[column][i], partial);
        sum += partial;
        __syncthreads();
    }

    if (row >= a.rows || feature >= a.out_features) return;
    const long long at = row * a.out_features + feature;
    float value = sum + to_float(static_cast<const T*>(a.bias)[feature]);
    if (a.gelu) value = exact_gelu(value);
    if (a.residual != nullptr) value += to_float(static_cast<const T*>(a.residual)[at]);
    static_cast<T*>(a.y)[at] = from_float<T>(value);
}

template <class T> void launch_plain(const Linear& a) {
    const dim3 blocks(static_cast<unsigned>((a.rows + kTile - 1) / kTile), (a.out_features + kTile - 1) / kTile);
    plain_linear_kernel<T><<<blocks, dim3(kTile, kTile), 0, a.stream>>>(a);
}

// --- cuBLASLt --------------------------------------------------------------------------------------------------------

struct CublasFailure { cublasStatus_t status; };

void check(cublasStatus_t status) {
    if (status != CUBLAS_STATUS_SUCCESS) throw CublasFailure{status};
}

template <class Value>
void set(cublasLtMatmulDescOpaque_t& operation, cublasLtMatmulDescAttributes_t attribute, const Value& value) {
    check(cublasLtMatmulDescSetAttribute(&operation, attribute, &value, sizeof(value)));
}

template <class Value>
void set(
    cublasLtMatmulPreferenceOpaque_t& preference, cublasLtMatmulPreferenceAttributes_t attribute, const Value& value) {
    check(cublasLtMatmulPreferenceSetAttribute(&preference, attribute, &value, sizeof(value)));
}

// The largest power of two, at most 256, that divides every address; null divides by all.
template <class... Pointer> uint32_t alignment(Pointer... pointer) {
    const uintptr_t bits = (reinterpret_cast<uintptr_t>(pointer) | ... | uintptr_t{256});
    return static_cast<uint32_t>(bits & -bits);
}

// cuBLASLt is column-major, where a row-major [m, n] is an [n, m]: y^T = (weight^T)^T x^T. The descriptors live on the
// stack; nothing is allocated.
struct Product {
    cublasLtMatmulDescOpaque_t operation;
    cublasLtMatrixLayoutOpaque_t weight, x, y;

    explicit Product(const Linear& a) {
        const cudaDataType type = a.type == SWIN_FP32 ? CUDA_R_32F : a.type == SWIN_FP16 ? CUDA_R_16F : CUDA_R_16BF;
        check(cublasLtMatmulDescInit(&operation, CUBLAS_COMPUTE_32F, CUDA_R_32F));
        set(operation, CUBLASLT_MATMUL_DESC_TRANSA, CUBLAS_OP_T);
        set(operation, CUBLASLT_MATMUL_DESC_EPILOGUE, CUBLASLT_EPILOGUE_BIAS);
        set(operation, CUBLASLT_MATMUL_DESC_BIAS_POINTER, a.bias);
        check(cublasLtMatrixLayoutInit(&weight, type, a.in_features, a.out_features, a.in_features));
        check(cublasLtMatrixLayoutInit(&x, type, a.in_features, a.rows, a.in_features));
        check(cublasLtMatrixLayoutInit(&y, type, a.out_features, a.rows, a.out_features));
    }
};

struct Choice {
    bool exists = false;
    cublasLtMatmulAlgo_t algorithm;
};

// cuBLASLt on one GPU: its handle, and the algorithm chosen for each product so far.
class Cublas {
public:
    // That of the current GPU; made at the first call and kept until the process ends.
    static Cublas& current() {
        static std::mutex mutex;
        static std::map<int, Cublas>& all = *new std::map<int, Cublas>;  // outlives static plugins
        int device = 0;
        cudaGetDevice(&device);
        const std::lock_guard<std::mutex> lock(mutex);
        return all[device];
    }

    Cublas() { check(cublasLtCreate(&handle_)); }
    Cublas(const Cublas&) = delete;

    // False where cuBLASLt cannot do it.
    bool run(const Linear& a) {
        Product product(a);
        const Choice choice = choose(a, product);
        if (!choice.exists) return false;
        const float one = 1.0f, zero = 0.0f;
        const cublasStatus_t status
            = cublasLtMatmul(handle_, &product.operation, &one, a.weight, &product.weight, a.x, &product.x, &zero, a.y,
                &product.y, a.y, &product.y, &choice.algorithm, a.workspace, a.workspace_bytes, a.stream);
        if (status == CUBLAS_STATUS_NOT_SUPPORTED) return false;
        check(status);
        return true;
    }

private:
    // type, rows, in_features, out_features, alignments of weight, x and y, workspace.
    using Key = std::tuple<int, long long, int, int, uint32_t, uint32_t, uint32_t, size_t>;

    // cuBLASLt's first suggestion: no timing, so that engines and runs are alike.
    Choice choose(const Linear& a, Product& product) {
        const uint32_t weight = alignment(a.weight), x = alignment(a.x);
        const uint32_t y = alignment(a.y, a.bias);  // there is no preference for the bias itself
        const Key key{a.type, a.rows, a.in_features, a.out_features, weight, x, y, a.workspace_bytes};
        const std::lock_guard<std::mutex> lock(mutex_);
        const auto known = choices_.find(key);
        if (known != choices_.end()) return known->second;

        cublasLtMatmulPreferenceOpaque_t preference;
        check(cublasLtMatmulPreferenceInit(&preference));
        set(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, a.workspace_bytes);
        set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, weight);
        set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, x);
        set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, y);
        set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, y);
        // Partial sums of split products stay FP32.
        set(preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
            static_cast<uint32_t>(CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE));
        cublasLtMatmulHeuristicResult_t result{};
        int count = 0;
        const cublasStatus_t status = cublasLtMatmulAlgoGetHeuristic(handle_, &product.operation, &product.weight,
            &product.x, &product.y, &product.y, &preference, 1, &result, &count);
        if (status != CUBLAS_STATUS_NOT_SUPPORTED && status != CUBLAS_STATUS_INVALID_VALUE) check(status);
        const bool exists = status == CUBLAS_STATUS_SUCCESS && count > 0 && result.state == CUBLAS_STATUS_SUCCESS;
        return choices_[key] = Choice{exists, result.algo};
    }

    cublasLtHandle_t handle_ = nullptr;
    std::mutex mutex_;
    std::map<Key, Choice> choices_;
};

// --- which of them ---------------------------------------------------------------------------------------------------

bool aligned(const Linear& a) {
    return aligned16(a.x) && aligned16(a.weight) && aligned16(a.bias) && aligned16(a.residual) && aligned16(a.y);
}

template <class T> int run(const Linear& a) {
    if (!aligned(a) || !Cublas::current().run(a)) {
        launch_plain<T>(a);
    } else if (a.gelu || a.residual != nullptr) {
        const bool vectors = a.rows * a.out_features % kVector<T> == 0;
        vectors ? launch_gelu_or_add<T, kVector<T>>(a) : launch_gelu_or_add<T, 1>(a);
    }
    return cudaGetLastError();
}

// FP16 on Hopper has a product of its own, for shapes that its copies can take.
int run_half(const Linear& a) {
    const bool fits = linear_sm90 != nullptr && a.rows <= INT_MAX - 128 && a.in_features % 8 == 0
        && a.out_features % 8 == 0 && aligned(a);
    const Gpu gpu = current_gpu();
    if (!fits || !gpu.is_sm90()) return a.tile == 0 ? run<__half>(a) : cudaErrorInvalidValue;
    return linear_sm90(a, gpu.multiprocessors, a.stream);
}

// FP32 has products on tensor cores that are as exact, from sm_80 on.
int run_float(const Linear& a) {
    const Gpu gpu = current_gpu();
    const bool fits = gpu.major >= 8 && a.plain_fp32 == 0 && a.rows <= INT_MAX - 256 && a.in_features % 4 == 0
        && a.out_features % 4 == 0 && aligned(a);
    if (fits) {
        const int status = linear_fp32(a, gpu, a.stream);
        if (status != cudaErrorNotSupported) return status;
    }
    return a.tile == 0 ? run<float>(a) : cudaErrorInvalidValue;
}

int run(const Linear& a) {
    switch (a.type) {
    case SWIN_FP32: return run_float(a);
    case SWIN_FP16: return run_half(a);
    default: return run<__nv_bfloat16>(a);
    }
}

int run_then_tanh_gelu(Linear a) {
    a.gelu = SWIN_NO_GELU;
    const int status = run(a);
    if (status != cudaSuccess) return status;
    switch (a.type) {
    case SWIN_FP32: return run_tanh_gelu<float>(a);
    case SWIN_FP16: return run_tanh_gelu<__half>(a);
    default: return run_tanh_gelu<__nv_bfloat16>(a);
    }
}

}  // namespace
}  // namespace swin

int swin_linear(const SwinLinear* arguments, cudaStream_t stream) {
    swin::Linear a{*arguments, stream};
    if (a.rows == 0) return cudaSuccess;
    if (a.x == nullptr || a.weight == nullptr || a.bias == nullptr || a.y == nullptr || a.rows < 0 || a.in_features < 1
        || a.out_features < 1 || a.gelu < SWIN_NO_GELU || a.gelu > SWIN_TANH_GELU
        || (a.gelu != SWIN_NO_GELU && a.residual != nullptr) || a.type < SWIN_FP32 || a.type > SWIN_BF16
        || (a.tile != 0 && a.type == SWIN_BF16) || a.plain_fp32 < 0 || a.plain_fp32 > 1) {
        return cudaErrorInvalidValue;
    }
    if (a.workspace == nullptr) a.workspace_bytes = 0;
    try {
        return a.gelu == SWIN_TANH_GELU ? swin::run_then_tanh_gelu(a) : swin::run(a);
    } catch (const swin::CublasFailure& failure) {
        return failure.status == CUBLAS_STATUS_ALLOC_FAILED ? cudaErrorMemoryAllocation : cudaErrorUnknown;
    } catch (const std::bad_alloc&) {
        return cudaErrorMemoryAllocation;
    }
}
