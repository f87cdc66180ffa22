"""Write a model repository of Triton Inference Server for an engine, or an ONNX file: examples/triton/README.md.

    python examples/triton/make_repository.py TensorRT/TRT_Engine/mine_attention_fp16.plan --output /srv/models --images

The model's file says its input, output and names of classes. With --images two more models are written: one that
makes of encoded image files (JPEG, PNG) what the classifier reads, as data/images.py does, and an ensemble of both.
Prints the command that starts the server. Models that are there already are not touched.
"""
from __future__ import annotations

import argparse
import json
import re
import shlex
import shutil
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

sys.path.insert(1, str(Path(__file__).resolve().parents[2]))
from data.labels import check_labels, read_labels
from graphs.facts import Facts, Output, of_file, of_onnx
from graphs.pictures import image_size, picture_of
from inference.classifiers import scores
from TensorRT.backend import CARRIED, PLUGIN_LIBRARY
from utils import ROOT, UserError, batch_sizes, existing_file, folder_to_write, from_one, run_script, shown

TYPES = {"float32": "TYPE_FP32", "float16": "TYPE_FP16", "uint8": "TYPE_UINT8"}
# What preprocess_model.py imports, from the repository's root.
MODULES = ("utils.py", "data/images.py", *(f"graphs/{name}.py" for name in ("__init__", "facts", "files", "pictures")))
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


def tensor(name: str, kind: str, dims: list[int], *more: str) -> str:
    """An entry of input or output in a config.pbtxt."""
    return "\n  ".join([f"{{ name: {quoted(name)}", f"  data_type: {kind}", f"  dims: {dims}", *more]) + " }"


def quoted(text: str) -> str:
    """A string in protobuf's text format."""
    return json.dumps(text)


def parameters(values: dict[str, str]) -> str:
    return "\n      ".join(f"parameters {{ key: {quoted(key)} value: {quoted(text)} }}" for key, text in values.items())


def classifier_config(name: str, facts: Facts, output: Output, args: argparse.Namespace, engine: bool,
                      shape: tuple[int, ...]) -> str:
    """config.pbtxt of the classifier. Fields: model_config.proto of triton-inference-server/common."""
    batches = ", ".join(str(batch) for batch in args.preferred if batch <= args.max_batch)
    lines = [
        f"name: {quoted(name)}", f"backend: {quoted('tensorrt' if engine else 'onnxruntime')}",
        f"max_batch_size: {args.max_batch}",
        f"input [\n  {tensor(facts.input, TYPES[facts.input_type], list(shape))}\n]",
        "output [\n  " + tensor(output.name, TYPES[output.type], [int(output.shape[1] or 0)],
                                '  label_filename: "labels.txt"') + "\n]",
        f"dynamic_batching {{\n  preferred_batch_size: [ {batches} ]\n"
        f"  max_queue_delay_microseconds: {args.max_delay_us}\n}}",
        f"instance_group [ {{ count: {args.instances} kind: KIND_GPU }} ]"]
    if not engine:
        sizes = "x".join(map(str, shape))
        options = {"precision_mode": "FP16" if facts.precision == "fp16" else "FP32",
                   "trt_engine_cache_enable": "1", "trt_engine_cache_path": "/tmp",
                   "trt_profile_min_shapes": f"{facts.input}:1x{sizes}",
                   "trt_profile_opt_shapes": f"{facts.input}:{min(32, args.max_batch)}x{sizes}",
                   "trt_profile_max_shapes": f"{facts.input}:{args.max_batch}x{sizes}"}
        lines.append('optimization { execution_accelerators {\n  gpu_execution_accelerator [ {\n'
                     f'      name: "tensorrt"\n      {parameters(options)}\n  }} ]\n}} }}')
    return "\n".join(lines) + "\n"


