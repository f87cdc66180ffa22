"""The Attention and LayerNorm kernels by themselves, per shape of Small, against what PyTorch has for the same work.

    python TensorRT/Plugins/benchmark.py --batch 32      # needs a GPU; appends to Results/kernels.csv

Attention: qkv in image order to the input of proj. The peers are PyTorch's scaled_dot_product_attention (flash,
memory-efficient, cuDNN) and flex_attention with the same bias and shift mask. They are timed on q, k and v that are
rolled, partitioned and (V2) normalised already, so their times leave out copies that ours does not need.
LayerNorm: the residual Add with the LayerNorm after it (V1), and the LayerNorm with the Add after it (V2), against
x + residual and F.layer_norm, eager and compiled.

Fractions are of the card's own measured peaks: a large device-to-device copy, and a large FP16 matrix product. Bytes
count each input read once and each output written once; operations are the two matrix products of attention. The
error is the largest absolute one against FP64 on the same FP16 input.
"""
from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import flex_attention

sys.path.insert(1, str(Path(__file__).resolve().parents[2]))
from models.swin import shift_mask
from Results.tables import RESULTS, append_rows, git_commit, gpu_name, new_run_id, write_environment
from TensorRT.Plugins import swin_kernels as kernels
from utils import UserError, from_one, run_script, shown

COLUMNS = ("run_id", "commit", "gpu", "kernel", "model", "shape", "precision", "runner", "time_us_median",
           "gb_per_s", "bandwidth_fraction", "tflop_per_s", "arithmetic_fraction", "max_abs_err", "notes")
