#!/usr/bin/env bash
# Swin V1 Small, all plugins, INT8, with FP16 where it is not quantised.
exec "$(dirname "${BASH_SOURCE[0]}")/build.sh" onnx/swinv1_attention_int8.onnx --fp16 --plugins "$@"
