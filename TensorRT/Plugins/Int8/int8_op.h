// A check that the INT8 operators share.
#pragma once

#include <cmath>
#include <string>

#include "common/registration.h"

namespace swin {

// The step of an INT8 tensor must be a positive number.
inline void check_scale(const char* attribute, float scale) {
    if (!(scale > 0) || !std::isfinite(scale)) {
        throw Refusal(std::string(attribute) + " is " + std::to_string(scale) + " instead of a positive number");
    }
}

}  // namespace swin
