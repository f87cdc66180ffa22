"""The facts of a graph or an engine: which model it is, what it computes in, the image it takes, what it was made from.

    python graphs/facts.py onnx/swinv1_fp16.onnx                            # prints them as JSON
    python graphs/facts.py onnx/swinv1_fp16.onnx precision input height     # prints these, one a line

Exporters and surgery write them into an ONNX file (metadata_props, each under `swin.` and its name), the builder writes
them into the .json beside a plan. What a graph says itself is read from the graph, whatever its metadata says; files
without facts, such as somebody else's ONNX file, are read in the same way. The name of a file is never evidence.

Imports the standard library and NumPy at module level, because the Python that has TensorRT often has no onnx.
"""
from __future__ import annotations

import argparse
import hashlib
import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

sys.path.insert(1, str(Path(__file__).resolve().parents[1]))

from graphs.files import PLUGIN_DOMAIN, refuse_old_nodes
from utils import ROOT, UserError, existing_file, from_one, run_script, shown, whole_file

PREFIX = "swin."  # of the keys in metadata_props
PRECISIONS = ("int8", "fp16", "bf16", "fp32")  # the first of them that a matrix product computes in is the graph's
RANGES = ("normalised", "0..1", "0..255")
LONGEST = 100_000  # characters of one fact in a file; ImageNet-22k's labels are 500,000 and belong elsewhere


class Parent(NamedTuple):
    """A file that another one was made from: its SHA-256, and its name at the time, which only people read."""

    digest: str
    name: str


class Output(NamedTuple):
    """An output tensor; a dimension that is open, such as the batch, is None."""

    name: str
    type: str
    shape: tuple[int | None, ...]


@dataclass(frozen=True)
class Facts:
    """What is known of an ONNX file or a plan; what is not known is empty.

    Attributes:
        model: MODEL.NAME of the yaml.
        variant: stem of the yaml.
        weights: SHA-256 of the checkpoint.
        export: whose model was exported: "swin" for this project's, "timm" for timm's.
        precision: lowest type that a matrix product computes in: int8, fp16, bf16 or fp32.
        patched: number of plugin nodes of each type.
        digest: SHA-256 of the file, and of the files that hold its weights where it has such.
        parents: the files that this one was made from, the nearest first.
        input: name of the image's tensor; `input_type` as NumPy names it; `input_shape` with None for what is open.
        layout: NCHW or NHWC.
        input_range: of RANGES, "normalised" being (pixel / 255 - mean) / std.
        mean, std: of the three channels, for pixels from 0 to 1; those that the graph itself applies, where it does.
        colour: RGB or BGR.
        resize: how the evaluation resized an image, in words.
        outputs: the output tensors.
        classes: number of classes.
        labels: their names.
        opset: of the ONNX operators.
        tools: name -> version of what made the file.
        batches: smallest and largest batch of a plan's optimization profile; empty where it has none, and of a graph.
    """

    model: str = ""
    variant: str = ""
    weights: str = ""
    export: str = ""
    precision: str = ""
    patched: dict[str, int] = field(default_factory=dict)
    digest: str = ""
    parents: tuple[Parent, ...] = ()
    input: str = ""
    input_type: str = ""
    input_shape: tuple[int | None, ...] = ()
    layout: str = ""
    input_range: str = ""
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    colour: str = ""
    resize: str = ""
    outputs: tuple[Output, ...] = ()
    classes: int | None = None
    labels: tuple[str, ...] = ()
    opset: int | None = None
    tools: dict[str, str] = field(default_factory=dict)
    batches: tuple[int, ...] = ()

    @property
    def batch(self) -> int | None:
        """The batch that is fixed; None where it is open."""
        return self.input_shape[0] if self.input_shape else None

    @property
    def height(self) -> int | None:
        """Of the image in pixels; None where it is open."""
        return self.input_shape[self.layout.index("H")] if self.layout else None

    @property
    def width(self) -> int | None:
        """Of the image in pixels; None where it is open."""
        return self.input_shape[self.layout.index("W")] if self.layout else None

    @property
    def family(self) -> tuple[str, ...]:
        """Digests of the file itself and of all that it was made from, the nearest first."""
        return tuple(filter(None, (self.digest, *(parent.digest for parent in self.parents))))

    @property
    def patches(self) -> str:
        """What the plugin nodes replace, in a word: no, layernorm, attention (and what goes with it) or other."""
        if any("Attention" in node for node in self.patched):
            return "attention"
        return "no" if not self.patched else "layernorm" if all("LayerNorm" in node for node in self.patched) else (
            "other")

    @property
    def plain(self) -> bool:
        """Whether it is in FP32 and holds no plugin nodes: errors are taken against such a graph."""
        return self.precision == "fp32" and not self.patched

    def model_of(self, path: str | Path) -> str:
        """The model's name for tables; of a file that nobody wrote it into, that of the file it all began with."""
        return self.model or Path(self.parents[-1].name if self.parents else path).stem

    def of_same_weights(self, other: Facts) -> bool:
        """Whether both are known to be of one model with one checkpoint and take the same images, whoever exported it.
        """
        return bool(self.weights) and (self.model, self.weights, self.input_shape[1:]) == (
            other.model, other.weights, other.input_shape[1:])

    def made_from(self, other: Facts) -> bool:
        """Whether this file is the other one, or was made from it."""
        return bool(other.digest) and other.digest in self.family

    def to_json(self) -> str:
        """The facts as a JSON object, with batch, height and width for readers that do not know layouts."""
        shape = {"batch": self.batch, "height": self.height, "width": self.width}
        return json.dumps({**asdict(self), **shape}, indent=1)