def preprocess_config(name: str, facts: Facts, args: argparse.Namespace, shape: tuple[int, ...]) -> str:
    """config.pbtxt of the model that decodes images."""
    return "\n".join([
        f"name: {quoted(name)}", 'backend: "python"', f"max_batch_size: {args.max_batch}",
        f"input [\n  {tensor('IMAGE', 'TYPE_STRING', [1])}\n]",
        f"output [\n  {tensor('PIXELS', TYPES[facts.input_type], list(shape))}\n]",
        f"dynamic_batching {{\n  max_queue_delay_microseconds: {args.max_delay_us}\n}}",
        "instance_group [ { count: 1 kind: KIND_CPU } ]"]) + "\n"


def ensemble_config(name: str, facts: Facts, output: Output, args: argparse.Namespace) -> str:
    """config.pbtxt of both, one after the other: `<name>_preprocess`, then `<name>`."""
    return "\n".join([
        f"name: {quoted(f'{name}_images')}", 'platform: "ensemble"', f"max_batch_size: {args.max_batch}",
        f"input [\n  {tensor('IMAGE', 'TYPE_STRING', [1])}\n]",
        "output [\n  " + tensor(output.name, TYPES[output.type], [int(output.shape[1] or 0)],
                                '  label_filename: "labels.txt"') + "\n]",
        "ensemble_scheduling { step [",
        f"  {{ model_name: {quoted(f'{name}_preprocess')} model_version: -1",
        '    input_map { key: "IMAGE" value: "IMAGE" } output_map { key: "PIXELS" value: "PIXELS" } },',
        f"  {{ model_name: {quoted(name)} model_version: -1",
        f'    input_map {{ key: {quoted(facts.input)} value: "PIXELS" }}',
        f"    output_map {{ key: {quoted(output.name)} value: {quoted(output.name)} }} }}", "] }"]) + "\n"


def facts_of(model: Path, args: argparse.Namespace) -> tuple[Facts, bool]:
    """What the model is, and whether it is an engine.

    Raises:
        UserError: it is none that a server can run: a fixed batch, plugin nodes in an ONNX file, no classifier.
    """
    engine = existing_file(model, "an engine or an ONNX file").open("rb").read(4)[1:] == b"trt"
    facts = of_file(model) if engine else of_onnx(model)
    if facts.patched and not engine:
        raise UserError(f"{shown(model)}: holds plugin nodes, which onnxruntime's TensorRT provider does not look for "
                        "in their domain; build an engine of it with TensorRT/build.sh, or give the unpatched graph")
    if facts.batch:
        raise UserError(f"{shown(model)}: takes only batches of {facts.batch}, and a server puts requests together; "
                        "export it with an open batch")
    return facts, engine


def largest_batch(model: Path, facts: Facts, wanted: int | None) -> int:
    """The batch up to which the server puts requests together.

    Raises:
        UserError: the engine takes none as large, or none as small as a single request.
    """
    if not facts.batches:  # an ONNX file; or a plan of which an earlier version of build.sh wrote down less
        return wanted or 128
    smallest, largest = facts.batches
    if smallest > 1:
        raise UserError(f"{shown(model)}: takes batches from {smallest} on, and a request may come alone; build it "
                        "again with build.sh --min 1")
    if (wanted or 1) > largest:
        raise UserError(f"--max-batch {wanted}: {shown(model)} takes batches of up to {largest}; build.sh --max sets "
                        "that")
    return wanted or largest


def plugin_library(args: argparse.Namespace, facts: Facts) -> Path | None:
    """The library that the server has to load; None for none.

    Raises:
        UserError: it is not there.
    """
    if args.plugins == CARRIED or not facts.patched:
        return None
    return existing_file(args.plugins or PLUGIN_LIBRARY, "the plugin library that it was built with (--plugins)")


