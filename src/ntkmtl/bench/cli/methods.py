"""``ntkmtl methods``: the methods, with one line each."""

from __future__ import annotations

from ntkmtl.bench.cli.console import print_columns, print_json
from ntkmtl.bench.cli.options import Json

__all__ = ["methods"]


def methods(as_json: Json = False) -> None:
    """List the methods, with one line each."""
    from ntkmtl import weighting

    specs = weighting.specs()
    if as_json:
        print_json(
            [
                {
                    "name": spec.name,
                    "summary": spec.summary,
                    "requires": spec.requires,
                    "paper": spec.paper,
                }
                for spec in specs
            ]
        )
    else:
        print_columns([(spec.name, spec.summary) for spec in specs])
