"""What happens to a command that is interrupted, killed, out of room or cut off from its caller: one line, no half file.

Most commands run in processes that are forked from one which has imported everything: a start takes 6 seconds else.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import pytest
from PIL import Image

from bitstream.errors import UsageError
from codec import files
from codec.files import write_atomic

ROOT = Path(__file__).resolve().parent.parent.parent
ENVIRONMENT = dict(os.environ, PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1")
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="POSIX only")

SERVER = """
import gc, json, os, signal, sys, types
for name in ("SIGINT", "SIGTERM", "SIGHUP"):  # a shell's background job ignores some, and so do its children
    signal.signal(getattr(signal, name), signal.default_int_handler if name == "SIGINT" else signal.SIG_DFL)
import codec.api, codec.cli.main, codec.files, codec.images
from codec.__main__ import run
codec.files.os = types.SimpleNamespace(**vars(os))  # its own: libraries link and remove files too
gc.freeze()  # collecting garbage would copy every page
for line in sys.stdin:
    call = json.loads(line)
    if "wait" in call:
        print(os.waitstatus_to_exitcode(os.waitpid(call["wait"], 0)[1]), flush=True)
        continue
    pid = os.fork()
    if not pid:
        for number, name in enumerate((call["out"], call["err"]), 1):
            os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        exec(call["first"], {"os": os, "sys": sys, "codec": codec})
        sys.argv = ["codec", *call["arguments"]]
        try:
            run()
        except SystemExit as done:
            os._exit(done.code or 0)  # a second is spent in taking down what was imported
    print(pid, flush=True)
"""


class Server:
    """Starts commands in forked processes; one at a time is waited for."""

    def __init__(self, folder: Path) -> None:
        command = [sys.executable, "-W", "ignore", "-c", SERVER]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT, cwd=ROOT
        )
        self.folder, self.numbers = folder, itertools.count()

    def ask(self, **call) -> int:
        self.process.stdin.write(json.dumps(call) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def start(self, *arguments, first: str = "") -> tuple[int, Path, Path]:
        out, err = (self.folder / f"{next(self.numbers)}.{name}" for name in ("out", "err"))
        pid = self.ask(arguments=list(map(str, arguments)), first=first, out=str(out), err=str(err))
        return pid, out, err

    def end(self, job: tuple[int, Path, Path]) -> tuple[int, str, str]:
        """Return the exit code (−9 if killed by signal 9), stdout and stderr."""
        code = self.ask(wait=job[0])
        return code, job[1].read_text(), job[2].read_text()

    def run(self, *arguments, first: str = "") -> tuple[int, str, str]:
        return self.end(self.start(*arguments, first=first))


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The process that commands are forked from."""
    made = Server(tmp_path_factory.mktemp("server"))
    yield made
    made.process.stdin.close()
    made.process.wait(20)


@pytest.fixture(scope="module")
def sources(tmp_path_factory, tiny_codec) -> dict[str, Path]:
    """A picture that noise makes some kilobytes large, and the file of it."""
    folder = tmp_path_factory.mktemp("sources")
    Image.effect_noise((200, 200), 90).convert("RGB").save(folder / "in.png")
    (folder / "in.lic").write_bytes(tiny_codec.encode(folder / "in.png", quality=100))
    assert (folder / "in.lic").stat().st_size > 5000
    return {"encode": folder / "in.png", "decode": folder / "in.lic"}


@pytest.fixture(scope="module")
def whole(sources, tiny_codec) -> dict[str, bytes]:
    """What each command writes if nothing happens to it."""
    buffer = io.BytesIO()
    tiny_codec.decode(sources["decode"].read_bytes()).save(buffer, "PNG")
    return {"encode": sources["decode"].read_bytes(), "decode": buffer.getvalue()}


@pytest.fixture
def arguments(sources, tiny_checkpoint):
    """Return arguments(command, target): a command line that writes some kilobytes."""

    def line(command, target):
        quality = ["-q", "100"] if command == "encode" else []
        options = ["--model", tiny_checkpoint, "--device", "cpu", "--threads", "1"]
        return [command, sources[command], target, *options, *quality]

    return line


