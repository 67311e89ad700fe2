"""Finding a problem by the name that a user types."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ntkmtl.problems.base import Problem

__all__ = ["ProblemNotFoundError", "find_problem"]


class ProblemNotFoundError(ValueError):
    """A name does not lead to a problem, or the problem refuses its options."""


def find_problem(name: str, options: Mapping[str, Any] | None = None) -> Problem:
    """Make a problem from its registered name, or from ``module.path:ClassName``.

    The second form imports the module, and so runs its code: it is for one's own problems.

    Args:
        name: A name that ``ntkmtl problems`` lists, or ``module.path:ClassName``.
        options: Options given to the problem.

    Raises:
        ProblemNotFoundError: There is no such problem, or it refuses the options.

    Example:
        >>> find_problem("no.module:Toy")
        Traceback (most recent call last):
        ...
        ntkmtl.training.lookup.ProblemNotFoundError: problem no.module:Toy: No module named 'no'
    """
    from ntkmtl import problems
    from ntkmtl.problems.base import Problem

    options = dict(options or {})
    if ":" not in name:
        if name not in problems.names():
            raise ProblemNotFoundError(
                f"there is no problem {name!r}; there are {', '.join(problems.names())}, "
                "and your own as module.path:ClassName"
            )
        try:
            return problems.create(name, **options)
        except (TypeError, ValueError) as error:
            raise ProblemNotFoundError(f"problem {name}: {error}") from error
    module_name, _, class_name = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except (ImportError, ValueError) as error:
        raise ProblemNotFoundError(f"problem {name}: {error}") from error
    kind = getattr(module, class_name, None)
    if not (isinstance(kind, type) and issubclass(kind, Problem)):
        raise ProblemNotFoundError(
            f"problem {name}: {module_name} has no class {class_name} that derives from "
            "ntkmtl.problems.base.Problem"
        )
    try:
        return kind(**options)
    except (TypeError, ValueError) as error:
        raise ProblemNotFoundError(f"problem {name}: {error}") from error
