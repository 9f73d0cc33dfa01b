"""What commands that read and write files share: options, stdin and stdout, one file after the other, what is said of each.

Which file becomes which is settled in ``codec.pairs``. Heavy imports stay inside, as in ``codec.cli.main``.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from functools import wraps
from typing import Any, TextIO

import click

from bitstream.errors import UsageError, WriteError, unexpected
from bitstream.limits import Limits
from codec.cli.options import FILE_OR_STREAM, printable, sentence_of
from codec.files import check_not_source, check_target, read_stream, write_atomic
from codec.pairs import STREAM, Pair, check_pairs, many_pairs, single_pair

SHOWN_KINDS = 4  # suffixes of files that were left out
Row = dict[str, Any]  # what is known of a file: the keys of --json


@dataclass(frozen=True)
class FileOptions:
    """The files of a command line, and how it speaks of them."""

    paths: tuple[str, ...]
    out: str | None
    recursive: bool
    suffix: str | None
    skip_existing: bool
    force: bool
    as_json: bool
    quiet: bool

    def pairs(self, suffix: str, wanted: Callable[[str], bool]) -> list[Pair]:
        """Return sources and targets; ``suffix`` is the default of these. Raises UsageError."""
        if self.force and self.skip_existing:
            raise UsageError("--force replaces what --skip-existing keeps: give one of them")
        if self.out is None:
            for name in ("recursive", "suffix"):
                if getattr(self, name):
                    raise UsageError(f"--{name} is given without a folder for the targets: give -o DIR")
            return [self._single(wanted)]
        suffix = suffix if self.suffix is None else self.suffix
        others: Counter[str] = Counter()
        pairs = many_pairs(self.paths, self.out, suffix=suffix, recursive=self.recursive, wanted=wanted, others=others)
        check_pairs(pairs, overwrite=self.force, skip_existing=self.skip_existing)
        if others and not self.quiet:
            click.echo(f"codec: {printable(left_out(others))}", err=True)
        return pairs

    def _single(self, wanted: Callable[[str], bool]) -> Pair:
        pair = single_pair(self.paths)
        may_exist = self.force or self.skip_existing
        if pair.target == STREAM:
            check_stdout()
        elif os.path.isfile(pair.target) and not may_exist and wanted(pair.target):  # as from *.png, of two pictures
            raise UsageError(f"{pair.target} exists: give -f to replace it, or -o DIR if it is a second source")
        else:
            check_target(pair.target, overwrite=may_exist)
            check_not_source(pair.target, [pair.source] if self.force else [])
        if pair.source == STREAM:
            check_stdin()
        elif not os.path.exists(pair.source):
            raise UsageError(f"{pair.source}: no such file")
        return pair


def file_options(suffix: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Add arguments and options of files to a command, which gets them as ``files``; help says ``suffix`` is the default."""
    options = (
        click.argument("paths", metavar="SOURCE TARGET | SOURCE... -o DIR", type=FILE_OR_STREAM, nargs=-1, required=True),
        click.option("-o", "--out", metavar="DIR", type=click.Path(file_okay=False),
                     help="Write into this folder, which is made if need be: for any number of sources."),
        click.option("-r", "--recursive", is_flag=True, help="Sources may be folders: DIR gets the tree that is below them."),
        click.option("--suffix", metavar="TEXT", help=f"End of the names in DIR.  [default: {suffix}]"),
        click.option("--skip-existing", is_flag=True, help="Leave targets that exist as they are, and go on."),
        click.option("-f", "--force", is_flag=True, help="Overwrite targets."),
        click.option("--json", "as_json", is_flag=True, help="Print a line of JSON for each file, and nothing else."),
        click.option("--quiet", is_flag=True, help="Print errors only: no progress, reports or warnings."),
    )  # fmt: skip

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        @wraps(function)
        def wrapper(*, paths: tuple[str, ...], **given: Any) -> None:
            files = FileOptions(paths, *(given.pop(option.name) for option in fields(FileOptions)[1:]))
            if files.quiet:
                warnings.simplefilter("ignore")  # until ``codec.cli.main`` puts it back
            function(files=files, **given)

        command: Callable[..., None] = wrapper
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def read_stdin(limits: Limits) -> bytes:
    """Return all of stdin. Raises UsageError for a terminal, LimitError for more bytes than ``limits`` allow."""
    check_stdin()
    return read_stream(sys.stdin.buffer, limits)