def suffix(command):
    return ".lic" if command == "encode" else ".png"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


COMMANDS = pytest.mark.parametrize("command", ["encode", "decode"])
AT = """
def at(owner, name, number, before=True):
    original = getattr(owner, name)
    def stop(*arguments, **options):
        result = None if before else original(*arguments, **options)
        os.kill(os.getpid(), number)
        return original(*arguments, **options) if before else result
    setattr(owner, name, stop)
"""
STAGES = {
    "reading": "at(codec.images, 'load', {0}); at(codec.files, 'open_bytes', {0})",
    "network": "at(codec.api.LoadedModel, 'analyse', {0}); at(codec.api.LoadedModel, 'synthesise', {0})",
    "temporary file written": "at(codec.files.os, 'fsync', {0})",
    "about to take the name": "at(codec.files.os, 'link', {0}); at(codec.files.os, 'replace', {0})",
    "name taken": "at(codec.files.os, 'link', {0}, False); at(codec.files.os, 'replace', {0}, False)",
}


@pytest.mark.parametrize(
    ("command", "stage", "number", "word"),
    [(command, stage, signal.SIGINT, "interrupted") for command in ("encode", "decode") for stage in STAGES]
    + [
        ("encode", stage, number, "terminated")
        for stage in ("network", "temporary file written")
        for number in (signal.SIGTERM, signal.SIGHUP)
    ],
)
def test_a_signal_is_one_line_and_leaves_no_temporary(
    server, arguments, whole, tmp_path, command, stage, number, word
):  # fmt: skip
    target = tmp_path / f"a{suffix(command)}"
    result = server.run(*arguments(command, target), first=AT + STAGES[stage].format(int(number)))
    assert result == (128 + number, "", f"codec: {word}\n")
    assert names(tmp_path) == ([target.name] if stage == "name taken" else [])
    assert stage != "name taken" or target.read_bytes() == whole[command]


def test_a_signal_among_files_keeps_those_that_are_done(server, arguments, sources, whole, tmp_path):
    (tmp_path / "second.png").write_bytes(sources["encode"].read_bytes())
    line = [*arguments("encode", tmp_path / "second.png"), "-o", tmp_path / "out", "--json"]  # its target: the second source
    first = "calls, load = [], codec.images.load\ncodec.images.load = lambda *arguments, **options: "
    first += "(calls.append(1), len(calls) == 2 and os.kill(os.getpid(), 2), load(*arguments, **options))[-1]"
    code, out, err = server.run(*line, first=first)
    assert (code, err) == (130, "codec: interrupted\n")
    assert [json.loads(row)["source"] for row in out.splitlines()] == [str(sources["encode"])]
    assert {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()} == {"in.lic": whole["encode"]}


@pytest.mark.parametrize("stage", ["temporary file written", "about to take the name"])
def test_a_signal_keeps_the_older_file(server, arguments, tmp_path, stage):
    (tmp_path / "a.lic").write_bytes(b"old")
    code, _, _ = server.run(*arguments("encode", tmp_path / "a.lic"), "-f", first=AT + STAGES[stage].format(2))
    assert code == 130
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"a.lic": b"old"}


def test_a_second_signal_ends_at_once(server, arguments, tmp_path):
    """Here in the removal of the temporary file, which therefore stays, under its own name."""
    first = AT + "at(codec.files.os, 'fsync', 2); at(codec.files.os, 'unlink', 2)"
    code, _, err = server.run(*arguments("encode", tmp_path / "a.lic"), first=first)
    assert (code, err) == (-2, "codec: interrupted\n")
    assert all(re.fullmatch(r"\.codec-\w+\.partial", name) for name in names(tmp_path))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_a_signal_that_was_ignored_stays_ignored(server, arguments, whole, tmp_path, number):
    """As in the background of a script, or under nohup."""
    ignore = f"import signal; signal.signal({int(number)}, signal.SIG_IGN)\n"
    target = tmp_path / "a.lic"
    first = AT + ignore + STAGES["network"].format(int(number))
    assert server.run(*arguments("encode", target), first=first) == (0, "", "")
    assert target.read_bytes() == whole["encode"]


