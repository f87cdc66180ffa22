"""Graphs that leave the height and the width of their images open: patched once, right at every size.

Surgery reads off where tokens go by running a graph, which takes an image size. So the graph is patched at several
sizes, as one whose size is fixed, and where the patched graphs agree node by node they are one graph: plugin nodes take
height and width from their tensors. What differs is either told by the sizes themselves (the target of a Reshape, the
end of a Slice), and is computed from the shapes then, or depends on the size in another way, and the graph is refused
with the name of the node.

A window that covers an axis of the image shows no shift and needs no padding: what a size does not show, another does.
"""
from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from data.batches import load_arrays
from graphs.facts import Facts
from graphs.files import PLUGIN_DOMAIN
from graphs.outputs import Runner, classifiers, refuse_unsound
from graphs.pictures import Picture, image_input, inputs_of, picture, sized
from graphs.surgeon import TOLERANCE, check
from graphs.tidy import probe
from utils import UserError, image_sizes, shown

Size = tuple[int, int]

# Sides in patches, an odd one less half a patch. Windows of 4 to 24 tokens are padded at some of them, shifted at some,
# and cover an axis at some.
PROBED = ((51, 83), (101, 123), (27, 39))
CHECKED = ((56, 56), (41, 121), (64, 75))
SAME = 1e-5  # of the largest number of a constant that surgery found by computing in FP32
ATTENTIONS, BIAS = ("SwinAttention", "SwinAttentionInt8"), 1  # the place of the bias among their inputs


def leaves_size_open(model: onnx.ModelProto, layout: str | None = None) -> bool:
    """Whether the height or the width of a graph's images is open."""
    _, dims = image_input(model)
    return None in (dims[2:] if (layout or "NCHW") == "NCHW" else dims[1:3])


def add_size_arguments(parser: argparse.ArgumentParser, expected: bool = True) -> None:
    """Add the flags of graphs that leave the size of their images open: --probe-sizes --check-sizes, and --expected
    where asked for."""
    parser.add_argument("--probe-sizes", type=image_sizes, metavar="HxW,HxW,HxW",
                        help="of a graph that leaves height and width open: the sizes that it is patched at "
                             "(default: some 51x83, 101x123 and 27x39 of its patches)")
    parser.add_argument("--check-sizes", type=image_sizes, metavar="HxW,HxW",
                        help="and those that it is compared at (default: some 56x56, 41x121 and 64x75 of its patches)")
    if not expected:
        return
    parser.add_argument("--expected", type=Path, nargs="+", default=[], metavar="NPZ",
                        help="what the model that was exported gives itself: files with its `input` and each output by "
                             "its name; an exporter may have frozen what depends on the size")


def patch_size(model: onnx.ModelProto) -> Size:
    """Height and width of the patches: the strides of the first convolution; 1 where there is none."""
    for node in model.graph.node:
        if (node.op_type == "Conv" and not node.domain) or node.op_type == "SwinPatchEmbed":
            found = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
            if node.op_type == "SwinPatchEmbed":
                return found["patch_height"], found["patch_width"]
            strides = found.get("strides", [1, 1])
            return (strides[0], strides[1]) if len(strides) == 2 else (1, 1)
    return 1, 1


