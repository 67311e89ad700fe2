"""Finding a problem by the name that a user types."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ntkmtl.bench.problems.base import Problem

__all__ = ["ProblemNotFoundError", "find_problem"]


class ProblemNotFoundError(ValueError):
    """A name does not lead to a problem, or the problem refuses its options."""


def find_problem(
    name: str, options: Mapping[str, Any] | None = None, *, try_out: bool = False
) -> Problem:
    """Make a problem from its registered name, or from a module or file and a class.

    The latter, ``module.path:ClassName`` and ``path/to/file.py:ClassName``, import the module, and
    so run its code: they are for one's own problems.

    Args:
        name: What :func:`ntkmtl.bench.problems.create` takes.
        options: Options given to the problem.
        try_out: Whether to put one's own problem through :func:`ntkmtl.bench.problems.check`.

    Raises:
        ProblemNotFoundError: There is no such problem, it refuses the options, or it does not keep
            the protocol.

    Example:
        >>> find_problem("no.m:Toy")
        Traceback (most recent call last):
        ...
        ntkmtl.bench.training.lookup.ProblemNotFoundError: problem no.m:Toy: No module named 'no'
    """
    from ntkmtl.bench import problems

    try:
        problem = problems.create(name, **dict(options or {}))
        if try_out and ":" in name:
            problems.check(problem)
    except problems.ProblemError as error:
        raise ProblemNotFoundError(str(error)) from error
    except (TypeError, ValueError) as error:
        known = ":" in name or name in problems.names()
        raise ProblemNotFoundError(f"problem {name}: {error}" if known else str(error)) from error
    return problem
