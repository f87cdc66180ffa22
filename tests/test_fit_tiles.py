"""TensorRT/Plugins/fit_tiles.py without a GPU: the tables are read from the sources, fits find known numbers again."""
from __future__ import annotations

import csv
import math

import numpy as np
import pytest
import torch
from test_benchmark import NoGpu, StandIn

from TensorRT.Plugins import fit_tiles
from TensorRT.Plugins.fit_tiles import CHOSEN, FP16_TILES, Tile
from TensorRT.Plugins.swin_kernels import c_interface as kernels
from utils import UserError

INT8_SOURCE, FP16_SOURCE = fit_tiles.INT8_SOURCE.read_text(), fit_tiles.FP16_SOURCE.read_text()
SMALL, WIDE = Tile("Small", 64, 64, 2), Tile("Wide", 128, 192, 1)
TRUE = {SMALL: (1.5, 0.0, 0.2, 0.8, 0.1), WIDE: (2.0, 0.3, 0.4, 1.2, 0.05)}


def product(rows: int, inputs: int, outputs: int, tile: str, us: float, **more: str) -> dict[str, str]:
    return {"run_id": "1", "commit": "abc", "gpu": "A GPU", "multiprocessors": "132", "precision": "int8",
            "epilogue": "int8", "model": "swinv1", "stage": "1", "layer": f"{rows}x{inputs}x{outputs}", "batch": "1",
            "rows": str(rows), "in_features": str(inputs), "out_features": str(outputs), "tile": tile,
            "time_us_median": f"{us:.4f}", "max_abs_err": "0.03", **more}


def made_rows(table=TRUE) -> list[dict[str, str]]:
    """Products that take exactly what the model says."""
    shapes = [(rows, inputs, outputs) for rows in (49, 196, 784, 3136, 12544, 100352)
              for inputs, outputs in ((96, 288), (192, 768), (384, 1536), (1536, 384), (3072, 768), (100, 96))]
    rows = []
    for shape in shapes:
        for tile, numbers in table.items():
            row = product(*shape, tile.name, 1.0, batch="1" if shape[0] < 1000 else "128")
            row["time_us_median"] = f"{fit_tiles.predicted_us(row, tile, numbers):.6f}"
            rows.append(row)
    return rows


def test_predicted_time_by_hand():
    """[12544, 400] x [400, 1152] with tiles of 128 x 192: 98 x 6 tiles, 132 at once; K is 4 pieces of 128."""
    row = product(12544, 400, 1152, "Wide", 1.0)
    filled = 98 * 6 / 132
    assert fit_tiles.predicted_us(row, WIDE, TRUE[WIDE]) == pytest.approx(
        2.0 + math.ceil(filled) * (0.3 + 0.4 * 4) + filled * (1.2 + 0.05 * 4))
    two_blocks = 196 * 18 / 264
    assert fit_tiles.terms(row, SMALL) == pytest.approx(
        [1, math.ceil(two_blocks), 4 * math.ceil(two_blocks), two_blocks, 4 * two_blocks])


def test_predicted_time_of_a_split_product():
    """K of 100 is four pieces of 32, one for each of four times as many tiles."""
    row = product(784, 100, 288, "mma", 1.0, precision="fp32")
    filled = 13 * 5 * 4 / (132 * 3)
    assert fit_tiles.terms(row, Tile("mma", 64, 64, 3, 4)) == pytest.approx([1, 1, 1, filled, filled])


def test_a_tile_that_was_not_measured_is_never_the_fastest():
    source = "mma_tile<2, 2, 2, 2, 3>(2, kNotMeasured, 0.0F, 0.0F, 0.0F, 0.0F)" \
        "wgmma_tile<1, 64, 2>(3.5F, 0.0F, 0.4F, 1.5F, 0.25F) kPlainTime{64, 64, 2, 1, 4.5F, 2.0F, 0.1F, 0.0F, 1.5F}"
    table = fit_tiles.fp32_table(source)
    new = Tile("mma 64x64 / 2", 64, 64, 3, 2)
    assert list(table) == [new, Tile("64x64", 64, 64, 2), Tile("plain", 64, 64, 2)]
    rows = [product(640, 96, 64, tile.name, 1.0 + i, precision="fp32") for i, tile in enumerate(table)]
    assert math.isinf(fit_tiles.predicted_us(rows[0], new, table[new]))
    assert fit_tiles.cost_of_choice(rows, table) == {1: pytest.approx(1.0)}
    assert fit_tiles.cost_of_choice(rows[1:], table) == {1: 0.0}  # a product that has no such tile


