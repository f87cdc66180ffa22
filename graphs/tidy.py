"""Brings any exporter's graph into one plain form, so that the surgery scripts have one kind of graph to match.

What torch's exporters write around a Swin block is mostly arithmetic on shapes (Shape, Gather, Mod, Concat, ...) that
gives the same numbers for every batch. They are found here by running the graph: at two batch sizes the integer
tensors and the shapes of all tensors are read off; what does not change is a constant, what grows in step with the
batch is a multiple of it. After `tidy`:

- nothing that depends only on weights is computed any more (V2's continuous position bias, exp(logit_scale));
- each Reshape has a constant target with at most one -1, and stands where Squeeze, Unsqueeze and Flatten stood;
- operators that do nothing are gone: Pad by zero, Slice of everything, Reshape to the same shape, Expand before Div;
- three linear layers that make one attention's q, k and v (Hugging Face) are one linear layer and a Split;
- Gemm is MatMul + Add, and what works token by token sees [B, H, W, C] rather than [B, H*W, C] or [B*H*W, C];
- every tensor has its shape and type, and the batch is called `batch` where it is not fixed.

onnxsim folds what is constant, but keeps the arithmetic on shapes of an open batch and each exporter's operators.
"""
from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import TensorProto, helper, numpy_helper, version_converter
from onnx_graphsurgeon.logger import G_LOGGER

from graphs import reference
from graphs.files import onnx_refusals
from graphs.operators import Operators
from graphs.pictures import image_input, inputs_of, is_large_image
from graphs.sessions import session
from graphs.standard import standard
from utils import UserError, first_line

G_LOGGER.severity = G_LOGGER.ERROR  # what it warns of, large constants, is meant here

BATCH = "batch"
PROBED_BATCHES = (2, 3)
PROBED_BATCHES_OF_LARGE_IMAGES = (1, 2)
OLDEST_OPSET, LAST_OPSET_OF_TENSORRT_8 = 12, 17
FIRST_OPSET_OF_SPLIT_BY_INPUT = 13
SHAPE_OPERATORS = ("Shape", "Size")  # what they give depends on the image's size, not on its pixels
INTEGER_TYPES = (TensorProto.INT64, TensorProto.INT32, TensorProto.BOOL)


# --- small things that every surgery script needs ------------------------------------------------------------


def imported(model: onnx.ModelProto) -> gs.Graph:
    """The graph of a model, each node with a name of its own: ONNX does not ask for one, but nodes are told apart, and
    new tensors named, by it."""
    graph = gs.import_onnx(model)
    taken: set[str] = set()
    for node in graph.nodes:
        node.name = node.name or node.outputs[0].name
        node.name = node.name if node.name not in taken else f"{node.name}/{node.outputs[0].name}"
        taken.add(node.name)
    return graph


def exported(graph: gs.Graph) -> onnx.ModelProto:
    return gs.export_onnx(graph, do_type_check=False)


def values(tensor: gs.Tensor) -> np.ndarray | None:
    """The numbers of a constant tensor; None for one that is computed."""
    return tensor.values if isinstance(tensor, gs.Constant) else None


def producer(tensor: gs.Tensor) -> gs.Node | None:
    return tensor.inputs[0] if tensor.inputs else None


def is_output(graph: gs.Graph, tensor: gs.Tensor) -> bool:
    return any(tensor is output for output in graph.outputs)


def add_node(graph: gs.Graph, op: str, inputs: list, output: gs.Variable | str, shape: list | None = None,
             **attributes: object) -> gs.Variable:
    """Append a node and give back its output; numbers and arrays among the inputs become constants.

    `output` is the tensor to produce, or the name of a new float32 one of the given shape.
    """
    name = output if isinstance(output, str) else f"{output.name}/{op}"
    # A tensor may be made anew while what made it before is there. Looking through the graph each time took minutes.
    taken = vars(graph).setdefault("_names_of_constants", set())
    if not taken:
        taken.update(tensor.name for node in graph.nodes for tensor in node.inputs)
    tensors = [value if isinstance(value, gs.Tensor)
               else gs.Constant(_fresh(f"{name}/input_{i}", taken), np.asarray(value))
               for i, value in enumerate(inputs)]
    if isinstance(output, str):
        output = gs.Variable(output, dtype=np.float32, shape=shape)
    graph.nodes.append(gs.Node(op, name, attributes, tensors, [output]))
    return output


def replace_uses(old: gs.Tensor, new: gs.Tensor) -> None:
    """Let every node that reads `old` read `new`."""
    for node in list(old.outputs):
        for i, tensor in enumerate(node.inputs):
            if tensor is old:
                node.inputs[i] = new


