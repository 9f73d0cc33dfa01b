"""``codec evaluate`` whole: the table, what it writes, that a run goes on where it was."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image

from codec.cli.main import main

PEERS = "jpeg,webp,jpeg2000"


def invoke(*arguments):
    """Run ``codec evaluate`` in this process."""
    return CliRunner().invoke(main, ["evaluate", *map(str, arguments)])


def rows_of(out):
    """The rows of a folder by codec, picture and quality."""
    rows = [json.loads(line) for line in (out / "rows.jsonl").read_text().splitlines()]
    return {(row["codec"], row["image"], row["quality"]): row for row in rows}


def test_the_report_of_a_model_is_printed(pictures, tiny_checkpoint):
    result = invoke(pictures, "--model", tiny_checkpoint, "--threads", 1)
    assert result.exit_code == 0, result.output
    assert all(word in result.stdout for word in ("λ", "pixels", "bits", "bpp", "PSNR", "encode", "decode"))
    levels = [line for line in result.stdout.splitlines() if line.startswith("│ ")]
    assert len(levels) == 4  # of the tiny checkpoint


def test_rows_tables_and_plots_are_written(pictures, tiny_checkpoint, tmp_path):
    out = tmp_path / "out"
    quoted = tmp_path / "quoted.json"
    quoted.write_text(json.dumps({"old codec": {"bpp": [0.5, 1, 2, 4], "psnr": [20, 25, 30, 35], "source": "a paper"}}))
    arguments = [pictures, "--model", tiny_checkpoint, "--peers", PEERS, "-q", "20,50,80,95", "--quoted", quoted, "-o", out]
    result = invoke(*arguments)
    assert result.exit_code == 0, result.output
    assert len(rows_of(out)) == 4 * 4 * 4
    summary = json.loads((out / "summary.json").read_text())
    assert summary["pictures"] == ["a.png", "b.png", "c.png", "more/d.png"]
    assert set(summary["codecs"]) == {"tiny-swift", "jpeg", "webp", "jpeg2000"}
    matrix = summary["bd_rate_percent"]["psnr_db"]
    assert matrix["jpeg2000"]["jpeg"] * matrix["jpeg"]["jpeg2000"] < 0
    assert isinstance(summary["bd_rate_to_quoted_percent"]["psnr_db"]["jpeg"]["old codec"], float)
    report = (out / "report.md").read_text()
    assert "old codec" in report
    assert "quoted, not run here" in report
    assert "old codec (quoted)" in (out / "psnr.svg").read_text()
    with Image.open(out / "psnr.png") as plot:
        assert plot.width >= 1000
    assert "ms_ssim_db" not in summary["bd_rate_percent"]  # pictures too small for MS-SSIM have no mean of it


def test_a_second_run_measures_nothing_and_a_changed_picture_anew(pictures, tmp_path, picture):
    out = tmp_path / "out"
    arguments = [pictures, "--model", "", "--peers", "jpeg,webp", "-q", "30,60", "-o", out]
    assert invoke(*arguments).exit_code == 0
    before = rows_of(out)
    assert invoke(*arguments).exit_code == 0
    assert rows_of(out) == before  # times included
    Image.fromarray(picture(64, 96, 9)).save(pictures / "a.png")
    assert invoke(*arguments).exit_code == 0
    changed = {key for key, row in rows_of(out).items() if row != before[key]}
    assert changed == {(codec, "a.png", quality) for codec in ("jpeg", "webp") for quality in (30.0, 60.0)}


@pytest.mark.slow
def test_processes_measure_the_same_files(pictures, tiny_checkpoint, tmp_path):
    arguments = [pictures, "--model", tiny_checkpoint, "--peers", "jpeg,webp", "-q", "30,60", "--threads", 1]
    for jobs in (1, 2):
        assert invoke(*arguments, "-o", tmp_path / f"out{jobs}", "--jobs", jobs).exit_code == 0
    sizes = [{key: row["bytes"] for key, row in rows_of(tmp_path / f"out{jobs}").items()} for jobs in (1, 2)]
    assert sizes[0] == sizes[1]
    assert len(sizes[0]) == 4 * 3 * 2


@pytest.mark.slow
def test_a_run_that_is_killed_loses_at_most_one_row_and_goes_on(pictures, tiny_checkpoint, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    arguments = [pictures, "--model", tiny_checkpoint, "--peers", PEERS, "-q", "20,40,60,80", "--threads", "1"]
    assert invoke(*arguments, "-o", whole).exit_code == 0
    command = [sys.executable, "-m", "codec", "evaluate", *map(str, arguments), "-o", str(killed)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    lines = 0
    while lines < 5 and process.poll() is None:
        lines = (killed / "rows.jsonl").read_bytes().count(b"\n") if (killed / "rows.jsonl").exists() else 0
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    text = (killed / "rows.jsonl").read_bytes()
    kept = [json.loads(line) for line in text.split(b"\n")[:-1]]
    assert len(kept) >= lines >= 5
    assert len(kept) < 64
    assert invoke(*arguments, "-o", killed).exit_code == 0
    again = rows_of(killed)
    assert {key: row["bytes"] for key, row in again.items()} == {key: row["bytes"] for key, row in rows_of(whole).items()}
    assert all(again[row["codec"], row["image"], row["quality"]] == row for row in kept)  # none was run twice


@pytest.fixture
def two_processes(pictures, tmp_path):
    """A run of two processes, in a session of its own, that has its first rows."""
    command = [sys.executable, "-m", "codec", "evaluate", str(pictures), "--model", "", "--peers", "avif,jpeg2000"]
    command += ["-o", str(tmp_path / "out"), "--jobs", "2", "--threads", "1"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True,
                               preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))  # fmt: skip
    rows = tmp_path / "out" / "rows.jsonl"
    while process.poll() is None and not (rows.exists() and rows.read_bytes()):
        time.sleep(0.01)
    assert process.poll() is None
    assert len(of_session(process.pid)) >= 3
    yield process
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    process.stderr.close()


def assert_session_ends(session):
    """Wait until no process of a session is left."""
    end = time.monotonic() + 20
    while of_session(session) and time.monotonic() < end:
        time.sleep(0.1)
    assert not of_session(session)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks into /proc")
def test_processes_end_with_the_one_that_made_them(two_processes):
    os.kill(two_processes.pid, signal.SIGKILL)
    two_processes.wait()
    assert_session_ends(two_processes.pid)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks into /proc")
def test_an_interrupt_ends_all_processes_without_a_traceback(two_processes):
    os.killpg(two_processes.pid, signal.SIGINT)  # as a terminal does
    _, said = two_processes.communicate(timeout=60)
    assert two_processes.returncode == 130
    assert said.endswith(b"codec: interrupted\n")
    assert b"Traceback" not in said
    assert_session_ends(two_processes.pid)


def of_session(session):
    """The processes of a session that have not ended."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, _, own = stat.read_text().rpartition(")")[2].split()[:4]
            if int(own) == session and state != "Z":
                found.append(stat.parent.name)
    return found


