"""Where the time goes: the groups of layers, the work of each against PyTorch's own count, the picture."""
from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from config import get_config
from graphs.facts import Facts
from models.build import build_model
from Results import draw_profile
from Results.tables import append_rows
from TensorRT import profile_engine, swin_work
from TensorRT.swin_work import Swin, Work
from utils import ROOT, UserError

CONFIGS = sorted((ROOT / "models").glob("*.yaml"))


# --- groups --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("layer", "group"), [  # the first ones as TensorRT 8.6.0 gave them to a patched Small
    ("Reformatting CopyNode for Input Tensor 0 to /layers.0/blocks.0/attn/proj/MatMul", "copies and reformats"),
    ("reshape_before_/layers.0/blocks.0/attn/proj/MatMul", "copies and reformats"),
    ("/layers.0/blocks.0/attn/qkv/MatMul", "qkv"),
    ("/layers.0/blocks.0/attn/Softmax/SwinAttention", "attention"),
    ("/layers.0/blocks.0/attn/proj/MatMul", "proj"),
    ("/layers.0/blocks.0/norm2/LayerNormalization/SwinAddLayerNorm", "LayerNorm and residual"),
    ("/layers.0/blocks.0/mlp/fc1/MatMul", "fc1 + GELU"),
    ("PWN(/layers.0/blocks.0/mlp/Constant_2_output_0 + (Unnamed Layer* 42) [Shuffle], PWN(PWN(PWN(/la"
     "yers.0/blocks.0/mlp/Constant_1_output_0 + (Unnamed Layer* 38) [Shuffle], PWN(PWN(PWN(/layers.0/"
     "blocks.0/mlp/Constant_output_0 + (Unnamed Layer* 34) [Shuffle], /layers.0/blocks.0/mlp/Div), PW"
     "N(/layers.0/blocks.0/mlp/Erf)), /layers.0/blocks.0/mlp/Add)), /layers.0/blocks.0/mlp/Mul), /lay"
     "ers.0/blocks.0/mlp/Mul_1))",
     "fc1 + GELU"),
    ("/layers.0/blocks.0/mlp/fc2/MatMul", "fc2"),
    ("/layers.0/downsample/norm/LayerNormalization/SwinPatchMergeLayerNorm", "patch merging"),
    ("/patch_embed/norm/LayerNormalization/SwinLayerNormWithParams", "patch embed"),
    ("/layers.0/blocks.1/Add_1", "LayerNorm and residual"),
    ("/ReduceMean", "head"),
    # names that the surgery gives to the nodes of the all-plugin graph
    ("/patch_embed/norm/LayerNormalization/SwinPatchEmbed", "patch embed"),
    ("/layers.2/blocks.3/attn/qkv/MatMul/SwinLinear", "qkv"),
    ("/layers.2/blocks.3/attn/proj/MatMul/SwinLinear", "proj"),
    ("/layers.2/blocks.3/mlp/fc1/MatMul/SwinLinear", "fc1 + GELU"),
    ("/layers.2/blocks.3/mlp/fc2/MatMul/SwinLinear", "fc2"),
    ("/layers.0/blocks.1/mlp/fc1/MatMul/SwinMlp", "MLP in one kernel"),
    ("Reformatting CopyNode for Input Tensor 0 to /layers.0/blocks.1/mlp/fc1/MatMul/SwinMlp", "copies and reformats"),
    ("/layers.2/blocks.1/attn/qkv/MatMul/SwinAttentionBranchInt8", "attention branch in one node"),
    ("/layers.2/downsample/reduction/MatMul/SwinLinear", "patch merging"),
    ("/layers.2/downsample/reduction/MatMul/SwinPatchMerge", "patch merging"),
    ("/layers.1/downsample/norm/LayerNormalization/SwinLayerNormWithParams", "patch merging"),
    ("/layers.2/blocks.3/norm1/LayerNormalization/SwinLayerNormAdd", "LayerNorm and residual"),
    ("/norm/LayerNormalization/SwinLayerNormWithParams", "LayerNorm and residual"),
    ("/norm/LayerNormalization_output_0_cast_to_fp32_node", "copies and reformats"),
    ("graph_input_cast0", "copies and reformats"),
    ("logits/product", "head"),
    ("{ForeignNode[/layers.0/blocks.0/attn/Constant...logits/Add]}", "fused by TensorRT"),
    ("(Unnamed Layer* 3) [Constant]", "other"),
])
def test_profile_groups(layer, group):
    assert profile_engine.group_of(layer) == group


