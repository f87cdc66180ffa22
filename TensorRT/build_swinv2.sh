#!/usr/bin/env bash
# Swin V2 Small, unpatched, FP32 without TF32.
exec "$(dirname "${BASH_SOURCE[0]}")/build.sh" onnx/swinv2.onnx --noTF32 "$@"
