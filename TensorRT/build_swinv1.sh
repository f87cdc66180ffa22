#!/usr/bin/env bash
# Swin V1 Small, unpatched, FP32 without TF32.
exec "$(dirname "${BASH_SOURCE[0]}")/build.sh" onnx/swinv1.onnx --noTF32 "$@"
