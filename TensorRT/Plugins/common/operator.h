// What an operator says about itself, in terms that no TensorRT version changes and onnxruntime shares.
//
// A plugin file defines one struct for its operator:
//
//   struct ExampleOp : Operator {
//       static constexpr const char* kName = "SwinExample";             // the ONNX op type
//       static constexpr Input kInputs[] = {{"x", Type::kActivation}, {"gamma", Type::kFp32}};  // optional ones last
//       static constexpr int kRequired = 2;                             // inputs that must be there
//       struct Attributes { float epsilon; };                           // 4-byte members only, or none
//       static constexpr Field<Attributes> kFields[] = {{"epsilon", &Attributes::epsilon}};
//       static void check(const Attributes&, const Inputs&);            // throws Refusal; sizes may be kUnknown
//       static int launch(const Attributes&, const Call&);              // returns a cudaError_t
//   };
//   SWIN_REGISTER(ExampleOp)
//
// and plugin_v2.h (TensorRT 8.6) or plugin_v3.h (10 and later) makes a plugin of it, onnxruntime/ops.h an operator of
// onnxruntime. Each of them defines SymbolicSize, a size that may not be known yet, before it includes this file.
//
// Its base `Operator` says: one output, of the activations' type and the first input's shape, and no workspace. An
// operator for which something else holds defines kOutputs, input_type, output_type, output_shape or kWorkspaceBytes
// anew. Shapes count elements of the tensor's own Type everywhere, so INT8 tensors have the shapes of the formula (see
// Type::kInt8).
#pragma once

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <stdexcept>
#include <string>
#include <vector>

#include "common/swin_types.h"

namespace swin {

constexpr const char* kNamespace = "swin";
constexpr const char* kVersion = "1";

// A shape, type or attribute outside an operator's contract; what() says which and why.
struct Refusal : std::invalid_argument { using std::invalid_argument::invalid_argument; };

constexpr int64_t kUnknown = -1;  // a dynamic dimension while the engine is built

struct Shape {
    std::vector<int64_t> sizes;

    int rank() const { return static_cast<int>(sizes.size()); }
    int64_t last() const { return sizes.empty() ? kUnknown : sizes.back(); }
    bool empty() const;        // some dimension is zero
    long long rows() const;    // product of all dimensions but the last
    std::string text() const;  // [2, 49, 96], ? for unknown
};

using Inputs = std::vector<Shape>;

// What the elements of an operator's tensor are.
enum class Type {
    kActivation,  // FP32, FP16 or BF16: any, but the same in all tensors of a node that have this Type, and in input 0
    kFp32,
    kFp16,
    kInt8,  // INT8. In TensorRT an INT32 tensor with a quarter of the last axis, four INT8 in each, lowest byte first
};

struct Input {
    const char* name;
    Type type;
};

using SymbolicShape = std::vector<SymbolicSize>;

// What holds for an operator that does not say otherwise.
struct Operator {
    static constexpr int kOutputs = 1;
    static constexpr size_t kWorkspaceBytes = 0;
    // An attribute that only nodes of an earlier version have, or null: see refuse_earlier_node.
    static constexpr const char* kEarlierAttribute = nullptr;

    // listed: the type in kInputs.
    template <class Attributes> static Type input_type(const Attributes&, int /* input */, Type listed) {
        return listed;
    }
    template <class Attributes> static Type output_type(const Attributes&, int /* output */) {
        return Type::kActivation;
    }
    template <class Attributes>
    static SymbolicShape output_shape(const Attributes&, int /* output */, const std::vector<SymbolicShape>& inputs) {
        return inputs[0];
    }
};

enum class Presence { kRequired, kOptional };

// An attribute of the ONNX node: an int or a float member of Op::Attributes. An optional one is 0 where a node lacks it.
template <class Attributes> struct Field {
    const char* name;
    int32_t Attributes::* integer = nullptr;
    float Attributes::* real = nullptr;
    Presence presence = Presence::kRequired;

    constexpr Field(const char* name, int32_t Attributes::* member, Presence presence = Presence::kRequired)
        : name(name), integer(member), presence(presence) {}
    constexpr Field(const char* name, float Attributes::* member) : name(name), real(member) {}

    void* of(Attributes& attributes) const {
        return integer != nullptr ? static_cast<void*>(&(attributes.*integer)) : &(attributes.*real);
    }
};

// One execution: shapes are known, pointers are on the device.
struct Call {
    Inputs shapes;
    int type;  // SwinType of the activations; FP16 where input 0 is none
    const void* const* inputs;
    void* const* outputs;
    void* workspace;  // kWorkspaceBytes of the operator
    cudaStream_t stream;

    // Null where the node does not have this input.
    const void* input(int index) const { return index < static_cast<int>(shapes.size()) ? inputs[index] : nullptr; }
    const float* parameter(int index) const { return static_cast<const float*>(input(index)); }
};

// --- checks that several operators make ---

// An attribute that is 0 or 1.
void check_flag(const char* name, int32_t value);

// An attribute gelu: a SwinGelu from `least` on.
void check_gelu(int32_t value, int32_t least);

// `actual` where it is known must be `expected`.
void expect_size(const char* what, int64_t actual, int64_t expected);
void expect_rank(const char* input, const Shape& shape, int rank);
// Exactly this shape; kUnknown matches anything.
void expect_shape(const char* input, const Shape& shape, const Shape& expected);
// x has rows, and rows of `row_width` elements are not wider than the row kernels take.
void check_rows(const Shape& x, int64_t row_width);
// x is [B, H, W, C], with no more tokens than the kernels count.
void check_image(const char* input, const Shape& x);

template <class Op> Type input_type(const typename Op::Attributes& attributes, int input) {
    return Op::input_type(attributes, input, Op::kInputs[input].type);
}

template <class Op> void check_count(int inputs) {
    const int most = static_cast<int>(std::size(Op::kInputs));
    if (inputs < Op::kRequired || inputs > most) {
        throw Refusal("has " + std::to_string(inputs) + " inputs instead of " + std::to_string(Op::kRequired)
            + (most > Op::kRequired ? " to " + std::to_string(most) : ""));
    }
}

// Heights, widths and squares that nodes said before activations were [B, H, W, C]. A node that still says one would
// mean something else now.
constexpr const char* kEarlierNode
    = ": the node was made by an earlier version of this project; patch the FP32 graph again with add_all.py";
constexpr const char* kEarlierAttributes[] = {"height", "width", "window_size", "shift_size", "patch_size"};

}  // namespace swin
