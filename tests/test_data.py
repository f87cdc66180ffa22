"""The packaged photographs: classes, disjoint tiles, deterministic crops."""
from __future__ import annotations

import itertools
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from data import photo_crops
from data.photo_crops import CLASSES, crop_boxes, crops, held_out_batch, photo, tiles
from utils import ROOT, UserError


def mask(shape: tuple[int, int], boxes) -> np.ndarray:
    """How many of the boxes cover each pixel, int [H, W]."""
    covered = np.zeros(shape, int)
    for left, top, width, height in boxes:
        covered[top:top + height, left:left + width] += 1
    return covered


def test_photographs_are_rgb_and_distinct():
    assert len(CLASSES) >= 12 and sorted(CLASSES) == CLASSES
    for name in CLASSES:
        assert photo(name).dtype == np.uint8 and photo(name).shape[2] == 3
        assert max(photo(name).shape) <= photo_crops.MAX_SIDE
    thumbnails = [np.asarray(Image.fromarray(photo(name)).resize((8, 8))).astype(int) for name in CLASSES]
    for (a, x), (b, y) in itertools.combinations(zip(CLASSES, thumbnails), 2):
        assert np.abs(x - y).mean() > 4, f"{a} and {b} look the same"


@pytest.mark.parametrize("name", CLASSES)
def test_tiles_cover_the_photograph_once(name):
    height, width = photo(name).shape[:2]
    train, test = tiles(width, height, "train"), tiles(width, height, "test")
    assert len(test) >= 2 and len(train) >= 2 * len(test)
    assert min(min(tile[2:]) for tile in train + test) >= photo_crops.MIN_TILE
    np.testing.assert_array_equal(mask((height, width), train + test), 1)


@pytest.mark.parametrize("split", ["train", "test"])
def test_boxes_are_distinct_balanced_and_inside_their_split(split):
    boxes = list(itertools.islice(crop_boxes(split), 5000))
    assert len(set(boxes)) == 5000
    assert np.ptp(np.bincount([label for label, _ in boxes])) <= 1
    for label, name in enumerate(CLASSES):
        height, width = photo(name).shape[:2]
        own = tiles(width, height, split)
        cut = [box for number, box in boxes if number == label]
        inside = [[t[0] <= b[0] and t[1] <= b[1] and b[0] + b[2] <= t[0] + t[2] and b[1] + b[3] <= t[1] + t[3]
                   for t in own] for b in cut]
        assert np.sum(inside, axis=1).tolist() == [1] * len(cut)
        assert np.all(np.sum(inside, axis=0) > 0), "a tile is never used"


def test_no_pixel_is_in_both_splits():
    for label, name in enumerate(CLASSES):
        seen = [mask(photo(name).shape[:2], [box for number, box in itertools.islice(crop_boxes(split), 3000)
                                             if number == label]) > 0 for split in ("train", "test")]
        assert not np.any(seen[0] & seen[1])


def test_crops_are_deterministic_and_fewer_are_the_beginning_of_more():
    images, labels = crops("test", 40, 64)
    assert images.shape == (40, 64, 64, 3) and images.dtype == np.uint8 and labels.dtype == np.int64
    again, same_labels = crops("test", 23, 64)
    np.testing.assert_array_equal(again, images[:23])
    np.testing.assert_array_equal(same_labels, labels[:23])
    assert not np.array_equal(crops("test", 40, 64, seed=1)[0], images)
    assert not np.array_equal(crops("train", 40, 64)[0], images)


def test_the_first_boxes_stay_what_they_are():
    """Published figures were measured on these crops: a change of the rule or of NumPy's generator must show."""
    assert list(itertools.islice(crop_boxes("test"), 3)) == [
        (0, (270, 401, 111, 111)), (1, (151, 0, 99, 99)), (2, (0, 257, 113, 113))]


def test_a_crop_is_its_box_resized():
    images, labels = crops("test", 18, 48)
    for image, label, (_, (left, top, width, height)) in zip(images, labels, crop_boxes("test")):
        cut = photo(CLASSES[label])[top:top + height, left:left + width]
        np.testing.assert_array_equal(image, np.asarray(Image.fromarray(cut).resize((48, 48), Image.BICUBIC)))


def test_held_out_batch_is_normalised():
    images, labels = held_out_batch(5, 32)
    assert images.shape == (5, 3, 32, 32) and images.dtype == np.float32
    pixels, same = crops("test", 5, 32)
    expected = (pixels.transpose(0, 3, 1, 2) / 255.0 - np.reshape([0.485, 0.456, 0.406], (3, 1, 1))
                ) / np.reshape([0.229, 0.224, 0.225], (3, 1, 1))
    np.testing.assert_allclose(images, expected, atol=1e-6)
    np.testing.assert_array_equal(labels, same)


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True,
                          env={**os.environ, **environment})


def test_exported_photographs_give_the_same_crops(tmp_path):
    done = run("data/photo_crops.py", "--export", str(tmp_path / "photos"))
    assert done.returncode == 0 and "copied 18 photographs" in done.stdout
    assert len(list((tmp_path / "photos").iterdir())) == 18
    code = "from data.photo_crops import crops; print(int(crops('test', 36, 32)[0].astype(int).sum()))"
    there = run("-c", code, PHOTO_DIR=str(tmp_path / "photos"))
    assert int(there.stdout) == int(crops("test", 36, 32)[0].astype(int).sum()), there.stderr


def test_missing_photographs_are_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("PHOTO_DIR", str(tmp_path))
    with pytest.raises(UserError, match=r"no such photograph.*--export"):
        photo_crops.photo_path("coffee")
    monkeypatch.delenv("PHOTO_DIR")
    monkeypatch.setattr(photo_crops, "ROOT", tmp_path)
    monkeypatch.setattr(photo_crops.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install scikit-image"):
        photo_crops.photo_path("coffee")
    done = run("data/photo_crops.py", "--export", str(tmp_path / "out"), PHOTO_DIR=str(tmp_path / "nowhere"))
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and not (tmp_path / "out").exists()
