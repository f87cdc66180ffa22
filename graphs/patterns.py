"""What the surgery scripts look for in a tidied graph (tidy.py): linear layers, GELU, LayerNorm and L2 normalisation in
their written-out forms, and stretches of a graph that only move elements, whose effect is read off by running them.
"""
from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import TensorProto, helper, numpy_helper

from graphs.files import onnx_refusals
from graphs.sessions import session
from graphs.tidy import exported, is_output, probed_batches, producer, reduces_last_axis, shape_at, values
from utils import first_line

# Of a block whose MLP is one kernel, SwinMlp. It keeps the sums of whole rows, C of them in FP32 for each token, in the
# registers of a warpgroup; more do not fit there beside a tile of the hidden activations.
MOST_CHANNELS = 192

MOVES = {"Reshape", "Transpose", "Slice", "Concat", "Split", "Gather", "Identity", "Pad"}
PADDING = -1  # in the stead of a token's number, where zeros stand


class Unmatched(Exception):
    """Why a part of the graph that looked like a plugin's work is left as it is."""


def reader(tensor: gs.Tensor) -> gs.Node | None:
    """The one node that reads a tensor; None if there are several, or none."""
    return tensor.outputs[0] if len(tensor.outputs) == 1 else None


def only_reader(graph: gs.Graph, tensor: gs.Tensor, op: str) -> gs.Node:
    """The node of this type that is the only one to read a tensor.

    Raises:
        Unmatched: there is none, or something else reads it, too.
    """
    node = reader(tensor)
    if is_output(graph, tensor) or len(tensor.outputs) > 1:
        raise Unmatched(f"{tensor.name}, inside it, is read elsewhere")
    if node is None or node.op != op:
        raise Unmatched(f"no {op} reads {tensor.name}")
    return node


def made_by(tensor: gs.Tensor, op: str) -> gs.Node | None:
    """The node that makes a tensor, if it is of this type."""
    node = producer(tensor)
    return node if node is not None and node.op == op else None


def operands(node: gs.Node) -> tuple[gs.Tensor | None, np.ndarray | None]:
    """The computed and the constant operand of a node with two inputs, whichever way round."""
    if len(node.inputs) != 2:
        return None, None
    computed = [tensor for tensor in node.inputs if values(tensor) is None]
    constants = [values(tensor) for tensor in node.inputs if values(tensor) is not None]
    return (computed[0], constants[0]) if len(computed) == len(constants) == 1 else (None, None)


def single_value(node: gs.Node, op: str) -> tuple[gs.Tensor | None, float]:
    """The computed operand x and the number c of a node `op(x, c)`; None if it is another node."""
    if node is None or node.op != op:
        return None, 0.0
    x, number = operands(node)
    return (x, float(number.reshape(-1)[0])) if x is not None and number.size == 1 else (None, 0.0)


# --- linear layers -------------------------------------------------------------------------------------------


def is_linear(node: gs.Node | None) -> bool:
    """MatMul of tokens with a constant [C_in, C_out] matrix, or the plugin node for it and what follows it."""
    if node is None:
        return False
    return node.op == "SwinLinear" or (node.op == "MatMul" and values(node.inputs[0]) is None
                                       and isinstance(node.inputs[1], gs.Constant) and len(node.inputs[1].shape) == 2)


def linear_bias(matmul: gs.Node) -> tuple[np.ndarray | None, gs.Variable]:
    """The bias [C_out] that is added to a product next, None where none is, and the linear layer's output."""
    product, channels = matmul.outputs[0], matmul.inputs[1].shape[1]
    add = reader(product)
    bias = operands(add)[1] if add is not None and add.op == "Add" else None
    if bias is None or (bias.size != 1 and bias.size != channels) or bias.shape[-1:] not in ((), (bias.size,)):
        return None, product
    return np.broadcast_to(bias.ravel(), channels), add.outputs[0]


def linear_output(linear: gs.Node) -> gs.Variable:
    """Output of a linear layer: after its bias, where it has one."""
    return linear.outputs[0] if linear.op == "SwinLinear" else linear_bias(linear)[1]


def is_residual(add: gs.Node | None) -> bool:
    """Whether a node adds two different computed tensors of one shape."""
    if add is None or add.op != "Add":
        return False
    a, b = add.inputs
    return a is not b and values(a) is None and values(b) is None and a.shape is not None and a.shape == b.shape


