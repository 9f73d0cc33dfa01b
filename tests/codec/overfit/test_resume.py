"""A descent that is cut short: what an interrupt leaves, and how ``--resume`` goes on."""

from __future__ import annotations

import json
import signal
import sys
from dataclasses import replace

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch
from PIL import Image

from bitstream.errors import UsageError
from codec import images
from codec.cli import coding
from codec.targets import Target
from models.overfit.choice import Choice
from models.overfit.fit import Fit
from models.overfit.state import _crc

LONG = 12  # iterations of a descent


def facts_of(state):
    """Return what a stored descent says of itself."""
    with safetensors.safe_open(state, "pt") as file:
        return json.loads(file.metadata()["fit"])


def iteration_of(state):
    """Return the iteration that a stored descent is at."""
    return facts_of(state)["iteration"]


def kept(codec, pixels, target, **options) -> bytes:
    """Return the file of a picture whose descent may be interrupted, as the command line makes it."""
    return codec.encode_picture(images.load(pixels), target, keep_interrupted=True, **options)


@pytest.fixture
def state(tmp_path, fitted_codec, small, interrupt_at):
    """The stored state of a descent for ``small`` that was interrupted in its 5th iteration."""
    interrupt_at(5)
    kept(fitted_codec, small, Target(quality=50), resume=tmp_path / "state")
    return tmp_path / "state"


def test_an_interrupt_of_the_long_descent_leaves_a_file(fitted_codec, fitted, small, interrupt_at):
    interrupt_at(8)
    data = kept(fitted_codec, small, Target(quality=50))
    assert fitted_codec.fit.interrupted
    assert data != fitted
    assert fitted_codec.decode(data).size == (60, 50)
    assert fitted_codec.encode(small, quality=50) == fitted
    assert not fitted_codec.fit.interrupted


def test_an_interrupted_file_still_meets_its_target(fitted_codec, small, interrupt_at, monkeypatch):
    monkeypatch.setattr("codec.overfit.fitting.PictureFit._try_levels", lambda self, level: 500)  # too much
    interrupt_at(5)
    data = kept(fitted_codec, small, Target(size=500))
    assert fitted_codec.fit.interrupted
    assert len(data) <= 500


def test_an_interrupt_ends_what_does_not_keep_it(tmp_path, fitted_codec, small, interrupt_at):
    interrupt_at(5)
    with pytest.raises(KeyboardInterrupt):
        fitted_codec.encode(small, quality=50, resume=tmp_path / "state")
    assert iteration_of(tmp_path / "state") == 5  # what was found so far is not lost


def test_an_interrupt_of_a_search_ends_the_encoding(fitted_codec, small, interrupt_at):
    interrupt_at(1)
    with pytest.raises(KeyboardInterrupt):
        fitted_codec.encode(small, size=400)


@pytest.mark.parametrize("target", [Target(size=600), Target(quality=90)])
def test_an_interrupt_of_a_search_leaves_a_file_where_it_is_to_be_kept(fitted_codec, small, interrupt_at, target):
    """The short descent is taken for the long one, and meets the target."""
    interrupt_at(1)
    data = kept(fitted_codec, small, target)
    assert fitted_codec.fit.interrupted
    assert target.size is None or len(data) <= target.size
    assert fitted_codec.decode(data).size == (60, 50)


@pytest.mark.parametrize("target", [Target(psnr=20.0), Target(size=900)])
def test_an_interrupted_descent_is_brought_to_its_target(fitted_codec, small, interrupt_at, monkeypatch, target):
    monkeypatch.setattr("codec.overfit.fitting.PictureFit._start", lambda self: (400, 1))
    interrupt_at(7)
    data = kept(fitted_codec, small, target)
    assert fitted_codec.fit.interrupted
    assert fitted_codec.decode(data).size == (60, 50)
    assert target.size is None or len(data) <= target.size


def test_an_interrupt_of_the_choice_for_a_target_leaves_a_file(fitted_codec, small, monkeypatch):
    retouch, called = Fit.retouch, []

    def interrupted(self, lmbda, choosing):
        retouch(self, lmbda, choosing)
        called.append(lmbda)
        raise KeyboardInterrupt

    monkeypatch.setattr(Fit, "retouch", interrupted)
    monkeypatch.setattr("codec.overfit.steering.NEAR_ENOUGH", -1)
    assert len(kept(fitted_codec, small, Target(size=600))) <= 600
    assert fitted_codec.fit.interrupted
    assert len(called) == 1
    with pytest.raises(KeyboardInterrupt):
        fitted_codec.encode(small, size=600)


