"""The command ``codec compare``. ``codec.cli.main`` registers it and turns its errors into exit codes.

Heavy imports stay inside, as in ``codec.cli.main``.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bitstream.errors import UsageError
from bitstream.limits import Limits
from codec.cli.files import is_terminal
from codec.cli.options import DEVICES, PATH, max_pixels_option, printable, set_threads

if TYPE_CHECKING:
    from codec.evaluation.contenders import Contender
    from codec.targets import Target

DEFAULT_PEERS = ("jpeg", "webp", "avif", "jxl", "jpeg2000")  # AVIF as it tunes itself: for the eye
DEFAULT_BPP = 0.25  # where codecs differ to the eye


@click.argument("sources", metavar="IMAGE...", type=PATH, nargs=-1, required=True)
@click.option("-o", "--out", type=PATH, required=True, help="The page, an HTML file.")
@click.option("--bpp", type=float, help=f"Bits per pixel of every codec's file.  [default: {DEFAULT_BPP}]")
@click.option("--size", metavar="BYTES|KB", help="Instead: bytes, for example 30000 or 30KB.")
@click.option("-q", "--quality", type=click.FloatRange(0, 100), help="Instead: as many bytes as the first codec needs for it.")
@click.option("--model", "models", multiple=True, default=("swift",), show_default=True,
              help="A name from `codec models`, or a .safetensors path; several times for several; '' for none.")  # fmt: skip
@click.option("--peers", "peer_names", help="Comma-separated.  [default: those installed of jpeg, webp, avif, jxl, jpeg2000]")
@click.option("-f", "--force", is_flag=True, help="Overwrite the page.")
@max_pixels_option
@click.option("--threads", type=click.IntRange(1), help="CPU threads (default: all cores).")
@click.option("--device", type=DEVICES, default="auto", show_default=True, help="Where the transforms run.")
def compare(
    sources: tuple[Path, ...], out: Path, bpp: float | None, size: str | None, quality: float | None, models: tuple[str, ...],
    peer_names: str | None, force: bool, max_pixels: int, threads: int | None, device: str,
) -> None:  # fmt: skip
    """Show pictures as every codec leaves them at the same number of bytes: one HTML page that needs nothing else.

    It has a wipe slider, zoom, difference maps, a blink key, the figures of each codec and its rate-distortion curve.

    \b
    codec compare photo.png -o page.html
    codec compare photo.png other.jpg --size 30KB --peers jpeg,webp,avif -o page.html
    """
    goal = _goal(bpp, size, quality)
    from codec.files import check_not_source, check_target, write_atomic

    check_target(out, overwrite=force)
    check_not_source(out, sources)
    for source in sources:
        if not os.path.exists(source):
            raise UsageError(f"{source}: no such file")
    set_threads(threads)
    limits = Limits(max_pixels=max_pixels)
    import torch

    from codec import images
    from codec.comparison.match import compare as match
    from codec.comparison.page import page

    pictures = [
        (os.fsencode(source.name).decode("utf-8", "replace"), images.load(source, limits=limits).bare) for source in sources
    ]
    contenders = _contenders(models, peer_names, threads or torch.get_num_threads(), device)
    with _bar(len(pictures) * len(contenders)) as progress:
        shown = [match(name, picture, goal, contenders, progress) for name, picture in pictures]
    title = f"{pictures[0][0] if len(pictures) == 1 else f'{len(pictures)} pictures'}: codecs at equal bytes"
    write_atomic(out, page(shown, title=title, made_by=_made_by(contenders)).encode(), overwrite=force)
    for compared in shown:
        for codec in compared.codecs:
            off = 100 * (codec.n_bytes / compared.asked_bytes - 1)
            click.echo(
                f"{printable(compared.name)}: {codec.name} {codec.n_bytes} bytes ({off:+.1f} %), PSNR {codec.psnr_db:.2f} dB"
            )
    click.echo(f"{printable(str(out))}: open it in a browser")


def _goal(bpp: float | None, size: str | None, quality: float | None) -> Target:
    """Return what was asked for. Raises UsageError for contradictions."""
    from codec.targets import Target, parse_size

    if bpp is None and size is None and quality is None:
        bpp = DEFAULT_BPP
    return Target(quality=quality, bpp=bpp, size=None if size is None else parse_size(size))


def _contenders(models: tuple[str, ...], peer_names: str | None, threads: int, device: str) -> list[Contender]:
    """Return models, then peers. Raises UsageError for unknown ones; by default says which are not installed."""
    from codec.evaluation.contenders import ModelContender, PeerContender, check_names
    from codec.evaluation.peers import PEERS, peers

    chosen: list[Contender] = [ModelContender.of(model, device) for model in models if model]
    for name in DEFAULT_PEERS if peer_names is None else [peer.name for peer in peers(peer_names)]:
        try:
            chosen.append(PeerContender.of(PEERS[name], threads))
        except UsageError as error:
            click.echo(f"codec: left out: {error}", err=True)
    check_names(chosen)
    return chosen


def _made_by(contenders: list[Contender]) -> str:
    from codec import __version__
    from codec.evaluation.contenders import PeerContender
    from codec.machine import cpu_name

    identities = [f"{contender.name}: {contender.identity}" for contender in contenders]
    threads = {contender.threads for contender in contenders if isinstance(contender, PeerContender)}
    used = f", {count} thread{'' if count == 1 else 's'}" if (count := max(threads, default=0)) else ""
    return f"codec {__version__}; {'; '.join(identities)}; {cpu_name()}{used}"


@contextlib.contextmanager
def _bar(total: int) -> Iterator[Callable[[str], None]]:
    """Show a bar on a terminal; its value is called with the name of the codec that begins."""
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True, disable=not is_terminal(sys.stderr)) as bar:
        task = bar.add_task("compare", total=total, completed=-1)
        yield lambda name: bar.update(task, advance=1, description=name)
