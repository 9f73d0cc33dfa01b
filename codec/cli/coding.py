"""The commands encode and decode. ``codec.cli.main`` registers them and turns their errors into exit codes.

Heavy imports stay inside the commands, as in ``codec.cli.main``.
"""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, BinaryIO

import click

from bitstream.errors import ImageError, LimitError, UsageError
from bitstream.limits import NO_LIMITS, Limits
from codec.cli.files import FileOptions, Row, file_options, is_terminal, process, read_stdin, size_of, write_target
from codec.cli.options import CROP, DEVICES, PATH, SCALE, limit_options, limits_of, max_pixels_option, printable, set_threads
from codec.pairs import STREAM, SUFFIX, Pair, is_coded, is_picture

_SEVERAL = """A file
that fails does not stop the others: those that failed are listed at the end. `codec --help` has the exit codes.

--json gives source, target, bytes (of the target), source_bytes, width, height, bpp, quality, model and seconds; psnr_db where
it is known, skipped where the target existed, error where the file failed. Bytes of a name that are no UTF-8 are lone
surrogates there, as Python's os.fsencode takes them."""
_ENCODE_EXAMPLES = """\b
Examples:
  codec encode photo.png photo.lic -q 30
  codec encode photo.png photo.lic --size 40KB --verify
  codec encode *.png -o coded/
  codec encode --recursive Pictures -o coded/ --skip-existing
  codec encode *.jpg -o coded/ --json > rows.jsonl
  convert photo.png -resize 50% png:- | codec encode - small.lic
  codec encode -- -odd-name.png odd.lic

"""
ENCODE_EPILOG = f"""{_ENCODE_EXAMPLES}
SOURCE may be - for stdin, TARGET - for stdout; reports go to stderr then. Below folders the files are taken whose names end
like those of pictures (.png, .jpg, …), hidden ones left out. {_SEVERAL}
"""
_DECODE_EXAMPLES = """\b
Examples:
  codec decode photo.lic photo.png
  codec decode large.lic part.png --crop 4000,3000,512,512
  codec decode *.lic -o pictures/ --suffix .webp
  codec decode --recursive coded -o pictures/
  codec encode - - < photo.png | codec decode - - > photo.decoded.png
  codec decode photo.lic - --format ppm | display

"""
DECODE_EPILOG = f"""{_DECODE_EXAMPLES}
SOURCE may be - for stdin, TARGET - for stdout; reports go to stderr then. Below folders the files are taken whose names end
with .lic or that begin with its signature, hidden ones left out. {_SEVERAL} Sizes in pixels are those of the whole picture.
"""


def _compute_options(function: Callable[..., None]) -> Callable[..., None]:
    for option in (
        click.option("-v", "--verbose", is_flag=True, help="Print the seconds of each stage."),
        click.option("--threads", type=click.IntRange(1), help="CPU threads (default: all cores)."),
        click.option("--device", type=DEVICES, default="auto", show_default=True, help="Where the transforms run."),
    ):
        function = option(function)
    return function


def _print_timings(name: str, timings: dict[str, float], begin: float) -> None:
    stages = "  ".join(f"{stage} {seconds:.3f} s" for stage, seconds in timings.items())
    click.echo(f"{name}{stages}  | with start-up {time.perf_counter() - begin:.3f} s", err=True)


def _print_clamped(name: str, clamped: int) -> None:
    hint = ": the picture is coarser there than the quality asks for" if clamped else ""
    click.echo(f"{name}{clamped} symbols clamped{hint}", err=True)


@file_options(SUFFIX)
@click.option("-q", "--quality", type=click.FloatRange(0, 100), help="0 small … 100 fine.  [default: 50]")
@click.option("--bpp", type=float, help="Instead: at most so many bits per pixel.")
@click.option("--size", metavar="BYTES|KB", help="Instead: at most so many bytes, for example 40000, 40KB or 1.5MB.")
@click.option("--psnr", type=float, help="Instead: the smallest file with this PSNR in dB, or a little more.")
@click.option("--max-size", metavar="BYTES|KB", help="Lower the quality where the file would be larger than this.")
@click.option("--effort", type=click.IntRange(0, 10), default=0, show_default=True,
              help="Of overfit: 1000 to 100000 iterations. Of others: 0, or 15 to 500 experimental steps.")  # fmt: skip
