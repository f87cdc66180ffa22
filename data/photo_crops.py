"""Real, labelled images without a download: crops of the photographs inside scikit-image's and scikit-learn's wheels.

    python data/photo_crops.py --export data/photos

copies the photographs into a folder that a machine without these packages can read them from: they are looked for in
$PHOTO_DIR, in data/photos/ if that is a folder, and else in the installed packages (whose files are read; nothing is
imported and nothing downloaded).

The class of a crop is the photograph. Every photograph is cut into a grid of tiles, four in a row; one tile of every
row is kept for testing and the others are for training. A crop lies wholly inside one tile, so no pixel of a test crop
was ever trained on. Weakness: test tiles come from the same exposure as their neighbours, so held-out accuracy here
says that a model has learnt something, not how well it would do on another photograph.
"""
from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np

sys.path.insert(1, str(Path(__file__).resolve().parents[1]))
from data.images import load_image, normalise
from utils import ROOT, UserError, folder_to_write, run_script, shown, whole_file

# Class name: package, folder in it, file. What else the wheels hold is left out: drawings, silhouettes and test
# patterns, the second view of the motorcycle, pictures with next to nothing in them or too small to cut up.
PHOTOS = {
    "astronaut": ("skimage", "data", "astronaut.png"),
    "brick": ("skimage", "data", "brick.png"),
    "camera": ("skimage", "data", "camera.png"),
    "chelsea": ("skimage", "data", "chelsea.png"),
    "china": ("sklearn", "datasets/images", "china.jpg"),
    "coffee": ("skimage", "data", "coffee.png"),
    "coins": ("skimage", "data", "coins.png"),
    "flower": ("sklearn", "datasets/images", "flower.jpg"),
    "grass": ("skimage", "data", "grass.png"),
    "gravel": ("skimage", "data", "gravel.png"),
    "hubble": ("skimage", "data", "hubble_deep_field.jpg"),
    "ihc": ("skimage", "data", "ihc.png"),
    "moon": ("skimage", "data", "moon.png"),
    "motorcycle": ("skimage", "data", "motorcycle_left.png"),
    "page": ("skimage", "data", "page.png"),
    "retina": ("skimage", "data", "retina.jpg"),
    "rocket": ("skimage", "data", "rocket.jpg"),
    "text": ("skimage", "data", "text.png"),
}
CLASSES = list(PHOTOS)

MAX_SIDE = 768  # pixels; larger photographs are reduced to it, so that all tiles are of a similar size and sharpness
MIN_TILE = 80  # pixels
CROP_SIDE = {"train": (0.5, 1.0), "test": (0.7, 1.0)}  # side of a square crop, as a share of its tile's shorter side

Box = tuple[int, int, int, int]  # left, top, width, height in pixels


def photo_path(name: str) -> Path:
    """Where the photograph of a class lies.

    Raises:
        UserError: its package is not installed (or has dropped the file) and no folder of photographs is there.
    """
    package, folder, file = PHOTOS[name]
    photos = Path(os.environ.get("PHOTO_DIR", ROOT / "data" / "photos"))
    if photos.is_dir() or "PHOTO_DIR" in os.environ:
        path = photos / file
    else:
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            pip_name = {"skimage": "scikit-image", "sklearn": "scikit-learn"}[package]
            raise UserError(f"{file}: the package {pip_name} that holds it is not installed; pip install {pip_name}, "
                            f"or run `python data/photo_crops.py --export FOLDER` elsewhere and set PHOTO_DIR=FOLDER")
        path = Path(spec.submodule_search_locations[0]) / folder / file
    if not path.is_file():
        raise UserError(f"{path}: no such photograph; run `python data/photo_crops.py --export FOLDER` where "
                        f"scikit-image and scikit-learn are installed, and set PHOTO_DIR=FOLDER")
    return path


@cache
def photo(name: str) -> np.ndarray:
    """The photograph of a class, uint8 [H, W, 3], longer side at most MAX_SIDE. Grey ones have equal channels."""
    from PIL import Image

    image = load_image(photo_path(name))
    image.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.BICUBIC)
    pixels = np.array(image)
    pixels.flags.writeable = False  # shared by all callers
    return pixels