def test_a_fit_finds_the_numbers_that_made_the_times():
    for tile, numbers in TRUE.items():
        found = fit_tiles.fitted([row for row in made_rows() if row["tile"] == tile.name], tile)
        assert found == pytest.approx(numbers, abs=1e-3)


def test_no_number_of_a_fit_is_negative_and_none_fits_better():
    rng = np.random.default_rng(0)
    rows = [row for row in made_rows({SMALL: (0.1, 0.0, 0.2, 0.0, 0.1)}) if row["tile"] == "Small"]
    for row in rows:
        row["time_us_median"] = f"{float(row['time_us_median']) * rng.uniform(0.6, 1.4):.4f}"

    def error(numbers) -> float:
        return sum((fit_tiles.predicted_us(row, SMALL, numbers) / fit_tiles.us(row) - 1) ** 2 for row in rows)

    found = fit_tiles.fitted(rows, SMALL)
    assert min(found) >= 0
    for _ in range(300):  # neighbours
        other = np.maximum(0, np.array(found) + rng.normal(0, 0.02, 5))
        assert error(other) >= error(found) - 1e-9


def test_what_a_choice_costs():
    """A table that always takes the slower tile of two costs what that one takes more."""
    rows = [product(64, 128, 64, "Small", 2.0), product(64, 128, 64, "Wide", 3.0),
            product(640, 128, 64, "Small", 6.0), product(640, 128, 64, "Wide", 5.0)]
    zeros = (0.0,) * 5
    assert fit_tiles.cost_of_choice(rows, {SMALL: (9.0, *zeros[1:]), WIDE: zeros}) == {1: pytest.approx(8 / 7 - 1)}
    assert fit_tiles.cost_of_choice(rows, {SMALL: zeros, WIDE: (9.0, *zeros[1:])}) == {1: pytest.approx(8 / 7 - 1)}
    by_size = {SMALL: (0.0, 0.0, 0.0, 9.0, 0.0), WIDE: (0.2, 0.0, 0.0, 0.0, 0.0)}  # right for both
    assert fit_tiles.cost_of_choice(rows, by_size) == {1: 0.0}


def test_the_sources_hold_what_is_read_from_them():
    tables = fit_tiles.int8_tables(INT8_SOURCE)
    assert list(tables) == ["gelu", "int8", "fp16", "residual"]
    assert tables["gelu"][SMALL] == (1.516, 0.0, 0.166, 0.759, 0.106)
    assert tables["residual"][Tile("Tile<64, 96, 3>", 64, 96, 3)] == (0.0, 1.609, 0.251, 2.733, 0.239)
    assert [tile.name for tile in tables["fp16"]] == ["Small", "Medium", "Large", "Wide"]
    assert fit_tiles.fp16_numbers(FP16_SOURCE) == {"64x64": 0.45, "medium": 1.05, "narrow": 1.12}


def test_other_sources_are_refused():
    with pytest.raises(UserError, match=r"linear_int8_sm90_kernel\.cu: has no 4 tables"):
        fit_tiles.int8_tables(INT8_SOURCE.replace("{1.516F,", "{"))
    with pytest.raises(UserError, match=r"linear_sm90_kernel\.cu: its rules"):
        fit_tiles.fp16_numbers(FP16_SOURCE.replace("medium = time", "middle = time"))


def test_the_printed_table_is_the_sources_or_says_where_not():
    table = fit_tiles.int8_tables(INT8_SOURCE)["int8"]
    text = "\n".join(fit_tiles.fit_int8(made_rows(table), {"int8": table}))
    assert "TileTime<Small>{1.347F, 0.000F, 0.192F, 0.872F, 0.056F}  // as in the source; times off by 0%" in text
    assert text.count("as in the source") == 4
    assert "the choice costs 0.0% at batch 1, 0.0% at batch 128" in text
    small = next(iter(table))
    other = {**table, small: (1.0, 0.0, 0.0, 0.0, 0.0)}
    text = "\n".join(fit_tiles.fit_int8(made_rows(table), {"int8": other}))
    assert "// in the source 1, 0, 0, 0, 0; times off by 0% on average, the source's by " in text
    assert "the source's costs 0.0%" not in text.splitlines()[-1]


