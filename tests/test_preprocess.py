"""Reading images and the evaluation transform, against torchvision's.

The requirement is 1/255 before normalisation; both resize with Pillow, so only float32 rounding may be between them.
"""
from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from torchvision import transforms

from data.images import list_images, load_image, normalise, preprocess
from utils import UserError

# The values that torchvision's and timm's documentation give, written out again: a swap in utils must show.
MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


ROUNDING = 1e-6  # a few float32 steps at 1


def noise(width: int, height: int, channels: int = 3, dtype=np.uint8) -> np.ndarray:
    """Smooth gradients plus noise: every resize and every crop offset changes these pixels."""
    rng = np.random.default_rng(width * 10_000 + height)
    top = np.iinfo(dtype).max
    ramp = np.linspace(0, 0.7, width)[None, :, None] + np.linspace(0, 0.2, height)[:, None, None]
    pixels = (ramp + 0.1 * rng.random((height, width, channels))) * np.linspace(1, 0.5, channels)
    return (pixels * top).astype(dtype).squeeze()


def official(image: Image.Image, img_size: int) -> np.ndarray:
    """[3, S, S] from 0 to 1 as build_transform() of microsoft/Swin-Transformer's data/build.py makes it, from an image
    that torchvision's loader read."""
    if img_size < 384:
        steps = [transforms.Resize(int((256 / 224) * img_size), transforms.InterpolationMode.BICUBIC),
                 transforms.CenterCrop(img_size)]
    else:
        steps = [transforms.Resize((img_size, img_size), transforms.InterpolationMode.BICUBIC)]
    return transforms.Compose([*steps, transforms.ToTensor()])(image).numpy()


def denormalised(image: np.ndarray) -> np.ndarray:
    return image * STD[:, None, None] + MEAN[:, None, None]


@pytest.mark.parametrize("img_size", [64, 192, 224, 256, 384])
@pytest.mark.parametrize("size", [(500, 375), (375, 500), (301, 300), (97, 64), (256, 256), (1200, 431)])
def test_geometry_equals_torchvision(size, img_size):
    image = Image.fromarray(noise(*size))
    ours = preprocess(image, img_size)
    assert ours.shape == (3, img_size, img_size) and ours.dtype == np.float32
    np.testing.assert_allclose(denormalised(ours), official(image, img_size), atol=ROUNDING)


def test_normalise_equals_torchvision():
    pixels = noise(40, 40)
    expected = transforms.Compose([transforms.ToTensor(), transforms.Normalize(MEAN, STD)])(Image.fromarray(pixels))
    np.testing.assert_allclose(normalise(pixels), expected.numpy(), atol=ROUNDING / STD.min())
    np.testing.assert_array_equal(normalise(np.stack([pixels, pixels]))[1], normalise(pixels))


def save_exif_rotated(path):
    exif = Image.Exif()
    exif[0x0112] = 6  # Orientation: to be turned by 90 degrees when shown
    Image.fromarray(noise(320, 240)).save(path, exif=exif, quality=95)


FILES = {
    "landscape.jpg": lambda path: Image.fromarray(noise(320, 240)).save(path),
    "portrait.JPEG": lambda path: Image.fromarray(noise(240, 320)).save(path),
    "grey.png": lambda path: Image.fromarray(noise(320, 240, 1)).save(path),
    "grey_alpha.png": lambda path: Image.fromarray(noise(320, 240, 2), "LA").save(path),
    "black_white.png": lambda path: Image.fromarray(noise(320, 240, 1)).convert("1").save(path),
    "rgba.png": lambda path: Image.fromarray(noise(320, 240, 4), "RGBA").save(path),
    "cmyk.jpg": lambda path: Image.fromarray(noise(320, 240, 4), "CMYK").save(path),
    "palette.png": lambda path: Image.fromarray(noise(320, 240)).quantize(64).save(path),
    "palette_clear.png": lambda path: Image.fromarray(noise(320, 240)).quantize(64).save(path, transparency=3),
    "exif_rotated.jpg": save_exif_rotated,
    "photo.webp": lambda path: Image.fromarray(noise(320, 240)).save(path),
    "photo.tif": lambda path: Image.fromarray(noise(320, 240)).save(path),
}


