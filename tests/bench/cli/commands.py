"""Calling the command line in tests."""

from __future__ import annotations

from pathlib import Path

from typer.testing import CliRunner, Result

from ntkmtl.bench.cli.app import app


def call(*arguments: str | Path) -> Result:
    """Call ``ntkmtl`` in this process."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def good(*arguments: str | Path) -> Result:
    """Call ``ntkmtl``, which must end with status 0."""
    result = call(*arguments)
    assert result.exit_code == 0, result.output
    return result
