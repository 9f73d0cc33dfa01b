"""The command line. Catches and prints errors; everything else lives behind it. Exit 0 done, 1 error, 2 usage.

Heavy imports stay inside the commands: ``codec --help`` and ``codec info`` load no torch.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from functools import wraps
from pathlib import Path
from typing import Any

import click

from bitstream.errors import CodecError, UsageError
from bitstream.limits import NO_LIMITS, Limits
from codec import __version__, cli_compare, cli_evaluate, cli_inspect, cli_models, cli_training
from codec.cli_options import CROP, DEVICES, PATH, SCALE, limit_options, limits_of, max_pixels_option, set_threads


def _print_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    if category in (UserWarning, RuntimeWarning):
        click.echo(f"codec: warning: {message}", err=True)


def _errors_to_exit(function: Callable[..., None]) -> Callable[..., None]:
    """Turn our errors into one sentence and an exit code, warnings into one line each."""

    @wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> None:
        with warnings.catch_warnings():
            warnings.showwarning = _print_warning
            try:
                function(*args, **kwargs)
            except CodecError as error:
                click.echo(f"codec: {error}", err=True)
                sys.exit(2 if isinstance(error, UsageError) else 1)
            except OSError as error:  # of stdout: files raise ours
                if error.errno == errno.EPIPE:
                    raise  # click ends quietly
                click.echo(f"codec: {error}", err=True)
                sys.exit(1)
            except (MemoryError, RuntimeError) as error:
                if isinstance(error, RuntimeError) and "memory" not in str(error):  # torch says so in many ways
                    raise
                click.echo("codec: out of memory: the picture is too large for this machine", err=True)
                sys.exit(1)

    return wrapper


def _compute_options(function: Callable[..., None]) -> Callable[..., None]:
    for option in (
        click.option("-v", "--verbose", is_flag=True, help="Print the seconds of each stage."),
        click.option("--threads", type=click.IntRange(1), help="CPU threads (default: all cores)."),
        click.option("--device", type=DEVICES, default="auto", show_default=True, help="Where the transforms run."),
    ):
        function = option(function)
    return function


def _print_timings(timings: dict[str, float], begin: float) -> None:
    stages = "  ".join(f"{stage} {seconds:.3f} s" for stage, seconds in timings.items())
    click.echo(f"{stages}  | with start-up {time.perf_counter() - begin:.3f} s", err=True)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="codec")
def main() -> None:
    """Compress pictures with a neural network, into files that decode the same on every machine.

    \b
    codec encode photo.png photo.lic
    codec decode photo.lic photo.png
    """


@main.command()
@click.argument("source", type=PATH)
@click.argument("target", type=PATH)
@click.option("-q", "--quality", type=click.FloatRange(0, 100), help="0 small … 100 fine.  [default: 50]")
@click.option("--bpp", type=float, help="Instead: at most so many bits per pixel.")
@click.option("--size", metavar="BYTES|KB", help="Instead: at most so many bytes, for example 40000, 40KB or 1.5MB.")
@click.option("--psnr", type=float, help="Instead: the smallest file with this PSNR in dB, or a little more.")
@click.option("--max-size", metavar="BYTES|KB", help="Lower the quality where the file would be larger than this.")
@click.option("--effort", type=click.IntRange(0, 10), default=0, show_default=True,
              help="Experimental: refine by 15 (1) to 500 (10) steps of descent. README has what it saves.")  # fmt: skip
@click.option("--model", default="swift", show_default=True, help="A name from `codec models`, or a .safetensors path.")
@click.option("-f", "--force", is_flag=True, help="Overwrite the target.")
@click.option("--verify", is_flag=True, help="Decode again and print PSNR.")
@max_pixels_option
@_compute_options
@_errors_to_exit
def encode(
    source: Path, target: Path, quality: float | None, bpp: float | None, size: str | None, psnr: float | None,
    max_size: str | None, effort: int, model: str, force: bool, verify: bool, max_pixels: int, device: str,
    threads: int | None, verbose: bool,
) -> None:  # fmt: skip
    """Compress a picture SOURCE (PNG, JPEG, WebP, TIFF, …) into the file TARGET."""
    begin = time.perf_counter()
    from codec.files import check_target, write_atomic
    from codec.targets import Target, parse_size

    limits = [None if text is None else parse_size(text) for text in (size, max_size)]
    allowed = Limits(max_pixels=max_pixels)
    goal = Target(quality=quality, bpp=bpp, size=limits[0], psnr=psnr, max_size=limits[1])
    check_target(target, overwrite=force)
    if not os.path.exists(source):
        raise UsageError(f"{source}: no such file")
    from codec import images
    from codec.api import cached_codec

    set_threads(threads)
    coder = cached_codec(model, device)
    picture = images.load(source, limits=allowed)
    with _refinement_bar(effort) as progress:
        data = coder.encode_picture(picture, goal, effort=effort, progress=progress)
    timings = coder.timings
    reached = None
    if verify or not goal.is_quality:
        reached = _reached(
            target,
            data,
            coder.max_level,
            picture.pixels,
            images.load(coder.decode(data, limits=NO_LIMITS), limits=NO_LIMITS).pixels,
        )
    write_atomic(target, data, overwrite=force)
    if reached is not None:
        click.echo(reached)
    if verbose:
        _print_timings(timings, begin)
        hint = ": the picture is coarser there than the quality asks for" if coder.clamped else ""
        click.echo(f"{coder.clamped} symbols clamped{hint}", err=True)


def _reached(target: Path, data: bytes, max_level: int, source: Any, decoded: Any) -> str:
    from codec.describe import info
    from codec.metrics import bpp, psnr_db

    h, w, _ = source.shape
    quality = 100 * info(data).level / (max_level or 1)
    return (
        f"{target}: {len(data)} bytes, {bpp(len(data), w, h):.4f} bpp, PSNR {psnr_db(source, decoded):.2f} dB, "
        f"quality {quality:.1f}"
    )


@contextlib.contextmanager
def _refinement_bar(effort: int) -> Iterator[Callable[[float], None]]:
    """Show a bar on a terminal while ``effort`` refines; its value is called with the share done."""
    if not effort or not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("refine", total=1.0)
        yield lambda share: bar.update(task, completed=share)


@main.command()
@click.argument("source", type=PATH)
@click.argument("target", type=PATH)
@click.option("--model", help="A checkpoint (.safetensors path) when the one the file names is not installed.")
@click.option("-f", "--force", is_flag=True, help="Overwrite the target.")
@click.option("--crop", type=CROP, metavar="X,Y,W,H", help="Only W×H pixels from column X, row Y.")
@click.option("--scale", type=SCALE, default="1", show_default=True, help="1/2, 1/4 or 1/8 of the size: a thumbnail.")
@limit_options
@_compute_options
@_errors_to_exit
def decode(
    source: Path, target: Path, model: str | None, force: bool, crop: tuple[int, int, int, int] | None, scale: str,
    max_pixels: int, max_memory: str, device: str, threads: int | None, verbose: bool,
) -> None:  # fmt: skip
    """Decompress the file SOURCE into the picture TARGET; its extension chooses the format (.png, .webp, …)."""
    begin = time.perf_counter()
    from codec.files import check_target, open_bytes

    check_target(target, overwrite=force)
    limits = limits_of(max_pixels, max_memory)
    with open_bytes(source, limits=limits) as file:
        from bitstream.container import open_container
        from models.manifest import find_by_id

        # Complain about damage before torch is loaded. Of a crop, only what is read is checked.
        container = open_container(file, limits=limits, whole=crop is None)
        name = model if model is not None else find_by_id(container.header.model_id)
        from codec import images

        images.format_of(target)
        from codec.api import cached_codec

        set_threads(threads)
        coder = cached_codec(name, device)
        image = coder.decode_tiles(container, crop=crop, scale=int(scale.removeprefix("1/")), limits=limits)
    images.save(image, target, overwrite=force)
    if verbose:
        _print_timings(coder.timings, begin)


@main.command()
@click.argument("source", type=PATH)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@_errors_to_exit
def info(source: Path, as_json: bool) -> None:
    """Say what is in a compressed file, without decoding it."""
    from codec.describe import describe

    facts = describe(source)
    if as_json:
        click.echo(json.dumps(facts, indent=2))
        return
    for key, value in facts.items():
        click.echo(f"{key:>15}  {'unknown (checkpoint not installed)' if value is None else value}")


@main.command()
@click.argument("source", type=PATH)
@click.option("--model", help="A checkpoint (.safetensors path) when the one the file names is not installed.")
@click.option("--threads", type=click.IntRange(1), help="CPU threads (default: all cores).")
@limit_options
@_errors_to_exit
def verify(source: Path, model: str | None, threads: int | None, max_pixels: int, max_memory: str) -> None:
    """Check a compressed file fully, stage by stage, and say which one fails. Exit 1 if one does."""
    set_threads(threads)
    from codec.verification import stages

    for stage in stages(source, model=model, limits=limits_of(max_pixels, max_memory)):
        click.echo(f"{'ok  ' if stage.passed else 'FAIL'}  {stage.name}: {stage.found}")
        if not stage.passed:
            sys.exit(1)


@main.command()
@_errors_to_exit
def doctor() -> None:
    """Say what is installed, whether the fast engine is built, which checkpoints are found."""
    from codec.doctor import report

    ok = True
    for passed, line in report():
        ok &= passed
        click.echo(f"{'ok  ' if passed else 'FAIL'}  {line}")
    if not ok:
        sys.exit(1)


for command in (
    cli_inspect.inspect,
    cli_models.models,
    cli_compare.compare,
    cli_evaluate.evaluate,
    cli_training.train,
    cli_training.export,
):
    main.command()(_errors_to_exit(command))
main.command(name="import")(_errors_to_exit(cli_models.import_))
