"""TensorRT/Plugins/benchmark.py without a GPU: shapes, counts and rows, and by a stand-in for the kernels the calls.

The stand-in computes what the headers of the C interfaces say, in FP64, by models/swin.py's own windows and masks, so
that a call with two tensors swapped gives another result than the formula that the benchmark compares with.
"""
from __future__ import annotations

import csv
import inspect
import math
from functools import partial

import pytest
import torch
from torch.nn import functional as F

from graphs import attention_branch_int8, patterns
from models.swin import WindowAttention
from TensorRT import swin_work
from TensorRT.Plugins import benchmark, kernel_blocks, kernel_table
from TensorRT.Plugins.benchmark import COLUMNS, Timing
from TensorRT.Plugins.kernel_table import KERNELS, OURS, Case, cases, read_network
from TensorRT.Plugins.swin_kernels import c_interface as kernels
from utils import ROOT, UserError

SMALL = [read_network(ROOT / "models" / name) for name in ("swin.yaml", "swinv2.yaml")]
# With every width that a kernel is chosen by, and both windows, in a quarter of the tokens.
LITTLE = [(swin_work.Swin("swinv1", 192, (1, 1, 1), 7, 112), "swinv1"),
          (swin_work.Swin("swinv2", 192, (1, 1, 1), 8, 128), "swinv2")]
YAML = {"swinv1": (56, 7), "swinv2": (64, 8)}  # tokens along the first stage's side, window: of models/*.yaml, by hand


# --- a stand-in for the kernels --------------------------------------------------------------------------------------

def norm(x: torch.Tensor, gamma, beta, epsilon: float) -> torch.Tensor:
    x = x.double()
    x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + epsilon).sqrt()
    return x if gamma is None else x * gamma.double() + beta.double()


def store(y: torch.Tensor, value: torch.Tensor, step: float = 0.0) -> None:
    value = (value / step).round().clamp(-128, 127) if step else value
    y.copy_(value.reshape(y.shape))


def gelu(x: torch.Tensor) -> torch.Tensor:
    return x * 0.5 * torch.special.erfc(-x / 2**0.5)


def attended(qkv, bias, logit_scale, num_heads, window, shift, scale, mask_value) -> torch.Tensor:
    """Of square images and windows, whose tokens none pads."""
    assert mask_value == -100
    (window_size, width), (shift_size, shift_width) = window, shift
    assert qkv.shape[1] == qkv.shape[2] and width == window_size and shift_width == shift_size
    with torch.device(qkv.device):
        module = WindowAttention(32 * num_heads, qkv.shape[1], num_heads, window_size, shift_size)
    q, k, v = module._split_windows(qkv.flatten(1, 2))
    if logit_scale is not None:
        q, k = (x / x.norm(dim=-1, keepdim=True) for x in (q, k))
        q = q * logit_scale.double()[:, None, None]
    logits = q @ k.transpose(-2, -1) * scale + bias.double()[..., :window_size**2]
    if shift_size:
        logits = logits + module.attn_mask
    return module._merge_windows(logits.softmax(-1) @ v)


