"""The processes: who dies is replaced, who is to blame is said, nobody outlives the parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import deque
from pathlib import Path
from types import SimpleNamespace

import light_worker
import pytest

from bitstream.errors import CheckpointError, CodecError
from codec.batch import local
from codec.batch.items import Item
from codec.batch.options import Options

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def work(tmp_path):
    """Return work(names, workers, **functions): the rows that processes without torch give."""

    def run(names, workers, prepare=light_worker.prepare):
        items = [Item(f"/src/{name}.png", str(tmp_path / f"{name}.lic"), f"{name}.lic") for name in names]
        return local.rows(items, Options(), workers, prepare=prepare, process=light_worker.process)

    return run


def test_a_picture_that_kills_its_worker_twice_has_failed_and_its_neighbours_have_not(work):
    rows = {row["target"]: row for row in work(["a", "kill", "b", "kill-once", "c", "d"], 2)}
    failed = rows.pop("kill.lic")
    assert failed["status"] == "failed"
    expected = "/src/kill.png: the process that worked on it died twice (killed by SIGKILL, the second time alone): it may need"
    assert failed["error"].startswith(expected)
    assert {row["status"] for row in rows.values()} == {"done"}
    assert set(rows) == {"a.lic", "b.lic", "kill-once.lic", "c.lic", "d.lic"}
    assert not any(alive(row["pid"]) for row in rows.values())


def test_what_is_wrong_with_all_pictures_is_raised(work):
    with pytest.raises(CheckpointError, match="no such weights: look elsewhere"):
        list(work(["a", "b"], 1, prepare=light_worker.refuse))


def test_workers_that_cannot_start_are_an_error(work):
    with pytest.raises(CodecError, match=r"worker processes die while they start \(exit code 3\)"):
        list(work(["a", "b"], 1, prepare=light_worker.die))


def test_who_stops_asking_leaves_no_process(work, tmp_path):
    rows = work(["a", "slow", "b"], 2)
    pid = next(rows)["pid"]
    wait_for((tmp_path / "slow.mark").exists)
    begin = time.monotonic()
    rows.close()
    assert time.monotonic() - begin < 2 * local.STOP_S
    assert not alive(pid)


CODE = """
import os, sys
import light_worker
from codec.__main__ import _stop
from codec.batch import local
from codec.batch.items import Item
from codec.batch.options import Options
import signal

if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)
    items = [Item(f"/src/{name}.png", f"{sys.argv[1]}/{name}.lic", f"{name}.lic") for name in ("a", "slow-1", "slow-2")]
    for row in local.rows(items, Options(), 2, prepare=light_worker.prepare, process=light_worker.process):
        print(row["pid"], flush=True)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_workers_end_with_their_parent(tmp_path, number):
    script = tmp_path / "script.py"
    script.write_text(CODE)
    environment = dict(os.environ) | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests' / 'support'}"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    parent = subprocess.Popen([sys.executable, script, tmp_path], env=environment, start_new_session=True, **pipes)
    pid = int(parent.stdout.readline())
    wait_for(lambda: all((tmp_path / f"slow-{i}.mark").exists() for i in (1, 2)))
    assert alive(pid)
    if number == signal.SIGINT:
        os.killpg(parent.pid, number)  # as a terminal does
    else:
        parent.send_signal(number)
    _, errors = parent.communicate(timeout=20)
    expected = {signal.SIGINT: "codec: interrupted\n", signal.SIGTERM: "codec: terminated\n", signal.SIGKILL: ""}
    assert errors == expected[number]
    assert parent.returncode == (-number if number == signal.SIGKILL else 128 + number)
    wait_for(lambda: not alive(pid))


def alive(pid):
    """Return whether a process runs; one that nobody has reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_for(condition, seconds=20):
    """Wait until something is so."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_suspect_comes_last_and_has_the_machine_for_itself():
    crew = local._Crew([], Options(), light_worker.prepare, light_worker.process)
    crew.workers = [SimpleNamespace(ready=True, item=item) for item in ("busy", None)]
    for each in crew.workers:
        each.give = lambda item, each=each: setattr(each, "item", item) is None

    def items_after(first, waiting=()):
        crew.workers[0].item = first
        crew.waiting.extend(waiting)
        crew._hand_out()
        return [each.item for each in crew.workers]

    crew.suspects = deque(["suspect", "another"])
    assert items_after("busy") == ["busy", None]
    assert items_after(None) == ["suspect", None]
    assert items_after(None, ["late"]) == ["late", None]
