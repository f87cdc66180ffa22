#include "mlp_kernel.h"

#include <algorithm>
#include <climits>

#include "LayerNorm/layernorm_kernel.h"
#include "LayerNormPlugin_with_params/layernorm_fused_kernel.h"
#include "common/gpu.h"
#include "common/rows.cuh"
#include "mlp_sm90_kernel.h"

namespace swin {
namespace {

// --- one kernel, on Hopper -------------------------------------------------------------------------------------------

// A wide MLP of few rows is faster in parts, each of which spreads over more multiprocessors: 8.8 us instead of 11.5
// for 1024 rows of width 192 on an H100.
bool fits_sm90(const Mlp& a, long long rows) {
    if (a.width > 128 && rows < 2048) return false;
    const bool aligned = aligned16(a.x) && aligned16(a.gamma) && aligned16(a.beta) && aligned16(a.weight1)
        && aligned16(a.bias1) && aligned16(a.weight2) && aligned16(a.bias2) && aligned16(a.attention)
        && aligned16(a.proj_weight) && aligned16(a.proj_bias) && aligned16(a.proj_gamma) && aligned16(a.proj_beta)
        && aligned16(a.y);
    return mlp_sm90 != nullptr && (a.width == 96 || a.width == 128 || a.width == 192) && a.hidden % 64 == 0
        && rows <= INT_MAX - 256 && aligned;
}

// --- everything else: the kernels of its parts, a slice of rows after the other --------------------------------------

struct Sliced {
    Mlp mlp;  // rows is not used
    int type;
    long long rows;
    char* workspace;  // of a product, then a slice's hidden activations, then its sums with attention
    long long rows_that_fit;
};

long long quotient_up(long long a, long long b) { return (a + b - 1) / b; }

// Slices of about the same size, as the products ask cuBLASLt for an algorithm once for each number of rows. They begin
// at multiples of 128 rows, or of 8, which keeps pointers aligned, but where fewer fit.
long long rows_of_slice(const Sliced& a) {
    const long long unit = a.rows_that_fit >= 128 ? 128 : a.rows_that_fit >= 8 ? 8 : 1;
    const long long most = a.rows_that_fit / unit * unit;
    const long long slices = quotient_up(a.rows, most);
    return quotient_up(quotient_up(a.rows, slices), unit) * unit;
}

// `rows` rows from `first` on, at most `step`. y holds what LayerNorm gives (V1) or takes (V2), sums what proj gives and
// then what x and that add up to. LayerNorm writes where it reads: a group of threads has all of its row in registers before
// it writes any of it, and touches no other row.
int run_slice(const Sliced& a, long long first, long long rows, long long step) {
    const Mlp& m = a.mlp;
    const long long offset = first * m.width * bytes_of(a.type);
    const char* x = static_cast<const char*>(m.x) + offset;
    char* y = static_cast<char*>(m.y) + offset;
    char* hidden = a.workspace + SWIN_LINEAR_WORKSPACE_BYTES;
    const auto linear = [&](const void* input, const void* weight, const void* bias, const void* residual, void* output,
                            int in_features, int out_features, int gelu) {
        return swin_linear(input, weight, bias, residual, output, a.type, rows, in_features, out_features, gelu,
            a.workspace, SWIN_LINEAR_WORKSPACE_BYTES, m.stream);
    };
    const auto fc1 = [&](const void* input) {
        return linear(input, m.weight1, m.bias1, nullptr, hidden, m.width, m.hidden, 1);
    };
    const auto fc2 = [&](const void* residual) {
        return linear(hidden, m.weight2, m.bias2, residual, y, m.hidden, m.width, 0);
    };
    int status = cudaSuccess;
    char* sums = nullptr;
    if (m.attention != nullptr) {
        sums = hidden + step * m.hidden * bytes_of(a.type);
        status = linear(static_cast<const char*>(m.attention) + offset, m.proj_weight, m.proj_bias, nullptr, sums, m.width,
            m.width, 0);
        if (status != cudaSuccess) return status;
    }
    if (m.norm_first) {
        status = sums != nullptr
            ? swin_add_layernorm(sums, x, m.gamma, m.beta, sums, y, a.type, rows, m.width, m.epsilon, m.stream)
            : swin_layernorm(x, m.gamma, m.beta, y, a.type, rows, m.width, m.epsilon, m.stream);
        if (status == cudaSuccess) status = fc1(y);
        if (status == cudaSuccess) status = fc2(sums != nullptr ? sums : x);
    } else {
        if (sums != nullptr) {
            status = swin_layernorm_add(
                sums, x, m.proj_gamma, m.proj_beta, sums, a.type, rows, m.width, m.epsilon, m.stream);
            if (status != cudaSuccess) return status;
            x = sums;
        }
        status = fc1(x);
        if (status == cudaSuccess) status = fc2(nullptr);
        if (status == cudaSuccess) {
            status = swin_layernorm_add(y, x, m.gamma, m.beta, y, a.type, rows, m.width, m.epsilon, m.stream);
        }
    }
    return status;
}

int run_slices(const Sliced& a) {
    const long long step = rows_of_slice(a);
    for (long long first = 0; first < a.rows; first += step) {
        const int status = run_slice(a, first, std::min(step, a.rows - first), step);
        if (status != cudaSuccess) return status;
    }
    return cudaSuccess;
}

}  // namespace
}  // namespace swin

int swin_mlp(const void* x, const float* gamma, const float* beta, const void* weight1, const void* bias1,
    const void* weight2, const void* bias2, const void* attention, const void* proj_weight, const void* proj_bias,
    const float* proj_gamma, const float* proj_beta, void* y, int type, long long rows, int width, int hidden,
    int norm_first, float epsilon, void* workspace, size_t workspace_bytes, cudaStream_t stream) {
    if (rows == 0) return cudaSuccess;
    const bool known = type == SWIN_FP32 || type == SWIN_FP16 || type == SWIN_BF16;
    const bool proj = attention != nullptr, proj_norm = proj && norm_first == 0;
    if (!known || x == nullptr || gamma == nullptr || beta == nullptr || weight1 == nullptr || bias1 == nullptr
        || weight2 == nullptr || bias2 == nullptr || y == nullptr || rows < 0 || width < 1 || width > SWIN_MAX_WIDTH
        || hidden < 1 || norm_first < 0 || norm_first > 1 || (proj_weight != nullptr) != proj
        || (proj_bias != nullptr) != proj || (proj_gamma != nullptr) != proj_norm
        || (proj_beta != nullptr) != proj_norm) {
        return cudaErrorInvalidValue;
    }
    swin::Mlp mlp{x, gamma, beta, weight1, bias1, weight2, bias2, attention, proj_weight, proj_bias, proj_gamma,
        proj_beta, y, 0, width, hidden, norm_first == 1, epsilon, stream};
    const swin::Gpu gpu = swin::current_gpu();
    if (type == SWIN_FP16 && gpu.is_sm90() && swin::fits_sm90(mlp, rows)) {
        mlp.rows = static_cast<int>(rows);
        return swin::mlp_sm90(mlp, gpu.multiprocessors);
    }
    const size_t row_bytes = (static_cast<size_t>(hidden) + (proj ? width : 0)) * swin::bytes_of(type);
    if (workspace == nullptr || workspace_bytes < SWIN_LINEAR_WORKSPACE_BYTES + row_bytes) return cudaErrorInvalidValue;
    const auto fit = static_cast<long long>((workspace_bytes - SWIN_LINEAR_WORKSPACE_BYTES) / row_bytes);
    return swin::run_slices({mlp, type, rows, static_cast<char*>(workspace), fit});
}