IN_TILES = """
import itertools, threading, time
codec.api.tile_bits = lambda width, height: 8
analyse, count = codec.api.LoadedModel.analyse, itertools.count(1)
def slow(*arguments):
    assert threading.current_thread() is not threading.main_thread()
    number = next(count)
    open({log!r}, "a").write("tile\\n")
    if number == {at}:
        os.kill(os.getpid(), {number})
    time.sleep(0.2)
    return analyse(*arguments)
codec.api.LoadedModel.analyse = slow
"""
TILES = 6  # of 256, in 300 × 530


@pytest.fixture
def encode_tiles(server, tiny_checkpoint, tmp_path, tmp_path_factory, picture):
    """Return run(number, at): encode tiles by two threads; tile ``at`` sends a signal. Gives the result and how many began."""
    folder = tmp_path_factory.mktemp("tiles")
    Image.fromarray(picture(300, 530)).save(folder / "in.png")

    def run(number, at):
        first = IN_TILES.format(log=str(folder / "log"), at=at, number=int(number))
        options = ["--model", tiny_checkpoint, "--device", "cpu", "--threads", "2"]
        result = server.run("encode", folder / "in.png", tmp_path / "a.lic", *options, first=first)
        return result, len((folder / "log").read_text().splitlines())

    return run


@pytest.mark.parametrize("at", [1, 3])
def test_a_signal_among_tiles_is_one_line_and_begins_no_further_ones(encode_tiles, tmp_path, at):
    begin = time.perf_counter()
    result, begun = encode_tiles(signal.SIGINT, at)
    assert result == (130, "", "codec: interrupted\n")
    assert names(tmp_path) == []
    assert at <= begun < TILES
    assert time.perf_counter() - begin < 10


def test_what_is_killed_among_tiles_leaves_nothing(encode_tiles, tmp_path):
    (code, out, err), begun = encode_tiles(signal.SIGKILL, 3)
    assert (code, out, err) == (-9, "", "")
    assert names(tmp_path) == []
    assert 3 <= begun < TILES


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="looks into /proc")
def test_a_fresh_process_is_interrupted_while_it_imports_torch(arguments, tmp_path):
    command = [sys.executable, "-m", "codec", *map(str, arguments("encode", tmp_path / "a.lic"))]
    heed = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a background job of a shell would ignore it
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT, cwd=ROOT, preexec_fn=heed)
    while process.poll() is None and "libtorch_cpu" not in Path(f"/proc/{process.pid}/maps").read_text():
        time.sleep(0.01)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, "codec: interrupted\n")
    assert names(tmp_path) == []


@COMMANDS
@pytest.mark.parametrize("stage", STAGES)
def test_what_is_killed_outright_leaves_no_half_file_under_the_name(server, arguments, whole, tmp_path, command, stage):
    target = tmp_path / f"a{suffix(command)}"
    code, _, _ = server.run(*arguments(command, target), first=AT + STAGES[stage].format(9))
    assert code == -9
    found = names(tmp_path)
    partial = [name for name in found if re.fullmatch(r"\.codec-\w+\.partial", name)]
    assert len(partial) == (0 if stage in ("reading", "network") else 1)
    assert found == partial + ([target.name] if stage == "name taken" else [])
    assert stage != "name taken" or target.read_bytes() == whole[command]


def test_what_a_killed_process_left_does_not_disturb_the_next(server, arguments, whole, tmp_path):
    target = tmp_path / "a.lic"
    assert server.run(*arguments("encode", target), first=AT + STAGES["temporary file written"].format(9))[0] == -9
    assert server.run(*arguments("encode", target)) == (0, "", "")
    assert target.read_bytes() == whole["encode"]
    assert len(names(tmp_path)) == 2


