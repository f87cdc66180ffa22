"""What a graph reads: its one image input, and the array for it that photographs become.

Type, layout and size are the graph's own. What its pixels mean, from 0 to 255, from 0 to 1 or normalised, is read from
what the graph does with them before its first product, or from what its maker wrote into the file (facts.py), or it is
given with --input-range. Calibration and every check feed a graph through here.
"""
from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from data.images import IMAGENET_MEAN, IMAGENET_STD
from graphs.facts import RANGES, Facts, of_onnx
from utils import UserError, image_size

if TYPE_CHECKING:  # what runs beside TensorRT imports this module where there is no onnx
    import onnx

LAYOUTS = ("NCHW", "NHWC")
TYPES = ("FLOAT", "FLOAT16", "UINT8")
LARGE_IMAGE = 3 * 2**20  # numbers: a tensor of 2560 x 1920 pixels takes hundreds of MiB, and every batch counts
GREY = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601, as PIL's convert("L")


@dataclass(frozen=True)
class Picture:
    """The image input of a graph.

    Attributes:
        name: of the tensor.
        batch: that is fixed; None where it is open.
        height, width: in pixels.
        channels: 3, or 1 for grey.
        layout: NCHW or NHWC.
        type: NumPy's, float32, float16 or uint8.
        range: of facts.RANGES.
        mean, std: that pixels from 0 to 1 are normalised with, where range is "normalised".
        colour: RGB or BGR.
    """

    name: str
    batch: int | None
    height: int
    width: int
    channels: int
    layout: str
    type: np.dtype
    range: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    colour: str

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.height, self.width

    @property
    def large(self) -> bool:
        return is_large_image([None, self.channels, self.height, self.width])

    def of(self, pixels: np.ndarray) -> np.ndarray:
        """What the graph reads for uint8 RGB pixels [N, H, W, 3]: an array in its own type, layout and range.

        Raises:
            UserError: the graph takes images of another number of channels than 3 and 1.
        """
        if self.channels not in (1, 3):
            raise UserError(f"takes images of {self.channels} channels, and there are only photographs to check and "
                            "calibrate with")
        image = pixels if self.colour == "RGB" else pixels[..., ::-1]
        if self.channels == 1:
            image = np.rint(pixels @ GREY)[..., None].astype(np.uint8)
        if self.range == "0..255":
            image = image.astype(self.type)
        else:
            image = image.astype(np.float32) / np.float32(255)
        if self.range == "normalised":
            image = (image - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)
        image = image.astype(self.type)
        return np.ascontiguousarray(image if self.layout == "NHWC" else np.moveaxis(image, -1, -3))

    def noise(self, count: int, seed: int = 0) -> np.ndarray:
        """`count` different images that need no photographs: random squares of 8 pixels, in the graph's own form."""
        rng, shape = np.random.default_rng(seed), (count, -(-self.height // 8), -(-self.width // 8), 3)
        pixels = rng.integers(0, 256, shape, np.uint8).repeat(8, axis=1).repeat(8, axis=2)
        pixels = pixels[:, :self.height, :self.width]
        if self.channels in (1, 3):
            return self.of(pixels)
        image = np.resize(np.moveaxis(pixels, -1, 0), (self.channels, *pixels.shape[:3])) / np.float32(255)
        image = np.moveaxis(image, 0, 1 if self.layout == "NCHW" else -1)
        return np.ascontiguousarray(image * 255 if self.range == "0..255" else image).astype(self.type)


def add_input_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say what a graph reads, where it does not say so itself: --input-range --layout --size."""
    parser.add_argument("--input-range", choices=RANGES,
                        help="what its pixels are: from 0 to 255, from 0 to 1, or normalised with ImageNet's mean and "
                             "deviation (default: as the graph says)")
    parser.add_argument("--layout", choices=LAYOUTS, help="order of its axes (default: as the graph's shape says)")
    parser.add_argument("--size", type=image_size, metavar="S or HxW",
                        help="height and width in pixels, for a graph that leaves them open")


def is_large_image(dims: Sequence[int | str | None]) -> bool:
    """Whether an image input of this shape, the batch first, takes so much memory that fewer images are run at once."""
    return int(np.prod([dim for dim in dims[1:] if isinstance(dim, int)])) >= LARGE_IMAGE


def inputs_of(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """The inputs that are no weights."""
    weights = {tensor.name for tensor in model.graph.initializer}
    return [value for value in model.graph.input if value.name not in weights]


def image_input(model: onnx.ModelProto) -> tuple[str, list[int | None]]:
    """Name and shape of the one input; None stands for what is not fixed.

    Raises:
        UserError: the model has not one input with four axes, or takes no images in float32, float16 or uint8.
    """
    inputs = inputs_of(model)
    if len(inputs) != 1:
        names = ", ".join(value.name for value in inputs)
        raise UserError(f"has {len(inputs)} inputs instead of one ({names}); export it with all but the image as "
                        "constants" if inputs else "has no input; give the ONNX file of an image classifier")
    from onnx import TensorProto

    tensor = inputs[0].type.tensor_type
    kind = TensorProto.DataType.Name(tensor.elem_type) if tensor.elem_type in TensorProto.DataType.values() else "?"
    if kind not in TYPES:
        raise UserError(f"its input {inputs[0].name} holds {kind}; give the ONNX file of an image classifier, which "
                        "reads FLOAT, FLOAT16 or UINT8")
    wrong = [dim.dim_value for dim in tensor.shape.dim if dim.WhichOneof("value") == "dim_value" and dim.dim_value < 0]
    if wrong:
        raise UserError(f"its input {inputs[0].name} has an axis of {wrong[0]}, which is no size; export it again, an "
                        "open axis having a name")
    dims = [dim.dim_value or None for dim in tensor.shape.dim]
    if len(dims) != 4:
        raise UserError(f"its input {inputs[0].name} is {dims} instead of [batch, 3, height, width]; give the ONNX "
                        "file of an image classifier")
    return inputs[0].name, dims


def sized(model: onnx.ModelProto, size: tuple[int, int] | None = None, layout: str | None = None) -> onnx.ModelProto:
    """The model with height, width and channels fixed, where it leaves them open; itself, where it does not.

    Args:
        size: height and width, --size.
        layout: --layout.
    Raises:
        UserError: what `image_input` raises; height or width are open and no size is given, or it is another one.
    """
    name, dims = image_input(model)
    layout = layout or _layout(dims)
    wanted = {"C": 3, "H": size[0] if size else None, "W": size[1] if size else None}
    if None not in dims[1:]:
        for axis in "HW":
            if size and dims[layout.index(axis)] != wanted[axis]:
                raise UserError(f"takes images of {dims[layout.index('H')]}x{dims[layout.index('W')]} (height x width)"
                                f", not {size[0]}x{size[1]}; leave out --size")
        return model
    if size is None:
        raise UserError(f"its input {name} is {dims}, {layout} with None for what is open, instead of [batch, 3, "
                        "height, width]; export it with a fixed image size, or give the size with --size")
    fixed = type(model)()
    fixed.CopyFrom(model)
    (value,) = inputs_of(fixed)
    for axis, dim in zip(layout, value.type.tensor_type.shape.dim):
        if axis != "N" and not dim.dim_value:
            dim.dim_value = wanted[axis]
    del fixed.graph.value_info[:]  # they speak of open sizes
    return fixed


def _layout(dims: list[int | None]) -> str:
    return "NHWC" if dims[3] in (1, 3) and dims[1] not in (1, 3) else "NCHW"


def picture(model: onnx.ModelProto, input_range: str | None = None, layout: str | None = None,
            facts: Facts | None = None) -> Picture:
    """The image input of a model whose image size is fixed.

    Args:
        input_range: --input-range, in the stead of what the graph says.
        layout: --layout.
        facts: of the model, where they are known already.
    Raises:
        UserError: what `image_input` raises; the image's size is open; a range that the input's type cannot hold.
    """
    from onnx import helper

    name, dims = image_input(model)
    facts = facts or of_onnx(model)
    layout = layout or facts.layout or _layout(dims)
    if None in dims[1:]:
        sized(model, None, layout)  # says so
    kind = np.dtype(helper.tensor_dtype_to_np_dtype(inputs_of(model)[0].type.tensor_type.elem_type))
    found = input_range or facts.input_range
    if kind == np.uint8 and found != "0..255":
        raise UserError(f"its input {name} is uint8, which holds only pixels from 0 to 255; leave out --input-range")
    channels = dims[layout.index("C")]
    mean, std = _mean_and_std(facts, channels)
    return Picture(name, dims[0], dims[layout.index("H")], dims[layout.index("W")], channels, layout, kind, found, mean,
                   std, facts.colour or "RGB")


def _mean_and_std(facts: Facts, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """What pixels from 0 to 1 are normalised with before they go in."""
    # Of another range the graph says the mean and the deviation that it applies itself.
    said = facts.input_range == "normalised" and len(facts.mean) == len(facts.std) == 3
    mean, std = (facts.mean, facts.std) if said else (IMAGENET_MEAN, IMAGENET_STD)
    if channels == 1:
        return (float(np.mean(mean)),), (float(np.mean(std)),)
    return tuple(mean), tuple(std)


def picture_of(facts: Facts, name: str, input_range: str | None = None, layout: str | None = None,
               size: tuple[int, int] | None = None) -> Picture:
    """The image input of a graph or an engine by its facts, where the graph itself is not at hand.

    Args:
        facts: of the file.
        name: of the file, for messages.
        input_range, layout, size: the flags of `add_input_arguments`.
    Raises:
        UserError: its input is no image, its size is open and none is given, or another one is given.
    """
    shape, layout = facts.input_shape, layout or facts.layout
    if len(shape) != 4 or not layout or facts.input_type not in ("", "float32", "float16", "uint8"):
        raise UserError(f"{name}: reads {facts.input_type} {list(shape)}, not images [batch, 3, height, width]; give "
                        "an image classifier")
    high, wide, channels = (shape[layout.index(axis)] for axis in "HWC")
    channels = 3 if channels is None else channels
    if channels not in (1, 3):
        raise UserError(f"{name}: takes images of {channels} channels, not photographs; give an image classifier")
    if size and (high not in (None, size[0]) or wide not in (None, size[1])):
        raise UserError(f"{name}: takes images of {high}x{wide} (height x width), not {size[0]}x{size[1]}; leave out "
                        "--size")
    if size is None and (high is None or wide is None):
        raise UserError(f"{name}: leaves the height and width of its images open; give --size")
    kind, found = np.dtype(facts.input_type or "float32"), input_range or facts.input_range
    if kind == np.uint8 and found != "0..255":
        raise UserError(f"{name}: reads uint8, which holds only pixels from 0 to 255; leave out --input-range")
    mean, std = _mean_and_std(facts, channels)
    return Picture(facts.input, shape[0], size[0] if size else high, size[1] if size else wide, channels, layout, kind,
                   found, mean, std, facts.colour or "RGB")