def shape_at(tensor: gs.Tensor, batch: int) -> tuple[int, ...]:
    """The tensor's shape at a batch size."""
    def one(dim: int | str) -> int:
        if isinstance(dim, int):
            return dim
        return batch if dim == BATCH else batch * int(dim.removesuffix(f"*{BATCH}"))

    return tuple(one(dim) for dim in tensor.shape)


def probed_batches(dims: Sequence[int | str | None]) -> tuple[int, int]:
    """The two batches that a graph whose batch is open is run at; parts of it are run at the first.

    Args:
        dims: shape of the image input.
    """
    return PROBED_BATCHES_OF_LARGE_IMAGES if is_large_image(dims) else PROBED_BATCHES


def reshape_target(shape: list[int | str | None]) -> np.ndarray | None:
    """A constant target for Reshape to this shape: -1 for the one dim that is no number; None if there are two."""
    target = np.array([dim if isinstance(dim, int) else -1 for dim in shape], np.int64)
    return target if (target == -1).sum() <= 1 else None


# --- opset ---------------------------------------------------------------------------------------------------


def opset_of(model: onnx.ModelProto) -> int:
    return max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=0)


def _lower_opset(graph: gs.Graph) -> gs.Graph:
    """The graph at opset 17, the last that TensorRT 8.6 reads, where onnx can convert it; else as it is."""
    if graph.opset <= LAST_OPSET_OF_TENSORRT_8:
        return graph
    for node in [node for node in graph.nodes if node.op == "Gelu"]:
        _write_out_gelu(graph, node)
    for node in graph.nodes:
        if node.attrs.get("noop_with_empty_axes") == 0:  # new in 18 and its default, but left there by the converter
            del node.attrs["noop_with_empty_axes"]
    try:
        model = version_converter.convert_version(exported(graph.cleanup().toposort()), LAST_OPSET_OF_TENSORRT_8)
    except RuntimeError:  # how onnx says that an operator has no older form
        return graph
    known = graph.tensors()
    converted = imported(model)
    for name, tensor in converted.tensors().items():
        if name in known and isinstance(tensor, gs.Variable):
            tensor.shape, tensor.dtype = known[name].shape, known[name].dtype
    return converted


def _write_out_gelu(graph: gs.Graph, node: gs.Node) -> None:
    """Gelu is an operator from opset 20 on; before it is x/2 * (1 + erf(x / sqrt(2))), or its tanh approximation."""
    x, y = node.inputs[0], node.outputs[0]
    node.outputs.clear()

    def op(name: str, *inputs: gs.Tensor | float) -> gs.Variable:
        operands = [value if isinstance(value, gs.Tensor) else np.float32(value) for value in inputs]
        return add_node(graph, name, operands, f"{y.name}/{name}_{len(graph.nodes)}", y.shape)

    if node.attrs.get("approximate", "none") == "tanh":
        cubic = op("Mul", op("Mul", op("Mul", x, x), x), 0.044715)
        gate = op("Tanh", op("Mul", op("Add", x, cubic), np.sqrt(2 / np.pi)))
    else:
        gate = op("Erf", op("Div", x, np.sqrt(2)))
    add_node(graph, "Mul", [op("Mul", x, op("Add", gate, 1)), np.float32(0.5)], y)


# --- reading shapes off by running ---------------------------------------------------------------------------


@dataclass
class Run:
    """What running a model once at a batch size showed."""

    integers: dict[str, np.ndarray]         # values of the integer tensors, by name
    shapes: dict[str, tuple[int, ...]]      # of all others
    types: dict[str, int]                   # element types of all, where inference can tell


def probe(model: onnx.ModelProto, batches: Sequence[int]) -> list[Run]:
    """Run a model once at each batch size, to see what depends on the batch and how."""
    name, dims = image_input(model)
    kind = helper.tensor_dtype_to_np_dtype(inputs_of(model)[0].type.tensor_type.elem_type)
    expanded = reference.expand(model)
    types = reference.element_types(expanded)
    computed = [output for node in model.graph.node for output in node.output if output]
    integers = [output for output in computed if types.get(output) in INTEGER_TYPES]
    others = [output for output in computed if types.get(output) not in INTEGER_TYPES]
    probed = _thin(expanded)
    for output in integers:
        probed.graph.output.append(helper.make_tensor_value_info(output, types[output], None))
    for output in others:
        shape = f"{output}/probed_shape"
        probed.graph.node.append(helper.make_node("Shape", [output], [shape]))
        probed.graph.output.append(helper.make_tensor_value_info(shape, TensorProto.INT64, None))
    runs = []
    try:
        runner = session(probed, as_it_is=True)
        for batch in batches:
            image = np.random.default_rng(0).standard_normal((batch, *dims[1:]))
            image = np.abs(100 * image).astype(kind) if np.dtype(kind).kind == "u" else image.astype(kind)
            found = runner.run(None, {name: image})
            shapes = (tuple(int(dim) for dim in shape) for shape in found[len(integers):])
            runs.append(Run(dict(zip(integers, found)), dict(zip(others, shapes)), types))
    except onnx_refusals() as error:
        batch = batches[min(len(runs), len(batches) - 1)]
        raise UserError(f"onnxruntime does not run it at batch {batch}: {first_line(error)}") from error
    return runs