# Small: (model, tokens along a side, channels, window, shift) of every distinct attention, and of every LayerNorm.
ATTENTION = [(model, side, channels, window, shift)
             for model, window, sides in (("swinv1", 7, (56, 28, 14, 7)), ("swinv2", 8, (64, 32, 16, 8)))
             for side, channels in zip(sides, (96, 192, 384, 768))
             for shift in ((0, window // 2) if side > window else (0,))]
HEAD_DIM = 32


def time_us(run: Callable[[], object], bytes_touched: int) -> float:
    """Median time of one run in microseconds, from CUDA graphs of several runs that together overflow the L2 cache.

    A small tensor stays in L2 between the layers of a network too, so runs are not kept apart artificially.
    """
    runs = max(10, min(100, int(2e9 / max(bytes_touched, 1))))
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for _ in range(3):
            run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(runs):
            run()
    times = []
    for _ in range(12):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(1000 * start.elapsed_time(end) / runs)
    return statistics.median(times[2:])


def measured_peaks() -> tuple[float, float]:
    """(GB/s of a kernel that copies, bytes read plus written; TFLOP/s of an 8192^3 FP16 product of random numbers).

    Not Tensor.copy_: in a CUDA graph that is a memory copy node, which was a third slower than a kernel on an H200.
    """
    source = torch.randn(2**30, device="cuda", dtype=torch.half)
    target = torch.empty_like(source)
    copy_us = time_us(lambda: torch.neg(source, out=target), 4 * source.numel())
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.half) for _ in range(2))
    out = torch.empty_like(a)
    product_us = time_us(lambda: torch.mm(a, b, out=out), 2**28)
    return 4 * source.numel() / copy_us / 1e3, 2 * 8192**3 / product_us / 1e6


class Report:
    """Prints each measurement as it is made and collects the rows of Results/kernels.csv."""

    def __init__(self) -> None:
        self.peak_gb, self.peak_tflop = measured_peaks()
        self.rows: list[dict] = []
        self.common = {"run_id": new_run_id(), "commit": git_commit(), "gpu": gpu_name(), "precision": "fp16"}
        print(f"{self.common['gpu']}: copy {self.peak_gb:.0f} GB/s, FP16 product {self.peak_tflop:.0f} TFLOP/s")

    def add(self, kernel: str, model: str, shape: str, runner: str, microseconds: float, moved: int, operations: int,
            error: float, notes: str = "") -> None:
        gb, tflop = moved / microseconds / 1e3, operations / microseconds / 1e6
        self.rows.append({
            **self.common, "kernel": kernel, "model": model, "shape": shape, "runner": runner,
            "time_us_median": f"{microseconds:.2f}", "gb_per_s": f"{gb:.0f}",
            "bandwidth_fraction": f"{gb / self.peak_gb:.3f}", "tflop_per_s": f"{tflop:.1f}",
            "arithmetic_fraction": f"{tflop / self.peak_tflop:.3f}", "max_abs_err": f"{error:.3g}", "notes": notes,
        })
        print(f"{kernel:14} {model} {shape:32} {runner:20} {microseconds:9.2f} us  {gb:6.0f} GB/s "
              f"({gb / self.peak_gb:4.0%})  {tflop:6.1f} TFLOP/s  error {error:.2g}  {notes}", flush=True)


def windows_of(qkv: torch.Tensor, side: int, window: int, shift: int) -> torch.Tensor:
    """[B, H*W, 3C] -> q, k, v stacked: [3, B*nW, nH, N, d]."""
    batch, _, width = qkv.shape
    x = qkv.reshape(batch, side, side, width).roll((-shift, -shift), (1, 2))
    x = x.reshape(batch, side // window, window, side // window, window, 3, width // 3 // HEAD_DIM, HEAD_DIM)
    return x.permute(5, 0, 1, 3, 6, 2, 4, 7).reshape(3, -1, width // 3 // HEAD_DIM, window**2, HEAD_DIM)


def image_of(windows: torch.Tensor, batch: int, side: int, window: int, shift: int) -> torch.Tensor:
    """[B*nW, nH, N, d] -> [B, H*W, C]."""
    heads = windows.shape[1]
    x = windows.reshape(batch, side // window, side // window, heads, window, window, HEAD_DIM)
    x = x.permute(0, 1, 4, 2, 5, 3, 6).reshape(batch, side, side, heads * HEAD_DIM)
    return x.roll((shift, shift), (1, 2)).reshape(batch, side * side, heads * HEAD_DIM)


def attention_peers(q, k, v, bias: torch.Tensor, mask: torch.Tensor | None,
                    scale: float) -> dict[str, Callable[[], torch.Tensor]]:
    """PyTorch's implementations on partitioned q, k, v [B*nW, nH, N, d]; bias [nH, N, N], mask [nW, N, N] or None."""
    count, _, tokens, _ = q.shape
    addend = bias[None] if mask is None else bias[None] + mask[:, None]  # (1 or nW, nH, N, N)
    # Rows of the mask padded to a multiple of 8 elements, which the memory-efficient kernel wants.
    padded = F.pad(addend, (0, -tokens % 8)).half()
    padded = padded.repeat(count // padded.shape[0], 1, 1, 1)[..., :tokens]

    def sdpa(backend: SDPBackend) -> Callable[[], torch.Tensor]:
        def run() -> torch.Tensor:
            with sdpa_kernel(backend):
                return F.scaled_dot_product_attention(q, k, v, attn_mask=padded, scale=scale)
        return run

    half_bias, half_mask = bias.half(), None if mask is None else mask.half()

    def score(score, window, head, query, key):
        score = score + half_bias[head, query, key]
        return score if half_mask is None else score + half_mask[window % half_mask.shape[0], query, key]

    flex = torch.compile(flex_attention, dynamic=False)
    return {
        "sdpa-flash": sdpa(SDPBackend.FLASH_ATTENTION), "sdpa-mem-efficient": sdpa(SDPBackend.EFFICIENT_ATTENTION),
        "sdpa-cudnn": sdpa(SDPBackend.CUDNN_ATTENTION),
        "flex-attention": lambda: flex(q, k, v, score_mod=score, scale=scale),
    }


def benchmark_attention(report: Report, batch: int) -> None:
    for model, side, channels, window, shift in ATTENTION:
        torch.manual_seed(0)
        heads, tokens, cosine = channels // HEAD_DIM, window**2, model == "swinv2"
        qkv = torch.randn(batch, side * side, 3 * channels, device="cuda", dtype=torch.half)
        bias = torch.randn(heads, tokens, tokens, device="cuda")
        mask = shift_mask(side, window, shift)[:, 0].cuda() if shift else None
        logit_scale = torch.full((heads,), 10.0, device="cuda") if cosine else None
        scale = 1.0 if cosine else HEAD_DIM**-0.5

        q, k, v = windows_of(qkv.double(), side, window, shift)
        if cosine:
            q, k = F.normalize(q, dim=-1) * logit_scale.double()[:, None, None], F.normalize(k, dim=-1)
        logits = q @ k.transpose(-2, -1) * scale + bias
        if mask is not None:
            logits = (logits.reshape(batch, -1, *logits.shape[1:]) + mask[:, None]).reshape(logits.shape)
        reference = logits.softmax(-1) @ v  # (B*nW, nH, N, d) FP64
        q, k, v = q.half().contiguous(), k.half().contiguous(), v.half().contiguous()

        y = torch.empty(batch, side * side, channels, device="cuda", dtype=torch.half)
        padded_bias = F.pad(bias, (0, -tokens % 8)).contiguous()

        def ours(qkv=qkv, bias=padded_bias, logit_scale=logit_scale, y=y, side=side, heads=heads, window=window,
                 shift=shift, scale=scale) -> None:
            kernels.attention(qkv, bias, logit_scale, y, side, side, heads, window, shift, scale, -100.0)

        shape = f"[{batch}, {side}x{side}, {channels}] w{window} s{shift}"
        moved = qkv.numel() * 2 + y.numel() * 2
        operations = 4 * batch * side * side * tokens * channels
        ours()
        error = (y - image_of(reference, batch, side, window, shift)).abs().max().item()
        report.add("SwinAttention", model, shape, "swin-plugins", time_us(ours, moved), moved, operations, error)
        for name, peer in attention_peers(q, k, v, bias, mask, scale).items():
            try:
                error = (peer().double() - reference).abs().max().item()
                microseconds = time_us(peer, moved)
            except RuntimeError as problem:
                print(f"SwinAttention  {model} {shape:32} {name:20} does not run: {str(problem).splitlines()[0]}")
                continue
            report.add("SwinAttention", model, shape, name, microseconds, moved, operations, error,
                       "q, k, v partitioned beforehand")


def benchmark_layernorm(report: Report, batch: int) -> None:
    def torch_add_norm(x, residual, gamma, beta):
        total = x + residual
        return total, F.layer_norm(total, total.shape[-1:], gamma, beta, 1e-5)

    def torch_norm_add(x, residual, gamma, beta):
        return residual + F.layer_norm(x, x.shape[-1:], gamma, beta, 1e-5)

    for model, sides in (("swinv1", (56, 28, 14, 7)), ("swinv2", (64, 32, 16, 8))):
        for side, channels in zip(sides, (96, 192, 384, 768)):
            torch.manual_seed(0)
            x, residual = (torch.randn(batch, side * side, channels, device="cuda", dtype=torch.half) for _ in range(2))
            gamma, beta = torch.randn(2, channels, device="cuda")
            y, total = torch.empty_like(x), torch.empty_like(x)
            shape = f"[{batch}, {side}x{side}, {channels}]"
            if model == "swinv1":
                kernel, plain, tensors = "SwinAddLayerNorm", torch_add_norm, 4
                summed = x.double() + residual.double()
                reference = F.layer_norm(summed, (channels,), gamma.double(), beta.double(), 1e-5)

                def ours(x=x, residual=residual, gamma=gamma, beta=beta, total=total, y=y) -> None:
                    kernels.add_layernorm(x, residual, gamma, beta, total, y, 1e-5)
            else:
                kernel, plain, tensors = "SwinLayerNormAdd", torch_norm_add, 3
                normal = F.layer_norm(x.double(), (channels,), gamma.double(), beta.double(), 1e-5)
                reference = residual.double() + normal

                def ours(x=x, residual=residual, gamma=gamma, beta=beta, y=y) -> None:
                    kernels.layernorm_add(x, residual, gamma, beta, y, 1e-5)

            moved = tensors * x.numel() * 2
            ours()
            error = (y - reference).abs().max().item()
            report.add(kernel, model, shape, "swin-plugins", time_us(ours, moved), moved, 0, error)
            arguments = (x, residual, gamma.half(), beta.half())
            for name, peer in (("torch-eager", plain), ("torch-compile", torch.compile(plain, dynamic=False))):
                out = peer(*arguments)
                error = ((out[1] if isinstance(out, tuple) else out).double() - reference).abs().max().item()
                microseconds = time_us(lambda peer=peer, arguments=arguments: peer(*arguments), moved)
                report.add(kernel, model, shape, name, microseconds, moved, 0, error)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=from_one, default=32, help="images (default: %(default)s)")
    batch = parser.parse_args().batch
    if not torch.cuda.is_available():
        raise UserError("no GPU that PyTorch can use; run this on a GPU host")
    torch._dynamo.config.cache_size_limit = 64  # one compiled flex_attention for each shape
    report = Report()
    benchmark_attention(report, batch)
    benchmark_layernorm(report, batch)
    append_rows(RESULTS / "kernels.csv", COLUMNS, report.rows)
    write_environment(report.common["run_id"], {
        "torch": torch.__version__, "copy_gb_per_s": f"{report.peak_gb:.0f}",
        "fp16_product_tflop_per_s": f"{report.peak_tflop:.0f}",
    })
    print(f"appended {len(report.rows)} rows to {shown(RESULTS / 'kernels.csv')}")


if __name__ == "__main__":
    run_script(main)
