#include "common/registration.h"

#include <algorithm>
#include <climits>

namespace swin {

bool Shape::empty() const { return std::find(sizes.begin(), sizes.end(), 0) != sizes.end(); }

long long Shape::rows() const {
    long long product = 1;
    for (size_t i = 0; i + 1 < sizes.size(); ++i) product *= sizes[i];
    return product;
}

std::string Shape::text() const {
    std::string text;
    for (int64_t size : sizes) {
        text += text.empty() ? "" : ", ";
        text += size == kUnknown ? "?" : std::to_string(size);
    }
    return "[" + text + "]";
}

void check_flag(const char* name, int32_t value) {
    if (value == 0 || value == 1) return;
    throw Refusal(std::string(name) + " is " + std::to_string(value) + " instead of 0 or 1");
}

void check_gelu(int32_t value, int32_t least) {
    if (value >= least && value <= SWIN_TANH_GELU) return;
    throw Refusal("gelu is " + std::to_string(value) + " instead of "
        + (least == SWIN_NO_GELU ? "0 (none), 1 (GELU)" : "1 (GELU)") + " or 2 (its tanh form)");
}

void expect_size(const char* what, int64_t actual, int64_t expected) {
    if (actual != kUnknown && expected != kUnknown && actual != expected) {
        throw Refusal(std::string(what) + " is " + std::to_string(actual) + " instead of " + std::to_string(expected));
    }
}

void expect_rank(const char* input, const Shape& shape, int rank) {
    if (shape.rank() != rank) {
        throw Refusal(
            std::string(input) + " is " + shape.text() + " instead of " + std::to_string(rank) + "-dimensional");
    }
}

void expect_shape(const char* input, const Shape& shape, const Shape& expected) {
    bool same = shape.rank() == expected.rank();
    for (int i = 0; same && i < shape.rank(); ++i) {
        same = shape.sizes[i] == expected.sizes[i] || shape.sizes[i] == kUnknown || expected.sizes[i] == kUnknown;
    }
    if (!same) throw Refusal(std::string(input) + " is " + shape.text() + " instead of " + expected.text());
}

void check_rows(const Shape& x, int64_t row_width) {
    if (x.rank() < 1) throw Refusal("x is a scalar; it needs an axis to normalise over");
    if (row_width > SWIN_MAX_WIDTH) {
        throw Refusal(
            "rows of " + std::to_string(row_width) + " elements are wider than " + std::to_string(SWIN_MAX_WIDTH));
    }
}

void check_image(const char* input, const Shape& x) {
    expect_rank(input, x, 4);
    int64_t tokens = 1;
    for (int axis = 0; axis < 3; ++axis) {
        const int64_t size = x.sizes[axis];
        if (size == kUnknown) return;
        if (size != 0 && tokens > INT_MAX / size) {
            throw Refusal(std::string(input) + " is " + x.text() + ", more than 2^31 - 1 tokens");
        }
        tokens *= size;
    }
}

}  // namespace swin