def _thin(model: onnx.ModelProto) -> onnx.ModelProto:
    """A model without outputs whose tensors have the same shapes, and that is run in a fraction of the time: where
    tokens are multiplied with a constant weight [C_in, C_out], only the first of the C_in channels is."""
    weights = {tensor.name: tensor for tensor in model.graph.initializer if len(tensor.dims) == 2}
    turned = {node.output[0]: node.input[0] for node in model.graph.node
              if node.op_type == "Transpose" and node.input[0] in weights}  # SwinLinear's, [C_out, C_in]
    ops = Operators("thin", opset_of(model))
    ends = [ops.constant(number, np.int64) for number in ([0], [1], [-1])]
    for node in model.graph.node:
        weight = node.input[1] if node.op_type == "MatMul" else ""
        if weight in weights or weight in turned:
            columns = weights[turned.get(weight, weight)].dims[0 if weight in turned else 1]
            first = [ops.op("Slice", node.input[0], *ends), ops.constant(np.zeros((1, columns)))]
            ops.nodes.append(helper.make_node("MatMul", first, node.output))
        else:
            ops.nodes.append(node)
    read = {name for node in ops.nodes for name in node.input}
    kept = [tensor for tensor in model.graph.initializer if tensor.name not in weights or tensor.name in read]
    graph = helper.make_graph(ops.nodes, "thin", inputs_of(model), [], [*kept, *ops.initializers])
    return helper.make_model(graph, ir_version=model.ir_version, opset_imports=model.opset_import)


def _symbolic(shapes: list[tuple[int, ...]], batches: tuple[int, ...]) -> list[int | str | None]:
    """One shape for all probed batches: numbers, 'batch', multiples such as '4*batch', None for anything else."""
    def one(sizes: tuple[int, ...]) -> int | str | None:
        multiple = sizes[0] // batches[0]
        if len(set(sizes)) == 1:
            return sizes[0]
        if any(size != multiple * batch for size, batch in zip(sizes, batches)):
            return None
        return BATCH if multiple == 1 else f"{multiple}*{BATCH}"

    return [one(sizes) for sizes in zip(*shapes)]


def tidy(model: onnx.ModelProto) -> gs.Graph:
    """The plain form of a model, as the head of this file says; equal to it at every batch size.

    Raises:
        UserError: the opset is below 12; the model is no image classifier; onnxruntime does not run it at batches 2
            and 3 although its batch is not fixed.
    """
    if opset_of(model) < OLDEST_OPSET:
        raise UserError(f"has opset {opset_of(model)}; export it again with {OLDEST_OPSET} to "
                        f"{LAST_OPSET_OF_TENSORRT_8}")
    _, dims = image_input(model)
    if None in dims[1:]:
        raise UserError(f"its input is {dims} instead of [batch, 3, height, width]; export it with a fixed image size")
    model = standard(model)
    batches = probed_batches(dims) if dims[0] is None else (dims[0],)
    first, *_ = runs = probe(model, batches)

    graph = imported(_with_known_integers(model, runs))
    for name, tensor in graph.tensors().items():
        if name in first.shapes and isinstance(tensor, gs.Variable):
            tensor.shape = _symbolic([run.shapes[name] for run in runs], batches)
            # Pixels may be whole numbers for some nodes before they are cast.
            tensor.dtype = tensor.dtype or helper.tensor_dtype_to_np_dtype(first.types.get(name) or TensorProto.FLOAT)
    graph.inputs = [tensor for tensor in graph.inputs if isinstance(tensor, gs.Variable)]
    graph.inputs[0].shape = [BATCH if dims[0] is None else dims[0], *dims[1:]]
    graph.fold_constants(fold_shapes=False, error_ok=False).cleanup()  # what does not depend on the image
    for node in list(graph.cleanup().nodes):
        _plain_operator(graph, node)
    graph.cleanup().toposort()
    images_of_tokens(graph)
    drop_idle(graph)
    graph = _lower_opset(graph)
    _join_q_k_v(graph)
    return graph


# --- passes --------------------------------------------------------------------------------------------------


