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
bool fits_sm90(const SwinMlp& a) {
    if (a.width > 128 && a.rows < 2048) return false;
    const bool aligned = aligned16(a.x) && aligned16(a.gamma) && aligned16(a.beta) && aligned16(a.weight1)
        && aligned16(a.bias1) && aligned16(a.weight2) && aligned16(a.bias2) && aligned16(a.attention)
        && aligned16(a.proj_weight) && aligned16(a.proj_bias) && aligned16(a.proj_gamma) && aligned16(a.proj_beta)
        && aligned16(a.y);
    return mlp_sm90 != nullptr && (a.width == 96 || a.width == 128 || a.width == 192) && a.hidden % 64 == 0
        && a.rows <= INT_MAX - 256 && aligned;
}

// --- everything else: the kernels of its parts, a slice of rows after the other --------------------------------------

struct Sliced {
    SwinMlp mlp;  // its workspace: of a product, then a slice's hidden activations, then its sums with attention
    long long rows_that_fit;
    cudaStream_t stream;
};

long long quotient_up(long long a, long long b) { return (a + b - 1) / b; }

// Slices of about the same size, as the products ask cuBLASLt for an algorithm once for each number of rows. They begin
// at multiples of 128 rows, or of 8, which keeps pointers aligned, but where fewer fit.
long long rows_of_slice(const Sliced& a) {
    const long long unit = a.rows_that_fit >= 128 ? 128 : a.rows_that_fit >= 8 ? 8 : 1;
    const long long most = a.rows_that_fit / unit * unit;
    const long long slices = quotient_up(a.mlp.rows, most);
    return quotient_up(quotient_up(a.mlp.rows, slices), unit) * unit;
}

// `rows` rows from `first` on, at most `step`. y holds what LayerNorm gives (V1) or takes (V2), sums what proj gives
// and then what x and that add up to. LayerNorm writes where it reads: a group of threads has all of its row in
// registers before it writes any of it, and touches no other row.
int run_slice(const Sliced& a, long long first, long long rows, long long step) {
    const SwinMlp& m = a.mlp;
    const int bytes = bytes_of(m.type);
    const long long offset = first * m.width * bytes;
    const char* x = static_cast<const char*>(m.x) + offset;
    char* y = static_cast<char*>(m.y) + offset;
    char* hidden = static_cast<char*>(m.workspace) + SWIN_LINEAR_WORKSPACE_BYTES;
    char* sums = m.attention != nullptr ? hidden + step * m.hidden * bytes : nullptr;

    const auto linear = [&](SwinLinear of) {
        of.rows = rows;
        of.type = m.type;
        of.workspace = m.workspace;
        of.workspace_bytes = SWIN_LINEAR_WORKSPACE_BYTES;
        of.plain_fp32 = m.plain_fp32;
        return swin_linear(&of, a.stream);
    };
    const auto proj = [&] {
        SwinLinear of{};
        of.x = static_cast<const char*>(m.attention) + offset;
        of.weight = m.proj_weight;
        of.bias = m.proj_bias;
        of.y = sums;
        of.in_features = of.out_features = m.width;
        return linear(of);
    };
    const auto fc1 = [&](const void* input) {
        SwinLinear of{};
        of.x = input;
        of.weight = m.weight1;
        of.bias = m.bias1;
        of.y = hidden;
        of.in_features = m.width;
        of.out_features = m.hidden;
        of.gelu = m.gelu;
        return linear(of);
    };
    const auto fc2 = [&](const void* residual) {
        SwinLinear of{};
        of.x = hidden;
        of.weight = m.weight2;
        of.bias = m.bias2;
        of.residual = residual;
        of.y = y;
        of.in_features = m.hidden;
        of.out_features = m.width;
        return linear(of);
    };
    // x and y of any of the LayerNorms, whose other fields are these.
    const auto norm = [&](auto of, const void* from, const float* gamma, const float* beta, void* to) {
        of.x = from;
        of.gamma = gamma;
        of.beta = beta;
        of.y = to;
        of.rows = rows;
        of.type = m.type;
        of.width = m.width;
        of.epsilon = m.epsilon;
        return of;
    };
    const auto layernorm_add = [&](void* in_place, const float* gamma, const float* beta, const void* residual) {
        auto of = norm(SwinLayerNormAdd{}, in_place, gamma, beta, in_place);
        of.residual = residual;
        return swin_layernorm_add(&of, a.stream);
    };

    int status = sums != nullptr ? proj() : cudaSuccess;
    if (status != cudaSuccess) return status;
    if (m.norm_first == 1) {
        if (sums != nullptr) {
            auto of = norm(SwinAddLayerNorm{}, sums, m.gamma, m.beta, y);
            of.residual = x;
            of.sum = sums;
            status = swin_add_layernorm(&of, a.stream);
        } else {
            const auto of = norm(SwinLayerNorm{}, x, m.gamma, m.beta, y);
            status = swin_layernorm(&of, a.stream);
        }
        if (status == cudaSuccess) status = fc1(y);
        if (status == cudaSuccess) status = fc2(sums != nullptr ? sums : x);
    } else {
        if (sums != nullptr) {
            status = layernorm_add(sums, m.proj_gamma, m.proj_beta, x);
            if (status != cudaSuccess) return status;
            x = sums;
        }
        status = fc1(x);
        if (status == cudaSuccess) status = fc2(nullptr);
        if (status == cudaSuccess) status = layernorm_add(y, m.gamma, m.beta, x);
    }
    return status;
}