def sizes_in_pixels(model: onnx.ModelProto, patches: Sequence[Size]) -> list[Size]:
    """Sizes given in patches, in pixels: where their number is odd, half a patch is cut off the last."""
    def pixels(count: int, side: int) -> int:
        return count * side - (side // 2 if count % 2 else 0)

    high, wide = patch_size(model)
    return [(pixels(rows, high), pixels(columns, wide)) for rows, columns in patches]


# --- one patched graph for all sizes -------------------------------------------------------------------------


class Sized(NamedTuple):
    """A patched graph at one image size.

    Attributes:
        constants: its constants by name.
        shapes: of each computed tensor, at each probed batch.
    """

    size: Size
    model: onnx.ModelProto
    constants: dict[str, np.ndarray]
    shapes: dict[str, list[tuple[int, ...]]]

    def __str__(self) -> str:
        return f"{self.size[0]}x{self.size[1]}"


class Differs(Exception):
    """What two sizes do not have in common, in words."""


def patched_at_sizes(model: onnx.ModelProto, sizes: Sequence[Size], layout: str | None,
                     make: Callable[[onnx.ModelProto], onnx.ModelProto]) -> onnx.ModelProto:
    """One graph, height and width open, from what `make` makes of a graph at several image sizes.

    Args:
        model: leaves height or width open.
        sizes: at least two, better three.
        layout: --layout.
        make: patches a graph whose size is fixed.
    Raises:
        UserError: what `make` raises, with the size; the graphs at two sizes differ in another way than by their sizes.
    """
    if len(sizes) < 2:
        raise UserError("--probe-sizes: what depends on the size cannot be told from one size; give three")
    fixed_batch = image_input(model)[1][0]
    batches = (2, 3) if fixed_batch is None else (fixed_batch,)
    made = []
    for size in sizes:
        try:
            fixed = make(sized(model, size, layout))
        except UserError as error:
            raise UserError(f"with images of {size[0]}x{size[1]}: {error}") from error
        constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in fixed.graph.initializer}
        made.append(Sized(size, fixed, constants, shapes_of(fixed, size, batches)))
    try:
        return _opened(model, made)
    except Differs as difference:
        raise UserError(f"{difference}; so it cannot serve every size: give one with --size, or other --probe-sizes"
                        ) from difference


def shapes_of(model: onnx.ModelProto, size: Size, batches: Sequence[int]) -> dict[str, list[tuple[int, ...]]]:
    """The shape of each tensor that a graph of one image size computes, and of its input, at each batch."""
    name, (_, *sides) = image_input(model)
    try:
        runs = probe(model, batches)
    except UserError as error:
        raise UserError(f"patched at {size[0]}x{size[1]}, {error}") from error
    shapes = [{**run.shapes, **{tensor: numbers.shape for tensor, numbers in run.integers.items()}} for run in runs]
    found = {tensor: [shape[tensor] for shape in shapes] for tensor in shapes[0]}
    found[name] = [(batch, *sides) for batch in batches]
    return found


def _opened(original: onnx.ModelProto, made: list[Sized]) -> onnx.ModelProto:
    first = made[0]
    for other in made[1:]:
        _refuse_other_nodes(first, other)
    opened = onnx.ModelProto()
    opened.CopyFrom(first.model)
    graph = opened.graph
    del graph.node[:]
    del graph.value_info[:]  # they speak of one size
    writer = _Writer(made)
    rules = _Rules(made)
    for index, nodes in enumerate(zip(*(one.model.graph.node for one in made))):
        attention = _is_attention(nodes[0])
        telling = _telling(nodes, made) if attention else []
        base = telling[0] if telling else 0
        node = onnx.NodeProto()
        node.CopyFrom(nodes[0])
        _agree_on_attributes(node, nodes, made, rules)
        for place, names in enumerate(zip(*(one.input for one in nodes))):
            if names[0] not in first.constants:
                continue
            arrays = [one.constants[name] for one, name in zip(made, names)]  # in all, says _refuse_other_nodes
            if attention and place == BIAS:  # where a window covers an axis, the mask may be part of it
                arrays = [arrays[i] for i in telling] + [arrays[base]] * (len(made) - len(telling))
                if base:
                    node.input[place] = f"{node.name}/bias_of_any_size"
                    writer.initializers.append(numpy_helper.from_array(arrays[0], node.input[place]))
            if not _same(arrays):
                node.input[place] = writer.constant(index, node, place, arrays)
        graph.node.extend([*writer.taken(), node])
    used = {name for node in graph.node for name in node.input}
    written = {tensor.name for tensor in writer.initializers}  # a graph that was opened before has some of these names
    kept = [tensor for tensor in graph.initializer if tensor.name in used - written] + writer.initializers
    del graph.initializer[:]
    graph.initializer.extend(kept)
    _open_ends(original, opened, made)
    return opened


