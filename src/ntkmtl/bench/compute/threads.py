"""How many threads a run computes with."""

from __future__ import annotations

import os

from ntkmtl.bench.compute.environment import cores

__all__ = ["default_threads"]


def default_threads(jobs: int) -> int:
    """Return the threads of a run that nobody chose a number for.

    ``OMP_NUM_THREADS`` where it is set; otherwise 1 where runs are trained side by side, as their
    times would depend on each other, and all cores for a run alone.

    Args:
        jobs: Runs at a time.

    Raises:
        ValueError: ``OMP_NUM_THREADS`` is not a positive whole number.

    Example:
        >>> from unittest import mock
        >>> with mock.patch.dict(os.environ, OMP_NUM_THREADS="3"):
        ...     default_threads(jobs=2)
        3
        >>> with mock.patch.dict(os.environ, OMP_NUM_THREADS=""):
        ...     default_threads(jobs=2)
        1
    """
    said = os.environ.get("OMP_NUM_THREADS", "").strip()
    if said:
        # OpenMP takes a list, one number for each level of nested parallelism.
        first = said.partition(",")[0].strip()
        if not (first.isdecimal() and int(first) > 0):
            raise ValueError(
                f"OMP_NUM_THREADS must be a positive whole number, found {said!r}; set it right, "
                "unset it, or give a number of threads"
            )
        return int(first)
    return 1 if jobs > 1 else cores()
