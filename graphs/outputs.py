"""What a graph gives, output by output: whether it is sound by itself, and how far another form of it is from it.

A label or the order of scores says little about an error, and a probability hides one. So the classifier's own output,
before Softmax, Sigmoid, ArgMax or TopK, is compared beside the graph's outputs, wherever it is one of them or not, and
agreement is that of its classes.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from graphs.compare import max_abs_err, top1_agreement
from graphs.files import onnx_refusals
from graphs.pictures import Picture, inputs_of, picture
from graphs.sessions import session
from utils import UserError, first_line

# What may follow a classifier: it changes scores one by one, normalises, sorts or picks them.
TAIL = ("Softmax", "LogSoftmax", "Sigmoid", "HardSigmoid", "Tanh", "Relu", "Clip", "Exp", "Log", "Add", "Sub", "Mul",
        "Div", "Neg", "Max", "Min", "ArgMax", "ArgMin", "TopK", "Identity", "Cast", "Squeeze", "Unsqueeze", "Reshape",
        "Flatten", "Gather", "Slice", "Concat", "Greater", "GreaterOrEqual", "Less", "ReduceMax", "ReduceSum", "Where",
        "Pow", "Sqrt", "ReduceL2", "ReduceMin", "Round", "Floor", "Ceil", "Sign", "Abs", "Softplus", "LeakyRelu", "Elu",
        "Not", "And", "Or", "Equal", "LessOrEqual", "Split", "OneHot", "GatherElements")
RANDOM = ("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli")
SAME_IMAGE = 1e-3  # of an output's largest number: FP32 sums in another order differ by some 1e-6
SOUND_BATCH, SOUND_BATCH_OF_LARGE_IMAGES = 3, 2


# --- the classifier ------------------------------------------------------------------------------------------


def classifiers(model: onnx.ModelProto) -> list[str]:
    """Names of the tensors [batch, classes] that the outputs are made of: the last linear layers before them."""
    makers = {name: node for node in model.graph.node for name in node.output}
    computed = {value.name for value in inputs_of(model)}
    for node in model.graph.node:
        if not computed.isdisjoint(node.input):
            computed.update(node.output)
    found, seen = [], set()
    waiting = [(value.name, "") for value in model.graph.output]
    while waiting:
        tensor, biased = waiting.pop(0)
        node = makers.get(tensor)
        if node is None or tensor in seen:
            continue
        seen.add(tensor)
        inputs = [name for name in node.input if name in computed]
        if node.op_type in ("MatMul", "Gemm") and not node.domain and len(inputs) == 1:
            if (biased or tensor) not in found:
                found.append(biased or tensor)
        elif node.op_type in TAIL and not node.domain:
            bias = tensor if node.op_type == "Add" and len(inputs) == 1 else ""
            waiting.extend((name, bias) for name in inputs)
        elif node.op_type == "SwinLinear" and tensor not in found:
            found.append(tensor)
    return found


def derived(model: onnx.ModelProto, classifying: list[str]) -> set[str]:
    """Names of the tensors that are made of the classifiers' outputs and of nothing else that is computed."""
    computed, found = {value.name for value in inputs_of(model)}, set(classifying)
    for node in model.graph.node:
        inputs = [name for name in node.input if name in computed or name in found]
        if inputs and all(name in found for name in inputs):
            found.update(node.output)
        elif inputs:
            computed.update(name for name in node.output if name not in found)
    return found - set(classifying)


# --- running -------------------------------------------------------------------------------------------------


class Runner:
    """Runs a model by onnxruntime on the CPU, and gives its outputs and its classifiers' by name.

    Args:
        also: names of other tensors to give.
        where: what messages call it, such as "the quantised graph".
    """

    def __init__(self, model: onnx.ModelProto, also: Sequence[str] = (), where: str = "it") -> None:
        self.where, self.input = where, inputs_of(model)[0].name
        names = [value.name for value in model.graph.output]
        made = {name for node in model.graph.node for name in node.output}
        self.names = [*names, *(name for name in also if name in made and name not in names)]
        try:
            self.session = session(with_outputs(model, self.names))
        except onnx_refusals() as error:
            raise UserError(f"onnxruntime refuses {where}: {first_line(error)}") from error

    def __call__(self, images: np.ndarray) -> dict[str, np.ndarray]:
        try:
            return dict(zip(self.names, self.session.run(None, {self.input: images})))
        except onnx_refusals() as error:
            raise UserError(f"onnxruntime does not run {self.where} at batch {len(images)}: {first_line(error)}"
                            ) from error

    def over(self, images: np.ndarray, batch: int) -> dict[str, np.ndarray]:
        """The outputs of many images, `batch` at a time, put together along the first axis."""
        parts = [self(images[start:start + batch]) for start in range(0, len(images), batch)]
        return {name: np.concatenate([np.atleast_1d(part[name]) for part in parts]) for name in parts[0]}