# --- GELU ----------------------------------------------------------------------------------------------------


EXACT, TANH = 1, 2  # forms of GELU, as the attribute gelu of SwinLinear and SwinMlp says them


@dataclass
class Gelu:
    """y = x * Phi(x), Phi being the normal distribution's, (1 + erf(x / sqrt(2))) / 2, or its approximation by tanh."""

    x: gs.Tensor
    y: gs.Variable
    nodes: list[gs.Node]
    form: int


def gelus(graph: gs.Graph) -> list[Gelu]:
    """All GELUs of the graph: the operator, or Erf or Tanh with the arithmetic around it.

    Exporters multiply in different orders, so that numbers decide where it begins and ends.
    """
    found = []
    for node in graph.nodes:
        if node.op == "Gelu":
            starts, ends = [node.inputs[0]], [node.outputs[0]]
            form = TANH if node.attrs.get("approximate", "none") == "tanh" else EXACT
        elif node.op == "Erf":
            scaled = producer(node.inputs[0])
            x = operands(scaled)[0] if scaled is not None and scaled.op in ("Div", "Mul") else None
            starts = [x] if x is not None else []
            ends, form = _chain(graph, node.outputs[0], ("Add", "Mul")), EXACT
        elif node.op == "Tanh":
            starts = _read_twice(node.inputs[0])
            ends, form = _chain(graph, node.outputs[0], ("Add", "Mul")), TANH
        else:
            continue
        x, y = next(((x, end) for x in starts for end in ends if _is_gelu(graph, x, end, form)), (None, None))
        if y is not None:
            found.append(Gelu(x, y, nodes_between([x], [y]), form))
    return found


def _read_twice(tensor: gs.Tensor) -> list[gs.Tensor]:
    """What a tensor is made from by sums, products and powers, if several nodes read it; nearest first."""
    found: list[gs.Tensor] = []
    waiting, seen = [tensor], set()
    while waiting:
        tensor = waiting.pop(0)
        node = producer(tensor)
        if id(tensor) in seen or values(tensor) is not None:
            continue
        seen.add(id(tensor))
        if len(tensor.outputs) > 1:
            found.append(tensor)
        if node is not None and node.op in ("Add", "Mul", "Pow", "Div"):
            waiting.extend(node.inputs)
    return found


def _chain(graph: gs.Graph, tensor: gs.Tensor, ops: tuple[str, ...]) -> list[gs.Variable]:
    """What becomes of a tensor in these operators, one after the other, while each result has one reader."""
    found = []
    node = reader(tensor)
    while node is not None and node.op in ops and not is_output(graph, tensor):
        tensor = node.outputs[0]
        found.append(tensor)
        node = reader(tensor)
    return found


def _is_gelu(graph: gs.Graph, x: gs.Tensor, y: gs.Tensor, form: int) -> bool:
    numbers = np.linspace(-6, 6, 97, dtype=np.float32)
    exact = numbers.astype(np.float64)
    gate = np.tanh(math.sqrt(2 / math.pi) * (exact + 0.044715 * exact**3)) if form == TANH else np.array(
        [math.erf(number / math.sqrt(2)) for number in exact])
    expected = 0.5 * exact * (1 + gate)
    try:
        (actual,) = run_between(graph, x, numbers, y)
    except Unmatched:
        return False
    # FP32 rounding is below 1e-6; the two forms are 5e-4 apart.
    return actual.shape == numbers.shape and np.abs(actual - expected).max() < 1e-5


# --- LayerNorm -----------------------------------------------------------------------------------------------


@dataclass
class LayerNorm:
    """A LayerNorm over the last axis: y = normalised(x) * gamma + beta, gamma and beta None where there are none."""

    name: str
    x: gs.Tensor
    y: gs.Variable
    gamma: np.ndarray | None
    beta: np.ndarray | None
    epsilon: float
    normalised: gs.Variable | None  # before gamma and beta, where the graph has that tensor
    plugin: str | None              # the plugin node that computes it already


def layer_norms(graph: gs.Graph) -> list[LayerNorm]:
    """All LayerNorms of the graph in order: the operator, its written-out form, and the plugin nodes."""
    found = []
    for node in graph.nodes:
        if node.op in ("LayerNormalization", "SwinLayerNormWithParams"):
            match = _operator(node)
        elif node.op == "SwinLayerNorm":
            match = _with_parameters(node.name, node.inputs[0], node.outputs[0], node.attrs["epsilon"], node.op)
        elif node.op == "Sqrt":
            match = _written_out(node)
        else:
            match = None
        if match is not None:
            found.append(match)
    return found