def _with_known_integers(model: onnx.ModelProto, runs: list[Run]) -> onnx.ModelProto:
    """A copy in which integers that are the same in all runs are constants, without the nodes that only they needed.

    An exporter's arithmetic on shapes is most of its nodes: a Swin-L with open sizes has 19,000.
    """
    first, *others = runs
    results = {value.name for value in model.graph.output}
    of_pixels = _made_of_pixels(model)  # one run, or two alike, say nothing about these
    known = {name: numbers for name, numbers in first.integers.items()
             if name not in results and name not in of_pixels
             and all(np.array_equal(numbers, run.integers[name]) for run in others)}
    makers = {name: index for index, node in enumerate(model.graph.node) for name in node.output if name}
    kept: set[int] = set()
    read: set[str] = set()
    waiting = list(results)
    while waiting:
        name = waiting.pop()
        if name not in read and name not in known and name in makers and makers[name] not in kept:
            kept.add(makers[name])
            waiting.extend(_reads(model.graph.node[makers[name]]))
        read.add(name)
    plain = onnx.ModelProto()
    plain.CopyFrom(model)
    del plain.graph.node[:]
    for index in sorted(kept):
        node = plain.graph.node.add()
        node.CopyFrom(model.graph.node[index])
        node.output[:] = [f"{name}/of_any_batch" if name in known else name for name in node.output]
    plain.graph.initializer.extend(
        numpy_helper.from_array(np.asarray(known[name], order="C"), name) for name in known if name in read)
    return plain


def _reads(node: onnx.NodeProto) -> list[str]:
    """Names of the tensors that a node reads, or what is inside it, where it is an If or a Loop."""
    bodies = [body for attribute in node.attribute for body in (attribute.g, *attribute.graphs)]
    return [*node.input, *(name for body in bodies for inner in body.node for name in _reads(inner)),
            *(value.name for body in bodies for value in body.output)]


def _made_of_pixels(model: onnx.ModelProto) -> set[str]:
    """Names of the tensors that depend on the image in another way than by its shape."""
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input if node.op_type not in SHAPE_OPERATORS else ():
            readers.setdefault(name, []).append(node)
    found: set[str] = set()
    waiting = [value.name for value in inputs_of(model)]
    while waiting:
        name = waiting.pop()
        if name and name not in found:
            found.add(name)
            waiting.extend(output for node in readers.get(name, ()) for output in node.output)
    return found


def _plain_operator(graph: gs.Graph, node: gs.Node) -> None:
    """Write Squeeze, Unsqueeze and Flatten as Reshape with a constant target, Gemm as MatMul + Add, last axes as -1."""
    if node.op in ("Squeeze", "Unsqueeze", "Flatten", "Reshape") and node.outputs[0].shape is not None:
        target = reshape_target(node.outputs[0].shape)
        if target is not None and not isinstance(node.inputs[0], gs.Constant):
            node.op, node.attrs = "Reshape", {}
            node.inputs = [node.inputs[0], gs.Constant(f"{node.outputs[0].name}/target", target)]
    elif node.op == "Gemm" and _is_linear_gemm(node):
        x, weight, *bias = node.inputs
        matrix = values(weight).T if node.attrs.get("transB", 0) else values(weight)
        y = node.outputs[0]
        node.outputs.clear()
        weight = gs.Constant(f"{y.name}/weight", np.ascontiguousarray(matrix))
        if bias:
            product = add_node(graph, "MatMul", [x, weight], f"{y.name}/product", y.shape)
            add_node(graph, "Add", [product, bias[0]], y)
        else:
            add_node(graph, "MatMul", [x, weight], y)
    elif node.op.startswith("Reduce") and reduces_last_axis(node):
        if "axes" in node.attrs:
            node.attrs["axes"] = [-1]
        else:
            node.inputs[1] = gs.Constant(f"{node.outputs[0].name}/axes", np.array([-1]))
    elif node.op == "LayerNormalization" and node.attrs.get("axis", -1) == len(node.inputs[0].shape) - 1:
        node.attrs["axis"] = -1


def _is_linear_gemm(node: gs.Node) -> bool:
    ones = node.attrs.get("alpha", 1.0) == 1.0 and node.attrs.get("beta", 1.0) == 1.0
    return ones and not node.attrs.get("transA", 0) and all(values(tensor) is not None for tensor in node.inputs[1:])


ELEMENTWISE = {"Add", "Sub", "Mul", "Div", "Pow", "Sqrt", "Reciprocal", "Erf", "Gelu", "Relu", "Sigmoid", "Tanh"}
TOKEN_OPERATORS = {"LayerNormalization", "SwinLayerNorm", "SwinLayerNormWithParams", "SwinAddLayerNorm",
                   "SwinLayerNormAdd", "SwinLinear", "SwinMlp"}


