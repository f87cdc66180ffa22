"""Which tile is the fastest for which product: measures them all, and fits the tables that the kernels choose by.

    python TensorRT/Plugins/fit_tiles.py              # on a Hopper GPU, minutes; writes Results/tiles.csv, fits
    python TensorRT/Plugins/fit_tiles.py --fit        # fits again from the last run in that file, without a GPU
    python TensorRT/Plugins/fit_tiles.py --fp32       # the same of FP32, with Results/fp32_products.csv

The products are those of Small V1 and V2 with every epilogue. Each tile's result is compared with FP64 first. A run
that stopped goes on where it was: RUN_ID=<its id> and the same command.

INT8 (Int8/linear_int8_sm90_kernel.cu) predicts the time of a product with each tile and takes the least:

    time = start + waves (wave + step steps) + filled (full + full_step steps)

where steps are K in pieces of 128, filled is tiles over the blocks that run at once, and waves the same rounded up.
The five numbers of a tile, none negative, are fitted by least squares of relative errors. The measure of a table is
what its choice costs: the time of the chosen tiles over that of the fastest, for all products of a batch with one
epilogue.
FP16 (Linear/linear_sm90_kernel.cu) decides by rules that were written by hand; their three numbers are printed beside
the times' own.
FP32 (Linear/linear_fp32_kernel.cu, linear_fp32_sm90_kernel.cu) predicts as INT8 does, with K in pieces of 32, also the
time of "plain", cuBLASLt's product on CUDA cores. "mma 64x64 / 4" are tiles of the kernel for sm_80 and later with K in
four parts: as many more tiles, with as many fewer steps. PyTorch's times with and without TF32 are measured beside it.
"""
from __future__ import annotations

import argparse
import itertools
import math
import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

sys.path.insert(1, str(Path(__file__).resolve().parents[2]))
from Results.tables import RESULTS, append_rows, git_commit, gpu_name, new_run_id, read_rows
from utils import ROOT, Progress, UserError, batch_sizes, existing_file, run_script, shown

PLUGINS = Path(__file__).resolve().parent
FP32_SOURCES = (PLUGINS / "Linear" / "linear_fp32_kernel.cu", PLUGINS / "Linear" / "linear_fp32_sm90_kernel.cu")
INT8_SOURCE, FP16_SOURCE = PLUGINS / "Int8" / "linear_int8_sm90_kernel.cu", PLUGINS / "Linear" / "linear_sm90_kernel.cu"

COLUMNS = ("run_id", "commit", "gpu", "multiprocessors", "precision", "epilogue", "model", "stage", "layer", "batch",
           "rows", "in_features", "out_features", "tile", "time_us_median", "max_abs_err")
KEY = ("precision", "epilogue", "model", "stage", "layer", "batch", "tile")  # of a row within its run
CHOSEN = "chosen"  # the tile that the kernel takes by itself
STEP_K = {"int8": 128, "fp32": 32}  # of K that a step multiplies
PLAIN = "plain"  # FP32 by cuBLASLt
FP32_PEERS = {"torch FP32": False, "torch TF32": True}  # whether products may be rounded to TF32
# By number, from 1 on, as multiply_in() of FP16_SOURCE has them: (rows, features), and whose product it is.
FP16_TILES = ("own 64x64", "own 128x192", "own 128x128, teams", "cutlass 64x64", "cutlass 128x96", "cutlass 128x128",
              "cutlass 128x192")
# The epilogues in the order in which INT8_SOURCE has their tables: layers of kernel_table.LINEARS, whether they are
# V2's (V1's proj and fc2 add a residual), and whether y is FP16.
INT8_EPILOGUES = {"gelu": (("fc1",), True, False), "int8": (("qkv", "proj", "fc2"), True, False),
                  "fp16": (("qkv", "proj", "fc2"), True, True), "residual": (("proj", "fc2"), False, True)}
FP16_EPILOGUES = {"gelu": (("fc1",), True), "none": (("qkv", "proj", "fc2", "reduction"), True),
                  "residual": (("proj", "fc2"), False)}

