"""Export a checkpoint to ONNX: dynamic batch, constants folded, names of the model's modules and weights kept.

    python onnx/export_onnx.py --type swinv2 --resume models/checkpoints/swinv2_small_patch4_window8_256.pth
    python onnx/export_onnx.py --cfg models/swin_micro.yaml

Writes onnx/<MODEL.NAME>.onnx: input `input` float32 [batch, 3, S, S], output `logits` float32 [batch, num_classes]. A
checkpoint without a classifier gives `features` [batch, C], a backbone its maps, `stage0` and so on, [batch, C, H, W].
What does not depend on the input (V2's continuous position bias and its scale, V1's gathered bias) is a constant in
the file. From opset 17 on LayerNorm is one LayerNormalization node, below it a chain of nine.

torch's TorchScript exporter is used (dynamo=False), because its graphs are what TensorRT 8.6 can parse.
"""
from __future__ import annotations

import argparse
import io
import json
import sys
import time
import warnings
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import torch

sys.path.insert(1, str(Path(__file__).resolve().parents[1]))
from config import add_model_arguments, cfg_path, get_config
from data.labels import check_labels, read_labels
from graphs.facts import LONGEST, of_model, with_facts
from graphs.files import onnx_target
from models.build import checkpoint_path, load_model
from models.checkpoint import labels_of
from utils import ROOT, UserError, run_script, shown, whole_file

OPSETS = range(12, 18)  # TensorRT 8.6 parses up to 17; below 12 some of the operators here have older forms


def opset(text: str) -> int:
    """What --opset takes.

    Raises:
        UserError: not one of OPSETS.
    """
    if not text.isdecimal() or int(text) not in OPSETS:
        raise UserError(f"--opset {text}: not supported; choose from {OPSETS[0]} to {OPSETS[-1]}")
    return int(text)


def trace(model: torch.nn.Module, opset_version: int) -> onnx.ModelProto:
    """What torch's TorchScript exporter makes of a model that takes float32 [batch, 3, S, S]."""
    # Two images: a batch of one could be traced as a dimension to squeeze or broadcast.
    images = torch.zeros(2, 3, model.img_size, model.img_size)
    exported = io.BytesIO()
    with warnings.catch_warnings():
        # They say that this exporter is the old one. Warnings about the model (TracerWarning) are of another kind.
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.onnx.export(model, (images,), exported, dynamo=False, opset_version=opset_version,
                          input_names=["input"], output_names=model.output_names,
                          dynamic_axes={name: {0: "batch"} for name in ("input", *model.output_names)})
    return onnx.load_from_string(exported.getvalue())


def fold(traced: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """The same model with every constant expression as one initializer; `name` becomes the graph's name.

    Among them are the Identity nodes by which the exporter shares equal weights: each weight is there by its own name.
    """
    graph = gs.import_onnx(traced)
    graph.fold_constants().cleanup().toposort()
    graph.name = name
    return gs.export_onnx(graph, ir_version=traced.ir_version, producer_name=traced.producer_name,
                          producer_version=traced.producer_version)


def name_weights(model: onnx.ModelProto, module: torch.nn.Module) -> None:
    """Give back to initializers, in place, the names that the exporter took from them.

    It writes the weight of a Linear transposed, as onnx::MatMul_695, and buffers as Constant_9_output_0. Here an
    initializer is called as the parameter or buffer that holds its numbers, and <name>.T if it is that one transposed.
    Looked for only in the module that the reading node belongs to: elsewhere equal numbers would be chance.
    """
    names = {initializer.name for initializer in model.graph.initializer}
    tensors = (*module.named_parameters(), *module.named_buffers())
    unclaimed = {name: tensor.detach().numpy() for name, tensor in tensors if name not in names}
    readers = {name: node for node in model.graph.node for name in node.input}
    renamed = {}
    for initializer in model.graph.initializer:
        scope = readers[initializer.name].name.strip("/").replace("/", ".").rpartition(".")[0]
        array = onnx.numpy_helper.to_array(initializer)
        for name, tensor in unclaimed.items():
            if scope and name.startswith(f"{scope}.") and tensor.size == array.size and tensor.dtype == array.dtype:
                transposed = tensor.ndim == 2 and np.array_equal(array, tensor.T)
                if transposed or np.array_equal(array.ravel(), tensor.ravel()):
                    renamed[initializer.name] = f"{name}.T" if transposed else name
                    del unclaimed[name]
                    break
    for initializer in model.graph.initializer:
        initializer.name = renamed.get(initializer.name, initializer.name)
    for node in model.graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]