@pytest.mark.parametrize("name", FILES)
def test_file_equals_torchvision(tmp_path, name):
    path = tmp_path / name
    FILES[name](path)
    with Image.open(path) as image:
        expected = official(image.convert("RGB"), 224)  # what torchvision.datasets.folder.default_loader does
    np.testing.assert_allclose(denormalised(preprocess(load_image(path), 224)), expected, atol=ROUNDING)


def save_pgm(path, pixels):
    path.write_bytes(b"P5 %d %d 65535\n" % pixels.shape[::-1] + pixels.astype(">u2").tobytes())


@pytest.mark.parametrize(("name", "save"), [
    ("grey16.png", lambda path, pixels: Image.fromarray(pixels).save(path)),
    ("grey16.tif", lambda path, pixels: Image.fromarray(pixels).save(path)),
    ("grey16_big_endian.tif", lambda path, pixels: Image.frombytes(
        "I;16B", pixels.shape[::-1], pixels.astype(">u2").tobytes()).save(path)),
    ("grey16.pgm", save_pgm),
])
def test_16_bit_is_scaled_not_clipped(tmp_path, name, save):
    """0..65535 becomes 0..255: within half a step of the exact value. Pillow's convert("RGB") would clip at 255."""
    pixels = noise(320, 240, 1, np.uint16)
    save(tmp_path / name, pixels)
    image = load_image(tmp_path / name)
    assert image.mode == "RGB"
    np.testing.assert_allclose(np.asarray(image)[..., 1] / 255, pixels / 65535, atol=0.5 / 255 + 1e-9)
    expected = official(Image.fromarray(np.round(pixels / 257).astype(np.uint8)).convert("RGB"), 224)
    np.testing.assert_allclose(denormalised(preprocess(image, 224)), expected, atol=ROUNDING)


def test_unreadable_images_are_named(tmp_path):
    (tmp_path / "text.jpg").write_text("not an image")
    Image.fromarray(noise(64, 64)).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:3000])
    (tmp_path / "empty.png").write_bytes(b"")
    Image.fromarray(noise(64, 64, 1).astype(np.float32)).save(tmp_path / "float.tif")
    Image.fromarray(noise(64, 64, 1).astype(np.int32) * 70_000).save(tmp_path / "int32.tif")
    for name, problem in [("text.jpg", "cannot be read as an image"), ("cut.png", "cannot be read as an image"),
                          ("empty.png", "cannot be read as an image"), ("float.tif", "float pixels"),
                          ("int32.tif", "32-bit pixels"), ("missing.png", "no such file"), (".", "is a folder")]:
        with pytest.raises(UserError, match=problem) as raised:
            load_image(tmp_path / name)
        assert str(raised.value).startswith(str(tmp_path / name)) and "\n" not in str(raised.value)


def test_list_images_is_sorted_and_recursive(tmp_path):
    for name in ("b/2.JPEG", "b/10.png", "a/z.webp", "a/notes.txt", "top.jpg", ".cache/hidden.png", "a/.hidden.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = [path.relative_to(tmp_path).as_posix() for path in list_images(tmp_path)]
    assert found == ["a/z.webp", "b/10.png", "b/2.JPEG", "top.jpg"]


def test_list_images_refuses_what_holds_none(tmp_path):
    (tmp_path / "notes.txt").touch()
    for folder, problem in [(tmp_path, "holds no image"), (tmp_path / "missing", "no such folder"),
                            (tmp_path / "notes.txt", "is not a folder")]:
        with pytest.raises(UserError, match=problem) as raised:
            list_images(folder)
        assert str(folder) in str(raised.value)
