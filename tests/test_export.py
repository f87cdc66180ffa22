"""onnx/export_onnx.py: the graph computes what PyTorch computes, and no more; bad input is one line.

PyTorch's unfolded model is the reference throughout. Tolerance: 1e-5 of the largest |logit|, as onnx_test.py has it;
FP32 sums of some hundred terms in another order differ by about 1e-6.
"""
from __future__ import annotations

import copy
import resource
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import export_onnx
import numpy as np
import onnx
import onnx_test
import onnxruntime
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from config import get_config
from models.build import build_model
from utils import ROOT, UserError

MICRO = {"swinv1": ROOT / "models" / "swin_micro.yaml", "swinv2": ROOT / "models" / "swinv2_micro.yaml"}
SMALL = {"swinv1": ROOT / "models" / "swin.yaml", "swinv2": ROOT / "models" / "swinv2.yaml"}

# The micro models cut down to two stages: shifted and not, patch merging, a stage of one window.
TWO_STAGES = ["MODEL.SWIN.DEPTHS", "[2, 1]", "MODEL.SWIN.NUM_HEADS", "[1, 2]",
              "MODEL.SWIN.PRETRAINED_WINDOW_SIZES", "[0, 0]", "DATA.IMG_SIZE"]
OPTS = {"swinv1": [*TWO_STAGES, "56"], "swinv2": [*TWO_STAGES, "64"]}


@pytest.fixture(scope="module")
def models(randomize) -> dict[str, nn.Module]:
    """Both types, cut down, with weights by which each part shows in the logits."""
    return {kind: randomize(build_model(get_config(MICRO[kind], OPTS[kind]))) for kind in MICRO}


@pytest.fixture(scope="module")
def exported(models):
    """exported(kind, opset): the ONNX model, exported once."""
    made = {}

    def get(kind: str, opset: int) -> onnx.ModelProto:
        if (kind, opset) not in made:
            made[kind, opset] = export_onnx.export(copy.deepcopy(models[kind]), opset, f"{kind}_test")
        return made[kind, opset]

    return get


@pytest.fixture
def large_files(tmp_path) -> Iterator[Path]:
    """A folder that is emptied again: pytest would keep the files of its last three runs."""
    yield tmp_path
    for path in tmp_path.iterdir():
        path.unlink()


def images(model: nn.Module, batch: int) -> torch.Tensor:
    return torch.randn(batch, 3, model.img_size, model.img_size, generator=torch.Generator().manual_seed(batch))