def left_out(others: Counter[str]) -> str:
    """Return how many files of a folder were not taken, one or more, and the suffixes that most of them have."""
    kinds = [f"{count} {kind or 'without a suffix'}" for kind, count in others.most_common(SHOWN_KINDS)]
    more = ["…"] if len(others) > SHOWN_KINDS else []
    total = others.total()
    return f"{total} other {'file' if total == 1 else 'files'} left out ({', '.join([*kinds, *more])})"


def is_terminal(stream: TextIO | None) -> bool:
    """Return whether somebody looks at a standard stream; Python has None for one that is closed."""
    return stream is not None and stream.isatty()


def check_stdin() -> None:
    """Raise UsageError if there is nothing to read on stdin: it is a terminal, or closed."""
    if sys.stdin is None or is_terminal(sys.stdin):
        what = "closed" if sys.stdin is None else "a terminal"
        raise UsageError(f"stdin is {what}: redirect a file into it (< FILE), or name the file instead of -")


def check_stdout() -> None:
    """Raise UsageError if bytes cannot be written to stdout: it is a terminal, or closed."""
    if sys.stdout is None or is_terminal(sys.stdout):
        what = "closed" if sys.stdout is None else "a terminal"
        raise UsageError(f"stdout is {what}: redirect it (> FILE), or name a file instead of -")


def write_target(target: str, data: bytes, *, overwrite: bool) -> None:
    """Write a file, or to stdout. Raises what ``write_atomic`` raises; OSError of stdout, as ``print`` does."""
    if target != STREAM:
        write_atomic(target, data, overwrite=overwrite)
        return
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


@dataclass
class Tally:
    """Counts of files, and the bytes before and after of those that were written."""

    files: int = 0
    skipped: int = 0
    before: int = 0
    after: int = 0
    failed: list[str] = field(default_factory=list)

    def add(self, row: Row) -> None:
        """Count a file."""
        self.files += 1
        if "error" in row:
            self.failed.append(_named(row))
        elif "skipped" in row:
            self.skipped += 1
        elif row["source_bytes"] is not None:
            self.before += row["source_bytes"]
            self.after += row["bytes"]

    def __str__(self) -> str:
        from rich.filesize import decimal

        saved = f", {decimal(self.before - self.after)} saved" if self.before > self.after else ""
        return f"{decimal(self.before)} → {decimal(self.after)}{saved}"


def process(pairs: Sequence[Pair], work: Callable[[Pair], Row], files: FileOptions) -> None:
    """Call ``work`` for each pair and print what it returns. Errors of some of several files are printed at the end: exit 1."""
    if files.out is not None:
        _make_folder(files.out)  # once, and not before the model is loaded
    begin, tally, several = time.perf_counter(), Tally(), len(pairs) > 1
    with _bar(len(pairs), files) as advance:
        for pair in pairs:
            tally.add(_row(pair, work, files, go_on=several))
            advance(tally)
    if several and not files.quiet and is_terminal(sys.stderr):
        kept = f" ({tally.skipped} existed)" if tally.skipped else ""
        click.echo(f"{tally.files - len(tally.failed)} files{kept}: {tally}, in {time.perf_counter() - begin:.1f} s", err=True)
    for line in tally.failed:
        click.echo(f"codec: {line}", err=True)
    if tally.failed:
        click.echo(f"codec: {len(tally.failed)} of {tally.files} failed", err=True)
        sys.exit(1)