def test_fp32_choice_is_near_the_fastest_of_what_was_measured():
    """At most 5 % over the fastest tile or plain of each product, in sum for each batch."""
    rows = fit_tiles.rows_of(fit_tiles.RESULTS / "fp32_products.csv")
    table = fit_tiles.fp32_table(fit_tiles.fp32_source())
    assert [tile.name for tile in table] == [
        "mma 128x128", "mma 128x96", "mma 64x64", "mma 64x64 / 2", "mma 64x64 / 4", "mma 64x64 / 8",
        "mma 32x64", "mma 32x64 / 2", "mma 32x64 / 4", "mma 32x64 / 8", "64x64", "128x96", "128x128", "plain"]
    costs = fit_tiles.cost_of_choice(rows, table)
    assert set(costs) == {1, 8, 32, 128} and all(cost <= 0.05 for cost in costs.values()), costs
    text = list(fit_tiles.fit_fp32(rows, table))
    assert text[0] == "FP32: 76 products" and sum("as in the source" in line for line in text) == 4
    with pytest.raises(UserError, match="no table of tiles"):
        fit_tiles.fp32_table("")


def test_every_fp32_product_is_measured_with_every_tile_and_peer(monkeypatch):
    found = list(fit_tiles.fp32_products([1, 128]))
    assert len(found) == 2 * 19
    plain = []
    monkeypatch.setattr(kernels, "linear", lambda *given: plain.append(given[6:]))
    case = found[0][2]
    assert case.tensors["x"].dtype == torch.float32
    for number, name in enumerate([CHOSEN, *found[0][3]]):
        if name not in fit_tiles.FP32_PEERS:
            fit_tiles.runner_of(case, number, name)(case.place, dict.fromkeys(case.tensors))
    assert plain == [*((tile, False) for tile in range(14)), (0, True)]


def test_fp16_choice_and_numbers():
    def rows(shape, times: dict[str, float], chosen: float, **more) -> list[dict[str, str]]:
        return [product(*shape, tile, us, precision="fp16", epilogue="none", **more)
                for tile, us in {CHOSEN: chosen, **times}.items()]

    # 784 x 3 tiles of 128 x 192, 17.8 waves; 784 x 9 of 64 x 64 in 2 x rows.
    large = rows((100352, 384, 576), {"own 128x192": 90.0, "cutlass 64x64": 60.0 * 54, "cutlass 128x96": 110.0,
                                      "cutlass 128x128": 120.0, "cutlass 128x192": 100.0}, 108.0, batch="128")
    small = rows((49, 768, 768), {"own 64x64": 4.0, "cutlass 64x64": 5.0, "cutlass 128x96": 7.0, "cutlass 128x128": 8.0,
                                  "cutlass 128x192": 9.0}, 4.0)
    text = list(fit_tiles.fit_fp16(large + small, {"64x64": 0.45, "medium": 1.05, "narrow": 1.06}))
    assert text[0] == "FP16, none: 2 products; the source's choice costs 0.0% at batch 1, 20.0% at batch 128"
    assert text[1] == "  100352 x 384 x 576: 108.00 us, 20% more than own 128x192"
    assert len(text) == 2 + 4
    # 576 features: 5 tiles of 128 are 640; 6 of 96, 3 of 192. Waves: 784 * 5 / 132 -> 30, 1568 * 9 / 132 -> 107.
    assert text[-2].endswith(f"1.05, {120 / 640 / (100 / 576):.2f} (1 products)")
    assert text[-1].endswith("1.06, 1.10 (1 products)")
    assert text[-3].endswith(f"0.45, {60 * 54 / 107 / (120 / 30):.2f} (1 products)")


# --- measuring -------------------------------------------------------------------------------------------------------

