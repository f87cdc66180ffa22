"""How fast classify.py is from the files on, beside the engine by itself, and what another decoder does to the logits.

    python examples/classify_rates.py --make /tmp/photos                        # 5,000 JPEG files of 500 x 375
    $TRT_PYTHON examples/classify_rates.py --images /tmp/photos --plan TensorRT/TRT_Engine/mine_attention_fp16.plan

For a GPU host. The second command classifies all files --repeat times in a row by each decoder that is installed. A
rate counts from the first batch's results to the last; the seconds until the first ones stand beside it. The engine's
own rate is that of TRT_test.py at the same batch. Rows go to <results>/classify_rates.csv. The exit
status is 1 where DALI's rate is less than --share of that, or more than one file in a hundred gets another class.
"""
from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(1, str(Path(__file__).resolve().parents[1]))
from data.images import list_images
from inference import dali
from inference.classifiers import add_classifier_arguments, open_classifier
from inference.pipeline import by_pillow, cores
from Results.tables import LOCAL, append_rows, git_commit, gpu_name, new_run_id, write_environment
from Results.timing import timed_runs
from utils import UserError, folder_to_write, from_one, from_zero, run_script

MADE, WIDTH, HEIGHT, QUALITY = 5000, 500, 375, 90  # the usual size of ImageNet's files
SAME_CLASS = 0.99
# Of one decoder; `share` of the engine's own rate. Differences are to the logits by Pillow.
COLUMNS = ("run_id", "commit", "gpu", "backend", "file", "batch", "cores", "engine_images_per_s", "decoder",
           "images_per_s", "share", "first_results_s", "max_abs_difference", "median_abs_difference", "same_class")


def make(folder: Path) -> None:
    """Write crops of the packaged photographs as JPEG files."""
    from PIL import Image

    from data.photo_crops import CLASSES, photo

    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    photos = [Image.fromarray(photo(name)) for name in CLASSES]
    for index in range(MADE):
        source = photos[index % len(photos)]
        wide = rng.uniform(0.5, 1) * min(source.width, source.height * WIDTH / HEIGHT)
        tall = wide * HEIGHT / WIDTH
        left, top = rng.uniform(0, source.width - wide), rng.uniform(0, source.height - tall)
        source.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC, (left, top, left + wide, top + tall)).save(
            folder / f"{index:05}.jpg", quality=QUALITY)
    print(f"wrote {MADE} files to {folder}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--make", type=Path, metavar="FOLDER", help="write the files there, and do nothing else")
    parser.add_argument("--images", type=Path, metavar="FOLDER", help="image files")
    parser.add_argument("--plan", type=Path, metavar="PLAN", help="the engine")
    parser.add_argument("--repeat", type=from_one, default=10, metavar="N", help="runs over the files (default: 10)")
    parser.add_argument("--share", type=from_zero, default=0.6, metavar="X",
                        help="of the engine's rate that DALI's has to reach (default: %(default)s)")
    parser.add_argument("--results", type=folder_to_write, default=str(LOCAL), metavar="FOLDER",
                        help="folder of classify_rates.csv (default: Results/local/)")
    add_classifier_arguments(parser)
    args = parser.parse_args()
    if args.make:
        make(args.make)
        return
    if not args.images or not args.plan:
        parser.error("--images and --plan are needed, or --make")
    files = list_images(args.images)
    with open_classifier(args.plan, args) as classifier:
        batch = classifier.batch_for(args.batch, len(files))
        classifier.prepare(batch)
        own = batch / np.median(timed_runs(classifier.contexts[0].timed_run_ms)) * 1e3
        print(f"{args.plan.name}, {classifier.what}, batch {batch}, {cores()} cores\n"
              f"engine by itself: {own:.0f} images/s", flush=True)
        ways = {"pillow": by_pillow, **({"dali": dali.by_dali} if dali.installed() else {})}
        run_id, logits, rates, rows = new_run_id(), {}, {}, []
        from TensorRT.trt_runtime import versions  # loads TensorRT

        write_environment(run_id, versions(), args.results)
        for name, way in ways.items():
            start, first, found = time.perf_counter(), 0.0, []
            for _, result in way(classifier, files * args.repeat, batch):
                if len(found) < len(files):
                    if isinstance(result, str):
                        raise UserError(result)
                    found.append(result)
                first = first or time.perf_counter()
            seconds = time.perf_counter() - first
            logits[name], rates[name] = np.stack(found), (len(files) * args.repeat - batch) / seconds
            difference = np.abs(logits[name] - logits["pillow"])
            same = float((logits[name].argmax(axis=1) == logits["pillow"].argmax(axis=1)).mean())
            rows.append(dict(zip(COLUMNS, (
                run_id, git_commit(), gpu_name(), classifier.what, args.plan.name, batch, cores(), f"{own:.0f}", name,
                f"{rates[name]:.0f}", f"{rates[name] / own:.3f}", f"{first - start:.2f}", f"{difference.max():.3g}",
                f"{np.median(difference):.3g}", f"{same:.4f}"))))
            print(f"{name}: {rates[name]:.0f} images/s, {rates[name] / own:.0%} of the engine's; first results after "
                  f"{first - start:.2f} s", flush=True)
    append_rows(args.results / "classify_rates.csv", COLUMNS, rows)
    if "dali" not in logits:
        raise UserError(f"{sys.executable}: has no NVIDIA DALI, so only Pillow was measured; {dali.REMEDY}")
    print(f"logits by DALI against those by Pillow: largest difference {difference.max():.3g}, median "
          f"{np.median(difference):.3g}, of a largest |logit| of {np.abs(logits['pillow']).max():.3g}; "
          f"same class {same:.2%}")
    if not rates["dali"] >= args.share * own or not same >= SAME_CLASS:
        raise UserError(f"DALI: {rates['dali'] / own:.0%} of the engine's rate, same class {same:.2%}; asked: "
                        f"{args.share:.0%} and {SAME_CLASS:.0%}")


if __name__ == "__main__":
    run_script(main)
