"""The kernels at every place of a Swin Transformer that has work for them: what benchmark.py measures.

A Kernel says which tensors it reads and writes at a Place, how it is called, what it computes (a formula in PyTorch
that works in any type; on FP64 tensors it is the reference), how many operations that is, and what PyTorch offers for
the same work. Adding a kernel is adding an entry to KERNELS.

Shapes: B images, a stage of H x W tokens with C channels, nH heads of 32 channels, windows of w x w = N tokens.
"""
from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
import yaml
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import flex_attention

from models.swin import MASK_VALUE, relative_position_index, shift_mask
from TensorRT.Plugins import kernel_blocks
from TensorRT.Plugins.kernel_blocks import BRANCH_WIDTHS, EPSILON, NARROW
from TensorRT.Plugins.swin_kernels import c_interface as kernels
from TensorRT.swin_work import CHANNELS_IN, MLP_RATIO, PATCH, Swin, read_swin

HEAD_DIM = 32  # of every Swin Transformer that the attention kernels take
FNORM_EPSILON = 1e-12
OURS = "swin-plugins"  # the runner

# INT8 tensors are normal numbers of 32 steps. What one step stands for: outputs stay within 127 of them but for a few
# numbers in a million, which saturate in the reference too.
STEPS = 32.0
QKV_STEP, ATTENTION_STEP, LINEAR_STEP, NORM_STEP, STREAM_STEP = 1 / 32, 4 / 127, 7 / 127, 10 / 127, 12 / 127

Tensors = dict[str, torch.Tensor]
Outputs = tuple[torch.Tensor, ...]