def _refuse_other_nodes(first: Sized, other: Sized) -> None:
    """Raises Differs unless both graphs have the same nodes, which read the same tensors in the same order."""
    ours, theirs = first.model.graph.node, other.model.graph.node
    known = {mine.name: yours.name for mine, yours in zip(inputs_of(first.model), inputs_of(other.model))}
    for one, node in zip(ours, theirs):
        if (one.op_type, one.domain, len(one.input), len(one.output)) != (
                node.op_type, node.domain, len(node.input), len(node.output)):
            raise Differs(f"{one.name or one.op_type} is {one.op_type} at {first} and {node.op_type} at {other}")
        for mine, yours in zip(one.input, node.input):
            if (mine in first.constants) != (yours in other.constants) or (
                    mine not in first.constants and known.get(mine, mine) != yours):
                raise Differs(f"{one.name or one.op_type} reads {mine} at {first} and {yours} at {other}")
        known.update(zip(one.output, node.output))
    if len(ours) != len(theirs):
        raise Differs(f"it has {len(ours)} nodes at {first} and {len(theirs)} at {other}")


def _same(arrays: list[np.ndarray]) -> bool:
    """Whether constants are equal, those with decimals but for the rounding of what surgery computes."""
    first = arrays[0]
    for array in arrays[1:]:
        if array.shape != first.shape or array.dtype != first.dtype:
            return False
        if first.dtype.kind != "f":
            if not np.array_equal(array, first):
                return False
        elif first.size and not np.abs(array - first).max() <= SAME * np.abs(first).max():
            return False
    return True


# --- what attention shows at one size and not at another -----------------------------------------------------


class _Rules:
    """What holds for all attentions of a graph where one by itself does not tell: the order of rolling and padding, and
    whether an axis that the window covers is shifted."""

    def __init__(self, made: list[Sized]) -> None:
        self.roll_first: set[int] = set()
        self.shift_if_covered: set[int] = set()
        for nodes in zip(*(one.model.graph.node for one in made)):
            if _is_attention(nodes[0]):
                rule = _rule_of_attention(nodes, made)
                self.roll_first |= rule.roll_first
                self.shift_if_covered |= rule.shift_if_covered


class _Rule(NamedTuple):
    """What the sizes show of one attention; a set that is empty says that they do not show it."""

    shift: Size
    roll_first: set[int]
    shift_if_covered: set[int]


def _is_attention(node: onnx.NodeProto) -> bool:
    return node.domain == PLUGIN_DOMAIN and node.op_type in ATTENTIONS


def _telling(nodes: Sequence[onnx.NodeProto], made: list[Sized]) -> list[int]:
    """Places of the sizes at which no window covers an axis: there shift, mask and bias can be told apart."""
    return [i for i, (node, one) in enumerate(zip(nodes, made)) if not any(Seen.of(node, one).covered)]


class Seen(NamedTuple):
    """An attention at one size.

    Attributes:
        attributes: of its node.
        sides: height and width of the tokens.
        window, shift: height and width; the shift is that which takes place at this size.
    """

    attributes: dict[str, int]
    sides: Size
    window: Size
    shift: Size

    @classmethod
    def of(cls, node: onnx.NodeProto, one: Sized) -> Seen:
        found = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        _, height, width, _ = one.shapes[node.input[0]][0]
        window = found["window_height"], found["window_width"]
        seen = [0 if window[axis] >= side and not found["shift_if_covered"] else found[name]
                for axis, (side, name) in enumerate(zip((height, width), ("shift_height", "shift_width")))]
        return cls(found, (height, width), window, (seen[0], seen[1]))

    @property
    def covered(self) -> tuple[bool, bool]:
        """Whether one window covers each axis."""
        return self.window[0] >= self.sides[0], self.window[1] >= self.sides[1]

    @property
    def padded(self) -> bool:
        """Whether an axis is no whole number of windows."""
        return any(side % window for side, window in zip(self.sides, self.window))


