"""The one tree of errors. Every message says what was found, what was expected and what cures it.

CodecError
├── UsageError          the caller's argument, option or recipe is off
├── ImageError          a picture cannot be read, or is of a kind that is not supported
├── FormatError         the bytes are not a file of ours, or a damaged one
│   ├── VersionError    a format version this program does not know
│   └── LimitError      larger than the limits allow
├── WriteError          a file cannot be written: a full disk, a folder without the right to write
├── TargetError         no file of a picture has the size or the PSNR that is asked for
├── DesyncError         the decoded symbols do not have the checksum in the file
├── SymbolError         a symbol or CDF row is outside of what the coder can store
├── EngineError         the arithmetic coder cannot be built or loaded
└── CheckpointError     weights are missing, damaged, or not those that a file was made with
"""

from __future__ import annotations


class CodecError(Exception):
    """Root of all errors that this project raises on purpose."""


class UsageError(CodecError):
    """The caller's argument, option or recipe is off."""


class ImageError(CodecError):
    """A picture cannot be read, or is of a kind that is not supported."""


class FormatError(CodecError):
    """The bytes are not a file of ours, or a damaged one."""


class VersionError(FormatError):
    """A format version that this program does not know."""


class LimitError(FormatError):
    """The file asks for more than the limits allow."""


class WriteError(CodecError):
    """A file cannot be written: a full disk, a folder without the right to write."""


class TargetError(CodecError):
    """No file of a picture has the size or the PSNR that is asked for."""


class DesyncError(CodecError):
    """The decoded symbols do not have the checksum that the file carries."""


class SymbolError(CodecError):
    """A symbol or CDF row is outside of what the coder can store."""


class EngineError(CodecError):
    """The arithmetic coder cannot be built or loaded."""


class CheckpointError(CodecError):
    """Weights are missing, damaged, or not those that a file was made with."""


def unexpected(error: Exception) -> str:
    """Return what is said of an error that nobody raised on purpose, where other files or checks go on."""
    first = (str(error).splitlines() or [""])[0]
    return f"an error of the program ({type(error).__name__}: {first}): please report it"


_OUT_OF_MEMORY = (
    "out of memory",
    "not enough memory",
    "allocate memory",
    "failed to allocate",
    "memory allocation",
    "bad_alloc",
    "bad allocation",
    "alloc_failed",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory is short: torch has several words for it, and on the CPU no class."""
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _OUT_OF_MEMORY)