def facts_of(plan: str) -> Facts:
    """The facts of an engine that is called after them."""
    model, *words = plan.removesuffix(".plan").split("_")
    return Facts(model=model, variant={"swinv1": "swin"}.get(model, model),
                 precision=next((word for word in words if word in ("fp16", "int8")), "fp32"),
                 patched={"SwinAttention": 1} if "attention" in words else {})


def rows_of(plan: str, *measured: object) -> list[dict]:
    """profile_engine.group_rows of an engine that is called after its facts."""
    return profile_engine.group_rows(facts_of(plan), Path(plan), *measured)


# --- work ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_yaml_is_read_as_the_configuration_reads_it(path):
    config = get_config(path)
    swin = config.MODEL.SWIN
    assert swin_work.read_swin(path) == Swin(config.MODEL.TYPE, swin.EMBED_DIM, tuple(swin.DEPTHS), swin.WINDOW_SIZE,
                                             config.DATA.IMG_SIZE, config.MODEL.NUM_CLASSES)
    assert (swin.PATCH_SIZE, swin.IN_CHANS, swin.MLP_RATIO) == (4, 3, 4)
    assert swin_work.yaml_of(Facts(variant=path.stem)) == path


def test_an_engine_of_another_model_has_no_yaml(tmp_path):
    assert swin_work.yaml_of(Facts(variant="resnet50")) is None and swin_work.yaml_of(Facts()) is None
    (tmp_path / "m.yaml").write_text("MODEL:\n  TYPE: swinv1\n")
    with pytest.raises(UserError, match="has no line EMBED_DIM"):
        swin_work.read_swin(tmp_path / "m.yaml")
    (tmp_path / "m.png").write_bytes(b"\x89PNG\r\n")
    with pytest.raises(UserError, match="has no line TYPE"):
        swin_work.read_swin(tmp_path / "m.png")


def test_a_window_is_no_larger_than_the_tokens_there_are():
    """4 x 4 tokens of 8 channels, two images, and a window of 8: scores and their product with v are over 16 tokens."""
    work = swin_work.work_of(Swin("swinv2", 8, (1,), 8, 16, 10), 2, 2)["attention"]
    assert work == Work(2 * (2 * 16) * 2 * 16 * 8, 2 * 4 * (2 * 16) * 8)


MODULES = {"qkv": ".attn.qkv", "proj": ".attn.proj", "fc1 + GELU": ".mlp.fc1", "fc2": ".mlp.fc2",
           "patch merging": ".downsample", "patch embed": ".patch_embed", "head": ".head"}


@pytest.mark.parametrize("name", ["swin_micro", "swinv2_micro"])
def test_operations_are_those_that_pytorch_counts(name):
    """Module by module; attention is what is left of the whole."""
    path = ROOT / "models" / f"{name}.yaml"
    model = build_model(get_config(path)).fold_constants()
    with torch.inference_mode(), FlopCounterMode(display=False, depth=9) as counter:
        model(torch.zeros(2, 3, model.img_size, model.img_size))
    counts = {module: sum(by_operator.values()) for module, by_operator in counter.get_flop_counts().items()}
    expected = {group: sum(count for module, count in counts.items() if module.endswith(ending))
                for group, ending in MODULES.items()}
    expected["attention"] = counts["Global"] - sum(expected.values())
    work = swin_work.work_of(swin_work.read_swin(path), 2, 4)
    assert {group: work[group].operations for group in expected} == expected
    assert work["LayerNorm and residual"].operations == 0 and set(work) == {*expected, "LayerNorm and residual"}