def _operator(node: gs.Node) -> LayerNorm | None:
    x, y = node.inputs[0], node.outputs[0]
    rank = len(x.shape) if x.shape is not None else 0
    parameters = [values(tensor) for tensor in node.inputs[1:]]
    if node.attrs.get("axis", -1) not in (-1, rank - 1) or any(array is None for array in parameters):
        return None
    if any(output.outputs for output in node.outputs[1:]):
        return None  # its mean or deviation is read
    beta = parameters[1] if len(parameters) > 1 else np.zeros_like(parameters[0])
    plugin = node.op if node.op.startswith("Swin") else None
    return LayerNorm(node.name, x, y, parameters[0], beta, node.attrs.get("epsilon", 1e-5), None, plugin)


def _written_out(sqrt: gs.Node) -> LayerNorm | None:
    """(x - mean) / sqrt(mean((x - mean)^2) + epsilon), found from its square root."""
    variance, epsilon = single_value(producer(sqrt.inputs[0]), "Add")
    mean_square = made_by(variance, "ReduceMean") if variance is not None else None
    if mean_square is None or not reduces_last_axis(mean_square):
        return None
    centred = _squared(mean_square.inputs[0])
    x = _centred(centred)
    divide = reader(sqrt.outputs[0])
    if divide is not None and divide.op == "Reciprocal":
        divide = reader(divide.outputs[0])
    if x is None or divide is None or divide.op not in ("Div", "Mul"):
        return None
    numerator = next((tensor for tensor in divide.inputs if _centred(tensor) is x), None)
    if numerator is None or (divide.op == "Div" and divide.inputs[0] is not numerator):
        return None
    return _with_parameters(sqrt.name, x, divide.outputs[0], epsilon, None)


def _squared(tensor: gs.Tensor) -> gs.Tensor | None:
    """x of x^2, written Pow(x, 2) or Mul(x, x)."""
    node = producer(tensor)
    base, exponent = single_value(node, "Pow")
    if base is not None and base is node.inputs[0] and exponent == 2:
        return base
    return node.inputs[0] if node is not None and node.op == "Mul" and node.inputs[0] is node.inputs[1] else None


def _centred(tensor: gs.Tensor | None) -> gs.Tensor | None:
    """x of x - mean(x)."""
    subtract = made_by(tensor, "Sub") if tensor is not None else None
    mean = made_by(subtract.inputs[1], "ReduceMean") if subtract is not None else None
    if mean is None or not reduces_last_axis(mean) or mean.inputs[0] is not subtract.inputs[0]:
        return None
    return mean.inputs[0]


def _with_parameters(name: str, x: gs.Tensor, normalised: gs.Variable, epsilon: float, plugin: str | None) -> LayerNorm:
    """Add Mul by gamma and Add of beta, where both follow directly."""
    alone = LayerNorm(name, x, normalised, None, None, epsilon, normalised, plugin)
    multiply = reader(normalised)
    gamma = operands(multiply)[1] if multiply is not None and multiply.op == "Mul" else None
    add = reader(multiply.outputs[0]) if gamma is not None else None
    beta = operands(add)[1] if add is not None and add.op == "Add" else None
    channels = x.shape[-1] if x.shape is not None else None
    if beta is None or gamma.size != channels or beta.size != channels:
        return alone
    return LayerNorm(name, x, add.outputs[0], gamma.ravel(), beta.ravel(), epsilon, normalised, plugin)


# --- F.normalize ---------------------------------------------------------------------------------------------


@dataclass
class L2Normalise:
    """y = x / max(||x||_2, epsilon) over the last axis."""

    name: str
    x: gs.Tensor
    y: gs.Variable
    epsilon: float


def l2_normalisations(graph: gs.Graph) -> list[L2Normalise]:
    """All written-out F.normalize over the last axis."""
    found = []
    for divide in graph.nodes:
        if divide.op != "Div":
            continue
        x, bounded = divide.inputs
        norm, epsilon = _bounded_below(producer(bounded))
        if norm is not None and _is_norm(norm, x):
            found.append(L2Normalise(divide.name, x, divide.outputs[0], epsilon))
    return found


