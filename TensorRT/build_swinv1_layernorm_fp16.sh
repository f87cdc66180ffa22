#!/usr/bin/env bash
# Swin V1 Small, LayerNorm plugin, FP16.
exec "$(dirname "${BASH_SOURCE[0]}")/build.sh" onnx/swinv1_layernorm_fp16.onnx --fp16 --plugins "$@"