Row = dict[str, str]
Coefficients = tuple[float, float, float, float, float]


# --- what the C++ holds ----------------------------------------------------------------------------------------------

class Tile(NamedTuple):
    """rows x features of y at a time, how many blocks run on a multiprocessor at once, and in how many parts K is."""

    name: str  # as the source calls it
    rows: int
    features: int
    blocks: int
    splits: int = 1


def int8_tables(source: str) -> dict[str, dict[Tile, Coefficients]]:
    """Of each epilogue the tiles and their times, as INT8_SOURCE has them.

    Raises:
        UserError: the text is not as this expects it.
    """
    named = dict(re.findall(r"using (\w+) = (Tile<[^>]*>);", source))
    tables = []
    for body in re.findall(r"multiply_in_fastest<\w+, After::\w+>\(\s*p,(.*?)\);", source, re.DOTALL):
        table = {}
        for name, numbers in re.findall(r"TileTime<(Tile<[^>]*>|\w+)>\{([^}]*)\}", body):
            sizes = [int(x) for x in re.findall(r"\d+", named.get(name, name))]
            table[Tile(name, *sizes[:3])] = tuple(float(x) for x in re.findall(r"[\d.]+(?=F)", numbers))
        tables.append(table)
    if len(tables) != len(INT8_EPILOGUES) or not all(table and all(len(c) == 5 for c in table.values())
                                                     for table in tables):
        raise UserError(f"{shown(INT8_SOURCE)}: has no {len(INT8_EPILOGUES)} tables of TileTime with five numbers each")
    return dict(zip(INT8_EPILOGUES, tables))


def fp16_numbers(source: str) -> dict[str, float]:
    """The numbers of FP16_SOURCE's rules.

    Raises:
        UserError: the text is not as this expects it.
    """
    patterns = {"64x64": r"if \(([\d.]+)F \* static_cast<float>\(waves\(tiles_of\(p, 64, 64\)\)\)",
                "medium": r"medium = time\(128, ([\d.]+)F\)", "narrow": r"narrow = time\(96, ([\d.]+)F\)"}
    found = {name: re.search(pattern, source) for name, pattern in patterns.items()}
    if not all(found.values()):
        raise UserError(f"{shown(FP16_SOURCE)}: its rules are not written as fit_tiles.py expects them")
    return {name: float(match.group(1)) for name, match in found.items()}


def fp32_table(source: str) -> dict[Tile, Coefficients]:
    """The tiles by number and their times, plain last, as FP32_SOURCES have them one after the other.

    The first number of a tile that was never measured is infinite.

    Raises:
        UserError: the text is not as this expects it.
    """
    def numbers(text: str) -> list[float]:
        return [math.inf if x == "kNotMeasured" else float(x[:-1]) for x in re.findall(r"kNotMeasured|[\d.]+F", text)]

    table = {}
    for sizes, splits, times in re.findall(r"\bmma_tile<([\d, ]+)>\((\d+), ([^)]*)\)", source):
        down, across, row_tiles, groups, blocks = map(int, sizes.split(","))
        rows, features = 16 * down * row_tiles, 16 * across * groups
        name = f"mma {rows}x{features}" + (f" / {splits}" if splits != "1" else "")
        table[Tile(name, rows, features, blocks, int(splits))] = tuple(numbers(times))
    for sizes, times in re.findall(r"\bwgmma_tile<([\d, ]+)>\(([^)]*)\)", source):
        warpgroups, features, blocks = map(int, sizes.split(","))
        table[Tile(f"{64 * warpgroups}x{features}", 64 * warpgroups, features, blocks)] = tuple(numbers(times))
    for sizes, times in re.findall(r"kPlainTime\{(\d+, \d+, \d+, \d+), ([^}]*)\}", source):
        table[Tile(PLAIN, *map(int, sizes.split(",")))] = tuple(numbers(times))
    if len(table) < 3 or PLAIN not in {tile.name for tile in table} or any(len(c) != 5 for c in table.values()):
        raise UserError(f"{shown(FP32_SOURCES[0])} and {FP32_SOURCES[1].name}: have no table of tiles and of "
                        "kPlainTime with five numbers each")
    return table