def images_of_tokens(graph: gs.Graph) -> None:
    """Let what treats each token by itself work on [B, H, W, C] where it worked on [B, H*W, C] or [B*H*W, C].

    Then a block has no Reshape between its LayerNorms, its linear layers and its residual Adds, and no node but a
    Reshape that leaves the tokens says how large the image is. The tensors that LayerNorms, linear layers, elementwise
    operators and Reshapes of the leading axes connect hold the same tokens in the same order; where one of them is
    [B, H, W, C], all can be.
    """
    classes = _Classes()
    for node in graph.nodes:
        tensors = _connected(node)
        for tensor in tensors[1:]:
            classes.join(tensors[0], tensor)
    batch = graph.inputs[0].shape[0]
    images: dict[int, list[list[int | str]]] = {}
    for tensor in list(classes.tensors()):
        if len(tensor.shape) == 4 and tensor.shape[0] == batch and all(isinstance(n, int) for n in tensor.shape[1:3]):
            known = images.setdefault(classes.of(tensor), [])
            known += [list(tensor.shape[:3])] if list(tensor.shape[:3]) not in known else []
    for tensor, leading in _cut_images(graph):
        images.setdefault(classes.of(tensor), [leading])

    made: dict[int, gs.Tensor] = {}  # what a tensor is as an image, by id()
    taken = {tensor.name for node in graph.nodes for tensor in (*node.inputs, *node.outputs)}
    for node in list(graph.nodes):
        tensors = _connected(node) if node.op != "Reshape" else []
        known = images.get(classes.of(tensors[0]), []) if tensors else []
        # [B, N, 1, C] may be tokens with the heads beside them.
        known = [leading for leading in known if 1 not in leading[1:]] or known
        if len(known) != 1 or list(tensors[0].shape[:-1]) == known[0]:
            continue
        (leading,) = known
        _take_images(graph, node, leading, made, taken)
        for tokens in node.outputs:
            if not tokens.is_empty() and tokens.shape is not None:
                before, tokens.shape = tokens.shape, [*leading, tokens.shape[-1]]
                flat, image = tokens_as_read(graph, tokens, before, taken)
                classes.join(flat, image)
                made[id(flat)] = image
    _pool_images(graph)
    graph.toposort()


def _pool_images(graph: gs.Graph) -> None:
    """Let a mean over the tokens [B, H*W, C] of an image be one over its rows and columns."""
    for node in graph.nodes:
        before = producer(node.inputs[0]) if node.op == "ReduceMean" else None
        if before is None or before.op != "Reshape" or node.attrs.get("keepdims", 1):
            continue
        image, tokens = before.inputs[0].shape, node.inputs[0].shape
        by_input = len(node.inputs) > 1
        axes = values(node.inputs[1]) if by_input else node.attrs.get("axes")
        if image is None or tokens is None or axes is None or list(axes) != [1] or len(image) != 4 or (
                len(tokens) != 3 or [image[0], image[-1]] != [tokens[0], tokens[-1]]):
            continue
        node.inputs[0] = before.inputs[0]
        if by_input:
            node.inputs[1] = gs.Constant(f"{node.name}/axes", np.array([1, 2]))
        else:
            node.attrs["axes"] = [1, 2]


def _cut_images(graph: gs.Graph) -> Iterable[tuple[gs.Tensor, list[int | str]]]:
    """Tensors [B, H*W, C] that a Reshape cuts into [B, H/n, n, W/m, m, ...], or makes of that, and their [B, H, W]."""
    for node in graph.nodes:
        if node.op != "Reshape":
            continue
        for tokens, cut in ((node.inputs[0], node.outputs[0]), (node.outputs[0], node.inputs[0])):
            if (tokens.shape is None or cut.shape is None or len(tokens.shape) != 3 or len(cut.shape) < 6
                    or tokens.shape[0] != graph.inputs[0].shape[0] or cut.shape[0] != tokens.shape[0]):
                continue
            _, *sizes = cut.shape[:5]
            if all(isinstance(size, int) for size in sizes) and np.prod(sizes) == tokens.shape[1]:
                yield tokens, [tokens.shape[0], sizes[0] * sizes[1], sizes[2] * sizes[3]]


def _take_images(graph: gs.Graph, node: gs.Node, leading: list[int | str], made: dict[int, gs.Tensor],
                 taken: set[str]) -> None:
    """Let a node read its tokens [..., C] as [*leading, C], constants that differ from token to token too.

    Args:
        made: the images that there are of tensors, by id().
        taken: the names of all tensors.
    """
    for i, tensor in enumerate(node.inputs):
        if isinstance(tensor, gs.Constant):
            if node.op in ELEMENTWISE and len(tensor.shape) > 1:
                per_token = tensor.values.reshape(1, *leading[1:], tensor.shape[-1])
                node.inputs[i] = gs.Constant(f"{node.name}/constant_{i}", per_token)
        elif not tensor.is_empty():
            shape = [*leading, tensor.shape[-1]]
            if id(tensor) not in made:
                name = tensor.name  # goes with what linear layers and LayerNorms read: scales of INT8 are kept by it
                if tensor.inputs and not is_output(graph, tensor):
                    tensor.name = _fresh(f"{name}/tokens", taken)
                else:
                    name = _fresh(f"{name}/image", taken)
                made[id(tensor)] = add_node(graph, "Reshape", [tensor, reshape_target(shape)],
                                            gs.Variable(name, tensor.dtype, shape))
            node.inputs[i] = made[id(tensor)]