def test_bytes_of_a_network_small_enough_to_count_by_hand():
    """One stage of one block: 16 x 16 pixels, 4 x 4 tokens of 8 channels; two images, so 32 tokens, FP16."""
    tokens, width = 32, 8
    size = tokens * width
    plain = {
        "patch embed": 4 * 2 * 3 * 16 * 16 + 2 * (size + 48 * width),
        "qkv": 2 * (size + 3 * size + 3 * width * width),
        "attention": 2 * 4 * size,
        "proj": 2 * (2 * size + width * width),
        "fc1 + GELU": 2 * (size + 4 * size + 4 * width * width),
        "fc2": 2 * (4 * size + size + 4 * width * width),
        # V1: norm1 x -> y; Add + norm2 x, r -> sum, y; Add + last norm x, r -> y
        "LayerNorm and residual": 2 * (2 + 4 + 3) * size,
        "head": 2 * size + 4 * (2 * 2 * width + width * 10 + 2 * 10),
    }
    swin = Swin("swinv1", width, (1,), 4, 16, 10)
    assert {group: work.bytes for group, work in swin_work.work_of(swin, 2, 2).items()} == plain
    # The residual goes to proj and fc2: each reads one tensor more, and the three norms are x -> y.
    fused = {**plain, "proj": plain["proj"] + 2 * size, "fc2": plain["fc2"] + 2 * size,
             "LayerNorm and residual": 2 * 6 * size}
    assert {group: work.bytes for group, work in swin_work.work_of(swin, 2, 2, True).items()} == fused
    # V2: x, r -> y twice, and the last norm x -> y
    v2 = swin_work.work_of(swin._replace(type="swinv2"), 2, 2)
    assert {group: work.bytes for group, work in v2.items()} == {**plain, "LayerNorm and residual": 2 * 8 * size}


@pytest.mark.parametrize("kind", ["swinv1", "swinv2"])
def test_an_mlp_in_one_kernel_reads_and_writes_the_tokens_once(kind):
    """Two stages of 2 and 3 blocks; the MLPs of the first stage and of one block of the second are whole. FP16."""
    swin = Swin(kind, 8, (2, 3), 4, 32, 10)
    apart = swin_work.work_of(swin, 2, 2, kind == "swinv1")
    whole = swin_work.work_of(swin, 2, 2, kind == "swinv1", {0: 2, 1: 1})
    sizes, weights = [2 * 64 * 8, 2 * 64 * 8, 2 * 16 * 16], [8 * 8 * 8, 8 * 8 * 8, 8 * 16 * 16]
    assert whole["MLP in one kernel"].bytes == 2 * (2 * sum(sizes) + sum(weights))
    mlp = ("fc1 + GELU", "fc2", "MLP in one kernel")
    assert sum(whole[group].operations for group in mlp) == sum(apart[group].operations for group in mlp[:2])
    # A LayerNorm less in each of the three: x -> y, or in V2 x, residual -> y.
    norm = "LayerNorm and residual"
    assert apart[norm].bytes - whole[norm].bytes == 2 * (2 if kind == "swinv1" else 3) * sum(sizes)
    assert whole["fc1 + GELU"].bytes == 2 * 2 * (5 * sizes[2] + 4 * 16 * 16)
    others = set(apart) - {*mlp, norm}
    assert {group: whole[group] for group in others} == {group: apart[group] for group in others}
    all_whole = swin_work.work_of(swin, 2, 2, kind == "swinv1", {0: 2, 1: 3})
    assert set(all_whole) == {*others, norm, "MLP in one kernel"}


@pytest.mark.parametrize("kind", ["swinv1", "swinv2"])
def test_a_kernel_from_attention_to_the_mlps_end_reads_and_writes_the_tokens_once(kind):
    """As above; a block of the first stage has its proj in that kernel, too. FP16."""
    swin = Swin(kind, 8, (2, 3), 4, 32, 10)
    apart = swin_work.work_of(swin, 2, 2, kind == "swinv1", {0: 2, 1: 1})
    whole = swin_work.work_of(swin, 2, 2, kind == "swinv1", {0: 2, 1: 1}, {0: 1})
    size, mlp, norm = 2 * 64 * 8, "MLP in one kernel", "LayerNorm and residual"
    # x, attention -> y, where it was x -> y; the weights
    assert whole[mlp].bytes - apart[mlp].bytes == 2 * (size + 8 * 8)
    moved = (3 if kind == "swinv1" else 2) * size + 8 * 8  # by a proj: attention, in V1 the residual -> x
    assert apart["proj"].bytes - whole["proj"].bytes == 2 * moved
    # In V2 a LayerNorm less: proj's output, the residual -> x
    assert apart[norm].bytes - whole[norm].bytes == 2 * (0 if kind == "swinv1" else 3) * size
    assert sum(whole[group].operations for group in (mlp, "proj")) == sum(
        apart[group].operations for group in (mlp, "proj"))
    assert apart["proj"].operations - whole["proj"].operations == 2 * (2 * 64) * 8 * 8
    others = set(apart) - {mlp, norm, "proj"}
    assert {group: whole[group] for group in others} == {group: apart[group] for group in others}
    all_whole = swin_work.work_of(swin, 2, 2, kind == "swinv1", {0: 2, 1: 3}, {0: 2, 1: 3})
    assert set(all_whole) == {*others, mlp, norm} - {"fc1 + GELU", "fc2"}


