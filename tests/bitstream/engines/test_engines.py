"""The engines: the same bytes from each, and no start that prints, hangs or fails for want of a compiler."""

import itertools
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bitstream.engines import check_arguments, default_engine
from bitstream.engines import torchac as torchac_module
from bitstream.engines.reference import ReferenceEngine
from bitstream.engines.torchac import MODULE, TorchacEngine, built_path, cache_folder
from bitstream.errors import EngineError, SymbolError

COMPILER = os.environ.get("CXX", "c++")
REFERENCE = ReferenceEngine()


@pytest.fixture
def fresh(tmp_path, monkeypatch):
    """A process that has loaded nothing yet, with an empty cache folder, which is returned."""
    monkeypatch.setenv("LIC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(torchac_module, "_loaded", None)
    default_engine.cache_clear()
    yield tmp_path / "cache"
    default_engine.cache_clear()


def even_rows(count: int, lp: int, seed: int) -> np.ndarray:
    """Return random CDF rows (count, lp): lp − 2 distinct inner values."""
    rng = np.random.default_rng(seed)
    rows = np.zeros((count, lp), dtype=np.uint16)
    for row in rows:
        row[1:-1] = np.sort(rng.choice(np.arange(1, 65536), lp - 2, replace=False))
    return rows


def skewed_rows(count: int, lp: int, seed: int) -> np.ndarray:
    """Return CDF rows (count, lp) in which one symbol has all the counts but one for each of the others."""
    counts = np.ones((count, lp - 1), dtype=np.int64)
    counts[np.arange(count), np.random.default_rng(seed).integers(0, lp - 1, count)] += 65536 - (lp - 1)
    rows = np.zeros((count, lp), dtype=np.uint16)
    rows[:, 1:] = np.cumsum(counts, axis=1) & 0xFFFF
    return rows


def likely(cdf: np.ndarray, index: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return symbols (n,) drawn by the probabilities of their rows."""
    table = cdf.astype(np.int64)
    table[:, -1] = 65536
    return np.array([np.searchsorted(table[i], rng.integers(0, 65536), "right") - 1 for i in index], dtype=np.int16)


# --- the same bytes

SHAPES = list(itertools.product([even_rows, skewed_rows], [2, 3, 4, 5, 17, 129, 255, 256, 257, 300], [1, 2, 400]))


@pytest.mark.parametrize(("make", "lp", "n"), SHAPES)
@pytest.mark.parametrize("draw", ["likely", "uniform", "lowest", "highest"])
def test_both_engines_write_the_same_bytes_and_read_each_others(torchac, make, lp, n, draw):
    rng = np.random.default_rng(lp * 1000 + n)
    cdf = make(7, lp, seed=lp)
    rows = rng.integers(0, 7, n).astype(np.uint8)
    symbols = {
        "likely": lambda: likely(cdf, rows, rng),
        "uniform": lambda: rng.integers(0, lp - 1, n).astype(np.int16),
        "lowest": lambda: np.zeros(n, dtype=np.int16),
        "highest": lambda: np.full(n, lp - 2, dtype=np.int16),
    }[draw]()
    payload = REFERENCE.encode(cdf, rows, symbols)
    assert torchac.encode(cdf, rows, symbols) == payload
    for reader in (REFERENCE, torchac):
        got = reader.decode(cdf, rows, payload)
        assert got.dtype == np.int16
        assert got.tolist() == symbols.tolist()


def test_both_engines_agree_where_the_interval_straddles_the_middle(torchac):
    """The middle symbol of [0, 32767, 32769, 65536] never decides a bit: pending bits pile up."""
    cdf = np.array([[0, 32767, 32769, 0]], dtype=np.uint16)
    for tail in ([], [0], [2], [1, 0, 2]):
        symbols = np.array([1] * 300 + tail, dtype=np.int16)
        rows = np.zeros(len(symbols), dtype=np.int64)
        payload = REFERENCE.encode(cdf, rows, symbols)
        assert torchac.encode(cdf, rows, symbols) == payload
        assert REFERENCE.decode(cdf, rows, payload).tolist() == symbols.tolist()
        assert torchac.decode(cdf, rows, payload).tolist() == symbols.tolist()


def test_both_engines_agree_on_rows_of_the_widest_alphabet(torchac):
    """Lp 32 769: symbols up to 32 767, the last that fits into int16."""
    cdf = (np.arange(32769) * 2 & 0xFFFF).astype(np.uint16)[None]
    symbols = np.array([0, 32767, 1, 16384, 32766, 0], dtype=np.int16)
    rows = np.zeros(6, dtype=np.uint8)
    payload = REFERENCE.encode(cdf, rows, symbols)
    assert torchac.encode(cdf, rows, symbols) == payload
    assert len(payload) == pytest.approx(6 * 15 / 8, abs=1)
    for reader in (REFERENCE, torchac):
        assert reader.decode(cdf, rows, payload).tolist() == symbols.tolist()


def test_both_engines_read_the_same_symbols_from_garbage(torchac):
    rng = np.random.default_rng(0)
    for lp in (2, 3, 40, 300):
        cdf = np.concatenate([even_rows(3, lp, 1), skewed_rows(3, lp, 2)])
        rows = rng.integers(0, 6, 200).astype(np.uint8)
        for size in (0, 1, 3, 4, 50, 1000):
            garbage = rng.bytes(size)
            got = REFERENCE.decode(cdf, rows, garbage)
            assert got.min() >= 0
            assert got.max() <= lp - 2
            assert torchac.decode(cdf, rows, garbage).tolist() == got.tolist()


def test_a_payload_is_these_bytes(engine):
    """Frozen since format version 1."""
    cdf = np.array([[0, 1000, 30000, 60000, 0], [0, 1, 2, 3, 0]], dtype=np.uint16)
    rows = np.resize(np.array([0, 0, 1], dtype=np.uint8), 24)
    symbols = np.resize(np.array([0, 1, 3, 2, 3, 3, 1, 2], dtype=np.int16), 24)
    assert engine.encode(cdf, rows, symbols).hex(" ") == "01 97 00 d2 16 b9 63 bd 2b 7b 67 f5 c7 88 ea f0"


def test_one_possible_symbol_takes_one_byte(engine):
    cdf, rows = np.zeros((1, 2), dtype=np.uint16), np.zeros(1000, dtype=np.uint8)
    payload = engine.encode(cdf, rows, np.zeros(1000, dtype=np.int16))
    assert payload == b"\x40"
    assert engine.decode(cdf, rows, payload).tolist() == [0] * 1000


def test_zero_bits_are_read_behind_the_end(engine):
    cdf, rows = even_rows(4, 20, 0), np.resize(np.arange(4, dtype=np.uint8), 100)
    symbols = np.random.default_rng(0).integers(0, 19, 100).astype(np.int16)
    payload = engine.encode(cdf, rows, symbols)
    cut = payload[: len(payload) // 2]
    assert engine.decode(cdf, rows, cut).tolist() == engine.decode(cdf, rows, cut + bytes(100)).tolist()
    assert engine.decode(cdf, rows, payload + b"\0").tolist() == symbols.tolist()


# --- what torchac would turn into silent damage

CDF = np.array([[0, 100, 200, 0], [0, 1, 65535, 0]], dtype=np.uint16)
ROWS = np.zeros(3, dtype=np.uint8)
SYMBOLS = np.array([0, 1, 2], dtype=np.int16)


def assert_refused(engine, match: str, cdf=CDF, rows=ROWS, symbols=SYMBOLS, *, decode: bool = True) -> None:
    with pytest.raises(SymbolError, match=match):
        engine.encode(cdf, rows, symbols)
    if decode:
        with pytest.raises(SymbolError, match=match):
            engine.decode(cdf, rows, b"\x40")


def test_the_arguments_of_the_refusals_are_otherwise_accepted(engine):
    assert engine.decode(CDF, ROWS, engine.encode(CDF, ROWS, SYMBOLS)).tolist() == SYMBOLS.tolist()


@pytest.mark.parametrize("symbol", [-1, 3, 32767, -32768])
def test_rejects_a_symbol_outside_of_its_row(engine, symbol):
    match = rf"span \[{min(symbol, 0)}, {max(symbol, 1)}\], the CDF rows hold \[0, 2\]"
    assert_refused(engine, match, symbols=np.array([0, 1, symbol], dtype=np.int16), decode=False)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_rejects_symbols_without_a_row_each(engine, count):
    assert_refused(engine, "symbols", symbols=np.zeros(count, dtype=np.int16), decode=False)


def test_rejects_rows_without_any_symbols(engine):
    assert_refused(engine, "symbols", symbols=np.zeros(0, dtype=np.int16), decode=False)


@pytest.mark.parametrize(
    "row",
    [
        [0, 200, 100, 0],  # falls
        [0, 100, 100, 0],  # stands still
        [0, 0, 100, 0],  # a first symbol without a count
        [1, 100, 200, 0],  # does not begin at 0
        [0, 100, 200, 300],  # does not end at 65536
        [0, 100, 200, 65535],
    ],
)
def test_rejects_a_row_that_does_not_rise_from_0_to_65536(engine, row):
    """Even when no symbol uses it."""
    assert_refused(engine, "does not rise strictly from 0 to 65536", cdf=np.array([CDF[0], row], dtype=np.uint16))


@pytest.mark.parametrize("row", [2, 255])
def test_rejects_a_row_that_the_table_does_not_have(engine, row):
    rows = np.array([0, row, 1], dtype=np.uint8)
    assert_refused(engine, f"row {row} asked for, the CDF table has 2", rows=rows)


@pytest.mark.parametrize("row", [-1, -3])
def test_rejects_a_row_below_zero(engine, row):
    assert_refused(engine, "row", rows=np.array([0, row, 1], dtype=np.int64))


@pytest.mark.parametrize("cdf", [np.zeros(4, np.uint16), np.zeros((1, 1), np.uint16), np.zeros((1, 0), np.uint16)])
def test_rejects_a_table_that_is_none(engine, cdf):
    assert_refused(engine, "expected .rows, Lp ≥ 2.", cdf=cdf)


def test_rejects_no_symbols(engine):
    none = np.zeros(0, dtype=np.uint8)
    assert_refused(engine, "for 0 symbols: expected .* a symbol or more", rows=none, symbols=none.astype(np.int16))


def test_rejects_2_to_the_31_cells_before_they_are_gathered(engine):
    """Lp 32 768 times 65 536 symbols, of which nothing is allocated here: torchac's int index would wrap."""
    cdf = np.concatenate([np.arange(32767), [0]]).astype(np.uint16)[None]
    rows = np.broadcast_to(np.uint8(0), 65_536)
    symbols = np.broadcast_to(np.int16(0), 65_536)
    assert_refused(engine, r"65536 symbols × Lp 32768 reaches torchac's limit of 2\^31", cdf, rows, symbols)
    check_arguments(cdf, rows[1:], symbols[1:])  # one symbol less is accepted


# --- the start of torchac's engine


def test_the_start_prints_nothing(torchac, monkeypatch, capfd):
    monkeypatch.setattr(torchac_module, "_loaded", None)
    assert TorchacEngine().name == "torchac"
    assert capfd.readouterr() == ("", "")


def test_the_cache_folder_is_lic_cache_then_xdg_then_home(monkeypatch):
    monkeypatch.setenv("LIC_CACHE", "/a")
    monkeypatch.setenv("XDG_CACHE_HOME", "/b")
    monkeypatch.setenv("HOME", "/c")
    assert cache_folder() == Path("/a")
    monkeypatch.delenv("LIC_CACHE")
    assert cache_folder() == Path("/b/learned-image-codec")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path("/c/.cache/learned-image-codec")


def test_another_torch_asks_for_another_file(fresh, monkeypatch):
    import torch

    here = built_path()
    assert here.is_relative_to(fresh)
    monkeypatch.setattr(torch, "__version__", "0.0.0")
    assert built_path().parent != here.parent


def test_a_build_has_ninja_on_its_path(monkeypatch):
    import ninja

    monkeypatch.setenv("PATH", "/nowhere")
    assert torchac_module._build_environment()["PATH"] == os.pathsep.join([ninja.BIN_DIR, "/nowhere"])
    monkeypatch.setitem(sys.modules, "ninja", None)
    assert torchac_module._build_environment()["PATH"] == "/nowhere"


# --- when it cannot start: EngineError, each with its cure


def test_torchac_not_installed_tells_the_cure(fresh, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(EngineError, match="pip install torchac"):
        TorchacEngine()


def test_a_missing_source_tells_the_cure(fresh, monkeypatch):
    monkeypatch.setattr(torchac_module, "source_path", lambda: Path("/nowhere/torchac_backend.cpp"))
    with pytest.raises(EngineError, match="/nowhere/torchac_backend.cpp.*reinstall torchac"):
        TorchacEngine()


def test_an_unwritable_cache_tells_the_cure(fresh):
    """A file stands where the folder should be: not even root can write there."""
    fresh.write_text("in the way")
    with pytest.raises(EngineError, match="cannot be built: .*set LIC_CACHE"):
        TorchacEngine()


def test_a_cache_that_cannot_be_looked_into_tells_the_cure(fresh, monkeypatch):
    """ENAMETOOLONG here, which root gets too; in the field EACCES on another user's folder."""
    monkeypatch.setenv("LIC_CACHE", "/" + "x" * 300)
    with pytest.raises(EngineError, match="set LIC_CACHE"):
        TorchacEngine()


def test_a_damaged_compiled_coder_tells_the_cure(fresh):
    built_path().parent.mkdir(parents=True)
    built_path().write_bytes(b"not a library")
    with pytest.raises(EngineError, match="cannot be loaded .*: delete it"):
        TorchacEngine()


def test_a_build_that_hangs_is_ended_and_leaves_nothing(fresh, monkeypatch):
    monkeypatch.setattr(torchac_module, "_BUILD", "import time; time.sleep(60)")
    monkeypatch.setattr(torchac_module, "BUILD_SECONDS", 0.2)
    with pytest.raises(EngineError, match="could not be compiled .*timed out"):
        TorchacEngine()
    assert list(built_path().parent.iterdir()) == []


@pytest.mark.parametrize("script", ["print('a'); raise SystemExit('g++ is ill')", "print('g++ is ill')"])
def test_a_build_that_fails_tells_its_last_line_and_leaves_nothing(fresh, monkeypatch, script):
    """Whether it says so by its exit status or only by leaving no library."""
    monkeypatch.setattr(torchac_module, "_BUILD", script)
    with pytest.raises(EngineError, match="could not be compiled .g.. is ill."):
        TorchacEngine()
    assert list(built_path().parent.iterdir()) == []


@pytest.mark.parametrize("trouble", ["cache", "library", "torchac"])
def test_default_engine_falls_back_with_the_cure_whatever_the_trouble(fresh, monkeypatch, trouble):
    if trouble == "cache":
        fresh.write_text("in the way")
    elif trouble == "library":
        built_path().parent.mkdir(parents=True)
        built_path().write_bytes(b"not a library")
    else:
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.warns(RuntimeWarning, match="Using the Python engine.*g..; macOS.*codec doctor"):
        assert default_engine().name == "reference"


@pytest.mark.skipif(not shutil.which("false"), reason="no program that fails")
@pytest.mark.parametrize("compiler", ["/nowhere/c++", "", shutil.which("false")])  # none; none; one that fails, in a child
def test_no_compiler_falls_back_to_the_reference_engine_with_the_cure(fresh, monkeypatch, capfd, compiler):
    monkeypatch.setenv("CXX", compiler)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.warns(RuntimeWarning, match="could not be compiled .*apt-get install g.*xcode-select --install.*codec doctor"):
        assert default_engine().name == "reference"
    assert default_engine() is default_engine()  # no second try, no second warning
    assert capfd.readouterr() == ("", "")
    assert list(fresh.glob("*/*")) == []


def test_default_engine_is_torchac_where_there_is_a_compiler(torchac):
    default_engine.cache_clear()
    assert default_engine().name == "torchac"


# --- the build itself

START = """
import sys
import numpy as np
from bitstream.engines import default_engine
engine = default_engine()
payload = engine.encode(np.array([[0, 9, 0]], np.uint16), np.zeros(20, np.uint8), np.array([0, 1] * 10, np.int16))
open(sys.argv[1], "wb").write(engine.name.encode() + b" " + payload)
"""


def path_without_ninja(folder: Path) -> str:
    """Return a PATH of links to all programs of this PATH but ninja."""
    folder.mkdir()
    for entry in os.environ["PATH"].split(os.pathsep):
        for program in Path(entry).glob("*"):
            if not program.name.startswith("ninja") and not (folder / program.name).is_symlink():
                (folder / program.name).symlink_to(program)
    return str(folder)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.skipif(not shutil.which(COMPILER), reason="no C++ compiler")
def test_a_fresh_cache_is_built_in_silence_despite_stale_locks_and_no_ninja_on_path(fresh, tmp_path):
    """A killed build left its folder and lock, in our cache and where ``import torchac`` would wait for it for ever."""
    stale = [built_path().parent / "build-killed", tmp_path / "extensions" / MODULE]
    for folder in stale:
        folder.mkdir(parents=True)
        (folder / "lock").touch()
    environment = dict(os.environ, TORCH_EXTENSIONS_DIR=str(tmp_path / "extensions"), PATH=path_without_ninja(tmp_path / "bin"))
    assert shutil.which("ninja", path=environment["PATH"]) is None
    cdf, rows = np.array([[0, 9, 0]], dtype=np.uint16), np.zeros(20, dtype=np.uint8)
    want = b"torchac " + REFERENCE.encode(cdf, rows, np.array([0, 1] * 10, dtype=np.int16))

    def start(**changes: str) -> None:
        result = tmp_path / "result"
        done = subprocess.run(
            [sys.executable, "-c", START, str(result)], env=environment | changes, capture_output=True, timeout=280
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
        assert result.read_bytes() == want
        result.unlink()

    start()
    assert sorted(path.name for path in built_path().parent.iterdir()) == ["build-killed", built_path().name]
    start(CXX="/nowhere/c++", PATH="/nowhere")  # the second start runs no compiler


def test_the_cause_of_a_failed_build_is_the_compilers_line():
    output = """Traceback (most recent call last):
    raise CalledProcessError(retcode, process.args,
subprocess.CalledProcessError: Command '['ninja', '-v']' returned non-zero exit status 1.
/usr/include/torch/extension.h:5:10: fatal error: Python.h: No such file or directory
RuntimeError: Error building extension"""
    assert "Python.h" in torchac_module._cause(output)
    assert "python3-dev" in torchac_module.build_cure(torchac_module._cause(output))
    assert torchac_module._cause("a\nb") == "b"
    assert torchac_module._cause("") == "no output"