def _agree_on_attributes(node: onnx.NodeProto, nodes: Sequence[onnx.NodeProto], made: list[Sized], rules: _Rules
                         ) -> None:
    """Write into `node` the attributes that hold at every size; raises Differs where there are none."""
    by_size = [{attribute.name: helper.get_attribute_value(attribute) for attribute in one.attribute} for one in nodes]
    changed: dict[str, int] = {}
    if _is_attention(node):
        changed = _settled(nodes, made, rules)
    if node.op_type == "SwinPatchEmbed" and "ceil" in by_size[0]:
        # Whether what is left over is padded to a patch, which only sides that patches do not divide show.
        shown_at = {found["ceil"] for found, one in zip(by_size, made)
                    if one.size[0] % found["patch_height"] or one.size[1] % found["patch_width"]}
        if len(shown_at) == 1:
            changed["ceil"] = shown_at.pop()
    for name, value in by_size[0].items():
        for found, one in zip(by_size[1:], made[1:]):
            if name not in changed and not _equal(value, found.get(name)):
                raise Differs(f"{node.name or node.op_type}: its {name} is {value} at {made[0]} and {found.get(name)} "
                              f"at {one}")
    for attribute in node.attribute:
        if attribute.name in changed:
            attribute.CopyFrom(helper.make_attribute(attribute.name, changed[attribute.name]))


def _equal(one: object, other: object) -> bool:
    if isinstance(one, float) and isinstance(other, float):
        return abs(one - other) <= SAME * abs(one)
    if isinstance(one, TensorProto) and isinstance(other, TensorProto):
        return _same([numpy_helper.to_array(one), numpy_helper.to_array(other)])
    return one == other


def _rule_of_attention(nodes: Sequence[onnx.NodeProto], made: list[Sized]) -> _Rule:
    """What the sizes show of an attention's shift, whether it is taken where a window covers the axis, and its order.

    Raises:
        Differs: no size shows the shift, or two show different ones.
    """
    name, seen = nodes[0].name, [Seen.of(node, one) for node, one in zip(nodes, made)]
    telling = _telling(nodes, made)
    if not telling:
        window = "x".join(map(str, seen[0].window))
        raise Differs(f"{name}: its windows of {window} cover an axis of the image at every size that was tried, "
                      f"{_words(made)}, so that no shift can be seen; larger --probe-sizes show it")
    shifts = {seen[i].shift for i in telling}
    if len(shifts) > 1:
        raise Differs(f"{name}: its shift is {sorted(shifts)} at sizes {_words(made)}")
    (shift,) = shifts
    bias = made[telling[0]].constants[nodes[telling[0]].input[BIAS]]
    covered = set()
    for node, one, found in zip(nodes, made, seen):
        for axis in (0, 1):
            if found.covered[axis] and shift[axis]:
                if found.shift[axis] == shift[axis]:
                    covered.add(1)
                elif found.shift[axis] == 0 and _same([one.constants[node.input[BIAS]], bias]):
                    covered.add(0)  # else its mask is part of what was taken for the bias
    orders = {seen[i].attributes["roll_first"] for i in telling if seen[i].padded and any(shift)}
    for what, several in (("is shifted where a window covers the axis", covered), ("rolls before it pads", orders)):
        if len(several) > 1:
            raise Differs(f"{name}: it {what} at one of {_words(made)}, and not at another")
    return _Rule(shift, orders, covered)