@pytest.mark.parametrize("kind", ["swinv1", "swinv2"])
def test_an_attention_branch_in_one_kernel_reads_and_writes_the_tokens_once(kind):
    """Two stages of 2 and 3 blocks; two branches of the second are whole, and the first's MLPs with proj. FP16."""
    swin, v1 = Swin(kind, 8, (2, 3), 4, 32, 10), kind == "swinv1"
    apart = swin_work.work_of(swin, 2, 2, v1, {0: 2}, {0: 2})
    whole = swin_work.work_of(swin, 2, 2, v1, {0: 2}, {0: 2}, {1: 2})
    tokens, width = 2 * 16, 16
    size, branch, norm = tokens * width, "attention branch in one node", "LayerNorm and residual"
    # x -> y, and in V1, where qkv reads LayerNorm of x, that and LayerNorm of y
    assert whole[branch].bytes == 2 * 2 * ((4 if v1 else 2) * size + 4 * width * width)
    parts = ("qkv", "attention", "proj")
    assert sum(whole[group].operations for group in (*parts, branch)) == sum(apart[group].operations for group in parts)
    assert whole[branch].operations == 2 * 2 * tokens * (4 * width * width + 2 * 16 * width)
    for group, moved in (("qkv", 4 * size + 3 * width * width), ("attention", 4 * size),
                         ("proj", (3 if v1 else 2) * size + width * width), (norm, (2 if v1 else 3) * size)):
        assert apart[group].bytes - whole[group].bytes == 2 * 2 * moved
    others = set(apart) - {*parts, norm}
    assert {group: whole[group] for group in others} == {group: apart[group] for group in others}
    all_whole = swin_work.work_of(swin, 2, 2, v1, {}, {}, {0: 2, 1: 3})
    assert set(all_whole) == {*others, norm, branch, "fc1 + GELU", "fc2"} - {"MLP in one kernel"}


def test_an_engine_says_how_many_mlps_are_whole():
    def work(*layers: str) -> dict[str, Work]:
        return profile_engine.work_of_groups(facts_of("swinv1_attention_fp16.plan"), list(layers), 1, 224, 1000)

    linear = "/layers.0/blocks.0/attn/proj/MatMul/SwinLinear"
    mlps = [f"/layers.1/blocks.{block}/mlp/fc1/MatMul/SwinMlp" for block in (0, 1)]
    projs = [f"/layers.1/blocks.{block}/attn/proj/MatMul/{op}" for block, op in ((0, "SwinLinear"),
                                                                                 (1, "SwinLinearInt8"))]
    copy = f"Reformatting CopyNode for Input Tensor 0 to {projs[0]}"
    swin = swin_work.read_swin(ROOT / "models/swin.yaml")
    for separate, with_proj in ((projs, {}), (projs[1:], {1: 1}), ([copy], {1: 2})):
        without_all = {group: value for group, value in work(linear, *mlps, *separate).items() if group != "all"}
        assert without_all == swin_work.work_of(swin, 1, 2, True, {1: 2}, with_proj)
    assert "MLP in one kernel" not in work(linear)