class StandIn:
    """The functions of c_interface.py, by their names and arguments."""

    def layernorm(x, gamma, beta, y, epsilon):
        store(y, norm(x, gamma, beta, epsilon))

    def add_layernorm(x, residual, gamma, beta, total, y, epsilon):
        summed = x.double() + residual.double()
        store(total, summed)
        store(y, norm(summed, gamma, beta, epsilon))

    def layernorm_add(x, residual, gamma, beta, y, epsilon):
        store(y, residual.double() + norm(x, gamma, beta, epsilon))

    def patch_merge(x, gamma, beta, y, epsilon):
        grid = x.double()
        four = torch.cat([grid[:, i::2, j::2] for j in (0, 1) for i in (0, 1)], -1)
        store(y, four if gamma is None else norm(four, gamma, beta, epsilon))

    def patch_embed(x, weight, bias, gamma, beta, y, epsilon, ceil=False):
        side = weight.shape[-1]
        patches = F.unfold(x.double(), side, stride=side).transpose(1, 2)
        store(y, norm(patches @ weight.double().flatten(1).T + bias.double(), gamma, beta, epsilon))

    def fnorm(x, y, epsilon):
        store(y, x.double() / x.double().norm(dim=-1, keepdim=True).clamp_min(epsilon))

    def attention(qkv, bias, padding, logit_scale, y, num_heads, window, shift, scale, mask_value, roll_first=False,
                  shift_if_covered=True, plain_fp32=False):
        store(y, attended(qkv.double(), bias, logit_scale, num_heads, window, shift, scale, mask_value))

    def linear(x, weight, bias, residual, y, gelu, tile=0, plain_fp32=False):
        value = x.double() @ weight.double().T + bias.double()
        store(y, (globals()["gelu"](value) if gelu else value) + (0 if residual is None else residual.double()))

    def mlp(x, gamma, beta, weight1, bias1, weight2, bias2, y, norm_first, epsilon, attention=None, proj_weight=None,
            proj_bias=None, proj_gamma=None, proj_beta=None, workspace_bytes=kernels.MLP_WORKSPACE_BYTES,
            plain_fp32=False, gelu=1):
        x = x.double()
        if attention is not None:
            value = attention.double() @ proj_weight.double().T + proj_bias.double()
            x = x + (value if norm_first else norm(value, proj_gamma, proj_beta, epsilon))
        hidden = norm(x, gamma, beta, epsilon) if norm_first else x
        hidden = globals()["gelu"](hidden @ weight1.double().T + bias1.double())
        value = hidden @ weight2.double().T + bias2.double()
        store(y, x + (value if norm_first else norm(value, gamma, beta, epsilon)))

    def linear_int8(x, weight, scale, bias, residual, y, gelu, y_scale, tile=0):
        value = x.double() @ weight.double().T * scale.double() + bias.double()
        value = globals()["gelu"](value) if gelu else value
        store(y, value if residual is None else value + residual.double(), y_scale)

    def layernorm_int8(x, gamma, beta, y_q, epsilon, y_scale):
        store(y_q, norm(x, gamma, beta, epsilon), y_scale)

    def layernorm_add_int8(x, residual, gamma, beta, y, y_q, epsilon, x_scale, y_scale):
        value = residual.double() + norm(x.double() * (x_scale or 1), gamma, beta, epsilon)
        store(y, value)
        store(y_q, value, y_scale)

    def quantize(x, y_q, y_scale):
        store(y_q, x.double(), y_scale)

    def attention_int8(qkv, bias, padding, logit_scale, y, num_heads, window, shift, scale, mask_value, qkv_scale,
                       y_scale, roll_first=False, shift_if_covered=True):
        store(y, attended(qkv.double() * qkv_scale, bias, logit_scale, num_heads, window, shift, scale, mask_value),
              y_scale)

    def attention_branch_int8(x_q, x, qkv_weight, qkv_factor, qkv_bias, proj_weight, proj_factor, proj_bias, bias,
                              gamma, beta, logit_scale, y, y_q, num_heads, window, shift, norm_first,
                              scale, mask_value, qkv_scale, attention_scale, proj_scale, epsilon, y_scale,
                              workspace_bytes=kernels.ATTENTION_BRANCH_WORKSPACE_BYTES):
        assert norm_first == (logit_scale is None) == (proj_scale == 0)
        channels = x.shape[-1]
        qkv, attention = x_q.new_empty(*x.shape[:-1], 3 * channels), torch.empty_like(x_q)
        StandIn.linear_int8(x_q, qkv_weight, qkv_factor, qkv_bias, None, qkv, 0, qkv_scale)
        StandIn.attention_int8(qkv, bias, None, logit_scale, attention, num_heads, window, shift, scale,
                               mask_value, qkv_scale, attention_scale)
        if norm_first:
            StandIn.linear_int8(attention, proj_weight, proj_factor, proj_bias, x, y, 0, 0.0)
            StandIn.layernorm_int8(y, gamma, beta, y_q, epsilon, y_scale)
        else:
            projected = torch.empty_like(x_q)
            StandIn.linear_int8(attention, proj_weight, proj_factor, proj_bias, None, projected, 0, proj_scale)
            StandIn.layernorm_add_int8(projected, x, gamma, beta, y, y_q, epsilon, proj_scale, y_scale)


FUNCTIONS = [name for name in vars(StandIn) if not name.startswith("__")]


