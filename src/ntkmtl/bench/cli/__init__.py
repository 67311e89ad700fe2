"""The command line's entry point.

It imports nothing outside the standard library by itself, so that a missing extra is met with the
line that installs it. The commands are in :mod:`ntkmtl.bench.cli.app`.
"""

from __future__ import annotations

import os
import sys

from ntkmtl.errors import missing_extra

__all__ = ["main"]

_NEEDED = frozenset({"typer", "rich"})


def main() -> None:
    """Run the command line and exit with its status.

    0: done. 1: some runs failed. 2: it was asked for something that cannot be done.
    130: stopped by Ctrl-C.
    """
    # Before torch is imported. On a busy machine, waiting threads that spin for long occupy the
    # core that another thread needs: a small network is then many times slower. Threads that do not
    # spin at all make every step slower on an idle machine.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    try:
        import rich  # noqa: F401

        from ntkmtl.bench.cli.app import app
    except ImportError as error:
        if (error.name or "").partition(".")[0] not in _NEEDED:
            raise
        print(missing_extra("the command line", "bench", error), file=sys.stderr)
        sys.exit(2)
    app(prog_name="ntkmtl")


if __name__ == "__main__":
    main()