def _row(pair: Pair, work: Callable[[Pair], Row], files: FileOptions, go_on: bool) -> Row:
    """Do one file and print its row, which is returned; without ``go_on`` its error is raised."""
    begin = time.perf_counter()
    row: Row = {"source": pair.source, "target": pair.target}
    try:
        row |= _done(pair, work, files)
    except Exception as error:
        sentence = sentence_of(error)
        if not go_on:
            row |= {} if sentence is None else {"error": sentence}
            raise
        if isinstance(error, BrokenPipeError):  # of stderr: nobody listens any more
            raise
        row["error"] = sentence or printable(unexpected(error))
    finally:
        row["seconds"] = round(time.perf_counter() - begin, 4)
        if len(row) > 3:  # not after a signal, or a mistake of ours in a single file
            _print_row(row, files)
    return row


def _done(pair: Pair, work: Callable[[Pair], Row], files: FileOptions) -> Row:
    """Return what ``work`` returns, or the sizes of a target that is there already and shall stay."""
    if files.skip_existing and pair.target != STREAM and os.path.isfile(pair.target):
        return {"bytes": os.path.getsize(pair.target), "source_bytes": size_of(pair.source), "skipped": True}
    if files.out is not None:
        _make_folder(os.path.dirname(pair.target))
    return work(pair)


def size_of(source: str) -> int | None:
    """Return the bytes of a file, None of a pipe."""
    return os.path.getsize(source) if os.path.isfile(source) else None


def report_line(row: Row) -> str:
    """Return what is printed of a file whose PSNR was asked for."""
    facts = f"{row['bytes']} bytes, {row['bpp']:.4f} bpp, PSNR {row['psnr_db']:.2f} dB, quality {row['quality']:.1f}"
    return f"{row['target']}: {facts}"


def _print_row(row: Row, files: FileOptions) -> None:
    """Print JSON, or the line of a file whose PSNR is known; on stderr if the file itself goes to stdout."""
    err = row["target"] == STREAM
    if files.as_json:
        facts = {key: _number(value) if isinstance(value, float) else value for key, value in row.items()}
        click.echo(json.dumps(facts), err=err)
    elif "psnr_db" in row and not files.quiet:
        click.echo(printable(report_line(row)), err=err)


def _number(value: float) -> float | None:
    """Return what JSON can hold, in few digits: the PSNR of equal pictures is infinite."""
    return round(value, 5) if math.isfinite(value) else None


def _named(row: Row) -> str:
    """Return the error of a file, with its name if the sentence does not begin with it."""
    names = printable(row["source"]), printable(row["target"])
    return row["error"] if row["error"].startswith(names) else f"{names[0]}: {row['error']}"


def _make_folder(folder: str) -> None:
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise WriteError(f"{folder}: cannot be made a folder ({error.strerror})") from error


@contextlib.contextmanager
def _bar(total: int, files: FileOptions) -> Iterator[Callable[[Tally], None]]:
    """Show a bar of several files on a terminal; its value is called after each."""
    to_terminal = is_terminal(sys.stdout)
    if total < 2 or files.quiet or not is_terminal(sys.stderr) or (files.as_json and to_terminal):  # whose lines it would wrap
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (MofNCompleteColumn(), BarColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
    # Above the bar rich prints what goes to stdout too, but on its own console, which is stderr.
    with Progress(*columns, console=Console(stderr=True), transient=True, redirect_stdout=to_terminal) as bar:
        task = bar.add_task("", total=total)
        yield lambda tally: bar.update(task, advance=1, description=str(tally))


def one_by_one(sources: Sequence[str], work: Callable[[str], bool]) -> None:
    """Look at files; of several, one that cannot be is said, and the others are looked at all the same. Exit 1 if one fails."""
    failed = 0
    for source in sources:
        try:
            failed += not work(source)
        except Exception as error:
            sentence = sentence_of(error)
            if len(sources) == 1 or sentence is None:
                raise
            name = printable(source)
            click.echo(f"codec: {sentence if sentence.startswith(name) else f'{name}: {sentence}'}", err=True)
            failed += 1
    if failed:
        sys.exit(1)
