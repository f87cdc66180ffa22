#!/usr/bin/env bash
# Swin V1 Small, unpatched, FP16.
exec "$(dirname "${BASH_SOURCE[0]}")/build.sh" onnx/swinv1_fp16.onnx --fp16 "$@"