@pytest.mark.parametrize("opset", export_onnx.OPSETS)
@pytest.mark.parametrize("kind", MICRO)
def test_equals_pytorch_at_every_opset_and_any_batch(models, exported, kind, opset):
    model = exported(kind, opset)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", opset)]
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    for batch in (1, 2, 5):
        x = images(models[kind], batch)
        with torch.inference_mode():
            expected = models[kind](x).numpy()
        (logits,) = session.run(None, {"input": x.numpy()})
        assert logits.shape == expected.shape
        assert np.abs(logits - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("kind", MICRO)
def test_input_and_output_are_as_promised(models, exported, kind):
    graph = exported(kind, 17).graph
    assert graph.name == f"{kind}_test"
    (entry,), (result,) = graph.input, graph.output
    size = models[kind].img_size
    for value, name, shape in ((entry, "input", ["batch", 3, size, size]), (result, "logits", ["batch", 18])):
        assert value.name == name
        assert value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
        assert [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim] == shape


@pytest.mark.parametrize("opset", (12, 17))
@pytest.mark.parametrize("kind", MICRO)
def test_what_does_not_depend_on_the_input_is_a_constant(exported, kind, opset):
    graph = exported(kind, opset).graph
    computed = {"input"}
    for node in graph.node:  # in topological order
        assert computed & set(node.input), f"{node.name} depends on no input"
        computed |= set(node.output)
    operators = Counter(node.op_type for node in graph.node)
    # V2's position bias would show as Sigmoid, its scale as Exp, a batch frozen or computed as Shape.
    assert not {"Sigmoid", "Exp", "Relu", "Shape", "Identity", "Constant", "Expand"} & set(operators)


@pytest.mark.parametrize("kind", MICRO)
def test_layernorm_is_one_node_from_opset_17_on(models, exported, kind):
    norms = sum(isinstance(module, nn.LayerNorm) for module in models[kind].modules())
    assert Counter(node.op_type for node in exported(kind, 17).graph.node)["LayerNormalization"] == norms
    assert Counter(node.op_type for node in exported(kind, 16).graph.node)["LayerNormalization"] == 0
    assert Counter(node.op_type for node in exported(kind, 16).graph.node)["Sqrt"] == norms


@pytest.mark.parametrize("kind", MICRO)
def test_names_are_those_of_the_modules_and_weights(models, exported, kind):
    graph = exported(kind, 17).graph
    nodes = {node.name: node for node in graph.node}
    assert len(nodes) == len(graph.node)
    for module in ("attn/qkv", "attn/proj", "mlp/fc1", "mlp/fc2"):
        node = nodes[f"/layers.0/blocks.1/{module}/MatMul"]
        assert node.input[1] == f"layers.0.blocks.1.{module.replace('/', '.')}.weight.T"
        assert list(node.output) == [f"/layers.0/blocks.1/{module}/MatMul_output_0"]
    tensors = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    folded = ("q_bias", "v_bias", "logit_scale", "relative_position_bias_table")
    for name, weight in models[kind].state_dict().items():
        if name.endswith(folded) or "cpb_mlp" in name or (kind == "swinv2" and name.endswith("qkv.bias")):
            continue
        found = tensors[name] if name in tensors else tensors[f"{name}.T"].T
        assert np.array_equal(found, weight.numpy()), name
    assert tensors["layers.0.blocks.1.attn.relative_position_bias"].shape[1:] == (models[kind].layers[0].blocks[1]
                                                                                   .attn.window_size**2,) * 2
    assert "layers.0.blocks.1.attn.attn_mask" in tensors
    assert "layers.0.blocks.0.attn.attn_mask" not in tensors


def test_the_same_model_gives_the_same_file(models, exported):
    again = export_onnx.export(copy.deepcopy(models["swinv2"]), 17, "swinv2_test")
    assert again.SerializeToString() == exported("swinv2", 17).SerializeToString()


@pytest.mark.parametrize(("kind", "opset"), [("swinv1", 12), ("swinv2", 17)])
def test_small_passes_onnx_test(randomize, large_files, capsys, kind, opset):
    """Small's size and depth; what each opset makes of each type, the cut-down models show above."""
    checkpoint = large_files / "small.safetensors"
    model = randomize(build_model(get_config(SMALL[kind])))
    save_file({name: weight.contiguous() for name, weight in model.state_dict().items()}, checkpoint)
    path = large_files / "small.onnx"
    chosen = ["--cfg", str(SMALL[kind]), "--resume", str(checkpoint)]
    export_onnx.main([*chosen, "--opset", str(opset), "--output", str(path)])
    assert f"opset {opset}" in capsys.readouterr().out
    assert len(onnx.load(path).graph.node) < 1500
    onnx_test.main([*chosen, "--onnx", str(path), "--batches", "1,2"])
    assert "PASS" in capsys.readouterr().out


def test_prints_what_it_read_and_wrote(tmp_path, capsys):
    path = tmp_path / "new" / "micro.onnx"
    export_onnx.main(["--cfg", str(MICRO["swinv1"]), "--output", str(path)])
    onnx.checker.check_model(str(path))
    out = capsys.readouterr().out
    assert "swinv1_micro.safetensors" in out and str(path) in out and f"{len(onnx.load(path).graph.node)} nodes" in out
    assert [file.name for file in path.parent.iterdir()] == ["micro.onnx"]


@pytest.mark.parametrize("opset", ("11", "18", "99", "-17", "17.0", "latest"))
def test_other_opsets_are_refused(opset):
    with pytest.raises(UserError, match=r"choose from 12 to 17"):
        export_onnx.main(["--type", "swinv1", f"--opset={opset}"])


@pytest.mark.parametrize("name", ("model.pth", "model"))
def test_output_must_be_called_onnx(tmp_path, name):
    with pytest.raises(UserError, match=r"\.onnx"):
        export_onnx.main(["--cfg", str(MICRO["swinv1"]), "--output", str(tmp_path / name)])


def run(*arguments: str | Path, limit_bytes: int | None = None) -> subprocess.CompletedProcess:
    """The script as a person runs it; `limit_bytes` is the largest file that it can write, as on a full disk."""
    def limit() -> None:
        if limit_bytes is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes))

    command = [sys.executable, str(ROOT / "onnx" / "export_onnx.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, preexec_fn=limit)


def test_a_full_disk_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "micro.onnx"
    path.write_text("old")
    done = run("--cfg", MICRO["swinv1"], "--output", path, limit_bytes=1_000_000)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1 and str(path) in done.stderr and "could not be written" in done.stderr
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_an_unwritable_folder_is_one_line(tmp_path, as_a_script):
    (tmp_path / "file").write_text("")
    done = as_a_script(export_onnx, "--cfg", MICRO["swinv1"], "--output", tmp_path / "file" / "micro.onnx")
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1 and "cannot be written" in done.stderr


def test_a_checkpoint_of_another_model_is_one_line(tmp_path, as_a_script):
    path = tmp_path / "wrong.onnx"
    done = as_a_script(export_onnx, "--cfg", MICRO["swinv1"], "--output", path,
                       "--resume", ROOT / "models" / "checkpoints" / "swinv2_micro.safetensors")
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1 and "swinv2_micro.safetensors" in done.stderr
    assert not path.exists()