@pytest.mark.slow
def test_killed_at_random_times_no_target_is_half_written(tmp_path):
    script = [sys.executable, ROOT / "scripts" / "kill_encode.py", "--runs", "6", "-o", tmp_path / "kill.json"]
    done = subprocess.run(list(map(str, script)), capture_output=True, text=True, timeout=110, env=ENVIRONMENT, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    counts = json.loads((tmp_path / "kill.json").read_text())["all"]
    assert (counts["killed"], counts["half a file there"]) == (6, 0)


# --- no room, no right


@COMMANDS
@pytest.mark.parametrize("old", [b"old", None], ids=["over an older file", "new"])
def test_a_limit_of_the_file_size_is_one_line_and_exits_with_1(server, arguments, tmp_path, command, old):
    target = tmp_path / f"a{suffix(command)}"
    if old:
        target.write_bytes(old)
    first = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))"
    result = server.run(*arguments(command, target), "-f", first=first)
    assert result == (1, "", f"codec: {target}: cannot be written (File too large)\n")
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == ({target.name: old} if old else {})


@pytest.fixture
def disk(tmp_path):
    """A folder that is a file system of 64 KiB of its own; needs root."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    with contextlib.suppress(OSError):
        if subprocess.run(mount, capture_output=True).returncode == 0:
            yield folder
            subprocess.run(["umount", "-l", str(folder)], check=True)
            return
    pytest.skip("cannot mount a file system here")


@COMMANDS
def test_a_full_disk_is_one_line_and_exits_with_1(server, arguments, disk, command):
    (disk / "filler").write_bytes(bytes(60 * 1024))
    target = disk / f"a{suffix(command)}"
    target.write_bytes(b"old")
    result = server.run(*arguments(command, target), "-f")
    assert result == (1, "", f"codec: {target}: cannot be written (No space left on device)\n")
    assert names(disk) == [target.name, "filler"]
    assert target.read_bytes() == b"old"


@COMMANDS
def test_a_folder_that_is_read_only_is_one_line_and_exits_with_1(server, arguments, disk, command):
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    target = disk / f"a{suffix(command)}"
    result = server.run(*arguments(command, target))
    assert result == (1, "", f"codec: {target}: cannot be written (Read-only file system)\n")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_the_right_to_write_is_one_line_and_exits_with_1(server, arguments, tmp_path):
    tmp_path.chmod(0o555)
    result = server.run(*arguments("encode", tmp_path / "a.lic"))
    tmp_path.chmod(0o755)
    assert result == (1, "", f"codec: {tmp_path / 'a.lic'}: cannot be written (Permission denied)\n")


# --- a caller who has gone


def shell(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a script in which "$@" is a light command of ours."""
    command = ["sh", "-c", script, "sh", sys.executable, "-m", "codec", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=ENVIRONMENT, cwd=ROOT)


@pytest.mark.parametrize(
    ("redirected", "codes", "said"),
    [
        ('"$@" >&-', {0}, ""),  # nobody listens: nothing to say, nothing wrong
        ('"$@" >&- 2>&- <&-', {0}, ""),
        ('("$@"; echo $? >&2) | head -c 0', {0}, "[01]\n"),  # 0 if all was said before head had gone
        pytest.param(
            '"$@" >/dev/full',
            {1},
            r"codec: \[Errno 28\] No space left on device\n",
            marks=pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full"),
        ),
    ],
)
@pytest.mark.parametrize("json_or_not", [[], ["--json"]])
def test_a_stdout_that_is_closed_gives_no_traceback(sources, redirected, codes, said, json_or_not):
    done = shell(redirected, "info", sources["decode"], *json_or_not)
    assert done.returncode in codes
    assert re.fullmatch(said, done.stderr)


@COMMANDS
def test_a_reader_of_the_file_who_has_gone_ends_it_quietly(server, arguments, command):
    gone = "reader, writer = os.pipe()\nos.close(reader)\nos.dup2(writer, 1)"
    assert server.run(*arguments(command, "-"), first=gone) == (1, "", "")