# --- places and tensors ----------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Place:
    """Where in a network, and at which batch."""

    model: str  # MODEL.NAME of its yaml
    v2: bool
    batch: int
    stage: int  # from 0
    last: bool  # of the stages
    side: int  # tokens along a side
    channels: int
    window: int
    shift: int = 0
    network: Swin | None = None

    @property
    def rows(self) -> int:
        return self.batch * self.side**2

    @property
    def heads(self) -> int:
        return self.channels // HEAD_DIM

    @property
    def image(self) -> tuple[int, int, int]:
        return self.batch, self.side, self.side

    @property
    def windows(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """Window and shift, each (height, width)."""
        return (self.window, self.window), (self.shift, self.shift)


class Tensor(NamedTuple):
    """One tensor of a kernel. Inputs are drawn from a normal distribution, of INT8 rounded."""

    shape: tuple[int, ...]
    dtype: torch.dtype = torch.half
    output: bool = False
    step: float = 1.0  # of INT8: what 1 stands for
    mean: float = 0.0
    deviation: float = 1.0
    window: int = 0  # of a relative position bias [nH, N, Np]: its window's side; 0: another tensor

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def places(network: Swin, model: str, batch: int) -> list[Place]:
    """The stages of a network at a batch."""
    found = []
    for stage in range(len(network.depths)):
        side = network.img_size // PATCH // 2**stage
        found.append(Place(model, network.type == "swinv2", batch, stage, stage == len(network.depths) - 1, side,
                           network.embed_dim * 2**stage, min(network.window, side), network=network))
    return found


def read_network(path: Path) -> tuple[Swin, str]:
    """The sizes in one of models/*.yaml, and its name."""
    return read_swin(path), yaml.safe_load(path.read_text())["MODEL"]["NAME"]


def draw(spec: Tensor, generator: torch.Generator) -> torch.Tensor:
    """A tensor of random numbers; an output is left as it is allocated."""
    device = generator.device
    if spec.output:
        return torch.empty(spec.shape, dtype=spec.dtype, device=device)
    if spec.window:
        heads, tokens, padded = spec.shape
        table = torch.randn((2 * spec.window - 1) ** 2, heads, generator=generator, device=device)
        bias = table[relative_position_index(spec.window).to(device)].permute(2, 0, 1)
        return F.pad(bias, (0, padded - tokens)).to(spec.dtype).contiguous()
    x = torch.randn(spec.shape, generator=generator, device=device) * spec.deviation + spec.mean
    return (x.round().clamp(-127, 127) if spec.dtype == torch.int8 else x).to(spec.dtype)


def int8(*shape: int, step: float = 1.0, output: bool = False) -> Tensor:
    return Tensor(shape, torch.int8, output, step, deviation=STEPS)


def fp32(*shape: int, mean: float = 0.0, deviation: float = 0.25) -> Tensor:
    return Tensor(shape, torch.float32, mean=mean, deviation=deviation)


def norm_parameters(width: int, prefix: str = "") -> dict[str, Tensor]:
    return {f"{prefix}gamma": fp32(width, mean=1.0), f"{prefix}beta": fp32(width)}


def product_parameters(inputs: int, outputs: int, weight: str = "weight", bias: str = "bias") -> dict[str, Tensor]:
    return {weight: Tensor((outputs, inputs), deviation=inputs**-0.5), bias: Tensor((outputs,), deviation=0.25)}


def int8_product_parameters(inputs: int, outputs: int, prefix: str = "") -> dict[str, Tensor]:
    """Weight, factor and bias of a product with INT8 inputs whose sums have a standard deviation of 1."""
    factor = 1 / (STEPS**2 * inputs**0.5)
    return {f"{prefix}weight": int8(outputs, inputs),
            f"{prefix}factor": fp32(outputs, mean=factor, deviation=factor / 16),
            f"{prefix}bias": fp32(outputs)}


def converted(t: Tensors, dtype: torch.dtype) -> Tensors:
    """Floating-point tensors as `dtype`; INT8 ones, too, where that is FP64."""
    return {name: x.to(dtype) if x.is_floating_point() or dtype == torch.double else x for name, x in t.items()}


def in_half(place: Place, t: Tensors) -> Tensors:
    return converted(t, torch.half)


def as_it_is(place: Place, t: Tensors) -> Tensors:
    return t


def quantised(x: torch.Tensor, step: float) -> torch.Tensor:
    return (x / step).round().clamp(-128, 127).to(torch.int8)


# --- kernels and what they are compared with -------------------------------------------------------------------------

@dataclass(frozen=True)
class Peer:
    """Another way to do the same."""

    run: Callable[[Place, Tensors], Outputs]
    prepare: Callable[[Place, Tensors], Tensors] = in_half  # not timed
    compiled: bool = False  # by torch.compile
    part: str = ""  # of the work, where it does not do all of it,
    formula: Callable[[Place, Tensors], Outputs] | None = None  # and what that computes
    restore: Callable[[Place, Outputs], Outputs] | None = None  # what it gives, as the kernel gives it; not timed
    input_layout: str = ""
    where: Callable[[Place], bool] = lambda place: True  # other places would say nothing new


@dataclass(frozen=True)
class Kernel:
    """A kernel by the name of its plugin node, as the layer of a network that it does."""

    name: str
    layer: str
    precision: str  # fp32, fp16 or int8
    tensors: Callable[[Place], dict[str, Tensor] | None]  # None: not at this place
    run: Callable[[Place, Tensors], Outputs | None]  # None: the outputs are among the tensors
    formula: Callable[[Place, Tensors], Outputs]
    operations: Callable[[Place], int] = lambda place: 0  # of its matrix products, two for a multiply-add
    features: Callable[[Place], tuple[int, int]] = lambda place: (place.channels, place.channels)  # in and out
    peers: dict[str, Peer] = field(default_factory=dict)
    windows: bool = False  # it depends on window and shift
    shifted: bool = False  # SW-MSA
    rotate: bool = True  # False: one set of tensors is larger than any cache
    more_bytes: Callable[[Place], int] = lambda place: 0  # of weights that are not among the tensors

    @property
    def id(self) -> str:
        """kernel/layer, as --kernel takes it."""
        return f"{self.name}/{self.layer}"


class Case(NamedTuple):
    kernel: Kernel
    place: Place
    tensors: dict[str, Tensor]

    @property
    def bytes(self) -> int:
        """Each input read once and each output written once."""
        return sum(spec.bytes for spec in self.tensors.values()) + self.kernel.more_bytes(self.place)

    @property
    def operations(self) -> int:
        return self.kernel.operations(self.place)

    @property
    def runners(self) -> dict[str, Peer]:
        """The kernel and what it is compared with."""
        peers = {name: peer for name, peer in self.kernel.peers.items() if peer.where(self.place)}
        return {OURS: Peer(self.kernel.run, as_it_is), **peers}


def compared(run: Callable[[Place, Tensors], Outputs], prepare: Callable[[Place, Tensors], Tensors] = in_half,
             compiled: bool = True, **more: Peer) -> dict[str, Peer]:
    """PyTorch as it is and, where the few seconds that it takes tell something new, compiled."""
    by_compiler = {"torch-compile": Peer(run, prepare, compiled=True)} if compiled else {}
    return {"torch-eager": Peer(run, prepare), **by_compiler, **more}


# --- linear layers ---------------------------------------------------------------------------------------------------

class Layer(NamedTuple):
    """One linear layer: rows of a token, inputs and outputs in C, and what follows it."""

    inputs: int
    outputs: int
    gelu: bool = False
    residual: bool = False  # in V1
    reduces: bool = False  # of patch merging: a quarter of the rows


LINEARS = {"qkv": Layer(1, 3), "proj": Layer(1, 1, residual=True), "fc1": Layer(1, MLP_RATIO, gelu=True),
           "fc2": Layer(MLP_RATIO, 1, residual=True), "reduction": Layer(4, 2, reduces=True)}


def linear_size(layer: Layer, place: Place) -> tuple[int, int, int]:
    """M, K and N."""
    return (place.rows // (4 if layer.reduces else 1), layer.inputs * place.channels, layer.outputs * place.channels)


def linear_operations(layer: Layer, place: Place) -> int:
    return 2 * math.prod(linear_size(layer, place))


def linear_tensors(layer: Layer, place: Place) -> dict[str, Tensor] | None:
    if layer.reduces and place.last:
        return None
    rows, inputs, outputs = linear_size(layer, place)
    residual = {"residual": Tensor((rows, outputs))} if layer.residual and not place.v2 else {}
    return {"x": Tensor((rows, inputs)), **product_parameters(inputs, outputs), **residual,
            "y": Tensor((rows, outputs), output=True)}


def epilogue(layer: Layer, y: torch.Tensor, t: Tensors) -> Outputs:
    y = F.gelu(y) if layer.gelu else y
    return (y + t["residual"] if "residual" in t else y,)


def product(place: Place, t: Tensors) -> Outputs:
    return (F.linear(t["x"], t["weight"], t["bias"]),)


def linear(name: str, layer: Layer) -> Kernel:
    def formula(place: Place, t: Tensors) -> Outputs:
        return epilogue(layer, *product(place, t), t)

    def has_epilogue(place: Place) -> bool:
        return layer.gelu or (layer.residual and not place.v2)

    peers = {"torch-eager": Peer(formula)}
    if layer.gelu or layer.residual:
        peers["torch-linear"] = Peer(product, part="product and bias", formula=product, where=has_epilogue)
    if layer.gelu:  # with a residual, torch.compile does what eager does: a product, and a kernel after it
        peers["torch-compile"] = Peer(formula, compiled=True)
    def run(place: Place, t: Tensors, tile: int = 0) -> None:
        kernels.linear(t["x"], t["weight"], t["bias"], t.get("residual"), t["y"], layer.gelu, tile)

    return Kernel("SwinLinear", name, "fp16", partial(linear_tensors, layer), run, formula,
                  partial(linear_operations, layer), lambda place: linear_size(layer, place)[1:], peers)


def with_tf32(formula: Callable[[Place, Tensors], Outputs]) -> Callable[[Place, Tensors], Outputs]:
    """The same with products that PyTorch may round to TF32."""
    def run(place: Place, t: Tensors) -> Outputs:
        before = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = True
        try:
            return formula(place, t)
        finally:
            torch.backends.cuda.matmul.allow_tf32 = before

    return run


def linear_fp32(name: str, layer: Layer) -> Kernel:
    """SwinLinear in FP32, which chooses between tensor cores and cuBLASLt, beside cuBLASLt only (swin-plain)."""
    def tensors(place: Place) -> dict[str, Tensor] | None:
        found = linear_tensors(layer, place)
        return found and {tensor: spec._replace(dtype=torch.float32) for tensor, spec in found.items()}

    def run(place: Place, t: Tensors, tile: int = 0, plain: bool = False) -> None:
        kernels.linear(t["x"], t["weight"], t["bias"], t.get("residual"), t["y"], layer.gelu, tile, plain)

    def run_plain(place: Place, t: Tensors) -> Outputs:
        run(place, t, plain=True)
        return (t["y"],)

    in_half = linear(name, layer)
    formula = in_half.formula
    peers = {"torch-eager": Peer(formula, as_it_is), "torch-tf32": Peer(with_tf32(formula), as_it_is),
             "swin-plain": Peer(run_plain, as_it_is)}
    return replace(in_half, layer=f"{name} in FP32", precision="fp32", tensors=tensors, run=run, peers=peers)


def linear_int8(name: str, layer: Layer, fp16_output: bool = False) -> Kernel:
    def writes_fp16(place: Place) -> bool:
        return fp16_output or (layer.residual and not place.v2)

    def tensors(place: Place) -> dict[str, Tensor]:
        rows, inputs, outputs = linear_size(layer, place)
        residual = {"residual": Tensor((rows, outputs))} if layer.residual and not place.v2 else {}
        y = (Tensor((rows, outputs), output=True) if writes_fp16(place)
             else int8(rows, outputs, step=LINEAR_STEP, output=True))
        return {"x": int8(rows, inputs), **int8_product_parameters(inputs, outputs), **residual, "y": y}

    def run(place: Place, t: Tensors, tile: int = 0) -> None:
        kernels.linear_int8(t["x"], t["weight"], t["factor"], t["bias"], t.get("residual"), t["y"], int(layer.gelu),
                            0.0 if writes_fp16(place) else LINEAR_STEP, tile)

    def formula(place: Place, t: Tensors) -> Outputs:
        return epilogue(layer, t["x"] @ t["weight"].T * t["factor"] + t["bias"], t)

    def eager(place: Place, t: Tensors) -> Outputs:
        y, = epilogue(layer, torch._int_mm(t["x"], t["weight"].T) * t["factor"] + t["bias"], t)
        return (y.half() if writes_fp16(place) else quantised(y, LINEAR_STEP),)

    def product_only(place: Place, t: Tensors) -> Outputs:
        return (torch._int_mm(t["x"], t["weight"].T),)

    peers = compared(eager, as_it_is, compiled=layer.gelu, **{"torch-int-mm": Peer(
        product_only, as_it_is, part="product", formula=lambda place, t: (t["x"] @ t["weight"].T,))})
    return Kernel("SwinLinearInt8", name, "int8", tensors, run, formula, partial(linear_operations, layer),
                  lambda place: linear_size(layer, place)[1:], peers)


# --- MLP -------------------------------------------------------------------------------------------------------------

def mlp_tensors(with_proj: bool, place: Place) -> dict[str, Tensor] | None:
    c, rows = place.channels, place.rows
    if c > NARROW:
        return None
    proj = {}
    if with_proj:
        proj = {"attention": Tensor((rows, c)), **product_parameters(c, c, "proj_weight", "proj_bias"),
                **(norm_parameters(c, "proj_") if place.v2 else {})}
    return {"x": Tensor((rows, c)), **norm_parameters(c), **product_parameters(c, MLP_RATIO * c, "weight1", "bias1"),
            **product_parameters(MLP_RATIO * c, c, "weight2", "bias2"), **proj, "y": Tensor((rows, c), output=True)}


def norm(x: torch.Tensor, t: Tensors, prefix: str = "") -> torch.Tensor:
    return F.layer_norm(x, x.shape[-1:], t[f"{prefix}gamma"], t[f"{prefix}beta"], EPSILON)


def mlp_formula(place: Place, t: Tensors) -> Outputs:
    x = t["x"]
    if "attention" in t:
        projected = F.linear(t["attention"], t["proj_weight"], t["proj_bias"])
        x = x + (norm(projected, t, "proj_") if place.v2 else projected)
    hidden = F.gelu(F.linear(x if place.v2 else norm(x, t), t["weight1"], t["bias1"]))
    y = F.linear(hidden, t["weight2"], t["bias2"])
    return (x + (norm(y, t) if place.v2 else y),)


def run_mlp(place: Place, t: Tensors) -> None:
    kernels.mlp(t["x"], t["gamma"], t["beta"], t["weight1"], t["bias1"], t["weight2"], t["bias2"], t["y"],
                norm_first=not place.v2, epsilon=EPSILON, attention=t.get("attention"),
                proj_weight=t.get("proj_weight"), proj_bias=t.get("proj_bias"), proj_gamma=t.get("proj_gamma"),
                proj_beta=t.get("proj_beta"))


def mlp_in_parts(place: Place, t: Tensors) -> Outputs:
    """The same by SwinLinear and the LayerNorms, a kernel each."""
    x, y = t["x"], torch.empty_like(t["x"])
    hidden = torch.empty(place.rows, t["weight1"].shape[0], dtype=torch.half, device=x.device)
    if "attention" in t:
        projected = torch.empty_like(x)
        kernels.linear(t["attention"], t["proj_weight"], t["proj_bias"], None if place.v2 else x, projected, False)
        if place.v2:
            kernels.layernorm_add(projected, x, t["proj_gamma"], t["proj_beta"], projected, EPSILON)
        x = projected
    if place.v2:
        kernels.linear(x, t["weight1"], t["bias1"], None, hidden, True)
        kernels.linear(hidden, t["weight2"], t["bias2"], None, y, False)
        kernels.layernorm_add(y, x, t["gamma"], t["beta"], y, EPSILON)
    else:
        kernels.layernorm(x, t["gamma"], t["beta"], y, EPSILON)
        kernels.linear(y, t["weight1"], t["bias1"], None, hidden, True)
        kernels.linear(hidden, t["weight2"], t["bias2"], x, y, False)
    return (y,)


def mlp(layer: str, with_proj: bool) -> Kernel:
    return Kernel(
        "SwinMlp", layer, "fp16", partial(mlp_tensors, with_proj), run_mlp, mlp_formula,
        lambda place: 2 * place.rows * place.channels**2 * (2 * MLP_RATIO + with_proj),
        peers=compared(mlp_formula, **{"swin-parts": Peer(mlp_in_parts, as_it_is)}))


# --- patches ---------------------------------------------------------------------------------------------------------

def embed_tensors(place: Place) -> dict[str, Tensor] | None:
    if place.stage:
        return None
    pixels = PATCH * place.side
    image = Tensor((place.batch, CHANNELS_IN, pixels, pixels), torch.float32)
    weight = fp32(place.channels, CHANNELS_IN, PATCH, PATCH, deviation=(CHANNELS_IN * PATCH**2) ** -0.5)
    return {"x": image, "weight": weight, "bias": fp32(place.channels), **norm_parameters(place.channels),
            "y": Tensor((*place.image, place.channels), output=True)}


def embed_formula(place: Place, t: Tensors) -> Outputs:
    return (norm(F.conv2d(t["x"], t["weight"], t["bias"], stride=PATCH).permute(0, 2, 3, 1), t),)


PATCH_EMBED = Kernel(
    "SwinPatchEmbed", "patch embedding", "fp16", embed_tensors,
    lambda place, t: kernels.patch_embed(t["x"], t["weight"], t["bias"], t["gamma"], t["beta"], t["y"], EPSILON),
    embed_formula, lambda place: 2 * place.rows * CHANNELS_IN * PATCH**2 * place.channels,
    lambda place: (CHANNELS_IN * PATCH**2, place.channels), compared(embed_formula))


def embed_fp32_tensors(place: Place) -> dict[str, Tensor] | None:
    found = embed_tensors(place)
    return found and {**found, "y": found["y"]._replace(dtype=torch.float32)}


PATCH_EMBED_FP32 = replace(PATCH_EMBED, layer="patch embedding in FP32", precision="fp32", tensors=embed_fp32_tensors,
                           peers=compared(embed_formula, as_it_is))


def merge_tensors(place: Place) -> dict[str, Tensor] | None:
    if place.last:
        return None
    wide = 4 * place.channels
    half = place.side // 2
    return {"x": Tensor((*place.image, place.channels)), **({} if place.v2 else norm_parameters(wide)),
            "y": Tensor((place.batch, half, half, wide), output=True)}


def merge_formula(place: Place, t: Tensors) -> Outputs:
    half = place.side // 2
    x = t["x"].reshape(place.batch, half, 2, half, 2, place.channels).permute(0, 1, 3, 4, 2, 5)
    x = x.reshape(place.batch, half, half, 4 * place.channels)
    return (x if place.v2 else norm(x, t),)


PATCH_MERGES = [Kernel(
    name, "patch merging", "fp16",
    lambda place, v2=v2: merge_tensors(place) if place.v2 == v2 else None,
    lambda place, t: kernels.patch_merge(t["x"], t.get("gamma"), t.get("beta"), t["y"], EPSILON),
    merge_formula, features=lambda place: (place.channels, 4 * place.channels), peers=compared(merge_formula))
    for name, v2 in (("SwinPatchMergeLayerNorm", False), ("SwinPatchMerge", True))]


# --- normalisation ---------------------------------------------------------------------------------------------------

class Norm(NamedTuple):
    """A form of LayerNorm: what it reads and writes beside x, and its call."""

    name: str
    layer: str
    run: Callable[[Tensors], None]
    formula: Callable[[Tensors], Outputs]
    inputs: tuple[str, ...] = ()
    outputs: dict[str, float] = {"y": 0.0}  # and what a step of INT8 stands for  # noqa: RUF012, nothing writes to it
    parameters: bool = True
    v1: bool = True
    v2: bool = True
    x_step: float = 0.0


def norm_kernel(form: Norm) -> Kernel:
    quantises = any(form.outputs.values())

    def tensors(place: Place) -> dict[str, Tensor] | None:
        if not (form.v2 if place.v2 else form.v1):
            return None
        shape = (place.rows, place.channels)
        return {"x": int8(*shape, step=form.x_step) if form.x_step else Tensor(shape),
                **{name: Tensor(shape) for name in form.inputs},
                **(norm_parameters(place.channels) if form.parameters else {}),
                **{name: int8(*shape, step=step, output=True) if step else Tensor(shape, output=True)
                   for name, step in form.outputs.items()}}

    def eager(place: Place, t: Tensors) -> Outputs:
        return tuple(quantised(y, step) if step else y
                     for y, step in zip(form.formula(t), form.outputs.values(), strict=True))

    return Kernel(form.name, form.layer, "int8" if quantises else "fp16", tensors, lambda place, t: form.run(t),
                  lambda place, t: form.formula(t), peers=compared(eager, compiled=form.name != "SwinLayerNorm"))


def add_norm_formula(t: Tensors) -> Outputs:
    total = t["x"] + t["residual"]
    return total, norm(total, t)


def norm_add_formula(t: Tensors) -> Outputs:
    return (t["residual"] + norm(t["x"], t),)


def norm_add_int8_formula(t: Tensors) -> Outputs:
    y = t["residual"] + norm(t["x"].to(t["residual"].dtype) * LINEAR_STEP, t)
    return y, y


def plain_norm_formula(t: Tensors) -> Outputs:
    return (F.layer_norm(t["x"], t["x"].shape[-1:], eps=EPSILON),)


NORMS = [
    Norm("SwinLayerNorm", "norm without parameters", lambda t: kernels.layernorm(t["x"], None, None, t["y"], EPSILON),
         plain_norm_formula, parameters=False),
    Norm("SwinLayerNormWithParams", "norm", lambda t: kernels.layernorm(t["x"], t["gamma"], t["beta"], t["y"], EPSILON),
         lambda t: (norm(t["x"], t),)),
    Norm("SwinAddLayerNorm", "residual and norm",
         lambda t: kernels.add_layernorm(t["x"], t["residual"], t["gamma"], t["beta"], t["total"], t["y"], EPSILON),
         add_norm_formula, ("residual",), {"total": 0.0, "y": 0.0}, v2=False),
    Norm("SwinLayerNormAdd", "norm and residual",
         lambda t: kernels.layernorm_add(t["x"], t["residual"], t["gamma"], t["beta"], t["y"], EPSILON),
         norm_add_formula, ("residual",), v1=False),
    Norm("SwinLayerNormInt8", "norm",
         lambda t: kernels.layernorm_int8(t["x"], t["gamma"], t["beta"], t["y"], EPSILON, NORM_STEP),
         lambda t: (norm(t["x"], t),), outputs={"y": NORM_STEP}, v2=False),
    Norm("SwinLayerNormAddInt8", "norm and residual",
         lambda t: kernels.layernorm_add_int8(t["x"], t["residual"], t["gamma"], t["beta"], t["y"], t["y_q"], EPSILON,
                                              LINEAR_STEP, STREAM_STEP),
         norm_add_int8_formula, ("residual",), {"y": 0.0, "y_q": STREAM_STEP}, v1=False, x_step=LINEAR_STEP),
    Norm("SwinQuantize", "quantisation", lambda t: kernels.quantize(t["x"], t["y"], STREAM_STEP),
         lambda t: (t["x"],), outputs={"y": STREAM_STEP}, parameters=False, v1=False),
]


def fnorm_tensors(place: Place) -> dict[str, Tensor] | None:
    shape = (2, place.rows * place.heads, HEAD_DIM)  # q and k at once
    return {"x": Tensor(shape), "y": Tensor(shape, output=True)} if place.v2 else None


def fnorm_formula(place: Place, t: Tensors) -> Outputs:
    return (F.normalize(t["x"], dim=-1, eps=max(FNORM_EPSILON, torch.finfo(t["x"].dtype).tiny)),)


FNORM = Kernel("SwinFNorm", "F.normalize of q and k", "fp16", fnorm_tensors,
               lambda place, t: kernels.fnorm(t["x"], t["y"], FNORM_EPSILON), fnorm_formula,
               features=lambda place: (HEAD_DIM, HEAD_DIM), peers=compared(fnorm_formula))


# --- attention -------------------------------------------------------------------------------------------------------

def windows_of(place: Place, qkv: torch.Tensor) -> torch.Tensor:
    """[B, H, W, 3C] -> q, k and v: [3, B*nW, nH, N, d]"""
    side, window = place.side, place.window
    x = qkv.roll((-place.shift, -place.shift), (1, 2))
    x = x.reshape(place.batch, side // window, window, side // window, window, 3, place.heads, HEAD_DIM)
    return x.permute(5, 0, 1, 3, 6, 2, 4, 7).reshape(3, -1, place.heads, window**2, HEAD_DIM)


def image_of(place: Place, windows: torch.Tensor) -> torch.Tensor:
    """[B*nW, nH, N, d] -> [B, H, W, C]"""
    side, window = place.side, place.window
    x = windows.reshape(place.batch, side // window, side // window, place.heads, window, window, HEAD_DIM)
    x = x.permute(0, 1, 4, 2, 5, 3, 6).reshape(place.batch, side, side, place.channels)
    return x.roll((place.shift, place.shift), (1, 2))


def attention_scale(place: Place) -> float:
    return 1.0 if place.v2 else HEAD_DIM**-0.5


def attention_addend(place: Place, t: Tensors) -> torch.Tensor:
    """Bias and mask: [1 or nW, nH, N, N]"""
    bias = t["bias"][None, ..., :place.window**2]
    if not place.shift:
        return bias
    return bias + shift_mask(place.side, place.window, place.shift).to(bias)


def attended(place: Place, t: Tensors, qkv: torch.Tensor) -> torch.Tensor:
    """Window attention of qkv [B, H, W, 3C] in its type."""
    q, k, v = windows_of(place, qkv)
    if place.v2:
        q, k = F.normalize(q, dim=-1) * t["logit_scale"][:, None, None], F.normalize(k, dim=-1)
    logits, addend = q @ k.transpose(-2, -1) * attention_scale(place), attention_addend(place, t)
    logits = (logits.reshape(-1, *addend.shape) + addend).reshape(logits.shape)
    return image_of(place, logits.softmax(-1) @ v)


def attention_parameters(place: Place) -> dict[str, Tensor]:
    tokens = place.window**2
    bias = Tensor((place.heads, tokens, (tokens + 7) // 8 * 8), torch.float32, window=place.window)
    return {"bias": bias, **({"logit_scale": fp32(place.heads, mean=10.0, deviation=1.0)} if place.v2 else {})}


def attention_tensors(place: Place) -> dict[str, Tensor]:
    return {"qkv": Tensor((*place.image, 3 * place.channels)), **attention_parameters(place),
            "y": Tensor((*place.image, place.channels), output=True)}


def attention_operations(place: Place) -> int:
    return 4 * place.rows * place.window**2 * place.channels


def run_attention(place: Place, t: Tensors, plain_fp32: int = 0) -> None:
    kernels.attention(t["qkv"], t["bias"], None, t.get("logit_scale"), t["y"], place.heads, *place.windows,
                      attention_scale(place), MASK_VALUE, plain_fp32=plain_fp32)


def attention_formula(place: Place, t: Tensors) -> Outputs:
    return (attended(place, t, t["qkv"]),)


def partitioned(place: Place, t: Tensors) -> Tensors:
    """What PyTorch's attentions want: q, k and v in windows, in V2 normalised; bias and mask in FP16."""
    q, k, v = windows_of(place, t["qkv"])
    if place.v2:
        exact = t["logit_scale"].double()[:, None, None]
        q, k = (F.normalize(q.double(), dim=-1) * exact).half(), F.normalize(k.double(), dim=-1).half()
    addend = attention_addend(place, t).half()
    # Rows padded to a multiple of 8 elements, which the memory-efficient kernel wants.
    mask = F.pad(addend, (0, -addend.shape[-1] % 8)).repeat(q.shape[0] // addend.shape[0], 1, 1, 1)
    return {"q": q.contiguous(), "k": k.contiguous(), "v": v.contiguous(), "addend": addend,
            "mask": mask[..., :addend.shape[-1]]}


def sdpa(backend: SDPBackend, place: Place, t: Tensors) -> Outputs:
    with sdpa_kernel(backend):
        y = F.scaled_dot_product_attention(t["q"], t["k"], t["v"], attn_mask=t["mask"], scale=attention_scale(place))
    return (y,)


def flex(place: Place, t: Tensors) -> Outputs:
    addend = t["addend"]

    def score(score, window, head, query, key):
        return score + addend[window % addend.shape[0], head, query, key]

    return (flex_attention(t["q"], t["k"], t["v"], score_mod=score, scale=attention_scale(place)),)


def windowed(run: Callable[[Place, Tensors], Outputs], compiled: bool = False) -> Peer:
    return Peer(run, partitioned, compiled, restore=lambda place, y: (image_of(place, *y),), input_layout="windows")


ATTENTION_PEERS = {  # the flash backend takes no bias
    "sdpa-mem-efficient": windowed(partial(sdpa, SDPBackend.EFFICIENT_ATTENTION)),
    "sdpa-cudnn": windowed(partial(sdpa, SDPBackend.CUDNN_ATTENTION)),
    "flex-attention": windowed(flex, compiled=True),
}


def attention(layer: str, shifted: bool) -> Kernel:
    return Kernel("SwinAttention", layer, "fp16", attention_tensors, run_attention, attention_formula,
                  attention_operations, lambda place: (3 * place.channels, place.channels), ATTENTION_PEERS,
                  windows=True, shifted=shifted)


def attention_fp32(layer: str, shifted: bool) -> Kernel:
    """SwinAttention in FP32 on tensor cores, beside the same on CUDA cores (swin-plain)."""
    def tensors(place: Place) -> dict[str, Tensor]:
        return {name: spec._replace(dtype=torch.float32) for name, spec in attention_tensors(place).items()}

    def run_plain(place: Place, t: Tensors) -> Outputs:
        run_attention(place, t, plain_fp32=1)
        return (t["y"],)

    peers = {"torch-eager": Peer(attention_formula, as_it_is),
             "torch-compile": Peer(attention_formula, as_it_is, compiled=True),
             "swin-plain": Peer(run_plain, as_it_is)}
    return replace(attention(layer, shifted), layer=f"{layer} in FP32", precision="fp32", tensors=tensors,
                   run=partial(run_attention, plain_fp32=-1), peers=peers)


def attention_int8_tensors(place: Place) -> dict[str, Tensor]:
    y = (*place.image, place.channels)
    return {"qkv": int8(*place.image, 3 * place.channels, step=QKV_STEP), **attention_parameters(place),
            # proj of V1's narrow blocks is FP16
            "y": Tensor(y, output=True) if writes_fp16(place) else int8(*y, step=ATTENTION_STEP, output=True)}


def writes_fp16(place: Place) -> bool:
    """Whether INT8 attention hands FP16 to proj: in V1's narrow blocks."""
    return not place.v2 and place.channels <= NARROW


def run_attention_int8(place: Place, t: Tensors) -> None:
    kernels.attention_int8(t["qkv"], t["bias"], None, t.get("logit_scale"), t["y"], place.heads, *place.windows,
                           attention_scale(place), MASK_VALUE, QKV_STEP,
                           0.0 if writes_fp16(place) else ATTENTION_STEP)


def attention_int8(layer: str, shifted: bool) -> Kernel:
    # PyTorch has no INT8 attention to compare with.
    return Kernel("SwinAttentionInt8", layer, "int8", attention_int8_tensors, run_attention_int8,
                  lambda place, t: (attended(place, t, t["qkv"] * QKV_STEP),), attention_operations,
                  lambda place: (3 * place.channels, place.channels), windows=True, shifted=shifted)


# --- the attention branch in INT8 ------------------------------------------------------------------------------------

def branch_tensors(place: Place) -> dict[str, Tensor] | None:
    c, image = place.channels, place.image
    if c not in BRANCH_WIDTHS:
        return None
    return {"x_q": int8(*image, c), "x": Tensor((*image, c)), **int8_product_parameters(c, 3 * c, "qkv_"),
            **int8_product_parameters(c, c, "proj_"), **attention_parameters(place), **norm_parameters(c),
            "y": Tensor((*image, c), output=True), "y_q": int8(*image, c, step=STREAM_STEP, output=True)}


def rounded(x: torch.Tensor, step: float) -> torch.Tensor:
    return (x / step).round().clamp(-128, 127) * step


def branch_formula(place: Place, t: Tensors) -> Outputs:
    """With the roundings between the parts."""
    qkv = rounded(t["x_q"] @ t["qkv_weight"].T * t["qkv_factor"] + t["qkv_bias"], QKV_STEP)
    steps = (attended(place, t, qkv) / ATTENTION_STEP).round().clamp(-128, 127)
    projected = steps @ t["proj_weight"].T * t["proj_factor"] + t["proj_bias"]
    if place.v2:
        y = t["x"] + norm(rounded(projected, LINEAR_STEP), t)
        return y, y
    y = (t["x"] + projected).half().to(t["x"])
    return y, norm(y, t)


def run_branch(place: Place, t: Tensors) -> None:
    kernels.attention_branch_int8(
        t["x_q"], t["x"], t["qkv_weight"], t["qkv_factor"], t["qkv_bias"], t["proj_weight"], t["proj_factor"],
        t["proj_bias"], t["bias"], t["gamma"], t["beta"], t.get("logit_scale"), t["y"], t["y_q"], place.heads,
        *place.windows, not place.v2, attention_scale(place), MASK_VALUE, QKV_STEP, ATTENTION_STEP,
        LINEAR_STEP if place.v2 else 0.0, EPSILON, STREAM_STEP)


def branch_in_parts(place: Place, t: Tensors) -> Outputs:
    """The same by SwinLinearInt8, SwinAttentionInt8, SwinLinearInt8 and the LayerNorm, a kernel each."""
    x, x_q = t["x"], t["x_q"]
    qkv = torch.empty(*place.image, 3 * place.channels, dtype=torch.int8, device=x.device)
    attention, y, y_q = torch.empty_like(x_q), torch.empty_like(x), torch.empty_like(x_q)
    kernels.linear_int8(x_q, t["qkv_weight"], t["qkv_factor"], t["qkv_bias"], None, qkv, 0, QKV_STEP)
    kernels.attention_int8(qkv, t["bias"], None, t.get("logit_scale"), attention, place.heads, *place.windows,
                           attention_scale(place), MASK_VALUE, QKV_STEP, ATTENTION_STEP)
    projection = (t["proj_weight"], t["proj_factor"], t["proj_bias"])
    if place.v2:
        projected = torch.empty_like(x_q)
        kernels.linear_int8(attention, *projection, None, projected, 0, LINEAR_STEP)
        kernels.layernorm_add_int8(projected, x, t["gamma"], t["beta"], y, y_q, EPSILON, LINEAR_STEP, STREAM_STEP)
    else:
        kernels.linear_int8(attention, *projection, x, y, 0, 0.0)
        kernels.layernorm_int8(y, t["gamma"], t["beta"], y_q, EPSILON, STREAM_STEP)
    return y, y_q


def branch(layer: str, shifted: bool) -> Kernel:
    return Kernel(
        "SwinAttentionBranchInt8", layer, "int8", branch_tensors, run_branch, branch_formula,
        lambda place: attention_operations(place) + 8 * place.rows * place.channels**2,
        peers={"swin-parts": Peer(branch_in_parts, as_it_is)}, windows=True, shifted=shifted)


# --- all blocks ------------------------------------------------------------------------------------------------------

def blocks_tensors(place: Place) -> dict[str, Tensor] | None:
    if place.stage:
        return None
    stages = len(place.network.depths) - 1
    return {"x": Tensor((place.batch, place.side**2, place.channels)),
            "y": Tensor((place.batch, place.side**2 // 4**stages, place.channels * 2**stages), output=True)}


def blocks_operations(place: Place) -> int:
    total = 0
    stages = places(place.network, place.model, place.batch)
    for stage, depth in zip(stages, place.network.depths, strict=True):
        total += depth * (attention_operations(stage) + sum(
            linear_operations(layer, stage) for layer in LINEARS.values() if not layer.reduces))
        total += 0 if stage.last else linear_operations(LINEARS["reduction"], stage)
    return total


def blocks(precision: str) -> Kernel:
    def run(place: Place, t: Tensors) -> Outputs:
        return (kernel_blocks.by_kernels(place.network, precision, t["x"]),)

    def formula(place: Place, t: Tensors) -> Outputs:
        return (kernel_blocks.by_pytorch(place.network, t["x"]),)

    def with_layers(place: Place, t: Tensors) -> Tensors:
        x = t["x"].half()
        return {"x": x, "layers": kernel_blocks.network(place.network, str(x.device), x.dtype).layers}

    def eager(place: Place, t: Tensors) -> Outputs:
        x = t["x"]
        for layer in t["layers"]:
            x = layer(x)
        return (x,)

    return Kernel(
        "all blocks", "blocks and patch merging", precision, blocks_tensors, run, formula, blocks_operations,
        lambda place: (place.channels, place.channels * 2 ** (len(place.network.depths) - 1)),
        compared(eager, with_layers) if precision == "fp16" else {}, rotate=False,
        more_bytes=lambda place: kernel_blocks.weight_bytes(place.network, precision))


ATTENTIONS = (("W-MSA", False), ("SW-MSA", True))
KERNELS = [
    *(linear(name, layer) for name, layer in LINEARS.items()),
    *(linear_fp32(name, layer) for name, layer in LINEARS.items()),
    mlp("norm and MLP", with_proj=False), mlp("proj, norm and MLP", with_proj=True),
    PATCH_EMBED, PATCH_EMBED_FP32, *PATCH_MERGES, *map(norm_kernel, NORMS), FNORM,
    *(attention(*which) for which in ATTENTIONS),
    *(attention_fp32(*which) for which in ATTENTIONS),
    *(linear_int8(name, layer) for name, layer in LINEARS.items() if not layer.reduces),
    *(attention_int8(*which) for which in ATTENTIONS),
    *(branch(*which) for which in ATTENTIONS),
    blocks("fp16"), blocks("int8"),
]


def cases(networks: list[tuple[Swin, str]], batches: list[int], chosen: list[Kernel]) -> Iterator[Case]:
    """Every kernel at every place that has work for it, batch by batch."""
    for batch in batches:
        for kernel in chosen:
            for network, model in networks:
                for place in places(network, model, batch):
                    if kernel.shifted:
                        if place.side <= place.window:
                            continue
                        place = replace(place, shift=place.window // 2)
                    tensors = kernel.tensors(place)
                    if tensors is not None:
                        yield Case(kernel, place, tensors)