def _bounded_below(node: gs.Node | None) -> tuple[gs.Tensor | None, float]:
    """x and c of max(x, c), written Max or Clip."""
    if node is not None and node.op == "Clip":
        bounds = [values(tensor) for tensor in node.inputs[1:] if not tensor.is_empty()]
        if len(bounds) == 1 and bounds[0] is not None and bounds[0].size == 1 and not node.inputs[1].is_empty():
            return node.inputs[0], float(bounds[0].reshape(-1)[0])
    return single_value(node, "Max")


def _is_norm(tensor: gs.Tensor, x: gs.Tensor) -> bool:
    """Whether a tensor is ||x||_2 over the last axis: ReduceL2, or the square root of the sum of squares."""
    node = producer(tensor)
    if node is not None and node.op == "Sqrt":
        node = producer(node.inputs[0])
        return node is not None and node.op == "ReduceSum" and reduces_last_axis(node) and (
            _squared(node.inputs[0]) is x)
    return node is not None and node.op == "ReduceL2" and reduces_last_axis(node) and node.inputs[0] is x


# --- stretches of a graph ------------------------------------------------------------------------------------


def positions(graph: gs.Graph) -> dict[int, int]:
    """Place of each node in the (sorted) graph, by the node's id()."""
    return {id(node): i for i, node in enumerate(graph.nodes)}


def sources(order: dict[int, int], tensor: gs.Tensor) -> Iterator[gs.Tensor]:
    """Tensors that `tensor` is made from only by moving elements, nearest first; the tensor itself is the first.

    Passes where ways part and join again, as in a roll (two Slices and a Concat).
    """
    frontier = [tensor]
    while True:
        if len(frontier) == 1:
            yield frontier[0]
        last = max(frontier, key=lambda item: order.get(id(producer(item)), -1))
        node = producer(last)
        if node is None or node.op not in MOVES:
            return
        frontier = [item for item in frontier if item is not last]
        for item in node.inputs:
            if values(item) is None and not item.is_empty() and not any(item is known for known in frontier):
                frontier.append(item)


def results(graph: gs.Graph, order: dict[int, int], tensor: gs.Tensor) -> Iterator[gs.Tensor]:
    """Tensors made from `tensor` only by moving elements, nearest first, the tensor itself the first.

    Only those that all of its elements pass through, and all that is made of it.
    """
    frontier = [tensor]
    while True:
        if len(frontier) == 1:
            yield frontier[0]
        first = min(frontier, key=lambda item: min((order[id(node)] for node in item.outputs), default=len(order)))
        if not first.outputs or is_output(graph, first) or any(node.op not in MOVES for node in first.outputs):
            return
        frontier = [item for item in frontier if item is not first]
        for node in first.outputs:
            for item in node.outputs:
                if not any(item is known for known in frontier):
                    frontier.append(item)


def nodes_between(starts: list[gs.Tensor], ends: list[gs.Tensor]) -> list[gs.Node]:
    """The nodes that compute `ends` from `starts`, constants and shapes.

    A Shape of what is not made of `starts`, such as that of the image, of which an exporter takes the batch, is none of
    them: it stands for numbers that are known.

    Raises:
        Unmatched: something else is needed.
    """
    found: dict[int, gs.Node] = {}
    waiting = list(ends)
    while waiting:
        tensor = waiting.pop()
        if values(tensor) is not None or tensor.is_empty() or any(tensor is start for start in starts):
            continue
        node = producer(tensor)
        if node is None:
            raise Unmatched(f"it depends on {tensor.name}")
        if node.op == "Shape" and not _is_made_of(starts, node.inputs[0]):
            continue
        if id(node) not in found:
            found[id(node)] = node
            waiting.extend(node.inputs)
    return list(found.values())


def _is_made_of(starts: list[gs.Tensor], tensor: gs.Tensor) -> bool:
    seen: set[int] = set()
    waiting = [tensor]
    while waiting:
        tensor = waiting.pop()
        if any(tensor is start for start in starts):
            return True
        node = producer(tensor)
        if node is not None and id(node) not in seen:
            seen.add(id(node))
            waiting.extend(node.inputs)
    return False


