"""``ntkmtl problems``: the problems, with one line each."""

from __future__ import annotations

from ntkmtl.bench.cli.console import print_columns, print_json
from ntkmtl.bench.cli.options import Json

__all__ = ["problems"]


def problems(as_json: Json = False) -> None:
    """List the problems, with one line each."""
    from ntkmtl.bench import problems as registry

    found = [(spec.name, spec.summary) for spec in registry.specs()]
    if as_json:
        print_json([{"name": name, "summary": summary} for name, summary in found])
    else:
        print_columns(found)