def fp32_source() -> str:
    return "".join(path.read_text() for path in FP32_SOURCES)


# --- the model of time -----------------------------------------------------------------------------------------------

def terms(row: Row, tile: Tile) -> np.ndarray:
    """What the five numbers are multiplied by, for a product."""
    steps = math.ceil(math.ceil(int(row["in_features"]) / STEP_K.get(row["precision"], 128)) / tile.splits)
    tiles = math.ceil(int(row["rows"]) / tile.rows) * math.ceil(int(row["out_features"]) / tile.features) * tile.splits
    filled = tiles / (int(row["multiprocessors"]) * tile.blocks)
    return np.array([1.0, math.ceil(filled), math.ceil(filled) * steps, filled, filled * steps])


def predicted_us(row: Row, tile: Tile, coefficients: Coefficients) -> float:
    return float(terms(row, tile) @ np.array(coefficients))


def fitted(rows: list[Row], tile: Tile) -> Coefficients:
    """The five numbers of a tile, none negative, with the least squares of relative errors over `rows` of that tile.

    With so few of them every choice of those that are not zero is tried.
    """
    times = np.array([float(row["time_us_median"]) for row in rows])
    matrix = np.array([terms(row, tile) for row in rows]) / times[:, None]
    best, least = np.zeros(5), math.inf
    for size in range(1, 6):
        for chosen in map(list, itertools.combinations(range(5), size)):
            found = np.linalg.lstsq(matrix[:, chosen], np.ones(len(rows)), rcond=None)[0]
            error = float(((matrix[:, chosen] @ found - 1) ** 2).sum())
            if (found >= 0).all() and error < least - 1e-12:
                best, least = np.zeros(5), error
                best[chosen] = found
    return tuple(best)


def products(rows: Iterable[Row]) -> list[dict[str, Row]]:
    """Of each product its rows by tile."""
    found: dict[tuple[str, ...], dict[str, Row]] = defaultdict(dict)
    for row in rows:
        found[tuple(row[name] for name in KEY[:-1])][row["tile"]] = row
    return list(found.values())


def us(row: Row) -> float:
    return float(row["time_us_median"])


def cost_of_choice(rows: list[Row], table: dict[Tile, Coefficients]) -> dict[int, float]:
    """By batch: time of the tiles that a table chooses over that of the fastest ones, less 1."""
    chosen, fastest = defaultdict(float), defaultdict(float)
    for tiles in products(rows):
        predicted = {tile.name: predicted_us(tiles[tile.name], tile, numbers) for tile, numbers in table.items()
                     if tile.name in tiles}
        batch = int(next(iter(tiles.values()))["batch"])
        chosen[batch] += us(tiles[min(predicted, key=predicted.get)])
        fastest[batch] += min(us(tiles[name]) for name in predicted)
    return {batch: chosen[batch] / fastest[batch] - 1 for batch in sorted(chosen)}


# --- what is printed -------------------------------------------------------------------------------------------------

def percent(costs: dict[int, float]) -> str:
    return ", ".join(f"{cost:.1%} at batch {batch}" for batch, cost in costs.items())


def fit_int8(rows: list[Row], tables: dict[str, dict[Tile, Coefficients]]) -> Iterator[str]:
    """Lines: the fitted tables as the C++ would hold them, where they differ from it, and what either choice costs."""
    for epilogue, table in tables.items():
        own = [row for row in rows if row["precision"] == "int8" and row["epilogue"] == epilogue]
        if not own:
            continue
        new = {tile: fitted([row for row in own if row["tile"] == tile.name], tile) for tile in table}
        yield f"INT8, {epilogue}: {len(products(own))} products"
        for tile, numbers in new.items():
            text = ", ".join(f"{number:.3f}F" for number in numbers)
            of_tile = [row for row in own if row["tile"] == tile.name]
            off = [np.mean([abs(predicted_us(row, tile, one) / us(row) - 1) for row in of_tile])
                   for one in (numbers, table[tile])]
            same = all(abs(a - b) < 5e-4 for a, b in zip(numbers, table[tile]))
            yield (f"  TileTime<{tile.name}>{{{text}}}  // " + ("as in the source" if same else
                   f"in the source {', '.join(f'{number:g}' for number in table[tile])}")
                   + f"; times off by {off[0]:.0%} on average, the source's by {off[1]:.0%}")
        yield f"  the choice costs {percent(cost_of_choice(own, new))}"
        yield f"  the source's costs {percent(cost_of_choice(own, table))}"