@pytest.fixture
def little(monkeypatch):
    """The smallest of each kind of product, by the stand-in, which refuses FP16's tile 3 with a residual."""
    every = list(fit_tiles.measured_products([1]))
    kinds: dict[tuple[str, str], tuple] = {}
    for one in every:
        kinds[one[:2]] = min(kinds.get(one[:2], one), one, key=lambda product: product[2].bytes)
    monkeypatch.setattr(fit_tiles, "measured_products", lambda batches: list(kinds.values()))
    calls = []

    def linear(x, weight, bias, residual, y, gelu, tile=0):
        if tile == 3 and residual is not None:
            raise RuntimeError("swin_linear: CUDA error 1")
        calls.append(tile)
        StandIn.linear(x, weight, bias, residual, y, gelu)

    def linear_int8(x, weight, scale, bias, residual, y, gelu, y_scale, tile=0):
        calls.append(tile)
        StandIn.linear_int8(x, weight, scale, bias, residual, y, gelu, y_scale)

    monkeypatch.setattr(kernels, "linear", linear)
    monkeypatch.setattr(kernels, "linear_int8", linear_int8)
    monkeypatch.setenv("RUN_ID", "run-1")
    return calls


class Hopper(NoGpu):
    multiprocessors = 132


def test_every_product_is_measured_with_every_tile():
    found = list(fit_tiles.measured_products([1, 128]))
    count = {key: sum(one[:2] == key for one in found) for key in {one[:2] for one in found}}
    places = 2 * 2 * 4  # batches, models, stages
    assert count == {("int8", "gelu"): places, ("int8", "int8"): 3 * places, ("int8", "fp16"): 3 * places,
                     ("int8", "residual"): 2 * places, ("fp16", "gelu"): places, ("fp16", "none"): 4 * places - 4,
                     ("fp16", "residual"): 2 * places}
    for precision, epilogue, case, names in found:
        assert ("residual" in case.tensors) == (epilogue == "residual")
        assert len(names) == (7 if precision == "fp16" else 4)
        y = case.tensors["y"].dtype
        assert (y == torch.int8) == (precision == "int8" and epilogue in ("gelu", "int8"))


def test_a_run_measures_fits_and_goes_on(little, tmp_path, capsys):
    table = tmp_path / "tiles.csv"
    with torch.no_grad():
        fit_tiles.main(["--times", str(table), "--batch", "1"], Hopper())
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == fit_tiles.COLUMNS
    assert len(rows) == 4 * 5 + 3 * 8 - 1 and len(little) == len(rows)
    assert {row["tile"] for row in rows if row["precision"] == "fp16"} == {CHOSEN, *FP16_TILES}
    assert "INT8, residual: 1 products" in capsys.readouterr().out
    kept = [row for row in rows if row["tile"] != "Small"]
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, fit_tiles.COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(kept)
    little.clear()
    with torch.no_grad():
        fit_tiles.main(["--times", str(table), "--batch", "1"], Hopper())
    assert sorted(little) == [1, 1, 1, 1]  # INT8's first tile


def test_a_wrong_tile_is_an_error(little, tmp_path, monkeypatch):
    def off(x, weight, bias, residual, y, gelu, tile=0):
        StandIn.linear(x, weight, bias, residual, y, gelu)
        y[0, 0] += 1 if tile == 4 else 0

    monkeypatch.setattr(kernels, "linear", off)
    with torch.no_grad(), pytest.raises(UserError, match=r"SwinLinear/.*tile cutlass 64x64: is off by (1|0\.99)"):
        fit_tiles.main(["--times", str(tmp_path / "tiles.csv"), "--batch", "1"], Hopper())


def test_fit_needs_times(tmp_path):
    with pytest.raises(UserError, match=r"none\.csv"):
        fit_tiles.main(["--fit", "--times", str(tmp_path / "none.csv")])


def test_times_are_measured_on_hopper_only(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"no GPU of compute capability 9\.0"):
        fit_tiles.main(["--times", str(tmp_path / "tiles.csv")])
    assert not (tmp_path / "tiles.csv").exists()


def test_it_fits_a_file_of_times(tmp_path, capsys):
    table = tmp_path / "tiles.csv"
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, fit_tiles.COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(made_rows(fit_tiles.int8_tables(INT8_SOURCE)["int8"]))
    fit_tiles.main(["--fit", "--times", str(table)])
    out = capsys.readouterr().out
    assert out.startswith("run 1, A GPU, commit abc\nINT8, int8: 36 products\n") and "as in the source" in out