def _settled(nodes: Sequence[onnx.NodeProto], made: list[Sized], rules: _Rules) -> dict[str, int]:
    """The attributes of an attention that explain all sizes."""
    rule = _rule_of_attention(nodes, made)
    known = Seen.of(nodes[0], made[0]).attributes

    def one_of(own: set[int], all_of_them: set[int], name: str) -> int:
        return next(iter(own or (all_of_them if len(all_of_them) == 1 else set())), known[name])

    return {"shift_height": rule.shift[0], "shift_width": rule.shift[1],
            "shift_if_covered": one_of(rule.shift_if_covered, rules.shift_if_covered, "shift_if_covered"),
            "roll_first": one_of(rule.roll_first, rules.roll_first, "roll_first")}


def _words(made: list[Sized]) -> str:
    return ", ".join(map(str, made))


# --- numbers that are sizes ----------------------------------------------------------------------------------


class _Writer:
    """Writes constants that differ between the sizes as what computes them from the shapes of tensors."""

    def __init__(self, made: list[Sized]) -> None:
        self.made = made
        self.initializers: list[onnx.TensorProto] = []
        self.nodes: list[onnx.NodeProto] = []
        # Tensors in the order in which they are computed, by their names in the first graph and in the others.
        self.tensors = [tuple(value.name for value in values) for values in zip(*(
            inputs_of(one.model) for one in made))]
        self.before = [len(self.tensors)]
        for nodes in zip(*(one.model.graph.node for one in made)):
            self.tensors += [names for names in zip(*(node.output for node in nodes)) if names[0]]
            self.before.append(len(self.tensors))

    def taken(self) -> list[onnx.NodeProto]:
        """The nodes written since the last time."""
        nodes, self.nodes = self.nodes, []
        return nodes

    def constant(self, index: int, node: onnx.NodeProto, place: int, arrays: list[np.ndarray]) -> str:
        """Name of what stands for an input of a node whose constant is another at each size.

        Raises:
            Differs: it is no size of a tensor.
        """
        name = f"{node.name or node.output[0]}/{place}_of_any_size"
        if any(array.dtype.kind != "i" or array.shape != arrays[0].shape or array.ndim > 1 for array in arrays):
            other = next(one for one, array in zip(self.made[1:], arrays[1:]) if not _same([arrays[0], array]))
            raise Differs(f"{node.name or node.op_type}: its constant {node.input[place]} is another at {self.made[0]} "
                          f"than at {other}")
        if node.op_type == "Reshape" and place == 1:
            target = self._target(node, index)
            if target is not None:
                self.initializers.append(numpy_helper.from_array(target, name))
                return name
        numbers = np.stack([np.atleast_1d(array) for array in arrays])  # [sizes, elements]
        parts = [self._number(index, node, name, i, column) for i, column in enumerate(numbers.T)]
        if len(parts) == 1:
            joined = parts[0]
        else:
            joined = f"{name}/all"
            self.nodes.append(helper.make_node("Concat", parts, [joined], name=joined, axis=0))
        if arrays[0].ndim == 0:
            shape = self._weight(f"{name}/scalar", [])
            self.nodes.append(helper.make_node("Reshape", [joined, shape], [f"{name}/one"], name=f"{name}/one"))
            joined = f"{name}/one"
        if arrays[0].dtype != np.int64:
            kind = helper.np_dtype_to_tensor_dtype(arrays[0].dtype)
            self.nodes.append(helper.make_node("Cast", [joined], [f"{name}/cast"], name=f"{name}/cast", to=kind))
            joined = f"{name}/cast"
        return joined

    def _shapes(self, names: tuple[str, ...]) -> np.ndarray | None:
        """[sizes * batches, rank] of a tensor; None where its rank is not always the same."""
        shapes = [shape for one, name in zip(self.made, names) for shape in one.shapes[name]]
        return np.array(shapes) if len({len(shape) for shape in shapes}) == 1 else None

    def _target(self, node: onnx.NodeProto, index: int) -> np.ndarray | None:
        """A target of Reshape with 0 for what stays, and at most one -1; None where there is none."""
        nodes = [one.model.graph.node[index] for one in self.made]
        before = self._shapes(tuple(other.input[0] for other in nodes))
        after = self._shapes(tuple(other.output[0] for other in nodes))
        if before is None or after is None:
            return None
        target = []
        for axis, sides in enumerate(after.T):
            if np.all(sides == sides[0]) and sides[0]:
                target.append(int(sides[0]))
            elif axis < before.shape[1] and np.array_equal(sides, before[:, axis]):
                target.append(0)
            else:
                target.append(-1)
        return np.array(target, np.int64) if target.count(-1) <= 1 else None

    def _number(self, index: int, node: onnx.NodeProto, name: str, element: int, numbers: np.ndarray) -> str:
        """Name of an int64 [1] that is `numbers` at the sizes."""
        if np.all(numbers == numbers[0]):
            return self._weight(f"{name}/{element}", numbers[:1])
        batches = len(next(iter(self.made[0].shapes.values())))
        wanted = np.repeat(numbers, batches)
        own = {value for value in node.input if value}
        candidates = self.tensors[:self.before[index]][::-1]
        for names in sorted(candidates, key=lambda names: names[0] not in own):
            shapes = self._shapes(names)
            if shapes is None:
                continue
            for axis in range(shapes.shape[1]):
                sides = shapes[:, axis]
                times, rest = wanted // np.maximum(sides, 1), wanted - sides
                if np.all(times == times[0]) and times[0] and np.array_equal(times * sides, wanted):
                    return self._side(names[0], axis, f"{name}/{element}", times=int(times[0]))
                if np.all(rest == rest[0]):
                    return self._side(names[0], axis, f"{name}/{element}", plus=int(rest[0]))
        raise Differs(f"{node.name or node.op_type}: its constant {numbers.tolist()} at {_words(self.made)} is the "
                      "size of nothing before it")

    def _side(self, tensor: str, axis: int, name: str, times: int = 1, plus: int = 0) -> str:
        """One side of a tensor, int64 [1], times a number, or plus one."""
        self.nodes.append(helper.make_node("Shape", [tensor], [f"{name}/shape"], name=f"{name}/shape"))
        self.nodes.append(helper.make_node("Gather", [f"{name}/shape", self._weight(f"{name}/axis", [axis])],
                                           [f"{name}/side"], name=f"{name}/side", axis=0))
        side = f"{name}/side"
        for op, number, neutral in (("Mul", times, 1), ("Add", plus, 0)):
            if number != neutral:
                result = f"{name}/{op}"
                self.nodes.append(helper.make_node(op, [side, self._weight(f"{result}/by", [number])], [result],
                                                   name=result))
                side = result
        return side

    def _weight(self, name: str, numbers: Sequence[int] | np.ndarray) -> str:
        self.initializers.append(numpy_helper.from_array(np.array(numbers, np.int64), name))
        return name