@click.option("--model", default="swift", show_default=True, help="A name from `codec models`, or a .safetensors path.")
@click.option(
    "--resume", type=PATH, metavar="STATE", help="Of overfit: keep the fit in this file, go on from it if it is there."
)
@click.option("--strip", is_flag=True, help="Leave EXIF and XMP away; the ICC profile stays.")
@click.option("--strict", is_flag=True, help="Refuse what would lose something instead of warning.")
@click.option("--verify", is_flag=True, help="Decode again and print PSNR.")
@max_pixels_option
@_compute_options
def encode(
    files: FileOptions, quality: float | None, bpp: float | None, size: str | None, psnr: float | None, max_size: str | None,
    effort: int, model: str, resume: Path | None, strip: bool, strict: bool, verify: bool, max_pixels: int, device: str,
    threads: int | None, verbose: bool,
) -> None:  # fmt: skip
    """Compress a picture SOURCE (PNG, JPEG, WebP, TIFF, …) into the file TARGET, or several into the folder DIR."""
    begin = time.perf_counter()
    from codec.targets import Target, parse_size

    sizes = [None if text is None else parse_size(text) for text in (size, max_size)]
    goal = Target(quality=quality, bpp=bpp, size=sizes[0], psnr=psnr, max_size=sizes[1])
    limits = Limits(max_pixels=max_pixels)
    pairs = files.pairs(SUFFIX, is_picture)
    from codec import images
    from codec.api import cached_codec
    from codec.metrics import decoded_psnr_db

    set_threads(threads)
    coder = cached_codec(model, device)
    coder.check_effort(effort)
    if resume is not None and len(pairs) > 1:
        raise UsageError(f"--resume keeps the fit of one picture, {len(pairs)} are given: encode them one by one")
    if resume is not None and os.path.abspath(resume) in map(os.path.abspath, (pairs[0].source, pairs[0].target)):
        raise UsageError(f"--resume {resume} is the picture or the target itself: choose another name")

    def work(pair: Pair) -> Row:
        source = _picture(pair.source, limits)
        source_bytes = len(source) if isinstance(source, bytes) else size_of(source)
        picture = images.load(source, limits=limits, strip=strip, strict=strict, name="stdin")
        single = len(pairs) == 1
        bar = _refinement_bar(coder, effort, shown=single and not files.quiet)
        with _interrupts(coder.fits_pictures and single), bar as progress:
            data = coder.encode_picture(picture, goal, effort=effort, progress=progress, resume=resume, keep_interrupted=True)
        timings, clamped = coder.timings, coder.clamped
        row = _facts(coder, data) | {"source_bytes": source_bytes}
        if verify or not goal.is_quality:
            row["psnr_db"] = decoded_psnr_db(picture.pixels, coder.decode(data, limits=NO_LIMITS))
        write_target(pair.target, data, overwrite=files.force)
        if coder.fit is not None and coder.fit.interrupted:
            row["interrupted"] = True
            click.echo(f"interrupted: {printable(pair.target)} holds what was found so far", err=True)
        if verbose:
            name = "" if len(pairs) == 1 else f"{printable(pair.source)}: "
            _print_timings(name, timings, begin)
            _print_clamped(name, clamped)
        return row

    process(pairs, work, files)


def _picture(source: str, limits: Limits) -> str | bytes:
    """Return the path of a picture, its bytes if it comes through a pipe: there, nobody can seek. Raises LimitError."""
    if os.path.isfile(source) and source != STREAM:
        return source
    from codec.files import read_bytes

    try:
        return read_stdin(limits) if source == STREAM else read_bytes(source, limits=limits)
    except LimitError as error:  # a limit that ``encode`` has no option for, and needs none for files
        name = "stdin" if source == STREAM else source
        cure = "save the picture as a file, and give its name"
        raise LimitError(f"{name}: more than {limits.max_memory} bytes, the most that is read of a pipe: {cure}") from error


def _facts(coder: Any, data: bytes) -> Row:
    """Return what a file says about itself, and its size."""
    from codec.describe import info

    return {"bytes": len(data), **_header_facts(coder, info(data), len(data))}


def _header_facts(coder: Any, header: Any, n_bytes: int) -> Row:
    from codec.metrics import bpp

    return {
        "width": header.width,
        "height": header.height,
        "bpp": bpp(n_bytes, header.width, header.height),
        "quality": 100 * header.level / (coder.max_level or 1),
        "model": coder.model.checkpoint.name,
    }


