#!/usr/bin/env bash
# Swin V2 Small, LayerNorm plugin, FP32 without TF32.
exec "$(dirname "${BASH_SOURCE[0]}")/build.sh" onnx/swinv2_layernorm.onnx --noTF32 --plugins "$@"