def _known_shapes(graph: gs.Graph, nodes: list[gs.Node]) -> list[TensorProto]:
    """What the Shape operators that `nodes_between` left out give at the batch that parts of a graph are run at.

    Raises:
        Unmatched: the shape is not known.
    """
    inside, found = {id(node) for node in nodes}, {}
    batch = probed_batches(graph.inputs[0].shape)[0]
    for tensor in (tensor for node in nodes for tensor in node.inputs):
        maker = producer(tensor)
        if maker is None or id(maker) in inside or maker.op != "Shape":
            continue
        x = maker.inputs[0]
        if x.shape is None or None in x.shape:
            raise Unmatched(f"it depends on the shape of {x.name}")
        shape = np.array(shape_at(x, batch)[maker.attrs.get("start", 0):maker.attrs.get("end")], np.int64)
        found[tensor.name] = numpy_helper.from_array(shape, tensor.name)
    return list(found.values())


def run_between(graph: gs.Graph, start: gs.Tensor, numbers: np.ndarray, *ends: gs.Tensor) -> list[np.ndarray]:
    """Values of the tensors `ends` when `start` is given; the rest of the graph is not run.

    Raises:
        Unmatched: `ends` depend on something else, or onnxruntime cannot run that part by itself.
    """
    if all(end is start for end in ends):
        return [numbers for _ in ends]
    inside = {id(node) for node in nodes_between([start], list(ends))}
    nodes = [node for node in graph.nodes if id(node) in inside]  # in the graph's order
    part = exported(gs.Graph(nodes, [start], list(ends), opset=graph.opset, import_domains=graph.import_domains,
                             ir_version=graph.ir_version))
    part.graph.initializer.extend(_known_shapes(graph, nodes))
    if numbers.dtype == np.int32:
        _with_whole_constants(part)
    # Its own types: a stretch that only moves elements is run on integers. The recorded ones do not hold then.
    element_type = helper.np_dtype_to_tensor_dtype(numbers.dtype)
    del part.graph.value_info[:]
    part.graph.input[0].CopyFrom(helper.make_tensor_value_info(start.name, element_type, numbers.shape))
    for output in part.graph.output:
        output.CopyFrom(helper.make_tensor_value_info(output.name, element_type, None))
    try:
        return session(part, as_it_is=True).run(None, {start.name: numbers})  # once: not worth an optimisation
    except onnx_refusals() as error:
        raise Unmatched(f"the part from {start.name} does not run by itself: {first_line(error)}") from error


def _with_whole_constants(model: onnx.ModelProto) -> None:
    """Make a graph that moves elements one of INT32, in place: the zeros that it puts in are, too.

    Raises:
        Unmatched: it puts in other numbers than whole ones.
    """
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            numbers = numpy_helper.to_array(tensor)
            if np.any(numbers != np.floor(numbers)):
                raise Unmatched(f"{tensor.name} takes part in it")
            tensor.CopyFrom(numpy_helper.from_array(numbers.astype(np.int32), tensor.name))


def moved_elements(graph: gs.Graph, start: gs.Tensor, shape: tuple[int, ...], end: gs.Tensor) -> np.ndarray:
    """Which element of `start` stands where in `end`: int32, of the shape of `end`; PADDING where a zero stands.

    Raises:
        Unmatched: between them elements are not only moved.
    """
    (moved,) = run_between(graph, start, np.arange(1, np.prod(shape) + 1, dtype=np.int32).reshape(shape), end)
    return moved - 1  # a zero that the graph puts in is PADDING


def moved_tokens(graph: gs.Graph, start: gs.Tensor, shape: tuple[int, ...], end: gs.Tensor) -> np.ndarray:
    """Which token of `start` ([..., C], as `shape` says) stands where in `end` ([..., n*C]): int32 [number of tokens];
    PADDING where there are zeros.

    Raises:
        Unmatched: between them elements are not moved token by token.
    """
    moved, channels = moved_elements(graph, start, shape, end), shape[-1]
    if moved.shape[-1] % channels:
        raise Unmatched(f"{end.name} has not the channels of {start.name}")
    moved = moved.reshape(-1, channels)
    token = moved[:, 0] // channels  # PADDING where it is a zero
    if np.any(moved[token != PADDING] != (token[token != PADDING, None] * channels + np.arange(channels))) or np.any(
            moved[token == PADDING] != PADDING):
        raise Unmatched(f"channels change places between {start.name} and {end.name}")
    return token


# --- regions that want FP32 in an FP16 graph ------------------------------------------------------------------