class NoGpu:
    """Takes no time."""

    device, cache_bytes = "cpu", 0

    def __init__(self) -> None:
        self.timed = 0

    def time(self, runs, sustain=False) -> Timing:
        self.timed += 1
        return Timing(2.0, 3.0, 400.0, 1500.0) if sustain else Timing(2.0)

    def measured_peaks(self) -> dict[str, float]:
        return {"copy": 4000.0, "fp32": 400.0, "fp16": 800.0, "int8": 1600.0}

    def stop(self) -> None:
        pass


@pytest.fixture
def stand_in(monkeypatch):
    for name in FUNCTIONS:
        monkeypatch.setattr(kernels, name, getattr(StandIn, name))


@pytest.fixture
def measured(tmp_path, monkeypatch, stand_in):
    """measured(*arguments): run the script without a GPU; gives the rows of its run."""
    monkeypatch.setenv("RUN_ID", "run-1")

    def run(*arguments: str, gpu: NoGpu | None = None) -> list[dict[str, str]]:
        with torch.no_grad():
            benchmark.main(["--batch", "1", "--results", str(tmp_path), *arguments], gpu or NoGpu())
        with (tmp_path / "kernels.csv").open(newline="") as file:
            return list(csv.DictReader(file))

    return run


def test_the_stand_in_takes_what_the_kernels_take():
    for name in FUNCTIONS:
        theirs = inspect.signature(getattr(kernels, name)).parameters
        assert list(inspect.signature(getattr(StandIn, name)).parameters) == list(theirs), name
    assert {f"swin_{name}" for name in FUNCTIONS} == set(kernels.ARGUMENTS), "a kernel has no stand-in"


