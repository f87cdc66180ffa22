"""Some of the zoo: every part of each model is replaced, and what the graph computes is what PyTorch does.

tests/works_with.py takes all of it, by both exporters and with FP16 and INT8, which takes hours.
"""
from __future__ import annotations

import math

import add_all
import numpy as np
import other_sources as own
import pytest
import torch
import works_with
import zoo

from graphs.surgeon import TOLERANCE, patch
from Results.tables import append_rows, read_rows

CASES = {case.name: case for case in zoo.CASES}
PADDED = 1  # the size at which every stage needs padding on both sides
# One of each kind that differs from the others in more than its layers: where it rolls, pads, merges, and what an
# exporter makes of it.
CHOSEN = ("timm_v1_4x8", "timm_v1_tanh", "timm_v2", "torchvision_v2", "hf_swinv2_backbone", "hf_clap", "mmdetection",
          "swinir_light")


def patched(case: zoo.Case, exporter: str, size: zoo.Size, model: torch.nn.Module, batch: int | None):
    graph = zoo.export(model, zoo.images(case, batch or 2, size), exporter, batch is None)
    return patch(graph, add_all.STEPS)


def assert_whole(case: zoo.Case, reports) -> None:
    """Nothing is left of what the model has."""
    found = works_with.counted(case, reports)
    assert {kind: found[kind] for kind in works_with.KINDS} == {
        kind: found[f"{kind}_of"] for kind in works_with.KINDS}, works_with.reasons(reports)


@pytest.mark.parametrize("name", CHOSEN)
def test_all_is_replaced_where_every_stage_is_padded(name):
    case = CASES[name]
    size = case.sizes[PADDED]
    model = zoo.model_of(case, size)
    batch = 3 if case.fixed_batch else None
    graph, reports = patched(case, "torchscript", size, model, batch)
    assert_whole(case, reports)
    expected = works_with.of_torch(model, case, size, [batch] if batch else [1, 3])
    # V2's cosine is multiplied by up to 100 before the softmax, so that rounding in another order counts more.
    tolerance = 5 * TOLERANCE if "v2" in name else TOLERANCE
    assert works_with.error_of(graph, case, size, expected) <= tolerance


def test_a_graph_of_the_dynamo_exporter_that_is_not_square():
    case = CASES["timm_v1_maps"]
    size = case.sizes[2]
    model = zoo.model_of(case, size)
    graph, reports = patched(case, "dynamo", size, model, None)
    assert_whole(case, reports)
    assert works_with.error_of(graph, case, size, works_with.of_torch(model, case, size, [1, 3])) <= TOLERANCE


@pytest.mark.parametrize("value", [-math.inf, float(torch.finfo(torch.float32).min)])
def test_a_mask_that_is_no_number_or_the_lowest_one(value, monkeypatch):
    """Many mask with -inf, or the lowest number of a type, in the stead of -100."""
    monkeypatch.setattr(own, "MASKED", value)
    case = CASES["detector"]
    size = case.sizes[PADDED]
    model = zoo.model_of(case, size)
    graph, reports = patched(case, "torchscript", size, model, 2)
    assert_whole(case, reports)
    assert works_with.error_of(graph, case, size, works_with.of_torch(model, case, size, [2])) <= TOLERANCE


@torch.no_grad()
def test_a_fault_would_show():
    """Every parameter of a model counts: without one the outputs are others, by far more than the tolerance."""
    case = CASES["detector"]
    size = case.sizes[PADDED]
    model, image = zoo.model_of(case, size), zoo.images(case, 1, size)
    before = zoo.tensors_of(model(image))
    for name, parameter in model.named_parameters():
        kept = parameter.clone()
        parameter.zero_()
        shares = [float((tensor - wanted).abs().max() / wanted.abs().max())
                  for tensor, wanted in zip(zoo.tensors_of(model(image)), before, strict=True)]
        parameter.copy_(kept)
        # The bias of the keys alone moves all scores of a query alike, which softmax does not see; it is part of qkv's.
        assert max(shares) > 100 * TOLERANCE, name


def test_models_of_other_repositories_pad_and_merge_as_they_say():
    """Merging by unfold is merging by blocks with its channels in another order (mmdetection 3)."""
    channels = 3
    blocks, unfold = zoo.randomized(own.BlockMerging(channels)), own.UnfoldMerging(channels)
    # Unfold puts a channel's (0,0) (0,1) (1,0) (1,1) side by side, the other four blocks (0,0) (1,0) (0,1) (1,1).
    order = [place * channels + channel for channel in range(channels) for place in (0, 2, 1, 3)]
    with torch.no_grad():
        unfold.norm.weight.copy_(blocks.norm.weight[order])
        unfold.norm.bias.copy_(blocks.norm.bias[order])
        unfold.reduction.weight.copy_(blocks.reduction.weight[:, order])
        x = torch.randn(2, 5 * 7, channels)
        np.testing.assert_allclose(unfold(x, 5, 7), blocks(x, 5, 7), atol=1e-5)


def test_a_page_shows_the_least_and_the_largest_of_the_sizes(tmp_path):
    rows = []
    for (height, width), attention, error, left in (((64, 64), 6, "1.0e-07", ""), ((76, 88), 4, "3.0e-07", "window: x"),
                                                    ((64, 128), 6, "nan", "")):
        row = {**dict.fromkeys(works_with.COLUMNS, ""), "name": "timm_v1", "exporter": "dynamo", "height": str(height),
               "width": str(width), "fp32_err": error if height != 64 or width == 64 else "2.0e-07", "int8_err": error,
               "left": left, "attention": str(attention), "attention_of": "6", "merging": "0", "merging_of": "0"}
        rows.append(row)
    append_rows(tmp_path / "t.csv", works_with.COLUMNS, rows)
    page = works_with.page(read_rows(tmp_path / "t.csv", works_with.COLUMNS))
    (line,) = [line for line in page.splitlines() if line.startswith("| timm: Swin |")]
    assert [cell.strip() for cell in line.split("|")[2:-1]] == [
        "dynamo", "64x64, 76x88, 64x128", "4 of 6", "-", "none", "-", "-", "3e-07", "- (-)", "NaN"]
    assert "- timm: Swin, dynamo: window: x." in page