@contextlib.contextmanager
def _refinement_bar(coder: Any, effort: int, shown: bool) -> Iterator[Callable[[float], None]]:
    """Show a bar on a terminal while a picture is refined or fitted; its value is called with the share done."""
    fits = coder.fits_pictures
    if not (effort or fits) or not shown or not is_terminal(sys.stderr):
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True, redirect_stdout=False) as bar:
        task = bar.add_task("fit" if fits else "refine", total=1.0)

        def update(share: float) -> None:
            state = coder.fit.state if fits and coder.fit is not None else None
            text = "refine" if state is None else f"fit: {state.bpp:.3f} bpp, {state.psnr_db:.2f} dB"
            bar.update(task, completed=share, description=text)

        yield update


@contextlib.contextmanager
def _interrupts(kept: bool) -> Iterator[None]:
    """Let Ctrl-C end a descent, whose file is then kept; elsewhere, and the second time, it ends the program as ever."""
    before = signal.getsignal(signal.SIGINT)
    if not kept or not callable(before) or threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(_: int, __: FrameType | None) -> None:
        signal.signal(signal.SIGINT, before)
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    except KeyboardInterrupt:  # no descent took it
        before(signal.SIGINT, None)
    finally:
        signal.signal(signal.SIGINT, before)


@file_options(".png")
@click.option("--format", "format_", metavar="png|webp|…", help="Of the picture, whatever its name says; png for stdout.")
@click.option("--model", help="A checkpoint (.safetensors path) when the one the file names is not installed.")
@click.option("--crop", type=CROP, metavar="X,Y,W,H", help="Only W×H pixels from column X, row Y.")
@click.option("--scale", type=SCALE, default="1", show_default=True, help="1/2, 1/4 or 1/8 of the size: a thumbnail.")
@limit_options
@_compute_options
def decode(
    files: FileOptions, format_: str | None, model: str | None, crop: tuple[int, int, int, int] | None, scale: str,
    max_pixels: int, max_memory: str, device: str, threads: int | None, verbose: bool,
) -> None:  # fmt: skip
    """Decompress the file SOURCE into the picture TARGET, or several into the folder DIR.

    The extension of TARGET chooses the format: .png, .webp, .tiff, …
    """
    begin = time.perf_counter()
    limits = limits_of(max_pixels, max_memory)
    suffix = f".{format_.lower()}" if format_ else ".png"
    _check_suffix(suffix if format_ else files.suffix or suffix)
    pairs = files.pairs(suffix, is_coded)

    def work(pair: Pair) -> Row:
        with _open(pair.source, limits) as file:
            from bitstream.container import open_container
            from models.manifest import find_by_id

            # Complain about damage before torch is loaded. Of a crop, only what is read is checked.
            container = open_container(file, limits=limits, whole=crop is None)
            name = model if model is not None else find_by_id(container.header.model_id)
            from codec import images

            kind = images.format_of(f"x{suffix}" if format_ or pair.target == STREAM else pair.target)
            from codec.api import cached_codec

            set_threads(threads)
            coder = cached_codec(name, device)
            image = coder.decode_tiles(container, crop=crop, scale=int(scale.removeprefix("1/")), limits=limits)
            n_bytes = file.seek(0, io.SEEK_END)
        data = images.pack(image, kind, "stdout" if pair.target == STREAM else pair.target)
        write_target(pair.target, data, overwrite=files.force)
        if verbose:
            _print_timings("" if len(pairs) == 1 else f"{printable(pair.source)}: ", coder.timings, begin)
        return {"bytes": len(data), "source_bytes": n_bytes, **_header_facts(coder, container.header, n_bytes)}

    process(pairs, work, files)


def _check_suffix(suffix: str) -> None:
    """Raise UsageError unless pictures can be written whose names end so."""
    from codec.images import format_of

    try:
        format_of(f"x{suffix}")
    except ImageError as error:
        raise UsageError(f"pictures cannot be written as {suffix!r}: give .png, .webp or .tiff, for example") from error


def _open(source: str, limits: Limits) -> BinaryIO:
    from codec.files import open_bytes

    return io.BytesIO(read_stdin(limits)) if source == STREAM else open_bytes(source, limits=limits)