def written_out_normalisations(graph: gs.Graph) -> list[gs.Node]:
    """The nodes of LayerNorms and F.normalizes that are written out: squares overflow, and 1e-12 is 0, in FP16."""
    nodes = []
    for norm in layer_norms(graph):
        if norm.normalised is not None and norm.plugin is None:
            nodes += nodes_between([norm.x], [norm.normalised])
    for l2 in l2_normalisations(graph):
        nodes += nodes_between([l2.x], [l2.y])
    return nodes


def gelu_nodes(graph: gs.Graph) -> list[gs.Node]:
    return [node for gelu in gelus(graph) for node in gelu.nodes]


def attention_softmaxes(graph: gs.Graph) -> list[gs.Node]:
    """The Softmax of each attention: over the last axis of [..., N, N], and multiplied with v. Others, such as one
    behind the classifier, are none."""
    found = []
    for node in graph.nodes:
        if node.op != "Softmax":
            continue
        scores, readers = node.inputs[0], node.outputs[0].outputs
        several = scores.shape is None or len(scores.shape) > 2
        if several and any(reader.op == "MatMul" and reader.inputs[0] is node.outputs[0] for reader in readers):
            found.append(node)
    return found


def softmaxes(graph: gs.Graph) -> list[gs.Node]:
    """Each attention's Softmax and what is done to the scores between the product of q and k and it."""
    nodes = []
    for softmax in attention_softmaxes(graph):
        node: gs.Node | None = softmax
        while node is not None and node.op in ("Softmax", "Add", "Mul", "Div", "Reshape"):
            nodes.append(node)
            node = producer(next(tensor for tensor in node.inputs if values(tensor) is None))
    return nodes


POOLINGS = ("ReduceMean", "ReduceMax", "ReduceSum", "GlobalAveragePool", "GlobalMaxPool", "AveragePool", "MaxPool")


def head(graph: gs.Graph) -> list[gs.Node]:
    """The nodes from the pooling of the tokens to the outputs, whatever they are; where nothing is pooled, those from
    the first product of [batch, C] on; none where there is neither.

    A pooling is one that no attention comes after, and no part of a LayerNorm.
    """
    before_attention = _ancestors(node for node in graph.nodes if node.domain and "Attention" in node.op)
    before_attention |= _ancestors(attention_softmaxes(graph))
    norms = {id(node) for node in written_out_normalisations(graph)}
    late = [node for node in graph.nodes if id(node) not in before_attention and id(node) not in norms]
    starts = [node for node in late if node.op in POOLINGS and not node.domain] or [
        node for node in late if node.op == "MatMul" and is_linear(node) and node.outputs[0].shape is not None
        and len(node.outputs[0].shape) == 2 and node.outputs[0].shape[0] == graph.inputs[0].shape[0]]
    return _descendants(graph, starts)


def _ancestors(nodes: Iterable[gs.Node]) -> set[int]:
    """id() of these nodes and of all that they need."""
    found: set[int] = set()
    waiting = list(nodes)
    while waiting:
        node = waiting.pop()
        if id(node) not in found:
            found.add(id(node))
            waiting.extend(maker for tensor in node.inputs for maker in tensor.inputs)
    return found


def _descendants(graph: gs.Graph, nodes: Iterable[gs.Node]) -> list[gs.Node]:
    """These nodes and all that need them, in the graph's order."""
    found: set[int] = set()
    waiting = list(nodes)
    while waiting:
        node = waiting.pop()
        if id(node) not in found:
            found.add(id(node))
            waiting.extend(reader for tensor in node.outputs for reader in tensor.outputs)
    return [node for node in graph.nodes if id(node) in found]


EMBEDDINGS = ("Conv", "MatMul", "Gemm", "Einsum", "SwinPatchEmbed")


def preprocessing(graph: gs.Graph) -> list[gs.Node]:
    """What is done to the image before the first product: to its type, layout, range, mean and deviation."""
    inside, reached = [], {id(tensor) for tensor in graph.inputs}
    for node in graph.nodes:
        computed = [tensor for tensor in node.inputs if values(tensor) is None and not tensor.is_empty()]
        if computed and all(id(tensor) in reached for tensor in computed) and node.op not in EMBEDDINGS:
            inside.append(node)
            reached.update(id(tensor) for tensor in node.outputs)
    return inside