def fit_fp32(rows: list[Row], table: dict[Tile, Coefficients]) -> Iterator[str]:
    """Lines: the fitted numbers, where the source has others, and what either choice costs, among measured tiles."""
    table = {tile: numbers for tile, numbers in table.items() if any(row["tile"] == tile.name for row in rows)}
    new = {tile: fitted([row for row in rows if row["tile"] == tile.name], tile) for tile in table}
    yield f"FP32: {len(products(rows))} products"
    for tile, numbers in new.items():
        same = all(abs(a - b) < 5e-4 for a, b in zip(numbers, table[tile]))
        yield (f"  {tile.name}: " + ", ".join(f"{number:.3f}F" for number in numbers)
               + (" as in the source" if same else f"; in the source {', '.join(f'{n:g}' for n in table[tile])}"))
    yield f"  the choice costs {percent(cost_of_choice(rows, new))}"
    yield f"  the source's costs {percent(cost_of_choice(rows, table))}"


def fit_fp16(rows: list[Row], numbers: dict[str, float]) -> Iterator[str]:
    """Lines: what FP16's choice costs, where it costs most, and the numbers of its rules as the times have them."""
    rows = [row for row in rows if row["precision"] == "fp16"]
    if not rows:
        return
    for epilogue in FP16_EPILOGUES:
        own = products(row for row in rows if row["epilogue"] == epilogue)
        chosen, fastest, worst = defaultdict(float), defaultdict(float), []
        for tiles in own:
            best = min((tile for tile in tiles if tile != CHOSEN), key=lambda tile: us(tiles[tile]))
            row = tiles[CHOSEN]
            chosen[int(row["batch"])] += us(row)
            fastest[int(row["batch"])] += us(tiles[best])
            worst.append((us(row) / us(tiles[best]) - 1, row, best))
        if not own:
            continue
        yield (f"FP16, {epilogue}: {len(own)} products; the source's choice costs "
               + percent({batch: chosen[batch] / fastest[batch] - 1 for batch in sorted(chosen)}))
        for loss, row, best in sorted(worst, key=lambda one: -one[0])[:5]:
            if loss > 0.05:
                yield (f"  {row['rows']} x {row['in_features']} x {row['out_features']}: {us(row):.2f} us, {loss:.0%} "
                       f"more than {best}")
    yield "FP16, numbers of the rules: in the source, and the median of what was measured"
    measured = fp16_measured(rows)
    for name, text in (("64x64", "a wave of 64 x 64 tiles in waves of 128 x 128"),
                       ("medium", "a feature in tiles of 128 x 128, of one in 128 x 192"),
                       ("narrow", "a feature in tiles of 128 x 96, of one in 128 x 192")):
        yield f"  {text}: {numbers[name]:g}, " + (f"{np.median(measured[name]):.2f} ({len(measured[name])} products)"
                                                  if measured[name] else "not measured")