def tokens_as_read(graph: gs.Graph, image: gs.Variable, shape: list[int | str], taken: set[str] | None = None
                   ) -> tuple[gs.Variable, gs.Variable]:
    """Let what reads a tensor read a Reshape of it, whose own shape has become another; gives back that and the tensor.

    The tensor keeps its name, but an output of the graph: there the Reshape has it.

    Args:
        shape: what it is read as.
        taken: the names of all tensors, where they are known.
    """
    taken = {name for node in graph.nodes for name in (t.name for t in (*node.inputs, *node.outputs))} if (
        taken is None) else taken
    if is_output(graph, image):
        (maker,) = image.inputs
        made = gs.Variable(_fresh(f"{image.name}/image", taken), image.dtype, image.shape)
        maker.outputs[[tensor is image for tensor in maker.outputs].index(True)] = made
        image.shape = shape
        add_node(graph, "Reshape", [made, reshape_target(shape)], image)
        return image, made
    flat = gs.Variable(_fresh(f"{image.name}/tokens", taken), image.dtype, shape)
    replace_uses(image, flat)
    add_node(graph, "Reshape", [image, reshape_target(shape)], flat)
    return flat, image


def _fresh(name: str, taken: set[str]) -> str:
    """A name that no tensor has, which it has from now on."""
    fresh = next(fresh for count in itertools.count() if (fresh := f"{name}_{count}" if count else name) not in taken)
    taken.add(fresh)
    return fresh


class _Classes:
    """Tensors that are known to be of one kind: a union of sets."""

    def __init__(self) -> None:
        self.known: dict[int, gs.Tensor] = {}
        self.parent: dict[int, int] = {}

    def of(self, tensor: gs.Tensor) -> int:
        """The set that a tensor is in, as a number."""
        self.known.setdefault(id(tensor), tensor)
        root = self.parent.setdefault(id(tensor), id(tensor))
        while self.parent[root] != root:
            self.parent[root] = root = self.parent[self.parent[root]]
        return root

    def join(self, one: gs.Tensor, other: gs.Tensor) -> None:
        self.parent[self.of(one)] = self.of(other)

    def tensors(self) -> Iterable[gs.Tensor]:
        return self.known.values()


def _connected(node: gs.Node) -> list[gs.Tensor]:
    """The tensors that a node reads and makes, where it leaves all tokens [..., C] at their places; else none."""
    computed = [tensor for tensor in node.inputs if isinstance(tensor, gs.Variable) and not tensor.is_empty()]
    tensors = [*computed, *(tensor for tensor in node.outputs if not tensor.is_empty())]
    if not computed or any(tensor.shape is None or len(tensor.shape) < 2 for tensor in tensors):
        return []
    if node.op == "Reshape":
        x, y = tensors[0], node.outputs[0]
        return [x, y] if len(computed) == 1 and x.shape[-1] == y.shape[-1] and isinstance(x.shape[-1], int) else []
    leading = list(tensors[0].shape[:-1])
    if any(list(tensor.shape[:-1]) != leading for tensor in tensors):
        return []
    constants = [tensor for tensor in node.inputs if isinstance(tensor, gs.Constant)]
    if node.op in TOKEN_OPERATORS:
        treats = node.attrs.get("axis", -1) == -1
    elif node.op == "MatMul":
        treats = len(constants) == 1 and constants[0] is node.inputs[1] and len(constants[0].shape) == 2
    elif node.op == "ReduceMean":
        treats = reduces_last_axis(node)
    else:
        tokens = leading[1] if len(leading) == 2 else None
        treats = node.op in ELEMENTWISE and all(
            len(tensor.shape) <= 1 or list(tensor.shape[:-1]) == [1, tokens] for tensor in constants)
    return tensors if treats else []


def reduces_last_axis(node: gs.Node) -> bool:
    """Whether a Reduce operator keeps its rank and reduces only the last axis (axes: attribute or input)."""
    axes = node.attrs.get("axes", values(node.inputs[1]) if len(node.inputs) > 1 else None)
    shape = node.inputs[0].shape
    last = (-1,) if shape is None else (-1, len(shape) - 1)
    return node.attrs.get("keepdims", 1) == 1 and axes is not None and len(axes) == 1 and int(axes[0]) in last


# --- separate q, k and v -------------------------------------------------------------------------------------


@dataclass
class _Linear:
    """x [..., C] times weight [C, C], plus bias [C] where there is one."""

    matmul: gs.Node
    bias: np.ndarray | None
    y: gs.Variable

    @property
    def weight(self) -> np.ndarray:
        return values(self.matmul.inputs[1])