def test_an_interrupt_of_the_choice_leaves_a_file_and_a_state(fitted_codec, small, tmp_path, monkeypatch):
    monkeypatch.setattr("models.overfit.fit.VISITS_PER_SET", 1)
    whole, run, state = fitted_codec.encode(small, quality=50), Choice.run, tmp_path / "state"

    def interrupted(self, sets, report, done=0):
        def stop(jobs, share):
            report(jobs, share)
            if jobs == 2:
                raise KeyboardInterrupt

        run(self, sets, stop, done)

    with monkeypatch.context() as patch:
        patch.setattr(Choice, "run", interrupted)
        data = kept(fitted_codec, small, Target(quality=50), resume=state)
        assert fitted_codec.fit.interrupted
        with pytest.raises(KeyboardInterrupt):
            fitted_codec.encode(small, quality=50)
    assert fitted_codec.decode(data).size == (60, 50)
    assert iteration_of(state) == LONG
    assert fitted_codec.encode(small, quality=50, resume=state) == whole


def test_a_descent_goes_on_to_the_same_number_of_iterations(fitted_codec, small, state):
    assert iteration_of(state) == 5
    data = fitted_codec.encode(small, quality=50, resume=state)
    assert not fitted_codec.fit.interrupted
    assert iteration_of(state) == LONG
    assert fitted_codec.encode(small, quality=50, resume=state) == data  # no iteration more
    assert iteration_of(state) == LONG
    assert fitted_codec.decode(data).size == (60, 50)


def test_a_descent_for_a_target_goes_on_without_a_search(fitted_codec, small, tmp_path, monkeypatch):
    monkeypatch.setattr("codec.overfit.fitting.PictureFit._try_levels", lambda self, level: 200)
    data = fitted_codec.encode(small, size=400, resume=tmp_path / "state")
    monkeypatch.setattr("codec.overfit.fitting.PictureFit._try_levels", None)
    assert len(fitted_codec.encode(small, size=400, resume=tmp_path / "state")) <= 400
    assert len(data) <= 400


def test_a_descent_goes_on_at_the_level_that_it_was_moved_to(fitted_codec, small, tmp_path, monkeypatch, interrupt_at):
    monkeypatch.setattr("codec.overfit.fitting.PictureFit._try_levels", lambda self, level: 512)
    monkeypatch.setattr("codec.overfit.fitting.PictureFit._finest", lambda self, level: 1)
    interrupt_at(8)
    with pytest.raises(KeyboardInterrupt):
        fitted_codec.encode(small, size=500, resume=tmp_path / "state")
    moved = int(facts_of(tmp_path / "state")["level"])
    assert moved < 500
    begun, fit = [], type(fitted_codec.model).fit

    def watched(self, x, level, finest):
        begun.append(level)
        return fit(self, x, level, finest)

    monkeypatch.setattr(type(fitted_codec.model), "fit", watched)
    assert len(fitted_codec.encode(small, size=500, resume=tmp_path / "state")) <= 500
    assert begun[0] == moved


def test_a_state_is_saved_on_the_way(fitted_codec, small, tmp_path, monkeypatch):
    monkeypatch.setattr("codec.overfit.fitting.SAVE_SECONDS", -1)
    saved, save = [], Fit.save
    monkeypatch.setattr("codec.overfit.fitting.Fit.save", lambda self, *a: (saved.append(self.iteration), save(self, *a)))
    fitted_codec.encode(small[:9, :9], resume=tmp_path / "state")
    jobs = 4  # of the choice, for whose grids a region each
    assert saved == [*range(1, LONG + 1), *[LONG] * jobs, LONG]
    assert [path.name for path in tmp_path.iterdir()] == ["state"]


def test_a_disk_that_is_full_does_not_lose_the_descent(fitted_codec, small, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("models.overfit.state.os.replace", full)
    with pytest.warns(UserWarning, match=r"state: cannot be written \(No space left on device\)$"):
        data = fitted_codec.encode(small[:9, :9], resume=tmp_path / "state")
    assert fitted_codec.decode(data).size == (9, 9)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quality": 51}, "with target quality 50, here it is quality 51: give the same$"),
        ({"size": 400}, "with target quality 50, here it is size 400: give the same$"),
        ({"quality": 50, "effort": 1}, "with effort 0, here it is 1: give the same$"),
    ],
)
def test_a_state_of_other_options_is_refused(fitted_codec, small, state, options, message):
    with pytest.raises(UsageError, match=message):
        fitted_codec.encode(small, resume=state, **options)


def test_a_state_of_another_picture_or_model_is_refused(fitted_codec, small, state, monkeypatch):
    for other in (small.transpose(1, 0, 2), small.reshape(60, 50, 3), small ^ 1):
        with pytest.raises(UsageError, match="with picture"):
            fitted_codec.encode(np.ascontiguousarray(other), quality=50, resume=state)
    monkeypatch.setattr(fitted_codec.model, "checkpoint", replace(fitted_codec.model.checkpoint, sha256="0" * 64))
    with pytest.raises(UsageError, match="with checkpoint"):
        fitted_codec.encode(small, quality=50, resume=state)