def export(model: torch.nn.Module, opset_version: int, name: str) -> onnx.ModelProto:
    """The ONNX model of a PyTorch model, checked with onnx.checker; folds the PyTorch model's constants in place."""
    model.fold_constants()
    exported = fold(trace(model, opset_version), name)
    name_weights(exported, model)
    onnx.checker.check_model(exported, full_check=True)
    return exported


def chosen_labels(given: tuple[str, ...] | None, checkpoint: Path, classes: int | None) -> tuple[str, ...]:
    """The names of the classes that go into the file: those given, else the checkpoint's own where they fit.

    Args:
        given: --labels.
        checkpoint: whose names count where none are given.
        classes: their number; None where the model has none.
    Raises:
        UserError: as many names are given as there are not classes.
    """
    labels = labels_of(checkpoint) if given is None else given
    if given is not None:
        check_labels(given, classes or 0, "--labels")
    elif len(labels) != classes:
        return ()
    if len(json.dumps(labels)) > LONGEST:
        print(f"labels  {len(labels)} names are too long for the file and left out; give them to classify.py --labels")
        return ()
    return labels


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_model_arguments(parser)
    parser.add_argument("--opset", type=opset, default=OPSETS[-1], metavar="N",
                        help=f"ONNX opset, {OPSETS[0]} to {OPSETS[-1]} (default: %(default)s)")
    parser.add_argument("--output", type=Path, metavar="FILE",
                        help="ONNX file to write (default: onnx/<MODEL.NAME>.onnx)")
    parser.add_argument("--labels", type=read_labels, metavar="FILE",
                        help="names of the classes, for the file to take along: one a line, or JSON (default: those "
                             "that the checkpoint brings)")
    args = parser.parse_args(arguments)
    config = get_config(args.cfg, args.opts, args.type)
    output = onnx_target(args.output or ROOT / "onnx" / f"{config.MODEL.NAME}.onnx")

    start = time.perf_counter()
    checkpoint = checkpoint_path(config, args.resume, args.pretrained)
    model = load_model(config, checkpoint, outputs=("logits", "features", "maps"))
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    gives = (f"maps {', '.join(model.output_names)}" if model.maps else
             f"{model.num_classes} {'classes' if model.output_names == ['logits'] else 'features'}")
    print(f"read    {shown(checkpoint)}: {config.MODEL.NAME}, {millions:.1f} M parameters, "
          f"{gives}, images of {model.img_size} x {model.img_size}", flush=True)
    labels = chosen_labels(args.labels, checkpoint, None if model.head is None else model.num_classes)
    exported = with_facts(export(model, args.opset, config.MODEL.NAME), replace(
        of_model(config, cfg_path(args.cfg, args.type), checkpoint, labels=labels), tools={"torch": torch.__version__}))
    with whole_file(output) as partial:
        onnx.save(exported, str(partial))
    operators = Counter(node.op_type for node in exported.graph.node)
    print(f"wrote   {shown(output)}: opset {args.opset}, {len(exported.graph.node)} nodes, "
          f"{output.stat().st_size / 2**20:.1f} MiB, in {time.perf_counter() - start:.1f} s")
    print(f"nodes   {', '.join(f'{count} {operator}' for operator, count in operators.most_common())}")


if __name__ == "__main__":
    run_script(main)
