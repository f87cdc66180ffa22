// Tensor maps, by which TMA copies tiles between memory and shared memory (CUDA driver API, "Tensor Map Object
// Management").
#pragma once

#include <type_traits>

#include <cuda.h>
#include <cuda_runtime_api.h>

namespace swin {

constexpr int kTileBytes = 128;  // of a row of a tile

using EncodeTensorMap = decltype(&cuTensorMapEncodeTiled);

// The driver's function, so that no library but the runtime is linked; null where the driver lacks it.
inline EncodeTensorMap encode_tensor_map() {
    static const EncodeTensorMap function = [] {
        void* found = nullptr;
        cudaDriverEntryPointQueryResult result{};
#if CUDART_VERSION >= 12050
        const cudaError_t error
            = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000, cudaEnableDefault, &result);
#else
        const cudaError_t error = cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &found, cudaEnableDefault, &result);
#endif
        return error == cudaSuccess && result == cudaDriverEntryPointSuccess ? reinterpret_cast<EncodeTensorMap>(found)
                                                                             : nullptr;
    }();
    return function;
}

// The map of a tensor whose innermost elements are neighbours, for boxes of kRowBytes along them, swizzled; 0: of any
// number of bytes, not swizzled.
// sizes, strides (of all but the innermost, in rows of sizes[0] elements) and box: innermost first.
template <class Element, int kRowBytes, int kRank>
bool make_map(CUtensorMap& map, const void* tensor, const cuuint64_t (&sizes)[kRank],
    const cuuint64_t (&strides)[kRank - 1], const cuuint32_t (&box)[kRank]) {
    const EncodeTensorMap encode = encode_tensor_map();
    if (encode == nullptr) return false;
    constexpr auto kType = std::is_same_v<Element, int8_t> ? CU_TENSOR_MAP_DATA_TYPE_UINT8
        : std::is_same_v<Element, float>                   ? CU_TENSOR_MAP_DATA_TYPE_FLOAT32
                                                           : CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
    constexpr cuuint32_t kOnes[5] = {1, 1, 1, 1, 1};
    cuuint64_t bytes[kRank - 1];
    for (int i = 0; i < kRank - 1; ++i) bytes[i] = strides[i] * sizes[0] * sizeof(Element);
    return encode(&map, kType, kRank, const_cast<void*>(tensor), sizes, bytes, box, kOnes,
               CU_TENSOR_MAP_INTERLEAVE_NONE,
               kRowBytes == 128      ? CU_TENSOR_MAP_SWIZZLE_128B
                   : kRowBytes == 64 ? CU_TENSOR_MAP_SWIZZLE_64B
                                     : CU_TENSOR_MAP_SWIZZLE_NONE,
               CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE)
        == CUDA_SUCCESS;
}

// The map of x[rows, K], for boxes of `box_rows` rows.
template <class Element, int kRowBytes = kTileBytes>
bool make_rows_map(CUtensorMap& map, const void* x, int rows, int k, int box_rows) {
    return make_map<Element, kRowBytes, 2>(map, x, {static_cast<cuuint64_t>(k), static_cast<cuuint64_t>(rows)}, {1},
        {kRowBytes / sizeof(Element), static_cast<cuuint32_t>(box_rows)});
}

}  // namespace swin