def _damaged(data, kind):
    if kind == "cut":
        return data[:-1]
    if kind == "empty":
        return b""
    if kind == "a picture":
        return b"\x89PNG\r\n\x1a\n" + bytes(100)
    if kind == "tensor":
        return data[:-9] + bytes([data[-9] ^ 64]) + data[-8:]
    tensors = safetensors.torch.load(data)
    facts = json.loads(json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]["fit"])
    if kind == "no facts":
        return safetensors.torch.save(tensors, {})
    facts |= {"a level": {"level": [3]}, "an iteration": {"iteration": "many"}}.get(kind, {})
    tensors |= {"networks/steps": torch.tensor([1, 2])} if kind == "a step" else {}
    return safetensors.torch.save(tensors, {"fit": json.dumps(facts | {"crc": _crc(tensors)})})


@pytest.mark.parametrize(
    "kind", ["cut", "empty", "a picture", "tensor", "no facts", "a level", "an iteration", "a step", "a folder"]
)
def test_a_damaged_state_is_refused_in_one_sentence(run, tmp_path, state, png, kind):
    bad = tmp_path / "bad"
    if kind == "a folder":
        bad.mkdir()
    else:
        bad.write_bytes(_damaged(state.read_bytes(), kind))
    result = run("encode", png, tmp_path / "out.lic", "--model", "overfit", "-q", 50, "--resume", bad, code=2)
    assert result.stderr.startswith(f"codec: {bad} is ")
    assert len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "out.lic").exists()


def test_a_place_that_cannot_be_written_is_refused_before_the_descent(run, tmp_path, png):
    result = run("encode", png, tmp_path / "out.lic", "--model", "overfit", "--resume", tmp_path / "no/state", code=2)
    assert "is not a folder: create it first" in result.stderr
    assert not (tmp_path / "out.lic").exists()


@pytest.mark.parametrize("state", ["in.png", "out.lic"])
def test_resume_does_not_take_the_picture_or_the_target(run, tmp_path, png, state):
    before = png.read_bytes()
    result = run("encode", png, tmp_path / "out.lic", "--model", "overfit", "--resume", tmp_path / state, code=2)
    assert "is the picture or the target itself" in result.stderr
    assert png.read_bytes() == before


def test_the_command_resumes_and_names_an_interrupt(run, tmp_path, png, interrupt_at):
    kept = tmp_path / "state"
    interrupt_at(7)
    result = run("encode", png, tmp_path / "a.lic", "--model", "overfit", "--resume", kept)
    assert result.stderr == f"interrupted: {tmp_path / 'a.lic'} holds what was found so far\n"
    assert iteration_of(kept) == 7
    run("decode", tmp_path / "a.lic", tmp_path / "a.png")
    result = run("encode", png, tmp_path / "b.lic", "--model", "overfit", "--resume", kept, "--verify", "-v")
    assert result.stdout.startswith(f"{tmp_path / 'b.lic'}: {(tmp_path / 'b.lic').stat().st_size} bytes")
    assert "entropy" in result.stderr
    assert iteration_of(kept) == LONG


def test_resume_is_for_one_picture_and_for_overfit(run, tmp_path, png, installed_overfit, tiny_checkpoint):
    Image.open(png).save(tmp_path / "second.png")
    files = (png, tmp_path / "second.png", "-o", tmp_path / "out", "--resume", tmp_path / "state")
    result = run("encode", *files, "--model", "overfit", code=2)
    assert "--resume keeps the fit of one picture, 2 are given" in result.stderr
    result = run("encode", png, tmp_path / "x.lic", "--model", tiny_checkpoint, "--resume", tmp_path / "state", code=2)
    assert "swift has nothing to resume: leave it away, or choose overfit" in result.stderr
    assert not (tmp_path / "x.lic").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_a_signal_interrupts_the_descent_alone(monkeypatch):
    def stop(number, _):
        sys.exit(128 + number)

    before = signal.signal(signal.SIGINT, stop)  # as codec.__main__ does it
    try:
        with coding._interrupts(True):
            with pytest.raises(KeyboardInterrupt):  # which a descent would take
                signal.raise_signal(signal.SIGINT)
            with pytest.raises(SystemExit):  # the second time
                signal.raise_signal(signal.SIGINT)
        with pytest.raises(SystemExit) as ended, coding._interrupts(True):
            signal.raise_signal(signal.SIGINT)
        assert ended.value.code == 130
        with pytest.raises(SystemExit), coding._interrupts(False):
            signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is stop
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_bar_shows_bits_and_psnr(run, tmp_path, png, monkeypatch):
    monkeypatch.setattr("codec.overfit.progress.REPORT_SECONDS", 0)
    monkeypatch.setattr(coding, "is_terminal", lambda _: True)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    result = run("encode", png, tmp_path / "a.lic", "--model", "overfit")
    assert "fit: " in result.stderr
    assert " dB" in result.stderr
