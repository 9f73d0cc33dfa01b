"""A learned image codec: ``encode`` pictures to bytes, ``decode`` them on any machine.

>>> import codec
>>> data = codec.encode("photo.png", quality=50)
>>> image = codec.decode(data)
"""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any


def _require_own_packages() -> None:
    """Fail if Python finds a stranger's ``models`` (or bitstream, checkpoints) before ours."""
    root = Path(__file__).resolve().parent.parent
    for name in ("bitstream", "models", "checkpoints"):
        spec = importlib.util.find_spec(name)
        origin = Path(spec.origin).resolve() if spec is not None and spec.origin else None
        found = origin.parent if origin is not None and origin.name == "__init__.py" else origin  # a package, or a module
        if found != root / name:
            raise ImportError(
                f"learned-image-codec needs its own package {name!r} at {root / name}, but Python finds {found or 'none'}: "
                "rename that, or start Python elsewhere"
            )


_require_own_packages()

if TYPE_CHECKING:
    from bitstream.errors import (
        CheckpointError,
        CodecError,
        DesyncError,
        EngineError,
        FormatError,
        ImageError,
        LimitError,
        SymbolError,
        TargetError,
        UsageError,
        VersionError,
        WriteError,
    )
    from bitstream.header import Header
    from bitstream.limits import Limits
    from codec import batch as batch
    from codec.api import Codec, decode, decode_file, encode, encode_file, latents
    from codec.batches import decode_batch, encode_batch
    from codec.compressed import DecodedLatents
    from codec.describe import info
    from codec.inspection import Inspection, inspect

    __version__: str

_ERRORS = (
    "CheckpointError CodecError DesyncError EngineError FormatError ImageError LimitError SymbolError TargetError "
    "UsageError VersionError WriteError"
)
_HOMES = {name: "codec.api" for name in ("Codec", "decode", "decode_file", "encode", "encode_file", "latents")}
_HOMES |= {"encode_batch": "codec.batches", "decode_batch": "codec.batches", "DecodedLatents": "codec.compressed"}
_HOMES |= {name: "bitstream.errors" for name in _ERRORS.split()}
_HOMES |= {"Header": "bitstream.header", "Limits": "bitstream.limits", "info": "codec.describe"}
_HOMES |= {name: "codec.inspection" for name in ("Inspection", "inspect")}

__all__ = [  # noqa: RUF022
    "encode", "decode", "encode_file", "decode_file", "encode_batch", "decode_batch", "latents", "info", "inspect",
    "Codec", "DecodedLatents", "Header", "Inspection", "Limits",
    "CodecError", "CheckpointError", "DesyncError", "EngineError", "FormatError", "ImageError", "LimitError",
    "SymbolError", "TargetError", "UsageError", "VersionError", "WriteError",
]  # fmt: skip


def _version() -> str:
    """Return the version that was installed, which git's tag gave it; "0+unknown" in a folder that never was."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("learned-image-codec")
    except PackageNotFoundError:
        return "0+unknown"


if not TYPE_CHECKING:  # else a checker would take any name for one of ours

    def __getattr__(name: str) -> Any:
        """Import the API at first use: ``codec info`` and ``--help`` need no torch."""
        if name == "__version__":
            return _version()
        if name in _HOMES:
            return getattr(importlib.import_module(_HOMES[name]), name)
        if name == "batch":  # codec.batch.run
            return importlib.import_module("codec.batch")
        raise AttributeError(f"module 'codec' has no attribute {name!r}")


def __dir__() -> list[str]:
    """Return what there is to complete: names that are imported at their first use too."""
    return sorted({*globals(), *__all__, "__version__", "batch"})
