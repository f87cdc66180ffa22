"""Bad inputs of every kind that a person can give: each ends in one line and a status that is not zero.

    python -m pytest tests/test_bad_inputs.py

The cases are generated: graphs, their external weights, data files, calibration caches, tables, yamls, images, labels,
checkpoints, flags. A case is right if what reads it raises UserError with one line, as run_script prints it, or leaves
by argparse, and if nothing was written. What ends in another exception, or goes on, is listed with its name.
"""
from __future__ import annotations

import io
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import add_all
import add_int8
import add_layernorm_with_params
import export_onnx
import numpy as np
import onnx
import onnx_test
import pytest
import to_fp16
import torch
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from safetensors.torch import save as safetensors_bytes

import test_swinV2 as accuracy
import Torch_Latency
from config import get_config
from data import batch_data_gen
from data.batches import load_arrays
from data.images import list_images, load_image
from models.checkpoint import read_checkpoint
from Results import tables
from TensorRT.INT8 import quant, sensitivity, smooth
from TensorRT.INT8.calibration_cache import Cache, cache_text, read_cache
from utils import ROOT, UserError

Case = tuple[str, Callable[[Path], object]]  # a name, and what reads the bad input, in a folder of its own
FEWEST = 400


# --- graphs --------------------------------------------------------------------------------------------------

SIZE, CHANNELS, CLASSES = 16, 8, 5


def good_graph() -> onnx.ModelProto:
    """Patch embedding, LayerNorm, pooling and classifier: the least that a surgery script has something to do with."""
    rng = np.random.default_rng(0)

    def weight(name: str, *shape: int) -> onnx.TensorProto:
        return numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name)

    nodes = [helper.make_node("Conv", ["input", "kernel"], ["patches"], "embed", kernel_shape=[4, 4], strides=[4, 4]),
             helper.make_node("Reshape", ["patches", "flat"], ["columns"], "flatten"),
             helper.make_node("Transpose", ["columns"], ["tokens"], "tokens", perm=[0, 2, 1]),
             helper.make_node("LayerNormalization", ["tokens", "gamma", "beta"], ["normed"], "norm", axis=-1),
             helper.make_node("ReduceMean", ["normed"], ["pooled"], "pool", axes=[1], keepdims=0),
             helper.make_node("MatMul", ["pooled", "head"], ["product"], "classify"),
             helper.make_node("Add", ["product", "bias"], ["logits"], "add_bias")]
    weights = [weight("kernel", CHANNELS, 3, 4, 4), weight("gamma", CHANNELS), weight("beta", CHANNELS),
               weight("head", CHANNELS, CLASSES), weight("bias", CLASSES),
               numpy_helper.from_array(np.array([0, CHANNELS, -1]), "flat")]
    graph = helper.make_graph(
        nodes, "good", [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 3, SIZE, SIZE])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", CLASSES])], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def changed(change: Callable[[onnx.ModelProto], object]) -> onnx.ModelProto:
    model = good_graph()
    change(model)
    return model


