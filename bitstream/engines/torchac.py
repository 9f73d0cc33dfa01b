"""The fast engine: torchac's C++ coder, with its traps closed.

``import torchac`` compiles at import, prints to stdout, needs ninja on PATH, and hangs for ever on the lock that a killed
build leaves. So the package is only used for its source: it is compiled once, by a child process, in a folder of its own,
and the result is renamed into the user's cache. Later starts load that file and run no compiler. Two processes that build
at once do it side by side; the last rename wins; no lock exists; a later build removes what a killed one left. What the C++
does not check, ``check_arguments`` does.

torchac is GPL-3 (Fabian Mentzer, ETH Zurich).
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.machinery
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bitstream.engines import check_arguments
from bitstream.errors import EngineError

MODULE = "torchac_backend"
BUILD_SECONDS = 300

_BUILD = """
import sys
from torch.utils.cpp_extension import load
load(name={name!r}, sources=[{source!r}], build_directory={folder!r}, verbose=False, is_python_module=False)
"""


class TorchacEngine:
    """torchac's coder; about 0.1 µs a symbol with the gathering of its row."""

    name = "torchac"

    def __init__(self) -> None:
        self._backend = _backend()

    def encode(self, cdf: NDArray[np.uint16], rows: NDArray[np.integer[Any]], symbols: NDArray[np.int16]) -> bytes:
        """Return the payload of N ≥ 1 symbols. Raises SymbolError if one is outside of its row."""
        import torch

        check_arguments(cdf, rows, symbols)
        gathered = torch.from_numpy(np.take(cdf.view(np.int16), rows, axis=0))  # (N, Lp), contiguous
        payload: bytes = self._backend.encode_cdf(gathered, torch.from_numpy(np.ascontiguousarray(symbols)))
        return payload

    def decode(self, cdf: NDArray[np.uint16], rows: NDArray[np.integer[Any]], payload: bytes) -> NDArray[np.int16]:
        """Return the len(rows) symbols of a payload; zero bits are read behind its end."""
        import torch

        check_arguments(cdf, rows)
        gathered = torch.from_numpy(np.take(cdf.view(np.int16), rows, axis=0))
        symbols: NDArray[np.int16] = self._backend.decode_cdf(gathered, payload).numpy()
        return symbols


_loaded: ModuleType | None = None


def _backend() -> ModuleType:
    """Load the compiled coder once per process, building it first if need be. Raises EngineError."""
    global _loaded
    if _loaded is None:
        built = built_path()
        if not os.path.exists(built):  # Path.exists would raise for a folder that may not be read
            _build(built)
        _loaded = _load(built)
    return _loaded


def source_path() -> Path:
    """Return torchac's C++ source, found without importing the package. Raises EngineError."""
    spec = importlib.util.find_spec("torchac")
    if spec is None or spec.origin is None:
        raise EngineError("torchac is not installed (pip install torchac).")
    return Path(spec.origin).parent / "backend" / "torchac_backend.cpp"


def cache_folder() -> Path:
    """Return the folder of compiled engines: LIC_CACHE, else the user's cache folder. Raises EngineError."""
    if "LIC_CACHE" in os.environ:
        return Path(os.environ["LIC_CACHE"])
    try:
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    except RuntimeError as error:  # a container's user without a home
        raise EngineError("torchac's coder cannot be built: this user has no home folder: set LIC_CACHE.") from error
    return Path(home) / "learned-image-codec"


def built_path() -> Path:
    """Return where the compiled coder of this very Python, torch and source lies or will lie."""
    import torch

    try:
        source = source_path().read_bytes()
    except OSError as error:
        raise EngineError(f"torchac's source cannot be read ({error}): reinstall torchac.") from error
    abi = f"{sys.implementation.cache_tag}-{platform.system()}-{platform.machine()}-{torch.__version__}"
    digest = hashlib.sha256(source + abi.encode()).hexdigest()[:12]
    return cache_folder() / f"{MODULE}-{abi}-{digest}" / f"{MODULE}{importlib.machinery.EXTENSION_SUFFIXES[-1]}"


def _build(target: Path) -> None:
    source = str(source_path())
    own = "cl" if os.name == "nt" else "c++"  # torch's choice
    compiler = next(iter(os.environ.get("CXX", "").split()), own)
    if shutil.which(compiler) is None:  # at once: a build takes seconds to find that out, in every process
        raise EngineError(f"torchac's coder could not be compiled ({compiler}: not found).")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale_builds()
        folder = tempfile.mkdtemp(prefix="build-", dir=target.parent)
    except OSError as error:
        raise EngineError(f"torchac's coder cannot be built: {error.strerror}: {target.parent}: set LIC_CACHE.") from error
    try:
        script = _BUILD.format(name=MODULE, source=source, folder=folder)
        done = subprocess.run(
            [sys.executable, "-c", script], env=_build_environment(), capture_output=True, text=True, timeout=BUILD_SECONDS
        )
        library = next((p for p in Path(folder).iterdir() if p.suffix in (".so", ".pyd", ".dylib")), None)
        if done.returncode or library is None:
            raise EngineError(f"torchac's coder could not be compiled ({_cause(done.stdout + done.stderr)}).")
        os.replace(library, target)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EngineError(f"torchac's coder could not be compiled ({error}).") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _remove_stale_builds() -> None:
    """Remove what killed builds left in the cache, for any Python or torch: a build that lives is not that old."""
    for folder in cache_folder().glob(f"{MODULE}-*/build-*"):
        with contextlib.suppress(OSError):  # another process removes it too
            if time.time() - folder.stat().st_mtime > 2 * BUILD_SECONDS:
                shutil.rmtree(folder, ignore_errors=True)


def build_cure(reason: str) -> str:
    """Return what makes the next build succeed."""
    if "Python.h" in reason:
        return "install Python's headers (Debian: apt-get install python3-dev)"
    return "install a C++ compiler (Debian: apt-get install g++; macOS: xcode-select --install)"


def _cause(output: str) -> str:
    """Return the line of a compiler's output that says most."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    telling = (line for words in ("error:", "not found", "Error") for line in lines if words in line)
    return next(telling, (lines or ["no output"])[-1])[:300]


def _build_environment() -> dict[str, str]:
    """Return the environment with ninja's folder on PATH: a venv that is not activated does not have it there."""
    environment = dict(os.environ)
    try:
        import ninja
    except ImportError:
        return environment
    environment["PATH"] = os.pathsep.join([ninja.BIN_DIR, environment.get("PATH", "")])
    return environment


def _load(path: Path) -> ModuleType:
    import torch  # noqa: F401  the library links to libtorch

    loader = importlib.machinery.ExtensionFileLoader(MODULE, str(path))
    spec = importlib.util.spec_from_file_location(MODULE, path, loader=loader)
    try:
        assert spec is not None
        module = importlib.util.module_from_spec(spec)
        with warnings.catch_warnings():
            loader.exec_module(module)
    except (ImportError, OSError) as error:
        raise EngineError(f"torchac's compiled coder {path} cannot be loaded ({error}): delete it.") from error
    return module