int run_slices(const Sliced& a) {
    const long long step = rows_of_slice(a);
    for (long long first = 0; first < a.mlp.rows; first += step) {
        const int status = run_slice(a, first, std::min(step, a.mlp.rows - first), step);
        if (status != cudaSuccess) return status;
    }
    return cudaSuccess;
}

}  // namespace
}  // namespace swin

int swin_mlp(const SwinMlp* arguments, cudaStream_t stream) {
    const SwinMlp& a = *arguments;
    if (a.rows == 0) return cudaSuccess;
    const bool known = a.type == SWIN_FP32 || a.type == SWIN_FP16 || a.type == SWIN_BF16;
    const bool proj = a.attention != nullptr, proj_norm = proj && a.norm_first == 0;
    if (!known || a.x == nullptr || a.gamma == nullptr || a.beta == nullptr || a.weight1 == nullptr
        || a.bias1 == nullptr || a.weight2 == nullptr || a.bias2 == nullptr || a.y == nullptr || a.rows < 0
        || a.width < 1 || a.width > SWIN_MAX_WIDTH || a.hidden < 1 || a.norm_first < 0 || a.norm_first > 1
        || a.plain_fp32 < 0 || a.plain_fp32 > 1 || a.gelu < SWIN_GELU || a.gelu > SWIN_TANH_GELU
        || (a.proj_weight != nullptr) != proj || (a.proj_bias != nullptr) != proj
        || (a.proj_gamma != nullptr) != proj_norm || (a.proj_beta != nullptr) != proj_norm) {
        return cudaErrorInvalidValue;
    }
    const swin::Gpu gpu = swin::current_gpu();
    if (a.type == SWIN_FP16 && a.gelu == SWIN_GELU && gpu.is_sm90() && swin::fits_sm90(a))
        return swin::mlp_sm90(a, gpu.multiprocessors, stream);
    const size_t row_bytes = (static_cast<size_t>(a.hidden) + (proj ? a.width : 0)) * swin::bytes_of(a.type);
    if (a.workspace == nullptr || a.workspace_bytes < SWIN_LINEAR_WORKSPACE_BYTES + row_bytes) {
        return cudaErrorInvalidValue;
    }
    const auto fit = static_cast<long long>((a.workspace_bytes - SWIN_LINEAR_WORKSPACE_BYTES) / row_bytes);
    return swin::run_slices({a, fit, stream});
}