def _open_ends(original: onnx.ModelProto, opened: onnx.ModelProto, made: list[Sized]) -> None:
    """Give the input and the outputs the axes that the original leaves open."""
    ((value,), (theirs,)) = inputs_of(opened), inputs_of(original)
    names = ("batch", "channels", "height", "width")
    for axis, (dim, their) in enumerate(zip(value.type.tensor_type.shape.dim, theirs.type.tensor_type.shape.dim)):
        if not their.dim_value and not (axis == 1 and dim.dim_value):  # the number of channels is known now
            dim.dim_param = their.dim_param or names[axis]
    known = {output.name: output for output in original.graph.output}
    places = [tuple(one.model.graph.output[i].name for one in made) for i in range(len(opened.graph.output))]
    for output, names_of in zip(opened.graph.output, places):
        shapes = [shape for one, name in zip(made, names_of) for shape in one.shapes.get(name, [])]
        if len({len(shape) for shape in shapes}) != 1:
            output.type.tensor_type.ClearField("shape")
            continue
        said = known[output.name].type.tensor_type.shape.dim if output.name in known else []
        output.type.tensor_type.shape.Clear()
        for axis, sides in enumerate(zip(*shapes)):
            dim = output.type.tensor_type.shape.dim.add()
            if len(set(sides)) == 1 and not (axis < len(said) and said[axis].dim_param):
                dim.dim_value = sides[0]
            else:
                dim.dim_param = (axis < len(said) and said[axis].dim_param) or f"{output.name}_{axis}"


