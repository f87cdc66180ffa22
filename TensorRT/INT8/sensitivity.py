"""Which parts of a Swin Transformer lose accuracy in INT8: each one quantised by itself, over held-out crops.

    python TensorRT/INT8/sensitivity.py --onnx onnx/swinv1.onnx

Needs the calibration cache that quant.py wrote. Adds a row for each part to sensitivity.csv, one for all parts together
(all) and one for none (fp32); draws sensitivity_<model>.png. Then it takes the part with the largest error out of the
quantised graph, and the next, until the graph agrees with FP32 often enough (--agreement), and prints the flags with
which quant.py makes that graph: what was taken out is its --keep. All else is INT8 here (its --narrow), also what
quant.py by itself keeps because it is faster in FP16. The inputs of V2's LayerNorms (`norm_inputs` of qdq.py) are INT8
where the product and what reads the sum both are: in the graph of all parts, and in none of the graphs of one part.
"""
from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import onnx

sys.path.insert(1, str(Path(__file__).resolve().parents[2]))
from data.photo_crops import CLASSES
from graphs.compare import max_abs_err, top1_agreement
from graphs.facts import of_onnx
from graphs.outputs import classifiers, with_outputs
from graphs.pictures import Picture, add_input_arguments
from graphs.surgeon import held_out, with_picture
from graphs.tidy import tidy
from Results.tables import LOCAL, append_rows, git_commit, new_run_id
from TensorRT.INT8.calibration import (
    add_provider_argument,
    execution_provider,
    fp32_model,
    relative_rms,
    session_with_outputs,
)
from TensorRT.INT8.calibration_cache import fingerprint, read_cache
from TensorRT.INT8.qdq import PARTS, all_parts, blocks_of, quantised, quantised_tensors, with_attention
from utils import ROOT, Progress, UserError, about, folder_to_write, from_one, run_script, shown, whole_file

# Edit here, or give the flag of the same name.
ONNX = "onnx/swinv1.onnx"
COUNT = 256          # held-out crops
AGREEMENT = 0.99     # with FP32, of the graph whose kept parts are printed

COLUMNS = ("run_id", "commit", "model", "method", "images", "part", "relative_rms_err", "max_abs_err", "agreement",
           "top1")
BATCH = 8
# Colours that the colour-blind tell apart (Okabe and Ito, 2008), and markers.
STYLES = dict(zip(PARTS, (("#0072B2", "o"), ("#D55E00", "s"), ("#009E73", "^"), ("#CC79A7", "v"), ("#E69F00", "D"))))


class Report:
    """Runs forms of one graph on the same crops and compares their logits with FP32's."""

    def __init__(self, model: onnx.ModelProto, count: int, provider: str, wanted: Picture) -> None:
        self.provider, self.output = provider, (classifiers(model) or [model.graph.output[0].name])[0]
        self.batch = wanted.batch or BATCH
        count = -(-count // self.batch) * self.batch
        self.images, self.labels = held_out(wanted, count), np.arange(count) % len(CLASSES)
        self.reference = self.logits(model)

    def logits(self, model: onnx.ModelProto) -> np.ndarray:
        session = session_with_outputs(with_outputs(model, [self.output]), [self.output], self.provider)
        name, count = session.get_inputs()[0].name, len(self.images)
        return np.concatenate([session.run(None, {name: self.images[start:start + self.batch]})[0]
                               for start in range(0, count, self.batch)])

    def row(self, part: str, logits: np.ndarray) -> dict[str, str]:
        """The measured columns; top1 is empty for a model with other classes than the photographs."""
        known = logits.shape[1] == len(CLASSES)
        return {"images": str(len(logits)), "part": part,
                "relative_rms_err": f"{relative_rms(logits, self.reference):.3e}",
                "max_abs_err": f"{max_abs_err(logits, self.reference):.3e}",
                "agreement": f"{top1_agreement(logits, self.reference):.5f}",
                "top1": f"{np.mean(logits.argmax(axis=1) == self.labels):.5f}" if known else ""}


def draw(rows: list[dict[str, str]], model: str, path: Path) -> None:
    """The error of each part by itself over the blocks, and that of all together as a line."""
    import matplotlib.pyplot as plt
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    error = {row["part"]: 100 * float(row["relative_rms_err"]) for row in rows}
    blocks = range(sum(name.endswith(".qkv") for name in error))
    figure, axes = plt.subplots(figsize=(8, 4), layout="constrained")
    axes.axhline(error["all"], color="black", linestyle="--", linewidth=1, label="all together")
    for part, (colour, marker) in STYLES.items():
        axes.plot(blocks, [error[f"block{i}.{part}"] for i in blocks], color=colour, marker=marker, markersize=5,
                  linewidth=1, label=part)
    axes.set(yscale="log", xlabel="block", ylabel="rms error of the logits (% of their rms)", xticks=list(blocks),
             title=f"{model}: one part in INT8 at a time, {rows[0]['images']} held-out crops")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(alpha=0.3, which="both")
    figure.legend(loc="outside right upper", frameon=False)
    with whole_file(path) as partial:
        figure.savefig(partial, dpi=130)
    plt.close(figure)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--onnx", type=Path, default=ROOT / ONNX, metavar="FILE",
                        help=f"unpatched FP32 graph (default: {ONNX})")
    parser.add_argument("--cache", type=Path, metavar="FILE",
                        help="its calibration cache (default: TensorRT/INT8/<model>.cache)")
    parser.add_argument("--count", type=from_one, default=COUNT, metavar="N",
                        help="held-out crops (default: %(default)s)")
    parser.add_argument("--agreement", type=float, default=AGREEMENT, metavar="SHARE",
                        help="with FP32, 0 to 1, that the quantised graph is to reach (default: %(default)s)")
    parser.add_argument("--results", type=folder_to_write, default=str(LOCAL), metavar="FOLDER",
                        help="folder of sensitivity.csv (default: Results/local/)")
    parser.add_argument("--pictures", type=folder_to_write, default=str(LOCAL), metavar="FOLDER",
                        help="where sensitivity_<model>.png goes (default: Results/local/)")
    add_provider_argument(parser)
    add_input_arguments(parser)
    args = parser.parse_args(arguments)
    if not 0 <= args.agreement <= 1:
        raise UserError(f"--agreement {args.agreement:g}: must be from 0 to 1")
    args.cache = args.cache or Path(__file__).resolve().parent / f"{args.onnx.stem}.cache"
    return args