def test_an_int8_engine_of_v1_has_proj_of_narrow_blocks_in_the_mlps_kernel():
    """An attention that writes FP16 for it is counted as every attention: an INT8 engine's bytes are FP16's."""
    swin = swin_work.read_swin(ROOT / "models/swin.yaml")
    block, narrow = "/layers.{}/blocks.{}/", {0: 2, 1: 2}
    layers = []
    for stage, depth in enumerate(swin.depths):
        parts = ["norm1/LayerNormalization/SwinLayerNormInt8", "attn/qkv/MatMul/SwinLinearInt8",
                 "attn/Softmax/SwinAttentionInt8"]
        parts += ["mlp/fc1/MatMul/SwinMlp"] if stage in narrow else [
            "attn/proj/MatMul/SwinLinearInt8", "norm2/LayerNormalization/SwinLayerNormInt8",
            "mlp/fc1/MatMul/SwinLinearInt8", "mlp/fc2/MatMul/SwinLinearInt8"]
        layers += [block.format(stage, number) + part for number in range(depth) for part in parts]
    work = profile_engine.work_of_groups(facts_of("swinv1_attention_int8.plan"), layers, 8, 224, 1000)
    del work["all"]
    assert work == swin_work.work_of(swin, 8, 2, True, narrow, narrow)
    rows = rows_of("swinv1_attention_int8.plan", 8, dict.fromkeys(layers, 0.1), 224, 1000, None, None)
    found = {row["group"]: (row["layers"], row["int8_layers"]) for row in rows}
    assert found == {"attention": (24, 24), "qkv": (24, 24), "proj": (20, 20), "fc1 + GELU": (20, 20),
                     "fc2": (20, 20), "LayerNorm and residual": (44, 44), "MLP in one kernel": (4, 0),
                     "all": (156, 152)}


@pytest.mark.parametrize("version", [1, 2])
def test_an_int8_engine_has_wide_attention_branches_in_one_kernel(version):
    """The third stage's of Small; V2's first two stages are FP16. Such a layer counts as one in INT8."""
    swin = swin_work.read_swin(ROOT / "models" / {1: "swin.yaml", 2: "swinv2.yaml"}[version])
    layers = []
    for stage, depth in enumerate(swin.depths):
        if stage < 2:
            parts = ["attn/qkv/MatMul/SwinLinear", "attn/Softmax/SwinAttention", "mlp/fc1/MatMul/SwinMlp"]
        else:
            parts = ["attn/qkv/MatMul/SwinAttentionBranchInt8"] if stage == 2 else [
                "attn/qkv/MatMul/SwinLinearInt8", "attn/Softmax/SwinAttentionInt8", "attn/proj/MatMul/SwinLinearInt8",
                "norm/LayerNormalization/SwinLayerNormInt8"]
            parts += ["mlp/fc1/MatMul/SwinLinearInt8", "mlp/fc2/MatMul/SwinLinearInt8"]
        layers += [f"/layers.{stage}/blocks.{number}/{part}" for number in range(depth) for part in parts]
    plan, narrow, wide = Path(f"swinv{version}_attention_int8.plan"), {0: 2, 1: 2}, {2: 18}
    work = profile_engine.work_of_groups(facts_of(plan.name), layers, 8, swin.img_size, 1000)
    del work["all"]
    assert work == swin_work.work_of(swin, 8, 2, version == 1, narrow, narrow, wide)
    rows = rows_of(plan.name, 8, dict.fromkeys(layers, 0.1), swin.img_size, 1000, None, None)
    found = {row["group"]: (row["layers"], row["int8_layers"]) for row in rows}
    assert found == {"qkv": (6, 2), "attention": (6, 2), "proj": (2, 2), "attention branch in one node": (18, 18),
                     "fc1 + GELU": (20, 20), "fc2": (20, 20), "LayerNorm and residual": (2, 2),
                     "MLP in one kernel": (4, 0), "all": (78, 66)}


def test_patch_merging_moves_what_its_parts_do():
    """From 4 x 4 tokens of 8 channels to 2 x 2 of 16, one image, FP32: gather (V1: and norm), product, V2's norm."""
    swin = Swin("swinv1", 8, (1, 1), 2, 16)
    size, weight = 16 * 8, 32 * 16
    assert swin_work.work_of(swin, 1, 4)["patch merging"] == Work(2 * 4 * weight, 4 * (2 * size + 1.5 * size + weight))
    assert swin_work.work_of(swin._replace(type="swinv2"), 1, 4)["patch merging"].bytes == 4 * (4.5 * size + weight)


# --- rows ----------------------------------------------------------------------------------------------------

TIMES = {"/patch_embed/proj/Conv": 0.1, "/layers.0/blocks.0/attn/qkv/MatMul": 0.5,
         "/layers.0/blocks.1/attn/qkv/MatMul": 0.5, "graph_input_cast0": 0.2}


