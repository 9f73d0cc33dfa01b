"""``codec`` and ``python -m codec``: what must hold from the first import on. A signal ends with 128 + its number."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from types import FrameType


def run() -> None:
    """Run the command line in a process of its own."""
    _open_standard_streams()
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):  # the last is the terminal's end; Windows has none
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup, or with & in a script
            signal.signal(number, _stop)
    from codec.cli.main import main

    main(prog_name="codec")


def _stop(number: int, _: FrameType | None) -> None:
    """Say so and leave through every ``finally``: no file is left half written. A second signal ends at once."""
    signal.signal(number, signal.SIG_DFL)
    with contextlib.suppress(OSError):
        os.write(2, b"codec: interrupted\n" if number == signal.SIGINT else b"codec: terminated\n")
    sys.exit(128 + number)


def _open_standard_streams() -> None:
    """Open what the caller closed: else the next file, our output perhaps, would be what libraries print to."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free, this one


if __name__ == "__main__":
    run()
