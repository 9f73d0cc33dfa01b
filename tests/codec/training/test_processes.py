"""``codec train`` as processes of their own: two of them equal one with the double batch; one killed at a save goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest
import torch

pytest.importorskip("lightning", reason="training needs the train extra")

STUCK_SAVE = """
import io, sys, time
from pathlib import Path
import torch
from codec.training.loop import Trainer
from codec.training.recipe import Recipe

trainer = Trainer(Recipe.load(sys.argv[1]), Path(sys.argv[2]), device="cpu")
state, whole = Path(sys.argv[3]), torch.save
trainer.train_step()
trainer.save(state)
trainer.train_step()

def half(value, file):
    buffer = io.BytesIO()
    whole(value, buffer)
    file.write(buffer.getvalue()[: buffer.tell() // 2])
    file.flush()
    print("half", flush=True)
    time.sleep(600)

torch.save = half
trainer.save(state)
"""


@pytest.fixture
def environment():
    """One thread for each process, on the loopback device."""
    return os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}


def load(path):
    return torch.load(path, weights_only=True)


def run(environment, *command):
    result = subprocess.run([sys.executable, *map(str, command)], env=environment, capture_output=True, text=True, timeout=110)
    assert result.returncode == 0, result.stderr
    return result


@pytest.fixture(scope="module")
def longer(recipe_text):
    """Return longer(batch_size): a recipe of twelve steps with the KLT start, blocks by Muon."""
    text = recipe_text.replace("klt_start = false", "klt_start = true").replace("steps = 3", "steps = 12\nmuon = true")
    return lambda batch_size: text.replace("batch_size = 2", f"batch_size = {batch_size}")


@pytest.fixture(scope="module")
def alone(tmp_path_factory, data, train, longer):
    """The state of one process with the double batch."""
    folder = tmp_path_factory.mktemp("alone")
    (folder / "tiny.toml").write_text(longer(8))
    train(data, "--recipe", folder / "tiny.toml", "--state", folder / "one.pt")
    return load(folder / "one.pt")


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["devices", "torchrun"])
def test_two_processes_train_as_one_with_the_double_batch(data, recipe, tmp_path, environment, launcher, longer, alone):
    options = (data, "--recipe", recipe, "--device", "cpu", "--state")
    recipe.write_text(longer(4))
    if launcher == "devices":
        run(environment, "-m", "codec", "train", *options, tmp_path / "two.pt", "--devices", "2")
    else:
        launch = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
        run(environment, *launch, "-m", "codec", "train", *options, tmp_path / "two.pt")
    one, two = alone, load(tmp_path / "two.pt")
    assert one["step"] == two["step"] == 12
    assert one["rng"] == two["rng"]  # the same crops at the same levels
    for name in ("g_a.stem.weight", "g_s.tail.weight", "h_a.0.weight", "log2_gain"):
        a, b = one["model"][name], two["model"][name]
        assert torch.linalg.norm(a - b) < 0.01 * torch.linalg.norm(a), name  # the noise differs, and bf16 sums
    learnt, also = (  # from zero; Adam's first steps make much of the noise
        torch.cat([t.flatten() for name, t in state["model"].items() if name.endswith("conv3.weight")]) for state in (one, two)
    )
    assert torch.cosine_similarity(learnt, also, dim=0) > 0.4
    assert float(torch.linalg.norm(also)) == pytest.approx(float(torch.linalg.norm(learnt)), rel=0.2)


@pytest.mark.slow
def test_a_kill_in_the_middle_of_a_save_loses_one_interval(data, recipe, tmp_path, environment, train):
    state = tmp_path / "a.pt"
    command = [sys.executable, "-c", STUCK_SAVE, str(recipe), str(data), str(state)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline().strip() == "half"
        process.send_signal(signal.SIGKILL)
    assert load(state)["step"] == 1
    train(data, "--recipe", recipe, "--state", state, "--resume")
    assert load(state)["step"] == 3


@pytest.mark.slow
def test_kills_at_any_moment_leave_a_state_to_resume_from(data, recipe, tmp_path, environment):
    recipe.write_text(recipe.read_text().replace("steps = 3", "steps = 1000000\nsave_minutes = 1e-9"))
    state, steps = tmp_path / "a.pt", [0]
    for seconds in (0.05, 0.4, 0.7):
        resume = ["--resume"] if state.exists() else []
        command = [sys.executable, "-m", "codec", "train", str(data), "--recipe", str(recipe), "--state", str(state), *resume]
        with subprocess.Popen([*command, "--device", "cpu"], env=environment, stderr=subprocess.DEVNULL) as process:
            before = state.stat().st_mtime_ns if state.exists() else 0
            while not state.exists() or state.stat().st_mtime_ns == before:
                assert process.poll() is None
                time.sleep(0.01)
            time.sleep(seconds)
            process.send_signal(signal.SIGKILL)
        steps.append(load(state)["step"])
    assert steps == sorted(set(steps))  # each run went on where the last one was killed


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_run_with_its_state_saved(data, recipe, tmp_path, environment, train, number, code):
    recipe.write_text(recipe.read_text().replace("steps = 3", "steps = 1000000"))
    state = tmp_path / "a.pt"
    command = [sys.executable, "-c", STARTED.format(recipe=str(recipe), data=str(data), state=str(state))]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline().strip() == "two steps"
            assert "another process is writing it" in train(data, "--recipe", recipe, "--state", state, code=2).stderr
            process.send_signal(number)
            _, said = process.communicate(timeout=110)
        finally:
            process.kill()
    assert process.returncode == code, said
    assert "to go on: --resume" in " ".join(said.split())
    steps = load(state)["step"]
    assert steps >= 2
    recipe.write_text(recipe.read_text().replace("steps = 1000000", f"steps = {steps + 1}"))
    train(data, "--recipe", recipe, "--state", state, "--resume")
    assert load(state)["step"] == steps + 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.pt", "tiny.toml"]


STARTED = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it, and so do its children
signal.signal(signal.SIGTERM, signal.SIG_DFL)
from codec.training.loop import Trainer
step = Trainer.train_step
def told(self):
    row = step(self)
    if self.step == 2:
        print("two steps", flush=True)
    return row
Trainer.train_step = told
sys.argv = ["codec", "train", {data!r}, "--recipe", {recipe!r}, "--state", {state!r}, "--device", "cpu"]
from codec.__main__ import run
run()
"""