def start_command(repository: Path, plugins: Path | None, carried: bool) -> str:
    """Options: READMEs of triton-inference-server/server and tensorrt_backend."""
    flags = [f"--model-repository={repository}"]
    if plugins:
        flags.append(f"--backend-config=tensorrt,plugins={plugins}")
    if carried:  # lets TensorRT run code that is in a plan
        flags.append("--backend-config=tensorrt,version-compatible=true")
    return shlex.join(["tritonserver", *flags])


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, metavar="MODEL", help="an engine with its .json beside it, or an ONNX "
                        "file, which onnxruntime's TensorRT provider runs")
    parser.add_argument("--output", type=folder_to_write, required=True, metavar="FOLDER",
                        help="the model repository")
    parser.add_argument("--name", metavar="NAME", help="of the model (default: the file's, without its suffix)")
    parser.add_argument("--images", action="store_true", help="write NAME_preprocess and the ensemble NAME_images too")
    parser.add_argument("--labels", type=read_labels, metavar="FILE",
                        help="names of the classes (default: those that the file brings)")
    parser.add_argument("--plugins", metavar="LIB", help="plugin library of an engine; default this project's where "
                        "the engine has plugins; carried for the one inside the plan")
    parser.add_argument("--max-batch", type=from_one, metavar="N",
                        help="largest batch (default: that of the engine, build.sh --max; of an ONNX file 128)")
    parser.add_argument("--preferred", type=batch_sizes, default="8,32", metavar="N,N",
                        help="batches that are run at once when so many requests wait (default: %(default)s)")
    parser.add_argument("--max-delay-us", type=from_one, default=500, metavar="US",
                        help="how long a request may wait for others, microseconds (default: %(default)s)")
    parser.add_argument("--instances", type=from_one, default=2, metavar="N",
                        help="of the model on each GPU: one copies while another runs (default: %(default)s)")
    parser.add_argument("--size", type=image_size, metavar="S or HxW",
                        help="of the images, where the model leaves it open")
    args = parser.parse_args(arguments)

    facts, engine = facts_of(args.model, args)
    args.max_batch = largest_batch(args.model, facts, args.max_batch)
    name = args.name or args.model.stem
    if not NAME.fullmatch(name):
        raise UserError(f"--name {name}: not a name for a model; give letters, digits, _, - and .")
    picture = picture_of(facts, shown(args.model), size=args.size)
    sizes = {"C": picture.channels, "H": picture.height, "W": picture.width}
    shape = tuple(sizes[axis] for axis in picture.layout if axis != "N")
    output = next(each for each in facts.outputs if each.name == scores(facts, shown(args.model)))
    labels = args.labels or facts.labels or tuple(f"class {index}" for index in range(int(output.shape[1] or 0)))
    check_labels(labels, output.shape[1], shown(args.model))
    library = plugin_library(args, facts)
    models = [name, *([f"{name}_preprocess", f"{name}_images"] if args.images else [])]
    for each in models:
        if (args.output / each).exists():
            raise UserError(f"{args.output / each}: is there already; remove it, or give another --name")

    args.output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=args.output, prefix=".partial-") as folder:
        for each in models:
            (Path(folder) / each / "1").mkdir(parents=True)
        made = Path(folder) / name
        shutil.copy(args.model, made / "1" / ("model.plan" if engine else "model.onnx"))
        (made / "config.pbtxt").write_text(classifier_config(name, facts, output, args, engine, shape))
        (made / "labels.txt").write_text("\n".join(labels) + "\n")
        if library:
            shutil.copy(library, made / library.name)
        if args.images:
            decoder, ensemble = Path(folder) / models[1], Path(folder) / models[2]
            (decoder / "config.pbtxt").write_text(preprocess_config(models[1], facts, args, shape))
            shutil.copy(Path(__file__).with_name("preprocess_model.py"), decoder / "1" / "model.py")
            for module in MODULES:
                (decoder / "1" / module).parent.mkdir(exist_ok=True)
                shutil.copy(ROOT / module, decoder / "1" / module)
            fixed = tuple({"N": None, **sizes}[axis] for axis in picture.layout)
            (decoder / "1" / "facts.json").write_text(replace(facts, input_shape=fixed).to_json())
            (ensemble / "config.pbtxt").write_text(ensemble_config(name, facts, output, args))
            (ensemble / "labels.txt").write_text("\n".join(labels) + "\n")
        for each in models:  # the ensemble last: a server that polls never sees it without its parts
            (Path(folder) / each).rename(args.output / each)
    print(f"wrote {', '.join(str(args.output / each) for each in models)}")
    at = args.output.resolve()
    print(f"start {start_command(at, at / name / library.name if library else None, args.plugins == CARRIED)}")


if __name__ == "__main__":
    run_script(main)
