"""The command line: what it writes and prints, its exit codes 0, 1 and 2, one line on stderr and no traceback."""

from __future__ import annotations

import importlib.metadata
import json
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from bitstream.container import Container
from codec import Codec, images
from codec.cli.main import main
from codec.metrics import bpp, psnr_db


@pytest.fixture
def run(installed, call_codec):
    """Return run(*arguments): the result of a call in this process, with the tiny checkpoint as the installed one."""
    return call_codec


@pytest.fixture
def file(tmp_path, tiny_codec, picture):
    """A file of a 50 × 33 picture."""
    path = tmp_path / "a.lic"
    path.write_bytes(tiny_codec.encode(picture(33, 50), quality=60))
    return path


def assert_one_line(result, message):
    """Assert that stderr is one sentence of ours and stdout is empty."""
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("codec: ")
    assert re.search(message, lines[0]), lines[0]
    assert result.stdout == ""


def test_encode_and_decode_write_what_the_api_gives(run, tmp_path, png, picture, tiny_codec):
    result = run("encode", png(33, 50), tmp_path / "a.lic", "-q", "60")
    assert result.output == ""
    data = (tmp_path / "a.lic").read_bytes()
    assert data == tiny_codec.encode(picture(33, 50), quality=60)
    assert run("decode", tmp_path / "a.lic", tmp_path / "b.png").output == ""
    with Image.open(tmp_path / "b.png") as image:
        assert image.tobytes() == tiny_codec.decode(data).tobytes()


def test_quality_is_50_by_default(run, tmp_path, png, picture, tiny_codec):
    run("encode", png(20, 20), tmp_path / "a.lic")
    assert (tmp_path / "a.lic").read_bytes() == tiny_codec.encode(picture(20, 20), quality=50)


def test_model_may_be_a_path(run, tmp_path, png, tiny_checkpoint):
    run("encode", png(20, 20), tmp_path / "a.lic", "--model", tiny_checkpoint)
    run("decode", tmp_path / "a.lic", tmp_path / "b.png", "--model", tiny_checkpoint, "--device", "cpu", "--threads", "1")
    assert (tmp_path / "b.png").exists()


@pytest.mark.parametrize("gray", [False, True])
def test_verify_prints_the_true_bpp_and_psnr(run, tmp_path, png, gray):
    source, target = png(33, 50, gray=gray), tmp_path / "a.lic"
    result = run("encode", source, target, "--verify", "-q", "90")
    run("decode", target, tmp_path / "b.png")
    n_bytes = target.stat().st_size
    psnr = psnr_db(images.load(source).pixels, images.load(tmp_path / "b.png").pixels)
    facts = f"{n_bytes} bytes, {bpp(n_bytes, 50, 33):.4f} bpp, PSNR {psnr:.2f} dB, quality 90.0"
    assert result.stdout == f"{target}: {facts}\n"


def test_verbose_prints_the_stages(run, tmp_path, png):
    result = run("encode", png(20, 20), tmp_path / "a.lic", "-v")
    assert result.stdout == ""
    assert re.search(r"g_a \d\.\d+ s  h_a .* entropy .*\| with start-up \d+\.\d+ s\n0 symbols clamped\n$", result.stderr)
    result = run("decode", tmp_path / "a.lic", tmp_path / "b.png", "-v")
    assert re.search(r"entropy .* g_s .* pixels .*\| with start-up", result.stderr)


@pytest.mark.parametrize("command", ["encode", "decode", "verify", "inspect"])
def test_threads_are_set(run, tmp_path, png, file, command):
    torch.set_num_threads(1)
    paths = {"encode": (png(8, 8), tmp_path / "b.lic"), "decode": (file, tmp_path / "b.png")}
    run(command, *paths.get(command, (file,)), "--threads", "2")
    assert torch.get_num_threads() == 2


def test_info_prints_a_line_for_each_fact(run, file):
    output = run("info", file).stdout
    facts = dict(line.split(maxsplit=1) for line in output.splitlines())
    assert (facts["width"], facts["height"], facts["model"], facts["quality"]) == ("50", "33", "swift", "60.03")
    assert facts["bytes"] == str(file.stat().st_size)


