"""Training pictures: found in order, cropped where they lie."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bitstream.errors import UsageError
from codec.training.data import CropStore, find_images, load_rgb, validation_batches


def test_find_images_sorts_and_leaves_small_ones_out(data, tmp_path, write_pictures):
    folder = write_pictures(tmp_path / "small", 2, side=63)
    (folder / "notes.txt").write_text("no picture")
    assert find_images(data, 64) == sorted(data.iterdir())
    assert len(find_images(folder)) == 2
    with pytest.raises(UsageError, match="small: found 2 pictures, none with both sides of 64 pixels or more"):
        find_images(folder, 64)


def test_batches_are_crops_of_the_pictures(data):
    store = CropStore(sorted(data.iterdir()), torch.device("cpu"))
    batch = store.batch(5, 64, np.random.default_rng(0))
    assert (batch.shape, batch.dtype) == ((5, 3, 64, 64), torch.float32)
    assert 0 <= batch.min() < batch.max() <= 1
    whole = store.batch(8, 96, np.random.default_rng(0))
    pictures = [load_rgb(path).float() / 255 for path in sorted(data.iterdir())]
    plain = [any(torch.equal(crop, p) for p in pictures) for crop in whole]
    mirrored = [any(torch.equal(crop, p.flip(2)) for p in pictures) for crop in whole]
    assert all(one != two for one, two in zip(plain, mirrored, strict=True))
    assert any(plain)
    assert any(mirrored)


def test_validation_batches_hold_pictures_of_equal_cut(tmp_path, write_pictures):
    sides = {"a": (64, 3), "b": (130, 2), "c": (127, 1)}  # cut to 64, 128, 64
    folders = [write_pictures(tmp_path / name, count, side=side) for name, (side, count) in sides.items()]
    paths = [path for folder in folders for path in sorted(folder.iterdir())]
    batches = validation_batches(paths, 3)
    assert [tuple(batch.shape) for batch in batches] == [(3, 3, 64, 64), (2, 3, 128, 128), (1, 3, 64, 64)]
    assert torch.equal(batches[1][1], load_rgb(paths[4])[:, :128, :128])
    assert [len(batch) for batch in validation_batches(paths, 1)] == [1] * 6
    assert validation_batches(paths, 9, side=64)[0].shape == (6, 3, 64, 64)


def test_the_parts_of_a_batch_are_the_whole(data):
    store = CropStore(find_images(data), torch.device("cpu"))
    whole = store.batch(6, 64, np.random.default_rng(3))
    parts = [store.batch(6, 64, np.random.default_rng(3), slice(start, start + 2)) for start in (0, 2, 4)]
    assert torch.equal(torch.cat(parts), whole)
    assert len({float(crop.sum()) for crop in whole}) == 6