def main(arguments: list[str] | None = None) -> None:
    args = parse(arguments)
    model = fp32_model(args.onnx)
    if not args.cache.exists():
        raise UserError(f"{shown(args.cache)}: no such file; quant.py --onnx {shown(args.onnx)} writes it")
    cache = read_cache(args.cache)
    with about(args.onnx):
        model, wanted = with_picture(model, args)
        graph = tidy(model)
        blocks = blocks_of(graph)
    graph_digest = fingerprint(model, f"{args.input_range or ''}{args.layout or ''}")
    if cache.graph != graph_digest or list(cache.scales) != quantised_tensors(blocks):
        raise UserError(f"{shown(args.cache)}: was made for another graph than {shown(args.onnx)}, or without all of "
                        "its scales; give its --cache")
    parts = all_parts(blocks)
    report = Report(model, args.count, execution_provider(args.provider), wanted)

    def measured(name: str, kept: set[str]) -> dict[str, str]:
        with about(args.onnx):
            model = quantised(graph, cache.scales, kept)
        return report.row(name, report.logits(model))

    rows = [report.row("fp32", report.reference), measured("all", set())]
    progress = Progress(len(parts), "parts")
    for part in parts:
        rows.append(measured(part, set(parts) - {part}))
        progress.done()
    worst = sorted(rows[2:], key=lambda row: -float(row["relative_rms_err"]))
    kept: set[str] = set()
    last, taken_out = rows[1], iter(worst)
    while not float(last["agreement"]) >= args.agreement:  # also where it is NaN
        part = next(taken_out, None)
        if part is None:
            raise UserError(f"{shown(args.onnx)}: agrees with itself on {float(last['agreement']):.2%} of the crops "
                            "without any INT8, below --agreement; check its weights")
        kept = with_attention(kept | {part["part"]})
        last = measured("all but " + " ".join(part for part in parts if part in kept), kept)
        rows.append(last)

    print(f"{'part':<20} {'rms error':>10} {'max abs err':>12} {'agreement':>10} {'top-1':>8}")
    for row in [*rows[:2], *worst[:15], *rows[2 + len(parts):]]:
        print(f"{row['part'][:40]:<20} {float(row['relative_rms_err']):>10.3%} {float(row['max_abs_err']):>12.3f} "
              f"{float(row['agreement']):>10.2%} {float(row['top1'] or 'nan'):>8.2%}")
    name = of_onnx(args.onnx).model_of(args.onnx)
    common = {"run_id": new_run_id(), "commit": git_commit(), "model": name, "method": cache.method}
    append_rows(args.results / "sensitivity.csv", COLUMNS, [{**common, **row} for row in rows])
    picture = args.pictures / f"sensitivity_{args.onnx.stem}.png"
    draw(rows, args.onnx.stem, picture)
    print(f"added {len(rows)} rows to {shown(args.results / 'sensitivity.csv')}; wrote {shown(picture)}")
    flags = f"--narrow --keep {','.join(part for part in parts if part in kept)}" if kept else "--narrow and no --keep"
    print(f"agreement {float(last['agreement']):.2%} of at least {args.agreement:.2%} with {flags}")


if __name__ == "__main__":
    run_script(main)