def tiles(width: int, height: int, split: str) -> list[Box]:
    """The tiles of one split of a photograph of this size. Together the two splits cover it, and none overlap.

    In row r, the tile of column (2r + 1) mod 5 is for testing: 1, 3, 0, 2 from the top, like rooks that do not
    attack each other, so a test tile has training tiles on its sides.
    """
    columns, rows = 4, min(4, height // MIN_TILE)
    x = [width * i // columns for i in range(columns + 1)]
    y = [height * i // rows for i in range(rows + 1)]
    return [(x[c], y[r], x[c + 1] - x[c], y[r + 1] - y[r]) for r in range(rows) for c in range(columns)
            if (c == (2 * r + 1) % 5) == (split == "test")]


def crop_boxes(split: str, seed: int = 0) -> Iterator[tuple[int, Box]]:
    """Endless (label, square box in its photograph): classes in turn, no box twice. The seed fixes all of them.

    Raises:
        UserError: a photograph has no more boxes to give.
    """
    rng = np.random.default_rng([seed, list(CROP_SIDE).index(split)])
    smallest, largest = CROP_SIDE[split]
    grids = [tiles(photo(name).shape[1], photo(name).shape[0], split) for name in CLASSES]
    given: set[tuple] = set()
    while True:
        for label, grid in enumerate(grids):
            for _ in range(1000):
                u = rng.random(4)
                left, top, width, height = grid[int(u[0] * len(grid))]
                side = round((smallest + u[1] * (largest - smallest)) * min(width, height))
                box = (left + int(u[2] * (width - side + 1)), top + int(u[3] * (height - side + 1)), side, side)
                if (label, box) not in given:
                    break
            else:
                raise UserError(f"{CLASSES[label]}: has no more than {len(given) // len(CLASSES)} distinct {split} "
                                f"crops; ask for fewer")
            given.add((label, box))
            yield label, box


def crops(split: str, count: int, img_size: int | tuple[int, int], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """The first `count` crops of a split, without augmentation, resized bicubically (PIL, so with antialiasing).

    Deterministic; fewer crops with the same seed are the beginning of more. Classes come in turn: label i % classes.

    Args:
        split: "train" or "test".
        count: number of crops; 200,000 distinct ones and more can be had.
        img_size: side in pixels; or height and width, which take of each square box the largest part of that shape
            around its centre.
        seed: another seed gives other crops.
    Returns:
        images uint8 [count, H, W, 3], labels int64 [count]: indices into CLASSES.
    Raises:
        UserError: a photograph is missing, or more distinct crops are asked for than there are.
    """
    from PIL import Image

    high, wide = (img_size, img_size) if isinstance(img_size, int) else img_size
    images = np.empty((count, high, wide, 3), np.uint8)
    labels = np.empty(count, np.int64)
    for i, (label, (left, top, width, height)) in zip(range(count), crop_boxes(split, seed)):
        # Cut first, resize then: resize(box=...) would let pixels from outside the box into the edges.
        part = max(1, round(height * min(1, high / wide))), max(1, round(width * min(1, wide / high)))
        top, left = top + (height - part[0]) // 2, left + (width - part[1]) // 2
        cut = Image.fromarray(photo(CLASSES[label])[top:top + part[0], left:left + part[1]])
        images[i] = np.asarray(cut.resize((wide, high), Image.Resampling.BICUBIC))
        labels[i] = label
    return images, labels


def held_out_batch(count: int, img_size: int) -> tuple[np.ndarray, np.ndarray]:
    """The first `count` test crops as a model reads them: float32 [count, 3, S, S] normalised, labels int64 [count]."""
    images, labels = crops("test", count, img_size)
    return normalise(images), labels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--export", metavar="FOLDER", type=folder_to_write, required=True,
                        help="copy the photographs, as they are, into this folder")
    folder = parser.parse_args().export
    sources = [photo_path(name) for name in CLASSES]
    for source in sources:
        with whole_file(folder / source.name) as partial:
            shutil.copyfile(source, partial)
    size_mib = sum((folder / source.name).stat().st_size for source in sources) / 2**20
    print(f"copied {len(sources)} photographs, {size_mib:.1f} MiB, from {shown(sources[0].parent)} and others "
          f"to {shown(folder)}")


if __name__ == "__main__":
    run_script(main)
