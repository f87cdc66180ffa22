"""Image files: list them, load them, and make of them what the models read."""
from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import numpy as np

from utils import UserError, existing_file

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")


def list_images(folder: str | Path) -> list[Path]:
    """The image files of a folder and of the folders in it (ImageNet layout, or flat), sorted by their path in it.

    A file is an image by its suffix (IMAGE_SUFFIXES, in any case). Hidden files and folders are left out.

    Raises:
        UserError: the folder is missing, is not one, or holds no image.
    """
    folder = Path(folder)
    if not folder.exists():
        raise UserError(f"{folder}: no such folder; give a folder of images")
    if not folder.is_dir():
        raise UserError(f"{folder}: is not a folder; give a folder of images")
    inside = [path.relative_to(folder) for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES]
    images = [folder / name for name in sorted(inside, key=lambda name: name.as_posix())
              if not any(part.startswith(".") for part in name.parts) and (folder / name).is_file()]
    if not images:
        raise UserError(f"{folder}: holds no image ({', '.join(IMAGE_SUFFIXES)}); give a folder of images")
    return images


def load_image(path: str | Path):
    """Read an image file as an 8-bit RGB PIL.Image, as torchvision's loader does: Image.open(path).convert("RGB").

    So an EXIF rotation is not applied, transparency is dropped, grey becomes three equal channels, and CMYK and
    palette colours become RGB. Files of 16-bit grey differ on purpose: Pillow's conversion clips them at 255, which
    leaves a white picture; here 0..65535 becomes 0..255.

    Raises:
        UserError: no such file, not an image, truncated, or pixels without a fixed range (floats, 32-bit integers).
    """
    return read_image(existing_file(path, "an image"), str(path))


def read_image(source: Path | BinaryIO, name: str):
    """`load_image` of a path or of an open file, which messages call `name`."""
    from PIL import Image

    try:
        with Image.open(source) as image:
            if image.mode == "F":
                raise UserError(f"{name}: has float pixels, whose range is unknown; save it with 8 or 16 bits")
            if image.mode != "I" and not image.mode.startswith("I;16"):
                return image.convert("RGB")
            grey = np.asarray(image).astype(np.int64)
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise UserError(f"{name}: cannot be read as an image ({error}); replace or remove it") from error
    if grey.min() < 0 or grey.max() > 65535:
        raise UserError(f"{name}: has 32-bit pixels, whose range is unknown; save it with 8 or 16 bits")
    return Image.fromarray(((grey * 255 + 32767) // 65535).astype(np.uint8)).convert("RGB")


def resize_and_crop(image, img_size: int | tuple[int, int]) -> np.ndarray:
    """A PIL.Image to uint8 [H, W, 3], as the evaluation transform of the official code does it for squares.

    Bicubic to 256/224 of the size on the side that then still covers it, then the centre; the official configurations
    at 384 set TEST.CROP to False instead: the whole image, squeezed to the square. Source: data/build.py and configs/
    of microsoft/Swin-Transformer; rounding as in torchvision's Resize and CenterCrop.

    Args:
        img_size: side in pixels, or height and width.
    """
    from PIL import Image

    high, wide = (img_size, img_size) if isinstance(img_size, int) else img_size
    if min(high, wide) >= 384:
        return np.asarray(image.resize((wide, high), Image.Resampling.BICUBIC))
    tall, broad = int(256 / 224 * high), int(256 / 224 * wide)
    if tall * image.width >= broad * image.height:
        size = (int(tall * image.width / image.height), tall)
    else:
        size = (broad, int(broad * image.height / image.width))
    image = image.resize(size, Image.Resampling.BICUBIC)
    left, top = round((image.width - wide) / 2), round((image.height - high) / 2)
    return np.asarray(image.crop((left, top, left + wide, top + high)))


def resize_rule(img_size: int) -> str:
    """What resize_and_crop does, in words for people who prepare images by other means."""
    if img_size >= 384:
        return f"bicubic, squeezed to {img_size} x {img_size}"
    return f"bicubic, shorter side to {int(256 / 224 * img_size)}, then the centre {img_size} x {img_size}"


def normalise(pixels: np.ndarray) -> np.ndarray:
    """uint8 [..., S, S, 3] to float32 [..., 3, S, S]: divided by 255, ImageNet's mean taken off, over its std."""
    mean, std = np.array(IMAGENET_MEAN, np.float32), np.array(IMAGENET_STD, np.float32)
    return np.ascontiguousarray(np.moveaxis((pixels.astype(np.float32) / np.float32(255) - mean) / std, -1, -3))


def preprocess(image, img_size: int | tuple[int, int]) -> np.ndarray:
    """A PIL.Image in RGB to what the models read: float32 [3, H, W], normalised."""
    return normalise(resize_and_crop(image, img_size))
