"""Names of graphs and engines, as the build scripts give them."""
from __future__ import annotations


def engine_precision(name: str) -> str:
    """int8, fp16, bf16 or fp32: what build scripts put into an engine's name."""
    return next((precision for precision in ("int8", "fp16", "bf16") if f"_{precision}" in name), "fp32")


def unpatched_engine(name: str) -> str:
    """The name of the engine that a patched one is compared with; of an unpatched engine, its own name."""
    return name.replace("_attention", "").replace("_layernorm", "")


def belongs_to(name: str, model: str) -> bool:
    """Whether a graph or engine is of a model by its name: MODEL.NAME, or that and what was done to it.

    swinv1_attention_fp16 is of swinv1; swinv1_micro_fp16 and swinv1_base_patch4_window7_224 are other variants' names.
    """
    rest = name.removeprefix(model)
    variants = ("_micro", "_tiny", "_small", "_base", "_large")
    return name == model or (name.startswith(f"{model}_") and not rest.startswith(variants))
