"""The command ``codec evaluate``. ``codec.cli.main`` registers it and turns its errors into exit codes.

Heavy imports stay inside, as in ``codec.cli.main``.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bitstream.errors import UsageError
from codec.cli.files import is_terminal
from codec.cli.options import DEVICES, FILE, FOLDER, printable

if TYPE_CHECKING:
    from codec.evaluation.contenders import Contender
    from codec.evaluation.rows import RowStore
    from codec.evaluation.run import Point

METRICS = ("psnr", "ms-ssim")


@click.argument("folder", type=FOLDER)
@click.option("--model", "models", multiple=True, default=("swift",), show_default=True,
              help="A name from `codec models`, or a .safetensors path; several times for several; '' for none.")  # fmt: skip
@click.option(
    "-q",
    "--quality",
    "qualities",
    help="Comma-separated, on each codec's own scale.  [default: points of its own]",
)
@click.option("--peers", "peer_names", default="", help="Comma-separated: jpeg, webp, avif, avif-psnr, jxl, jpeg2000.")
@click.option("--metrics", default=",".join(METRICS), show_default=True, help="Comma-separated.")
@click.option("--quoted", "quoted_file", type=FILE, help="Published curves (JSON): drawn dashed, named as quoted.")
@click.option("-o", "--out", type=click.Path(path_type=Path), help="Folder for rows, summary, tables and plots.")
@click.option("--jobs", type=click.IntRange(1), default=1, show_default=True, help="Processes; times are best with one.")
@click.option("--threads", type=click.IntRange(1), help="CPU threads of each process (default: all cores, shared).")
@click.option("--device", type=DEVICES, default="auto", show_default=True, help="Where the transforms run.")
def evaluate(
    folder: Path, models: tuple[str, ...], qualities: str | None, peer_names: str, metrics: str, quoted_file: Path | None,
    out: Path | None, jobs: int, threads: int | None, device: str,
) -> None:  # fmt: skip
    """Measure models and other codecs on the pictures below FOLDER, by real files.

    Each picture, codec and quality is a row: bytes, bpp, PSNR, MS-SSIM, seconds. Without --quality a model runs at its rate
    levels (its λ), a peer on a grid of its own. With -o the rows are kept (rows.jsonl), and a run that was cut short goes on
    where it was; beside them means and BD-rates (summary.json, report.md) and plots (SVG, PNG).

    \b
    codec evaluate kodak/ --peers jpeg,webp,avif,jxl -o out/
    codec evaluate kodak/ --model hyperprior
    """
    if quoted_file is not None and out is None:
        raise UsageError("--quoted draws published curves beside the measured ones: give a folder for the plots, -o out/")
    chosen = _metrics(metrics)
    grid = None if qualities is None else _numbers(qualities)
    import torch

    from codec.evaluation import curves, report, rows, run
    from codec.evaluation.contenders import ModelContender, PeerContender
    from codec.evaluation.peers import peers

    threads = threads or max(1, torch.get_num_threads() // jobs)
    contenders: list[Contender] = [ModelContender.of(model, device) for model in models if model]
    contenders += [PeerContender.of(peer, threads) for peer in peers(peer_names)]
    quoted = {} if quoted_file is None else curves.quoted(quoted_file)
    skipped: list[str] = []
    sources = rows.find_sources(folder, skipped.append, out)
    points = run.plan(contenders, sources, grid)
    store = rows.RowStore(None if out is None else _made(out) / "rows.jsonl")
    names = {row["codec"] for row in store.rows.values()} | {contender.name for contender in contenders}
    _check_extra(bjontegaard=len(names) + len(quoted) > 1, matplotlib=out is not None)
    skipped += _run(run.missing(points, store, chosen), store, chosen, jobs, threads)
    identities = {contender.name: contender.identity for contender in contenders}
    summary = report.summarise(store.rows.values(), {(s.name, s.crc) for s in sources}, identities, quoted)
    _print(summary)
    for line in skipped:
        click.echo(f"codec: left out: {printable(line)}", err=True)
    if out is not None:
        report.write(out, summary, quoted, [c.name for c in contenders if isinstance(c, ModelContender)])
        click.echo(f"{len(store.rows)} rows, tables and plots are in {printable(str(out))}")
    if skipped:
        sys.exit(1)


def _metrics(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in METRICS:
            raise UsageError(f"metric {name!r} is not known: choose from {', '.join(METRICS)}")
    if not names:
        raise UsageError(f"no metric is given: choose from {', '.join(METRICS)}")
    return names


def _numbers(text: str) -> list[float]:
    try:
        numbers = sorted({float(part) for part in text.split(",") if part.strip()})
    except ValueError as error:
        raise UsageError(f"quality is {text!r}, expected numbers like 10,30,50") from error
    if not numbers:
        raise UsageError("no quality is given: expected numbers like 10,30,50")
    return numbers


def _check_extra(**needed: bool) -> None:
    """Raise UsageError, before the work, if what the result needs is not installed."""
    from importlib.util import find_spec

    missing = [name for name, is_needed in needed.items() if is_needed and find_spec(name) is None]
    if missing:
        raise UsageError(f"evaluate needs {' and '.join(missing)}: pip install 'learned-image-codec[evaluate]'")


def _made(out: Path) -> Path:
    """Return the folder, made if it is missing. Raises UsageError."""
    if out == Path():
        raise UsageError("the output folder has no name: give one, for example -o out/")
    try:
        out.mkdir(exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"{out}: cannot be made a folder ({error.strerror}): name a new one in a folder that exists"
        ) from error
    return out


def _run(points: Sequence[Point], store: RowStore, metrics: Sequence[str], jobs: int, threads: int) -> list[str]:
    """Measure what is missing, with a bar on a terminal; return why points could not be measured."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from codec.evaluation.run import run

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not is_terminal(sys.stderr)) as bar:
        task = bar.add_task("rows", total=len(points))
        return run(points, store, metrics, jobs, threads, lambda: bar.advance(task))


def _print(summary: Mapping[str, Any]) -> None:
    """Print the means of each codec, and the BD-rates if there are several."""
    from rich.console import Console

    from codec.evaluation.report import COLUMNS, NAMES, cells, columns_of

    console = Console(width=None if is_terminal(sys.stdout) else 120)
    for name, facts in summary["codecs"].items():
        columns = columns_of(facts["points"])
        lines = [cells(point, columns) for point in facts["points"]]
        console.print(_table(f"{name}, {len(summary['pictures'])} pictures", [COLUMNS[c][0] for c in columns], lines))
    for measure, matrix in summary["bd_rate_percent"].items():
        if len(matrix) > 1:
            lines = [[n, *("" if row[a] is None else f"{row[a]:+.1f}" for a in matrix)] for n, row in matrix.items()]
            console.print(_table(f"BD-rate by {NAMES[measure]} of the row against the column (%)", ["", *matrix], lines))


def _table(title: str, head: Iterable[str], lines: Iterable[Sequence[str]]) -> Any:
    from rich.table import Table

    table = Table(*head, title=title, title_justify="left")
    for line in lines:
        table.add_row(*line)
    return table
