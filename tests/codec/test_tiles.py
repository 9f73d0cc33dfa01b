"""Pictures in tiles: the same picture as in one, in parts, at an eighth, by any number of threads; damage stays in its tile."""

from __future__ import annotations

import dataclasses
import io
import threading
import weakref

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from switches import default_dtype

import codec
from bitstream.container import Container, open_container
from bitstream.errors import CodecError, DesyncError, FormatError, LimitError, UsageError
from bitstream.grid import Rect
from bitstream.limits import Limits
from codec import Codec, images, info, inspect
from codec.cli.main import main
from codec.metrics import psnr_db
from codec.targets import LevelSearch
from codec.tiles import TileDecoder, TileEncoder
from codec.workers import workers
from models.registry import MODELS
from models.runtime import LoadedModel

SIZE = (300, 530)  # two rows of three tiles of 256, the last of 44 and 18 pixels


@pytest.fixture
def threads():
    """Return threads(n), which sets their number; at the end it is as before."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _small_tiles(monkeypatch):
    """Tiles of 256 pixels for pictures that do not fit into one."""
    monkeypatch.setattr("codec.api.tile_bits", lambda width, height: 8 if max(width, height) > 256 else 0)


@pytest.fixture(scope="module", params=[*MODELS, "crossed", "inverse-gain"])
def tiny(request, golden):
    """A Codec of a frozen tiny checkpoint."""
    return Codec(golden / f"tiny-{request.param}.safetensors", "cpu")


@pytest.fixture
def tiled(tiny_codec, picture):
    """A file of six tiles."""
    return tiny_codec.encode(picture(*SIZE), quality=60)


def pixels(image):
    """Return the pixels of a PIL image as signed numbers."""
    return np.asarray(image).astype(int)


def test_every_model_codes_tiles(tiny, picture):
    source = picture(*SIZE)
    data = tiny.encode(source, quality=100)
    assert info(data).n_tiles == 6
    image = tiny.decode(data)
    assert image.size == SIZE[::-1]
    tiny_psnr = psnr_db(source, images.load(image).pixels)
    whole = tiny.decode(_one_tile(tiny, source, 100))
    assert tiny_psnr > psnr_db(source, images.load(whole).pixels) - 0.3


def _one_tile(coder, source, quality):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("codec.api.tile_bits", lambda width, height: 0)
        return coder.encode(source, quality=quality)


def test_there_are_no_seams(tiny_codec, picture):
    """y of all tiles put together is y of the picture, so what is synthesised is too: within a grey level."""
    model, source = tiny_codec.model, picture(*SIZE)
    x = torch.from_numpy(source).permute(2, 0, 1)[None]
    y, _ = model.analyse(x)
    h, w = SIZE
    decoder = TileDecoder(model, w, h, 8)
    parts = {}
    for number, tile in enumerate(decoder.tiles):
        parts[number], _ = model.analyse(x, tile)
    joined = pixels(decoder.decode(parts.__getitem__, Rect(0, 0, w, h)))
    whole = model.synthesise(y)[..., :h, :w]
    assert np.abs(joined - (whole[0] * 255).round().clamp(0, 255).permute(1, 2, 0).numpy()).max() <= 1


@pytest.mark.parametrize("count", [1, 2, 3])
def test_threads_change_nothing(tiny_codec, picture, tiled, threads, count):
    whole = pixels(tiny_codec.decode(tiled))
    threads(count)
    assert tiny_codec.encode(picture(*SIZE), quality=60) == tiled
    assert np.abs(pixels(tiny_codec.decode(tiled)) - whole).max() <= 1
    assert torch.get_num_threads() == count


@pytest.mark.parametrize(
    "crop", [(0, 0, 1, 1), (0, 0, 530, 300), (529, 299, 1, 1), (250, 250, 13, 7), (17, 33, 400, 200), (255, 0, 2, 300)]
)
def test_a_crop_is_the_part_of_the_whole(tiny_codec, tiled, crop):
    left, top, width, height = crop
    whole = pixels(tiny_codec.decode(tiled))[top : top + height, left : left + width]
    part = tiny_codec.decode(tiled, crop=crop)
    assert part.size == (width, height)
    assert np.abs(pixels(part) - whole).max() <= 1


def test_a_crop_reads_the_tiles_it_takes(tiny_codec, tiled):
    read = []

    class Watching:
        def __init__(self, source):
            self.header, self.metadata, self._source = source.header, source.metadata, source

        def tile(self, number):
            read.append(number)
            return self._source.tile(number)

    source = Watching(open_container(io.BytesIO(tiled)))
    tiny_codec.decode_tiles(source, crop=(400, 100, 20, 20))
    margin = 16 * tiny_codec.model.g_s.margin
    assert margin < 100
    assert read == [1]


@pytest.mark.parametrize("scale", [2, 4, 8])
@pytest.mark.parametrize("crop", [None, (3, 5, 101, 67), (8, 16, 300, 100)])
def test_a_scaled_picture_is_the_mean_of_the_pixels(tiny_codec, tiled, scale, crop):
    assert tiny_codec.model.thumbnail is None
    image = tiny_codec.decode(tiled, scale=scale, crop=crop)
    whole = pixels(tiny_codec.decode(tiled, crop=crop))
    h, w = (-(-side // scale) for side in whole.shape[:2])
    assert image.size == (w, h)
    for row, column in ((0, 0), (h - 1, w - 1), (h // 2, w // 3)):
        block = whole[row * scale : (row + 1) * scale, column * scale : (column + 1) * scale].mean((0, 1))
        assert np.abs(pixels(image)[row, column] - block).max() <= 1


@pytest.mark.parametrize("scale", [0, 3, 16, -1])
def test_other_scales_are_refused(tiny_codec, tiled, scale):
    with pytest.raises(UsageError, match=f"scale is 1/{scale}, expected one of 1/1, 1/2, 1/4, 1/8"):
        tiny_codec.decode(tiled, scale=scale)


@pytest.mark.parametrize("crop", [(-1, 0, 5, 5), (0, 0, 0, 5), (0, 0, 531, 5), (500, 0, 31, 5), (0, 299, 5, 2), (0, 0, 5, -5)])
def test_crops_outside_of_the_picture_are_refused(tiny_codec, tiled, crop):
    with pytest.raises(UsageError, match="expected a part of the picture of 530×300"):
        tiny_codec.decode(tiled, crop=crop)


@pytest.mark.parametrize("options", [{"bpp": 1.5}, {"psnr": 20.0}, {"size": 20000}])
def test_targets_are_met_in_tiles(tiny_codec, picture, options):
    source = picture(*SIZE)
    data = tiny_codec.encode(source, **options)
    assert info(data).n_tiles == 6
    if "psnr" in options:
        assert psnr_db(source, images.load(tiny_codec.decode(data)).pixels) >= 20.0
    else:
        assert len(data) <= options.get("size", 1.5 * SIZE[0] * SIZE[1] / 8)


def test_effort_refines_tiles_without_seams(tiny_codec, picture):
    source, shares = picture(*SIZE), []
    plain, refined = (tiny_codec.encode(source, quality=50, effort=effort, progress=shares.append) for effort in (0, 2))
    assert max(shares) == pytest.approx(1.0)
    errors = [np.square(pixels(tiny_codec.decode(data)) - source) for data in (plain, refined)]
    weight = float(tiny_codec.model.config.lmbda(torch.tensor(info(plain).level / 256)))
    costs = [8 * len(data) + weight * error.mean(2).sum() for data, error in zip((plain, refined), errors, strict=True)]
    assert costs[1] < costs[0]
    ratios = errors[1] / (errors[0].mean() + 1e-9)
    seam = np.concatenate([ratios[250:262].ravel(), ratios[:, 250:262].ravel(), ratios[:, 506:518].ravel()])
    assert seam.mean() < 1.15 * ratios.mean() + 0.05 * errors[0].mean()


def test_the_refined_tile_sees_what_is_around_it(tiny_codec, picture, monkeypatch):
    """The latents around a tile are those of the picture, and the pixels are theirs."""
    model, seen = tiny_codec.model, {}
    x = torch.from_numpy(picture(*SIZE)).permute(2, 0, 1)[None]
    tile = Rect(256, 0, 256, 256)
    y, z = model.analyse(x, tile)
    model.refine(x, y, z, 300, 1, lambda _: None, tile)

    def spy(window, y, z, level, steps, progress, *, around, place):
        seen.update(window=window, around=around, place=place)
        return y

    monkeypatch.setattr(model._refiner, "refine", spy)
    model.refine(x, y, z, 300, 1, lambda _: None, tile)
    top, left = seen["place"]
    margin = model.g_s.margin
    assert (top, left) == (0, margin)
    assert torch.equal(seen["around"][..., top : top + 16, left : left + 16], y)
    assert seen["window"].shape[-2:] == (
        256 + min(16 * margin, SIZE[0] - 256),
        min(256 + 32 * margin, SIZE[1] - 256 + 16 * margin),
    )
    assert torch.equal(seen["window"], x[..., : seen["window"].shape[-2], 256 - 16 * margin :][..., : seen["window"].shape[-1]])


def test_gray_pictures_in_tiles_stay_gray(tiny_codec, picture):
    image = tiny_codec.decode(tiny_codec.encode(picture(*SIZE)[:, :, 0], quality=60))
    assert (image.mode, image.size) == ("L", SIZE[::-1])


def test_damage_in_one_tile_leaves_the_others(tiny_codec, tiled):
    container = Container.unpack(tiled)
    place = tiled.index(container.tile(4).payloads[1])
    data = bytearray(tiled)
    data[place + 30] ^= 0xFF
    source = open_container(io.BytesIO(bytes(data)))
    assert tiny_codec.decode_tiles(source, crop=(0, 0, 100, 100)).size == (100, 100)
    with pytest.raises(FormatError, match="the tile at byte"):
        tiny_codec.decode_tiles(source)
    with pytest.raises(FormatError, match="checksum"):
        tiny_codec.decode(bytes(data))


def test_swapped_tiles_are_noticed(tiny_codec, tiled):
    container = Container.unpack(tiled)
    tiles = [container.tile(number) for number in range(6)]
    tiles[0], tiles[1] = tiles[1]._replace(symbol_crc=tiles[0].symbol_crc), tiles[0]._replace(symbol_crc=tiles[1].symbol_crc)
    with pytest.raises(DesyncError):
        tiny_codec.decode(Container.of_tiles(container.header, tiles).pack())


def test_the_memory_of_a_large_single_tile_is_refused_before_it_is_taken(tiny_codec, tiny_checkpoint, small_file):
    header = Container.unpack(small_file).header
    huge = dataclasses.replace(header, width=2**14, height=2**14)
    data = Container(huge, Container.unpack(small_file).chunks).pack()
    for read in (tiny_codec.decode, lambda data: inspect(data, model=str(tiny_checkpoint))):
        with pytest.raises(LimitError, match=r"decoding 16384×16384 pixels may take \d\d\.\d GiB of memory, the limit is 4.0"):
            read(data)


@pytest.fixture
def small_file(tiny_codec, picture):
    """A file of one tile."""
    return tiny_codec.encode(picture(20, 20), quality=0)


def test_inspection_adds_the_tiles_up(golden, tmp_path, tiny_checkpoint, tiled):
    found = inspect(tiled, model=tiny_checkpoint)
    assert sum(part.n_bytes for part in found.parts) == len(tiled)
    assert found.bpp_map.shape == (-(-SIZE[0] // 16), -(-SIZE[1] // 16))
    assert found.bpp_map.mean() * SIZE[0] * SIZE[1] / 8 == pytest.approx(len(tiled), rel=0.4)
    assert (found.bpp_map > 0).all()


def test_symbols_that_do_not_fit_are_counted(tiny_codec, picture):
    tiny_codec.encode(picture(64, 64), quality=100)
    assert tiny_codec.clamped == 0
    model = LoadedModel(tiny_codec.model.checkpoint, torch.device("cpu"))
    y, z = model.analyse(torch.rand(1, 3, 64, 64))
    coded = model.code(y * 1e5, z, 768, tiny_codec.engine)
    assert coded.clamped > 100
    assert model.code(y, z * 1e5, 768, tiny_codec.engine).clamped > 10


@pytest.mark.parametrize("crop", [(0, 0, 10), (0.0, 0, 5, 5), ("0", "0", "5", "5"), 7, (0, 0, 5, 5, 5)])
def test_crops_of_another_kind_are_refused(tiny_codec, tiled, crop):
    with pytest.raises(UsageError, match="expected four whole numbers"):
        tiny_codec.decode(tiled, crop=crop)


@pytest.mark.parametrize("scale", [8.0, "1/8", None])
def test_scales_of_another_kind_are_refused(tiny_codec, tiled, scale):
    with pytest.raises(UsageError, match="scale is"):
        tiny_codec.decode(tiled, scale=scale)


def test_callers_at_once_keep_the_number_of_threads(tiny_codec, tiled, threads):
    threads(2)
    expected, seen = pixels(tiny_codec.decode(tiled)), []

    def call():
        for _ in range(3):
            assert np.abs(pixels(tiny_codec.decode(tiled)) - expected).max() <= 1

    callers = [threading.Thread(target=call) for _ in range(3)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    later = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
    later.start()
    later.join()
    assert [torch.get_num_threads(), *seen] == [2, 2]


def test_long_jobs_end_when_nobody_waits(threads):
    threads(2)
    begun, ended = threading.Event(), []

    def endless(pool):
        begun.set()
        try:
            while True:
                pool.check()
        finally:
            ended.append(1)

    def interrupted():
        with workers(3) as pool:
            pool.submit(lambda: endless(pool))
            begun.wait(20)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert ended == [1]


@pytest.mark.parametrize("way", ["decode_file", "command", "batch"])
def test_the_whole_file_is_checked_unless_a_part_is_asked_for(tmp_path, tiny_checkpoint, tiled, call_codec, installed, way):
    """Damage that no tile has: of the checksum of the whole."""
    (tmp_path / "files").mkdir()
    source = tmp_path / "files" / "a.lic"
    source.write_bytes(tiled[:-4] + bytes(4))
    if way == "decode_file":
        with pytest.raises(FormatError, match="cut off or damaged"):
            codec.decode_file(source, tmp_path / "b.png", model=tiny_checkpoint)
        codec.decode_file(source, tmp_path / "b.png", model=tiny_checkpoint, crop=(0, 0, 5, 5))
    elif way == "command":
        options = ["--model", tiny_checkpoint, "--device", "cpu"]
        result = call_codec("decode", source, tmp_path / "b.png", *options, code=1)
        assert "cut off or damaged" in result.stderr
        call_codec("decode", source, tmp_path / "b.png", *options, "--crop", "0,0,5,5")
    else:
        result = call_codec("batch", "--decode", source.parent, tmp_path / "out", "--workers", 0, "--device", "cpu", code=1)
        assert "cut off or damaged" in result.stderr


@pytest.mark.parametrize("end", [b"junk", bytes(400)])
def test_what_follows_a_file_is_refused_on_disk_too(tmp_path, tiny_checkpoint, tiled, end):
    (tmp_path / "a.lic").write_bytes(tiled + end)
    with pytest.raises(FormatError, match="checksum"):
        codec.decode_file(tmp_path / "a.lic", tmp_path / "b.png", model=tiny_checkpoint)


def test_blocks_are_small_where_tiles_are_large(tiny_codec, picture, monkeypatch):
    """A header may say tiles of 32768: what is synthesised at once stays within 1024."""
    monkeypatch.setattr("codec.api.tile_bits", lambda width, height: 15)
    data, sizes = tiny_codec.encode(picture(1100, 70), quality=20), []
    synthesise = tiny_codec.model.synthesise

    def watch(latents, rows, columns):
        sizes.append(16 * (rows.stop - rows.start))
        return synthesise(latents, rows, columns)

    monkeypatch.setattr(tiny_codec.model, "synthesise", watch)
    tiny_codec.decode(data)
    assert sorted(sizes) == [80, 1024]


# --- the command line


@pytest.fixture
def run():
    """Return run(*arguments): the result of the command line."""

    def call(*arguments):
        return CliRunner().invoke(main, [str(argument) for argument in arguments])

    return call


@pytest.fixture
def file(tmp_path, tiled):
    """The tiled file on disk."""
    path = tmp_path / "a.lic"
    path.write_bytes(tiled)
    return path


def test_decode_takes_crop_and_scale(run, file, tmp_path, tiny_checkpoint):
    result = run("decode", file, tmp_path / "a.png", "--model", tiny_checkpoint, "--crop", "10,20,300,200", "--scale", "1/4")
    assert result.exit_code == 0, result.output
    assert Image.open(tmp_path / "a.png").size == (75, 50)


@pytest.mark.parametrize("crop", ["1,2,3", "a,b,c,d", "1,2,3,4,5", "-1,0,5,5", "", "1.5,2,3,4"])
def test_a_crop_that_is_none_is_explained(run, file, tmp_path, crop):
    result = run("decode", file, tmp_path / "a.png", "--crop", crop)
    assert result.exit_code == 2
    assert "X,Y,W,H" in result.output
    assert not (tmp_path / "a.png").exists()


def test_a_crop_outside_exits_with_2(run, file, tmp_path, tiny_checkpoint):
    result = run("decode", file, tmp_path / "a.png", "--model", tiny_checkpoint, "--crop", "0,0,1000,1000")
    assert result.exit_code == 2
    assert "expected a part of the picture of 530×300" in result.output


def test_max_memory_is_a_limit(run, file, tmp_path, tiny_checkpoint):
    result = run("decode", file, tmp_path / "a.png", "--model", tiny_checkpoint, "--max-memory", "1GB")
    assert result.exit_code == 1
    assert "raise it with --max-memory" in result.output


def test_encode_has_the_limit_too(run, tmp_path, picture):
    Image.fromarray(picture(20, 20)).save(tmp_path / "a.png")
    result = run("encode", tmp_path / "a.png", tmp_path / "a.lic", "--max-pixels", "399")
    assert result.exit_code == 1
    assert "the limit is 399" in result.output
    assert not (tmp_path / "a.lic").exists()


def test_verbose_tells_clamped_symbols(run, tmp_path, picture, tiny_checkpoint):
    Image.fromarray(picture(20, 20)).save(tmp_path / "a.png")
    result = run("encode", tmp_path / "a.png", tmp_path / "a.lic", "--model", tiny_checkpoint, "-v")
    assert "0 symbols clamped" in result.output


def test_files_on_disk_are_decoded_in_parts(file, tmp_path, tiny_checkpoint):
    codec.decode_file(file, tmp_path / "b.png", model=tiny_checkpoint, crop=(0, 0, 50, 40), limits=Limits())
    assert Image.open(tmp_path / "b.png").size == (50, 40)


@pytest.mark.parametrize("name", ["folder", "missing.lic"])
def test_what_is_no_file_is_refused(tmp_path, name):
    (tmp_path / "folder").mkdir()
    with pytest.raises(CodecError, match="cannot be read"):
        codec.decode_file(tmp_path / name, tmp_path / "b.png")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("scale", [1, 8])
def test_the_default_type_of_the_caller_does_not_matter(tiny_codec, tiled, scale, dtype):
    expected = pixels(tiny_codec.decode(tiled, scale=scale))
    with default_dtype(dtype):
        assert np.abs(pixels(tiny_codec.decode(tiled, scale=scale)) - expected).max() <= 1


def test_a_thread_that_is_born_meanwhile_has_all_threads_of_torch(threads):
    threads(2)
    seen = []
    with workers(3) as pool:
        assert [pool.submit(torch.get_num_threads).result() for _ in range(3)] == [1] * 3
        other = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
        other.start()
        other.join()
    assert [torch.get_num_threads(), *seen] == [2, 2]


def test_clamped_symbols_are_those_of_the_file_that_is_returned(tiny_codec, picture, monkeypatch):
    code, run = TileEncoder.code, LevelSearch.run

    def counting(self, level, *arguments, **options):
        return [dataclasses.replace(tile, clamped=level) for tile in code(self, level, *arguments, **options)]

    def trying_on(self, *arguments):
        found = run(self, *arguments)
        self.make(0)
        return found

    monkeypatch.setattr(TileEncoder, "code", counting)
    monkeypatch.setattr(LevelSearch, "run", trying_on)
    data = tiny_codec.encode(picture(64, 64), quality=50)
    assert tiny_codec.clamped == codec.info(data).level > 0


def test_latents_that_no_later_block_takes_are_not_kept(tiny_codec):
    model, held, alive = tiny_codec.model, [], []
    decoder = TileDecoder(model, 256, 20 * 256, 8)

    def latents_of(number):
        y = torch.zeros(1, model.config.M, 16, 16)
        held.append(weakref.ref(y))
        alive.append(sum(reference() is not None for reference in held))
        return y

    decoder.decode(latents_of, Rect(0, 0, 256, 20 * 256), most=1)
    assert len(held) == 20
    assert max(alive) <= 7  # three a block, and what two waiting blocks have