def _join_q_k_v(graph: gs.Graph) -> None:
    """Make the three linear layers of an attention's q, k and v one, with weight [C, 3C], and a Split behind it.

    Only where they read one tensor, have weights [C, C], and their outputs are cut into heads in one way. A layer
    without bias (V2's key) gets zeros if another has one.
    """
    for softmax in [node for node in graph.nodes if node.op == "Softmax"]:
        layers = _q_k_v(graph, softmax)
        if layers is None:
            continue
        matmul, channels = layers[0].matmul, layers[0].weight.shape[0]
        x, weight = matmul.inputs[0], np.concatenate([layer.weight for layer in layers], axis=1)
        shape = [*layers[0].y.shape[:-1], 3 * channels]
        for layer in layers:
            layer.y.inputs.clear()
        qkv = add_node(graph, "MatMul", [x, weight], f"{matmul.name}/qkv", shape)
        if any(layer.bias is not None for layer in layers):
            zeros = np.zeros(channels, weight.dtype)
            bias = np.concatenate([zeros if layer.bias is None else layer.bias for layer in layers])
            qkv = add_node(graph, "Add", [qkv, bias], f"{matmul.name}/qkv_with_bias", shape)
        _split_in_three(graph, qkv, [layer.y for layer in layers])
        _read_leading_dims_from(graph, x, qkv)
        graph.cleanup().toposort()


def _q_k_v(graph: gs.Graph, softmax: gs.Node) -> list[_Linear] | None:
    """The linear layers of q, k and v of the attention around a Softmax, if they are three that can be joined."""
    weights = softmax.outputs[0]
    weighted = next((node for node in weights.outputs if node.op == "MatMul" and node.inputs[0] is weights), None)
    products = _nearest_products(softmax.inputs[0])
    if weighted is None or len(products) != 1 or any(values(tensor) is not None for tensor in products[0].inputs):
        return None
    layers: list[_Linear] = []
    for tensor in (*products[0].inputs, weighted.inputs[1]):
        matmuls = _nearest_products(tensor)
        layer = _linear(graph, matmuls[0]) if len(matmuls) == 1 else None
        if layer is None or any(layer.matmul is other.matmul for other in layers):
            return None
        layers.append(layer)
    q, k, v = layers
    if any(layer.matmul.inputs[0] is not q.matmul.inputs[0] or layer.weight.shape != q.weight.shape
           or layer.weight.dtype != q.weight.dtype for layer in (k, v)):
        return None
    cuts = [_cut_into_heads(layer.y) for layer in layers]
    if None in cuts or any(shape != cuts[0][0] for shape, _ in cuts):
        return None
    (_, of_q), (_, of_k), (_, of_v) = cuts
    return layers if of_v == of_q and of_k in (of_q, [*of_q[:-2], of_q[-1], of_q[-2]]) else None


def _nearest_products(tensor: gs.Tensor) -> list[gs.Node]:
    """The MatMuls that a tensor's numbers come from without another MatMul between."""
    found: dict[int, gs.Node] = {}
    seen: set[int] = set()
    waiting = [tensor]
    while waiting:
        node = producer(waiting.pop())
        if node is None or id(node) in seen or node.op in SHAPE_OPERATORS:
            continue
        seen.add(id(node))
        if node.op == "MatMul":
            found[id(node)] = node
        else:
            waiting.extend(node.inputs)
    return list(found.values())


def _linear(graph: gs.Graph, matmul: gs.Node) -> _Linear | None:
    """A product with a constant [C, C] and the bias added to it; None where it is another, or its output leaves."""
    weight, product = values(matmul.inputs[1]), matmul.outputs[0]
    if weight is None or weight.ndim != 2 or weight.shape[0] != weight.shape[1] or (
            product.shape is None or None in product.shape):
        return None
    add = product.outputs[0] if len(product.outputs) == 1 else None
    constants = [values(tensor) for tensor in add.inputs if values(tensor) is not None] if (
        add is not None and add.op == "Add") else []
    with_bias = len(constants) == 1 and constants[0].shape == weight.shape[1:]
    layer = _Linear(matmul, constants[0], add.outputs[0]) if with_bias else _Linear(matmul, None, product)
    return None if is_output(graph, product) or is_output(graph, layer.y) else layer


def _cut_into_heads(tensor: gs.Variable) -> tuple[list, list[int]] | None:
    """The shape that a Reshape gives to a tensor, and the order that a Transpose gives to the axes then."""
    reshape = tensor.outputs[0] if len(tensor.outputs) == 1 else None
    if reshape is None or reshape.op != "Reshape" or reshape.outputs[0].shape is None:
        return None
    heads = reshape.outputs[0]
    transpose = heads.outputs[0] if len(heads.outputs) == 1 else None
    if transpose is None or transpose.op != "Transpose" or "perm" not in transpose.attrs or None in heads.shape:
        return None
    return list(heads.shape), list(transpose.attrs["perm"])


