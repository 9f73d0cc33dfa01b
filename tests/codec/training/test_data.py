"""Training pictures: found in order, cropped where they lie."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from bitstream.errors import UsageError
from codec.training.data import VALIDATION_SHARE, CropStore, find_images, load_rgb, split_images, validation_batches


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


def test_hidden_files_are_no_training_pictures(tmp_path, write_pictures):
    folder = write_pictures(tmp_path / "pictures", 1)
    (folder / "._0.png").write_bytes(b"what macOS leaves")
    write_pictures(folder / ".ipynb_checkpoints", 1)
    assert [path.name for path in find_images(folder)] == ["0.png"]


def test_what_is_held_out_does_not_depend_on_the_crop(tmp_path):
    for i in range(2 * VALIDATION_SHARE + 1):
        side = 64 if i in (0, 3) else 128  # two are too small for the larger crop, one of them held out
        Image.new("L", (side, side)).save(tmp_path / f"{i:03}.png")
    small, small_held = split_images(tmp_path, 64)
    large, large_held = split_images(tmp_path, 128)
    assert [path.name for path in small_held] == ["000.png", "064.png", "128.png"]
    assert [path.name for path in large_held] == ["064.png", "128.png"]
    assert not set(small_held) & set(large)
    assert set(large) <= set(small)


def test_something_is_held_out_where_all_that_would_be_is_too_small(tmp_path):
    for i, side in enumerate((64, 128, 128)):
        Image.new("L", (side, side)).save(tmp_path / f"{i}.png")
    assert [[path.name for path in part] for part in split_images(tmp_path, 128)] == [["2.png"], ["1.png"]]


def test_sixteen_bits_are_scaled_not_clipped(tmp_path):
    values = np.linspace(0, 65535, 96 * 96).reshape(96, 96).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    assert np.abs(load_rgb(tmp_path / "a.png")[1].numpy().astype(int) - values // 257).max() <= 1


def test_a_picture_beyond_pillows_limit_is_one_to_train_on(data, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert len(find_images(data)) == 6
    assert load_rgb(sorted(data.iterdir())[0]).shape == (3, 96, 96)
