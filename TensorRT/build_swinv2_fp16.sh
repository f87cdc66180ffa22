#!/usr/bin/env bash
# Swin V2 Small, unpatched, FP16.
exec "$(dirname "${BASH_SOURCE[0]}")/build.sh" onnx/swinv2_fp16.onnx --fp16 "$@"