def node(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    return next(item for item in model.graph.node if item.name == name)


def weight_of(model: onnx.ModelProto, name: str) -> onnx.TensorProto:
    return next(tensor for tensor in model.graph.initializer if tensor.name == name)


def set_weight(name: str, value: Callable[[np.ndarray], np.ndarray]) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        tensor = weight_of(model, name)
        tensor.CopyFrom(numpy_helper.from_array(value(numpy_helper.to_array(tensor).copy()), name))
    return change


def set_input(kind: int, *shape: int | str) -> Callable[[onnx.ModelProto], None]:
    return lambda model: model.graph.input[0].CopyFrom(helper.make_tensor_value_info("input", kind, shape))


def between(tensor: str, op: str, *more: str, domain: str = "", **attributes: object) -> Callable:
    """Put a node in front of all that reads a tensor."""
    def change(model: onnx.ModelProto) -> None:
        for item in model.graph.node:
            item.input[:] = ["changed" if name == tensor else name for name in item.input]
        made = helper.make_node(op, [tensor, *more], ["changed"], f"the_{op}", domain=domain, **attributes)
        place = 1 + max((i for i, item in enumerate(model.graph.node) if tensor in item.output), default=-1)
        model.graph.node.insert(place, made)
        if domain:
            model.opset_import.append(helper.make_opsetid(domain, 1))
    return change


def frozen_batch(model: onnx.ModelProto) -> None:
    """Window-reverse's way: the batch that the trace had stands in a Reshape, and images are mixed."""
    rows = (SIZE // 4) ** 2
    between("tokens", "Reshape", "frozen", allowzero=0)(model)
    model.graph.initializer.append(numpy_helper.from_array(np.array([rows, -1, CHANNELS]), "frozen"))
    model.graph.node.insert(4, helper.make_node("Reshape", ["changed", "back"], ["again"], "again"))
    node(model, "norm").input[0] = "again"
    model.graph.initializer.append(numpy_helper.from_array(np.array([-1, rows, CHANNELS]), "back"))
    node(model, "the_Reshape").input[0] = "turned"
    model.graph.node.insert(3, helper.make_node("Transpose", ["tokens"], ["turned"], "turn", perm=[1, 0, 2]))


def bad_graphs() -> Iterator[tuple[str, onnx.ModelProto]]:
    floats = ("kernel", "gamma", "beta", "head", "bias")
    for name in floats:
        yield f"NaN in {name}", changed(set_weight(name, lambda x: np.where(np.arange(x.size).reshape(x.shape) == 0,
                                                                           np.float32(np.nan), x)))
        yield f"infinity in {name}", changed(set_weight(name, lambda x: np.full_like(x, np.inf)))
        yield f"{name} has an axis of -1", changed(
            lambda model, name=name: weight_of(model, name).dims.__setitem__(0, -1))
        yield f"{name} has no data", changed(lambda model, name=name: weight_of(model, name).ClearField("raw_data"))
        yield f"{name} lacks a byte", changed(lambda model, name=name: setattr(
            weight_of(model, name), "raw_data", weight_of(model, name).raw_data[:-1]))
        yield f"{name} lacks a number", changed(lambda model, name=name: setattr(
            weight_of(model, name), "raw_data", weight_of(model, name).raw_data[:-4]))
        yield f"{name} is of no type", changed(lambda model, name=name: setattr(
            weight_of(model, name), "data_type", 99))
        yield f"{name} is text", changed(lambda model, name=name: weight_of(model, name).CopyFrom(
            helper.make_tensor(name, TensorProto.STRING, [1], [b"weights"])))
        yield f"{name} is FP64", changed(set_weight(name, lambda x: x.astype(np.float64)))
        yield f"only {name} is FP16", changed(set_weight(name, lambda x: x.astype(np.float16)))
        yield f"{name} is missing", changed(lambda model, name=name: model.graph.initializer.remove(
            weight_of(model, name)))
        yield f"{name} is there twice", changed(lambda model, name=name: model.graph.initializer.append(
            weight_of(model, name)))
    for name in ("kernel", "gamma", "head", "bias"):
        yield f"{name} has another shape", changed(set_weight(name, lambda x: np.ones((7, *x.shape), np.float32)))
    yield "all weights zero", changed(lambda model: [set_weight(name, np.zeros_like)(model) for name in floats])
    for shape in ((), (1,), (3, SIZE, SIZE), ("batch", 3, SIZE), ("batch", 1, 3, SIZE, SIZE), ("batch", 3, "h", "w"),
                  ("batch", "c", SIZE, SIZE), ("batch", 3, SIZE, "w"), ("b", "c", "h", "w"), (-1, 3, SIZE, SIZE),
                  ("batch", 3, -1, SIZE), ("batch", 4, SIZE, SIZE), ("batch", 3, SIZE // 8, SIZE), (0, 3, SIZE, 0)):
        yield f"input of shape {shape}", changed(set_input(TensorProto.FLOAT, *shape))
    for kind in ("INT64", "INT32", "BOOL", "STRING", "DOUBLE", "UINT8", "FLOAT16", "INT8", "COMPLEX64"):
        yield f"input of {kind}", changed(set_input(getattr(TensorProto, kind), "batch", 3, SIZE, SIZE))
    yield "no input", changed(lambda model: model.graph.ClearField("input"))
    yield "no output", changed(lambda model: model.graph.ClearField("output"))
    yield "no node", changed(lambda model: model.graph.ClearField("node"))
    yield "no graph", changed(lambda model: model.ClearField("graph"))
    yield "no opset", changed(lambda model: model.ClearField("opset_import"))
    yield "two inputs", changed(lambda model: model.graph.input.append(
        helper.make_tensor_value_info("mask", TensorProto.FLOAT, ["batch", 1])))
    yield "an input of no type", changed(lambda model: model.graph.input[0].ClearField("type"))
    yield "an output that nothing makes", changed(lambda model: setattr(model.graph.output[0], "name", "nothing"))
    for version in (1, 7, 11, 10**6):
        yield f"opset {version}", changed(lambda model, version=version: setattr(
            model.opset_import[0], "version", version))
    for name in ("embed", "flatten", "tokens", "norm", "pool", "classify", "add_bias"):
        yield f"{name} reads what nothing makes", changed(lambda model, name=name: node(model, name).input.__setitem__(
            0, "nothing"))
        yield f"{name} reads itself", changed(lambda model, name=name: node(model, name).input.__setitem__(
            0, node(model, name).output[0]))
        yield f"{name} is no operator", changed(lambda model, name=name: setattr(
            node(model, name), "op_type", "Nothing"))
        yield f"{name} is of another tool", changed(lambda model, name=name: setattr(
            node(model, name), "domain", "org.example"))
        yield f"{name} is missing", changed(lambda model, name=name: model.graph.node.remove(node(model, name)))
        yield f"{name} is there twice", changed(lambda model, name=name: model.graph.node.append(node(model, name)))
        yield f"{name} has no inputs", changed(lambda model, name=name: node(model, name).ClearField("input"))
        yield f"{name} has no outputs", changed(lambda model, name=name: node(model, name).ClearField("output"))
    for name in ("RandomNormalLike", "RandomUniformLike", "Bernoulli"):
        yield f"random by {name}", changed(between("tokens", name))
    yield "Dropout that trains", changed(lambda model: (
        model.graph.initializer.extend([numpy_helper.from_array(np.float32(0.5), "ratio"),
                                        numpy_helper.from_array(np.array(True), "train")]),
        between("tokens", "Dropout", "ratio", "train")(model)))
    yield "the batch frozen in the trace", changed(frozen_batch)
    yield "Softmax over the batch", changed(between("tokens", "Softmax", axis=0))
    yield "the mean of the batch taken off", changed(lambda model: (
        between("tokens", "Sub", "mean")(model),
        model.graph.node.insert(3, helper.make_node("ReduceMean", ["tokens"], ["mean"], "mean", axes=[0], keepdims=1))))
    yield "the logarithm of what is below zero", changed(between("product", "Log"))
    for name in ("Attention", "QAttention", "GroupNorm", "SkipGroupNorm", "Nothing"):
        yield f"com.microsoft {name}", changed(between("tokens", name, domain="com.microsoft"))
    yield "a plugin node that is none of ours", changed(between("tokens", "SwinNothing", domain="swin"))
    yield "in FP16", changed(lambda model: (
        [set_weight(name, lambda x: x.astype(np.float16))(model) for name in floats],
        set_input(TensorProto.FLOAT16, "batch", 3, SIZE, SIZE)(model)))
    yield "nothing to replace", changed(lambda model: (setattr(node(model, "norm"), "op_type", "Identity"),
                                                       node(model, "norm").ClearField("attribute"),
                                                       node(model, "norm").input.__delitem__(slice(1, 3))))


def patch(path: Path) -> None:
    sys.argv = ["add_layernorm_with_params.py", "--onnx", str(path), "--output", str(path.with_name("written.onnx"))]
    add_layernorm_with_params.main()


def graph_cases() -> Iterator[Case]:
    for name, model in bad_graphs():
        def run(folder: Path, model: onnx.ModelProto = model) -> None:
            (folder / "bad.onnx").write_bytes(model.SerializeToString())
            patch(folder / "bad.onnx")
        yield name, run
    good = good_graph().SerializeToString()
    for at in range(0, len(good) - 8, max(1, len(good) // 30)):
        yield f"cut off at {at}", lambda folder, at=at: ((folder / "cut.onnx").write_bytes(good[:at]),
                                                         patch(folder / "cut.onnx"))
    for text in (b"", b"\0" * 100, b"not a graph", b"\x7fELF", b"PK\3\4", b"{}"):
        yield f"a file that begins {text[:8]!r}", lambda folder, text=text: (
            (folder / "other.onnx").write_bytes(text), patch(folder / "other.onnx"))
    yield "no file", lambda folder: patch(folder / "none.onnx")
    yield "a folder", lambda folder: ((folder / "folder.onnx").mkdir(), patch(folder / "folder.onnx"))
    for field in (b"classify", b"product", b"kernel"):
        yield f"the name {field!r} is not UTF-8", lambda folder, field=field: (
            (folder / "name.onnx").write_bytes(good.replace(field, b"\xff" * len(field))), patch(folder / "name.onnx"))


def external_cases() -> Iterator[Case]:
    wrong = {"location": ("../weights", "/etc/hostname", "", ".", "missing.bin", "a\0b"),
             "offset": ("-1", "x", "10000000000", "1.5", "1e9"), "length": ("-4", "x", "1", "10000000000000", "0x10")}
    for key, value in ((key, value) for key, found in wrong.items() for value in found):
        def run(folder: Path, key: str = key, value: str = value) -> None:
            model = good_graph()
            onnx.save(model, folder / "bad.onnx", save_as_external_data=True, location="weights.bin", size_threshold=64)
            model = onnx.load(folder / "bad.onnx", load_external_data=False)
            for entry in weight_of(model, "kernel").external_data:
                entry.value = value if entry.key == key else entry.value
            (folder / "bad.onnx").write_bytes(model.SerializeToString())
            patch(folder / "bad.onnx")
        yield f"external weights with {key} {value!r}", run
    for share in (0, 0.3, 0.99):
        def cut(folder: Path, share: float = share) -> None:
            onnx.save(good_graph(), folder / "bad.onnx", save_as_external_data=True, location="weights.bin",
                      size_threshold=64)
            data = (folder / "weights.bin").read_bytes()
            (folder / "weights.bin").write_bytes(data[:int(share * len(data))])
            patch(folder / "bad.onnx")
        yield f"{share:.0%} of the external weights", cut


# --- other files ---------------------------------------------------------------------------------------------


def npz_cases() -> Iterator[Case]:
    buffer = io.BytesIO()
    np.savez(buffer, input=np.ones((2, 3, 8, 8), np.float32), logits=np.ones((2, 5), np.float32), model=np.array("m"))
    good = buffer.getvalue()

    def read(path: Path) -> None:
        load_arrays(path, ("input", "logits", "model"), "batch data", "write it again")

    def written(data: bytes) -> Callable[[Path], None]:
        return lambda folder: ((folder / "bad.npz").write_bytes(data), read(folder / "bad.npz"))

    for at in range(0, len(good) - 1, len(good) // 40):
        yield f"cut off at {at}", written(good[:at])
    for missing in ("input", "logits", "model"):
        arrays = {"input": np.ones(2), "logits": np.ones(2), "model": np.array("m")}
        del arrays[missing]
        other = io.BytesIO()
        np.savez(other, **arrays)
        yield f"without {missing}", written(other.getvalue())
    objects = io.BytesIO()
    np.savez(objects, input=np.array([{}], object), logits=np.ones(2), model=np.array("m"))
    yield "with pickled objects", written(objects.getvalue())
    for name, content in (("text", b"text"), ("empty", b""), ("header", b"\x93NUMPY\1\0"),
                          ("zeros", b"\x93NUMPY" + b"\0" * 99), ("dict", b"\x93NUMPY\1\0\x10\0{'descr': 'nope'}")):
        other = io.BytesIO()
        with zipfile.ZipFile(other, "w") as archive:
            for array in ("input", "logits", "model"):
                archive.writestr(f"{array}.npy", content)
        yield f"a zip with {name} for arrays", written(other.getvalue())
    yield "text", written(b"input logits")
    yield "nothing", written(b"")
    yield "no file", lambda folder: read(folder / "none.npz")
    yield "a folder", lambda folder: read(folder)


def cache_cases() -> Iterator[Case]:
    good = cache_text(Cache("minmax", 16, "0" * 32, {"a": np.float32(1), "b": np.float32(2)}))
    head, origin, *scales = good.splitlines()

    def written(data: str | bytes) -> Callable[[Path], None]:
        data = data.encode() if isinstance(data, str) else data
        return lambda folder: ((folder / "bad.cache").write_bytes(data), read_cache(folder / "bad.cache"))

    for header in ("", "TRT-8600", "TRT--EntropyCalibration2", "TRT-8600-MinMaxCalibration",
                   "trt-8600-EntropyCalibration2", "TRT-8600-EntropyCalibration2 ",
                   "\ufeffTRT-8600-EntropyCalibration2", "x" * 10**5):
        yield f"begins {header[:30]!r}", written("\n".join([header, origin, *scales]))
    for number in ("7fc00000", "7f800000", "ff800000", "00000000", "bf800000", "80000000", "3f80000", "3f8000000",
                   "xyz", "", " 3f800000", "0x3f8000", "３f80000", "-1f80000", "1.0"):
        yield f"a scale {number!r}", written("\n".join([head, origin, f"a: {number}"]))
    for line in ("a", "a 3f800000", ":3f800000", ": 3f800000", "a:3f800000", "a: 3f800000 x", "\0"):
        yield f"a line {line!r}", written("\n".join([head, origin, line]))
    yield "a tensor twice", written("\n".join([head, origin, scales[0], scales[0]]))
    yield "of no graph", written("\n".join([head, *scales]))
    for name in ("swin_int8/minmax/x_images/" + "0" * 32, "swin_int8/minmax/1_images/" + "g" * 32,
                 "swin_int8//1_images/"):
        yield f"of the graph {name[:40]!r}", written("\n".join([head, f"{name}: 3f800000", *scales]))
    yield "not text", written(b"\xff\xfe\0" + good.encode())
    yield "no file", lambda folder: read_cache(folder / "none.cache")
    yield "a folder", lambda folder: read_cache(folder)
    for at in range(0, len(good) - len(scales[-1]) - 1, 7):
        if good[at] != "\n" and good[at - 1] != "\n":  # whole lines are the cache of a smaller graph
            yield f"cut off at {at}", written(good[:at])


def table_cases() -> Iterator[Case]:
    columns = ("run_id", "batch", "latency_ms_median")
    good = "run_id,batch,latency_ms_median\n1,8,1.5\n2,8,1.6\n"

    def written(data: str | bytes) -> Callable[[Path], None]:
        data = data.encode() if isinstance(data, str) else data
        return lambda folder: ((folder / "bad.csv").write_bytes(data), tables.read_rows(folder / "bad.csv", columns))

    for at in range(1, len(good) - 1):
        if good[at - 1] != "\n":
            yield f"cut off at {at}", written(good[:at])
    for name, text in (("BOM", "\ufeff" + good), ("semicolons", good.replace(",", ";")),
                       ("tabs", good.replace(",", "\t")), ("a cell more", good + "3,8,1.5,9\n"),
                       ("a cell less", good + "3,8\n"),
                       ("a word for a number", good + "3,8,fast\n"), ("a word for a batch", good + "3,many,1.5\n"),
                       ("a batch below zero", good + "3,-8,1.5\n"), ("no number", good + "3,8,\n"),
                       ("an open quote", good + '"3,8,1.5\n'), ("no batch", good.replace("batch", "size")),
                       ("underscores", good + "3,8,1_5\n"), ("a null", good + "3,\0,1.5\n")):
        yield name, written(text)
    for mark in ("<<<<<<< HEAD", "=======", ">>>>>>> other", "||||||| base"):
        yield f"with {mark}", written(good + mark + "\n")
    yield "not text", written(b"\xff\xfe" + good.encode("utf-16-le"))


def yaml_cases() -> Iterator[Case]:
    good = (ROOT / "models" / "swin_micro.yaml").read_text()

    def written(text: str | bytes) -> Callable[[Path], object]:
        data = text.encode() if isinstance(text, str) else text
        return lambda folder: ((folder / "bad.yaml").write_bytes(data), get_config(folder / "bad.yaml"))

    for key in ("MODEL.NUM_CLASSES", "MODEL.SWIN.PATCH_SIZE", "MODEL.SWIN.EMBED_DIM", "MODEL.SWIN.WINDOW_SIZE",
                "DATA.IMG_SIZE"):
        for value in ("-1", "x", "1e999", ".nan", "null", "[]", "{}", "9" * 30, "1.5", "true"):
            def run(folder: Path, key: str = key, value: str = value) -> None:
                get_config(ROOT / "models" / "swin_micro.yaml", [key, value])
            yield f"--opts {key} {value[:12]}", run
    for key, value in (("MODEL.SWIN.DEPTHS", "[2, -1]"), ("MODEL.SWIN.DEPTHS", "[]"), ("MODEL.SWIN.DEPTHS", "2"),
                       ("MODEL.SWIN.NUM_HEADS", "[3]"), ("MODEL.SWIN.NUM_HEADS", "['x', 1]"), ("MODEL.TYPE", "vit"),
                       ("MODEL.NAME", "../x"), ("MODEL.NAME", "/etc/x"), ("MODEL.NOTHING", "1"), ("NOTHING", "1"),
                       ("MODEL.SWIN", "1"), ("DATA", "1")):
        yield f"--opts {key} {value}", lambda folder, key=key, value=value: get_config(
            ROOT / "models" / "swin_micro.yaml", [key, value])
    yield "--opts without a value", lambda folder: get_config(ROOT / "models" / "swin_micro.yaml", ["DATA.IMG_SIZE"])
    for name, text in (("a tab", "\tMODEL: 1"), ("an open bracket", "MODEL: ["), ("a list", "- 1\n- 2\n"),
                       ("a word", "model"), ("a number", "17"),
                       ("an object", "MODEL: !!python/object/apply:os.getcwd []"),
                       ("an alias", "A: &a [1]\nMODEL: *a\n"), ("itself", "A: &a {b: *a}\n"),
                       ("two documents", f"{good}\n---\n{good}"), ("an unknown key", f"{good}\nNOTHING: 1\n"),
                       ("a deep nest", "[" * 5000), ("a huge file", "# " + "x" * 10**5)):
        yield name, written(text)
    yield "not text", written(b"\xff\xfe\0\0")
    yield "no file", lambda folder: get_config(folder / "none.yaml")
    yield "a folder", lambda folder: get_config(folder)
    yield "another type", lambda folder: get_config(ROOT / "models" / "swin_micro.yaml", (), "swinv2")


def image_cases() -> Iterator[Case]:
    pixels = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8))
    for kind in ("png", "jpeg", "bmp", "webp", "tiff", "gif"):
        buffer = io.BytesIO()
        pixels.save(buffer, kind)
        for share in (0, 0.05, 0.3, 0.6):
            data = buffer.getvalue()[:int(share * len(buffer.getvalue()))]
            yield f"{share:.0%} of a {kind}", lambda folder, data=data, kind=kind: (
                (folder / f"bad.{kind}").write_bytes(data), load_image(folder / f"bad.{kind}"))
    for mode, array in (("F", np.ones((4, 4), np.float32)), ("I", np.full((4, 4), 2**20, np.int32))):
        yield f"pixels of mode {mode}", lambda folder, array=array: (
            Image.fromarray(array).save(folder / "bad.tiff"), load_image(folder / "bad.tiff"))
    for text in (b"", b"text", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"<svg/>", b"GIF89a"):
        yield f"a file of {text[:8]!r}", lambda folder, text=text: (
            (folder / "bad.png").write_bytes(text), load_image(folder / "bad.png"))
    yield "no file", lambda folder: load_image(folder / "none.png")
    yield "a folder", lambda folder: load_image(folder)
    yield "no folder", lambda folder: list_images(folder / "none")
    yield "an empty folder", lambda folder: ((folder / "empty").mkdir(), list_images(folder / "empty"))
    yield "a folder of text", lambda folder: ((folder / "a.txt").write_text("x"), list_images(folder))


def label_cases() -> Iterator[Case]:
    for text in ("", "a.png", "a.png x", "a.png -1", "a.png 5", "a.png 1.0", "a.png 99999999999", "a.png 1\na.png 2",
                 "a.png 1\na.png 1", "b.png 1", " 1", "a.png 1 2 three", "a.png\0 1", "a.png ²"):
        yield f"labels {text!r}", lambda folder, text=text: (
            (folder / "labels.txt").write_text(text), accuracy.read_labels(folder / "labels.txt", ["a.png"], 5))
    yield "not text", lambda folder: ((folder / "labels.txt").write_bytes(b"\xff\xfe"),
                                      accuracy.read_labels(folder / "labels.txt", ["a.png"], 5))
    yield "no file", lambda folder: accuracy.read_labels(folder / "none.txt", ["a.png"], 5)


def checkpoint_cases() -> Iterator[Case]:
    buffer, weights = io.BytesIO(), {"a": torch.ones(40), "b": torch.ones(4, 4)}
    torch.save({"model": weights}, buffer)
    for suffix, data in (("pth", buffer.getvalue()), ("safetensors", safetensors_bytes(weights))):
        for share in (0, 0.01, 0.1, 0.3, 0.5, 0.7, 0.9):
            cut = data[:int(share * len(data))]
            yield f"{share:.0%} of a .{suffix}", lambda folder, cut=cut, suffix=suffix: (
                (folder / f"bad.{suffix}").write_bytes(cut), read_checkpoint(folder / f"bad.{suffix}"))
        for text in (b"text", b"\x80\x02", b"PK\3\4", b"\xff" * 64, b"<html>"):
            yield f"a .{suffix} of {text[:6]!r}", lambda folder, text=text, suffix=suffix: (
                (folder / f"bad.{suffix}").write_bytes(text), read_checkpoint(folder / f"bad.{suffix}"))
        yield f"no .{suffix}", lambda folder, suffix=suffix: read_checkpoint(folder / f"none.{suffix}")


def flag_cases() -> Iterator[Case]:
    def called(main: Callable, *flags: str) -> Callable[[Path], None]:
        def run(folder: Path) -> None:
            sys.argv = ["script.py", *flags]
            main()
        return run

    none = "/none/none.onnx"
    for module, needed in ((add_all, ["--onnx", none]), (add_int8, ["--onnx", none]), (to_fp16, ["--onnx", none]),
                           (add_layernorm_with_params, ["--onnx", none]), (quant, ["--onnx", none]),
                           (smooth, ["--onnx", none]), (sensitivity, ["--onnx", none]),
                           (batch_data_gen, ["--model", none]), (onnx_test, ["--onnx", none, "--type", "swinv1"]),
                           (export_onnx, ["--type", "swinv1", "--resume", none]),
                           (Torch_Latency, ["--type", "swinv1"])):
        name = module.__name__
        for flags in (["--nothing"], ["--output"], ["one", "two"], ["--batches", "0"], ["--batch", "x"],
                      ["--size", "0x9"], ["--size", "-1"], ["--input-range", "0..2"], ["--layout", "CHWN"]):
            yield f"{name} {' '.join(flags)}", called(module.main, *needed, *flags)
        if module is not Torch_Latency:
            yield f"{name} without its file", called(module.main, *needed)
    for flags in (["--percentile", "50"], ["--percentile", "nan"], ["--method", "best"], ["--batch-size", "0"],
                  ["--max-rms", "nan"], ["--max-rms", "-1"], ["--min-agreement", "2"], ["--provider", "tpu"]):
        yield f"quant {' '.join(flags)}", called(quant.main, "--onnx", none, *flags)
    for module, flags in ((add_all, ["--probe-sizes", "0x9"]), (add_all, ["--check-sizes", "9x"]),
                          (quant, ["--sizes", "224,"]), (quant, ["--sizes", "99999x99999"]),
                          (add_int8, ["--cache", none])):
        yield f"{module.__name__} {' '.join(flags)}", called(module.main, "--onnx", none, *flags)
    for flags in (["--alpha", "2"], ["--alpha", "nan"]):
        yield f"smooth {' '.join(flags)}", called(smooth.main, "--onnx", none, *flags)
    for flags in (["--fp32", "body"], ["--fp32", ""], ["--fp32", "head,"]):
        yield f"to_fp16 {' '.join(flags)}", called(to_fp16.main, "--onnx", none, *flags)


KINDS: dict[str, Callable[[], Iterator[Case]]] = {
    "graphs": graph_cases, "external weights": external_cases, "npz": npz_cases, "caches": cache_cases,
    "tables": table_cases, "yamls": yaml_cases, "images": image_cases, "labels": label_cases,
    "checkpoints": checkpoint_cases, "flags": flag_cases}


def problem(run: Callable[[Path], object], folder: Path) -> str:
    """What is wrong with how a bad input ended; "" where it ended as it should."""
    try:
        run(folder)
    except UserError as error:
        return "" if str(error).strip() and "\n" not in str(error).strip() else f"several lines: {error}"
    except SystemExit as stop:  # argparse, or a script that found something wrong
        return "" if stop.code not in (None, 0) else "exit 0"
    except FileNotFoundError as error:  # run_script makes a line of it
        return "" if error.filename else f"no name in {error!r}"
    except Exception as error:  # the point of this test: every other exception is a traceback for somebody
        return f"{type(error).__name__}: {str(error)[:150]}"
    return "was taken"


@pytest.mark.parametrize("kind", KINDS)
def test_bad_inputs_end_in_one_line(kind, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["pytest"])
    wrong = []
    for number, (name, run) in enumerate(KINDS[kind]()):
        folder = tmp_path / str(number)
        folder.mkdir()
        found = problem(run, folder)
        if not found and (folder / "written.onnx").exists():
            found = "a graph was written"
        if found:
            wrong.append(f"{name}: {found}")
    capsys.readouterr()
    assert not wrong, "\n".join(wrong)


def test_there_are_enough_of_them():
    assert sum(1 for cases in KINDS.values() for _ in cases()) >= FEWEST


def test_the_good_graph_is_taken(tmp_path, monkeypatch):
    """What the bad graphs are made of is good: it is its change that is refused."""
    monkeypatch.setattr(sys, "argv", ["pytest"])
    onnx.save(good_graph(), tmp_path / "good.onnx")
    patch(tmp_path / "good.onnx")
    assert [node.op_type for node in onnx.load(tmp_path / "written.onnx").graph.node if node.domain == "swin"] == [
        "SwinLayerNormWithParams"]