def fp16_measured(rows: list[Row]) -> dict[str, list[float]]:
    """The numbers of the rules by each product that tells one: CUTLASS's tiles, many waves of them for the last two."""
    found: dict[str, list[float]] = {"64x64": [], "medium": [], "narrow": []}
    for tiles in products(rows):
        if not all(name in tiles for name in FP16_TILES[3:]):
            continue
        row = tiles[FP16_TILES[3]]
        counts = {size: terms(row, Tile("", *size, 1))[3] for size in ((64, 64), (128, 96), (128, 128), (128, 192))}
        per_wave = {size: us(tiles[f"cutlass {size[0]}x{size[1]}"]) / math.ceil(counts[size]) for size in counts}
        if min(counts[64, 64], counts[128, 128]) > 1:
            found["64x64"].append(per_wave[64, 64] / per_wave[128, 128])
        if counts[128, 192] > 5:
            of_feature = {size[1]: us(tiles[f"cutlass {size[0]}x{size[1]}"]) / (
                math.ceil(int(row["out_features"]) / size[1]) * size[1]) for size in counts if size[0] == 128}
            found["medium"].append(of_feature[128] / of_feature[192])
            found["narrow"].append(of_feature[96] / of_feature[192])
    return found


# --- measuring -------------------------------------------------------------------------------------------------------

def measured_products(batches: list[int]) -> Iterator[tuple[str, str, object, list[str]]]:
    """Precision, epilogue, case of kernel_table.py and names of the tiles that there are for it."""
    from TensorRT.Plugins.kernel_table import LINEARS, Case, linear, linear_int8, places, read_network

    networks = [read_network(ROOT / "models" / name) for name in ("swin.yaml", "swinv2.yaml")]
    tables = int8_tables(INT8_SOURCE.read_text())
    for batch in batches:
        for network, model in networks:
            for place in places(network, model, batch):
                for epilogue, (layers, v2, fp16_output) in INT8_EPILOGUES.items():
                    for layer in layers:
                        kernel, there = linear_int8(layer, LINEARS[layer], fp16_output), replace(place, v2=v2)
                        yield ("int8", epilogue, Case(kernel, there, kernel.tensors(there)),
                               [tile.name for tile in tables[epilogue]])
                for epilogue, (layers, v2) in FP16_EPILOGUES.items():
                    for layer in layers:
                        kernel, there = linear(layer, LINEARS[layer]), replace(place, v2=v2)
                        tensors = kernel.tensors(there)
                        if tensors is not None:
                            yield "fp16", epilogue, Case(kernel, there, tensors), list(FP16_TILES)


def fp32_products(batches: list[int]) -> Iterator[tuple[str, str, object, list[str]]]:
    """The same of FP32, of Small V1, whose proj and fc2 add a residual."""
    from TensorRT.Plugins.kernel_table import LINEARS, Case, linear_fp32, places, read_network

    names = [tile.name for tile in fp32_table(fp32_source())]
    for batch in batches:
        for place in places(*read_network(ROOT / "models" / "swin.yaml"), batch):
            for layer, what in LINEARS.items():
                kernel = linear_fp32(layer, what)
                tensors = kernel.tensors(place)
                if tensors is not None:
                    epilogue = "gelu" if what.gelu else "residual" if what.residual else "none"
                    yield "fp32", epilogue, Case(replace(kernel, layer=layer), place, tensors), [*names, *FP32_PEERS]


def runner_of(case, number: int, name: str):
    """What computes a product: the kernel with its tile of that number, plain, or PyTorch."""
    from TensorRT.Plugins.kernel_table import with_tf32

    if name in FP32_PEERS:
        return with_tf32(case.kernel.formula) if FP32_PEERS[name] else case.kernel.formula
    return partial(case.kernel.run, plain=True) if name == PLAIN else partial(case.kernel.run, tile=number)


