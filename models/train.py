"""Train a variant from scratch on crops of the packaged photographs (data/photo_crops.py).

    python models/train.py --cfg models/swin_micro.yaml --half     # writes models/checkpoints/swinv1_micro.safetensors

It gives real, trained weights where the official ones cannot be had, so that numerical claims need not rest on random
ones. Not a recipe for ImageNet: 18 photographs, no dropout, no drop path. A full-size variant takes minutes on a GPU,
a micro one minutes there or an hour on a CPU. The photographs lie on the device; cutting, resizing, flipping and
colour jitter happen there, batch by batch. On a machine without scikit-image, see data/photo_crops.py --export.
"""
from __future__ import annotations

import argparse
import math
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

sys.path.insert(1, str(Path(__file__).resolve().parents[1]))
from config import DEFAULT_CFG, get_config
from data.images import IMAGENET_MEAN, IMAGENET_STD
from data.photo_crops import CLASSES, CROP_SIDE, held_out_batch, photo, tiles
from models.build import build_model
from utils import ROOT, Progress, UserError, check_writable, run_script, shown, whole_file

# The highest learning rate is this over EMBED_DIM, smaller for wider models: 1e-3 for the micro variants, 3.3e-4 for
# Small. At 1e-3 V1 Small hardly learnt in a trial at 32 x 32, at 3e-4 it did.
WIDTH_TIMES_RATE = 0.032
WEIGHT_DECAY = 0.05
LABEL_SMOOTHING = 0.05
MAX_GRADIENT_NORM = 1.0
WARM_UP = 0.1  # share of the steps
JITTER = 0.2  # brightness, contrast and saturation change by up to this share
LARGEST_FLAG = 1e30  # a learning rate beyond it does not fit the optimizer's FP32
STRETCH = 4 / 3  # greatest ratio of a training crop's sides