# --- whether it is right at other sizes ----------------------------------------------------------------------


def picture_at(model: onnx.ModelProto, size: Size, input_range: str | None = None, layout: str | None = None,
               facts: Facts | None = None) -> Picture:
    """What a graph that leaves its images' size open reads, at one size."""
    return picture(sized(model, size, layout), input_range, layout, facts)


def refuse_unsound_at(model: onnx.ModelProto, pictures: Sequence[Picture]) -> None:
    """`refuse_unsound` at several sizes, with the size in what it says."""
    run = None
    for wanted in pictures:
        try:
            run = refuse_unsound(model, wanted, run)
        except UserError as error:
            raise UserError(f"with images of {wanted.height}x{wanted.width}: {error}; where it runs at other sizes, "
                            "the exporter froze a number that depends on the size") from error


def refuse_other_than_expected(model: onnx.ModelProto, files: Sequence[Path], tolerance: float = 1e-3) -> list[str]:
    """Compare a graph with what the model that it was exported from gives; a line for each file.

    An exporter that follows one side of a branch on the size writes a graph that runs at every size and is wrong at
    some (torch.onnx.export(dynamo=True) does so silently). Only the model itself can tell.

    Args:
        files: .npz, each with `input` as the graph reads it, and the model's outputs by their names.
        tolerance: as a share of an output's largest number.
    Raises:
        UserError: an output differs by more.
    """
    if not files:
        return []
    run, lines = Runner(model, classifiers(model)), []
    names = {value.name for value in model.graph.output}
    for path in files:
        arrays = load_arrays(path, (), "a file of `input` and outputs", "write it with numpy.savez")
        if "input" not in arrays or not names.intersection(arrays):
            raise UserError(f"{shown(path)}: holds {', '.join(arrays)}; it needs `input` and at least one of "
                            f"{', '.join(sorted(names))}")
        images = arrays["input"]
        place = f"{'x'.join(map(str, images.shape))} images of {shown(path)}"
        outputs, worst = run(images), 0.0
        for name in sorted(names.intersection(arrays)):
            expected, actual = arrays[name], outputs[name]
            if actual.shape != expected.shape:
                raise UserError(f"its output {name} is {list(actual.shape)} for the {place}, and the model's is "
                                f"{list(expected.shape)}; its exporter froze a size")
            largest = float(np.abs(expected).max()) or 1.0
            error = float(np.abs(actual - expected).max()) / largest
            if not error <= tolerance:
                raise UserError(f"its output {name} differs by {error:.2g} of the largest from the model's for the "
                                f"{place}: its exporter froze what depends on the size; export it again so that the "
                                "model has no branch on its size, or for one size")
            worst = max(worst, error)
        lines.append(f"expected: {place}, max abs err {worst:.1e} of the largest")
    return lines


def check_at(model: onnx.ModelProto, patched: onnx.ModelProto, pictures: Sequence[Picture],
             tolerance: float = TOLERANCE, what: str = "") -> list[str]:
    """`check` at several sizes; lines of figures for each size and batch.

    Args:
        what: what the figures are of, put in front of them.
    """
    classifying, lines = classifiers(model), []
    runners = Runner(model, classifying), Runner(patched, classifying)
    for wanted in pictures:
        size = f"{wanted.height}x{wanted.width}"
        try:
            lines += check(model, patched, tolerance, wanted, f"{what}{size}, ", runners)
        except UserError as error:
            raise UserError(f"with images of {size}: {error}") from error
    return lines