def of_model(config, cfg: Path, checkpoint: Path, export: str = "swin", labels: tuple[str, ...] = ()) -> Facts:
    """The facts of a PyTorch model that its export takes along.

    Args:
        config: what config.get_config gives.
        cfg: the yaml.
        checkpoint: the weights.
        export: whose model it is, "swin" or "timm".
        labels: the names of its classes.
    """
    from data.images import IMAGENET_MEAN, IMAGENET_STD, resize_rule

    size = config.DATA.IMG_SIZE
    return Facts(model=config.MODEL.NAME, variant=cfg.stem, weights=file_digest(checkpoint), export=export,
                 input_shape=(None, 3, size, size), layout="NCHW", input_range="normalised", mean=IMAGENET_MEAN,
                 std=IMAGENET_STD, colour="RGB", resize=resize_rule(size), labels=labels)


# --- reading what was written --------------------------------------------------------------------------------


def _strings(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _numbers(value: object) -> bool:
    return isinstance(value, list) and len(value) in (0, 3) and all(
        isinstance(item, (int, float)) and np.isfinite(item) for item in value)


def _sizes(value: object) -> bool:
    return isinstance(value, list) and all(size is None or _count(size) for size in value)


def _count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


# For each fact that is no text: what JSON may hold, and how it becomes the attribute.
FORMS: dict[str, tuple[Callable[[Any], bool], Callable]] = {
    "patched": (lambda value: isinstance(value, dict) and all(map(_count, value.values())), dict),
    "parents": (lambda value: isinstance(value, list) and all(_strings(item) and len(item) == 2 for item in value),
                lambda value: tuple(Parent(*item) for item in value)),
    "input_shape": (_sizes, tuple),
    "mean": (_numbers, tuple),
    "std": (lambda value: _numbers(value) and all(item > 0 for item in value), tuple),
    "outputs": (lambda value: isinstance(value, list) and all(
        isinstance(item, list) and len(item) == 3 and _strings(item[:2]) and _sizes(item[2]) for item in value),
        lambda value: tuple(Output(name, kind, tuple(shape)) for name, kind, shape in value)),
    "classes": (lambda value: value is None or _count(value), lambda value: value),
    "labels": (_strings, tuple),
    "opset": (lambda value: value is None or _count(value), lambda value: value),
    "tools": (lambda value: isinstance(value, dict) and _strings(list(value.values())), dict),
    "batches": (lambda value: isinstance(value, list) and len(value) in (0, 2) and all(map(_count, value)), tuple),
}
CHOICES = {"precision": ("", *PRECISIONS), "layout": ("", "NCHW", "NHWC"), "input_range": ("", *RANGES),
           "colour": ("", "RGB", "BGR")}


def _checked(found: dict[str, Any], where: str) -> Facts:
    """Facts from a JSON object; UserError that names the first one that is not what it should be."""
    known = {}
    for name in (item.name for item in fields(Facts)):
        if name not in found:
            continue
        fits, form = FORMS.get(name, (lambda value: isinstance(value, str), str))
        if not fits(found[name]) or found[name] not in CHOICES.get(name, (found[name],)):
            raise UserError(f"{where}: its fact {name} is {json.dumps(found[name])[:60]}, which it cannot be; make the "
                            "file again")
        known[name] = form(found[name])
    facts = Facts(**known)
    if facts.layout and len(facts.input_shape) != len(facts.layout):
        raise UserError(f"{where}: its facts contradict each other: layout {facts.layout} and shape "
                        f"{list(facts.input_shape)}; make the file again")
    return facts


def _parsed(text: str, where: str) -> object:
    if len(text) > LONGEST:
        raise UserError(f"{where}: holds {len(text)} characters, more than the {LONGEST} of any fact; make it again")
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: is not JSON; make it again") from error


def file_digest(path: str | Path) -> str:
    """SHA-256 of a file, 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with existing_file(path, "a file").open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


# --- ONNX ----------------------------------------------------------------------------------------------------

PRODUCTS = ("MatMul", "Gemm", "Conv", "ConvTranspose", "Einsum", "FusedMatMul", "FusedConv", "FusedGemm", "Attention",
            "MultiHeadAttention")
INTEGER_PRODUCTS = ("QuantizeLinear", "DynamicQuantizeLinear", "MatMulInteger", "ConvInteger", "QLinearMatMul",
                    "QLinearConv", "QGemm", "QAttention", "MatMulIntegerToFloat")
# What may stand between an image and the first product and changes each pixel by itself, or moves them.
PREPROCESSING = ("Add", "Cast", "Concat", "Div", "Gather", "Identity", "Mul", "Slice", "Split", "Squeeze", "Sub",
                 "Transpose", "Unsqueeze")


def of_onnx(source, name: str = "") -> Facts:
    """The facts of an ONNX file, or of an onnx.ModelProto (then without a digest).

    Args:
        source: path or model. Weights that lie in other files are not read, but for the digest.
        name: what messages call a model that has no path.
    Raises:
        UserError: no such file, not an ONNX file, or a fact in its metadata that it cannot be.
    """
    if isinstance(source, (str, Path)):
        path, name = Path(source), shown(source)
        model = _outline(path)
        digest = _digest(path, model)
    else:
        model, name, digest = source, name or "the graph", ""
    written = {}
    for entry in model.metadata_props:
        key = entry.key[len(PREFIX):]
        if entry.key.startswith(PREFIX) and key in Facts.__dataclass_fields__:
            written[key] = _parsed(entry.value, f"{name}: its fact {key}") if key in FORMS else entry.value
    facts = _checked(written, name)
    seen = _of_graph(model)
    for key, value in seen.items():
        said = getattr(facts, key)
        if key in written and not _same(said, value):
            print(f"{name}: its metadata says {key} {said}, and the graph {value}; the graph counts", file=sys.stderr)
    facts = replace(facts, **seen, digest=digest)
    if not facts.input_range:  # nothing in the graph and nobody says: as every model here takes its images
        facts = replace(facts, input_range="0..255" if facts.input_type == "uint8" else "normalised")
    if facts.classes is None:
        facts = replace(facts, classes=_classes(facts.outputs))
    return facts


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, tuple) and one and all(isinstance(item, float) for item in one):
        return len(one) == len(other) and np.allclose(one, other, atol=1e-3)
    return one == other


def with_facts(model, facts: Facts):
    """Write facts into an onnx.ModelProto, in place, and give it back.

    Those that the graph says itself are read from it; the digest, which a file cannot hold of itself, is left out.
    """
    seen = replace(facts, **_of_graph(model))
    entries = {entry.key: entry.value for entry in model.metadata_props if not entry.key.startswith(PREFIX)}
    for key, value in asdict(seen).items():
        if key != "digest" and value not in ("", (), {}, None):
            entries[PREFIX + key] = value if isinstance(value, str) else json.dumps(value)
    del model.metadata_props[:]
    for key, value in entries.items():
        model.metadata_props.add(key=key, value=value)
    return model


def carried_over(model, source: str | Path, **changes: Any):
    """Write into an onnx.ModelProto, in place, that it was made from an ONNX file, with the facts of that; gives it
    back. The file's other metadata comes along.

    Args:
        source: the file.
        changes: facts of the new graph that neither it nor the file says.
    """
    known = {entry.key for entry in model.metadata_props}
    for entry in _outline(Path(source)).metadata_props:
        if entry.key not in known and not entry.key.startswith(PREFIX):
            model.metadata_props.add(key=entry.key, value=entry.value)
    parent = of_onnx(source)
    parents = (Parent(parent.digest, Path(source).name), *parent.parents)
    return with_facts(model, replace(parent, parents=parents, **changes))


def _outline(path: Path):
    """The onnx.ModelProto of a file without weights that lie elsewhere; UserError if it is not an ONNX file."""
    try:
        import onnx
        from google.protobuf.message import DecodeError
    except ImportError as error:
        raise UserError(f"{sys.executable} has no onnx, which reads {shown(path)}; run this with the Python of "
                        "requirements.txt") from error
    try:
        model = onnx.load(str(existing_file(path, "an ONNX file")), format="protobuf", load_external_data=False)
    except DecodeError as error:
        raise UserError(f"{shown(path)}: is not an ONNX file, or a truncated one; write it again") from error
    if not model.graph.node or not model.graph.input:
        raise UserError(f"{shown(path)}: is not an ONNX file: no graph in it; write it again")
    refuse_old_nodes(model, path)
    return model


def _digest(path: Path, model) -> str:
    """SHA-256 of the file; where weights lie in other files, of the digests of all, in the order of their names."""
    places = sorted({entry.value for tensor in model.graph.initializer for entry in tensor.external_data
                     if entry.key == "location"})
    if not places:
        return file_digest(path)
    for place in places:
        if Path(place).is_absolute() or ".." in Path(place).parts:
            raise UserError(f"{shown(path)}: says that its weights lie in {place}, outside its folder; save it again "
                            "with the weights beside it")
        existing_file(path.parent / place, f"the weights of {shown(path)}")
    digests = [file_digest(file) for file in (path, *(path.parent / place for place in places))]
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def _of_graph(model) -> dict[str, Any]:
    """The facts that the graph of an onnx.ModelProto says itself."""
    import onnx

    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in constants]
    seen: dict[str, Any] = {
        "precision": precision_of(model),
        "patched": dict(sorted(Counter(node.op_type for node in model.graph.node
                                       if node.domain == PLUGIN_DOMAIN).items())),
        "outputs": tuple(Output(*_tensor(onnx, value)) for value in model.graph.output),
        "opset": max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=None),
    }
    if inputs:
        name, kind, shape = _tensor(onnx, inputs[0])
        seen |= {"input": name, "input_type": kind, "input_shape": shape}
        if len(shape) == 4:
            seen["layout"] = "NHWC" if shape[3] in (1, 3) and shape[1] not in (1, 3) else "NCHW"
            seen |= _preprocessing(model, seen)
    return seen


def _tensor(onnx, value) -> tuple[str, str, tuple[int | None, ...]]:
    """Name, type as NumPy names it and shape of an input or output."""
    tensor = value.type.tensor_type
    try:
        kind = str(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)) if tensor.elem_type else ""
    except KeyError:
        kind = ""
    return value.name, kind, tuple(dim.dim_value if dim.dim_value > 0 else None for dim in tensor.shape.dim)


def nodes_of(graph) -> Iterable:
    """All nodes of an onnx.GraphProto, those of the bodies of If and Loop among them."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for body in (attribute.g, *attribute.graphs):
                yield from nodes_of(body)


def precision_of(model) -> str:
    """What the graph of an onnx.ModelProto computes in: the lowest type that one of its matrix products has.

    int8 where it quantizes activations. A Cast, or a weight, that no product reads does not count.
    """
    from onnx import TensorProto

    nodes = [*nodes_of(model.graph), *(node for function in model.functions for node in function.node)]
    if any(node.op_type in INTEGER_PRODUCTS or (node.domain == PLUGIN_DOMAIN and _is_int8(node.op_type))
           for node in nodes):
        return "int8"
    names: dict[int, str] = {TensorProto.FLOAT: "fp32", TensorProto.FLOAT16: "fp16", TensorProto.BFLOAT16: "bf16",
                             TensorProto.DOUBLE: "fp32"}
    types = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    types |= {value.name: value.type.tensor_type.elem_type
              for value in (*model.graph.value_info, *model.graph.input, *model.graph.output)}
    found = set()
    for node in nodes:
        attributes = {attribute.name: attribute for attribute in node.attribute}
        kind: int
        if node.domain == PLUGIN_DOMAIN:
            kind = TensorProto.FLOAT16 if "fp16" in attributes and attributes["fp16"].i else TensorProto.FLOAT
            found.add(names[kind])
        elif node.op_type == "Constant":
            kind = attributes["value"].t.data_type if "value" in attributes else 0
        elif node.op_type == "Cast":
            kind = attributes["to"].i if "to" in attributes else 0
        elif node.op_type == "DequantizeLinear":
            kind = types.get(node.input[1], 0) if len(node.input) > 1 else 0
        else:  # of the same type as the first floating input
            kind = next((types[name] for name in node.input if types.get(name) in names), 0)
            if node.op_type in PRODUCTS and kind:
                found.add(names[kind])
        for name in node.output:
            types.setdefault(name, kind)
    return next((precision for precision in PRECISIONS if precision in found), "fp32")


def _is_int8(plugin: str) -> bool:
    """Whether a plugin of this name computes in INT8, or makes INT8 for one that does."""
    return plugin.endswith("Int8") or plugin == "SwinQuantize"


def _preprocessing(model, seen: dict[str, Any]) -> dict[str, Any]:
    """What the graph does to a pixel before its first product: input_range, mean, std and colour; {} where nothing.

    The nodes between the image and the first other one are run, by onnx's own evaluator, on an image of zeros and on
    three of one channel each. That tells the scale, the offset and the order of the channels whatever way they are
    written.
    """
    import onnx
    from onnx.reference import ReferenceEvaluator

    constants = {tensor.name: tensor for tensor in model.graph.initializer if np.prod(tensor.dims) <= 16}
    made_by: dict[str, Any] = {}
    pixels, concats = {seen["input"]}, 0
    ends: set[str] = set()
    for node in model.graph.node:
        if node.op_type == "Constant" or (node.input and all(name in constants for name in node.input)):
            constants.update(dict.fromkeys(node.output))
        elif pixels.isdisjoint(node.input):
            continue
        elif (node.op_type in PREPROCESSING and not node.domain and concats + (node.op_type == "Concat") <= 1
              and all(name in pixels or name in constants for name in node.input)):
            concats += node.op_type == "Concat"
            pixels.update(node.output)
        else:
            ends.update(name for name in node.input if name in pixels and node.op_type not in ("Shape", "Size"))
            continue
        made_by.update(dict.fromkeys(node.output, node))
    if ends == {seen["input"]}:
        return {"input_range": "0..255"} if seen["input_type"] == "uint8" else {}
    if len(ends) != 1:
        return {}
    (end,) = ends
    needed: list[Any] = []  # nodes
    todo = [end]
    while todo:
        node = made_by.get(todo.pop())
        if node is not None and not any(node is other for other in needed):
            needed.append(node)
            todo.extend(node.input)
    order = [node for node in model.graph.node if any(node is other for other in needed)]
    read = {name for node in order for name in node.input}
    part = onnx.helper.make_model(onnx.helper.make_graph(
        order, "preprocessing", [value for value in model.graph.input if value.name == seen["input"]],
        [onnx.ValueInfoProto(name=end)], [tensor for name, tensor in constants.items() if tensor and name in read]),
        opset_imports=model.opset_import, ir_version=model.ir_version)
    shape = [1, *(size or 32 for size in seen["input_shape"][1:])]
    channel = seen["layout"].index("C")
    if shape[channel] != 3:
        return {}
    try:
        run = ReferenceEvaluator(part)
        responses = []
        for bright in (None, 0, 1, 2):
            image = np.zeros(shape, seen["input_type"])
            if bright is not None:
                np.moveaxis(image, channel, 0)[bright] = 255
            outputs: Any = run.run(None, {seen["input"]: image})
            responses.append(np.asarray(outputs[0], np.float64))
    except (RuntimeError, NotImplementedError, ValueError, TypeError, LookupError, ArithmeticError, AttributeError):
        return {}
    if responses[0].ndim != 4 or 3 not in (responses[0].shape[1], responses[0].shape[3]):
        return {}
    offset, *lit = (np.moveaxis(response, 1 if response.shape[1] == 3 else 3, -1)[0, 0, 0] for response in responses)
    scales = (np.stack(lit, axis=1) - offset[:, None]) / 255  # [channel of the model, channel of the image]
    colour = "RGB" if np.abs(np.diag(scales)).sum() > np.abs(np.diag(scales[:, ::-1])).sum() else "BGR"
    matrix = scales if colour == "RGB" else scales[:, ::-1]
    scale = np.diag(matrix)
    if not scale.all() or not np.allclose(matrix, np.diag(scale), atol=1e-3 * np.abs(scale).max()):
        return {}  # channels are mixed
    result: dict[str, Any] = {"colour": colour} if colour == "BGR" else {}
    if np.allclose(scale, 1, atol=1e-4) and np.allclose(offset, 0, atol=1e-4):  # moved at most
        return {**result, "input_range": "0..255"} if seen["input_type"] == "uint8" else result
    # A standard deviation of pixels from 0 to 1 lies near 0.2, of pixels to 255 near 50. Where only the mean is taken
    # off, that tells.
    to_255 = seen["input_type"] == "uint8" or np.abs(scale).max() < 0.2 or np.abs(offset / scale).max() > 2
    unit = 255 if to_255 else 1
    return {**result, "colour": colour, "input_range": "0..255" if to_255 else "0..1",
            "mean": tuple(round(float(value), 4) for value in -offset / scale / unit),
            "std": tuple(round(float(value), 4) for value in 1 / scale / unit)}


def _classes(outputs: tuple[Output, ...]) -> int | None:
    """The number of classes: the last dimension of the first [batch, n] of floating numbers; None where there is none,
    or what is there are the features that this project exports of a model without a head.
    """
    return next((output.shape[1] for output in outputs
                 if len(output.shape) == 2 and "float" in output.type and output.name != "features"), None)


# --- plans ---------------------------------------------------------------------------------------------------


def beside(plan: str | Path) -> Path:
    """Where the facts of a plan are: a.plan -> a.json."""
    return Path(plan).with_suffix(".json")


def write_beside(plan: str | Path, facts: Facts, **changes: Any) -> Facts:
    """Write the .json beside a plan that was built from a graph with these facts; gives back the plan's own.

    Args:
        plan: the plan, whose digest the .json takes.
        facts: of the graph, with its digest and its name in `parents` as `built_from` gives them.
        changes: what the builder did differently, such as precision="fp16" where a flag made an FP16 engine.
    """
    own = replace(facts, digest=file_digest(plan), **changes)
    with whole_file(beside(plan)) as partial:
        partial.write_text(own.to_json() + "\n")
    return own


def built_from(graph: Facts, graph_name: str) -> Facts:
    """The facts of an engine of a graph, but for its digest: those of the graph, which becomes its parent."""
    return replace(graph, parents=(Parent(graph.digest, graph_name), *graph.parents), digest="")


def of_json(path: str | Path) -> Facts:
    """The facts in a JSON file, as this script prints or the builder writes them; UserError if it is not one."""
    name = shown(path)
    try:
        text = existing_file(path, "a JSON file of facts (graphs/facts.py prints one)").read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{name}: is not a text file; make it again") from error
    return of_text(text, name)


def of_text(text: str, name: str) -> Facts:
    """The facts that Facts.to_json wrote; UserError that begins with `name` if it is something else."""
    found = _parsed(text, name)
    if not isinstance(found, dict) or not _strings([found.get("digest"), found.get("precision")]):
        raise UserError(f"{name}: holds no facts as graphs/facts.py writes them; make it again")
    return _checked(found, name)


def of_plan(plan: str | Path) -> Facts | None:
    """The facts in the .json beside a plan; None where there is none, or only that of another plan, which is said."""
    path = beside(plan)
    if not path.exists():
        return None
    facts = of_json(path)
    if facts.digest != file_digest(plan):
        print(f"{shown(path)}: is not of {shown(plan)}, which was built again or elsewhere; what the engine says "
              "counts", file=sys.stderr)
        return None
    return facts


# How TensorRT's inspector names the types of a layer's tensors: "Row major linear FP16", "Half", "Int8", "kFLOAT".
LAYER_TYPES = {"int8": ("int8",), "fp16": ("fp16", "half"), "bf16": ("bf16", "bfloat16"), "fp32": ("fp32", "float")}


def of_engine(tensors: Iterable[tuple[str, bool, str, tuple[int, ...]]], layers: str, digest: str = "") -> Facts:
    """The facts that a TensorRT engine says itself, for a plan without a .json.

    Args:
        tensors: name, whether it is an input, NumPy's name of its type, and shape with -1 for what is open.
        layers: the JSON text of TensorRT's engine inspector.
        digest: of the plan.
    Raises:
        UserError: the engine was built without detailed descriptions of its layers, so its precision cannot be told.
    """
    found = json.loads(layers).get("Layers", [])
    detailed = [layer for layer in found if isinstance(layer, dict)]
    if not detailed:
        raise UserError("does not say what its layers compute in: build it with --profilingVerbosity=detailed, or put "
                        "the .json that the builder wrote beside it")
    words: set[str] = set()
    for layer in detailed:
        for tensor in (*layer.get("Inputs", ()), *layer.get("Outputs", ()), *layer.get("Constants", ()),
                       layer.get("Weights"), layer.get("Bias")):
            if isinstance(tensor, dict):
                kinds = f"{tensor.get('Format/Datatype', '')} {tensor.get('Datatype', '')} {tensor.get('Type', '')}"
                words.update(kinds.lower().replace(",", " ").split())
    # TensorRT-RTX names a plugin layer only after its node, whose name ends in /TYPE, and a number: /norm/TYPE_myl0_2.
    plugins = Counter(
        layer.get("PluginType") or re.sub(r"_myl\d+_\d+$", "", layer.get("Name", "").rpartition("/")[2])
        for layer in detailed
        if "plugin" in layer.get("LayerType", "").lower() or layer.get("LayerType") == "custom_layer")
    if any(map(_is_int8, plugins)):  # 10 and later see their INT8 tensors as INT32
        words.add("int8")
    shapes = {name: tuple(None if size < 0 else size for size in shape) for name, _, _, shape in tensors}
    name, kind = next(((name, kind) for name, is_input, kind, _ in tensors if is_input), ("", ""))
    shape = shapes.get(name, ())
    outputs = tuple(Output(name, kind, shapes[name]) for name, is_input, kind, _ in tensors if not is_input)
    return Facts(
        precision=next((precision for precision, names in LAYER_TYPES.items() if words.intersection(names)), "fp32"),
        patched=dict(sorted(plugins.items())), digest=digest, input=name, input_type=kind, input_shape=shape,
        layout="" if len(shape) != 4 else "NHWC" if shape[3] in (1, 3) and shape[1] not in (1, 3) else "NCHW",
        input_range="0..255" if kind == "uint8" else "normalised", outputs=outputs, classes=_classes(outputs))


# --- finding -------------------------------------------------------------------------------------------------


def plain_parent(path: str | Path, facts: Facts) -> Path | None:
    """The plain FP32 graph that an ONNX file is or was made from, of several the one that all began with; None where it
    is not there, or was changed since.
    """
    return Path(path) if facts.plain else _parent_file(Path(path), facts.parents[::-1], lambda theirs: theirs.plain)


def fp32_parent(path: str | Path, facts: Facts) -> Path | None:
    """The nearest FP32 graph, patched or not, that an ONNX file is or was made from; None likewise."""
    if facts.precision == "fp32":
        return Path(path)
    return _parent_file(Path(path), facts.parents, lambda theirs: theirs.precision == "fp32")


def _parent_file(path: Path, parents: tuple[Parent, ...], fits: Callable[[Facts], bool]) -> Path | None:
    """The first of the parents that fits, looked for by its digest beside the file and in onnx/."""
    files = list(dict.fromkeys(file for folder in (path.parent, ROOT / "onnx") for file in sorted(
        folder.glob("*.onnx"))))
    digests: dict[Path, str] = {}
    for parent in parents:
        for file in sorted(files, key=lambda file: file.name != parent.name):  # most often it has its name still
            if file not in digests:
                with suppress(UserError):
                    digests[file] = _digest(file, _outline(file))
            if digests.get(file) == parent.digest and fits(of_onnx(file)):
                return file
    return None


# --- any file ------------------------------------------------------------------------------------------------


def of_file(path: str | Path) -> Facts:
    """The facts of a plan with its .json, of an ONNX file, or in a JSON file, told apart by what is in them.

    Raises:
        UserError: it is none of these, or a plan without its .json, which only TensorRT can read.
    """
    path = existing_file(path, "an ONNX file or a plan")
    with suppress(UserError):  # something else may have that name
        facts = of_json(beside(path))
        if facts.digest == file_digest(path):
            return facts
    with path.open("rb") as file:
        start = file.read(4)
    if start.startswith(b"{"):
        return of_json(path)
    if start[1:] == b"trt":  # ftrt in TensorRT 8.6, vtrt in TensorRT-RTX
        raise UserError(f"{shown(path)}: is a plan without its facts ({shown(beside(path))}); ask TensorRT: "
                        f"$TRT_PYTHON TensorRT/run_engine.py --plan {shown(path)} --facts")
    return of_onnx(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path, metavar="FILE",
                        help="an ONNX file, a plan with its .json beside it, or facts as JSON")
    parser.add_argument("facts", nargs="*", metavar="FACT",
                        help="print only these, one a line (default: all, as JSON)")
    parser.add_argument("--built-from", type=Path, metavar="JSON",
                        help="instead: FILE is a plan that was built from a graph with these facts; write its .json")
    parser.add_argument("--graph", type=Path, default=Path("graph.onnx"), metavar="ONNX",
                        help="of --built-from: the graph, of which only the name is taken")
    parser.add_argument("--precision", choices=PRECISIONS,
                        help="of --built-from: what a flag of the builder made of it")
    parser.add_argument("--tool", action="append", default=[], metavar="NAME=VERSION",
                        help="of --built-from: what built it")
    parser.add_argument("--batches", type=from_one, nargs=2, default=(), metavar=("MIN", "MAX"),
                        help="of --built-from: smallest and largest batch of its optimization profile")
    args = parser.parse_args()
    if args.built_from:
        graph = of_json(args.built_from)
        write_beside(args.file, built_from(graph, args.graph.name), precision=args.precision or graph.precision,
                     tools={**graph.tools, **dict(tool.partition("=")[::2] for tool in args.tool)},
                     batches=tuple(args.batches))
        print(f"wrote {shown(beside(args.file))}")
        return
    facts = of_file(args.file)
    if not args.facts:
        print(facts.to_json())
        return
    known = json.loads(facts.to_json())
    for name in args.facts:
        if name not in known:
            raise UserError(f"{name}: no such fact; choose from {', '.join(known)}")
        value = known[name]
        print("" if value is None else value if isinstance(value, str) else json.dumps(value))


if __name__ == "__main__":
    run_script(main)