def resize_matrix(start: Tensor, length: Tensor, source: int, target: int) -> Tensor:
    """Bicubic resizing of [start, start + length) to `target` pixels as a matrix, for a batch of intervals.

    The weights are those of Pillow's BICUBIC (a = -0.5, support widened when shrinking), with the interval cut out
    first: nothing outside it has a weight.

    Args:
        start, length: float [B], in source pixels.
        source, target: number of columns and rows.
    Returns:
        float [B, target, source]; every row sums to 1.
    """
    scale = (length / target)[:, None, None]
    support = scale.clamp(min=1)
    pixel = torch.arange(source, device=start.device) + 0.5
    centre = start[:, None, None] + (torch.arange(target, device=start.device)[:, None] + 0.5) * scale
    x = ((pixel - centre) / support).abs()  # (B, target, source)
    weights = torch.where(x < 1, (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2)
    inside = (pixel > start[:, None, None]) & (pixel < (start + length)[:, None, None])
    weights = weights * ((x < 2) & inside)
    return weights / weights.sum(dim=-1, keepdim=True)


class TrainCrops:
    """Random, augmented training crops, made on the device in batches.

    Args:
        img_size: S.
        device: where the tiles lie and the batches are made.
        seed: fixes the sequence of batches on one device type and version of torch.
    """

    def __init__(self, img_size: int, device: torch.device, seed: int) -> None:
        self.img_size = img_size
        self.rng = torch.Generator(device).manual_seed(seed)
        cut, owner = [], []
        for label, name in enumerate(CLASSES):
            pixels = torch.tensor(photo(name)).permute(2, 0, 1)
            for left, top, width, height in tiles(pixels.shape[2], pixels.shape[1], "train"):
                cut.append(pixels[:, top:top + height, left:left + width])
                owner.append(label)
        self.side = max(max(tile.shape) for tile in cut)  # K
        self.tiles = torch.stack([F.pad(tile, (0, self.side - tile.shape[2], 0, self.side - tile.shape[1]))
                                  for tile in cut]).to(device)  # uint8 [tiles, 3, K, K]
        self.sizes = torch.tensor([tile.shape[1:] for tile in cut], device=device)  # [tiles, 2]: height, width
        counts = torch.bincount(torch.tensor(owner))
        self.counts, self.first = counts.to(device), (counts.cumsum(0) - counts).to(device)  # of a class's tiles
        self.mean = torch.tensor(IMAGENET_MEAN, device=device)[:, None, None]
        self.std = torch.tensor(IMAGENET_STD, device=device)[:, None, None]

    def batch(self, count: int) -> tuple[Tensor, Tensor]:
        """Images float32 [count, 3, S, S], augmented and normalised, and labels int64 [count]."""
        labels = torch.randint(len(CLASSES), (count,), generator=self.rng, device=self.tiles.device)
        tile = self.first[labels] + (self._uniform(count, 0, 1) * self.counts[labels]).long()
        images = self._crop(self.tiles[tile] / 255, self.sizes[tile])
        return (self._jitter(images) - self.mean) / self.std, labels

    def _uniform(self, count: int, low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, generator=self.rng, device=self.tiles.device)

    def _crop(self, images: Tensor, sizes: Tensor) -> Tensor:
        """Random boxes in [B, 3, K, K], of which `sizes` is filled, to [B, 3, S, S] from 0 to 1; half are mirrored."""
        count = len(images)
        side = self._uniform(count, *CROP_SIDE["train"]) * sizes.min(dim=1).values
        stretch = torch.exp(self._uniform(count, -1, 1) * math.log(STRETCH) / 2)
        matrices = []
        for axis, length in enumerate((side * stretch, side / stretch)):
            length = length.minimum(sizes[:, axis]).round()
            start = (self._uniform(count, 0, 1) * (sizes[:, axis] - length + 1)).floor()
            matrices.append(resize_matrix(start, length, self.side, self.img_size))
        down, right = matrices
        mirrored = self._uniform(count, 0, 1) < 0.5
        right = torch.where(mirrored[:, None, None], right.flip(1), right)
        rows = down[:, None] @ images  # (B, 3, S, K)
        return (rows @ right[:, None].transpose(2, 3)).clamp(0, 1)

    def _jitter(self, images: Tensor) -> Tensor:
        """Brightness, contrast and saturation of [B, 3, S, S], each by a factor of its own per image."""
        brightness, contrast, saturation = (
            self._uniform(len(images), 1 - JITTER, 1 + JITTER)[:, None, None, None] for _ in range(3))
        images = images * brightness
        images = torch.lerp(images.mean(dim=(1, 2, 3), keepdim=True), images, contrast)
        images = torch.lerp(images.mean(dim=1, keepdim=True), images, saturation)
        return images.clamp(0, 1)


def learning_rate_share(step: int, steps: int) -> float:
    """What the learning rate is multiplied by in a step from 0 to steps - 1: linear warm-up, then half a cosine."""
    warm_up = max(1, round(WARM_UP * steps))
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up)))


def make_optimizer(model: nn.Module, learning_rate: float) -> torch.optim.AdamW:
    """AdamW; weight decay only on the matrices of Linear and Conv2d layers, as in the official code."""
    decayed = {id(module.weight) for name, module in model.named_modules()
               if isinstance(module, (nn.Linear, nn.Conv2d)) and "cpb_mlp" not in name}
    groups = [{"params": [p for p in model.parameters() if (id(p) in decayed) == decay],
               "weight_decay": WEIGHT_DECAY if decay else 0.0} for decay in (True, False)]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.999))