def measure(table: Path, run_id: str, found: list[tuple[str, str, object, list[str]]], gpu) -> None:
    """Append the rows that a run lacks: every tile of every product, and what the kernel chooses.

    Raises:
        UserError: a tile's result is wrong.
    """
    import torch

    from TensorRT.Plugins.benchmark import drawn, error_of, outputs_of
    from TensorRT.Plugins.kernel_table import Peer, as_it_is, converted

    done = {tuple(row[name] for name in KEY) for row in rows_of(table, run_id)}
    common = {"run_id": run_id, "commit": git_commit(), "gpu": gpu_name(), "multiprocessors": str(gpu.multiprocessors)}
    progress = Progress(sum(len(names) + 1 for *_, names in found), "tiles of products")
    for precision, epilogue, case, names in found:
        x, weight = case.tensors["x"].shape, case.tensors["weight"].shape
        row = {**common, "precision": precision, "epilogue": epilogue, "model": case.place.model,
               "stage": str(case.place.stage + 1), "layer": case.kernel.layer, "batch": str(case.place.batch),
               "rows": str(x[0]), "in_features": str(x[1]), "out_features": str(weight[0])}
        left = [(i, name) for i, name in enumerate([CHOSEN, *names])
                if tuple({**row, "tile": name}[key] for key in KEY) not in done]
        rows = []
        if left:
            sets = drawn(case, gpu.device, gpu.cache_bytes)
            exact = case.kernel.formula(case.place, converted(sets[0], torch.double))
        for number, name in left:
            run = runner_of(case, number, name)
            try:
                error, limit = error_of(case, outputs_of(case, Peer(run), as_it_is(case.place, sets[0])), exact, False)
                if name not in FP32_PEERS and not error <= limit:
                    raise UserError(f"{case.kernel.id} {list(x)} x {list(weight)}, tile {name}: is off by {error:.3g}, "
                                    f"where {limit:.3g} would be wrong")
                time_us = gpu.time([partial(run, case.place, t) for t in sets]).us
            except RuntimeError:
                if name == CHOSEN:
                    raise
                continue  # there is no such tile for this product
            rows.append({**row, "tile": name, "time_us_median": f"{time_us:.3f}", "max_abs_err": f"{error:.3g}"})
        append_rows(table, COLUMNS, rows)
        progress.done(len(names) + 1)


def rows_of(table: Path, run_id: str | None = None) -> list[Row]:
    """The rows of a run, of the last one where it is None; none where there is no table."""
    rows = read_rows(table, COLUMNS)
    return [row for row in rows if row["run_id"] == (run_id or rows[-1]["run_id"])]


def main(arguments: list[str] | None = None, gpu=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=Path, metavar="CSV",
                        help="the file of measured times (default: Results/tiles.csv, --fp32: fp32_products.csv)")
    parser.add_argument("--fp32", action="store_true", help="products in FP32, instead of FP16 and INT8")
    parser.add_argument("--fit", action="store_true", help="fit the last run in --times, and measure nothing")
    parser.add_argument("--batch", type=batch_sizes, default=[1, 8, 32, 128], metavar="N,N",
                        help="batch sizes that are measured (default: 1,8,32,128)")
    args = parser.parse_args(arguments)
    times = args.times or RESULTS / ("fp32_products.csv" if args.fp32 else "tiles.csv")
    tables, numbers = int8_tables(INT8_SOURCE.read_text()), fp16_numbers(FP16_SOURCE.read_text())
    if args.fit:
        rows = rows_of(existing_file(times, "a file of times (--times), which fit_tiles.py writes"))
    else:
        run_id = new_run_id()
        if gpu is None:
            gpu = hopper()
        found = list((fp32_products if args.fp32 else measured_products)(args.batch))
        measure(times, run_id, found, gpu)
        rows = rows_of(times, run_id)
        print(f"{len(rows)} times of run {run_id} in {shown(times)}")
    if not rows:
        raise UserError(f"{shown(times)}: has no rows")
    print(f"run {rows[0]['run_id']}, {rows[0]['gpu']}, commit {rows[0]['commit']}")
    for line in (fit_fp32(rows, fp32_table(fp32_source())) if args.fp32 else
                 itertools.chain(fit_int8(rows, tables), fit_fp16(rows, numbers))):
        print(line)


def hopper():
    """The GPU as benchmark.py times on it.

    Raises:
        UserError: there is none with these kernels.
    """
    import torch
    if not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0):
        raise UserError("no GPU of compute capability 9.0 that PyTorch can use; only such a one has these tiles; "
                        "--fit needs none")
    from TensorRT.Plugins.benchmark import Gpu, load_kernels
    load_kernels()
    gpu = Gpu()
    gpu.multiprocessors = torch.cuda.get_device_properties(torch.cuda.current_device()).multi_processor_count
    return gpu


if __name__ == "__main__":
    run_script(main)
