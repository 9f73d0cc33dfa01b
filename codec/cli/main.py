"""The command line. Catches and prints errors; everything else lives behind it. Exit 0 done, 1 error, 2 usage.

Heavy imports stay inside the commands: ``codec --help`` and ``codec info`` load no torch.
"""

from __future__ import annotations

import errno
import json
import sys
import warnings
from collections.abc import Callable
from functools import wraps
from typing import Any

import click

from bitstream.errors import UsageError
from bitstream.limits import NO_LIMITS
from codec.cli import batch, coding, compare, evaluate, inspect, models, training
from codec.cli.files import one_by_one, read_stdin
from codec.cli.options import FILE_OR_STREAM, limit_options, limits_of, printable, sentence_of, set_threads
from codec.pairs import STREAM


def _print_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    if category in (UserWarning, RuntimeWarning):
        click.echo(f"codec: warning: {printable(str(message))}", err=True)


def _errors_to_exit(function: Callable[..., None]) -> Callable[..., None]:
    """Turn our errors into one sentence and an exit code, warnings into one line each."""

    @wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> None:
        with warnings.catch_warnings():
            warnings.showwarning = _print_warning
            try:
                function(*args, **kwargs)
            except OSError as error:  # of stdout: files raise ours
                if error.errno == errno.EPIPE:
                    raise  # click ends quietly
                click.echo(f"codec: {printable(str(error))}", err=True)
                sys.exit(1)
            except Exception as error:
                sentence = sentence_of(error)
                if sentence is None:
                    raise
                click.echo(f"codec: {sentence}", err=True)
                sys.exit(2 if isinstance(error, UsageError) else 1)

    return wrapper


EPILOG = """\b
Exit status:
  0        done
  1        an error: of the file, the picture, the disk; of some of several files
  2        wrong usage, found before any work
  128 + n  ended by signal n: 130 by Ctrl-C, 143 by SIGTERM; no half-written file is left

\b
Names of commands, options and files complete after one of
  eval "$(codec completion bash)"        in ~/.bashrc
  eval "$(codec completion zsh)"         in ~/.zshrc
  codec completion fish | source         in ~/.config/fish/config.fish

`codec COMMAND --help` has examples of each. NO_COLOR=1 in the environment turns colours off.
"""


def _print_version(context: click.Context, _: click.Parameter, asked: bool) -> None:
    if asked:
        from codec import __version__

        click.echo(f"codec, version {__version__}")
        context.exit()


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}, epilog=EPILOG)
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_print_version, help="Show the version.")
def main() -> None:
    """Compress pictures with a neural network, into files that decode the same on every machine.

    \b
    codec encode photo.png photo.lic
    codec decode photo.lic photo.png
    codec encode *.png -o coded/
    """


@main.command()
@click.argument("sources", metavar="SOURCE...", type=FILE_OR_STREAM, nargs=-1, required=True)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, of several files a line each.")
@_errors_to_exit
def info(sources: tuple[str, ...], as_json: bool) -> None:
    """Say what is in compressed files (- for stdin), without decoding them.

    \b
    codec info photo.lic
    codec encode photo.png - | codec info - --json
    """
    from codec.describe import describe

    several = len(sources) > 1

    def work(source: str) -> bool:
        facts = describe(source, read_stdin(NO_LIMITS) if source == STREAM else None)
        if as_json:
            click.echo(json.dumps(facts, indent=None if several else 2))
            return True
        for key, value in facts.items():
            click.echo(f"{key:>15}  {'unknown (checkpoint not installed)' if value is None else printable(str(value))}")
        return True

    one_by_one(sources, work)


@main.command()
@click.argument("sources", metavar="SOURCE...", type=FILE_OR_STREAM, nargs=-1, required=True)
@click.option("--model", help="A checkpoint (.safetensors path) when the one the file names is not installed.")
@click.option("--threads", type=click.IntRange(1), help="CPU threads (default: all cores).")
@limit_options
@_errors_to_exit
def verify(sources: tuple[str, ...], model: str | None, threads: int | None, max_pixels: int, max_memory: str) -> None:
    """Check compressed files (- for stdin) fully, stage by stage, and say which one fails. Exit 1 if one does.

    \b
    codec verify photo.lic
    codec verify archive/*.lic        # a line for each
    """
    set_threads(threads)
    from codec.verification import stages

    limits = limits_of(max_pixels, max_memory)
    several = len(sources) > 1

    def work(source: str) -> bool:
        data = read_stdin(limits) if source == STREAM else None
        for stage in stages(source, data, model=model, limits=limits):
            if not several or not stage.passed:
                of = f"{printable(source)}: " if several else ""
                click.echo(f"{'ok  ' if stage.passed else 'FAIL'}  {of}{stage.name}: {printable(stage.found)}")
            if not stage.passed:
                return False
        if several:
            click.echo(f"ok    {printable(source)}")
        return True

    one_by_one(sources, work)


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


@main.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the script that lets a shell complete names of commands, options and files.

    \b
    eval "$(codec completion bash)"        in ~/.bashrc
    eval "$(codec completion zsh)"         in ~/.zshrc
    codec completion fish | source         in ~/.config/fish/config.fish
    """
    from click.shell_completion import get_completion_class

    script = get_completion_class(shell)
    assert script is not None
    click.echo(script(main, {}, "codec", "_CODEC_COMPLETE").source())


main.command(epilog=coding.ENCODE_EPILOG)(_errors_to_exit(coding.encode))
main.command(epilog=coding.DECODE_EPILOG)(_errors_to_exit(coding.decode))
for command in (
    batch.batch,
    inspect.inspect,
    models.models,
    compare.compare,
    evaluate.evaluate,
    training.train,
    training.export,
):
    main.command()(_errors_to_exit(command))
main.command(name="import")(_errors_to_exit(models.import_))
