"""Swin's CUDA kernels in PyTorch, without TensorRT: operators, and fuse(), which makes a model of timm, Hugging Face,
torchvision or this project run on them.

    model = swin_kernels.fuse(timm.create_model("swin_small_patch4_window7_224", pretrained=True).eval().cuda(),
                              torch.float16)

operators.py has the operators, fused.py the models, c_interface.py the C functions of libswin_kernels.so by ctypes.
"""
from .c_interface import LibraryError
from .fused import CudaGraph, fuse
from .operators import (
    add_layer_norm,
    attention,
    layer_norm,
    layer_norm_add,
    linear,
    mlp,
    patch_embed,
    patch_merge,
)

__all__ = ["CudaGraph", "LibraryError", "add_layer_norm", "attention", "fuse", "layer_norm", "layer_norm_add", "linear",
           "mlp", "patch_embed", "patch_merge"]
