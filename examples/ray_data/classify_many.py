"""Classify more images than one GPU can take, by Ray Data: one engine on each GPU, of one host or of many.

    pip install -r requirements-ray.txt
    python examples/ray_data/classify_many.py mine.plan /data/photos --output /data/answers --workers 2

Each worker runs what classify.py runs. The answers are Parquet files in --output, one row for each image file: file,
classes, names, probabilities (the best --top-k, best first) and problem, which says why a file has no answer.

Ray starts a worker that was killed again, and what it was at is done again, into files of the same names. The same
command goes on where a run was stopped, and takes what has come into the folder since: a file that has a row is not
classified again. Documentation: https://docs.ray.io/en/latest/data/data.html
"""
from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(1, str(Path(__file__).resolve().parents[2]))
from inference.answers import add_image_arguments, answer, files_of, results
from inference.classifiers import EngineClassifier, add_classifier_arguments, kind_of, open_classifier
from utils import ROOT, UserError, folder_to_write, from_one, run_script, shown

FILES = 2048  # images that a worker takes at a time; what a killed one was at is done again


class Worker:
    """Holds one model. Ray makes one in each worker process, with one GPU to itself where the model is an engine."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.classifier = open_classifier(arguments.model, arguments)

    def __call__(self, rows: dict[str, np.ndarray]) -> dict[str, Any]:
        """The rows of some files: {"file": N paths} to N rows."""
        files = [Path(file) for file in rows["file"]]
        batch = self.classifier.batch_for(self.arguments.batch, None)
        _, found = results(self.classifier, files, batch, self.arguments)
        made: dict[str, Any] = {name: [] for name in ("file", "classes", "names", "probabilities", "problem")}
        for path, result in found:
            problem, best = answer(result, self.classifier.labels, self.arguments.top_k, path)
            for name, value in (("file", str(path)), ("classes", [index for index, _, _ in best]),
                                ("names", [name for _, name, _ in best]),
                                ("probabilities", [share for _, _, share in best]), ("problem", problem)):
                made[name].append(value)
        return {name: as_column(name, values) for name, values in made.items()}


def as_column(name: str, values: list) -> Any:
    """A column of one type, whatever is in it: of no answers Arrow could not tell the type."""
    import pyarrow

    kinds = {"classes": pyarrow.list_(pyarrow.int64()), "names": pyarrow.list_(pyarrow.string()),
             "probabilities": pyarrow.list_(pyarrow.float64())}
    return pyarrow.array(values, kinds.get(name, pyarrow.string()))


def classify(files: Iterable[Path], arguments: argparse.Namespace, worker: type = Worker) -> None:
    """Add the rows of those files to --output that have none yet; in a Ray that is started already.

    Raises:
        UserError: the model does not load or does not run in a worker, or Ray lacks what was asked for.
    """
    import ray

    gpu = kind_of(arguments.model) is EngineClassifier or arguments.device == "cuda"
    cluster = ray.cluster_resources()
    if gpu and cluster.get("GPU", 0) < arguments.workers:
        raise UserError(f"--workers {arguments.workers}: Ray has {cluster.get('GPU', 0):g} GPUs; give fewer workers, "
                        "or add hosts (ray start)")
    per_worker = {"num_gpus": 1} if gpu else {}  # and half a core: as many workers as cores leave some to write rows
    names = sorted({str(path.resolve()) for path in files} - set(column(arguments.output, "file")))
    if not names:
        return
    try:
        blocks = max(1, -(-len(names) // arguments.files))
        table = ray.data.from_items([{"file": name} for name in names], override_num_blocks=blocks)
        answers = table.map_batches(worker, fn_constructor_args=(arguments,), batch_size=arguments.files,
                                    concurrency=arguments.workers, num_cpus=0.5, **per_worker)
        answers.write_parquet(str(arguments.output))
    except (ray.exceptions.RayError, ray.data.exceptions.RayDataUserCodeException) as error:
        lines = [line.strip() for line in str(error).splitlines() if "UserError: " in line]
        if not lines:
            raise
        raise UserError(lines[-1].partition("UserError: ")[2]) from error


def start(address: str | None = None, **options: Any) -> None:
    """Start Ray here, or join one; workers find this project at the path that it has here."""
    import ray

    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # what Ray says will be its default
    if address is None:
        options["include_dashboard"] = False
    ray.init(address, log_to_driver=False, runtime_env={"env_vars": {"PYTHONPATH": str(ROOT)}}, **options)


def column(output: Path, name: str) -> list:
    """A column of the rows in a folder of answers. What a run that was killed has left half-written is removed."""
    from pyarrow import ArrowInvalid, parquet

    values = []
    for path in sorted(output.glob("*.parquet")):
        try:
            values += parquet.read_table(path, columns=[name])[name].to_pylist()
        except ArrowInvalid:  # its end, which is written last, is missing
            print(f"{shown(path)}: half-written by a run that was stopped; removed", file=sys.stderr)
            path.unlink()
    return values


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, metavar="MODEL", help="an engine (.plan), an ONNX file or a checkpoint; on "
                        "every host at this path, like the images")
    add_image_arguments(parser)
    parser.add_argument("--output", type=folder_to_write, required=True, metavar="FOLDER",
                        help="for the Parquet files; one that every host can write to")
    parser.add_argument("--workers", type=from_one, default=1, metavar="N",
                        help="each with its own model, an engine with a GPU of its own (default: %(default)s)")
    parser.add_argument("--files", type=from_one, default=FILES, metavar="N",
                        help="images that a worker takes at a time (default: %(default)s)")
    parser.add_argument("--address", metavar="HOST:PORT", help="of a Ray that runs already, auto for the one on this "
                        "host (default: start one here, which ends with this program)")
    add_classifier_arguments(parser)
    args = parser.parse_args(arguments)
    args.model, args.output = args.model.resolve(), args.output.resolve()
    return args


def main(arguments: list[str] | None = None) -> None:
    args = parse(arguments)
    try:
        import ray
    except ImportError as error:
        raise UserError(f"{sys.executable}: has no Ray Data; pip install -r requirements-ray.txt") from error
    kind_of(args.model)  # is there
    files = files_of(args)
    try:
        start(args.address)
    except ConnectionError as error:
        raise UserError(f"--address {args.address}: no Ray answers there; start one with: ray start --head") from error
    try:
        classify(files, args)
    finally:
        ray.shutdown()
    found = column(args.output, "problem")
    problems = [problem for problem in found if problem]
    print(f"{shown(args.output)}: {len(found)} files have a row")
    if problems:
        raise UserError(f"{len(problems)} of them have no answer; the first: {problems[0]}")


if __name__ == "__main__":
    run_script(main)
