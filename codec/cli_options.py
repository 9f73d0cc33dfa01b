"""What the command modules share: kinds of parameters, and the number of CPU threads."""

from __future__ import annotations

from pathlib import Path

import click

DEVICES = click.Choice(["auto", "cpu", "cuda"])
FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
PATH = click.Path(path_type=Path)


def set_threads(threads: int | None) -> None:
    """Set the number of CPU threads, if one is given; torch is imported only then."""
    if threads:
        import torch

        torch.set_num_threads(threads)
