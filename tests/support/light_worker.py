"""Work on pictures of a batch without torch, for tests of the processes that import this: names say what shall happen."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from bitstream.errors import CheckpointError
from codec.batch.worker import blank_row


def prepare(options):
    """Be ready at once."""


def refuse(options):
    """Say what is wrong with all pictures."""
    raise CheckpointError("no such weights: look elsewhere")


def die(options):
    """End before the worker is ready."""
    os._exit(3)


def process(item, options):
    """Return a row with our process id; kill the process for a picture named kill, once for one named kill-once."""
    name = Path(item.source).stem
    mark = Path(item.target).with_name(f"{name}.mark")
    if name == "kill" or (name == "kill-once" and not mark.exists()):
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if name.startswith("slow"):
        mark.touch()
        time.sleep(60)
    return blank_row(item, options) | {"status": "done", "pid": os.getpid()}