def test_rows_hold_the_work_over_the_time():
    *groups, total = rows_of("swinv1_fp16.plan", 32, TIMES, 224, 1000, 800.0, 4000.0)
    by_name = {row["group"]: row for row in groups}
    assert [row["group"] for row in groups] == ["qkv", "copies and reformats", "patch embed"]
    qkv, work = by_name["qkv"], swin_work.work_of(swin_work.read_swin(ROOT / "models/swin.yaml"), 32, 2)
    assert (qkv["layers"], qkv["time_ms_median"], qkv["share"]) == (2, "1.0000", "0.7692")
    assert float(qkv["tflop_per_s"]) == pytest.approx(work["qkv"].operations / 1e-3 / 1e12, rel=1e-3)
    assert float(qkv["arithmetic_fraction"]) == pytest.approx(work["qkv"].operations / 1e-3 / 800e12, rel=1e-3)
    assert float(qkv["gb_per_s"]) == pytest.approx(work["qkv"].bytes / 1e-3 / 1e9, rel=1e-3)
    assert float(qkv["bandwidth_fraction"]) == pytest.approx(work["qkv"].bytes / 1e-3 / 4000e9, rel=1e-3)
    assert by_name["copies and reformats"]["tflop_per_s"] == ""
    assert total["group"] == "all" and total["time_ms_median"] == "1.3000"
    assert float(total["gflop"]) == pytest.approx(sum(each.operations for each in work.values()) / 1e9, rel=1e-3)
    (unknown, *_), = [rows_of("other.plan", 1, TIMES, 224, 1000, None, None)]
    assert unknown["gflop"] == unknown["arithmetic_fraction"] == ""


def test_rows_say_how_many_layers_ran_in_int8():
    times = {"/layers.2/blocks.0/attn/qkv/MatMul/SwinLinearInt8": 1.0,
             "/layers.0/blocks.0/attn/qkv/MatMul/SwinLinear": 1.0,
             "/layers.2/blocks.0/attn/SwinAttentionInt8": 1.0}
    rows = rows_of("swinv1_attention_int8.plan", 1, times, 224, 1000, None, None)
    assert {row["group"]: (row["layers"], row["int8_layers"]) for row in rows} == {
        "qkv": (2, 1), "attention": (1, 1), "all": (3, 2)}


def test_a_fused_region_has_the_work_of_what_has_no_layer():
    layers = ["/patch_embed/proj/Conv", "{ForeignNode[/layers.0/blocks.0/norm1...logits/Add]}"]
    work = profile_engine.work_of_groups(facts_of("swinv2_fp16.plan"), layers, 1, 256, 1000)
    assert work["fused by TensorRT"].operations == work["all"].operations - work["patch embed"].operations


def test_residuals_count_where_the_engine_adds_them():
    def moved(plan: str, *layers: str) -> float:
        return profile_engine.work_of_groups(facts_of(plan), list(layers), 1, 224, 1000)["proj"].bytes

    linear, norm = "/layers.0/blocks.0/attn/proj/MatMul/SwinLinear", "/layers.0/blocks.0/norm2/SwinAddLayerNorm"
    assert moved("swinv1_attention_fp16.plan", linear) > moved("swinv1_attention_fp16.plan", linear, norm)
    assert moved("swinv1_attention_fp16.plan", linear, norm) == moved("swinv1_fp16.plan", "/layers.0/Add")
    assert moved("swinv2_attention_fp16.plan", linear) == moved("swinv2_fp16.plan", "/layers.0/Add")


def test_peaks_come_from_the_benchmark_of_the_same_run_or_the_last_on_such_a_gpu(tmp_path):
    assert profile_engine.measured_peak(tmp_path, "7", "A", "copy_gb_per_s") is None
    (tmp_path / "environment").mkdir()
    for run, gpu, peak in (("5", "A", 1), ("6", "A", 2), ("7", "A", 4312), ("8", "A", 4), ("9", "A B", 5)):
        (tmp_path / f"environment/{run}.txt").write_text(f"gpu: {gpu}\ncopy_gb_per_s: {peak}\n")
    (tmp_path / "environment/91.txt").write_text("gpu: A\n")
    assert profile_engine.measured_peak(tmp_path, "7", "A", "copy_gb_per_s") == 4312
    assert profile_engine.measured_peak(tmp_path, "7", "A", "no_such_peak") is None
    assert profile_engine.measured_peak(tmp_path, "91", "A", "copy_gb_per_s") == 4
    assert profile_engine.measured_peak(tmp_path, "92", "A B", "copy_gb_per_s") == 5
    assert profile_engine.measured_peak(tmp_path, "92", "B", "copy_gb_per_s") is None