# --- shapes and counts -----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("batch", [1, 128])
def test_places_are_those_of_the_yaml(batch):
    for network, model in SMALL:
        side, window = YAML[model]
        found = kernel_table.places(network, model, batch)
        assert [(p.side, p.channels, p.heads, p.window, p.last) for p in found] == [
            (side // 2**i, 96 * 2**i, 3 * 2**i, window, i == 3) for i in range(4)]
        assert all(p.rows == batch * p.side**2 for p in found)


def by_layer(batch: int, model: str) -> dict[str, list[Case]]:
    found: dict[str, list[Case]] = {}
    for case in cases([pair for pair in SMALL if pair[1] == model], [batch], KERNELS):
        found.setdefault(case.kernel.id, []).append(case)
    return found


@pytest.mark.parametrize("model", ["swinv1", "swinv2"])
@pytest.mark.parametrize("batch", [1, 32])
def test_counts_are_those_of_swin_work(model, batch):
    """Summed over the network's blocks: operations exactly, bytes but for vectors, which swin_work.py leaves out."""
    (network,), found = [n for n, name in SMALL if name == model], by_layer(batch, model)
    whole = swin_work.work_of(network, batch, 2, linear_adds_residual=True)

    def summed(*ids: str) -> tuple[int, int]:
        depths = network.depths
        chosen = [case for kernel in ids for case in found[kernel]]
        return tuple(sum(getattr(case, what) * (1 if case.kernel.id == "SwinLinear/reduction" else
                                                depths[case.place.stage]) for case in chosen)
                     for what in ("operations", "bytes"))

    vectors = 1.02 if batch == 32 else 1.2  # biases, and of attention the relative position bias
    for kernel, group in (("qkv", "qkv"), ("proj", "proj"), ("fc1", "fc1 + GELU"), ("fc2", "fc2")):
        operations, size = summed(f"SwinLinear/{kernel}")
        assert operations == whole[group].operations
        residuals = 0 if model == "swinv1" or kernel in ("qkv", "fc1") else sum(  # swin_work gives V2 one, too
            depth * 2 * case.place.rows * case.place.channels
            for depth, case in zip(network.depths, found[f"SwinLinear/{kernel}"]))
        assert whole[group].bytes <= size + residuals <= vectors * whole[group].bytes
    shapes = found["SwinAttention/W-MSA"]
    operations, size = summed("SwinAttention/W-MSA")
    assert operations == whole["attention"].operations and len(shapes) == 4
    assert whole["attention"].bytes <= size <= (1.1 if batch == 32 else 2.5) * whole["attention"].bytes
    assert summed("SwinLinear/reduction")[0] == whole["patch merging"].operations
    everything = {group: work for group, work in whole.items() if group not in ("patch embed", "head")}
    assert found["all blocks/blocks and patch merging"][0].operations == sum(w.operations for w in everything.values())
    mlps = found["SwinMlp/norm and MLP"]
    work = swin_work.work_of(network, batch, 2, linear_adds_residual=True, whole_mlps={0: 2, 1: 2})
    assert sum(2 * case.operations for case in mlps) == work[swin_work.WHOLE_MLP].operations
    assert [case.place.channels for case in mlps] == [96, 192]


def test_bytes_and_operations_of_single_cases_by_hand():
    found = by_layer(32, "swinv1")
    fc1 = found["SwinLinear/fc1"][2]  # [32 * 196, 384] x [384, 1536]
    assert fc1.operations == 2 * 6272 * 384 * 1536
    assert fc1.bytes == 2 * (6272 * 384 + 384 * 1536 + 1536 + 6272 * 1536)
    qkv = found["SwinLinearInt8/qkv"][3]  # [32 * 49, 768] x [768, 2304], INT8 but for factor and bias
    assert qkv.bytes == 1568 * 768 + 768 * 2304 + 2304 * 8 + 1568 * 2304
    proj = found["SwinLinearInt8/proj"][0]  # with a residual its result is FP16
    assert proj.bytes == 100352 * 96 + 96 * 96 + 96 * 8 + 2 * 2 * 100352 * 96
    add = found["SwinAddLayerNorm/residual and norm"][0]
    assert add.bytes == 4 * 2 * 100352 * 96 + 2 * 4 * 96
    shifted = found["SwinAttention/SW-MSA"]
    assert [case.place.shift for case in shifted] == [3, 3, 3]  # the last stage is one window
    assert shifted[0].bytes == 2 * 100352 * 4 * 96 + 4 * 3 * 49 * 56
    weights = {"fp16": 2 * 12 * (2 * 96**2 + 2 * 192**2 + 18 * 384**2 + 2 * 768**2) + 2 * 8 * (96**2 + 192**2 + 384**2)}
    weights["int8"] = (weights["fp16"] - 12 * (18 * 384**2 + 2 * 768**2)  # a byte less each, but for
                       - 3 * (2 * 96**2 + 2 * 192**2))  # the narrow blocks, of which only qkv is INT8
    for case in found["all blocks/blocks and patch merging"]:
        assert case.bytes == 2 * (32 * 56**2 * 96 + 32 * 7**2 * 768) + weights[case.kernel.precision]


def test_every_kernel_has_a_place_at_every_batch():
    for batch in (1, 8, 32, 128):
        found = [by_layer(batch, model) for _, model in SMALL]
        assert {kernel.id for kernel in KERNELS} == set(found[0]) | set(found[1])
        assert len(found[0]["SwinAttentionBranchInt8/W-MSA"]) == 1


def test_the_surgery_chooses_by_the_same_widths():
    """Which benchmark.py cannot import: a GPU host may lack onnx-graphsurgeon."""
    assert attention_branch_int8.WIDTHS == kernel_blocks.BRANCH_WIDTHS
    assert patterns.MOST_CHANNELS == kernel_blocks.NARROW


# --- calls -----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("kernel", [k for k in KERNELS if k.rotate], ids=lambda kernel: kernel.id)
def test_the_kernel_is_given_what_its_formula_reads(kernel, stand_in):
    """And PyTorch's runners, but for those that a CPU has not, give it too."""
    found_places = 0
    for case in cases(LITTLE, [1], [kernel]):
        found_places += 1
        not_here = {"sdpa-mem-efficient", "sdpa-cudnn"}
        names = [name for name, peer in case.runners.items() if not peer.compiled and name not in not_here]
        found = {name: error for name, _, error, _ in benchmark.measure(case, names, NoGpu(), False)}
        assert list(found) == names
        largest = max(spec.step for spec in case.tensors.values() if spec.output)
        limit = (0.75 * largest if kernel.precision == "int8" else 0) + 2.0**-6  # FP16 numbers up to about 8
        assert found[OURS] <= limit, found
        assert all(error <= 2 * largest * (kernel.precision == "int8") + 2.0**-4 for error in found.values()), found
    assert found_places


def test_partitioned_windows_come_back():
    """What SDPA is given and gives, by the plain formula on it."""
    for case in cases(LITTLE, [1], [k for k in KERNELS if k.id == "SwinAttention/SW-MSA"]):
        peer = case.runners["sdpa-cudnn"]
        t = benchmark.drawn(case, "cpu", 0)[0]
        prepared = {name: x.double() for name, x in peer.prepare(case.place, t).items()}
        logits = prepared["q"] @ prepared["k"].transpose(-2, -1) * kernel_table.attention_scale(case.place)
        y, = peer.restore(case.place, ((logits + prepared["mask"]).softmax(-1) @ prepared["v"],))
        exact, = case.kernel.formula(case.place, kernel_table.converted(t, torch.double))
        assert (y - exact).abs().max() < 0.01


@pytest.fixture
def slender(monkeypatch):
    """Small with a third of its channels, 2 blocks a stage; kernels are chosen by widths of a third, too."""
    monkeypatch.setattr(kernel_blocks, "NARROW", 64)
    monkeypatch.setattr(kernel_blocks, "BRANCH_WIDTHS", (128,))
    return {model: network._replace(embed_dim=32, depths=(2, 2, 2, 2)) for network, model in SMALL}


@pytest.mark.parametrize("model", ["swinv1", "swinv2"])
def test_all_blocks_compute_the_network(model, slender, stand_in):
    """In FP64 up to FP16's roundings, in INT8 up to quantisation's."""
    network = slender[model]
    x = torch.randn(1, (network.img_size // 4) ** 2, 32, generator=torch.Generator().manual_seed(3)).half()
    with torch.no_grad():
        exact = kernel_blocks.by_pytorch(network, x.double())
        errors = {precision: (kernel_blocks.by_kernels(network, precision, x).double() - exact).norm() / exact.norm()
                  for precision in ("fp16", "int8")}
    assert errors["fp16"] < 0.005 and 0.005 < errors["int8"] < 0.12, errors


def test_all_blocks_take_the_kernels_of_the_engines(slender, monkeypatch):
    """As add_all.py and add_int8.py choose them: an attention branch and an MLP each in one kernel where they are."""
    counts: dict[str, int] = {}

    def counted(name: str, *arguments, **named) -> None:
        counts[name] = counts.get(name, 0) + 1

    class Ones(dict):
        def __missing__(self, module):
            return 1.0, 1.0

    for name in FUNCTIONS:
        monkeypatch.setattr(kernels, name, partial(counted, name))
    monkeypatch.setattr(kernel_blocks, "largest_numbers", lambda network, device: Ones())
    monkeypatch.setattr(kernel_blocks, "stages", kernel_blocks.stages.__wrapped__)  # not kept for other tests
    expected = {  # two blocks in each of four stages
        ("swinv1", "fp16"): {"mlp": 4, "attention": 8, "linear": 8 + 4 * 3 + 3, "layernorm": 8 + 4, "patch_merge": 3},
        ("swinv1", "int8"): {"mlp": 4, "attention_int8": 6, "attention_branch_int8": 2, "layernorm_int8": 8 + 2,
                             "linear_int8": 4 + 2 * 2 + 2 * 4, "patch_merge": 3, "linear": 3},
        ("swinv2", "fp16"): {"mlp": 4, "attention": 8, "linear": 8 + 4 * 3 + 3, "layernorm_add": 8, "patch_merge": 3,
                             "layernorm": 3},
        ("swinv2", "int8"): {"mlp": 4, "attention": 4, "attention_int8": 2, "attention_branch_int8": 2, "quantize": 2,
                             "linear_int8": 2 * 2 + 2 * 4, "layernorm_add_int8": 1 + 2 + 1, "layernorm_add": 2,
                             "patch_merge": 3, "linear": 4 + 3, "layernorm": 3},
    }
    with torch.no_grad():
        for model, network in slender.items():
            x = torch.zeros(1, (network.img_size // 4) ** 2, 32, dtype=torch.half)
            for precision in ("fp16", "int8"):
                counts.clear()
                kernel_blocks.by_kernels(network, precision, x)
                assert counts == expected[model, precision], (model, precision)


# --- rows ------------------------------------------------------------------------------------------------------------

def test_rows_say_what_was_measured(measured):
    rows = measured("--kernel", "SwinAttention/SW-MSA,SwinAddLayerNorm", "--runner", OURS, "--power-batch", "1")
    assert tuple(rows[0]) == COLUMNS and len(rows) == 3 + 3 + 4
    row, = (r for r in rows if (r["model"], r["stage"], r["layer"]) == ("swinv2", "2", "SW-MSA"))
    assert {name: row[name] for name in ("run_id", "kernel", "batch", "side", "in_features", "out_features",
                                         "window_size", "shift_size", "precision", "runner", "input_sets")} == {
        "run_id": "run-1", "kernel": "SwinAttention", "batch": "1", "side": "32", "in_features": "576",
        "out_features": "192", "window_size": "8", "shift_size": "4", "precision": "fp16", "runner": OURS,
        "input_sets": "1"}
    moved = 2 * 1024 * 4 * 192 + 4 * 6 * 64 * 64 + 4 * 6
    assert row["bytes"] == str(moved) and row["operations"] == str(4 * 1024 * 64 * 192)
    assert float(row["gb_per_s"]) == round(moved / 2.0 / 1e3)  # in 2 us
    assert float(row["bandwidth_fraction"]) == round(moved / 2e3 / 4000, 3)
    assert (row["sustained_us"], row["power_w"], row["clock_mhz"]) == ("3.00", "400", "1500")
    assert 0 < float(row["max_abs_err"]) < 2.0**-9
    norm_row = rows[0]
    assert norm_row["window_size"] == norm_row["shift_size"] == "" and norm_row["tflop_per_s"] == "0.0"


def test_int8_is_held_against_int8s_peak(measured):
    rows = measured("--kernel", "SwinLinearInt8/qkv", "--runner", OURS)
    assert all(float(r["arithmetic_fraction"]) == pytest.approx(int(r["operations"]) / 2e6 / 1600, abs=6e-4)
               for r in rows)
    assert all(r["sustained_us"] == r["power_w"] == r["clock_mhz"] == "" for r in rows)


def test_a_run_goes_on_where_it_was(measured, monkeypatch, capsys):
    first = measured("--kernel", "SwinAddLayerNorm", "--runner", OURS)
    gpu = NoGpu()
    both = measured("--kernel", "SwinAddLayerNorm", "--runner", f"{OURS},torch-eager", gpu=gpu)
    assert both[:4] == first and len(both) == 8 and gpu.timed == 4
    assert {r["runner"] for r in both[4:]} == {"torch-eager"}
    with pytest.raises(UserError, match="nothing to measure: run run-1"):
        measured("--kernel", "SwinAddLayerNorm", "--runner", f"{OURS},torch-eager")
    monkeypatch.setenv("RUN_ID", "run-2")  # another run measures all
    assert len(measured("--kernel", "SwinAddLayerNorm", "--runner", OURS)) == 12


def test_peaks_are_measured_once_a_run(measured, tmp_path):
    measured("--kernel", "SwinQuantize", "--runner", OURS)
    text = (tmp_path / "environment" / "run-1.txt").read_text()
    assert "copy_gb_per_s: 4000" in text and "int8_product_tflop_per_s: 1600" in text
    gpu = NoGpu()
    gpu.measured_peaks = lambda: pytest.fail("measured again")
    measured("--kernel", "SwinQuantize", "--runner", "torch-eager", gpu=gpu)


def test_the_time_is_over(measured, capsys):
    measured("--kernel", "SwinAddLayerNorm", "--runner", OURS)
    assert len(measured("--kernel", "SwinLayerNormAdd", "--minutes", "0")) == 4
    assert "the time is over: 0 of 4 cases done; " in capsys.readouterr().out


def test_a_wrong_kernel_has_no_row(measured, monkeypatch, capsys):
    def off(x, residual, gamma, beta, y, epsilon):
        StandIn.layernorm_add(x, residual, gamma, beta, y, epsilon)
        y[-1, -1] = math.nan if x.shape[-1] == 96 else y[-1, -1] + 1

    monkeypatch.setattr(kernels, "layernorm_add", off)
    with pytest.raises(UserError, match=r"4 results are wrong.*64x64, 96\].* is off by nan"):
        measured("--kernel", "SwinLayerNormAdd,SwinQuantize", "--runner", OURS)
    monkeypatch.undo()


def test_wrong_kernels_do_not_hide_the_others(measured, monkeypatch, tmp_path):
    monkeypatch.setattr(kernels, "layernorm_add", lambda x, residual, gamma, beta, y, epsilon: None)
    with pytest.raises(UserError, match="4 results are wrong"):
        measured("--kernel", "SwinLayerNormAdd,SwinQuantize", "--runner", OURS)
    with (tmp_path / "kernels.csv").open(newline="") as file:
        assert {row["kernel"] for row in csv.DictReader(file)} == {"SwinQuantize"}


def test_a_peer_that_does_not_run_is_left_out(measured, capsys):
    rows = measured("--kernel", "SwinAttention/SW-MSA", "--runner", f"{OURS},sdpa-cudnn")
    assert {row["runner"] for row in rows} == {OURS}
    assert "sdpa-cudnn: does not run: " in capsys.readouterr().out


def test_compiled_runners_come_last_and_at_their_batches(stand_in):
    chosen = [k for k in KERNELS if k.name in ("SwinAttention", "SwinAddLayerNorm")]
    tasks = benchmark.tasks_of(cases(SMALL, [1, 32], chosen), "*", [32], [1], set())
    kinds = [task.compiled for task in tasks]
    assert kinds == sorted(kinds) and sum(kinds) == 2 * 14 + 4  # attention in FP16 and FP32
    assert {task.case.place.batch for task in tasks if task.compiled} == {32}
    assert all(task.sustained == (task.case.place.batch == 1) for task in tasks if not task.compiled)


def test_torch_compile_is_measured(stand_in):
    case = next(iter(cases(LITTLE, [1], [k for k in KERNELS if k.name == "SwinQuantize"])))
    (name, timing, error, _), = benchmark.measure(case, ["torch-compile"], NoGpu(), False)
    assert name == "torch-compile" and timing.us == 2.0 and error <= 0.51 * kernel_table.STREAM_STEP


def test_sets_are_beyond_the_cache_and_alike():
    case, = (c for c in cases(SMALL, [1], KERNELS) if c.kernel.id == "SwinLinear/qkv" and c.place.channels == 384
             and c.place.model == "swinv1")
    sets = benchmark.drawn(case, "cpu", 2_000_000)
    assert len(sets) == math.ceil(3 * 2_000_000 / case.bytes) > 1
    assert torch.equal(sets[0]["x"], sets[-1]["x"]) and sets[0]["x"].data_ptr() != sets[-1]["x"].data_ptr()
    assert all(one["y"].isnan().all() for one in sets)
    assert len(benchmark.drawn(case, "cpu", 10**12)) == benchmark.MOST_SETS


# --- the command line ------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("arguments", "message"), [
    (["--kernel", "SwinNothing"], "matches none of SwinAddLayerNorm, "),
    (["--cfg", "models/none.yaml"], "none.yaml"),
    (["--runner", "torch-none"], "or no runner of that name"),
])
def test_mistakes_are_one_line(arguments, message, tmp_path):
    with pytest.raises(UserError, match=message):
        benchmark.main([*arguments, "--results", str(tmp_path)], NoGpu())
    assert not (tmp_path / "kernels.csv").exists()


def test_list_needs_no_gpu(capsys, tmp_path):
    benchmark.main(["--list", "--kernel", "SwinMlp", "--batch", "8", "--results", str(tmp_path)])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 * 2 * 2 + 1 and "swin-plugins, torch-eager, swin-parts" in lines[0]


# --- the table that is there -----------------------------------------------------------------------------------------

def test_the_rows_that_are_there_have_these_columns_and_counts():
    """Bytes and operations of the committed rows, by hand."""
    with (ROOT / "Results" / "kernels.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS
    for row in rows:
        if row["run_id"] > "20261126-121613":
            continue  # with biases and parameters, as the other tests count them
        tokens, channels = int(row["batch"]) * int(row["side"]) ** 2, int(row["out_features"])
        tensors = {"SwinAttention": 4, "SwinAddLayerNorm": 4, "SwinLayerNormAdd": 3}[row["kernel"]]
        assert int(row["bytes"]) == 2 * tensors * tokens * channels
        assert float(row["gb_per_s"]) == pytest.approx(int(row["bytes"]) / float(row["time_us_median"]) / 1e3, rel=0.01)
        assert int(row["operations"]) == (4 * tokens * int(row["window_size"]) ** 2 * channels
                                          if row["kernel"] == "SwinAttention" else 0)
        assert channels == 96 * 2 ** (int(row["stage"]) - 1)
        assert (row["input_layout"] == "windows") == row["runner"].startswith(("sdpa", "flex"))
