#!/usr/bin/env bash
# Swin V1 Small, all plugins, FP16.
exec "$(dirname "${BASH_SOURCE[0]}")/build.sh" onnx/swinv1_attention_fp16.onnx --fp16 --plugins "$@"