# --- picture -------------------------------------------------------------------------------------------------


def profiled(engine: str, batch: int, factor: float, run_id: str = "1") -> list[dict]:
    """Rows of an engine whose every layer takes `factor` times what the invented TIMES say."""
    times = {layer: factor * time_ms for layer, time_ms in TIMES.items()}
    rows = rows_of(f"{engine}.plan", batch, times, 224, 1000, 800.0, 4000.0)
    return [{"run_id": run_id, "commit": "abc", "gpu": "A GPU", "backend": "TensorRT 8", **row} for row in rows]


def test_picture_has_a_bar_for_each_engine_and_the_fraction_of_the_peak(tmp_path):
    append_rows(tmp_path / "profile.csv", profile_engine.COLUMNS, [
        *profiled("swinv1_fp16", 32, 9, run_id="0"), *profiled("swinv1_fp16", 32, 2),
        *profiled("swinv1_attention_fp16", 32, 1), *profiled("swinv1_fp16", 1, 0.1)])
    draw_profile.main(["--results", str(tmp_path), "--pictures", str(tmp_path)])
    first = (tmp_path / "profile.png").read_bytes()
    draw_profile.main(["--results", str(tmp_path), "--pictures", str(tmp_path), "--run", "1"])
    assert (tmp_path / "profile.png").read_bytes() == first
    draw_profile.main(["--results", str(tmp_path), "--pictures", str(tmp_path), "--run", "0"])
    assert (tmp_path / "profile.png").read_bytes() != first
    with (tmp_path / "profile.csv").open() as file:
        assert "run_id" in next(csv.reader(file))
    figure = draw_profile.draw(draw_profile.profile_rows(tmp_path), "title")
    one, thirty_two = figure.axes
    assert one.get_title() == "swinv1, FP16, batch 1" and thirty_two.get_title() == "swinv1, FP16, batch 32"
    assert [label.get_text() for label in thirty_two.get_xticklabels()] == ["unpatched", "patched"]
    tops = [max(bar.get_y() + bar.get_height() for bar in thirty_two.patches if round(bar.get_center()[0]) == x)
            for x in (0, 1)]
    np.testing.assert_allclose(tops, [2.6, 1.3])
    work = swin_work.work_of(swin_work.read_swin(ROOT / "models/swin.yaml"), 32, 2)["qkv"]
    fraction = max(work.operations / 1e-3 / 800e12, work.bytes / 1e-3 / 4000e9)
    texts = [text.get_text() for text in thirty_two.texts]
    assert f"{fraction:.0%}" in texts and f"{fraction / 2:.0%}" in texts
    assert any(text.startswith("1.30 ms\n") for text in texts)


def test_every_group_has_a_colour():
    groups = {group for group, _ in profile_engine.GROUPS} | {"other"}
    assert set(draw_profile.COLOURS) == groups and len(set(draw_profile.COLOURS.values())) == len(groups)


def test_each_engine_is_drawn_of_its_newest_run_on_the_last_gpu(tmp_path):
    old, new = profiled("swinv1_fp16", 32, 2, "0"), profiled("swinv1_attention_fp16", 32, 1, "2")
    again = profiled("swinv1_attention_fp16", 32, 3, "1")
    elsewhere = [{**row, "gpu": "another"} for row in profiled("swinv1_attention_int8", 32, 1, "1")]
    gone = {**again[0], "group": "a group that the newest run has not"}
    append_rows(tmp_path / "profile.csv", profile_engine.COLUMNS, [*old, *again, gone, *elsewhere, *new])
    rows = draw_profile.profile_rows(tmp_path)
    assert [(row["run_id"], row["file"], row["group"]) for row in rows] == [
        (row["run_id"], row["file"], row["group"]) for row in (*old, *new)]


def test_no_rows_to_draw_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"no rows of run 9; TensorRT/profile_engine\.py measures them"):
        draw_profile.main(["--results", str(tmp_path), "--pictures", str(tmp_path), "--run", "9"])