def _split_in_three(graph: gs.Graph, tensor: gs.Variable, parts: list[gs.Variable]) -> None:
    """Let `parts` be the thirds of a tensor's last axis."""
    sizes = [tensor.shape[-1] // 3] * 3
    node = gs.Node("Split", f"{tensor.name}/Split", {"axis": len(tensor.shape) - 1}, [tensor], parts)
    if graph.opset < FIRST_OPSET_OF_SPLIT_BY_INPUT:
        node.attrs["split"] = sizes
    else:
        node.inputs.append(gs.Constant(f"{tensor.name}/sizes", np.array(sizes, np.int64)))
    graph.nodes.append(node)


def _read_leading_dims_from(graph: gs.Graph, x: gs.Tensor, y: gs.Variable) -> None:
    """Let what reads the number of windows off x [..., C] read it off y [..., 3C].

    With an open batch the mask is expanded by it; then all that is between y and proj depends on y only.
    """
    for node in [node for node in x.outputs if node.op == "Shape" and not node.attrs]:
        picked = [values(reader.inputs[1]) if reader.op == "Gather" and reader.inputs[0] is node.outputs[0] else None
                  for reader in node.outputs[0].outputs]
        if picked and not is_output(graph, node.outputs[0]) and all(
                index is not None and np.all((index >= 0) & (index < len(y.shape) - 1)) for index in picked):
            node.inputs[0] = y


def leave_sizes_open(graph: gs.Graph) -> None:
    """Let a Reshape take from its input what it keeps, and infer one more: [B, H, W, C] to [B, H*W, C] is [0, -1, C].

    Then it takes images of another size, too.
    """
    for node in graph.nodes:
        if node.op != "Reshape" or values(node.inputs[1]) is None:
            continue
        before, after = node.inputs[0].shape, node.outputs[0].shape
        if before is None or after is None or len(after) > len(before):
            continue
        same = [old is not None and old == new for old, new in zip(before, after)]
        kept = same.index(False) if False in same else len(same)
        target = [0] * kept + [dim if isinstance(dim, int) else -1 for dim in after[kept:]]
        if kept and kept < len(after) and target[kept] != -1 and -1 not in target:
            target[kept] = -1  # the tokens, where an image becomes a row of them
        if target.count(-1) <= 1:
            node.inputs[1] = gs.Constant(f"{node.outputs[0].name}/target", np.array(target, np.int64))


def drop_idle(graph: gs.Graph) -> None:
    """Remove operators that change nothing, until none is left."""
    changed = True
    while changed:
        changed = False
        for node in graph.nodes:
            if not node.outputs or not node.inputs or isinstance(node.inputs[0], gs.Constant):
                continue
            x, y = node.inputs[0], node.outputs[0]
            if _follows_reshape(node):
                node.inputs[0] = producer(x).inputs[0]
                changed = True
            elif y.outputs and not is_output(graph, y) and _is_idle(node):
                replace_uses(y, x)
                changed = True
        graph.cleanup()
    graph.toposort()


def _follows_reshape(node: gs.Node) -> bool:
    """Whether a Reshape follows another, which then does not matter: a 0 in the target would refer to it."""
    before = producer(node.inputs[0])
    if node.op != "Reshape" or before is None or before.op != "Reshape":
        return False
    target = values(node.inputs[1])
    return target is not None and 0 not in target


def _is_idle(node: gs.Node) -> bool:
    x, y = node.inputs[0], node.outputs[0]
    if node.op in ("Identity", "Dropout"):
        return True
    if node.op == "Expand" and all(_broadcasts(reader, y) for reader in y.outputs):
        return True
    if node.op == "Cast":
        return x.dtype is not None and helper.np_dtype_to_tensor_dtype(np.dtype(x.dtype)) == node.attrs["to"]
    if None in (x.shape, y.shape) or None in x.shape or x.shape != y.shape:
        return False
    if node.op in ("Reshape", "Expand"):
        return True
    if node.op == "Concat":
        return len(node.inputs) == 1
    if node.op == "Transpose":
        return node.attrs.get("perm") == sorted(node.attrs.get("perm", []))
    if node.op == "Pad":
        return not np.any(values(node.inputs[1]))
    if node.op == "Slice":
        return len(node.inputs) < 5 or bool(np.all(values(node.inputs[4]) == 1))
    return False


def _broadcasts(reader: gs.Node, expanded: gs.Variable) -> bool:
    """Whether a reader of an Expand's output would broadcast by itself, because its other operand is as large."""
    if reader.op not in ("Add", "Sub", "Mul", "Div"):
        return False
    others = [tensor for tensor in reader.inputs if tensor is not expanded]
    return len(others) == 1 and others[0].shape is not None and list(others[0].shape) == list(expanded.shape)
