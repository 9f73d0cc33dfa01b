"""encode and decode as a shell uses them: pipes, several files, folders, JSON, a terminal, names of any kind."""

from __future__ import annotations

import errno
import functools
import io
import json
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image

from bitstream.limits import Limits
from codec import Codec, images, info
from codec.cli import coding, files
from codec.cli.main import main
from codec.metrics import bpp, psnr_db

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def run(installed, tmp_path, monkeypatch, call_codec):
    """Return run(*arguments, code=0, stdin=b""): the result of a call in this process; the current folder is a new one."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return call_codec


@pytest.fixture
def draw(run, picture):
    """Return draw(*names): pictures of 24 × 16 in the current folder."""

    def save(*names):
        for seed, name in enumerate(names):
            os.makedirs(os.path.dirname(name) or ".", exist_ok=True)
            Image.fromarray(picture(16, 24, seed)).save(name)

    return save


@pytest.fixture
def terminal(monkeypatch):
    """Return terminal(*names): what the command is told to be a terminal, of stdin, stdout, stderr; rich believes it too."""

    def pretend(*names):
        monkeypatch.setattr(files, "is_terminal", lambda stream: any(stream is getattr(sys, name) for name in names))
        monkeypatch.setenv("TTY_COMPATIBLE", "1")
        monkeypatch.setenv("TERM", "xterm-256color")
        monkeypatch.setenv("COLUMNS", "100")

    return pretend


def rows(result):
    return [json.loads(line) for line in result.stdout.splitlines()]


def tree():
    """Return the files below the current folder."""
    return sorted(str(path) for path in Path().rglob("*") if path.is_file())


# --- stdin and stdout


def test_a_picture_goes_through_pipes(run, draw, tiny_codec):
    draw("a.png")
    data = run("encode", "-", "-", stdin=Path("a.png").read_bytes())
    assert data.stdout_bytes == tiny_codec.encode("a.png", quality=50)
    assert data.stderr == ""
    shown = run("decode", "-", "-", stdin=data.stdout_bytes)
    assert shown.stdout_bytes.startswith(b"\x89PNG")
    assert Image.open(io.BytesIO(shown.stdout_bytes)).tobytes() == tiny_codec.decode(data.stdout_bytes).tobytes()
    assert tree() == ["a.png"]


@pytest.mark.parametrize(("name", "kind"), [("webp", "WEBP"), ("PPM", "PPM"), ("tif", "TIFF")])
def test_the_format_on_stdout_is_asked_for(run, draw, tiny_codec, name, kind):
    draw("a.png")
    data = tiny_codec.encode("a.png")
    shown = Image.open(io.BytesIO(run("decode", "-", "-", "--format", name, stdin=data).stdout_bytes))
    assert shown.format == kind
    assert shown.tobytes() == tiny_codec.decode(data).tobytes()


def test_the_format_counts_more_than_the_name(run, draw):
    draw("a.png")
    run("encode", "a.png", "a.lic")
    run("decode", "a.lic", "b.tmp", "--format", "bmp")
    assert Image.open("b.tmp").format == "BMP"
    run("decode", "a.lic", "-o", "out", "--format", "bmp")
    run("decode", "a.lic", "-o", "out", "--format", "bmp", "--suffix", ".tmp")
    assert {Image.open(name).format for name in ("out/a.bmp", "out/a.tmp")} == {"BMP"}
    assert "cannot be written as '.xyz': give .png" in run("decode", "a.lic", "-", "--format", "xyz", code=2).stderr


@pytest.mark.parametrize("options", [["--verify"], ["--json"], ["--verify", "-v"]])
def test_reports_go_to_stderr_when_the_file_goes_to_stdout(run, draw, tiny_codec, options):
    draw("a.png")
    result = run("encode", "a.png", "-", *options)
    assert result.stdout_bytes == tiny_codec.encode("a.png")
    assert re.search(r'-: \d+ bytes, .* PSNR|"target": "-", "bytes": \d+', result.stderr)


@pytest.mark.parametrize("command", ["encode", "decode"])
def test_bytes_do_not_go_to_a_terminal(run, draw, terminal, monkeypatch, command):
    draw("a.png")
    monkeypatch.delattr(Codec, "__init__")  # nothing is loaded either
    terminal("stdout")
    result = run(command, "a.png", "-", code=2)
    assert result.stderr == "codec: stdout is a terminal: redirect it (> FILE), or name a file instead of -\n"
    terminal("stdin")
    result = run(command, "-", "a.out", code=2)
    assert result.stderr == "codec: stdin is a terminal: redirect a file into it (< FILE), or name the file instead of -\n"
    assert result.stdout_bytes == b""


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="no pseudo-terminals")
def test_a_true_terminal_is_known(tmp_path):
    (tmp_path / "a.lic").touch()
    leader, follower = os.openpty()
    command = [sys.executable, "-m", "codec", "decode", str(tmp_path / "a.lic"), "-"]
    environment = dict(os.environ, PYTHONPATH=str(ROOT))
    done = subprocess.run(command, stdout=follower, stderr=subprocess.PIPE, env=environment, cwd=ROOT, timeout=60)
    os.close(leader)
    os.close(follower)
    assert (done.returncode, done.stderr[:29]) == (2, b"codec: stdout is a terminal: ")


def test_what_is_no_picture_on_stdin_exits_with_1(run):
    assert "not a picture that Pillow can read" in run("encode", "-", "-", stdin=b"no picture", code=1).stderr
    result = run("decode", "-", "-", stdin=b"no file", code=1)
    assert (result.stderr[:24], result.stdout_bytes) == ("codec: not a .lic file: ", b"")
    assert "has 5 bytes, the limit is 4" in run("decode", "-", "-", "--max-memory", "4", stdin=b"12345", code=1).stderr


def test_a_file_named_minus_is_reached_by_its_folder(run, draw):
    draw("a.png")
    run("encode", "a.png", "./-")
    assert tree() == ["-", "a.png"]
    assert json.loads(run("info", "./-", "--json").stdout)["width"] == 24


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes")
def test_a_named_pipe_is_read_too(run, draw, tiny_codec):
    draw("a.png")
    os.mkfifo("pipe")
    writer = threading.Thread(target=lambda: Path("pipe").write_bytes(Path("a.png").read_bytes()))
    writer.start()
    run("encode", "pipe", "a.lic")
    writer.join()
    assert Path("a.lic").read_bytes() == tiny_codec.encode("a.png")


def test_info_and_verify_read_stdin(run, draw, tiny_codec):
    draw("a.png")
    data = tiny_codec.encode("a.png")
    assert json.loads(run("info", "-", "--json", stdin=data).stdout)["bytes"] == len(data)
    assert run("verify", "-", stdin=data).stdout.startswith(f"ok    read: {len(data)} bytes\n")
    assert "FAIL  checksum" in run("verify", "-", stdin=data[:-1], code=1).stdout


# --- several files


def test_several_files_are_written_into_a_folder(run, draw, tiny_codec, monkeypatch):
    loads = []
    monkeypatch.setattr(Codec, "__init__", lambda self, *args, plain=Codec.__init__: loads.append(args) or plain(self, *args))
    draw("a.png", "b.webp", "sub/c.png")
    assert run("encode", "a.png", "b.webp", "sub/c.png", "-o", "new/out", "-q", "30").output == ""
    assert Path("new/out/c.lic").read_bytes() == tiny_codec.encode("sub/c.png", quality=30)
    options = ("--suffix", ".half.bmp", "--scale", "1/2")
    assert run("decode", "-o", "back", "new/out/a.lic", "new/out/c.lic", *options).output == ""
    coded = ["new/out/a.lic", "new/out/b.lic", "new/out/c.lic"]
    assert tree() == sorted(["a.png", "b.webp", "sub/c.png", *coded, "back/a.half.bmp", "back/c.half.bmp"])
    assert Image.open("back/c.half.bmp").size == (12, 8)
    assert len(loads) == 1


def test_a_folder_keeps_its_tree(run, draw):
    draw("in/a.png", "in/deep/b.png")
    Path("in/note.txt").write_text("no picture")
    run("encode", "-r", "in", "-o", "out")
    run("decode", "--recursive", "out", "-o", "back")
    pictures = ["in/a.png", "in/deep/b.png", "back/a.png", "back/deep/b.png"]
    assert tree() == sorted([*pictures, "in/note.txt", "out/a.lic", "out/deep/b.lic"])


def test_the_error_of_one_file_does_not_stop_the_others(run, draw, tiny_codec):
    draw("a.png", "c.png")
    Path("b.png").write_text("no picture")
    result = run("encode", "a.png", "b.png", "c.png", "-o", "out", code=1)
    assert result.stderr == (
        "codec: b.png: not a picture that Pillow can read: give a PNG, JPEG, WebP, TIFF or BMP file\ncodec: 1 of 3 failed\n"
    )
    Path("out/b.lic").write_bytes(tiny_codec.encode("a.png")[:-1])
    result = run("decode", "-r", "out", "-o", "back", code=1)
    assert re.fullmatch(r"codec: out/b.lic: file checksum is .*\ncodec: 1 of 3 failed\n", result.stderr)
    assert [name for name in tree() if name.startswith(("out", "back"))] == [
        "back/a.png", "back/c.png", "out/a.lic", "out/b.lic", "out/c.lic",
    ]  # fmt: skip


def test_running_out_of_memory_is_the_error_of_one_file(run, draw, monkeypatch):
    draw("a.png", "b.png")
    load = images.load

    def fail(source, **options):
        if source == "a.png":
            raise MemoryError
        return load(source, **options)

    monkeypatch.setattr(images, "load", fail)
    result = run("encode", "a.png", "b.png", "-o", "out", code=1)
    assert result.stderr.startswith("codec: a.png: out of memory")
    assert tree() == ["a.png", "b.png", "out/b.lic"]


def test_a_surprise_in_one_of_several_files_does_not_stop_the_others(run, draw, monkeypatch):
    draw("a.png", "b.png")
    load = images.load
    monkeypatch.setattr(images, "load", lambda source, **given: 1 / 0 if source == "a.png" else load(source, **given))
    sentence = "an error of the program (ZeroDivisionError: division by zero): please report it"
    result = run("encode", "a.png", "b.png", "-o", "out", "--json", code=1)
    assert result.stderr == f"codec: a.png: {sentence}\ncodec: 1 of 2 failed\n"
    assert [row.get("error") for row in rows(result)] == [sentence, None]
    assert tree() == ["a.png", "b.png", "out/b.lic"]


def test_when_nobody_reads_stderr_any_more_the_rest_is_not_done(run, draw, monkeypatch):
    def broken(*_):
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    draw("a.png", "b.png")
    monkeypatch.setattr(coding, "_print_timings", broken)
    assert run("encode", "a.png", "b.png", "-o", "out", "-v", code=1).stderr == ""
    assert tree() == ["a.png", "b.png", "out/a.lic"]


def test_a_mistake_of_ours_in_a_single_file_is_not_hidden(run, draw, monkeypatch):
    draw("a.png")
    monkeypatch.setattr(images, "load", lambda *_, **__: 1 / 0)
    assert isinstance(CliRunner().invoke(main, ["encode", "a.png", "-o", "out"]).exception, ZeroDivisionError)


def test_an_effort_that_the_model_has_not_is_one_usage_error(run, draw, golden):
    draw("a.png", "b.png")
    model = golden / "tiny-joint.safetensors"
    result = run("encode", "a.png", "b.png", "-o", "out", "--model", model, "--effort", "1", code=2)
    assert result.stderr == "codec: joint has no effort above 0: leave it away, or choose swift\n"
    assert not Path("out").exists()


def test_a_picture_too_large_for_a_pipe_has_a_cure_that_encode_has(run, draw, monkeypatch):
    draw("a.png")
    monkeypatch.setattr(coding, "Limits", functools.partial(Limits, max_memory=100))
    error = run("encode", "-", "b.lic", stdin=Path("a.png").read_bytes(), code=1).stderr
    cure = "save the picture as a file, and give its name"
    assert error == f"codec: stdin: more than 100 bytes, the most that is read of a pipe: {cure}\n"
    run("encode", "a.png", "b.lic")  # as it says


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a.png", "b.png", "none.png", "-o", "out"], "none.png: no such file"),
        (["a.png", "sub/a.png", "-o", "out"], "a.png and sub/a.png would both become out/a.lic"),
        (["a.png", "sub"], "sub is a folder, expected a file name: to write into it give -o sub"),
        (["a.png", "b.png"], "b.png exists: give -f to replace it, or -o DIR if it is a second source"),
        (["sub", "b.png", "-o", "out"], "sub is a folder: give --recursive"),
        (["a.png", "-o", "out", "-f", "--skip-existing"], "give one of them"),
        (["a.png", "c.lic", "--suffix", ".x"], "--suffix is given without a folder"),
        (["a.png", "c.lic", "-r"], "--recursive is given without a folder"),
        (["a.png", "b.png", "-o", "out", "--size", "1KB", "--bpp", "1"], "bpp and size are given"),
    ],
)
def test_wrong_usage_is_found_before_any_work(run, draw, arguments, message):
    draw("a.png", "b.png", "sub/a.png")
    result = run("encode", *arguments, code=2)
    assert result.stderr.startswith("codec: ")
    assert result.stderr.count("\n") == 1
    assert message in result.stderr
    assert (tree(), Path("out").exists()) == (["a.png", "b.png", "sub/a.png"], False)


def test_targets_that_exist_are_refused_skipped_or_replaced(run, draw):
    draw("a.png", "b.png")
    Path("out").mkdir()
    Path("out/a.lic").write_bytes(b"mine")
    arguments = ("encode", "a.png", "b.png", "-o", "out")
    assert "out/a.lic exists: give -f to replace it, or --skip-existing" in run(*arguments, code=2).stderr
    assert tree() == ["a.png", "b.png", "out/a.lic"]
    skipped, written = rows(run(*arguments, "--skip-existing", "--json"))
    assert (skipped["skipped"], skipped["bytes"], "skipped" in written) == (True, 4, False)
    assert (Path("out/a.lic").read_bytes(), Path("out/b.lic").exists()) == (b"mine", True)
    run(*arguments, "-f")
    assert info("out/a.lic").width == 24
    before = Path("b.png").read_bytes()
    run("encode", "a.png", "b.png", "--skip-existing")
    assert Path("b.png").read_bytes() == before


def test_a_target_that_appears_meanwhile_is_kept_and_the_rest_goes_on(run, draw, monkeypatch):
    draw("a.png", "b.png")
    work = Codec.encode_picture

    def appear(*arguments, **options):
        Path("out/a.lic").write_bytes(b"mine")
        return work(*arguments, **options)

    monkeypatch.setattr(Codec, "encode_picture", appear)
    result = run("encode", "a.png", "b.png", "-o", "out", code=1)
    assert re.fullmatch(r"codec: out/a.lic exists: give -f .*\ncodec: 1 of 2 failed\n", result.stderr)
    assert (Path("out/a.lic").read_bytes(), Path("out/b.lic").exists()) == (b"mine", True)


def test_a_folder_that_cannot_be_made_is_one_line(run, draw, monkeypatch):
    draw("a.png", "b.png")

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "makedirs", full)
    result = run("encode", "a.png", "b.png", "-o", "out", code=1)
    assert result.stderr == "codec: out: cannot be made a folder (No space left on device)\n"


# --- reports


def test_json_is_a_line_for_each_file(run, draw):
    draw("a.png", "c.png")
    Path("b.png").write_text("no picture")
    result = run("encode", "a.png", "b.png", "c.png", "-o", "out", "--json", "--verify", code=1)
    first, failed, last = rows(result)
    size = os.path.getsize("out/a.lic")
    run("decode", "out/a.lic", "x.png")
    psnr = psnr_db(images.load("a.png").pixels, images.load("x.png").pixels)
    assert first.pop("seconds") > 0
    assert first == {
        "source": "a.png", "target": "out/a.lic", "bytes": size, "source_bytes": os.path.getsize("a.png"), "width": 24,
        "height": 16, "bpp": round(bpp(size, 24, 16), 5), "quality": 50.0, "model": "swift", "psnr_db": round(psnr, 5),
    }  # fmt: skip
    assert set(failed) == {"source", "target", "error", "seconds"}
    assert failed["error"] == "b.png: not a picture that Pillow can read: give a PNG, JPEG, WebP, TIFF or BMP file"
    assert last["source"] == "c.png"
    (row,) = rows(run("decode", "out/a.lic", "y.png", "--json"))
    assert (row["bytes"], row["source_bytes"], row["bpp"]) == (os.path.getsize("y.png"), size, first["bpp"])
    assert (row["width"], row["height"], row["quality"], row["model"]) == (24, 16, 50.0, "swift")


def test_json_has_the_error_of_a_single_file_too(run):
    Path("b.png").write_text("no picture")
    result = run("encode", "b.png", "b.lic", "--json", code=1)
    assert rows(result)[0]["error"] in result.stderr


def test_the_psnr_of_equal_pictures_is_null_in_json(run, draw, monkeypatch):
    draw("a.png")
    monkeypatch.setattr("codec.metrics.psnr_db", lambda *_: float("inf"))
    (row,) = rows(run("encode", "a.png", "a.lic", "--json", "--verify"))
    assert row["psnr_db"] is None


def test_quiet_is_quiet(run, draw, terminal):
    terminal("stderr")
    draw("a.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open("a.png").save("b.jpg", exif=exif)
    assert run("encode", "a.png", "b.jpg", "-o", "out", "--verify", "--quiet").output == ""
    Path("b.jpg").write_text("no picture")
    assert "1 of 2 failed" in run("encode", "a.png", "b.jpg", "-o", "new", "--quiet", code=1).stderr


def test_a_terminal_shows_a_bar_and_a_summary(run, draw, terminal):
    draw("a.png", "b.png", "c.png")
    assert run("encode", "a.png", "b.png", "c.png", "-o", "piped").output == ""
    terminal("stderr")
    result = run("encode", "a.png", "b.png", "c.png", "-o", "out")
    assert result.stdout == ""
    assert "3/3" in result.stderr
    assert "━" in result.stderr
    assert "\x1b[32m" in result.stderr  # green
    before, after = (sum(map(os.path.getsize, names)) for names in (["a.png", "b.png", "c.png"], Path("out").iterdir()))
    assert after < 1000 < before < 10_000
    last = f"3 files: {before / 1000:.1f} kB → {after} bytes, {(before - after) / 1000:.1f} kB saved, in \\d+\\.\\d s"
    assert re.fullmatch(last, result.stderr.splitlines()[-1].split("\x1b[2K")[-1])
    assert "/1" not in run("encode", "a.png", "single.lic").stderr


def test_no_color_is_heeded(run, draw, terminal, monkeypatch):
    draw("a.png", "b.png")
    terminal("stderr")
    monkeypatch.setenv("NO_COLOR", "1")
    result = run("encode", "a.png", "b.png", "-o", "out")
    assert "━" in result.stderr
    assert not re.search(r"\x1b\[[\d;]*m", result.stderr)


def test_lines_of_json_are_not_torn_by_a_bar(run, draw, terminal):
    draw("a.png", "b.png")
    terminal("stderr", "stdout")
    result = run("encode", "a.png", "b.png", "-o", "out", "--json")
    assert len(rows(result)) == 2
    assert "━" not in result.stderr


# --- names


def test_names_are_not_interpreted(run, draw):
    names = ["-q.png", "--help", "a b.png", "[ab].png", "*.png", "$(x).png", "~", "é\n\x1b[31m.png"]
    draw("a.png", "b.png", "./-q.png")
    for name in names[1:]:
        Path(name).write_bytes(Path("a.png").read_bytes())
    run("encode", "-o", "out", "--", *names)
    coded = [f"out/{os.path.splitext(name)[0]}.lic" for name in names]
    assert tree() == sorted(["a.png", "b.png", *names, *coded])
    for name in names:
        Path(name).write_text("no picture")
    result = run("encode", "-f", "-o", "out", "--", *names, code=1)
    lines = result.stderr.split("\n")
    assert len(lines) == len(names) + 2
    assert all(re.fullmatch(r"codec: [^\x1b]*: not a picture .*", line) for line in lines[:-2])
    assert lines[7].startswith(r"codec: é\n\x1b[31m.png: not a picture")


def test_names_that_are_no_utf_8_are_kept(run, draw):
    name, odd = os.fsdecode(b"\xff.png"), os.fsdecode(b"out/\xff.lic")
    draw("a.png", "b.png")
    try:
        os.replace("a.png", name)
    except OSError:
        pytest.skip("this file system takes UTF-8 only")
    result = run("encode", name, "b.png", "-o", "out", "--verify")
    assert result.stdout.startswith("out/\\udcff.lic: ")
    assert os.path.exists(odd)
    (row,) = rows(run("decode", odd, "-o", "back", "--json"))
    assert os.fsencode(row["target"]) == b"back/\xff.png"
    assert r"file  out/\udcff.lic" in run("info", odd).stdout
    assert r"out/\udcff.lic exists" in run("encode", name, "-o", "out", code=2).stderr


# --- help


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script(run, shell):
    script = run("completion", shell).stdout
    assert f"_CODEC_COMPLETE={shell}_complete" in script
    assert f"codec completion {shell}" in run("--help").stdout


def test_arguments_and_options_complete(monkeypatch):
    def complete(words):
        environment = {"_CODEC_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
        return CliRunner().invoke(main, prog_name="codec", env=environment).stdout.split()

    assert complete("codec enc") == ["plain,encode"]
    assert complete("codec encode ph") == ["file,ph"]
    assert complete("codec decode a.lic -o ou") == ["dir,ou"]
    assert complete("codec decode --skip") == ["plain,--skip-existing"]


def test_help_has_exit_codes_and_examples(run):
    assert re.search(r"Exit status:\n +0 +done\n +1 .*\n +2 .*\n +128 \+ n .*130", run("--help").stdout)
    for command in ("encode", "decode"):
        assert re.search(rf"Examples:\n +codec {command} photo", run(command, "--help").stdout)
