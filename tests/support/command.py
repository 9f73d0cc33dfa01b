"""The command line, called in this process."""

from __future__ import annotations

from typing import Any

from click.testing import CliRunner, Result


def call(*arguments: object, code: int = 0, stdin: bytes = b"") -> Result:
    """Run ``codec`` with these arguments; return the result once its exit status is ``code``, and it raised nothing else."""
    from codec.cli.main import main

    result: Any = CliRunner().invoke(main, [str(argument) for argument in arguments], input=stdin)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
    assert result.exit_code == code, result.output
    return result