def test_a_picture_that_one_codec_cannot_hold_does_not_stop_the_others(pictures, tmp_path):
    Image.new("RGB", (16400, 1)).save(pictures / "long.png")
    result = invoke(pictures, "--model", "", "--peers", "webp,jpeg", "-q", "30,60", "-o", tmp_path / "out")
    assert result.exit_code == 1
    assert "long.png: webp cannot store a picture of 16400×1 pixels" in result.stderr
    kept = rows_of(tmp_path / "out")
    assert len([key for key in kept if key[0] == "jpeg"]) == 10
    assert len([key for key in kept if key[0] == "webp"]) == 8


def test_a_quoted_curve_of_the_same_name_is_another_one(pictures, tmp_path):
    quoted = tmp_path / "quoted.json"
    quoted.write_text(json.dumps({"jpeg": {"bpp": [90, 91, 92, 93], "psnr": [20, 25, 30, 35], "source": "a paper"}}))
    out = tmp_path / "out"
    assert invoke(pictures, "--model", "", "--peers", "jpeg,webp", "--quoted", quoted, "-o", out).exit_code == 0
    summary = json.loads((out / "summary.json").read_text())
    assert abs(summary["bd_rate_percent"]["psnr_db"]["webp"]["jpeg"]) < 100
    assert summary["bd_rate_to_quoted_percent"]["psnr_db"]["webp"]["jpeg"] < -90


def test_pictures_that_cannot_be_used_are_named_at_the_end(pictures, tmp_path):
    Image.new("F", (8, 8)).save(pictures / "float.tif")
    result = invoke(pictures, "--model", "", "--peers", "jpeg", "-q", "50", "-o", tmp_path / "out")
    assert result.exit_code == 1
    assert "left out" in result.stderr
    assert "float.tif" in result.stderr
    assert len(rows_of(tmp_path / "out")) == 4


def test_a_name_that_is_no_unicode_is_kept(pictures, tmp_path):
    name = os.fsdecode(b"\xff.png")
    (pictures / "a.png").rename(pictures / name)
    for _ in range(2):
        result = invoke(pictures, "--model", "", "--peers", "jpeg", "-q", "50", "-o", tmp_path / os.fsdecode(b"out\xfe"))
        assert result.exit_code == 0, result.output
        assert name in {image for _, image, _ in rows_of(tmp_path / os.fsdecode(b"out\xfe"))}


def test_closed_streams_do_not_stop_it(pictures, tmp_path):
    command = ["sh", "-c", '"$@" >&- 2>&-', "sh", sys.executable, "-m", "codec", "evaluate", str(pictures), "--model", ""]
    done = subprocess.run([*command, "--peers", "jpeg", "-q", "50", "-o", str(tmp_path / "out")], timeout=120)
    assert done.returncode == 0
    assert (tmp_path / "out" / "report.md").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--peers", "heic"], "choose from jpeg"),
        (["--metrics", "vmaf"], "choose from psnr, ms-ssim"),
        (["--metrics", ","], "no metric is given"),
        (["--model", "", "-q", "50"], "no model and no peer"),
        (["--model", "", "--peers", "jpeg", "-q", "50.5"], "expected a whole number"),
        (["--model", "", "--peers", "jpeg", "-q", "many"], "expected numbers like"),
        (["--model", "", "--peers", "jpeg", "-q", ","], "no quality is given"),
        (["--model", "no-such-model"], "no-such-model"),
        (["--model", "", "--peers", "jpeg", "-o", "no/such/folder"], "cannot be made a folder"),
        (["--model", "", "--peers", "jpeg", "-o", ""], "has no name"),
        (["--model", "", "--peers", "jpeg", "--quoted", __file__], "give a folder for the plots, -o out/"),
    ],
)
def test_what_cannot_be_is_said_before_the_work(pictures, arguments, words):
    result = invoke(pictures, *arguments)
    assert result.exit_code in (1, 2)
    assert words in result.stderr
    assert isinstance(result.exception, SystemExit)


def test_a_file_as_the_output_is_refused(pictures, tmp_path):
    (tmp_path / "rows.json").write_text("mine")
    result = invoke(pictures, "--model", "", "--peers", "jpeg", "-o", tmp_path / "rows.json")
    assert result.exit_code == 2
    assert (tmp_path / "rows.json").read_text() == "mine"