@COMMANDS
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_file_that_stdout_does_not_take_is_one_line(server, arguments, command):
    result = server.run(*arguments(command, "-"), first="os.dup2(os.open('/dev/full', os.O_WRONLY), 1)")
    assert result == (1, "", "codec: [Errno 28] No space left on device\n")


def test_a_closed_stderr_keeps_the_exit_code():
    assert shell('"$@" 2>&-', "info", "none.lic").returncode == 2


@COMMANDS
def test_with_closed_streams_the_target_is_still_what_it_should_be(server, arguments, whole, tmp_path, command):
    """Its temporary file would be descriptor 1 or 2, into which libraries print."""
    first = "for number in range(3): os.close(number)\nsys.stdout = sys.stderr = None\n"
    first += "original = codec.files.os.fsync\n"
    first += "def fsync(number):\n    os.write(1, b'stdout'); os.write(2, b'stderr'); original(number)\n"
    target = tmp_path / f"a{suffix(command)}"
    code, _, _ = server.run(*arguments(command, target), first=first + "codec.files.os.fsync = fsync")
    assert code == 0
    assert target.read_bytes() == whole[command]


# --- two at once


def test_a_target_that_appears_at_the_last_moment_is_kept(server, arguments, tmp_path):
    target = tmp_path / "a.lic"
    first = "os = codec.files.os\nfsync = os.fsync\n"
    first += f"os.fsync = lambda number: (fsync(number), open({str(target)!r}, 'wb').write(b'mine'))"
    result = server.run(*arguments("encode", target), first=first)
    assert result == (2, "", f"codec: {target} exists: give -f (overwrite=True) to replace it\n")
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"a.lic": b"mine"}


def test_of_many_that_write_a_new_file_at_once_one_wins(tmp_path):
    for attempt in range(20):
        target, start, outcomes = tmp_path / str(attempt), threading.Barrier(4), []

        def write(number, target=target, start=start, outcomes=outcomes):
            start.wait()
            try:
                write_atomic(target, bytes([number]) * 1000)
                outcomes.append(number)
            except UsageError:
                outcomes.append(None)

        threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        winners = [number for number in outcomes if number is not None]
        assert len(winners) == 1
        assert target.read_bytes() == bytes(winners) * 1000
    assert len(names(tmp_path)) == 20


@pytest.mark.parametrize("error", [PermissionError(1, "Operation not permitted"), OSError(95, "Not supported"), None])
def test_a_file_system_without_hard_links_is_written_to_as_well(tmp_path, monkeypatch, error):
    def link(*_):
        raise error

    if error is None:
        monkeypatch.delattr(files.os, "link")  # Python has none on some platforms
    else:
        monkeypatch.setattr(files.os, "link", link)
    write_atomic(tmp_path / "a", b"data")
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"a": b"data"}
    monkeypatch.setattr(files.os, "fsync", lambda _: (tmp_path / "b").write_bytes(b"mine"))
    with pytest.raises(UsageError, match="b exists: give -f"):
        write_atomic(tmp_path / "b", b"data")
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"a": b"data", "b": b"mine"}


def test_processes_that_encode_to_the_same_folder_do_not_meet(server, arguments, whole, tmp_path):
    targets = [tmp_path / f"{number}.lic" for number in range(4)]
    jobs = [server.start(*arguments("encode", target)) for target in targets]
    same = [server.start(*arguments("encode", tmp_path / "same.lic")) for _ in range(3)]
    assert [server.end(job) for job in jobs] == [(0, "", "")] * 4
    results = [server.end(job) for job in same]
    assert sorted(code for code, _, _ in results) == [0, 2, 2]
    assert all(code == 0 or "exists: give -f" in err for code, _, err in results)
    assert names(tmp_path) == ["0.lic", "1.lic", "2.lic", "3.lic", "same.lic"]
    assert {path.read_bytes() for path in tmp_path.iterdir()} == {whole["encode"]}
