// The adapter of this TensorRT version or of onnxruntime, and registration when the library is loaded.
#pragma once

#ifdef SWIN_ONNXRUNTIME
#include "common/onnxruntime/ops.h"
#else

#include <NvInferVersion.h>

#if NV_TENSORRT_MAJOR >= 10
#include "common/plugin_v3.h"
#else
#include "common/plugin_v2.h"
#endif

namespace swin {

// Puts the creator into the process's plugin registry, namespace "swin".
void register_creator(Creator& creator);

template <class Op> struct Registrar {
    OpCreator<Op> creator;
    Registrar() { register_creator(creator); }
};

}  // namespace swin

#define SWIN_REGISTER(Op) static swin::Registrar<Op> registrar_of_##Op;

#endif  // SWIN_ONNXRUNTIME