def test_info_json_is_json(run, file):
    facts = json.loads(run("info", file, "--json").stdout)
    assert (facts["width"], facts["height"], facts["model"]) == (50, 33, "swift")
    assert facts["bytes"] == file.stat().st_size


def test_info_of_a_file_of_an_unknown_checkpoint(run, golden, installed):
    (installed / "manifest.toml").write_text("")
    output = run("info", golden / "v1-1x1-q0.lic").stdout
    assert "model  unknown (checkpoint not installed)" in output


def test_models_lists_the_installed_ones(run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    output = run("models").stdout
    row = next(line for line in output.splitlines() if "swift" in line)
    for cell in ("0.0 M", "3.5", "2.5", "0.25 … 1.75", "30.50 … 40.00", "12"):
        assert cell in row


def test_doctor_is_content(run):
    output = run("doctor").stdout
    assert all(line.startswith("ok    ") for line in output.splitlines())
    assert "checkpoint swift" in output


def test_doctor_fails_on_a_damaged_checkpoint(run, installed):
    path = installed / "swift.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    assert re.search(r"^FAIL  checkpoint .*reinstall$", run("doctor", code=1).stdout, re.MULTILINE)


@pytest.mark.parametrize("command", ["encode", "decode"])
def test_a_missing_input_is_a_usage_error(run, tmp_path, command):
    result = run(command, tmp_path / "none", tmp_path / "out.png", code=2)
    assert_one_line(result, r"none: (no such file|cannot be read \(No such file)")
    assert not (tmp_path / "out.png").exists()


@pytest.mark.parametrize("quality", ["-1", "101", "nan", "fine"])
def test_a_bad_quality_is_a_usage_error(run, tmp_path, png, quality):
    result = run("encode", png(8, 8), tmp_path / "a.lic", "-q", quality, code=2)
    assert "quality" in result.stderr
    assert not (tmp_path / "a.lic").exists()


@pytest.mark.parametrize(
    "arguments", [[], ["encode"], ["nonsense"], ["encode", "a", "b", "--device", "tpu"], ["info", "--xml"]]
)
def test_bad_usage_exits_with_2(run, arguments):
    assert "Usage: " in run(*arguments, code=2).output


def test_existing_targets_need_force(run, tmp_path, png, file):
    before = file.read_bytes()
    assert_one_line(run("encode", png(8, 8), file, code=2), "exists: give -f")
    (tmp_path / "b.png").write_bytes(b"mine")
    assert_one_line(run("decode", file, tmp_path / "b.png", code=2), "exists: give -f")
    assert (file.read_bytes(), (tmp_path / "b.png").read_bytes()) == (before, b"mine")
    run("decode", file, tmp_path / "b.png", "-f")
    run("encode", png(8, 8), file, "--force")
    assert file.read_bytes() != before
    assert images.load(tmp_path / "b.png").pixels.shape == (33, 50, 3)


@pytest.mark.parametrize("command", ["encode", "decode"])
def test_a_target_that_appears_meanwhile_is_kept(run, tmp_path, png, file, monkeypatch, command):
    source, target = (png(8, 8), tmp_path / "b.lic") if command == "encode" else (file, tmp_path / "b.png")
    stage = "encode_picture" if command == "encode" else "decode_tiles"
    work = getattr(Codec, stage)

    def appear(*arguments, **options):
        target.write_bytes(b"mine")
        return work(*arguments, **options)

    monkeypatch.setattr(Codec, stage, appear)
    assert_one_line(run(command, source, target, code=2), "exists: give -f")
    assert target.read_bytes() == b"mine"


@pytest.mark.parametrize("command", ["decode", "info"])
def test_a_damaged_file_exits_with_1_and_leaves_nothing(run, tmp_path, file, command):
    file.write_bytes(file.read_bytes()[:-3])
    before = set(tmp_path.iterdir())
    arguments = [file, tmp_path / "b.png"] if command == "decode" else [file]
    assert_one_line(run(command, *arguments, code=1), "checksum .*: the file is cut off or damaged")
    assert set(tmp_path.iterdir()) == before


def test_a_file_of_an_unknown_checkpoint_exits_with_1(run, tmp_path, file, installed):
    (installed / "manifest.toml").write_text("")
    assert_one_line(run("decode", file, tmp_path / "b.png", code=1), "which is not installed: .*--model")
    assert not (tmp_path / "b.png").exists()


@pytest.mark.parametrize("model", ["nobody", "none.safetensors"])
def test_an_unknown_model_exits_with_1(run, tmp_path, png, model):
    assert_one_line(run("encode", png(8, 8), tmp_path / "a.lic", "--model", model, code=1), "no checkpoint|cannot be read")
    assert not (tmp_path / "a.lic").exists()


def test_what_is_no_picture_exits_with_1_and_leaves_nothing(run, tmp_path):
    (tmp_path / "a.png").write_text("no picture")
    assert_one_line(run("encode", tmp_path / "a.png", tmp_path / "a.lic", code=1), "not a picture that Pillow can read")
    assert not (tmp_path / "a.lic").exists()


def test_a_picture_of_floats_exits_with_1(run, tmp_path):
    Image.new("F", (4, 4)).save(tmp_path / "a.tif")
    assert_one_line(run("encode", tmp_path / "a.tif", tmp_path / "a.lic", code=1), "no known white")


def test_an_unknown_extension_exits_with_1(run, tmp_path, file):
    assert_one_line(run("decode", file, tmp_path / "b.xyz", code=1), "Pillow writes no .xyz files")
    assert not (tmp_path / "b.xyz").exists()


def test_max_pixels_exits_with_1(run, tmp_path, file):
    result = run("decode", file, tmp_path / "b.png", "--max-pixels", "1649", code=1)
    assert_one_line(result, "50×33 pixels, the limit is 1649: raise it with --max-pixels")
    run("decode", file, tmp_path / "b.png", "--max-pixels", "1650")


def test_a_warning_is_one_line_on_stderr(run, tmp_path, picture):
    Image.fromarray(picture(8, 20)).convert("CMYK").save(tmp_path / "a.tif")
    result = run("encode", tmp_path / "a.tif", tmp_path / "a.lic")
    assert_one_line(result, r"^codec: warning: .*a\.tif: CMYK is converted to sRGB")
    assert json.loads(run("info", tmp_path / "a.lic", "--json").stdout)["width"] == 20


def test_running_out_of_memory_is_one_line(run, tmp_path, png, monkeypatch):
    def fail(*_, **__):
        raise MemoryError

    monkeypatch.setattr(images, "load", fail)
    assert_one_line(run("encode", png(8, 8), tmp_path / "a.lic", code=1), "out of memory")


def python_m_codec(*arguments):
    command = [sys.executable, "-m", "codec", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=100)


def test_a_fresh_process_encodes_and_says_nothing_else(tmp_path, png, picture, tiny_checkpoint, tiny_codec):
    options = ("--model", tiny_checkpoint, "--device", "cpu", "--verify")
    done = python_m_codec("encode", png(20, 20), tmp_path / "a.lic", *options)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(r".*a\.lic: \d+ bytes, \d+\.\d{4} bpp, PSNR \d+\.\d\d dB, quality 50\.0\n", done.stdout)
    decoded = np.asarray(tiny_codec.decode((tmp_path / "a.lic").read_bytes()))
    assert psnr_db(decoded, picture(20, 20)) > 15


@pytest.mark.parametrize(
    ("arguments", "code"), [(("info", "none.lic"), 2), (("decode", "none.lic", "out.png"), 2), (("bad",), 2)]
)
def test_a_fresh_process_prints_no_traceback(arguments, code):
    done = python_m_codec(*arguments)
    assert done.returncode == code
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_version_and_help():
    result = CliRunner().invoke(main, ["--version"])
    assert result.output == f"codec, version {importlib.metadata.version('learned-image-codec')}\n"
    for arguments in (["-h"], ["encode", "--help"], ["decode", "-h"], ["info", "-h"], ["train", "-h"], ["export", "-h"]):
        assert CliRunner().invoke(main, arguments).exit_code == 0


def test_a_folder_that_was_never_installed_has_no_version(monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    assert CliRunner().invoke(main, ["--version"]).output == "codec, version 0+unknown\n"


def test_strip_leaves_exif_away(run, tmp_path, picture):
    exif = Image.Exif()
    exif[0x010F] = "a maker"
    Image.fromarray(picture(20, 20)).save(tmp_path / "a.png", exif=exif)
    for name, options in (("kept", ()), ("stripped", ("--strip",))):
        run("encode", tmp_path / "a.png", tmp_path / f"{name}.lic", *options)
    kept, stripped = (Container.unpack((tmp_path / f"{name}.lic").read_bytes()).metadata.exif for name in ("kept", "stripped"))
    assert b"a maker" in kept
    assert not stripped


def test_strict_refuses_what_would_be_lost(run, tmp_path):
    Image.new("CMYK", (20, 20)).save(tmp_path / "a.tif")
    result = run("encode", tmp_path / "a.tif", tmp_path / "a.lic", "--strict", code=1)
    assert_one_line(result, "CMYK is converted to sRGB")
    assert not (tmp_path / "a.lic").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("command", ["encode", "decode", "compare", "evaluate", "batch"])
def test_every_command_heeds_the_device(run, tmp_path, png, file, command):
    source = png(8, 8)
    arguments = {
        "encode": (source, tmp_path / "b.lic"),
        "decode": (file, tmp_path / "b.png"),
        "compare": (source, "--peers", "jpeg", "-o", tmp_path / "b.html"),
        "evaluate": (tmp_path,),
        "batch": (tmp_path, tmp_path / "out", "--workers", 0),
    }
    assert "no CUDA GPU here" in run(command, *arguments[command], "--device", "cuda", code=2).stderr


@pytest.mark.parametrize("command", ["verify", "inspect"])
@pytest.mark.parametrize(
    ("option", "message"), [("--max-pixels=1649", "the limit is 1649"), ("--max-memory=1MB", "raise it with --max-memory")]
)
def test_limits_hold_where_a_file_is_only_looked_at(run, file, command, option, message):
    assert message in run(command, file, option, code=1).output
    run(command, file)


def test_several_files_are_looked_at_all_of_them(run, tmp_path, file):
    (tmp_path / "bad.lic").write_bytes(file.read_bytes()[:-1])
    found = run("verify", file, tmp_path / "bad.lic", tmp_path / "none.lic", file, code=1)
    lines = found.stdout.splitlines()
    assert [lines[0], lines[-1]] == [f"ok    {file}"] * 2
    assert any(line.startswith(f"FAIL  {tmp_path / 'bad.lic'}: checksum: ") for line in lines)
    assert "none.lic" in found.output
    assert len(lines) == 4 - ("none.lic" in found.stderr)
    told = run("info", file, tmp_path / "none.lic", file, "--json", code=1)
    assert [json.loads(line)["width"] for line in told.stdout.splitlines()] == [50, 50]
    assert "none.lic" in told.stderr
    assert f"codec: {tmp_path / 'bad.lic'}: " in run("info", file, tmp_path / "bad.lic", code=1).stderr


def test_a_source_is_never_its_own_target(run, tmp_path, png, file):
    source, before = png(8, 8), file.read_bytes()
    (tmp_path / "link.lic").symlink_to(file)
    for arguments in (
        ("encode", "-f", source, source),
        ("decode", "-f", file, tmp_path / "link.lic", "--format", "png"),
        ("compare", "-f", source, "--peers", "jpeg", "-o", source),
        ("inspect", "-f", file, "--heatmap", file),
    ):
        assert "is the source too and would be lost" in run(*arguments, code=2).stderr
    assert file.read_bytes() == before
    assert source.read_bytes().startswith(b"\x89PNG")


def test_files_that_a_folder_has_besides_are_counted(run, tmp_path, png):
    (tmp_path / "in").mkdir()
    png(8, 8).rename(tmp_path / "in" / "a.png")
    for name in ("a.HEIC", "b.heic", "notes.txt"):
        (tmp_path / "in" / name).touch()
    said = run("encode", "-r", tmp_path / "in", "-o", tmp_path / "out").stderr
    assert said == "codec: 3 other files left out (2 .heic, 1 .txt)\n"
    assert run("encode", "-r", "--quiet", "-f", tmp_path / "in", "-o", tmp_path / "out").stderr == ""