def train(model: nn.Module, crops: TrainCrops, *, steps: int, batch_size: int, learning_rate: float,
          precision: str) -> None:
    """Train in place, on the device of the crops; prints the progress every few seconds.

    Raises:
        UserError: the loss is not finite, or the batch does not fit the GPU.
    """
    device = crops.tiles.device
    optimizer = make_optimizer(model, learning_rate)
    model.train()
    progress = Progress(steps, "steps", every_s=5)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * learning_rate_share(step, steps)
        try:
            images, labels = crops.batch(batch_size)
            with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
                loss = F.cross_entropy(model(images), labels, label_smoothing=LABEL_SMOOTHING)
            optimizer.zero_grad()
            loss.backward()
        except torch.OutOfMemoryError as error:
            raise UserError(f"--batch-size {batch_size}: does not fit the GPU; give a smaller one") from error
        nn.utils.clip_grad_norm_(model.parameters(), MAX_GRADIENT_NORM)
        optimizer.step()
        if progress.is_due():
            value = loss.item()  # waits for the GPU, so the clock below is right
            if not math.isfinite(value):
                raise UserError(f"the loss is {value} at step {step + 1}; give a smaller --lr than {learning_rate:g}")
            print(f"step {step + 1:5d}/{steps}  loss {value:.3f}  lr {optimizer.param_groups[0]['lr']:.1e}  "
                  f"{(step + 1) * batch_size / progress.seconds:.0f} images/s  {progress.left}", flush=True)
    model.eval()
    broken = [name for name, value in model.state_dict().items() if not value.isfinite().all()]
    if broken:  # the last step comes after the last loss
        raise UserError(f"{len(broken)} tensors are no finite numbers after {steps} steps, {broken[0]} first; give a "
                        f"smaller --lr than {learning_rate:g}")


def save(weights: dict[str, Tensor], output: Path, metadata: dict[str, str]) -> None:
    """Write a checkpoint; where that fails, as on a full disk, to another folder, so that no training is lost.

    Raises:
        UserError: it was not written to `output`; says where it lies.
    """
    problems = []
    for path in (output, *(Path(folder) / output.name for folder in (Path.cwd(), Path.home(), tempfile.gettempdir()))):
        if path is not output and path.exists():
            continue
        try:
            with whole_file(path) as partial:
                save_file(weights, partial, metadata=metadata)
        except (UserError, OSError, SafetensorError) as error:
            problems.append(str(error))
            continue
        if problems:
            raise UserError(f"{shown(output)}: could not be written ({problems[0]}); what was trained lies in {path}")
        return
    raise UserError(f"{shown(output)}: could not be written ({problems[0]}), nor anywhere else; the training is lost")