def with_outputs(model: onnx.ModelProto, names: list[str]) -> onnx.ModelProto:
    """A copy that gives also these tensors; the model itself where it gives all of them."""
    known = [value.name for value in model.graph.output]
    if known == names:
        return model
    probed = onnx.ModelProto()
    probed.CopyFrom(model)
    probed.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in known)
    return probed


# --- a graph by itself ---------------------------------------------------------------------------------------


def random_nodes(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """The nodes that give something else at each run: random numbers, and Dropout in training mode."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value":
            constants[node.output[0]] = node.attribute[0].t

    def trains(node: onnx.NodeProto) -> bool:
        if node.op_type != "Dropout" or len(node.input) < 3 or not node.input[2]:
            return False
        mode = constants.get(node.input[2])
        return mode is None or bool(numpy_helper.to_array(mode).any())

    return [node for node in model.graph.node if node.op_type in RANDOM or trains(node)]


def refuse_unsound(model: onnx.ModelProto, wanted: Picture | None = None, run: Runner | None = None) -> Runner:
    """Make sure that a graph is worth patching: one image gives the same by itself as in a batch, and always numbers.

    Args:
        wanted: what it reads, if it does not say so itself.
        run: runs it, where that is there already.
    Returns:
        what runs it.
    Raises:
        UserError: it is not, with the reason, which lies in the graph, and the remedy.
    """
    if not model.graph.output:
        raise UserError("has no output; give the ONNX file of an image classifier")
    chance = random_nodes(model)
    if chance:
        raise UserError(f"its node {chance[0].name or chance[0].output[0]} ({chance[0].op_type}) gives something else "
                        f"at each run{f', and {len(chance) - 1} more do' if len(chance) > 1 else ''}; the graph was "
                        "exported in training mode: export it again after model.eval()")
    wanted = wanted or picture(model)
    run = run or Runner(model, classifiers(model))
    batch = wanted.batch or (SOUND_BATCH_OF_LARGE_IMAGES if wanted.large else SOUND_BATCH)
    images = wanted.noise(batch)
    if wanted.batch == 1:
        _refuse_no_numbers(model, run(images), images)
        return run
    if wanted.batch is None:
        alone, together = _alone_and_together(run, images)
    else:
        alone, together = run(images), run(np.roll(images, 1, axis=0))
    _refuse_no_numbers(model, together, images)
    for name, one in alone.items():
        other = together[name]
        reason = _mixed(name, one, other, wanted.batch, batch)
        if reason:
            remedy = ("export it with a fixed batch (without dynamic_axes or dynamic_shapes), for which it is right, "
                      "or from code that leaves the batch open" if wanted.batch is None else "export it with batch 1, "
                      "or from code that does not")
            raise UserError(f"is wrong by itself: {reason}. Its batch was frozen when it was exported (in the official "
                            f"code window_reverse does that), so that it mixes the images of other batches; {remedy}")
    return run


def _alone_and_together(run: Runner, images: np.ndarray) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    done = []
    for part in (images[:1], images):
        try:
            done.append(run(part))
        except UserError as error:
            runs_alone = "it runs at batch 1, so that its batch was frozen when it was exported; " if done else ""
            raise UserError(f"{error}; {runs_alone}export it with a fixed batch (without dynamic_axes or "
                            "dynamic_shapes), or from code that leaves the batch open") from error
    return done[0], done[1]


def _mixed(name: str, one: np.ndarray, other: np.ndarray, batch: int | None, together: int) -> str:
    """How the output for the first image differs between two runs, in words; "" where it does not.

    Args:
        one: of the image by itself, or, where the batch is fixed, of all images.
        other: of the batch that it is the first of, or, where the batch is fixed, of all images turned by one.
        batch: that is fixed.
        together: number of images of that batch.
    """
    if one.dtype.kind != "f" or not one.size:
        return ""  # a label may turn where two scores are equal; the scores are compared
    if batch is None:
        if not one.ndim:
            return f"its output {name} is one number for a whole batch"
        if one.shape == other.shape and np.array_equal(one, other):
            return ""  # a constant, such as the classes' numbers
        if other.shape != (together * one.shape[0], *one.shape[1:]):
            return f"its output {name} is {list(one.shape)} for one image and {list(other.shape)} for {together}"
        other = other[:one.shape[0]]
    elif one.ndim and one.shape[0] % batch == 0:
        rows = one.shape[0] // batch
        other = np.roll(other, -rows, axis=0)
    else:
        return ""
    error, largest = max_abs_err(other, one), float(np.abs(one).max())
    if error <= SAME_IMAGE * largest or not largest:
        return ""
    place = f"alone than in a batch of {together}" if batch is None else "at another place of the batch"
    return f"the same image gives another {name} {place}, by {error:.2g} of {largest:.2g}"


def _refuse_no_numbers(model: onnx.ModelProto, outputs: dict[str, np.ndarray], images: np.ndarray) -> None:
    for name, output in outputs.items():
        if output.dtype.kind == "f" and not np.isfinite(output).all():
            raise UserError(f"gives NaN or infinity in {name}, by itself and before anything is changed"
                            f"{_origin(model, images)}; check the weights that it was exported with")


def _origin(model: onnx.ModelProto, images: np.ndarray) -> str:
    """Where NaN or infinity comes from, in words; "" where that cannot be told."""
    for tensor in model.graph.initializer:
        if tensor.data_type in (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE) and np.isnan(
                numpy_helper.to_array(tensor)).any():
            return f": its weight {tensor.name} holds NaN"
    names = [name for node in model.graph.node for name in node.output if name]
    try:
        run = Runner(model, names)
        found = run(images)
    except UserError:
        return ""
    first = next((name for name in names if found[name].dtype.kind == "f" and not np.isfinite(found[name]).all()), "")
    return f": the first tensor that is so is {first}" if first else ""


# --- two forms of a graph ------------------------------------------------------------------------------------


@dataclass
class Figures:
    """How one output of a changed graph differs from the original's on the same images.

    Attributes:
        name: of the tensor.
        whole: of whole numbers, such as labels: only `equal` says something then.
        classes: a classifier's output: `agreement` says something.
        error: largest difference.
        largest: largest number of the original.
        rms: root mean square of the difference, as a share of the original's; NaN where that is zero.
        agreement: share of images with the same class, 0 to 1.
        equal: share of equal numbers, 0 to 1.
        finite: no NaN and no infinity in the changed graph's.
    """

    name: str
    whole: bool
    classes: bool
    error: float
    largest: float
    rms: float
    agreement: float
    equal: float
    finite: bool

    def within(self, share: float) -> bool:
        """Whether the largest difference is at most this share of the largest number; never where one is no number."""
        return self.finite and self.error <= share * self.largest


def compared(original: dict[str, np.ndarray], changed: dict[str, np.ndarray], classifying: list[str]) -> list[Figures]:
    """The figures of each output that both have, classifiers first.

    Raises:
        UserError: an output has another shape.
    """
    found = []
    for name in sorted(original, key=lambda name: (name not in classifying, list(original).index(name))):
        if name not in changed:
            continue
        before, after = original[name], changed[name]
        if name in classifying and before.size == after.size and before.shape[-1:] == after.shape[-1:]:
            after = after.reshape(before.shape)  # tokens inside the graph that surgery made an image of
        if before.shape != after.shape:
            raise UserError(f"its output {name} is {list(after.shape)} instead of {list(before.shape)}")
        whole = before.dtype.kind != "f"
        classes = name in classifying and before.ndim == 2 and before.shape[1] > 1
        difference = after.astype(np.float64) - before
        scale = float(np.mean(np.square(before, dtype=np.float64))) if before.size else 0.0
        with np.errstate(invalid="ignore"):
            rms = float(np.sqrt(np.mean(difference**2) / scale)) if scale else float("nan")
        found.append(Figures(
            name, whole, classes, max_abs_err(after, before) if before.size else 0.0,
            float(np.abs(before).max()) if before.size else 0.0, rms,
            top1_agreement(after, before) if classes else float("nan"), float(np.mean(after == before)),
            bool(np.isfinite(after).all())))
    return found
