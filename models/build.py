"""From a configuration to a model, with random or with loaded weights.

    python -c "from config import get_config; from models.build import load_model; \
               model = load_model(get_config('models/swin_micro.yaml'))"
"""
from __future__ import annotations

from yacs.config import CfgNode

from models.swin import SwinTransformer
from models.swin_v2 import SwinTransformerV2


def build_model(config: CfgNode) -> SwinTransformer:
    """The model of a configuration, with random weights, in eval mode."""
    swin = config.MODEL.SWIN
    architecture = {
        "img_size": config.DATA.IMG_SIZE, "patch_size": swin.PATCH_SIZE, "in_chans": swin.IN_CHANS,
        "num_classes": config.MODEL.NUM_CLASSES, "embed_dim": swin.EMBED_DIM, "depths": swin.DEPTHS,
        "num_heads": swin.NUM_HEADS, "window_size": swin.WINDOW_SIZE, "mlp_ratio": swin.MLP_RATIO,
    }
    if config.MODEL.TYPE == "swinv2":
        model = SwinTransformerV2(pretrained_window_sizes=swin.PRETRAINED_WINDOW_SIZES, **architecture)
    else:
        model = SwinTransformer(**architecture)
    return model.eval()