@torch.inference_mode()
def held_out_top1(model: nn.Module, count: int, device: torch.device) -> list[float]:
    """FP32 top-1, 0 to 1, over the first `count` held-out crops, for each class.

    Raises:
        UserError: the model gives NaN or infinity.
    """
    images, labels = held_out_batch(count, model.img_size)
    logits = torch.cat([model(torch.from_numpy(part).to(device)).cpu() for part in
                        (images[i:i + 64] for i in range(0, count, 64))])
    if not logits.isfinite().all():
        raise UserError("the trained model gives NaN or infinity for held-out crops; give a smaller --lr")
    right = logits.argmax(dim=1) == torch.from_numpy(labels)
    return [right[labels == label].float().mean().item() for label in range(len(CLASSES))]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--type", choices=tuple(DEFAULT_CFG), help="model type; with no --cfg, its Small variant")
    parser.add_argument("--cfg", type=Path, metavar="YAML", help="the variant, e.g. models/swinv2_micro.yaml")
    parser.add_argument("--opts", nargs="+", action="extend", default=[], metavar=("KEY", "VALUE"),
                        help="override configuration keys; NUM_CLASSES is that of the photographs")
    parser.add_argument("--output", type=Path, metavar="FILE",
                        help="safetensors file to write (default: models/checkpoints/<MODEL.NAME>.safetensors)")
    parser.add_argument("--half", action="store_true", help="store the weights in FP16, half the size")
    parser.add_argument("--steps", type=int, default=800, help="optimizer steps (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=128, help="images per step (default: %(default)s)")
    parser.add_argument("--lr", type=float, help=f"highest learning rate (default: {WIDTH_TIMES_RATE} / EMBED_DIM)")
    parser.add_argument("--seed", type=int, default=0, help="of weights and crops (default: %(default)s)")
    parser.add_argument("--count", type=int, default=1800, help="held-out crops to test on (default: %(default)s)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto",
                        help="default: the GPU if torch finds one")
    parser.add_argument("--precision", choices=("bf16", "fp32"),
                        help="bf16: autocast, weights stay FP32 (default: bf16 on a GPU, fp32 on a CPU)")
    args = parser.parse_args(arguments)
    for flag in ("steps", "batch_size", "lr", "count"):
        value = getattr(args, flag)
        if value is not None and not 0 < value <= LARGEST_FLAG:  # NaN never is
            parser.error(f"--{flag.replace('_', '-')} must be above zero and at most {LARGEST_FLAG:g}")
    if args.count < len(CLASSES):
        parser.error(f"--count must be at least {len(CLASSES)}, one crop of every class")
    config = get_config(args.cfg, args.opts, args.type)
    if "MODEL.NUM_CLASSES" in config.OPTS and len(CLASSES) != config.MODEL.NUM_CLASSES:
        raise UserError(f"--opts MODEL.NUM_CLASSES {config.MODEL.NUM_CLASSES}: the photographs are of {len(CLASSES)} "
                        "classes; leave it out")
    config.defrost()
    config.MODEL.NUM_CLASSES = len(CLASSES)
    if args.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch finds no GPU here; give --device cpu")
    learning_rate = args.lr or WIDTH_TIMES_RATE / config.MODEL.SWIN.EMBED_DIM
    device = torch.device(args.device if args.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu")
    precision = args.precision or ("bf16" if device.type == "cuda" else "fp32")
    output = args.output or ROOT / "models" / "checkpoints" / f"{config.MODEL.NAME}.safetensors"
    if output.suffix != ".safetensors":
        raise UserError(f"{output}: give --output a name that ends in .safetensors")

    check_writable(output)
    torch.manual_seed(args.seed)
    model = build_model(config).to(device)
    crops = TrainCrops(model.img_size, device, args.seed)
    parameters = sum(p.numel() for p in model.parameters()) / 1e6
    print(f"{config.MODEL.NAME}: {parameters:.1f} M parameters, {model.img_size} x {model.img_size}, on {device} in "
          f"{precision}; {len(crops.tiles)} training tiles of {len(CLASSES)} photographs", flush=True)
    start = time.perf_counter()
    train(model, crops, steps=args.steps, batch_size=args.batch_size, learning_rate=learning_rate, precision=precision)
    seconds = time.perf_counter() - start
    weights = {key: value.half() if args.half else value for key, value in model.state_dict().items()}
    if not all(value.isfinite().all() for value in weights.values()):
        raise UserError("--half: the weights are beyond FP16 (65504); leave it out, or give a smaller --lr")
    model.load_state_dict(weights)  # so that what is tested is what is written
    by_class = held_out_top1(model, args.count, device)
    top1, worst = sum(by_class) / len(CLASSES), min(range(len(CLASSES)), key=by_class.__getitem__)
    save(weights, output, {
        "made_by": "models/train.py", "model": config.MODEL.NAME, "type": config.MODEL.TYPE,
        "img_size": str(model.img_size), "classes": ",".join(CLASSES), "held_out_top1": f"{top1:.4f}",
        "steps": str(args.steps), "batch_size": str(args.batch_size), "lr": f"{learning_rate:g}",
        "seed": str(args.seed), "precision": precision, "torch": torch.__version__,
    })
    print(f"trained in {seconds:.0f} s; held-out top-1 {100 * top1:.2f} % over {args.count} crops, worst class "
          f"{CLASSES[worst]} {100 * by_class[worst]:.1f} %; wrote {shown(output)} "
          f"({output.stat().st_size / 2**20:.1f} MiB)")


if __name__ == "__main__":
    run_script(main)
